//! Cuts the contents of a layer's files into frames.

use std::io;
use std::sync::mpsc;

use super::frame::FRAME;
use super::table::{Frame, Stored};
use crate::unpack::Sink;

/// The level that decodes as fast as any and costs a quarter of what would save 3 % more.
const LEVEL: i32 = 3;

/// A frame that zstd makes no smaller than so many hundredths is stored as it is: weights, archives.
const WORTHWHILE: usize = 97;

/// All frames, and what they were written to.
pub(super) struct Cut<W> {
    pub out: W,
    pub frames: Vec<Frame>,
}

pub(super) struct Cutter<W> {
    /// `None` once it was given back.
    out: Option<W>,
    done: mpsc::Sender<Cut<W>>,
    compressor: zstd::bulk::Compressor<'static>,
    /// The frame under way, and room for what it is compressed to.
    frame: Vec<u8>,
    compressed: Vec<u8>,
    frames: Vec<Frame>,
}

impl<W: io::Write> Cutter<W> {
    /// Gives `out` back through `done` at the end.
    pub fn new(out: W, done: mpsc::Sender<Cut<W>>) -> io::Result<Self> {
        Ok(Self {
            out: Some(out),
            done,
            compressor: zstd::bulk::Compressor::new(LEVEL)?,
            frame: Vec::with_capacity(FRAME),
            compressed: Vec::with_capacity(zstd::zstd_safe::compress_bound(FRAME)),
            frames: Vec::new(),
        })
    }

    fn position(&self) -> u64 {
        (self.frames.len() * FRAME + self.frame.len()) as u64
    }

    /// Zeros up to a position; where those are whole frames, they are not even looked at.
    fn skip_to(&mut self, position: u64) -> io::Result<()> {
        while let Some(n_left) = position.checked_sub(self.position()).filter(|left| *left > 0) {
            if self.frame.is_empty() && n_left >= FRAME as u64 {
                self.frames.push(Frame::ZEROS);
                continue;
            }
            let n_zeros = usize::try_from(n_left).unwrap_or(FRAME).min(FRAME - self.frame.len());
            self.frame.resize(self.frame.len() + n_zeros, 0);
            self.cut_if_full()?;
        }
        Ok(())
    }

    fn cut_if_full(&mut self) -> io::Result<()> {
        if self.frame.len() == FRAME { self.cut() } else { Ok(()) }
    }

    fn cut(&mut self) -> io::Result<()> {
        if self.frame.iter().all(|&byte| byte == 0) {
            self.frames.push(Frame::ZEROS);
            self.frame.clear();
            return Ok(());
        }
        self.compressed.clear();
        let n_bytes = self.compressor.compress_to_buffer(&self.frame, &mut self.compressed)?;
        let is_worthwhile = n_bytes * 100 < self.frame.len() * WORTHWHILE;
        let (stored, bytes) = match is_worthwhile {
            true => (Stored::Zstd(n_bytes as u32), &self.compressed),
            false => (Stored::Raw, &self.frame),
        };
        let out = self.out.as_mut().expect("nothing is written behind the end");
        out.write_all(bytes)?;
        self.frames.push(Frame { stored, digest: *blake3::hash(&self.frame).as_bytes() });
        self.frame.clear();
        Ok(())
    }
}

impl<W: io::Write + Send> Sink for Cutter<W> {
    fn write(&mut self, mut bytes: &[u8], start: u64) -> io::Result<()> {
        self.skip_to(start)?;
        while !bytes.is_empty() {
            let (fitting, rest) = bytes.split_at(bytes.len().min(FRAME - self.frame.len()));
            self.frame.extend_from_slice(fitting);
            bytes = rest;
            self.cut_if_full()?;
        }
        Ok(())
    }

    fn finish(&mut self, end: u64) -> io::Result<()> {
        self.skip_to(end)?;
        if !self.frame.is_empty() {
            self.cut()?;
        }
        let mut out = self.out.take().expect("it is finished once");
        out.flush()?;
        let frames = std::mem::take(&mut self.frames);
        // Nobody waits for it when reading the archive failed.
        let _ = self.done.send(Cut { out, frames });
        Ok(())
    }
}
