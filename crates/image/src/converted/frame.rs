//! One frame: from what is stored of it to its bytes, which are checked before anybody sees them.

use std::io;

use super::table::{Frame, Stored};

/// Bytes of a frame before it is compressed; of the last one, at most. Of 4 MiB they would be 2.5 % fewer
/// in all, and a start that waits for single files would fetch a third more.
pub const FRAME: usize = 1 << 20;

/// What is wrong with a frame.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameProblem {
    #[error("cannot be decompressed")]
    Decompress(#[source] io::Error),
    #[error("does not match")]
    Digest,
}

/// Decodes frames, one after the other.
pub(crate) struct FrameReader {
    decompressor: zstd::bulk::Decompressor<'static>,
}

impl FrameReader {
    pub fn new() -> io::Result<Self> {
        Ok(Self { decompressor: zstd::bulk::Decompressor::new()? })
    }

    /// Fills `bytes`, which are as long as the frame, with what is in it. On an error they mean nothing.
    pub fn read(
        &mut self,
        frame: &Frame,
        stored: &[u8],
        bytes: &mut [u8],
    ) -> Result<(), FrameProblem> {
        match frame.stored {
            Stored::Zeros => {
                bytes.fill(0);
                return Ok(());
            }
            Stored::Raw if stored.len() == bytes.len() => bytes.copy_from_slice(stored),
            Stored::Raw => return Err(FrameProblem::Digest),
            Stored::Zstd(_) => {
                // It never writes behind the end of what it is given.
                let read = self.decompressor.decompress_to_buffer(stored, bytes);
                let n_bytes = read.map_err(FrameProblem::Decompress)?;
                if n_bytes != bytes.len() {
                    return Err(FrameProblem::Digest);
                }
            }
        }
        match frame.is(bytes) {
            true => Ok(()),
            false => Err(FrameProblem::Digest),
        }
    }
}
