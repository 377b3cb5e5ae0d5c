//! The readers at both ends of a decoder: sizes and limits on the way, and copies for the digests.

use std::io::{self, BufRead, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use bytes::{Buf as _, Bytes, BytesMut};
use longshore_types::ByteCount;

use super::UnpackError;
use super::pool::Lent;
use crate::limits::LimitExceeded;
use crate::tar::TarError;

/// The first piece that a decoder sees is at least this long, when the blob is: enough to tell how it
/// is compressed.
const FIRST_PIECE: usize = 16;

/// Bytes of a piece of a blob that lies in memory.
const PIECE_OF_SLICE: usize = 64 << 10;

/// The bytes of a blob as they come, in pieces that several threads can look at.
pub trait Blob: Send {
    /// The next piece, never empty, or `None` at the end. Waits for it.
    fn next(&mut self) -> io::Result<Option<Bytes>>;

    /// Whether `next` would not wait.
    fn is_ready(&self) -> bool;

    /// What the blob goes on for: once it is dropped, a `next` fails that waits on another thread.
    fn lifeline(&mut self) -> Box<dyn Send>;
}

impl Blob for &[u8] {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        let (piece, rest) = self.split_at(self.len().min(PIECE_OF_SLICE));
        *self = rest;
        Ok((!piece.is_empty()).then(|| Bytes::copy_from_slice(piece)))
    }

    fn is_ready(&self) -> bool {
        true
    }

    fn lifeline(&mut self) -> Box<dyn Send> {
        Box::new(())
    }
}

impl<B: Blob> Blob for &mut B {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        (**self).next()
    }

    fn is_ready(&self) -> bool {
        (**self).is_ready()
    }

    fn lifeline(&mut self) -> Box<dyn Send> {
        (**self).lifeline()
    }
}

/// Inside an `io::Error`: whoever feeds the reader stopped before the end.
#[derive(Debug, thiserror::Error)]
#[error("the sender of the bytes is gone")]
pub(crate) struct Abandoned;

/// What our own readers refuse, carried inside an `io::Error` through the decoders between them.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadFault {
    #[error("the blob is longer than the manifest says")]
    BlobTooLong { expected: ByteCount },
    #[error("the layer asks for too much")]
    Limit(#[source] LimitExceeded),
}

/// Finds the error of ours in what the archive's reader gave.
pub(super) fn classify(error: TarError) -> UnpackError {
    let error = match error {
        TarError::Read(error) => error,
        TarError::Limit(limit) => return UnpackError::Limit(limit),
        other => return UnpackError::Archive(other),
    };
    classify_read(error)
}

pub(super) fn classify_read(error: io::Error) -> UnpackError {
    let inner = error.get_ref();
    if inner.is_some_and(|inner| inner.is::<Abandoned>()) {
        return UnpackError::Abandoned;
    }
    match inner.and_then(|inner| inner.downcast_ref::<ReadFault>()) {
        Some(ReadFault::BlobTooLong { expected }) => {
            UnpackError::BlobSize { expected: *expected, found: ByteCount(expected.0 + 1) }
        }
        Some(ReadFault::Limit(limit)) => UnpackError::Limit(limit.clone()),
        None => UnpackError::Decompress(error),
    }
}

/// The blob as a reader, never longer than it should be. What passes goes to its digest as well.
pub(super) struct BlobReader<'a, B> {
    source: B,
    digest: mpsc::SyncSender<Bytes>,
    /// Set when nobody wants the rest.
    given_up: &'a AtomicBool,
    expected: ByteCount,
    n_bytes: u64,
    current: Bytes,
    is_at_end: bool,
}

impl<'a, B: Blob> BlobReader<'a, B> {
    pub fn new(
        source: B,
        digest: mpsc::SyncSender<Bytes>,
        given_up: &'a AtomicBool,
        expected: ByteCount,
    ) -> Self {
        let current = Bytes::new();
        Self { source, digest, given_up, expected, n_bytes: 0, current, is_at_end: false }
    }

    /// Bytes that came so far.
    pub fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    /// Whether the next byte has to be waited for.
    pub fn is_dry(&self) -> bool {
        self.current.is_empty() && !self.is_at_end && !self.source.is_ready()
    }

    /// Reads what is left, for its size and digest; gives the size.
    pub fn drain(mut self) -> io::Result<ByteCount> {
        while !self.fill_buf()?.is_empty() {
            self.current.clear();
        }
        Ok(ByteCount(self.n_bytes))
    }

    fn receive(&mut self) -> io::Result<Bytes> {
        if self.given_up.load(Ordering::Relaxed) {
            return Err(io::Error::other(Abandoned));
        }
        if self.n_bytes > self.expected.0 {
            return Err(self.too_long());
        }
        let Some(piece) = self.source.next()? else {
            self.is_at_end = true;
            return Ok(Bytes::new());
        };
        self.n_bytes += piece.len() as u64;
        if self.n_bytes > self.expected.0 {
            return Err(self.too_long());
        }
        // Its thread ends after this one, unless it panicked; then that is what is told.
        let _ = self.digest.send(piece.clone());
        Ok(piece)
    }

    fn receive_first(&mut self) -> io::Result<Bytes> {
        let mut first = self.receive()?;
        while first.len() < FIRST_PIECE && !self.is_at_end {
            let mut longer = BytesMut::from(first);
            longer.extend_from_slice(&self.receive()?);
            first = longer.freeze();
        }
        Ok(first)
    }

    fn too_long(&self) -> io::Error {
        io::Error::other(ReadFault::BlobTooLong { expected: self.expected })
    }
}

impl<B: Blob> BufRead for BlobReader<'_, B> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.current.is_empty() && !self.is_at_end {
            self.current = match self.n_bytes {
                0 => self.receive_first()?,
                _ => self.receive()?,
            };
        }
        Ok(&self.current)
    }

    fn consume(&mut self, n_bytes: usize) {
        self.current.advance(n_bytes);
    }
}

impl<B: Blob> Read for BlobReader<'_, B> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let n_bytes = available.len().min(buffer.len());
        buffer[..n_bytes].copy_from_slice(&available[..n_bytes]);
        self.consume(n_bytes);
        Ok(n_bytes)
    }
}

/// Bytes of an archive that two threads look at.
pub(super) struct PlainPiece {
    pub buffer: Lent<Vec<u8>>,
    /// How much of the buffer they fill.
    pub length: usize,
}

impl PlainPiece {
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

/// The archive as the decoder gives it.
pub(super) struct PlainReader {
    pieces: mpsc::Receiver<io::Result<Arc<PlainPiece>>>,
    current: Option<Arc<PlainPiece>>,
    /// Bytes of the current piece that were read.
    n_read: usize,
}

impl PlainReader {
    pub fn new(pieces: mpsc::Receiver<io::Result<Arc<PlainPiece>>>) -> Self {
        Self { pieces, current: None, n_read: 0 }
    }
}

impl Read for PlainReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let piece = match &self.current {
            Some(piece) => piece,
            None => match self.pieces.recv() {
                Ok(piece) => {
                    self.n_read = 0;
                    self.current.insert(piece?)
                }
                // The decoder came to the end; had it panicked, its joining would tell.
                Err(mpsc::RecvError) => return Ok(0),
            },
        };
        let left = &piece.bytes()[self.n_read..];
        let n_bytes = left.len().min(buffer.len());
        buffer[..n_bytes].copy_from_slice(&left[..n_bytes]);
        self.n_read += n_bytes;
        if n_bytes == left.len() {
            self.current = None; // Back to the pool.
        }
        Ok(n_bytes)
    }
}
