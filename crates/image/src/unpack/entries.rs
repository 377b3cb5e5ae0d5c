//! What each entry of a layer means for the tree.

use std::collections::HashSet;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use super::node::{Attributes, finish_file};
use super::stream::classify;
use super::tree::Tree;
use super::{EntryProblem, LayerReport, UnpackError};
use crate::limits::Limits;
use crate::tar::{Entry, EntryKind, EntryPath, TarReader, Xattr};

/// The prefix that makes a name a whiteout, by the OCI image specification.
const WHITEOUT: &[u8] = b".wh.";

pub(super) struct Unpacker {
    tree: Tree,
    report: LayerReport,
    /// Paths of devices that were not made, as hashes: a hard link to one is dropped as well.
    dropped: HashSet<u64>,
    hash: RandomState,
}

impl Unpacker {
    pub fn new(root: OwnedFd, limits: &Limits) -> Result<Self, UnpackError> {
        Ok(Self {
            tree: Tree::new(root, limits)?,
            report: LayerReport::default(),
            dropped: HashSet::new(),
            hash: RandomState::new(),
        })
    }

    /// Unpacks all entries and reads the stream to its end.
    pub fn run(mut self, mut tar: TarReader<impl Read>) -> Result<LayerReport, UnpackError> {
        while let Some(entry) = tar.next_entry().map_err(classify)? {
            self.report.entries += 1;
            if self.whiteout(&entry.path)? {
                continue;
            }
            self.entry(&entry, &mut tar)?;
        }
        tar.finish().map_err(classify)?;
        self.report.implicit_directories = self.tree.finish()?;
        Ok(self.report)
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
                let file = File::from(self.tree.file(path)?);
                write_contents(&file, *size, path, tar)?;
                finish_file(&file.into(), &attributes, path)
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
pub(super) fn is_allowed_xattr(name: &[u8]) -> bool {
    name == b"security.capability" || name.strip_prefix(b"user.").is_some_and(|n| !n.is_empty())
}

fn write_contents(
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
