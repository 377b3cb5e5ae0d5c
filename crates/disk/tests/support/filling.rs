//! Writing as an instance does, until there is no more room.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

/// Gives up this thread's right to exceed quotas, which root has on ext4. Overlayfs, through which
/// instances write, gives it up too.
pub fn obey_quotas() {
    let mut sets = rustix::thread::capabilities(None).unwrap();
    sets.effective.remove(rustix::thread::CapabilitySet::SYS_RESOURCE);
    rustix::thread::set_capabilities(None, sets).unwrap();
}

/// Writes until the layer is full, and gives how much went in and the error that ended it.
pub fn fill(path: &Path) -> (u64, io::Error) {
    let mut file = File::create(path).unwrap();
    let block = vec![1; 64 * 1024];
    let mut written = 0;
    loop {
        match file.write(&block) {
            Ok(length) => written += length as u64,
            Err(error) => return (written, error),
        }
    }
}
