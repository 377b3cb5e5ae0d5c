//! Running our own program where no container can write to it.
//!
//! A process that is about to enter a container still has the host's program as its executable, and
//! a container's root could open that through `/proc/<pid>/exe` and wait until it may write
//! (CVE-2019-5736). So shims run from a private mount of the program that is read-only and attached
//! nowhere: the link leads to that mount, and writing fails whatever the file's own mode is. Other
//! runtimes copy themselves to memory instead, which costs the size of the program per shim.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

/// A read-only mount of one file, gone when its last user is.
pub(super) fn read_only_view(program: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let view = open_tree(CWD, program, flags)?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the path is an empty C string, and the structure is read for its size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            view.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            mem::size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(view) } else { Err(io::Error::last_os_error()) }
}

/// The path by which a child of ours, which has a copy of the descriptor until it runs the program,
/// finds it.
pub(super) fn path_in_child(view: &OwnedFd) -> PathBuf {
    Path::new("/proc/self/fd").join(view.as_raw_fd().to_string())
}
