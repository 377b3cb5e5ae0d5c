//! The tree of one layer on disk, changed only through file descriptors below its root.
//!
//! Names come from a stranger. Every lookup of a directory is one `openat2` with `RESOLVE_IN_ROOT`:
//! the kernel itself treats the root of the layer as `/`, so neither `..` nor a symbolic link, relative
//! or absolute, leads out. The last part of a path is never followed. A directory that is reached
//! through a symbolic link of the same layer is used, inside the root, as docker and containerd do;
//! what the link reaches in a lower layer cannot be known here, so such an entry is refused.
//!
//! Whiteouts are kept as overlayfs wants them: a character device 0/0 for a name that is gone, the
//! xattr `trusted.overlay.opaque` on a directory that hides the ones below it. Both speak of lower
//! layers only, whatever their order among the layer's own entries.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, XattrFlags};
use rustix::io::Errno;

use super::entries::{Attributes, Destination};
use super::node::{
    children, clear_xattrs, failed, finish_file, open_child, owner, remove_tree, set_attributes,
    stat, timestamps, write_contents,
};
use super::{EntryProblem, UnpackError};
use crate::index::Origin;
use crate::limits::{LimitExceeded, Limits};
use crate::steps::{Step, reached};
use crate::tar::{EntryPath, TarReader};

/// The xattr by which overlayfs knows a directory that hides what lies below it.
pub(crate) const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

/// What a directory has that no entry describes: the same on every node.
pub(crate) const IMPLICIT_MODE: u32 = 0o755;

/// Most bytes of paths of directories that no entry describes. They are listed in a layer's report.
const IMPLICIT_PATH_BYTES: u64 = 16 << 20;

/// A lookup that met a rename elsewhere on the machine is repeated at most this often.
const LOOKUP_ATTEMPTS: usize = 1000;

pub(super) struct Tree {
    root: Rc<Directory>,
    /// Every directory of the tree by inode number; all were made by this struct.
    notes: HashMap<u64, Note>,
    n_made: u64,
    /// The directory that the last entry was put into: most entries go where the last one went.
    recent: Option<(Vec<u8>, Rc<Directory>)>,
    /// Names that a whiteout spoke of, as hashes of (directory, name): a set of names of a hostile
    /// layer could fill the memory.
    whited_out: HashSet<u64>,
    hash: RandomState,
    max_depth: u32,
    max_made: u64,
}

pub(super) struct Directory {
    fd: OwnedFd,
    inode: u64,
}

#[derive(Clone, Copy)]
struct Note {
    /// Tells this directory from an earlier one that had the same inode number.
    serial: u64,
    depth: u32,
    mtime: (i64, u32),
    origin: Origin,
    /// Whether it hides what lower layers have in it.
    is_opaque: bool,
}

impl Tree {
    /// Takes an empty directory as the root.
    pub fn new(root: OwnedFd, limits: &Limits) -> Result<Self, UnpackError> {
        let inode = rustix::fs::fstat(&root).map_err(failed("looking at", b""))?.st_ino;
        let mut tree = Self {
            root: Rc::new(Directory { fd: root, inode }),
            notes: HashMap::new(),
            n_made: 0,
            recent: None,
            whited_out: HashSet::new(),
            hash: RandomState::new(),
            max_depth: limits.depth,
            max_made: limits.entries,
        };
        let root = Rc::clone(&tree.root);
        tree.adopt(&root, 0, b"")?;
        Ok(tree)
    }

    fn make_opaque(&mut self, directory: &Directory, path: &[u8]) -> Result<(), UnpackError> {
        self.note_mut(directory.inode).is_opaque = true;
        rustix::fs::fsetxattr(&directory.fd, OPAQUE_XATTR, b"y", XattrFlags::empty())
            .map_err(failed("making opaque", path))
    }

    fn finish_directory(
        &self,
        directory: &Directory,
        path: &mut Vec<u8>,
        below: Below,
        implicit: &mut Implicit,
    ) -> Result<(), UnpackError> {
        let note = &self.notes[&directory.inode];
        let below = if note.is_opaque { Below::Nothing } else { below };
        let here = path.len();
        for (kind, name) in children(&directory.fd).map_err(failed("listing", path))? {
            path.extend(b"/".iter().skip(usize::from(here == 0)).chain(&name));
            match (kind, below) {
                (FileType::Directory, _) => {
                    let fd = open_child(&directory.fd, &name).map_err(failed("opening", path))?;
                    let inode = rustix::fs::fstat(&fd).map_err(failed("looking at", path))?.st_ino;
                    self.finish_directory(&Directory { fd, inode }, path, below, implicit)?;
                }
                (FileType::CharacterDevice, Below::Nothing) => {
                    rustix::fs::unlinkat(&directory.fd, &*name, AtFlags::empty())
                        .map_err(failed("removing the whiteout", path))?;
                }
                _ => {}
            }
            path.truncate(here);
        }
        if note.origin == Origin::Implicit {
            implicit.add(path)?;
        }
        rustix::fs::futimens(&directory.fd, &timestamps(note.mtime))
            .map_err(failed("setting the time of", path))?;
        reached(Step::TreeFinished);
        Ok(())
    }

    /// Opens a directory of the tree, following links inside the root.
    fn open(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let mut result = Err(Errno::AGAIN);
        // The kernel gives EAGAIN when anything anywhere was renamed while it resolved a `..`.
        for _ in 0..LOOKUP_ATTEMPTS {
            result = rustix::fs::openat2(&self.root.fd, path, flags, Mode::empty(), resolve);
            if !matches!(result, Err(Errno::AGAIN | Errno::INTR)) {
                break;
            }
        }
        result
    }

    /// The directory at a path; missing ones are made, without a description.
    fn ensure_directory(&mut self, path: &[u8]) -> Result<Rc<Directory>, UnpackError> {
        if let Some((recent, directory)) = &self.recent
            && recent == path
        {
            return Ok(Rc::clone(directory));
        }
        let directory = match self.open(path) {
            Ok(fd) => {
                let inode = rustix::fs::fstat(&fd).map_err(failed("looking at", path))?.st_ino;
                Rc::new(Directory { fd, inode })
            }
            Err(Errno::NOENT | Errno::NOTDIR) => {
                let slash = path.iter().rposition(|&byte| byte == b'/');
                let (above, name) = match slash {
                    Some(slash) => (&path[..slash], &path[slash + 1..]),
                    None => (&b""[..], path),
                };
                let parent = self.ensure_directory(above)?;
                self.ensure_child(&parent, name, path, Replace::WhiteoutOnly)?
            }
            Err(Errno::LOOP) => return Err(UnpackError::entry(path, EntryProblem::ParentLoop)),
            Err(errno) => return Err(failed("opening", path)(errno)),
        };
        self.recent = Some((path.to_vec(), Rc::clone(&directory)));
        Ok(directory)
    }

    /// The directory `name` in `parent`, made when it is not there.
    fn ensure_child(
        &mut self,
        parent: &Directory,
        name: &[u8],
        path: &[u8],
        replace: Replace,
    ) -> Result<Rc<Directory>, UnpackError> {
        let depth = self.check_depth(parent, path)? + 1;
        let mode = Mode::from_raw_mode(IMPLICIT_MODE);
        let mut is_new = true;
        match rustix::fs::mkdirat(&parent.fd, name, mode) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let there = stat(&parent.fd, name).map_err(failed("looking at", path))?;
                match (FileType::from_raw_mode(there.st_mode), replace) {
                    (FileType::Directory, _) => is_new = false,
                    (FileType::CharacterDevice, _) | (_, Replace::Anything) => {
                        self.remove(parent, name, path)?;
                        rustix::fs::mkdirat(&parent.fd, name, mode)
                            .map_err(failed("making the directory", path))?;
                    }
                    (FileType::Symlink, Replace::WhiteoutOnly) => {
                        return Err(UnpackError::entry(path, EntryProblem::ParentDangling));
                    }
                    (_, Replace::WhiteoutOnly) => {
                        return Err(UnpackError::entry(path, EntryProblem::ParentNotDirectory));
                    }
                }
            }
            Err(errno) => return Err(failed("making the directory", path)(errno)),
        }
        let fd = open_child(&parent.fd, name).map_err(failed("opening", path))?;
        let inode = rustix::fs::fstat(&fd).map_err(failed("looking at", path))?.st_ino;
        let directory = Rc::new(Directory { fd, inode });
        if is_new {
            self.adopt(&directory, depth, path)?;
            if self.whited_out.contains(&self.whiteout_key(parent, name)) {
                self.make_opaque(&directory, path)?;
            }
        }
        Ok(directory)
    }

    /// The depth of a directory, when more may be put into it. Links make paths shorter than the way
    /// to what they name, so the length of the path is not enough.
    fn check_depth(&self, parent: &Directory, path: &[u8]) -> Result<u32, UnpackError> {
        let depth = self.notes[&parent.inode].depth;
        if depth > self.max_depth {
            let allowed = self.max_depth;
            return Err(UnpackError::entry(path, EntryProblem::Deep { allowed }));
        }
        Ok(depth)
    }

    /// Notes a directory just made and gives it what a directory without an entry has.
    fn adopt(&mut self, directory: &Directory, depth: u32, path: &[u8]) -> Result<(), UnpackError> {
        self.n_made += 1;
        LimitExceeded::check("directories", self.n_made, self.max_made)?;
        rustix::fs::fchmod(&directory.fd, Mode::from_raw_mode(IMPLICIT_MODE))
            .map_err(failed("setting the mode of", path))?;
        let root = (rustix::fs::Uid::ROOT, rustix::fs::Gid::ROOT);
        rustix::fs::fchown(&directory.fd, Some(root.0), Some(root.1))
            .map_err(failed("setting the owner of", path))?;
        let note = Note {
            serial: self.n_made,
            depth,
            mtime: (0, 0),
            origin: Origin::Implicit,
            is_opaque: false,
        };
        self.notes.insert(directory.inode, note);
        Ok(())
    }

    /// Runs `make` for the last part of a path; what is in its way is removed first.
    fn put<T>(
        &mut self,
        path: &EntryPath,
        action: &'static str,
        make: impl Fn(&OwnedFd, &[u8]) -> Result<T, Errno>,
    ) -> Result<T, UnpackError> {
        let (above, name) =
            path.split().ok_or_else(|| UnpackError::entry(path, EntryProblem::RootNotDirectory))?;
        let parent = self.ensure_directory(above)?;
        self.check_depth(&parent, path.as_bytes())?;
        match make(&parent.fd, name) {
            Err(Errno::EXIST) => {
                self.remove(&parent, name, path.as_bytes())?;
                make(&parent.fd, name)
            }
            result => result,
        }
        .map_err(failed(action, path.as_bytes()))
        .inspect(|_| reached(Step::NodeMade))
    }

    /// Removes whatever has a name, with all that is in it.
    fn remove(&mut self, parent: &Directory, name: &[u8], path: &[u8]) -> Result<(), UnpackError> {
        self.recent = None;
        match rustix::fs::unlinkat(&parent.fd, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => remove_tree(&parent.fd, name),
            result => result.map_err(io::Error::from),
        }
        .map_err(|source| UnpackError::write("replacing", path, source))
    }

    fn whiteout_key(&self, parent: &Directory, name: &[u8]) -> u64 {
        self.hash.hash_one((self.notes[&parent.inode].serial, name))
    }

    fn note_mut(&mut self, inode: u64) -> &mut Note {
        self.notes.get_mut(&inode).expect("every directory of the tree was noted when it was made")
    }
}

impl Destination for Tree {
    /// The paths of directories that no entry describes.
    type Finished = Vec<Vec<u8>>;

    fn directory(
        &mut self,
        path: &EntryPath,
        attributes: &Attributes<'_>,
    ) -> Result<(), UnpackError> {
        let directory = match path.split() {
            None => Rc::clone(&self.root),
            Some((above, name)) => {
                let parent = self.ensure_directory(above)?;
                self.ensure_child(&parent, name, path.as_bytes(), Replace::Anything)?
            }
        };
        let note = self.note_mut(directory.inode);
        note.mtime = attributes.mtime;
        if std::mem::replace(&mut note.origin, Origin::Entry) == Origin::Entry {
            clear_xattrs(&directory.fd).map_err(failed("clearing xattrs of", path.as_bytes()))?;
        }
        set_attributes(&directory.fd, attributes, path)
    }

    fn file(
        &mut self,
        path: &EntryPath,
        size: u64,
        attributes: &Attributes<'_>,
        contents: &mut TarReader<impl Read>,
    ) -> Result<(), UnpackError> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(self.put(path, "creating", |parent, name| {
            rustix::fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR)
        })?);
        write_contents(&file, size, path, contents)?;
        finish_file(&file.into(), attributes, path)
    }

    fn symlink(
        &mut self,
        path: &EntryPath,
        target: &[u8],
        attributes: &Attributes<'_>,
    ) -> Result<(), UnpackError> {
        self.put(path, "making the symbolic link", |parent, name| {
            rustix::fs::symlinkat(target, parent, name)?;
            let (uid, gid) = owner(attributes);
            rustix::fs::chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
            let times = timestamps(attributes.mtime);
            rustix::fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)
        })
    }

    fn hard_link(&mut self, path: &EntryPath, target: &EntryPath) -> Result<(), UnpackError> {
        let refuse = |problem: fn(String) -> EntryProblem| {
            UnpackError::entry(path, problem(target.printable()))
        };
        let missing = || refuse(|target| EntryProblem::LinkTargetMissing { target });
        let wrong = || refuse(|target| EntryProblem::LinkTargetNotFile { target });
        let (above, target_name) = target.split().ok_or_else(wrong)?;
        let target_parent = self.open(above).map_err(|_| missing())?;
        let target_stat = stat(&target_parent, target_name).map_err(|_| missing())?;
        match FileType::from_raw_mode(target_stat.st_mode) {
            FileType::RegularFile | FileType::Symlink => {}
            FileType::CharacterDevice => return Err(missing()),
            _ => return Err(wrong()),
        }
        let (above, name) =
            path.split().ok_or_else(|| UnpackError::entry(path, EntryProblem::RootNotDirectory))?;
        let parent = self.ensure_directory(above)?;
        if stat(&parent.fd, name).is_ok_and(|there| there.st_ino == target_stat.st_ino) {
            return Ok(());
        }
        match self.put(path, "linking", |parent, name| {
            rustix::fs::linkat(&target_parent, target_name, parent, name, AtFlags::empty())
        }) {
            // The target lay in a directory that had to make way for the link.
            Err(UnpackError::Write { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Err(missing())
            }
            result => result,
        }
    }

    fn whiteout(&mut self, above: &[u8], name: &[u8]) -> Result<(), UnpackError> {
        let parent = self.ensure_directory(above)?;
        let key = self.whiteout_key(&parent, name);
        self.whited_out.insert(key);
        match stat(&parent.fd, name) {
            Ok(there) if FileType::from_raw_mode(there.st_mode) == FileType::Directory => {
                let directory = Directory {
                    fd: open_child(&parent.fd, name).map_err(failed("opening", name))?,
                    inode: there.st_ino,
                };
                self.make_opaque(&directory, name)
            }
            Ok(_) => Ok(()),
            Err(Errno::NOENT) => rustix::fs::mknodat(
                &parent.fd,
                name,
                FileType::CharacterDevice,
                Mode::empty(),
                rustix::fs::makedev(0, 0),
            )
            .map_err(failed("making the whiteout", name))
            .inspect(|()| reached(Step::NodeMade)),
            Err(errno) => Err(failed("looking at", name)(errno)),
        }
    }

    fn opaque(&mut self, path: &[u8]) -> Result<(), UnpackError> {
        let directory = self.ensure_directory(path)?;
        self.make_opaque(&directory, path)
    }

    /// Sets the times of directories, which every change inside them moved, and gives the paths of
    /// those that no entry describes.
    ///
    /// Below an opaque directory nothing is left to hide, and overlayfs, which merges nothing there,
    /// would list whiteouts as names that cannot be opened: they go.
    fn finish(self) -> Result<Self::Finished, UnpackError> {
        let mut implicit = Implicit::default();
        self.finish_directory(&self.root, &mut Vec::new(), Below::Layers, &mut implicit)?;
        // The same of a layer on every file system, whatever the order in which that lists names; what is in a
        // directory before it.
        implicit.paths.sort_unstable_by(|one, other| other.cmp(one));
        Ok(implicit.paths)
    }
}

/// What can be seen through a directory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Below {
    Layers,
    /// It, or a directory above it, is opaque.
    Nothing,
}

/// Paths of directories that no entry describes.
#[derive(Default)]
struct Implicit {
    paths: Vec<Vec<u8>>,
    n_bytes: u64,
}

impl Implicit {
    fn add(&mut self, path: &[u8]) -> Result<(), LimitExceeded> {
        self.n_bytes += path.len() as u64;
        let what = "bytes of paths of directories without entries";
        LimitExceeded::check(what, self.n_bytes, IMPLICIT_PATH_BYTES)?;
        self.paths.push(path.to_vec());
        Ok(())
    }
}

/// What may be removed to make a directory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Replace {
    /// Anything that is not a directory: the entry says that it is one, and later entries win.
    Anything,
    /// A whiteout alone: the directory is only implied by an entry below it.
    WhiteoutOnly,
}
