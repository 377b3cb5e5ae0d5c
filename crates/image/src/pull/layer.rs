//! One layer of a pull: fetched by a task, unpacked by threads.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use longshore_types::{ByteCount, Digest, chain};
use tokio::sync::{mpsc, oneshot};

use super::converted::{self, NotConverted};
use super::fetch::{Fetcher, PART, PARTS_AT_ONCE};
use super::kept::{self, Beginning, Keeper};
use super::{Progress, PullEvent, PullImageError, Way, blocking};
use crate::converted::artifact::ConvertedLayer;
use crate::index;
use crate::source::SourceError;
use crate::store::{DATA, Form, INDEX, Inner, REPORT, Staging, StoreIoError, report_text};
use crate::unpack::{self, Abandoned, Blob, LayerIdentity, LayerReport, UnpackError};

/// Pieces of a blob between the task and the threads; a full queue makes the task wait, and by that
/// the source.
const QUEUE: usize = 64;

/// Bytes of a piece at most. They are what the network gives, mostly 8 to 64 KiB, longer ones are cut.
const PIECE: usize = 64 << 10;

/// What is held in memory of a layer on its way: parts ahead of the one that is handed over, pieces in
/// queues, buffers that go round, those of the layer's file and of what is kept. What a decoder looks back
/// at comes on top.
const HELD: u64 = PARTS_AT_ONCE as u64 * PART
    + ((QUEUE + unpack::PIECES_HELD) * PIECE + unpack::BUFFERS_HELD + 2 * unpack::FILE_HELD) as u64;
const _: () = assert!(HELD <= 72 << 20, "SPECIFICATION.md says so");

pub(super) struct LayerOutcome {
    pub diff_id: Digest,
    pub report: LayerReport,
    /// `None` when it was there already.
    pub fetched: Option<Fetched>,
    pub way: Way,
}

pub(super) struct Fetched {
    /// That the source gave.
    pub bytes: ByteCount,
    /// That neighbours gave.
    pub of_neighbours: ByteCount,
    /// Neighbours that were given up.
    pub given_up: Vec<String>,
    /// Time in which the threads had nothing to do.
    pub waiting: Duration,
    /// The rest of their time.
    pub working: Duration,
}

enum Piece {
    Bytes(Bytes),
    /// The source says that this was all. A closed queue without it is an abandoned pull.
    End,
}

enum WorkError {
    Unpack(UnpackError),
    Store(StoreIoError),
}

/// Makes sure that a layer is on the disk; of its converted form, where there is one that is right.
pub(super) async fn fetch_layer(
    store: &Arc<Inner>,
    fetcher: &Fetcher<'_>,
    layer: LayerIdentity,
    parts: Option<&ConvertedLayer>,
    progress: Progress<'_>,
) -> Result<LayerOutcome, PullImageError> {
    let LayerIdentity { blob, diff_id, .. } = layer;
    let flight = store.flight(&diff_id);
    let alone = Arc::new(flight.lock_owned().await);
    if store.has_layer(&diff_id) {
        progress(PullEvent::LayerReused { blob });
        let found = {
            let (store, alone) = (Arc::clone(store), Arc::clone(&alone));
            blocking(move || {
                let found = find_layer(&store, &layer);
                drop(alone);
                found
            })
        };
        let found = found.await?;
        let report = found.map_err(|source| PullImageError::Store { digest: blob, source })?;
        return Ok(LayerOutcome { diff_id, report, fetched: None, way: Way::Plain(None) });
    }
    let Some(parts) = parts else {
        return fetch_plain(store, fetcher, layer, &alone, progress).await;
    };
    let together = (&alone, progress);
    match converted::fetch_converted(store, fetcher, &layer, parts, together).await {
        Ok(outcome) => Ok(outcome),
        Err(NotConverted::Failed(error)) => Err(error),
        Err(NotConverted::Plain(why)) => {
            let why = chain(&why);
            tracing::warn!(layer = %blob, why, "a layer is pulled as it was pushed");
            progress(PullEvent::LayerPlain { blob, why: why.clone() });
            let outcome = fetch_plain(store, fetcher, layer, &alone, progress).await?;
            converted::forget(store, &layer)
                .map_err(|source| PullImageError::Store { digest: blob, source })?;
            Ok(LayerOutcome { way: Way::Plain(Some(why)), ..outcome })
        }
    }
}

/// The report of a layer that is there. What was kept while it came goes, should who brought it have died
/// before that.
fn find_layer(store: &Inner, layer: &LayerIdentity) -> Result<LayerReport, StoreIoError> {
    let forgotten = kept::forget(store, layer).and_then(|()| converted::forget(store, layer));
    if let Err(error) = forgotten {
        // It grows old and goes.
        let error = &error as &dyn std::error::Error;
        tracing::warn!(error, "what a pull left cannot be removed");
    }
    store.read_layer_report(store.form(), &layer.diff_id)
}

/// Brings a layer as it was pushed.
async fn fetch_plain(
    store: &Arc<Inner>,
    fetcher: &Fetcher<'_>,
    layer: LayerIdentity,
    alone: &converted::Alone,
    progress: Progress<'_>,
) -> Result<LayerOutcome, PullImageError> {
    let LayerIdentity { blob, diff_id, .. } = layer;
    let store_error = |source| PullImageError::Store { digest: blob, source };
    let (beginning, keeper) = {
        let store = Arc::clone(store);
        blocking(move || kept::open(&store, &layer)).await?.unzip()
    };
    let (sender, pieces) = queue(keeper);
    let worker = {
        let (store, alone) = (Arc::clone(store), Arc::clone(alone));
        blocking(move || {
            let worked = unpack_and_commit(&store, &layer, pieces);
            // Also when nobody waits for this any more: whoever comes next finds what this one kept.
            drop(alone);
            worked
        })
    };
    // The worker's future only watches the thread; joined, so that either side's end ends both.
    let (sent, worked) = tokio::join!(send(fetcher, layer, beginning, sender, progress), worker);
    match (sent, worked?) {
        (Err(source), Err(WorkError::Unpack(UnpackError::Abandoned))) => {
            Err(PullImageError::FetchLayer { blob, source })
        }
        (_, Err(WorkError::Unpack(source))) => Err(PullImageError::UnpackLayer { blob, source }),
        (_, Err(WorkError::Store(source))) => Err(store_error(source)),
        (sent, Ok((report, waiting, working))) => {
            progress(PullEvent::LayerDone { blob, unpacked: report.unpacked });
            // All was sent, or it would not be there.
            let bytes = sent.unwrap_or(layer.size);
            let (of_neighbours, given_up) = Default::default();
            let fetched = Some(Fetched { bytes, of_neighbours, given_up, waiting, working });
            Ok(LayerOutcome { diff_id, report, fetched, way: Way::Plain(None) })
        }
    }
}

/// The task's end of the queue.
struct Sender {
    pieces: mpsc::Sender<Piece>,
    /// Comes to an end when no more is wanted.
    unwanted: oneshot::Receiver<()>,
}

/// What is sent is not wanted any more; whoever wanted it has its own error to tell.
struct Unwanted;

fn queue(keeper: Option<Keeper>) -> (Sender, Pieces) {
    let (pieces, receiver) = mpsc::channel(QUEUE);
    let (lifeline, unwanted) = oneshot::channel();
    let (lifeline, waited) = (Some(lifeline), Duration::ZERO);
    let sender = Sender { pieces, unwanted };
    (sender, Pieces { receiver, keeper, lifeline, is_at_end: false, waited })
}

impl Sender {
    async fn send(&mut self, mut bytes: Bytes) -> Result<(), Unwanted> {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE));
            self.pieces.send(Piece::Bytes(piece)).await.map_err(|_| Unwanted)?;
        }
        Ok(())
    }
}

/// Hands a blob's bytes to the worker, until the end or until it does not want more; gives how many of
/// them the source gave.
async fn send(
    fetcher: &Fetcher<'_>,
    layer: LayerIdentity,
    beginning: Option<Beginning>,
    mut sender: Sender,
    progress: Progress<'_>,
) -> Result<ByteCount, SourceError> {
    let (blob, total) = (layer.blob, layer.size);
    let told = |n_bytes| {
        progress(PullEvent::LayerProgress { blob, fetched: ByteCount(n_bytes), total });
    };
    let mut n_bytes = 0;
    while let Some(beginning) = &beginning
        && let Some(piece) = beginning.read(n_bytes).await
    {
        n_bytes += piece.len() as u64;
        if sender.send(piece).await.is_err() {
            return Ok(ByteCount(0));
        }
        told(n_bytes);
    }
    let n_kept = n_bytes;
    let mut fetched = fetcher.blob(blob, n_kept, total);
    loop {
        let piece = tokio::select! {
            // Cancelling `next` is fine here: nothing is asked of the blob after it.
            piece = fetched.next() => piece?,
            _ = &mut sender.unwanted => break,
        };
        let Some(piece) = piece else {
            // When the worker is gone, it has its own error to tell.
            let _ = sender.pieces.send(Piece::End).await;
            break;
        };
        n_bytes += piece.len() as u64;
        if sender.send(piece).await.is_err() {
            break;
        }
        told(n_bytes);
    }
    Ok(ByteCount(n_bytes - n_kept))
}

fn unpack_and_commit(
    store: &Arc<Inner>,
    layer: &LayerIdentity,
    mut pieces: Pieces,
) -> Result<(LayerReport, Duration, Duration), WorkError> {
    let started = Instant::now();
    let result = try_unpack_and_commit(store, layer, &mut pieces);
    if let Some(keeper) = pieces.keeper
        && !matches!(result, Err(WorkError::Unpack(UnpackError::Abandoned)))
    {
        // The layer is there, or something is wrong with it, or its room is wanted.
        keeper.remove();
    }
    let working = started.elapsed().saturating_sub(pieces.waited);
    Ok((result?, pieces.waited, working))
}

fn try_unpack_and_commit(
    store: &Arc<Inner>,
    layer: &LayerIdentity,
    pieces: &mut Pieces,
) -> Result<LayerReport, WorkError> {
    let staging = Staging::new(store).map_err(WorkError::Store)?;
    let target = store.layer_path(store.form(), &layer.diff_id);
    match store.form() {
        Form::Directories => {
            let root = staging.create_directory("fs").map_err(WorkError::Store)?;
            let report =
                unpack::unpack(pieces, layer, root, &store.limits).map_err(WorkError::Unpack)?;
            staging.write(REPORT, &report_text(&report)).map_err(WorkError::Store)?;
            staging.commit(&target).map_err(WorkError::Store)?;
            Ok(report)
        }
        Form::Erofs => {
            let data = staging.create_file(DATA).map_err(WorkError::Store)?;
            let (report, tree) =
                unpack::index(pieces, layer, data, &store.limits).map_err(WorkError::Unpack)?;
            staging.write(INDEX, &index::encode(&tree)).map_err(WorkError::Store)?;
            staging.write(REPORT, &report_text(&report)).map_err(WorkError::Store)?;
            staging.commit_synced(&target).map_err(WorkError::Store)?;
            Ok(report)
        }
    }
}

/// The threads' end of the queue.
struct Pieces {
    receiver: mpsc::Receiver<Piece>,
    keeper: Option<Keeper>,
    lifeline: Option<oneshot::Sender<()>>,
    is_at_end: bool,
    waited: Duration,
}

impl Blob for Pieces {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.is_at_end {
            return Ok(None);
        }
        let started = Instant::now();
        let piece = self.receiver.blocking_recv();
        self.waited += started.elapsed();
        match piece {
            Some(Piece::Bytes(bytes)) => {
                if let Some(keeper) = &mut self.keeper {
                    keeper.keep(&bytes);
                }
                Ok(Some(bytes))
            }
            Some(Piece::End) => {
                self.is_at_end = true;
                Ok(None)
            }
            None => Err(io::Error::other(Abandoned)),
        }
    }

    fn is_ready(&self) -> bool {
        self.is_at_end || !self.receiver.is_empty()
    }

    fn lifeline(&mut self) -> Box<dyn Send> {
        Box::new(self.lifeline.take())
    }
}
