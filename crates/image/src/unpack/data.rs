//! The contents of a layer's files, one behind the other in one file, each beginning with a block.
//!
//! Writing is what a pull mostly does, so it is done in few large calls, whatever the sizes of the
//! files. Holes of sparse files stay holes, of this file. What follows the end of a file in its last
//! block is zero, for that is what a program sees there that maps it.
//!
//! The beginning of a layer goes through the page cache, where the first start finds it; most
//! layers are no longer. What follows goes to the disk directly where the file system can do that:
//! of 1.5 GB that took 2 s instead of 14 until it was on the disk, with a tenth of the processor's
//! time, and it drives nothing out of the memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::erofs::BLOCK;

/// Bytes that are written at once; whole blocks.
const BUFFER: usize = 4 << 20;

/// A gap of at least this many bytes becomes a hole; a shorter one is written.
const HOLE: u64 = 64 << 10;

/// Bytes at the beginning that go through the page cache.
const CACHED: u64 = 32 << 20;

pub(super) struct DataFile {
    file: File,
    buffer: Buffer,
    /// Where the first byte of the buffer goes; a whole number of blocks.
    start: u64,
    way: Way,
}

/// How bytes get to the disk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Through the page cache, for now.
    Cached,
    Direct,
    /// Through the page cache, because the file system has no other way.
    AlwaysCached,
}

impl DataFile {
    /// Takes an empty file.
    pub fn new(file: File) -> Self {
        Self { file, buffer: Buffer::new(), start: 0, way: Way::Cached }
    }

    /// Where the next byte goes.
    pub fn position(&self) -> u64 {
        self.start + self.buffer.bytes().len() as u64
    }

    /// Writes bytes at a position that is not before the last one.
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
        self.flush()?;
        self.file.set_len(end)?;
        self.file.sync_data()?;
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
        if self.way == Way::Cached && self.start >= CACHED {
            self.go(Way::Direct)?;
        }
        match self.file.write_all_at(self.buffer.bytes(), self.start) {
            // It has direct writes, but wants them in larger pieces than blocks.
            Err(error)
                if self.way == Way::Direct && error.kind() == io::ErrorKind::InvalidInput =>
            {
                self.go(Way::AlwaysCached)?;
                self.file.write_all_at(self.buffer.bytes(), self.start)?;
            }
            result => result?,
        }
        self.start += self.buffer.bytes().len() as u64;
        self.buffer.length = 0;
        Ok(())
    }

    fn go(&mut self, way: Way) -> io::Result<()> {
        let mut flags = fcntl_getfl(&self.file)?;
        flags.set(OFlags::DIRECT, way == Way::Direct);
        self.way = match fcntl_setfl(&self.file, flags) {
            Ok(()) => way,
            Err(_) if way == Way::Direct => Way::AlwaysCached,
            Err(errno) => return Err(errno.into()),
        };
        Ok(())
    }
}

/// Memory that begins with a page, as direct writes want it.
struct Buffer {
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
    use std::os::unix::fs::MetadataExt as _;

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
