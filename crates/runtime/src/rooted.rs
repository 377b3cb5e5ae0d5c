//! Paths of a container, resolved by the kernel as if its root file system were `/`.
//!
//! An image may hold `/etc -> ../../../etc`. Joining strings would read the host's file; `openat2`
//! with `RESOLVE_IN_ROOT` cannot leave the root, whatever symlinks it meets.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, mkdirat, openat2};

/// An image's file that is larger than this is not a password or group file.
const MAX_TEXT: u64 = 4 << 20;

/// An open root file system.
pub(crate) struct Root(OwnedFd);

impl Root {
    pub fn open(rootfs: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::openat(CWD, rootfs, flags, Mode::empty())?))
    }

    fn open_inside(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        openat2(&self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    /// Reads a regular text file; absent when there is none.
    pub fn read_text(&self, path: &str) -> io::Result<Option<String>> {
        // NONBLOCK, so that a FIFO planted in the image cannot hold us up.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = match self.open_inside(Path::new(path), flags) {
            Ok(fd) => File::from(fd),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.len() > MAX_TEXT {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{path} in the image is not a regular file of at most 4 MiB"),
            ));
        }
        let mut bytes = Vec::new();
        file.take(MAX_TEXT).read_to_end(&mut bytes)?;
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// True when this entry of the root is something else than a directory, such as a link to one.
    pub fn is_no_directory(&self, name: &str) -> io::Result<bool> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        match self.open_inside(Path::new(name), flags) {
            Ok(found) => {
                let mode = rustix::fs::fstat(&found)?.st_mode;
                Ok(!rustix::fs::FileType::from_raw_mode(mode).is_dir())
            }
            Err(rustix::io::Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Opens a file that somebody may run; what is not one is refused with EACCES, as the kernel does.
    pub fn open_program(&self, path: &Path) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        // A look that opens nothing first: opening a device may have an effect.
        let looked = self.open_inside(path, OFlags::PATH)?;
        let stat = rustix::fs::fstat(&looked)?;
        let is_file = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file();
        if !is_file || stat.st_mode & 0o111 == 0 {
            return Err(io::Error::from_raw_os_error(libc::EACCES));
        }
        Ok(File::from(self.open_inside(path, flags)?))
    }

    /// Makes the directory at the absolute `path` and those above it, owned by `owner` and the group
    /// of that number, mode 0755, where they are missing.
    pub fn ensure_directory(&self, path: &str, owner: u32) -> io::Result<()> {
        let directory = OFlags::PATH | OFlags::DIRECTORY;
        let mut reached = PathBuf::from("/");
        let mut parent = self.open_inside(&reached, directory)?;
        for component in Path::new(path).components() {
            match component {
                Component::RootDir | Component::CurDir => continue,
                Component::Normal(name) => reached.push(name),
                Component::ParentDir | Component::Prefix(_) => {
                    let problem = format!("{path:?} must not contain '..'");
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
                }
            }
            let opened = self.open_inside(&reached, directory);
            parent = match opened {
                Err(rustix::io::Errno::NOENT) => {
                    let name = reached.file_name().expect("a component was just pushed");
                    match mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                        Ok(()) => {
                            let (uid, gid) = (Uid::from_raw(owner), Gid::from_raw(owner));
                            let flags = AtFlags::SYMLINK_NOFOLLOW;
                            chownat(&parent, name, Some(uid), Some(gid), flags)?;
                        }
                        Err(rustix::io::Errno::EXIST) => {}
                        Err(errno) => return Err(errno.into()),
                    }
                    self.open_inside(&reached, directory)?
                }
                other => other?,
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use super::*;

    #[test]
    fn symlinks_cannot_leave_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("root"), dir.path().join("outside"));
        fs::create_dir_all(&inside).unwrap();
        fs::create_dir_all(&outside).unwrap();
        fs::write(outside.join("passwd"), "host").unwrap();
        symlink(&outside, inside.join("absolute")).unwrap();
        symlink("../outside", inside.join("relative")).unwrap();
        let root = Root::open(&inside).unwrap();
        for path in ["absolute/passwd", "relative/passwd", "/relative/passwd"] {
            assert_eq!(root.read_text(path).unwrap(), None, "{path}");
        }
        assert!(root.ensure_directory("/absolute/made", 0).is_err());
        assert!(root.ensure_directory("/a/../../made", 0).is_err());
        root.ensure_directory("/srv", 0).unwrap();
        root.ensure_directory("/srv/app", 70_000).unwrap();
        root.ensure_directory("/srv/app", 80_000).unwrap();
        let owner = |path: &str| inside.join(path).metadata().unwrap().uid();
        assert_eq!((owner("srv"), owner("srv/app")), (0, 70_000));
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    }
}
