//! Turns the bytes of a layer into a tree: [`index`] into rows and one file of contents, [`unpack`]
//! into a directory that overlayfs can use as a lower one, for machines whose kernel mounts no
//! EROFS.
//!
//! One pass, by several threads ([`stages`]): blob digest, decompression, DiffID, tar, files. The
//! caller gives a fresh place that nobody else sees and throws it away when this fails, so nothing
//! here cleans up. Success means that both digests matched; only then may the place be given its final
//! name.

mod data;
mod entries;
mod node;
mod pool;
mod rows;
mod stages;
mod stream;
#[cfg(test)]
pub(crate) mod tests;
mod tree;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use longshore_types::{ByteCount, Digest};

use crate::index::LayerTree;
use crate::limits::{LimitExceeded, Limits};
use crate::source::Retry;
use crate::tar::{TarError, TarReader};

pub(crate) use data::{CACHED, DataFile, HOLE, Sink};
pub(crate) use entries::is_allowed_xattr;
use entries::{Destination, Unpacker};
use rows::Rows;
pub(crate) use stream::Abandoned;
pub use stream::Blob;
use tree::Tree;

/// Pieces of a blob that are held while it is unpacked: those that wait for the digest, and the one
/// that the decoder is at.
pub(crate) const PIECES_HELD: usize = stages::DIGEST_QUEUE + 1;

/// Bytes of the buffers that a layer goes through on its way to a [`DataFile`].
pub(crate) const BUFFERS_HELD: usize = stages::PLAIN_BUFFERS * stages::PLAIN_BUFFER;

/// Bytes of the buffers of a [`DataFile`].
pub(crate) const FILE_HELD: usize = data::BUFFERS * data::BUFFER;

pub(crate) use tree::{IMPLICIT_MODE, OPAQUE_XATTR};

/// What a layer must turn out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerIdentity {
    /// Digest of the bytes as a registry stores them.
    pub blob: Digest,
    /// Number of those bytes.
    pub size: ByteCount,
    /// Digest of the uncompressed archive.
    pub diff_id: Digest,
}

/// What an unpacked layer holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LayerReport {
    /// Entries of the archive.
    pub entries: u64,
    /// Length of the uncompressed archive.
    pub unpacked: ByteCount,
    /// Names of lower layers that this one hides, opaque directories included.
    pub whiteouts: u64,
    /// Devices and fifos, which are never made.
    pub dropped_devices: u64,
    /// Extended attributes that are not kept.
    pub dropped_xattrs: u64,
    /// Whether the layer hides everything below it. Overlayfs does not look for the mark on a root.
    pub hides_all: bool,
    /// Directories that no entry describes, as paths; the root is the empty one. They have mode
    /// 0755 and belong to root, unless a lower layer of an image describes them. Of a layer that
    /// was unpacked into a directory only: an index says so itself.
    pub implicit_directories: Vec<Vec<u8>>,
}

/// Why a layer could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The blob is not the one that the manifest names.
    #[error("the layer's bytes have the digest {found}, not {expected}")]
    BlobDigest {
        /// From the manifest.
        expected: Digest,
        /// Of the bytes that came.
        found: Digest,
    },
    /// The blob is shorter or longer than the manifest says.
    #[error("the layer has {found} bytes, not {expected}", found = .found.0, expected = .expected.0)]
    BlobSize {
        /// From the manifest.
        expected: ByteCount,
        /// Bytes that came; one more than expected when there are too many.
        found: ByteCount,
    },
    /// The uncompressed archive is not the one that the image config names.
    #[error("the uncompressed layer has the digest {found}, not {expected}")]
    DiffId {
        /// From the config.
        expected: Digest,
        /// Of the archive.
        found: Digest,
    },
    /// The compressed stream is broken.
    #[error("decompressing the layer")]
    Decompress(#[source] io::Error),
    /// The archive is broken or refused.
    #[error("reading the layer's archive")]
    Archive(#[source] TarError),
    /// An entry that must not or cannot be unpacked.
    #[error("entry {path:?} of the layer")]
    Entry {
        /// The path as far as it was resolved, made printable.
        path: String,
        /// What is wrong with it.
        #[source]
        problem: EntryProblem,
    },
    /// The layer asks for more than is allowed.
    #[error("the layer asks for too much")]
    Limit(#[from] LimitExceeded),
    /// The node's file system refused.
    #[error("{action} {path:?}")]
    Write {
        /// What was being done.
        action: &'static str,
        /// To which path of the layer, made printable.
        path: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The machine has no thread for it.
    #[error("starting a thread that unpacks the layer")]
    Thread(#[source] io::Error),
    /// Whoever fetched the bytes gave up; that error is the one to report.
    #[error("the layer's bytes stopped coming")]
    Abandoned,
}

/// What can be wrong with an entry where it is to be put.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryProblem {
    /// A hard link to nothing.
    #[error("its hard link target {target:?} is not in the layer before it")]
    LinkTargetMissing {
        /// The target's path.
        target: String,
    },
    /// A hard link to a directory.
    #[error("its hard link target {target:?} is not a file")]
    LinkTargetNotFile {
        /// The target's path.
        target: String,
    },
    /// Something else has the name of a directory above the entry.
    #[error("what is above it is not a directory")]
    ParentNotDirectory,
    /// A symbolic link above the entry leads to nothing in this layer.
    #[error("a symbolic link above it leads to nothing in this layer")]
    ParentDangling,
    /// Symbolic links above the entry lead round in a circle.
    #[error("symbolic links above it lead round in a circle")]
    ParentLoop,
    /// The root of the layer is something other than a directory.
    #[error("the root of a layer must be a directory")]
    RootNotDirectory,
    /// A whiteout of nothing, of `.` or of `..`, or something below a whiteout.
    #[error("a whiteout must name one entry beside it")]
    Whiteout,
    /// The file system does not take an extended attribute.
    #[error("the file system refuses its extended attribute {name:?} of {n_bytes} bytes: {answer}")]
    Xattr {
        /// The attribute's name.
        name: String,
        /// Length of its value.
        n_bytes: usize,
        /// The system's answer.
        answer: String,
    },
    /// Too many directories above it, symbolic links resolved.
    #[error("a path must not have more than {allowed} directories above its last part")]
    Deep {
        /// The limit.
        allowed: u32,
    },
}

impl UnpackError {
    fn entry(path: impl AsRef<[u8]>, problem: EntryProblem) -> Self {
        Self::Entry { path: String::from_utf8_lossy(path.as_ref()).into_owned(), problem }
    }

    pub(crate) fn write(action: &'static str, path: &[u8], source: io::Error) -> Self {
        Self::Write { action, path: String::from_utf8_lossy(path).into_owned(), source }
    }

    /// Whether fetching and unpacking the layer again can succeed: bytes may be damaged on their way
    /// and a disk may be emptied, but what the image itself says stays.
    pub fn retry(&self) -> Retry {
        match self {
            Self::BlobDigest { .. } | Self::BlobSize { .. } | Self::Abandoned => Retry::CanHelp,
            // The kernel finds something wrong with what the layer asks for.
            Self::Write { source, .. }
                if matches!(
                    source.kind(),
                    io::ErrorKind::InvalidInput | io::ErrorKind::InvalidFilename
                ) =>
            {
                Retry::Pointless
            }
            Self::Write { .. } | Self::Thread(_) => Retry::CanHelp,
            Self::DiffId { .. }
            | Self::Decompress(_)
            | Self::Archive(_)
            | Self::Entry { .. }
            | Self::Limit(_) => Retry::Pointless,
        }
    }
}

/// Unpacks the layer that `blob` gives into `root`, an empty directory.
///
/// On error `root` holds part of a layer and must be removed. Runs for as long as the bytes take:
/// call it on a thread that may block. Needs root, for owners, whiteouts and trusted xattrs.
pub fn unpack(
    blob: impl Blob,
    identity: &LayerIdentity,
    root: OwnedFd,
    limits: &Limits,
) -> Result<LayerReport, UnpackError> {
    let (mut report, implicit) = read_layer(blob, identity, Tree::new(root, limits), limits)?;
    report.implicit_directories = implicit;
    Ok(report)
}

/// Writes the contents of the layer's files into `data`, an empty file, and gives the rest as a tree.
///
/// On error `data` holds part of a layer and must be removed. Runs for as long as the bytes take:
/// call it on a thread that may block.
pub(crate) fn index(
    blob: impl Blob,
    identity: &LayerIdentity,
    data: File,
    limits: &Limits,
) -> Result<(LayerReport, LayerTree), UnpackError> {
    index_into(blob, identity, DataFile::new(data), limits)
}

/// The same, with the contents written into whatever `data` stands for.
pub(crate) fn index_into(
    blob: impl Blob,
    identity: &LayerIdentity,
    data: DataFile,
    limits: &Limits,
) -> Result<(LayerReport, LayerTree), UnpackError> {
    read_layer(blob, identity, Ok(Rows::new(data, limits)), limits)
}

fn read_layer<D: Destination>(
    blob: impl Blob,
    identity: &LayerIdentity,
    destination: Result<D, UnpackError>,
    limits: &Limits,
) -> Result<(LayerReport, D::Finished), UnpackError> {
    let destination = destination?;
    let (outcome, passed) = stages::pass(blob, identity.size, limits, |archive| {
        Unpacker::new(destination).run(TarReader::new(archive, limits))
    })?;
    if passed.size != identity.size {
        return Err(UnpackError::BlobSize { expected: identity.size, found: passed.size });
    }
    if passed.blob != identity.blob {
        return Err(UnpackError::BlobDigest { expected: identity.blob, found: passed.blob });
    }
    let (mut report, finished) = outcome?;
    if passed.diff_id != identity.diff_id {
        return Err(UnpackError::DiffId { expected: identity.diff_id, found: passed.diff_id });
    }
    report.unpacked = passed.unpacked;
    Ok((report, finished))
}
