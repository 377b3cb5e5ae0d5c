//! An archive as a tree of files, put where `cp` would put it.
//!
//! Every name is made in an open directory, and none is followed there. On the caller's machine
//! ([`Reach::Beneath`]) the archive is a stranger's: no link, of the archive or already there, is
//! passed on the way, and a link that could lead out of the destination is not made. Then by
//! induction nothing leads out: a link's `..` come first, are counted from a directory whose depth is
//! that of its name, and what follows them can only be links made by the same rule. A link gets no second
//! name, which could be in a directory less deep. To look at links after they were made was rejected: what
//! one leads to changes with what comes later.

mod place;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, Uid,
    chownat, fchmod, fchown, fstat, futimens, linkat, mkdirat, openat, openat2, statat, symlinkat,
    unlinkat, utimensat,
};
use rustix::io::Errno;

use crate::limits::TarLimits;
use crate::pack::LeftOut;
use crate::tar::{Entry, EntryKind, EntryPath, TarError, TarReader};
pub use place::Place;
use place::Placed;

/// Blocks of zeros at least this long become holes.
const HOLE: usize = 4096;

/// To whom belongs what is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Who the archive says, by number; setuid and setgid bits are kept.
    Kept,
    /// This user and group.
    Is(u32, u32),
    /// Whoever unpacks.
    Caller,
}

/// What the archive may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Nothing that leads out of the destination, by no way. What is left out for that is told, devices
    /// and named pipes too.
    Beneath,
    /// All below the root of the process, whose files are all the archive's sender's own. Links that
    /// are there already are followed, and devices and named pipes refused.
    Root,
}

/// How an archive is unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// To whom it will belong.
    pub owner: Owner,
    /// Where it may lead.
    pub reach: Reach,
}

/// Why an archive could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive is not one, or broke off.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// The destination does not exist.
    #[error("{path} does not exist")]
    Missing {
        /// The destination, or the directory that it would be in.
        path: String,
    },
    /// The destination is not a directory.
    #[error("{path} is not a directory")]
    NotDirectory {
        /// The destination.
        path: String,
    },
    /// Something else than one tree, which cannot be given a name.
    #[error("the archive holds {path} beside what it begins with")]
    SecondTop {
        /// What else.
        path: String,
    },
    /// A directory where there is none, or the other way round.
    #[error("{path}: {why}")]
    InTheWay {
        /// Where.
        path: String,
        /// What is wrong.
        why: &'static str,
    },
    /// A device or a named pipe.
    #[error("{path} is a device or a named pipe, which are not made from archives")]
    Special {
        /// Where.
        path: String,
    },
    /// Something could not be written.
    #[error("writing {path}")]
    Write {
        /// What.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn printable(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

fn write_failed(path: &[u8]) -> impl Fn(Errno) -> UnpackError {
    move |errno| UnpackError::Write { path: printable(path), source: errno.into() }
}

/// Reads an archive to its end and makes what it holds. What it must not make is left out and told. What
/// was made before a failure stays, save for a file that is not whole.
///
/// # Errors
///
/// When the archive or the destination is not as it should be, or cannot be written to.
pub fn unpack(
    input: impl Read,
    place: Place<'_>,
    rules: Rules,
) -> Result<Vec<LeftOut>, UnpackError> {
    let mut tar = TarReader::new(input, TarLimits::copying());
    // What is wrong with the destination is said also of an empty archive.
    let (found, above) = place.open()?;
    let Some(first) = tar.next_entry()? else { return Ok(Vec::new()) };
    let placed = found.settle(&first)?;
    let mut unpacker = Unpacker { placed, rules, open: Vec::new(), left_out: Vec::new() };
    unpacker.fill(&mut tar, first).map_err(|error| error.below(&above))?;
    tar.finish()?;
    Ok(unpacker.left_out)
}

impl UnpackError {
    /// The same with the whole path of what was to be made.
    fn below(mut self, above: &Path) -> Self {
        if let Self::InTheWay { path, .. } | Self::Special { path } | Self::Write { path, .. } =
            &mut self
        {
            *path = above.join(&*path).display().to_string();
        }
        self
    }
}

/// A directory that is being filled; it gets its attributes when that is over, for to fill it changes
/// them.
struct Open {
    path: Vec<u8>,
    directory: OwnedFd,
    entry: Entry,
}

struct Unpacker {
    placed: Placed,
    rules: Rules,
    /// The directories above the last entry that the archive describes.
    open: Vec<Open>,
    left_out: Vec<LeftOut>,
}

impl Unpacker {
    fn fill(&mut self, tar: &mut TarReader<impl Read>, first: Entry) -> Result<(), UnpackError> {
        let mut next = Some(first);
        while let Some(entry) = next {
            self.make(tar, &entry)?;
            next = tar.next_entry()?;
        }
        self.leave_all_but(None)
    }

    fn make(&mut self, tar: &mut TarReader<impl Read>, entry: &Entry) -> Result<(), UnpackError> {
        let path = self.placed.path(&entry.path)?;
        self.leave_all_but(Some(&path))?;
        let Some(slash) = split(&path) else { return self.root(entry) };
        let (parent_path, name) = slash;
        let parent = self.directory(parent_path)?;
        let failed = write_failed(&path);
        match &entry.kind {
            EntryKind::Directory => self.subdirectory(&parent, path.clone(), name, entry),
            EntryKind::File { size } => {
                clear(&parent, name, &path)?;
                self.file(tar, &parent, name, entry, *size).inspect_err(|_| {
                    // The failure is told in any case.
                    let _ = unlinkat(&parent, name, AtFlags::empty());
                })
            }
            EntryKind::Symlink { target } => {
                if self.rules.reach == Reach::Beneath && leads_out(parent_path, target) {
                    self.leave_out(&path, "a link that could lead out of the destination");
                    return Ok(());
                }
                clear(&parent, name, &path)?;
                symlinkat(target.as_slice(), &parent, name).map_err(&failed)?;
                self.link_attributes(&parent, name, entry).map_err(&failed)
            }
            EntryKind::HardLink { target } => self.hard_link(&parent, &path, name, target),
            EntryKind::Special if self.rules.reach == Reach::Beneath => {
                self.leave_out(&path, "a device or a named pipe");
                Ok(())
            }
            EntryKind::Special => Err(UnpackError::Special { path: printable(&path) }),
        }
    }

    fn hard_link(
        &mut self,
        parent: &OwnedFd,
        path: &[u8],
        name: &[u8],
        target: &EntryPath,
    ) -> Result<(), UnpackError> {
        let failed = write_failed(path);
        let target = self.placed.path(target)?;
        let Some((above, target_name)) = split(&target).filter(|_| target != path) else {
            let why = "a second name of itself";
            return Err(UnpackError::InTheWay { path: printable(path), why });
        };
        let above = self.directory(above)?;
        let stat = statat(&above, target_name, AtFlags::SYMLINK_NOFOLLOW).map_err(&failed)?;
        let is_link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
        if is_link && self.rules.reach == Reach::Beneath {
            // From another directory it leads elsewhere.
            self.leave_out(path, "a second name of a link");
            return Ok(());
        }
        clear(parent, name, path)?;
        linkat(&above, target_name, parent, name, AtFlags::empty()).map_err(failed)
    }

    fn leave_out(&mut self, path: &[u8], why: &'static str) {
        self.left_out.push(LeftOut { path: printable(path), why });
    }

    /// The destination itself: it has the attributes of the archive when it was made for it.
    fn root(&mut self, entry: &Entry) -> Result<(), UnpackError> {
        if entry.kind != EntryKind::Directory {
            let why = "the archive has something else than a directory for the destination itself";
            return Err(UnpackError::InTheWay { path: ".".to_owned(), why });
        }
        if self.placed.is_new {
            let again = rustix::io::fcntl_dupfd_cloexec(&self.placed.root, 0)
                .map_err(write_failed(b"."))?;
            self.open.push(Open { path: Vec::new(), directory: again, entry: entry.clone() });
        }
        Ok(())
    }

    fn subdirectory(
        &mut self,
        parent: &OwnedFd,
        path: Vec<u8>,
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), UnpackError> {
        match mkdirat(parent, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(write_failed(&path)(errno)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory =
            openat(parent, name, flags, Mode::empty()).map_err(|errno| match errno {
                Errno::NOTDIR | Errno::LOOP => {
                    let why = "a directory cannot take the place of something else";
                    UnpackError::InTheWay { path: printable(&path), why }
                }
                errno => write_failed(&path)(errno),
            })?;
        self.open.push(Open { path, directory, entry: entry.clone() });
        Ok(())
    }

    /// Opens the directory at a path of the archive; those that are missing are made.
    fn directory(&self, path: &[u8]) -> Result<OwnedFd, UnpackError> {
        let failed = write_failed(path);
        let nearest = self.open.last().filter(|open| open.path == path && !path.is_empty());
        if let Some(open) = nearest {
            return rustix::io::fcntl_dupfd_cloexec(&open.directory, 0).map_err(failed);
        }
        if path.is_empty() {
            return rustix::io::fcntl_dupfd_cloexec(&self.placed.root, 0).map_err(failed);
        }
        match self.open_below(path) {
            Err(Errno::NOENT) => {}
            Err(Errno::LOOP | Errno::XDEV) => {
                let why = "a symbolic link is in the way";
                return Err(UnpackError::InTheWay { path: printable(path), why });
            }
            Err(Errno::NOTDIR) => {
                let why = "something that is not a directory is in the way";
                return Err(UnpackError::InTheWay { path: printable(path), why });
            }
            opened => return opened.map_err(failed),
        }
        let (above, name) = split(path).unwrap_or((b"", path));
        let parent = self.directory(above)?;
        mkdirat(&parent, name, Mode::from_raw_mode(0o755)).map_err(&failed)?;
        if let Owner::Is(uid, gid) = self.rules.owner {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(&failed)?;
        }
        self.open_below(path).map_err(failed)
    }

    fn open_below(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        let resolve = match self.rules.reach {
            Reach::Beneath => {
                ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS
            }
            Reach::Root => ResolveFlags::NO_MAGICLINKS,
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat2(&self.placed.root, path, flags, Mode::empty(), resolve)
    }

    fn file(
        &self,
        tar: &mut TarReader<impl Read>,
        parent: &OwnedFd,
        name: &[u8],
        entry: &Entry,
        size: u64,
    ) -> Result<(), UnpackError> {
        let path = self.placed.path(&entry.path)?;
        let failed = write_failed(&path);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = openat(parent, name, flags | OFlags::CLOEXEC, mode).map_err(&failed)?;
        let file = File::from(file);
        let wrong = |source| UnpackError::Write { path: printable(&path), source };
        // Said first, so that a limit on the size of files is met before anything is written.
        file.set_len(size).map_err(wrong)?;
        while let Some(chunk) = tar.next_chunk()? {
            let mut at = chunk.offset;
            for piece in chunk.bytes.chunks(HOLE) {
                if piece.len() < HOLE || piece.iter().any(|&byte| byte != 0) {
                    file.write_all_at(piece, at).map_err(wrong)?;
                }
                at += piece.len() as u64;
            }
        }
        self.attributes(&file.into(), entry).map_err(failed)
    }

    /// The attributes of an open file or directory. The owner comes first, which takes bits of the mode
    /// away, the time last.
    fn attributes(&self, fd: &OwnedFd, entry: &Entry) -> rustix::io::Result<()> {
        if let Some((uid, gid)) = self.owner(entry) {
            fchown(fd, Some(uid), Some(gid))?;
        }
        let special = if self.rules.owner == Owner::Kept { 0 } else { 0o6000 };
        fchmod(fd, Mode::from_raw_mode(entry.mode & 0o7777 & !special))?;
        futimens(fd, &times(entry))
    }

    fn link_attributes(
        &self,
        parent: &OwnedFd,
        name: &[u8],
        entry: &Entry,
    ) -> rustix::io::Result<()> {
        if let Some((uid, gid)) = self.owner(entry) {
            chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        utimensat(parent, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW)
    }

    fn owner(&self, entry: &Entry) -> Option<(Uid, Gid)> {
        let (uid, gid) = match self.rules.owner {
            Owner::Kept => (entry.uid, entry.gid),
            Owner::Is(uid, gid) => (uid, gid),
            Owner::Caller => return None,
        };
        Some((Uid::from_raw(uid), Gid::from_raw(gid)))
    }

    /// Ends the directories that this path is not in; all of them without a path.
    fn leave_all_but(&mut self, path: Option<&[u8]>) -> Result<(), UnpackError> {
        let is_in = |open: &Open| {
            let below = path.and_then(|path| path.strip_prefix(open.path.as_slice()));
            below.is_some_and(|rest| open.path.is_empty() || rest.starts_with(b"/"))
        };
        while let Some(open) = self.open.pop_if(|open| !is_in(open)) {
            self.attributes(&open.directory, &open.entry).map_err(write_failed(&open.path))?;
        }
        Ok(())
    }
}

fn times(entry: &Entry) -> Timestamps {
    let (seconds, nanos) = entry.mtime;
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanos.into() },
    }
}

/// The directory and the last part of a path; none of the root's.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => Some((&path[..slash], &path[slash + 1..])),
        None if path.is_empty() => None,
        None => Some((b"", path)),
    }
}

/// Removes what has a name, unless it is a directory.
fn clear(parent: &OwnedFd, name: &[u8], path: &[u8]) -> Result<(), UnpackError> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => {
            let is_directory = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
                .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
            if is_directory {
                let why = "a directory is there, and not replaced by something else";
                return Err(UnpackError::InTheWay { path: printable(path), why });
            }
            Err(write_failed(path)(errno))
        }
    }
}

/// Whether a link in this directory could lead out of the destination: see the module's words.
fn leads_out(parent: &[u8], target: &[u8]) -> bool {
    if target.starts_with(b"/") {
        return true;
    }
    let mut parts = target.split(|&byte| byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
    let depth = parent.split(|&byte| byte == b'/').filter(|part| !part.is_empty()).count();
    let mut n_up = 0;
    for part in parts.by_ref() {
        if part != b".." {
            break;
        }
        n_up += 1;
    }
    n_up > depth || parts.any(|part| part == b"..")
}

/// Whether a descriptor is that of a directory.
fn is_directory(fd: &OwnedFd) -> rustix::io::Result<bool> {
    Ok(FileType::from_raw_mode(fstat(fd)?.st_mode) == FileType::Directory)
}

#[cfg(test)]
mod tests;
