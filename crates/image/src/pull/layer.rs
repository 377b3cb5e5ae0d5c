//! One layer of a pull: fetched by a task, unpacked by threads.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use longshore_types::{ByteCount, Digest};
use tokio::sync::{mpsc, oneshot};

use super::fetch::{Fetcher, PART, PARTS_AT_ONCE};
use super::{Progress, PullEvent, PullImageError, blocking};
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
/// queues, buffers that go round. What a decoder looks back at comes on top.
const HELD: u64 = PARTS_AT_ONCE as u64 * PART
    + ((QUEUE + unpack::PIECES_HELD) * PIECE + unpack::BUFFERS_HELD) as u64;
const _: () = assert!(HELD <= 64 << 20, "SPECIFICATION.md says so");

pub(super) struct LayerOutcome {
    pub diff_id: Digest,
    pub report: LayerReport,
    /// `None` when it was there already.
    pub fetched: Option<Fetched>,
}

pub(super) struct Fetched {
    pub bytes: ByteCount,
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

/// Makes sure that a layer is on the disk.
pub(super) async fn fetch_layer(
    store: &Arc<Inner>,
    fetcher: &Fetcher<'_>,
    layer: LayerIdentity,
    progress: Progress<'_>,
) -> Result<LayerOutcome, PullImageError> {
    let LayerIdentity { blob, diff_id, .. } = layer;
    let store_error = |source| PullImageError::Store { digest: blob, source };
    let flight = store.flight(&diff_id);
    let _alone = flight.lock().await;
    if store.has_layer(&diff_id) {
        progress(PullEvent::LayerReused { blob });
        let report = store.read_layer_report(store.form(), &diff_id).map_err(store_error)?;
        return Ok(LayerOutcome { diff_id, report, fetched: None });
    }
    let (sender, pieces) = queue();
    let worker = {
        let store = Arc::clone(store);
        blocking(move || unpack_and_commit(&store, &layer, pieces))
    };
    // The worker's future only watches the thread; joined, so that either side's end ends both.
    let (sent, worked) = tokio::join!(send(fetcher, layer, sender, progress), worker);
    match (sent, worked?) {
        (Err(source), Err(WorkError::Unpack(UnpackError::Abandoned))) => {
            Err(PullImageError::FetchLayer { blob, source })
        }
        (_, Err(WorkError::Unpack(source))) => Err(PullImageError::UnpackLayer { blob, source }),
        (_, Err(WorkError::Store(source))) => Err(store_error(source)),
        (_, Ok((report, waiting, working))) => {
            progress(PullEvent::LayerDone { blob, unpacked: report.unpacked });
            let fetched = Fetched { bytes: layer.size, waiting, working };
            Ok(LayerOutcome { diff_id, report, fetched: Some(fetched) })
        }
    }
}

/// The task's end of the queue.
struct Sender {
    pieces: mpsc::Sender<Piece>,
    /// Comes to an end when no more is wanted.
    unwanted: oneshot::Receiver<()>,
}

fn queue() -> (Sender, Pieces) {
    let (pieces, receiver) = mpsc::channel(QUEUE);
    let (lifeline, unwanted) = oneshot::channel();
    let waited = Duration::ZERO;
    let sender = Sender { pieces, unwanted };
    (sender, Pieces { receiver, lifeline: Some(lifeline), is_at_end: false, waited })
}

/// Hands a blob's bytes to the worker, until the end or until it does not want more. When it does not,
/// it has its own error to tell.
async fn send(
    fetcher: &Fetcher<'_>,
    layer: LayerIdentity,
    mut sender: Sender,
    progress: Progress<'_>,
) -> Result<(), SourceError> {
    let mut blob = fetcher.blob(layer.blob, layer.size);
    let mut n_fetched = 0;
    loop {
        let piece = tokio::select! {
            // Cancelling `next` is fine here: nothing is asked of the blob after it.
            piece = blob.next() => piece?,
            _ = &mut sender.unwanted => return Ok(()),
        };
        let Some(mut piece) = piece else { break };
        while !piece.is_empty() {
            let part = piece.split_to(piece.len().min(PIECE));
            n_fetched += part.len() as u64;
            if sender.pieces.send(Piece::Bytes(part)).await.is_err() {
                return Ok(());
            }
        }
        progress(PullEvent::LayerProgress {
            blob: layer.blob,
            fetched: ByteCount(n_fetched),
            total: layer.size,
        });
    }
    let _ = sender.pieces.send(Piece::End).await;
    Ok(())
}

fn unpack_and_commit(
    store: &Arc<Inner>,
    layer: &LayerIdentity,
    mut pieces: Pieces,
) -> Result<(LayerReport, Duration, Duration), WorkError> {
    let started = Instant::now();
    let staging = Staging::new(store).map_err(WorkError::Store)?;
    let target = store.layer_path(store.form(), &layer.diff_id);
    let report = match store.form() {
        Form::Directories => {
            let root = staging.create_directory("fs").map_err(WorkError::Store)?;
            let report = unpack::unpack(&mut pieces, layer, root, &store.limits)
                .map_err(WorkError::Unpack)?;
            staging.write(REPORT, &report_text(&report)).map_err(WorkError::Store)?;
            staging.commit(&target).map_err(WorkError::Store)?;
            report
        }
        Form::Erofs => {
            let data = staging.create_file(DATA).map_err(WorkError::Store)?;
            let (report, tree) = unpack::index(&mut pieces, layer, data, &store.limits)
                .map_err(WorkError::Unpack)?;
            staging.write(INDEX, &index::encode(&tree)).map_err(WorkError::Store)?;
            staging.write(REPORT, &report_text(&report)).map_err(WorkError::Store)?;
            staging.commit_synced(&target).map_err(WorkError::Store)?;
            report
        }
    };
    let working = started.elapsed().saturating_sub(pieces.waited);
    Ok((report, pieces.waited, working))
}

/// The threads' end of the queue.
struct Pieces {
    receiver: mpsc::Receiver<Piece>,
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
            Some(Piece::Bytes(bytes)) => Ok(Some(bytes)),
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
