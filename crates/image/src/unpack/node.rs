//! Single files and directories below a descriptor: what the tree does to each.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::entries::Attributes;
use super::stream::classify;
use super::{EntryProblem, UnpackError, is_allowed_xattr};
use crate::tar::{EntryPath, TarReader, Xattr};

/// Sets everything but the time of a directory, which is set last.
pub(super) fn set_attributes(
    fd: &OwnedFd,
    attributes: &Attributes<'_>,
    path: &EntryPath,
) -> Result<(), UnpackError> {
    let path = path.as_bytes();
    let (uid, gid) = owner(attributes);
    // Changing the owner drops setuid and capabilities, so it comes first.
    rustix::fs::fchown(fd, uid, gid).map_err(failed("setting the owner of", path))?;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(attributes.mode))
        .map_err(failed("setting the mode of", path))?;
    for xattr in &attributes.xattrs {
        rustix::fs::fsetxattr(fd, xattr.name.as_slice(), &xattr.value, XattrFlags::empty())
            .map_err(|errno| xattr_refused(fd, path, xattr, errno))?;
    }
    Ok(())
}

/// A file system says that it is full also when one file's attributes are more than it can hold.
fn xattr_refused(fd: &OwnedFd, path: &[u8], xattr: &Xattr, errno: Errno) -> UnpackError {
    let is_full = || rustix::fs::fstatvfs(fd).is_ok_and(|disk| disk.f_bavail < SPARE_BLOCKS);
    match errno {
        Errno::NOSPC if is_full() => failed("setting an xattr of", path)(errno),
        Errno::NOSPC | Errno::TOOBIG | Errno::RANGE | Errno::INVAL | Errno::OPNOTSUPP => {
            let problem = EntryProblem::Xattr {
                name: String::from_utf8_lossy(&xattr.name).into_owned(),
                n_bytes: xattr.value.len(),
                answer: errno.to_string(),
            };
            UnpackError::entry(path, problem)
        }
        _ => failed("setting an xattr of", path)(errno),
    }
}

/// A disk with fewer free blocks is full.
const SPARE_BLOCKS: u64 = 16;

/// Writes the contents that the archive has next.
pub(super) fn write_contents(
    file: &File,
    size: u64,
    path: &EntryPath,
    tar: &mut TarReader<impl Read>,
) -> Result<(), UnpackError> {
    let failed = |source| UnpackError::write("writing", path.as_bytes(), source);
    let mut end = 0;
    while let Some(chunk) = tar.next_chunk().map_err(classify)? {
        file.write_all_at(chunk.bytes, chunk.offset).map_err(failed)?;
        end = chunk.offset + chunk.bytes.len() as u64;
    }
    if end < size {
        file.set_len(size).map_err(failed)?;
    }
    Ok(())
}

/// Sets the attributes of a file whose contents are written.
pub(super) fn finish_file(
    fd: &OwnedFd,
    attributes: &Attributes<'_>,
    path: &EntryPath,
) -> Result<(), UnpackError> {
    set_attributes(fd, attributes, path)?;
    rustix::fs::futimens(fd, &timestamps(attributes.mtime))
        .map_err(failed("setting the time of", path.as_bytes()))
}

/// The error of a system call, with what was being done to which path.
pub(super) fn failed(action: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> UnpackError {
    let path = path.to_vec();
    move |errno| UnpackError::write(action, &path, errno.into())
}

pub(super) fn owner(
    attributes: &Attributes<'_>,
) -> (Option<rustix::fs::Uid>, Option<rustix::fs::Gid>) {
    (
        Some(rustix::fs::Uid::from_raw(attributes.uid)),
        Some(rustix::fs::Gid::from_raw(attributes.gid)),
    )
}

pub(super) fn timestamps((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}

pub(super) fn stat(parent: &OwnedFd, name: &[u8]) -> Result<Stat, Errno> {
    rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
}

pub(super) fn open_child(parent: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// Removes the xattrs that an earlier entry of the same directory set.
pub(super) fn clear_xattrs(directory: &OwnedFd) -> Result<(), Errno> {
    let mut names = vec![0; rustix::fs::flistxattr_query(directory)?];
    let n_bytes = rustix::fs::flistxattr(directory, &mut names[..])?;
    for name in names[..n_bytes].split(|&byte| byte == 0) {
        if is_allowed_xattr(name) {
            rustix::fs::fremovexattr(directory, name)?;
        }
    }
    Ok(())
}

/// Directories and whiteouts in a directory.
pub(super) fn children(directory: &OwnedFd) -> Result<Vec<(FileType, Vec<u8>)>, Errno> {
    let mut children = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        let kind = match entry.file_type() {
            FileType::Unknown => FileType::from_raw_mode(stat(directory, name)?.st_mode),
            kind => kind,
        };
        let matters = matches!(kind, FileType::Directory | FileType::CharacterDevice);
        if matters && name != b"." && name != b".." {
            children.push((kind, name.to_vec()));
        }
    }
    Ok(children)
}

/// Removes a directory with all that is in it. Its depth is bounded, and so the open descriptors.
pub(super) fn remove_tree(parent: &OwnedFd, name: &[u8]) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    // The standard library removes by descriptors below the path that it is given, without following
    // links; the path leads through our own descriptor.
    let path = format!("/proc/self/fd/{}", parent.as_raw_fd());
    std::fs::remove_dir_all(std::path::Path::new(&path).join(std::ffi::OsStr::from_bytes(name)))
}
