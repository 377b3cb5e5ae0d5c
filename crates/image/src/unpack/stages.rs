//! The threads that a layer goes through, each as fast as its own work allows:
//!
//! ```text
//! blob ──> decoder ──> reader of the archive, the caller's thread ──> writer (see `data`)
//!     └──> digest  └──> DiffID
//! ```
//!
//! Between them are queues with bounds. A reader that wants no more ends the decoder; the rest of the
//! blob is read then for its digest alone, unless nobody wants to know that either.

use std::io::{self, Read as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, Scope, ScopedJoinHandle};

use bytes::Bytes;
use longshore_types::{ByteCount, Digest};
use sha2::{Digest as _, Sha256};

use super::UnpackError;
use super::pool::{Lent, Pool};
use super::stream::{Blob, BlobReader, PlainPiece, PlainReader, ReadFault, classify_read};
use crate::compression::Decoder;
use crate::limits::{LimitExceeded, Limits};

/// Bytes of an archive that go from thread to thread at once: few enough to stay in a processor's cache.
pub(super) const PLAIN_BUFFER: usize = 256 << 10;

/// How many such there are, which is how far the decoder is ahead of the slower of its readers.
pub(super) const PLAIN_BUFFERS: usize = 16;

/// Pieces of the blob that wait for their digest.
pub(super) const DIGEST_QUEUE: usize = 16;

/// What came through the stages, to be compared with what should have.
pub(super) struct Passed {
    pub blob: Digest,
    pub size: ByteCount,
    pub diff_id: Digest,
    pub unpacked: ByteCount,
}

/// Gives `read` the archive in a blob that should be so long, and what it made of it together with
/// what passed.
///
/// The outer error is that the blob did not come to its end, or that nothing was to be known of it
/// any more: a limit, a disk or a source that gave up.
pub(super) fn pass<T>(
    mut blob: impl Blob,
    size: ByteCount,
    limits: &Limits,
    read: impl FnOnce(PlainReader) -> Result<T, UnpackError>,
) -> Result<(Result<T, UnpackError>, Passed), UnpackError> {
    let lifeline = blob.lifeline();
    let given_up = AtomicBool::new(false);
    thread::scope(|scope| {
        let (digest, pieces) = mpsc::sync_channel::<Bytes>(DIGEST_QUEUE);
        let blob_digest = spawn(scope, "layer-digest", move || hash(&pieces, |piece| piece))?;
        let (diff_id, pieces) = mpsc::channel::<Arc<PlainPiece>>();
        let diff_id_digest =
            spawn(scope, "layer-diff-id", move || hash(&pieces, |piece| piece.bytes()))?;
        let (reader, pieces) = mpsc::channel();
        let blob = BlobReader::new(blob, digest, &given_up, size);
        let decoder = spawn(scope, "layer-decoder", move || {
            decode(blob, limits, Outlets { diff_id, reader })
        })?;
        let outcome = match read(PlainReader::new(pieces)) {
            Err(
                error
                @ (UnpackError::Limit(_) | UnpackError::Write { .. } | UnpackError::Abandoned),
            ) => {
                given_up.store(true, Ordering::Relaxed);
                drop(lifeline);
                return Err(error);
            }
            outcome => outcome,
        };
        // Whatever else went wrong, when the bytes are not the ones that were asked for, that is why.
        let size = join(decoder).map_err(classify_read)?;
        let (blob, _) = join(blob_digest);
        let (diff_id, unpacked) = join(diff_id_digest);
        Ok((outcome, Passed { blob, size, diff_id, unpacked }))
    })
}

fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>, UnpackError> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn_scoped(scope, work)
        .map_err(UnpackError::Thread)
}

/// The result of a thread; a panic there goes on here.
fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Digest and length of all pieces until their sender ends.
fn hash<P>(pieces: &mpsc::Receiver<P>, bytes: fn(&P) -> &[u8]) -> (Digest, ByteCount) {
    let mut hasher = Sha256::new();
    let mut n_bytes = 0;
    for piece in pieces {
        hasher.update(bytes(&piece));
        n_bytes += bytes(&piece).len() as u64;
    }
    (Digest::from_sha256(hasher.finalize().into()), ByteCount(n_bytes))
}

/// Where an archive goes.
struct Outlets {
    diff_id: mpsc::Sender<Arc<PlainPiece>>,
    /// An error is the last that it gets.
    reader: mpsc::Sender<io::Result<Arc<PlainPiece>>>,
}

/// The reader wants no more.
struct Enough;

impl Outlets {
    fn give(&self, buffer: Lent<Vec<u8>>, length: usize) -> Result<(), Enough> {
        let piece = Arc::new(PlainPiece { buffer, length });
        // Its thread ends after this one, unless it panicked; then that is what is told.
        let _ = self.diff_id.send(Arc::clone(&piece));
        self.reader.send(Ok(piece)).map_err(|_| Enough)
    }
}

/// Decompresses a blob for as long as its archive is wanted, and reads it to its end; gives its size.
fn decode<B: Blob>(
    mut blob: BlobReader<'_, B>,
    limits: &Limits,
    outlets: Outlets,
) -> io::Result<ByteCount> {
    if let Err(error) = decompress(&mut blob, limits, &outlets) {
        // A reader that is gone needs no error.
        let _ = outlets.reader.send(Err(error));
    }
    drop(outlets);
    blob.drain()
}

fn decompress<B: Blob>(
    blob: &mut BlobReader<'_, B>,
    limits: &Limits,
    outlets: &Outlets,
) -> io::Result<()> {
    let mut pool = Pool::new(PLAIN_BUFFERS, || vec![0; PLAIN_BUFFER]);
    let mut decoder = Decoder::open(blob, limits)?;
    let mut n_bytes = 0;
    loop {
        let mut buffer = pool.take();
        let (n_filled, ended) = fill(&mut decoder, &mut buffer);
        n_bytes += n_filled as u64;
        let checked = check_limits(n_bytes, decoder.source().n_bytes(), limits);
        if n_filled > 0 && outlets.give(buffer, n_filled).is_err() {
            return Ok(());
        }
        checked.map_err(|limit| io::Error::other(ReadFault::Limit(limit)))?;
        if let Some(ended) = ended {
            return ended;
        }
    }
}

/// Fills a buffer as far as that takes no waiting for the blob; also says how the archive ended, once
/// it did.
fn fill<B: Blob>(
    decoder: &mut Decoder<&mut BlobReader<'_, B>>,
    buffer: &mut [u8],
) -> (usize, Option<io::Result<()>>) {
    let mut n_filled = 0;
    while n_filled < buffer.len() {
        match decoder.read(&mut buffer[n_filled..]) {
            Ok(0) => return (n_filled, Some(Ok(()))),
            Ok(n_bytes) => n_filled += n_bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (n_filled, Some(Err(error))),
        }
        if decoder.source().is_dry() {
            break;
        }
    }
    (n_filled, None)
}

fn check_limits(n_bytes: u64, n_compressed: u64, limits: &Limits) -> Result<(), LimitExceeded> {
    LimitExceeded::check("bytes", n_bytes, limits.layer_bytes.0)?;
    if n_bytes > limits.ratio_from.0 {
        let ratio = n_bytes / n_compressed.max(1);
        LimitExceeded::check("bytes from each compressed byte", ratio, limits.ratio)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
