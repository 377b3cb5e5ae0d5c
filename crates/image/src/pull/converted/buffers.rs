//! Memory for frames, used again and again: what was never touched costs a virtual machine more than what is
//! written there.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::converted::FRAME;
use crate::erofs::BLOCK;

/// Memory for a frame that begins with a block, as direct writes want it.
pub(super) struct FrameBuffer {
    memory: Vec<u8>,
    begin: usize,
}

impl FrameBuffer {
    pub fn new() -> Self {
        let memory = vec![0; FRAME + BLOCK as usize];
        let begin = memory.as_ptr().align_offset(BLOCK as usize).min(BLOCK as usize);
        Self { memory, begin }
    }

    /// So many bytes of it.
    pub fn bytes(&mut self, n_bytes: usize) -> &mut [u8] {
        &mut self.memory[self.begin..self.begin + n_bytes]
    }
}

type Free = Arc<Mutex<Vec<FrameBuffer>>>;

/// Buffers that come back when what is in them was dropped. They are as many as were in use at a time.
#[derive(Default)]
pub(super) struct Buffers(Free);

impl Buffers {
    /// One for so many bytes, a frame at most.
    pub fn take(&self, n_bytes: usize) -> Filling {
        assert!(n_bytes <= FRAME, "a frame of {n_bytes} bytes");
        let free = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let buffer = Some(free.unwrap_or_else(FrameBuffer::new));
        Filling { buffer, n_filled: 0, n_bytes, home: Arc::clone(&self.0) }
    }
}

/// One that is filled.
pub(super) struct Filling {
    buffer: Option<FrameBuffer>,
    n_filled: usize,
    n_bytes: usize,
    home: Free,
}

impl Filling {
    /// How many bytes are still to come.
    pub fn n_left(&self) -> usize {
        self.n_bytes - self.n_filled
    }

    /// Takes the next bytes, of which no more come than are left.
    pub fn push(&mut self, bytes: &[u8]) {
        let end = self.n_filled + bytes.len();
        let buffer = self.buffer.as_mut().expect("only dropping takes it out");
        buffer.bytes(end)[self.n_filled..].copy_from_slice(bytes);
        self.n_filled = end;
    }

    /// What it was filled with.
    pub fn filled(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Filling {
    fn as_ref(&self) -> &[u8] {
        let FrameBuffer { memory, begin } =
            self.buffer.as_ref().expect("only dropping takes it out");
        &memory[*begin..begin + self.n_filled]
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.home.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_begins_with_a_block_and_comes_back() {
        let buffers = Buffers::default();
        let fill = |byte: u8, n_bytes: usize| {
            let mut filling = buffers.take(n_bytes);
            for _ in 0..3 {
                filling.push(&vec![byte; n_bytes / 3]);
            }
            assert_eq!(filling.n_left(), n_bytes % 3);
            filling.push(&vec![byte; n_bytes % 3]);
            filling.filled()
        };
        let (one, two) = (fill(1, FRAME), fill(2, 1000));
        assert_eq!((one.as_ptr().addr() | two.as_ptr().addr()) % BLOCK as usize, 0);
        assert!(one == vec![1; FRAME] && two == vec![2; 1000]);
        let first = one.as_ptr();
        drop((one.slice(5..), one));
        let three = fill(3, 10);
        assert_eq!(three.as_ptr(), first);
        assert!(two == vec![2; 1000] && three == vec![3; 10]);
        drop((two, three));
        assert_eq!(buffers.0.lock().unwrap().len(), 2);
    }
}
