//! Room that files were given and that nobody wrote to. It reads as zeros, as a hole does.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{Advice, FallocateFlags, SeekFrom, fadvise, fallocate, seek};
use rustix::io::{Errno, retry_on_intr};

use super::StoreIoError;

/// Gives a file room for a range inside of it; false where the file system cannot do that.
pub(crate) fn take(file: &File, start: u64, n_bytes: u64) -> io::Result<bool> {
    match retry_on_intr(|| fallocate(file, FallocateFlags::empty(), start, n_bytes)) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
        taken => Ok(taken.map(|()| true)?),
    }
}

/// Gives the room of a range back, which is zeros from then on.
pub(crate) fn give_back(file: &File, start: u64, n_bytes: u64) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match retry_on_intr(|| fallocate(file, flags, start, n_bytes)) {
        // It stays taken where files have no holes, or there is no room to note one; what was not written is zeros.
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOSPC) => Ok(()),
        given_back => Ok(given_back?),
    }
}

/// Gives all room of a file back that nobody wrote to; nobody may meanwhile.
pub(crate) fn give_back_all(file: &File) -> io::Result<()> {
    let metadata = file.metadata()?;
    // Zeros that somebody read lie in the page cache, and would be taken for what was written.
    file.sync_data()?;
    fadvise(file, 0, None, Advice::DontNeed)?;
    let mut at = 0;
    while at < metadata.len() {
        let start = seek(file, SeekFrom::Hole(at))?;
        at = match seek(file, SeekFrom::Data(start)) {
            Err(Errno::NXIO) => metadata.len(),
            found => found?,
        };
        if start < at {
            give_back(file, start, at - start)?;
        }
    }
    // By that it is known how old it is.
    file.set_modified(metadata.modified()?)
}

/// Does so for all files of a directory that have such a name.
pub(super) fn give_back_in(directory: &Path, extension: &str) -> Result<(), StoreIoError> {
    let listing = std::fs::read_dir(directory).map_err(StoreIoError::of("listing", directory))?;
    for entry in listing {
        let path = entry.map_err(StoreIoError::of("listing", directory))?.path();
        if path.extension().is_some_and(|found| found == extension) {
            let opened = File::options().read(true).write(true).open(&path);
            let given_back = opened.and_then(|file| give_back_all(&file));
            given_back.map_err(StoreIoError::of("making smaller", &path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    use super::*;

    #[test]
    fn what_was_not_written_is_given_back_and_nothing_else_changes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.data");
        let file = File::create_new(&path).unwrap();
        file.set_len(9 << 20).unwrap();
        assert!(take(&file, 0, 4 << 20).unwrap() && take(&file, 6 << 20, 3 << 20).unwrap());
        for (start, byte) in [(1 << 20, 1), (7 << 20, 2)] {
            file.write_all_at(&[byte; 1 << 20], start).unwrap();
        }
        file.sync_all().unwrap();
        let before = path.metadata().unwrap();
        assert!(before.blocks() * 512 >= 7 << 20);
        let contents = std::fs::read(&path).unwrap();
        give_back_in(directory.path(), "other").unwrap();
        assert_eq!(path.metadata().unwrap().blocks(), before.blocks());

        give_back_in(directory.path(), "data").unwrap();
        let after = path.metadata().unwrap();
        assert!(after.blocks() * 512 < 3 << 20, "{}", after.blocks() * 512);
        assert_eq!((after.len(), after.modified().unwrap()), (9 << 20, before.modified().unwrap()));
        assert!(std::fs::read(&path).unwrap() == contents);
        // Also when nothing, or all, is written.
        for written in [0, 1 << 20] {
            file.set_len(0).unwrap();
            file.set_len(1 << 20).unwrap();
            take(&file, 0, 1 << 20).unwrap();
            file.write_all_at(&vec![1; written], 0).unwrap();
            give_back_in(directory.path(), "data").unwrap();
            assert!(path.metadata().unwrap().blocks() * 512 <= written as u64 + 8192);
        }
    }
}
