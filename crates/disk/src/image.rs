//! A layer in an image: a sparse file, an ext4 in it, a loop device between them.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use linux_raw_sys::ioctl::FITRIM;
use longshore_loop::{Access, attach};
use longshore_types::ByteCount;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::{LayerError, ext4, failed};

/// Nothing in a layer outlives its start, so nothing waits for the disk to be sure (`nobarrier`); the
/// tables are zero already (`noinit_itable`).
const OPTIONS: &str = "nobarrier,noinit_itable";

/// Makes a new image of at most `limit` bytes and mounts it at `base`.
///
/// The file system is written through the device, into the cache where the mount finds it: a start
/// waits for no disk.
pub(crate) fn mount(image: &Path, base: &Path, limit: ByteCount) -> Result<(), LayerError> {
    let file = create(image, limit).map_err(failed("making", image))?;
    let device = attach(&file, Access::ReadWrite, ext4::BLOCK)
        .map_err(|source| LayerError::Attach { path: image.to_owned(), source })?;
    ext4::format(&device.file, limit, now()).map_err(failed("making a file system in", image))?;
    let options = CString::new(OPTIONS).expect("no zero byte");
    let flags = MountFlags::NODEV | MountFlags::NOSUID;
    rustix::mount::mount(&device.path, base, "ext4", flags, &*options)
        .map_err(|errno| failed("mounting an ext4 at", base)(errno.into()))
}

fn create(image: &Path, limit: ByteCount) -> io::Result<File> {
    let file =
        OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(image)?;
    // The device has whole blocks.
    let sized = file.set_len(limit.0 / u64::from(ext4::BLOCK) * u64::from(ext4::BLOCK));
    if let Err(error) = sized {
        fs::remove_file(image)?;
        return Err(error);
    }
    Ok(file)
}

fn now() -> u32 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
}

/// Unmounts whatever is mounted at `base`; the kernel then detaches the device. What is still in use
/// disappears from here at once and goes with its last user.
pub(crate) fn unmount(base: &Path) -> io::Result<()> {
    loop {
        match rustix::mount::unmount(base, UnmountFlags::NOFOLLOW) {
            Ok(()) => {} // Another may lie below it.
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(Errno::BUSY) => {
                let flags = UnmountFlags::NOFOLLOW | UnmountFlags::DETACH;
                match rustix::mount::unmount(base, flags) {
                    Ok(()) | Err(Errno::INVAL) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Removes an image that is not mounted here any more; one that is not there is fine. Emptied first:
/// another mount namespace may have a copy of the mount for as long as it lives, and with it the
/// device, but not the space.
pub(crate) fn remove(image: &Path) -> io::Result<()> {
    let emptied = OpenOptions::new().write(true).truncate(true).open(image).map(drop);
    match emptied.and_then(|()| fs::remove_file(image)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Punches holes into the image where the file system in it has nothing.
pub(crate) fn trim(base: &Path) -> io::Result<()> {
    /// `struct fstrim_range`.
    #[repr(C)]
    struct Range {
        start: u64,
        length: u64,
        least: u64,
    }
    let dir = File::open(base)?;
    let mut everything = Range { start: 0, length: u64::MAX, least: 0 };
    // SAFETY: the call takes a range, and writes to it how much was trimmed.
    let result = unsafe { libc::ioctl(dir.as_raw_fd(), FITRIM.into(), &mut everything) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
