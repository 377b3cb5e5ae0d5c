//! One layer of a pull: fetched by a task, unpacked by a thread.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use longshore_types::{ByteCount, Digest};
use tokio::sync::mpsc;

use super::fetch::Fetcher;
use super::{Progress, PullEvent, PullImageError, blocking};
use crate::index;
use crate::source::SourceError;
use crate::store::{DATA, Form, INDEX, Inner, REPORT, Staging, StoreIoError, report_text};
use crate::unpack::{self, Abandoned, LayerIdentity, LayerReport, UnpackError};

/// Pieces of a blob between the task and the thread; a full queue makes the task wait, and by that
/// the source. Pieces are what the network gives, mostly 8 to 64 KiB.
const QUEUE: usize = 64;

/// The first piece that a decoder sees is at least this long, when the blob is: enough to tell how it
/// is compressed.
const FIRST_PIECE: usize = 16;

pub(super) struct LayerOutcome {
    pub diff_id: Digest,
    pub report: LayerReport,
    /// `None` when it was there already.
    pub fetched: Option<Fetched>,
}

pub(super) struct Fetched {
    pub bytes: ByteCount,
    /// Time in which the thread had nothing to do.
    pub waiting: Duration,
    /// The rest of the thread's time.
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
    let (sender, receiver) = mpsc::channel(QUEUE);
    let worker = {
        let store = Arc::clone(store);
        blocking(move || unpack_and_commit(&store, &layer, receiver))
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

/// Hands a blob's bytes to the worker, until the end or until it does not want more.
async fn send(
    fetcher: &Fetcher<'_>,
    layer: LayerIdentity,
    sender: mpsc::Sender<Piece>,
    progress: Progress<'_>,
) -> Result<(), SourceError> {
    let mut blob = fetcher.blob(layer.blob);
    let mut n_fetched = 0;
    loop {
        let piece = tokio::select! {
            // Cancelling `next` is fine here: nothing is asked of the blob after it.
            piece = blob.next() => piece?,
            () = sender.closed() => return Ok(()),
        };
        let Some(piece) = piece else { break };
        n_fetched += piece.len() as u64;
        if sender.send(Piece::Bytes(piece)).await.is_err() {
            return Ok(()); // The worker has its own error to tell.
        }
        progress(PullEvent::LayerProgress {
            blob: layer.blob,
            fetched: ByteCount(n_fetched),
            total: layer.size,
        });
    }
    // When the worker is gone, it has its own error to tell.
    let _ = sender.send(Piece::End).await;
    Ok(())
}

fn unpack_and_commit(
    store: &Arc<Inner>,
    layer: &LayerIdentity,
    receiver: mpsc::Receiver<Piece>,
) -> Result<(LayerReport, Duration, Duration), WorkError> {
    let started = Instant::now();
    let staging = Staging::new(store).map_err(WorkError::Store)?;
    let mut pieces = Pieces::new(receiver);
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

/// The thread's end of the queue as a reader.
struct Pieces {
    receiver: mpsc::Receiver<Piece>,
    current: Bytes,
    at_start: bool,
    at_end: bool,
    waited: Duration,
}

impl Pieces {
    fn new(receiver: mpsc::Receiver<Piece>) -> Self {
        Self {
            receiver,
            current: Bytes::new(),
            at_start: true,
            at_end: false,
            waited: Duration::ZERO,
        }
    }

    fn receive(&mut self) -> io::Result<Bytes> {
        let started = Instant::now();
        let piece = self.receiver.blocking_recv();
        self.waited += started.elapsed();
        match piece {
            Some(Piece::Bytes(bytes)) => Ok(bytes),
            Some(Piece::End) => {
                self.at_end = true;
                Ok(Bytes::new())
            }
            None => Err(io::Error::other(Abandoned)),
        }
    }

    fn first(&mut self) -> io::Result<Bytes> {
        let mut first = BytesMut::new();
        while first.len() < FIRST_PIECE && !self.at_end {
            first.extend_from_slice(&self.receive()?);
        }
        Ok(first.freeze())
    }
}

impl BufRead for Pieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.current.is_empty() && !self.at_end {
            self.current = match std::mem::take(&mut self.at_start) {
                true => self.first()?,
                false => self.receive()?,
            };
        }
        Ok(&self.current)
    }

    fn consume(&mut self, n_bytes: usize) {
        self.current.advance(n_bytes);
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let n_bytes = available.len().min(buffer.len());
        buffer[..n_bytes].copy_from_slice(&available[..n_bytes]);
        self.consume(n_bytes);
        Ok(n_bytes)
    }
}
