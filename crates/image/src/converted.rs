//! A layer cut anew: what a node keeps of it, in frames that can be fetched from anywhere, in any order,
//! and checked one by one.
//!
//! ```text
//! index   the tree of the layer, as nodes keep it
//! frames  the contents of its files, as nodes keep them, in frames of 1 MiB, one behind the other
//! table   what each frame is, and its BLAKE3; it names the index
//! ```
//!
//! A layer as it was pushed is one stream: who wants its end has to decode all before, and its digests
//! are those of the whole. A node that has the three parts decodes frames by as many threads as it
//! likes, reads no archive, and an interrupted pull goes on with the frames that are missing.
//!
//! The three are blobs beside the image, named by an [`artifact`] whose subject is the image's manifest.
//! What was pushed stays as it was, and clients that know nothing of this never meet it.
//!
//! The same archive always gives the same index, contents and digests of frames, whatever it was
//! compressed with; that is how a conversion is checked later ([`Table::difference`], [`StoredFrames`]). So the
//! table does not say which blob it was made of. How a frame is stored may differ between versions of zstd.
//!
//! That an index and a table belong to a layer cannot be seen from them: layers on a node are shared by
//! all that name their DiffID, so a node must get them from nobody but its own platform's registry,
//! which made them itself.

pub mod artifact;
mod cut;
mod frame;
mod stored;
mod table;
#[cfg(test)]
pub(crate) mod tests;

use std::io;
use std::sync::mpsc;

use longshore_types::{ByteCount, Digest};
use sha2::{Digest as _, Sha256};

use crate::erofs;
use crate::index::{self, merge};
use crate::limits::Limits;
use crate::manifest::Descriptor;
use crate::unpack::{self, Blob, DataFile, LayerIdentity, UnpackError};

pub use crate::index::IndexError;
use cut::{Cut, Cutter};
pub use frame::FRAME;
pub(crate) use frame::{FrameProblem, FrameReader};
pub use stored::{Difference, StoredFrames};
pub(crate) use table::most_bytes as most_table_bytes;
pub use table::{Frame, Stored, Table, TableError};

/// What became of a layer; `frames` is what the frames were written to.
#[derive(Debug)]
pub struct Converted<W> {
    /// The bytes of the index.
    pub index: Vec<u8>,
    /// What the frames are.
    pub table: Table,
    /// Where they are.
    pub frames: W,
}

/// Converts the layer that `blob` gives, and writes its frames to `frames`.
///
/// Both digests are checked, and the archive is read with the limits of a node, so what a node would
/// refuse is refused. The same layer gives the same bytes. Runs for as long as the bytes take, with
/// threads that have the priority of the caller's: call it on a thread that may block.
pub fn convert<W: io::Write + Send + 'static>(
    blob: impl Blob,
    identity: &LayerIdentity,
    limits: &Limits,
    frames: W,
) -> Result<Converted<W>, UnpackError> {
    let (done, cut) = mpsc::channel();
    let cutter =
        Cutter::new(frames, done).map_err(|error| UnpackError::write("cutting", b"", error))?;
    let data = DataFile::into_sink(Box::new(cutter));
    let (report, tree) = unpack::index_into(blob, identity, data, limits)?;
    let Cut { out, frames } = cut.recv().expect("it is sent before the contents are finished");
    let index = index::encode(&tree);
    let digest = Digest::from_sha256(Sha256::digest(&index).into());
    let table = Table {
        diff_id: identity.diff_id,
        index: Descriptor { digest, size: ByteCount(index.len() as u64) },
        data: ByteCount(u64::from(tree.data_blocks) * erofs::BLOCK),
        report,
        frames,
    };
    Ok(Converted { index, table, frames: out })
}

/// What a node would have its kernel mount of layers, lowest first, whose indexes have these bytes: the
/// metadata alone, as an EROFS file system. For whoever looks into what an index makes of an image.
///
/// # Panics
/// Without a layer.
pub fn metadata_of(indexes: &[&[u8]], limits: &Limits) -> Result<Vec<u8>, MetadataError> {
    let trees = indexes.iter().map(|bytes| index::decode(bytes, limits.depth));
    let trees = trees.collect::<Result<Vec<_>, _>>()?;
    let mut metadata = Vec::new();
    erofs::write(&merge::merge(&trees).tree, &mut metadata).map_err(MetadataError::Write)?;
    Ok(metadata)
}

/// Why indexes are none of an image.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// One of them is no index.
    #[error("reading the index of a layer")]
    Index(#[from] IndexError),
    /// They are more than a file system holds.
    #[error("writing the metadata of the image")]
    Write(#[source] io::Error),
}
