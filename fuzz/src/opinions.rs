//! The same archive, read by us and by others.
//!
//! We refuse more than they do; that is no difference. What we accept, the others must read the same:
//! names, kinds, sizes, contents and link targets. Where they do not, the archive would give a scanner
//! one image and a node another. Differences that are the others' own doing are listed here, each with
//! its reason.

mod gnu;
mod python;

use std::io::Read;

use longshore_image::Limits;
use longshore_image::tar::{EntryKind, TarReader};
use longshore_types::ByteCount;
use sha2::{Digest as _, Sha256};

pub use gnu::of_gnu_tar;
pub use python::Python;

/// An entry as every reader can tell it.
#[derive(Clone, PartialEq, Eq)]
pub struct Item {
    /// The path, its parts without emptiness and `.`, joined by `/`.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Length of a file.
    pub size: u64,
    /// SHA-256 of a file's contents.
    pub contents: Option<[u8; 32]>,
    /// Where a link leads; the target of a hard link is a path like any other.
    pub target: Option<Vec<u8>>,
}

impl std::fmt::Debug for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { path, kind, size, contents, target } = self;
        write!(f, "{kind:?} {:?}, {size} bytes", String::from_utf8_lossy(path))?;
        if let Some([a, b, ..]) = contents {
            write!(f, " ({a:02x}{b:02x}..)")?;
        }
        match target {
            Some(target) => write!(f, " -> {:?}", String::from_utf8_lossy(target)),
            None => Ok(()),
        }
    }
}

/// Kinds of entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A hard link.
    HardLink,
    /// A device or a fifo.
    Special,
}

/// What a reader says of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opinion {
    /// These entries.
    Read(Vec<Item>),
    /// It cannot be read; why.
    Refused(String),
}

/// The parts of a path joined anew, as all readers that extract it would walk them.
#[must_use]
pub fn normal(path: &[u8]) -> Vec<u8> {
    let parts = path.split(|&byte| byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    parts.collect::<Vec<_>>().join(&b'/')
}

/// Low enough that a hostile size does not cost a minute.
fn limits() -> Limits {
    Limits { layer_bytes: ByteCount::mib(4), ..Limits::default() }
}

/// What we say.
pub fn ours(bytes: impl Read) -> Opinion {
    match read(bytes) {
        Ok(items) => Opinion::Read(items),
        Err(error) => Opinion::Refused(error.to_string()),
    }
}

fn read(bytes: impl Read) -> Result<Vec<Item>, longshore_image::tar::TarError> {
    let mut tar = TarReader::new(bytes, &limits());
    let mut items = Vec::new();
    while let Some(entry) = tar.next_entry()? {
        let (kind, size, target) = match entry.kind {
            EntryKind::File { size } => (Kind::File, size, None),
            EntryKind::Directory => (Kind::Directory, 0, None),
            EntryKind::Symlink { target } => (Kind::Symlink, 0, Some(target)),
            EntryKind::HardLink { target } => (Kind::HardLink, 0, Some(target.as_bytes().to_vec())),
            EntryKind::Special => (Kind::Special, 0, None),
        };
        let mut contents = Vec::new();
        while let Some(chunk) = tar.next_chunk()? {
            let at = usize::try_from(chunk.offset).expect("within the limits");
            assert!(at >= contents.len(), "chunks overlap");
            contents.resize(at, 0);
            contents.extend(chunk.bytes);
        }
        assert!(contents.len() as u64 <= size, "more bytes than the size says");
        contents.resize(usize::try_from(size).expect("within the limits"), 0);
        items.push(Item {
            path: entry.path.as_bytes().to_vec(),
            kind,
            size,
            contents: (kind == Kind::File).then(|| Sha256::digest(&contents).into()),
            target,
        });
    }
    tar.finish()?;
    Ok(items)
}

/// What the `tar` crate says.
#[must_use]
pub fn of_the_tar_crate(bytes: &[u8]) -> Opinion {
    match read_by_the_tar_crate(bytes) {
        Ok(items) => Opinion::Read(items),
        Err(error) => Opinion::Refused(error.to_string()),
    }
}

fn read_by_the_tar_crate(bytes: &[u8]) -> std::io::Result<Vec<Item>> {
    use tar::EntryType;
    let mut items = Vec::new();
    for entry in tar::Archive::new(bytes).entries()? {
        let mut entry = entry?;
        // It hands out the headers that speak of all entries as if they were entries.
        if entry.header().entry_type() == EntryType::XGlobalHeader {
            continue;
        }
        let path = without_zeros(&entry.path_bytes());
        let kind = match entry.header().entry_type() {
            // The oldest archives have no type for directories.
            EntryType::Regular if path.ends_with(b"/") && entry.size() == 0 => Kind::Directory,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink,
            EntryType::Link => Kind::HardLink,
            _ => Kind::Special,
        };
        let target = entry.link_name_bytes().map(|target| without_zeros(&target));
        let mut contents = Vec::new();
        if kind == Kind::File {
            entry.read_to_end(&mut contents)?;
        }
        items.push(Item {
            path: normal(&path),
            kind,
            size: contents.len() as u64,
            contents: (kind == Kind::File).then(|| Sha256::digest(&contents).into()),
            target: match kind {
                Kind::Symlink => target,
                Kind::HardLink => target.map(|target| normal(&target)),
                _ => None,
            },
        });
    }
    Ok(items)
}

/// The `tar` crate takes one zero off the end of a long name, others all that some writers put there.
fn without_zeros(name: &[u8]) -> Vec<u8> {
    let end = name.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    name[..end].to_vec()
}

/// Where two opinions part, when the first accepts the archive.
fn difference(ours: &Opinion, theirs: &Opinion) -> Option<String> {
    let Opinion::Read(ours) = ours else { return None };
    match theirs {
        Opinion::Refused(why) if is_known_refusal(ours, why) => None,
        Opinion::Refused(why) => Some(format!("they refuse it: {why}; we read {ours:?}")),
        Opinion::Read(theirs) if theirs == ours => None,
        Opinion::Read(theirs) => {
            let at = ours.iter().zip(theirs).take_while(|(ours, theirs)| ours == theirs).count();
            Some(format!("entry {at}: we {:?}, they {:?}", ours.get(at), theirs.get(at)))
        }
    }
}

/// Refusals that are the others' own doing:
///
/// - The `tar` crate wants the hole at the end of a sparse file named. GNU tar, which writes such
///   files, Python and we do not.
/// - The `tar` crate wants digits in the size, also in that of a link; to all others blanks are 0.
/// - GNU tar wants the regions of a sparse file counted (`GNU.sparse.numblocks`) before they come. Python
///   does without, and their map says as much.
/// - Python and GNU tar want an archive to have at least a block of zeros, and an entry behind a global header,
///   which git writes also when there is none.
fn is_known_refusal(ours: &[Item], why: &str) -> bool {
    why.contains("mismatch in sparse file chunks")
        || why.contains("excess GNU.sparse.map")
        || why
            .split_once("numeric field was not a number: ")
            .is_some_and(|(_, rest)| rest.trim_start().starts_with("when getting size"))
        || (ours.is_empty()
            && ["empty file", "not look like a tar archive"].iter().any(|end| why.contains(end)))
        || ["end of file header", "empty header"].iter().any(|end| why.contains(end))
}

/// Whether the `tar` crate reads an archive in a way of its own: it knows the sparse files of GNU and
/// not those of pax, and ends a pax record at the first newline, also when that is part of the value.
fn is_beyond_the_tar_crate(bytes: &[u8]) -> bool {
    pax_records(bytes).any(|(key, value)| key.starts_with(b"GNU.sparse.") || value.contains(&b'\n'))
}

/// Whether Python reads an archive in a way of its own: of `path` and `GNU.sparse.name`, both of which
/// GNU tar writes when the name is long, it takes the last; GNU tar and we always take the latter.
fn is_beyond_python(bytes: &[u8]) -> bool {
    let has = |wanted: &[u8]| pax_records(bytes).any(|(key, _)| key == wanted);
    has(b"path") && has(b"GNU.sparse.name")
}

/// All records in blocks that follow a pax header.
fn pax_records(bytes: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let headers = bytes.chunks(512).enumerate().filter(|(_, block)| block.get(156) == Some(&b'x'));
    headers.flat_map(|(idx, _)| {
        let mut rest = bytes.get((idx + 1) * 512..).unwrap_or_default();
        std::iter::from_fn(move || {
            let space = rest.iter().position(|&byte| byte == b' ')?;
            let length: usize = std::str::from_utf8(&rest[..space]).ok()?.parse().ok()?;
            let record = rest.get(space + 1..length.checked_sub(1)?)?;
            rest = rest.get(length..)?;
            let equals = record.iter().position(|&byte| byte == b'=')?;
            Some((&record[..equals], &record[equals + 1..]))
        })
    })
}

/// Where the `tar` crate reads an archive that we accept as something else.
#[must_use]
pub fn difference_of_the_tar_crate(ours: &Opinion, bytes: &[u8]) -> Option<String> {
    let comparable = matches!(ours, Opinion::Read(_)) && !is_beyond_the_tar_crate(bytes);
    comparable.then(|| difference(ours, &of_the_tar_crate(bytes))).flatten()
}

/// Where Python does.
pub fn difference_of_python(ours: &Opinion, bytes: &[u8], python: &mut Python) -> Option<String> {
    let comparable = matches!(ours, Opinion::Read(_)) && !is_beyond_python(bytes);
    comparable.then(|| difference(ours, &python.opinion(bytes))).flatten()
}

/// Where GNU tar does, which says nothing of contents.
#[must_use]
pub fn difference_of_gnu_tar(ours: &Opinion, bytes: &[u8]) -> Option<String> {
    let Opinion::Read(items) = ours else { return None };
    let without_contents = items.iter().map(|item| Item { contents: None, ..item.clone() });
    difference(&Opinion::Read(without_contents.collect()), &of_gnu_tar(bytes))
}
