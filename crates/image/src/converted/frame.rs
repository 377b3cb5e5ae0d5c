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

    /// What is in a frame: what is stored of it, if that is it, or else `room`, which is as long as the frame.
    pub fn read<'a>(
        &mut self,
        frame: &Frame,
        stored: &'a [u8],
        room: &'a mut [u8],
    ) -> Result<&'a [u8], FrameProblem> {
        let bytes = match frame.stored {
            Stored::Zeros => {
                room.fill(0);
                return Ok(room);
            }
            Stored::Raw if stored.len() == room.len() => stored,
            Stored::Raw => return Err(FrameProblem::Digest),
            Stored::Zstd(_) => {
                // It never writes behind the end of what it is given.
                let read = self.decompressor.decompress_to_buffer(stored, room);
                let n_bytes = read.map_err(FrameProblem::Decompress)?;
                if n_bytes != room.len() {
                    return Err(FrameProblem::Digest);
                }
                room
            }
        };
        match frame.is(bytes) {
            true => Ok(bytes),
            false => Err(FrameProblem::Digest),
        }
    }
}
