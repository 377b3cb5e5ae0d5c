//! Paths of a container, resolved by the kernel as if its root file system were `/`.
//!
//! An image may hold `/etc -> ../../../etc`. Joining strings would read the host's file; `openat2`
//! with `RESOLVE_IN_ROOT` cannot leave the root, whatever symlinks it meets.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, mkdirat, openat,
    openat2, readlinkat, statat,
};

/// How often a path is looked up that the kernel could not follow to its end in one go.
const LOOKUP_ATTEMPTS: u32 = 1000;

/// An image's file that is larger than this is not a password or group file.
const MAX_TEXT: u64 = 4 << 20;

/// As many symbolic links as the kernel itself follows in one path.
const MAX_LINKS: u32 = 40;

/// An open root file system.
pub(crate) struct Root(OwnedFd);

impl Root {
    pub fn open(rootfs: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::openat(CWD, rootfs, flags, Mode::empty())?))
    }

    fn open_inside(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = flags | OFlags::CLOEXEC;
        let mut result = Err(rustix::io::Errno::AGAIN);
        // The kernel gives EAGAIN when anything anywhere was renamed while it resolved a `..`.
        for _ in 0..LOOKUP_ATTEMPTS {
            result = openat2(&self.0, path, flags, Mode::empty(), resolve);
            if !matches!(result, Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR)) {
                break;
            }
        }
        result
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
    /// of that number, mode 0755, where they are missing. A symbolic link to nothing gets what it
    /// leads to, inside the root.
    pub fn ensure_directory(&self, path: &str, owner: u32) -> io::Result<()> {
        self.ensure(path, Made::Directory, owner)
    }

    /// The same for a regular file; a new one is empty.
    pub fn ensure_file(&self, path: &str, owner: u32) -> io::Result<()> {
        self.ensure(path, Made::File, owner)
    }

    /// Makes a directory in the root itself, and refuses a symbolic link or a file in its place.
    pub fn ensure_plain_directory(&self, name: &str, owner: u32) -> io::Result<()> {
        match mkdirat(&self.0, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => return Ok(give(&self.0, OsStr::new(name), owner)?),
            Err(rustix::io::Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        let there = statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let what = match FileType::from_raw_mode(there.st_mode) {
            FileType::Directory => return Ok(()),
            FileType::Symlink => "a symbolic link",
            _ => "a file",
        };
        Err(io::Error::new(io::ErrorKind::NotADirectory, format!("it is {what}, not a directory")))
    }

    /// The file or directory at a path, to mount on.
    pub fn open_place(&self, path: &str) -> io::Result<OwnedFd> {
        Ok(self.open_inside(Path::new(path), OFlags::PATH)?)
    }

    /// Where a directory really is, its links resolved, as a path of the container.
    pub fn resolve(&self, path: &str) -> io::Result<PathBuf> {
        let place = |fd: &OwnedFd| std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        let found = place(&self.open_place(path)?)?;
        let below = found.strip_prefix(place(&self.0)?).map_err(io::Error::other)?;
        Ok(Path::new("/").join(below))
    }

    fn ensure(&self, path: &str, made: Made, owner: u32) -> io::Result<()> {
        if Path::new(path).components().any(|part| part == Component::ParentDir) {
            let problem = format!("{path:?} must not contain '..'");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        // The parts to come, the next one last; a link to nothing is replaced by its target's.
        let mut to_come = parts(Path::new(path));
        let mut reached = PathBuf::from("/");
        let mut n_links = 0;
        while let Some(part) = to_come.pop() {
            let made = if to_come.is_empty() { made } else { Made::Directory };
            match self.ensure_child(&reached, &part, made, owner)? {
                None => reached.push(part),
                Some(target) => {
                    n_links += 1;
                    if n_links > MAX_LINKS {
                        return Err(rustix::io::Errno::LOOP.into());
                    }
                    if target.has_root() {
                        reached = PathBuf::from("/");
                    }
                    to_come.extend(parts(&target));
                }
            }
        }
        Ok(())
    }

    /// Makes what is missing in an existing directory; when the name is that of a symbolic link to
    /// nothing, gives the link's target instead.
    fn ensure_child(
        &self,
        parent: &Path,
        name: &OsStr,
        made: Made,
        owner: u32,
    ) -> io::Result<Option<PathBuf>> {
        match (self.open_inside(&parent.join(name), made.flags()), made) {
            (Ok(_), Made::Directory) => return Ok(None),
            (Ok(found), Made::File) => {
                let kind = FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode);
                if kind == FileType::RegularFile {
                    return Ok(None);
                }
                let problem = "it is a directory or special, not a regular file";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
            }
            (Err(rustix::io::Errno::NOENT), _) => {}
            (Err(errno), _) => return Err(errno.into()),
        }
        let parent = self.open_inside(parent, Made::Directory.flags())?;
        let new = match made {
            Made::Directory => mkdirat(&parent, name, Mode::from_raw_mode(0o755)),
            Made::File => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                openat(&parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)
            }
        };
        match new {
            Ok(()) => {
                give(&parent, name, owner)?;
                Ok(None)
            }
            Err(rustix::io::Errno::EXIST) => {
                let target = readlinkat(&parent, name, Vec::new())?;
                Ok(Some(PathBuf::from(OsString::from_vec(target.into_bytes()))))
            }
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Gives what was just made to a user and the group of that number.
fn give(parent: &OwnedFd, name: &OsStr, owner: u32) -> rustix::io::Result<()> {
    let (uid, gid) = (Uid::from_raw(owner), Gid::from_raw(owner));
    chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
}

/// What is made at the end of a path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Made {
    Directory,
    File,
}

impl Made {
    fn flags(self) -> OFlags {
        match self {
            Self::Directory => OFlags::PATH | OFlags::DIRECTORY,
            Self::File => OFlags::PATH,
        }
    }
}

/// The parts of a path below its root, the last one first.
fn parts(path: &Path) -> Vec<OsString> {
    let names = path
        .components()
        .rev()
        .filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
    names.map(|part| part.as_os_str().to_owned()).collect()
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
        assert!(root.ensure_directory("/a/../../made", 7).is_err());
        root.ensure_directory("/srv", 0).unwrap();
        root.ensure_directory("/srv/app", 70_000).unwrap();
        root.ensure_directory("/srv/app", 80_000).unwrap();
        let owner = |path: &str| inside.join(path).metadata().unwrap().uid();
        assert_eq!((owner("srv"), owner("srv/app")), (0, 70_000));
        // A link to nothing gets what it leads to, where a process of the container would find it.
        root.ensure_directory("/absolute/made", 7).unwrap();
        root.ensure_directory("/relative/made/deep", 7).unwrap();
        let outside_inside = inside.join(outside.strip_prefix("/").unwrap());
        assert!(outside_inside.join("made").is_dir());
        assert!(inside.join("outside/made/deep").is_dir());
        symlink("a", inside.join("b")).unwrap();
        symlink("b", inside.join("a")).unwrap();
        symlink("x/y/../x", inside.join("x")).unwrap();
        for circle in ["/a", "/a/made", "/x/made"] {
            let error = root.ensure_directory(circle, 7).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::LOOP.raw_os_error()));
        }
        symlink("../run/resolve/stub", inside.join("resolv")).unwrap();
        for path in ["/hosts", "/hosts", "/resolv", "/relative/made/file"] {
            root.ensure_file(path, 7).unwrap();
        }
        assert_eq!((owner("hosts"), owner("run/resolve")), (7, 7));
        assert!(inside.join("run/resolve/stub").is_file());
        assert!(root.ensure_file("/srv", 7).is_err() && root.ensure_file("/a", 7).is_err());
        assert_eq!(root.resolve("/relative/made").unwrap(), Path::new("/outside/made"));
        root.ensure_plain_directory("proc", 7).unwrap();
        root.ensure_plain_directory("proc", 7).unwrap();
        for name in ["relative", "hosts"] {
            assert!(root.ensure_plain_directory(name, 7).is_err());
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    }
}
