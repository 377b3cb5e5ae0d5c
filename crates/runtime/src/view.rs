//! Mounts of single files of the machine that cannot be written through, attached nowhere at first.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount_change, move_mount, open_tree,
};
use rustix::thread::UnshareFlags;

/// A read-only mount of one file, without devices and set-id programs, and with what `more` (of
/// `MOUNT_ATTR_*`) forbids. Gone when its last user is.
pub(crate) fn read_only(file: &Path, more: u64) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let view = open_tree(CWD, file, flags)?;
    let always = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    let attributes =
        libc::mount_attr { attr_set: always | more, attr_clr: 0, propagation: 0, userns_fd: 0 };
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

/// Attaches a view over the open file `place`, whatever its name is by now.
pub(crate) fn attach(view: &OwnedFd, place: &OwnedFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(view, "", place, "", flags)?)
}

/// Makes what this process mounts from here on be seen by it and its children alone. What the machine
/// unmounts goes here too.
pub(crate) fn unshare_mounts() -> io::Result<()> {
    // SAFETY: the processes that come here have one thread, which shares its mounts with no other.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS)? };
    let downstream = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    Ok(mount_change("/", downstream)?)
}
