//! A layer from its converted form: frames in several parts at a time, decoded and checked by several
//! threads, each written to its place.
//!
//! Nothing of it is believed but what its digests say, and no frame is written before its own matched. What
//! is wrong with the form, or missing of it, costs the layer no more than time: it is pulled as it was
//! pushed then, and [`WhyPlain`] is told.
//!
//! Frames are had of neighbours too, nodes of the same location that have or pull the same: see `race` for of
//! whom which, and `peers` for how.
//!
//! The contents of a large layer lie where they outlive their pull. The next one reads them, takes the
//! frames whose digests match and fetches the others: there is no list of finished frames that could say
//! something else than the disk does.

mod buffers;
mod file;
mod frames;
mod peers;
mod race;

use std::sync::Arc;

use futures_util::future::try_join;
use longshore_types::ByteCount;
use sha2::{Digest as _, Sha256};
use tokio::sync::OwnedMutexGuard;

use super::fetch::Fetcher;
use super::layer::{Fetched, LayerOutcome};
use super::{Progress, PullEvent, PullImageError, Resolved, blocking};
use crate::converted::artifact::{self, ArtifactError, ConvertedLayer, ConvertedLayers};
use crate::converted::{FrameProblem, Table, TableError, most_table_bytes};
use crate::erofs::BLOCK;
use crate::index::{self, IndexError};
use crate::limits::{LimitExceeded, Limits};
use crate::manifest::Descriptor;
use crate::source::SourceError;
use crate::store::{Form, Given, Inner, StoreIoError};
use crate::unpack::LayerIdentity;

use file::{Contents, Missing};
use frames::{Stopped, Workers, queues, send};
use peers::{Sent, race_for, usable};

/// Why a layer is pulled as it was pushed although a registry may have it converted.
#[derive(Debug, thiserror::Error)]
pub(super) enum WhyPlain {
    #[error("what is converted of the image is not known")]
    Artifact(#[source] SourceError),
    #[error("what is converted of the image cannot be read")]
    ReadArtifact(#[source] ArtifactError),
    #[error("the {what} of its converted form cannot be had")]
    Fetch {
        what: &'static str,
        #[source]
        source: SourceError,
    },
    #[error("the {what} of its converted form does not match")]
    Mismatch { what: &'static str },
    #[error("its converted form asks for too much")]
    Limit(#[from] LimitExceeded),
    #[error("the table of its converted form cannot be used")]
    Table(#[from] TableError),
    #[error("the index of its converted form cannot be used")]
    Index(#[from] IndexError),
    #[error("the parts of its converted form are not of one layer")]
    Contradiction,
    #[error("frame {idx} of its converted form {problem}")]
    Frame { idx: usize, problem: FrameProblem },
}

/// Why a converted form did not become a layer.
pub(super) enum NotConverted {
    /// Something is wrong with it; the layer as it was pushed may be fine.
    Plain(WhyPlain),
    /// The layer as it was pushed would fail in the same way.
    Failed(PullImageError),
}

impl<E: Into<WhyPlain>> From<E> for NotConverted {
    fn from(error: E) -> Self {
        Self::Plain(error.into())
    }
}

/// While it is held, nobody else fetches the layer.
pub(super) type Alone = Arc<OwnedMutexGuard<()>>;

/// What the source has converted of an image, when that is of use here.
pub(super) async fn look(
    store: &Inner,
    fetcher: &Fetcher<'_>,
    resolved: &Resolved,
) -> Result<ConvertedLayers, WhyPlain> {
    let is_needed = |layer: &LayerIdentity| !store.has_layer(&layer.diff_id);
    // Directories are filled by reading the archive.
    if store.form() != Form::Erofs || !resolved.layers.iter().any(is_needed) {
        return Ok(ConvertedLayers::new());
    }
    let found = fetcher.converted(&resolved.manifest).await.map_err(WhyPlain::Artifact)?;
    match found {
        None => Ok(ConvertedLayers::new()),
        Some(bytes) => artifact::decode(&bytes, &resolved.manifest).map_err(WhyPlain::ReadArtifact),
    }
}

/// Makes a layer of its converted form.
pub(super) async fn fetch_converted(
    store: &Arc<Inner>,
    fetcher: &Fetcher<'_>,
    layer: &LayerIdentity,
    parts: &ConvertedLayer,
    (alone, progress): (&Alone, Progress<'_>),
) -> Result<LayerOutcome, NotConverted> {
    let (table, index) = try_join(
        fetch_table(fetcher, layer, parts),
        fetch_part(fetcher, "index", &parts.index, fetcher.limits.index_bytes.0),
    )
    .await?;
    let table = Arc::new(table);
    let index = {
        let (table, limits) = (Arc::clone(&table), fetcher.limits.clone());
        let checked = blocking(move || check_index(&table, &index, &limits).map(|()| index));
        checked.await.map_err(NotConverted::Failed)??
    };
    let total = ByteCount(parts.blobs().iter().map(|part| part.size.0).sum());
    let before = table_and_index(parts);
    let told = |n_bytes| {
        let (blob, fetched) = (layer.blob, ByteCount(before + n_bytes));
        progress(PullEvent::LayerProgress { blob, fetched, total });
    };

    let failed =
        |source| NotConverted::Failed(PullImageError::Store { digest: layer.blob, source });
    let (contents, missing) = {
        let (store, table, alone) = (Arc::clone(store), Arc::clone(&table), Arc::clone(alone));
        let opened = blocking(move || {
            let opened = Contents::open(&store, &table);
            drop(alone);
            opened
        });
        opened.await.map_err(NotConverted::Failed)?.map_err(failed)?
    };
    let _given = contents.has_room.then(|| Given::new(store, layer.blob));
    let n_here = table.stored().0 - frames::stored_of(&table, &missing);
    told(n_here);
    let (workers, work) = queues();
    let worker = {
        let (store, table, alone) = (Arc::clone(store), Arc::clone(&table), Arc::clone(alone));
        let n_missing = missing.len();
        blocking(move || {
            let worked = frames::put_in_place(contents, &table, n_missing, work);
            let committed = match worked {
                Ok((contents, times)) => {
                    contents.commit(&store, &table, &index).map(|()| times).map_err(Stopped::Store)
                }
                Err(stopped) => Err(stopped),
            };
            drop(alone);
            committed
        })
    };
    let told = |n_bytes| told(n_here + n_bytes);
    let sent = fetch_frames((store, fetcher), (&parts.frames, &table), (&missing, workers), &told);
    let (sent, worked) = tokio::join!(sent, worker);
    match (worked.map_err(NotConverted::Failed)?, sent) {
        (Ok((waiting, working)), sent) => {
            progress(PullEvent::LayerDone { blob: layer.blob, unpacked: table.report.unpacked });
            // All was sent, or it would not be there.
            let all = || Sent { of_source: total.0 - before, ..Sent::default() };
            let Sent { of_source, of_neighbours, given_up } = sent.unwrap_or_else(|_| all());
            let (bytes, of_neighbours) = (ByteCount(before + of_source), ByteCount(of_neighbours));
            let fetched = Fetched { bytes, of_neighbours, given_up, waiting, working };
            let (diff_id, report) = (layer.diff_id, table.report.clone());
            let fetched = Some(fetched);
            Ok(LayerOutcome { diff_id, report, fetched, way: super::Way::Converted })
        }
        (Err(Stopped::Abandoned), Err(source)) => {
            Err(WhyPlain::Fetch { what: "frames", source }.into())
        }
        (Err(Stopped::Abandoned), Ok(_)) => Err(NotConverted::Failed(PullImageError::Interrupted)),
        (Err(Stopped::Frame { idx, problem }), _) => Err(WhyPlain::Frame { idx, problem }.into()),
        (Err(Stopped::Store(source)), _) => Err(failed(source)),
    }
}

/// Has frames of neighbours where there are any, and of the source.
async fn fetch_frames(
    (store, fetcher): (&Inner, &Fetcher<'_>),
    (frames, table): (&Descriptor, &Table),
    of: (&[Missing], Workers),
    told: &(dyn Fn(u64) + Send + Sync),
) -> Result<Sent, SourceError> {
    let others = usable(store, fetcher);
    if others.is_empty() {
        let of_source = send(fetcher, frames, table, of, told).await?;
        return Ok(Sent { of_source, ..Sent::default() });
    }
    race_for((store, fetcher, others), frames, table, of, told).await
}

/// Removes what came of a layer's converted form and is not wanted any more.
pub(super) fn forget(store: &Inner, layer: &LayerIdentity) -> Result<(), StoreIoError> {
    file::remove(store, &layer.diff_id)
}

/// The bytes of what is fetched before the frames.
fn table_and_index(parts: &ConvertedLayer) -> u64 {
    parts.table.size.0.saturating_add(parts.index.size.0)
}

async fn fetch_table(
    fetcher: &Fetcher<'_>,
    layer: &LayerIdentity,
    parts: &ConvertedLayer,
) -> Result<Table, WhyPlain> {
    let allowed = most_table_bytes(fetcher.limits);
    let bytes = fetch_part(fetcher, "table", &parts.table, allowed).await?;
    let table = Table::decode(&bytes, fetcher.limits)?;
    let is_of_layer = table.diff_id == layer.diff_id;
    match is_of_layer && table.index == parts.index && table.stored() == parts.frames.size {
        true => Ok(table),
        false => Err(WhyPlain::Contradiction),
    }
}

/// The bytes of a small part, checked.
async fn fetch_part(
    fetcher: &Fetcher<'_>,
    what: &'static str,
    part: &Descriptor,
    allowed: u64,
) -> Result<Vec<u8>, WhyPlain> {
    LimitExceeded::check("bytes", part.size.0, allowed)?;
    let fetched = fetcher.whole(part.digest, part.size).await;
    let bytes = fetched.map_err(|source| WhyPlain::Fetch { what, source })?;
    match Sha256::digest(&bytes).as_slice() == part.digest.as_bytes() {
        true => Ok(bytes),
        false => Err(WhyPlain::Mismatch { what }),
    }
}

/// Whether the bytes are the tree of a layer whose files lie in the contents.
fn check_index(table: &Table, bytes: &[u8], limits: &Limits) -> Result<(), WhyPlain> {
    let tree = index::decode(bytes, limits.depth)?;
    match u64::from(tree.data_blocks) * BLOCK == table.data.0 {
        true => Ok(()),
        false => Err(WhyPlain::Contradiction),
    }
}
