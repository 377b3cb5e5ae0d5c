//! What each entry of a layer means for the tree, whichever way that is kept.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::io::Read;

use super::stream::classify;
use super::{EntryProblem, LayerReport, UnpackError};
use crate::tar::{Entry, EntryKind, EntryPath, TarReader, Xattr};

/// The prefix that makes a name a whiteout, by the OCI image specification.
const WHITEOUT: &[u8] = b".wh.";

/// Owner, mode, xattrs and time, as they will be set; the xattrs are filtered.
pub(super) struct Attributes<'a> {
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
    pub mtime: (i64, u32),
    pub xattrs: Vec<&'a Xattr>,
}

/// A tree that entries are put into: a directory of the machine, or rows beside a file of contents.
///
/// Directories above an entry are made where they are missing, and links above it are followed inside
/// of the tree; the last part of a path never is. What has the name of a new entry makes way for it.
pub(super) trait Destination {
    /// What it gives once everything is in it.
    type Finished;

    /// Makes a directory, or gives an existing one new attributes and keeps what is in it.
    fn directory(
        &mut self,
        path: &EntryPath,
        attributes: &Attributes<'_>,
    ) -> Result<(), UnpackError>;

    /// Makes a file of the contents that the archive has next.
    fn file(
        &mut self,
        path: &EntryPath,
        size: u64,
        attributes: &Attributes<'_>,
        contents: &mut TarReader<impl Read>,
    ) -> Result<(), UnpackError>;

    /// Makes a symbolic link.
    fn symlink(
        &mut self,
        path: &EntryPath,
        target: &[u8],
        attributes: &Attributes<'_>,
    ) -> Result<(), UnpackError>;

    /// Gives an earlier file or symbolic link a second name.
    fn hard_link(&mut self, path: &EntryPath, target: &EntryPath) -> Result<(), UnpackError>;

    /// Hides `name` of lower layers. What this layer itself has of that name stays.
    fn whiteout(&mut self, above: &[u8], name: &[u8]) -> Result<(), UnpackError>;

    /// Hides everything that lower layers have in a directory.
    fn opaque(&mut self, path: &[u8]) -> Result<(), UnpackError>;

    /// Ends the work, once the whole archive is read.
    fn finish(self) -> Result<Self::Finished, UnpackError>;
}

pub(super) struct Unpacker<D> {
    tree: D,
    report: LayerReport,
    /// Paths of devices that were not made, as hashes: a hard link to one is dropped as well.
    dropped: HashSet<u64>,
    hash: RandomState,
}

impl<D: Destination> Unpacker<D> {
    pub fn new(tree: D) -> Self {
        Self {
            tree,
            report: LayerReport::default(),
            dropped: HashSet::new(),
            hash: RandomState::new(),
        }
    }

    /// Unpacks all entries and reads the stream to its end.
    pub fn run(
        mut self,
        mut tar: TarReader<impl Read>,
    ) -> Result<(LayerReport, D::Finished), UnpackError> {
        while let Some(entry) = tar.next_entry().map_err(classify)? {
            self.report.entries += 1;
            if self.whiteout(&entry.path)? {
                continue;
            }
            self.entry(&entry, &mut tar)?;
        }
        tar.finish().map_err(classify)?;
        Ok((self.report, self.tree.finish()?))
    }

    /// Acts on an entry whose name is a whiteout's; false when it is an ordinary one.
    fn whiteout(&mut self, path: &EntryPath) -> Result<bool, UnpackError> {
        let Some((above, name)) = path.split() else {
            return Ok(false);
        };
        for part in above.split(|&byte| byte == b'/') {
            if let Some(hidden) = part.strip_prefix(WHITEOUT) {
                // `.wh..wh.*` are the private directories of aufs, which old docker wrote.
                return match hidden.starts_with(WHITEOUT) {
                    true => Ok(true),
                    false => Err(UnpackError::entry(path, EntryProblem::Whiteout)),
                };
            }
        }
        match name.strip_prefix(WHITEOUT) {
            None => return Ok(false),
            Some(b".wh..opq") => {
                self.tree.opaque(above)?;
                self.report.hides_all |= above.is_empty();
            }
            Some(hidden) if hidden.starts_with(WHITEOUT) => return Ok(true),
            Some(b"" | b"." | b"..") => {
                return Err(UnpackError::entry(path, EntryProblem::Whiteout));
            }
            Some(hidden) => self.tree.whiteout(above, hidden)?,
        }
        self.report.whiteouts += 1;
        Ok(true)
    }

    fn entry(&mut self, entry: &Entry, tar: &mut TarReader<impl Read>) -> Result<(), UnpackError> {
        let path = &entry.path;
        match &entry.kind {
            EntryKind::Directory => {
                let attributes = self.attributes(entry, XattrsOf::FileOrDirectory);
                self.tree.directory(path, &attributes)
            }
            EntryKind::File { size } => {
                let attributes = self.attributes(entry, XattrsOf::FileOrDirectory);
                self.tree.file(path, *size, &attributes, tar)
            }
            EntryKind::Symlink { target } => {
                let attributes = self.attributes(entry, XattrsOf::Symlink);
                self.tree.symlink(path, target, &attributes)
            }
            EntryKind::HardLink { target } => {
                if self.dropped.contains(&self.hash.hash_one(target)) {
                    self.drop_special(path);
                    return Ok(());
                }
                self.tree.hard_link(path, target)
            }
            EntryKind::Special => {
                self.drop_special(path);
                Ok(())
            }
        }
    }

    fn drop_special(&mut self, path: &EntryPath) {
        self.report.dropped_devices += 1;
        self.dropped.insert(self.hash.hash_one(path));
    }

    fn attributes<'a>(&mut self, entry: &'a Entry, of: XattrsOf) -> Attributes<'a> {
        let xattrs: Vec<&Xattr> = match of {
            XattrsOf::FileOrDirectory => {
                entry.xattrs.iter().filter(|x| is_allowed_xattr(&x.name)).collect()
            }
            XattrsOf::Symlink => Vec::new(),
        };
        self.report.dropped_xattrs += (entry.xattrs.len() - xattrs.len()) as u64;
        Attributes { uid: entry.uid, gid: entry.gid, mode: entry.mode, mtime: entry.mtime, xattrs }
    }
}

/// Linux gives symbolic links none of the xattrs that we let through.
enum XattrsOf {
    FileOrDirectory,
    Symlink,
}

/// Whether an image may set an xattr. `trusted.overlay.*` would let it forge whiteouts and redirects,
/// `security.*` but capabilities belongs to the host's policy.
pub(crate) fn is_allowed_xattr(name: &[u8]) -> bool {
    name == b"security.capability" || name.strip_prefix(b"user.").is_some_and(|n| !n.is_empty())
}
