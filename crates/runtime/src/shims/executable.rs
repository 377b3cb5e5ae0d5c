//! Running our own program where no container can write to it.
//!
//! A process that is about to enter a container still has the host's program as its executable, and
//! a container's root could open that through `/proc/<pid>/exe` and wait until it may write
//! (CVE-2019-5736). So shims run from a private mount of the program that is read-only and attached
//! nowhere: the link leads to that mount, and writing fails whatever the file's own mode is. Other
//! runtimes copy themselves to memory instead, which costs the size of the program per shim.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

/// The path by which a child of ours, which has a copy of the descriptor until it runs the program,
/// finds it.
pub(super) fn path_in_child(view: &OwnedFd) -> PathBuf {
    Path::new("/proc/self/fd").join(view.as_raw_fd().to_string())
}
