//! The readers between a blob and its archive: digests, sizes and limits on the way.

use std::cell::Cell;
use std::io::{self, BufRead, Read};
use std::rc::Rc;

use longshore_types::{ByteCount, Digest};
use sha2::{Digest as _, Sha256};

use super::{LayerIdentity, UnpackError};
use crate::limits::{LimitExceeded, Limits};
use crate::tar::TarError;

/// Inside an `io::Error`: whoever feeds the reader stopped before the end.
#[derive(Debug, thiserror::Error)]
#[error("the sender of the bytes is gone")]
pub(crate) struct Abandoned;

/// What our own readers refuse, carried inside an `io::Error` through the decoders between them.
#[derive(Debug, thiserror::Error)]
enum ReadFault {
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

fn classify_read(error: io::Error) -> UnpackError {
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

/// The blob, hashed as it passes, and never longer than it should be.
pub(super) struct BlobReader<B> {
    source: B,
    hasher: Sha256,
    expected: ByteCount,
    /// Bytes seen; shared with the reader that compares it with what they decompress to.
    n_bytes: Rc<Cell<u64>>,
    /// Bytes at the front of the source's buffer that are hashed and not yet consumed.
    n_hashed_ahead: usize,
}

impl<B: BufRead> BlobReader<B> {
    pub fn new(source: B, expected: ByteCount) -> Self {
        Self { source, hasher: Sha256::new(), expected, n_bytes: Rc::default(), n_hashed_ahead: 0 }
    }

    pub fn counter(&self) -> Rc<Cell<u64>> {
        Rc::clone(&self.n_bytes)
    }

    /// Reads what is left and compares size and digest.
    pub fn check(mut self, identity: &LayerIdentity) -> Result<(), UnpackError> {
        loop {
            let n_bytes = self.fill_buf().map_err(classify_read)?.len();
            if n_bytes == 0 {
                break;
            }
            self.consume(n_bytes);
        }
        let found = ByteCount(self.n_bytes.get());
        if found != identity.size {
            let expected = identity.size;
            return Err(UnpackError::BlobSize { expected, found });
        }
        let found = Digest::from_sha256(self.hasher.finalize().into());
        if found != identity.blob {
            let expected = identity.blob;
            return Err(UnpackError::BlobDigest { expected, found });
        }
        Ok(())
    }
}

impl<B: BufRead> BufRead for BlobReader<B> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let buffer = self.source.fill_buf()?;
        if self.n_hashed_ahead == 0 {
            self.hasher.update(buffer);
            self.n_hashed_ahead = buffer.len();
            self.n_bytes.set(self.n_bytes.get() + buffer.len() as u64);
            if self.n_bytes.get() > self.expected.0 {
                let expected = self.expected;
                return Err(io::Error::other(ReadFault::BlobTooLong { expected }));
            }
        }
        // A source may show more when it is asked again; only what was hashed is passed on.
        Ok(&buffer[..self.n_hashed_ahead])
    }

    fn consume(&mut self, n_bytes: usize) {
        self.n_hashed_ahead -= n_bytes;
        self.source.consume(n_bytes);
    }
}

impl<B: BufRead> Read for BlobReader<B> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let n_bytes = available.len().min(buffer.len());
        buffer[..n_bytes].copy_from_slice(&available[..n_bytes]);
        self.consume(n_bytes);
        Ok(n_bytes)
    }
}

/// The uncompressed archive, hashed as it passes, and never longer than the limits allow.
pub(super) struct PlainReader<D> {
    decoder: D,
    hasher: Sha256,
    n_bytes: u64,
    n_compressed: Rc<Cell<u64>>,
    limits: Limits,
}

impl<D: Read> PlainReader<D> {
    pub fn new(decoder: D, n_compressed: Rc<Cell<u64>>, limits: &Limits) -> Self {
        Self { decoder, hasher: Sha256::new(), n_bytes: 0, n_compressed, limits: limits.clone() }
    }

    /// The decoder, and digest and length of what passed.
    pub fn finish(self) -> (D, Digest, ByteCount) {
        let digest = Digest::from_sha256(self.hasher.finalize().into());
        (self.decoder, digest, ByteCount(self.n_bytes))
    }

    fn check_limits(&self) -> Result<(), LimitExceeded> {
        let limits = &self.limits;
        LimitExceeded::check("bytes", self.n_bytes, limits.layer_bytes.0)?;
        if self.n_bytes > limits.ratio_from.0 {
            let ratio = self.n_bytes / self.n_compressed.get().max(1);
            LimitExceeded::check("bytes from each compressed byte", ratio, limits.ratio)?;
        }
        Ok(())
    }
}

impl<D: Read> Read for PlainReader<D> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n_bytes = self.decoder.read(buffer)?;
        self.hasher.update(&buffer[..n_bytes]);
        self.n_bytes += n_bytes as u64;
        self.check_limits().map_err(|limit| io::Error::other(ReadFault::Limit(limit)))?;
        Ok(n_bytes)
    }
}
