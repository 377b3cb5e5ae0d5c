//! The most that a process can ever have.

use std::io;

use rustix::thread::CapabilitySet;

/// More capabilities than any kernel has.
const N_CAPABILITIES: u32 = 64;

/// Takes all other capabilities from what this process could ever get.
pub(crate) fn bound(kept: CapabilitySet) -> io::Result<()> {
    for number in 0..N_CAPABILITIES {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if !kept.contains(capability) {
            match rustix::thread::remove_capability_from_bounding_set(capability) {
                Ok(()) => {}
                Err(rustix::io::Errno::INVAL) => break, // The kernel knows no more.
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    Ok(())
}
