//! Where the contents of an archive go.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
use rustix::io::Errno;

use super::{UnpackError, is_directory, printable, write_failed};
use crate::tar::{Entry, EntryKind, EntryPath};

/// The destination of an archive.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    /// All goes into this directory, which is there.
    Into(&'a Path),
    /// The archive holds one tree, and this is the `DST` of `cp`: a directory gets the tree under its
    /// own name, what is not there becomes the tree, a file is replaced by a file. A tree named `.` is
    /// the contents of a directory.
    At(&'a Path),
}

/// A destination that was looked at.
pub(super) enum Found {
    Directory(OwnedFd),
    /// Not there, or not a directory.
    Name {
        parent: OwnedFd,
        name: Vec<u8>,
        is_there: bool,
        /// It was written as only a directory can be.
        must_be_directory: bool,
    },
}

/// A destination for a certain archive.
pub(super) struct Placed {
    pub root: OwnedFd,
    /// Whether it was made for the archive.
    pub is_new: bool,
    /// The name of the archive's one tree, and what it gets instead.
    rename: Option<(Vec<u8>, Vec<u8>)>,
}

impl Place<'_> {
    /// What is there, and the directory below which names are made.
    pub(super) fn open(self) -> Result<(Found, PathBuf), UnpackError> {
        let (Self::Into(path) | Self::At(path)) = self;
        let shown = || path.display().to_string();
        let open = |path: &Path| {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            openat(CWD, path, flags, Mode::empty())
        };
        let is_there = match open(path) {
            Ok(found) => {
                if is_directory(&found).map_err(write_failed(path.as_os_str().as_bytes()))? {
                    return Ok((Found::Directory(found), path.to_owned()));
                }
                true
            }
            Err(Errno::NOENT) => false,
            Err(Errno::NOTDIR) => return Err(UnpackError::NotDirectory { path: shown() }),
            Err(errno) => return Err(write_failed(path.as_os_str().as_bytes())(errno)),
        };
        let missing = || UnpackError::Missing { path: shown() };
        if let Self::Into(_) = self {
            return Err(if is_there {
                UnpackError::NotDirectory { path: shown() }
            } else {
                missing()
            });
        }
        let name = path.file_name().ok_or_else(missing)?.as_bytes().to_vec();
        let above = path.parent().filter(|above| !above.as_os_str().is_empty());
        let above = above.unwrap_or(Path::new("."));
        let parent = open(above).map_err(|errno| match errno {
            Errno::NOENT => UnpackError::Missing { path: above.display().to_string() },
            Errno::NOTDIR => UnpackError::NotDirectory { path: above.display().to_string() },
            errno => write_failed(above.as_os_str().as_bytes())(errno),
        })?;
        let written = path.as_os_str().as_bytes();
        let must_be_directory = written.ends_with(b"/") || written.ends_with(b"/.");
        let found = Found::Name { parent, name, is_there, must_be_directory };
        Ok((found, path.parent().unwrap_or(Path::new("")).to_owned()))
    }
}

impl Found {
    /// Decides by the first entry of the archive what the others are called.
    pub fn settle(self, first: &Entry) -> Result<Placed, UnpackError> {
        let (parent, name, is_there, must_be_directory) = match self {
            Self::Directory(root) => return Ok(Placed { root, is_new: false, rename: None }),
            Self::Name { parent, name, is_there, must_be_directory } => {
                (parent, name, is_there, must_be_directory)
            }
        };
        let is_tree = first.kind == EntryKind::Directory
            || first.path.split().is_none_or(|(above, _)| !above.is_empty());
        if is_there && is_tree {
            let why = "a directory cannot be copied onto a file";
            return Err(UnpackError::InTheWay { path: printable(&name), why });
        }
        if must_be_directory && !is_tree {
            return Err(UnpackError::Missing { path: printable(&name) });
        }
        let top = first.path.as_bytes().split(|&byte| byte == b'/').next().unwrap_or_default();
        if !top.is_empty() {
            let rename = Some((top.to_vec(), name));
            return Ok(Placed { root: parent, is_new: false, rename });
        }
        let failed = write_failed(&name);
        mkdirat(&parent, name.as_slice(), Mode::RWXU).map_err(&failed)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = openat(&parent, name.as_slice(), flags, Mode::empty()).map_err(&failed)?;
        Ok(Placed { root, is_new: true, rename: None })
    }
}

impl Placed {
    /// Where below the root an entry goes.
    pub fn path(&self, path: &EntryPath) -> Result<Vec<u8>, UnpackError> {
        let path = path.as_bytes();
        let Some((from, to)) = &self.rename else { return Ok(path.to_vec()) };
        match path.strip_prefix(from.as_slice()) {
            Some(rest) if rest.is_empty() || rest.starts_with(b"/") => {
                Ok([to.as_slice(), rest].concat())
            }
            _ => Err(UnpackError::SecondTop { path: printable(path) }),
        }
    }
}
