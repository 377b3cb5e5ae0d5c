//! One entry of an archive, owned and normalised.

use std::collections::VecDeque;

use tar_core::EntryType;
use tar_core::parse::ParsedEntry;

use super::strict::Fields;
use super::{BLOCK, TarError};
use crate::limits::{LimitExceeded, TarLimits};

/// The longest name of a directory entry in Linux, in bytes.
const NAME_MAX: usize = 255;

/// What an archive says about one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it belongs below the root of the layer.
    pub path: EntryPath,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits with setuid, setgid and sticky: at most 0o7777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last change: seconds since the epoch (may be negative) and nanoseconds above them.
    pub mtime: (i64, u32),
    /// Extended attributes, unfiltered, in the archive's order.
    pub xattrs: Vec<Xattr>,
}

/// An extended attribute as the archive has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Xattr {
    /// The full name, for instance `user.mime_type`; 1 to 255 bytes, no NUL.
    pub name: Vec<u8>,
    /// The value.
    pub value: Vec<u8>,
}

/// The kinds of entry that a layer can hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file; its contents follow as chunks.
    File {
        /// Length in bytes, holes included.
        size: u64,
    },
    /// A directory.
    Directory,
    /// A symbolic link. The target is not a path of ours: it is kept byte for byte.
    Symlink {
        /// What the link says; not empty, no NUL.
        target: Vec<u8>,
    },
    /// A second name of an entry before this one.
    HardLink {
        /// The first name.
        target: EntryPath,
    },
    /// A character or block device or a fifo.
    Special,
}

/// A path below the root of a layer: parts without `.`, `..`, NUL or emptiness, joined by `/`, of any
/// encoding. The root itself is the empty path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct EntryPath(Vec<u8>);

/// Why a path in an archive is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathProblem {
    /// It would climb.
    #[error("a path must not contain '..'")]
    DotDot,
    /// The kernel would see a shorter path than we do.
    #[error("a path must not contain NUL")]
    Nul,
    /// No file system stores it.
    #[error("a part of a path must not be longer than 255 bytes")]
    LongPart,
    /// Too many directories above it.
    #[error("a path must not have more than {allowed} directories above its last part")]
    Deep {
        /// The limit.
        allowed: u32,
    },
    /// A link without a target.
    #[error("a link must have a target")]
    NoTarget,
    /// Some programs would make a file of it, others a directory.
    #[error("a file's path must not end in '/'")]
    FileWithSlash,
}

impl EntryPath {
    /// Normalises a path: leading `/`, empty parts and `.` go, `..` is refused.
    pub fn parse(path: &[u8], depth: u32) -> Result<Self, PathProblem> {
        if path.contains(&0) {
            return Err(PathProblem::Nul);
        }
        let mut normal = Vec::with_capacity(path.len());
        let mut n_parts = 0;
        for part in path.split(|&byte| byte == b'/') {
            match part {
                b"" | b"." => continue,
                b".." => return Err(PathProblem::DotDot),
                _ if part.len() > NAME_MAX => return Err(PathProblem::LongPart),
                _ => {}
            }
            if n_parts > 0 {
                normal.push(b'/');
            }
            normal.extend_from_slice(part);
            n_parts += 1;
        }
        if n_parts > depth + 1 {
            return Err(PathProblem::Deep { allowed: depth });
        }
        Ok(Self(normal))
    }

    /// The path as bytes, without a leading `/`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The directory and the last part, or `None` for the root.
    pub fn split(&self) -> Option<(&[u8], &[u8])> {
        match self.0.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => Some((&self.0[..slash], &self.0[slash + 1..])),
            None if self.0.is_empty() => None,
            None => Some((b"", &self.0)),
        }
    }

    /// The path in printable form.
    pub fn printable(&self) -> String {
        printable(&self.0)
    }
}

impl AsRef<[u8]> for EntryPath {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

pub(super) fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Where the data of a sparse file lies.
pub(super) struct SparseMap {
    pub regions: Vec<tar_core::SparseEntry>,
    pub real_size: u64,
}

/// A parsed entry copied out of the parser's buffer and not yet judged.
pub(super) struct RawEntry {
    path: Vec<u8>,
    link_target: Option<Vec<u8>>,
    entry_type: EntryType,
    old_style: bool,
    mode: u32,
    fields: Fields,
    stored_size: u64,
    sparse: Option<SparseMap>,
    xattrs: Vec<Xattr>,
}

impl RawEntry {
    pub fn new(entry: ParsedEntry<'_>, fields: Fields, sparse: Option<SparseMap>) -> Self {
        // GNU long names end in NUL, some writers' in several; the parser takes one off.
        let trim = |text: &[u8]| {
            let end = text.iter().rposition(|&byte| byte != 0);
            text[..end.map_or(0, |end| end + 1)].to_vec()
        };
        Self {
            path: trim(&entry.path),
            link_target: entry.link_target.as_deref().map(trim),
            entry_type: entry.entry_type,
            old_style: entry.header.as_ustar().typeflag[0] == 0,
            mode: entry.mode & 0o7777,
            fields,
            stored_size: entry.size,
            sparse,
            xattrs: entry
                .xattrs
                .into_iter()
                .map(|(name, value)| Xattr { name: name.into_owned(), value: value.into_owned() })
                .collect(),
        }
    }

    /// Judges path, kind and attributes.
    pub fn resolve(self, limits: &TarLimits) -> Result<(Entry, Content), TarError> {
        let refuse = |path: &[u8], problem| TarError::Path { path: printable(path), problem };
        let path = EntryPath::parse(&self.path, limits.depth)
            .map_err(|problem| refuse(&self.path, problem))?;
        let kind =
            self.kind(limits).map_err(|problem| refuse(&self.path, problem))?.ok_or_else(|| {
                TarError::UnknownKind {
                    path: printable(&self.path),
                    kind: char::from(self.entry_type.to_byte()),
                }
            })?;
        check_xattrs(&self.xattrs, limits)?;
        let content = match kind {
            EntryKind::File { .. } => Content::new(self.stored_size, self.sparse),
            _ => Content::default(),
        };
        let entry = Entry {
            path,
            kind,
            mode: self.mode,
            uid: self.fields.uid,
            gid: self.fields.gid,
            mtime: self.fields.mtime,
            xattrs: self.xattrs,
        };
        Ok((entry, content))
    }

    fn kind(&self, limits: &TarLimits) -> Result<Option<EntryKind>, PathProblem> {
        let target = || self.link_target.as_deref().ok_or(PathProblem::NoTarget);
        Ok(Some(match self.entry_type {
            EntryType::Regular | EntryType::Continuous | EntryType::GnuSparse => {
                match (self.path.ends_with(b"/"), self.old_style) {
                    // The oldest archives have no type for directories.
                    (true, true) if self.stored_size == 0 => EntryKind::Directory,
                    (true, _) => return Err(PathProblem::FileWithSlash),
                    (false, _) => EntryKind::File {
                        size: match &self.sparse {
                            Some(map) => map.real_size,
                            None => self.stored_size,
                        },
                    },
                }
            }
            EntryType::Directory => EntryKind::Directory,
            EntryType::Symlink => {
                let target = target()?;
                if target.contains(&0) {
                    return Err(PathProblem::Nul);
                }
                EntryKind::Symlink { target: target.to_vec() }
            }
            EntryType::Link => {
                EntryKind::HardLink { target: EntryPath::parse(target()?, limits.depth)? }
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => EntryKind::Special,
            _ => return Ok(None),
        }))
    }
}

fn check_xattrs(xattrs: &[Xattr], limits: &TarLimits) -> Result<(), TarError> {
    let count = xattrs.len() as u64;
    LimitExceeded::check("extended attributes of one entry", count, limits.xattrs as u64)?;
    let n_bytes: usize = xattrs.iter().map(|x| x.name.len() + x.value.len()).sum();
    LimitExceeded::check(
        "bytes of extended attributes of one entry",
        n_bytes as u64,
        limits.xattr_bytes as u64,
    )?;
    Ok(())
}

/// What is left of the current entry in the stream.
#[derive(Default)]
pub(super) struct Content {
    /// (position in the file, bytes), first one next.
    regions: VecDeque<(u64, u64)>,
    padding: usize,
}

impl Content {
    fn new(stored_size: u64, sparse: Option<SparseMap>) -> Self {
        let regions = match sparse {
            None => VecDeque::from([(0, stored_size)]),
            Some(map) => map.regions.iter().map(|r| (r.offset, r.length)).collect(),
        };
        let over = stored_size % BLOCK;
        Self { regions, padding: if over == 0 { 0 } else { (BLOCK - over) as usize } }
    }

    /// Where the next bytes of the stream belong, and how many of them belong together.
    pub fn next_range(&mut self) -> Option<(u64, u64)> {
        while let Some(&(offset, length)) = self.regions.front() {
            if length > 0 {
                return Some((offset, length));
            }
            self.regions.pop_front();
        }
        None
    }

    pub fn advance(&mut self, n_bytes: u64) {
        let region = self.regions.front_mut().expect("next_range gave a region");
        region.0 += n_bytes;
        region.1 -= n_bytes;
    }

    pub fn take_padding(&mut self) -> usize {
        std::mem::take(&mut self.padding)
    }
}
