//! A tree of files as an archive.
//!
//! Every step goes from an open directory to a name in it and follows no link, so that a tree whose
//! owner changes it meanwhile shows what is below its root and nothing else. What changes while it is
//! read is as it was at some moment, save for a file that becomes shorter: that ends the archive, for
//! its length has been told.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, fstatfs, openat, readlinkat, statat,
};
use rustix::io::Errno;
use tar::{Builder, EntryType, Header};

use crate::limits::MAX_DEPTH;

/// The file systems that show the kernel and not files: what is mounted of them below a tree is not
/// part of it. proc, sysfs, cgroup, cgroup2, devpts, mqueue, debugfs, tracefs, securityfs.
const KERNELS_OWN: [i64; 9] = [
    0x9fa0,
    0x6265_6572,
    0x0027_e0eb,
    0x6367_7270,
    0x1cd1,
    0x1980_0202,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
];

/// Why a tree could not be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// There is nothing at the path.
    #[error("{path} does not exist")]
    Missing {
        /// The path, as it was given.
        path: String,
    },
    /// Something of the tree could not be read.
    #[error("reading {path}")]
    Read {
        /// What.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file became shorter while it was read.
    #[error("{path} became shorter while it was read")]
    Shorter {
        /// Which.
        path: String,
    },
    /// There are too many directories in one another.
    #[error("{path} lies more than {MAX_DEPTH} directories deep")]
    Deep {
        /// Which.
        path: String,
    },
    /// The archive could not be written on.
    #[error("writing the archive")]
    Write(#[source] io::Error),
}

/// Something of a tree that is not in its archive, or not in the tree that was made of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Where it is in the tree, made printable.
    pub path: String,
    /// Why it is left out.
    pub why: &'static str,
}

/// What becomes of devices and named pipes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Specials {
    /// They are in the archive, for its reader to decide.
    Kept,
    /// They are left out.
    LeftOut,
}

/// A tree, found and not read yet.
#[derive(Debug)]
pub struct Source {
    /// The directory with the tree in it, or of which it is the contents.
    parent: OwnedFd,
    /// The name in there.
    name: OsString,
    /// What it is called in the archive: `.` when only its contents are meant.
    shown: PathBuf,
    stat: Stat,
}

fn printable(path: &Path) -> String {
    path.display().to_string()
}

fn read_failed(path: &Path) -> impl Fn(Errno) -> PackError {
    move |errno| match errno {
        Errno::NOENT | Errno::NOTDIR => PackError::Missing { path: printable(path) },
        errno => unreadable(path)(errno),
    }
}

fn unreadable(path: &Path) -> impl Fn(Errno) -> PackError + Copy {
    move |errno| PackError::Read { path: printable(path), source: errno.into() }
}

fn directory_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK
}

impl Source {
    /// Finds the tree at a path as `cp` reads it: a link at its end is the link itself, unless `/` or
    /// `/.` follows; `/.` at the end means the contents of a directory.
    ///
    /// # Errors
    ///
    /// When there is nothing, or it cannot be looked at.
    pub fn find(path: &Path) -> Result<Self, PackError> {
        let bytes = path.as_os_str().as_bytes();
        let failed = read_failed(path);
        let contents = bytes == b"." || bytes.ends_with(b"/.");
        let trimmed = bytes.iter().rposition(|&byte| byte != b'/').map_or(0, |last| last + 1);
        let name = OsStr::from_bytes(&bytes[..trimmed]).as_bytes();
        let name = name.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        // With nothing to go by, it is called by what it is.
        let nameless = matches!(name, b"" | b"." | b"..");
        if contents || nameless || trimmed < bytes.len() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NONBLOCK;
            let parent = openat(CWD, path, flags, Mode::empty()).map_err(&failed)?;
            let shown = if nameless { Path::new(".") } else { Path::new(OsStr::from_bytes(name)) };
            let stat = fstat(&parent).map_err(&failed)?;
            return Ok(Self { parent, name: ".".into(), shown: shown.to_owned(), stat });
        }
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = openat(CWD, parent, flags, Mode::empty()).map_err(&failed)?;
        let name = OsStr::from_bytes(name).to_owned();
        let stat = statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(&failed)?;
        Ok(Self { parent, shown: PathBuf::from(&name), name, stat })
    }

    /// Writes it as an archive. What is left out is told.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or the archive not be written; what was written is no archive then.
    pub fn pack(self, out: impl Write, specials: Specials) -> Result<Vec<LeftOut>, PackError> {
        let mut packer = Packer {
            tar: Builder::new(Whole { out, is_given_up: false }),
            specials,
            links: HashMap::new(),
            left_out: Vec::new(),
        };
        let Self { parent, name, shown, stat } = self;
        if let Err(error) = packer.append(&parent, &name, &shown, &stat, 0) {
            // The builder would end the archive as if it were whole.
            packer.tar.get_mut().is_given_up = true;
            return Err(error);
        }
        let mut out = packer.tar.into_inner().map_err(PackError::Write)?;
        out.flush().map_err(PackError::Write)?;
        Ok(packer.left_out)
    }
}

/// A writer whose errors can be told from those of what is read.
struct Whole<W> {
    out: W,
    is_given_up: bool,
}

/// What was wrong with the archive, inside of an error of the builder.
#[derive(Debug, thiserror::Error)]
#[error("writing")]
struct OfArchive(#[source] io::Error);

impl<W: Write> Write for Whole<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_given_up {
            return Err(io::ErrorKind::Other.into());
        }
        let mark = |error: io::Error| io::Error::new(error.kind(), OfArchive(error));
        self.out.write(bytes).map_err(mark)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

struct Packer<W: Write> {
    tar: Builder<Whole<W>>,
    specials: Specials,
    /// The first name of each file that has several.
    links: HashMap<(u64, u64), PathBuf>,
    left_out: Vec<LeftOut>,
}

impl<W: Write> Packer<W> {
    fn append(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        shown: &Path,
        stat: &Stat,
        depth: u32,
    ) -> Result<(), PackError> {
        let failed = unreadable(shown);
        // Whoever reads the archive refuses it, and a directory is open for each level.
        if depth > MAX_DEPTH {
            return Err(PackError::Deep { path: printable(shown) });
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => self.directory(parent, name, shown, stat, depth),
            FileType::RegularFile => self.file(parent, name, shown, stat),
            FileType::Symlink => {
                let target = match readlinkat(parent, name, Vec::new()) {
                    Err(Errno::NOENT | Errno::INVAL) if depth > 0 => return Ok(()),
                    target => target.map_err(failed)?,
                };
                let mut header = header(EntryType::Symlink, stat);
                self.times(stat)?;
                let target = OsStr::from_bytes(target.as_bytes());
                let appended = self.tar.append_link(&mut header, shown, target);
                appended.map_err(|error| of_builder(error, shown))
            }
            kind => self.special(kind, shown, stat),
        }
    }

    fn special(&mut self, kind: FileType, shown: &Path, stat: &Stat) -> Result<(), PackError> {
        let (why, entry) = match kind {
            FileType::Fifo => ("a named pipe", Some(EntryType::Fifo)),
            FileType::CharacterDevice => ("a device", Some(EntryType::Char)),
            FileType::BlockDevice => ("a device", Some(EntryType::Block)),
            // No archive can hold it.
            _ => ("a socket", None),
        };
        let Some(entry) = entry.filter(|_| self.specials == Specials::Kept) else {
            self.left_out.push(LeftOut { path: printable(shown), why });
            return Ok(());
        };
        let mut header = header(entry, stat);
        let set = header.set_device_major(rustix::fs::major(stat.st_rdev));
        set.and_then(|()| header.set_device_minor(rustix::fs::minor(stat.st_rdev)))
            .and_then(|()| self.tar.append_data(&mut header, shown, io::empty()))
            .map_err(|error| of_builder(error, shown))
    }

    fn directory(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        shown: &Path,
        stat: &Stat,
        depth: u32,
    ) -> Result<(), PackError> {
        let failed = unreadable(shown);
        let opened = match openat(parent, name, directory_flags(), Mode::empty()) {
            // It was replaced, or removed, a moment ago.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if depth > 0 => return Ok(()),
            opened => opened.map_err(failed)?,
        };
        let mut header = header(EntryType::Directory, stat);
        self.times(stat)?;
        let appended = self.tar.append_data(&mut header, shown, io::empty());
        appended.map_err(|error| of_builder(error, shown))?;
        if depth > 0 && is_kernels_own(&opened).map_err(failed)? {
            return Ok(());
        }
        for name in names(&opened).map_err(failed)? {
            let shown = shown.join(&name);
            match statat(&opened, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => self.append(&opened, &name, &shown, &stat, depth + 1)?,
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(unreadable(&shown)(errno)),
            }
        }
        Ok(())
    }

    fn file(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        shown: &Path,
        stat: &Stat,
    ) -> Result<(), PackError> {
        let failed = unreadable(shown);
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                let mut header = header(EntryType::Link, stat);
                let appended = self.tar.append_link(&mut header, shown, first);
                return appended.map_err(|error| of_builder(error, shown));
            }
            self.links.insert((stat.st_dev, stat.st_ino), shown.to_owned());
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened = match openat(parent, name, flags | OFlags::CLOEXEC, Mode::empty()) {
            Err(Errno::NOENT | Errno::LOOP) => return Ok(()),
            opened => opened.map_err(failed)?,
        };
        // What is read is what was opened, whatever had the name before.
        let stat = fstat(&opened).map_err(failed)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(());
        }
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        let mut header = header(EntryType::Regular, &stat);
        header.set_size(size);
        self.times(&stat)?;
        let mut content = Exactly { file: File::from(opened), left: size, is_short: false };
        let appended = self.tar.append_data(&mut header, shown, &mut content);
        if content.is_short {
            return Err(PackError::Shorter { path: printable(shown) });
        }
        appended.map_err(|error| of_builder(error, shown))
    }

    /// The time of the entry that comes next, where seconds do not say it all.
    fn times(&mut self, stat: &Stat) -> Result<(), PackError> {
        if stat.st_mtime_nsec == 0 && stat.st_mtime >= 0 {
            return Ok(());
        }
        let text = time_text(stat.st_mtime, stat.st_mtime_nsec);
        let records = [("mtime", text.as_bytes())];
        self.tar.append_pax_extensions(records).map_err(PackError::Write)
    }
}

/// A time as pax writes it. Before 1970 it counts downwards, its fraction too.
fn time_text(seconds: i64, nanos: impl Into<i128>) -> String {
    let all = i128::from(seconds) * 1_000_000_000 + nanos.into();
    let sign = if all < 0 { "-" } else { "" };
    let all = all.unsigned_abs();
    format!("{sign}{}.{:09}", all / 1_000_000_000, all % 1_000_000_000)
}

fn of_builder(error: io::Error, shown: &Path) -> PackError {
    let of_archive = error.get_ref().is_some_and(|inner| inner.is::<OfArchive>());
    match of_archive {
        true => PackError::Write(error),
        false => PackError::Read { path: printable(shown), source: error },
    }
}

fn header(kind: EntryType, stat: &Stat) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or_default());
    header.set_size(0);
    header
}

fn is_kernels_own(directory: &OwnedFd) -> rustix::io::Result<bool> {
    let kind = fstatfs(directory)?.f_type;
    Ok(KERNELS_OWN.contains(&kind))
}

/// The names in a directory, in an order that does not depend on the file system.
fn names(directory: &impl AsFd) -> rustix::io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = OsStr::from_bytes(entry?.file_name().to_bytes()).to_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// As much of a file as was told: what is appended meanwhile is not part of it.
struct Exactly {
    file: File,
    left: u64,
    is_short: bool,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let length = self.file.read(&mut buffer[..most])?;
        self.left -= length as u64;
        if length == 0 {
            self.is_short = true;
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(length)
    }
}

#[cfg(test)]
mod tests;
