//! The contents of a layer's files, one behind the other in one file, each beginning with a block.
//!
//! Writing is what a pull mostly does, so it is done in few large calls, whatever the sizes of the
//! files, by a thread of its own ([`writer`]). Holes of sparse files stay holes, of this file. What
//! follows the end of a file in its last block is zero, for that is what a program sees there that
//! maps it.

mod writer;

use std::fs::File;
use std::io;

use super::pool::{Lent, Pool};
use crate::erofs::BLOCK;
pub(crate) use writer::{CACHED, Sink};
use writer::{Output, Writer};

/// Bytes that are written at once; whole blocks.
pub(super) const BUFFER: usize = 4 << 20;

/// One that is filled, one that is written, one between them.
pub(super) const BUFFERS: usize = 3;

/// A gap of at least this many bytes becomes a hole; a shorter one is written.
pub(crate) const HOLE: u64 = 64 << 10;

pub(crate) struct DataFile {
    pool: Pool<Buffer>,
    buffer: Lent<Buffer>,
    /// Where the first byte of the buffer goes; a whole number of blocks.
    start: u64,
    writer: Writer,
}

impl DataFile {
    /// Takes an empty file.
    pub fn new(file: File) -> Self {
        Self::from_block(file, 0)
    }

    /// Takes a file of so many bytes, which are whole blocks, to write behind them.
    pub fn from_block(file: File, start: u64) -> Self {
        Self::with(Box::new(Output::new(file)), start)
    }

    /// Takes something else that has nothing yet.
    pub fn into_sink(sink: Box<dyn Sink>) -> Self {
        Self::with(sink, 0)
    }

    fn with(sink: Box<dyn Sink>, start: u64) -> Self {
        let mut pool = Pool::new(BUFFERS, Buffer::new);
        let buffer = pool.take();
        Self { pool, buffer, start, writer: Writer::new(sink) }
    }

    /// Where the next byte goes.
    pub fn position(&self) -> u64 {
        self.start + self.buffer.bytes().len() as u64
    }

    /// Writes bytes at a position that is not before the last one. An error may be that of bytes
    /// written before.
    pub fn write_at(&mut self, position: u64, mut bytes: &[u8]) -> io::Result<()> {
        self.skip_to(position)?;
        while !bytes.is_empty() {
            let taken = self.buffer.room(bytes.len());
            let (fitting, rest) = bytes.split_at(taken.len());
            taken.copy_from_slice(fitting);
            bytes = rest;
            self.flush_if_full()?;
        }
        Ok(())
    }

    /// Leaves zeros up to a position, or a hole.
    pub fn skip_to(&mut self, position: u64) -> io::Result<()> {
        if position.saturating_sub(self.position()) >= HOLE {
            self.align()?;
            self.flush()?;
            self.start = position - position % BLOCK;
        }
        self.pad(position)
    }

    /// Ends the file of the layer that began last; gives where the next one begins.
    pub fn align(&mut self) -> io::Result<u64> {
        self.pad(self.position().next_multiple_of(BLOCK))?;
        Ok(self.position())
    }

    /// Writes what is left and waits until all is on the disk; gives the length.
    pub fn finish(mut self) -> io::Result<u64> {
        let end = self.align()?;
        self.writer.finish(self.buffer, self.start, end)?;
        Ok(end)
    }

    fn pad(&mut self, position: u64) -> io::Result<()> {
        while self.position() < position {
            let n_left = usize::try_from(position - self.position()).unwrap_or(usize::MAX);
            self.buffer.room(n_left).fill(0);
            self.flush_if_full()?;
        }
        Ok(())
    }

    fn flush_if_full(&mut self) -> io::Result<()> {
        if self.buffer.bytes().len() == BUFFER { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.bytes().is_empty() {
            return Ok(());
        }
        let mut next = self.pool.take();
        next.length = 0;
        let full = std::mem::replace(&mut self.buffer, next);
        let start = self.start;
        self.start += full.bytes().len() as u64;
        self.writer.write(full, start)
    }
}

/// Memory that begins with a page, as direct writes want it.
pub(super) struct Buffer {
    memory: Vec<u8>,
    begin: usize,
    length: usize,
}

impl Buffer {
    fn new() -> Self {
        let memory = vec![0; BUFFER + BLOCK as usize];
        let begin = memory.as_ptr().align_offset(BLOCK as usize).min(BLOCK as usize);
        Self { memory, begin, length: 0 }
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.begin..self.begin + self.length]
    }

    /// The next bytes to be filled, of which there are at most so many.
    fn room(&mut self, most: usize) -> &mut [u8] {
        let start = self.begin + self.length;
        let n_bytes = most.min(BUFFER - self.length);
        self.length += n_bytes;
        &mut self.memory[start..start + n_bytes]
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    use super::writer::CACHED;
    use super::*;

    #[test]
    fn what_is_written_is_there_aligned_and_holes_take_no_room() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data");
        let mut data = DataFile::new(File::create(&path).unwrap());
        let mut random = fastrand::Rng::with_seed(3);
        let mut expected = Vec::new();
        // Beyond what is cached, in pieces that meet no boundary.
        while data.position() < CACHED + 3 * BUFFER as u64 {
            let start = data.position();
            assert_eq!(start % BLOCK, 0);
            let bytes = vec![random.u8(1..); random.usize(1..900_000)];
            let (one, two) = bytes.split_at(random.usize(..bytes.len()));
            let gap = random.u64(..2 * HOLE);
            data.write_at(start, one).unwrap();
            data.write_at(start + one.len() as u64 + gap, two).unwrap();
            data.align().unwrap();
            expected.push((start, one.len(), gap as usize, bytes));
        }
        let start = data.position();
        data.write_at(start + (1 << 30) + 5, b"x").unwrap();
        let end = data.finish().unwrap();
        assert_eq!(end, start + (1 << 30) + BLOCK);
        let file = File::open(&path).unwrap();
        assert!(file.metadata().unwrap().blocks() * 512 < 1 << 30);
        for (start, n_one, gap, bytes) in expected {
            let mut read = vec![9; (bytes.len() + gap).next_multiple_of(BLOCK as usize)];
            file.read_exact_at(&mut read, start).unwrap();
            assert_eq!(&read[..n_one], &bytes[..n_one]);
            assert!(read[n_one..n_one + gap].iter().all(|&byte| byte == 0));
            assert_eq!(&read[n_one + gap..bytes.len() + gap], &bytes[n_one..]);
            assert!(read[bytes.len() + gap..].iter().all(|&byte| byte == 0));
        }
        let mut last = [9; 7];
        file.read_exact_at(&mut last, start + (1 << 30)).unwrap();
        assert_eq!(last, *b"\0\0\0\0\0x\0");
    }
}
