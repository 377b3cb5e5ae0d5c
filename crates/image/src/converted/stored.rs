//! Whether what is stored of a layer is what it should be: the frames by their table, and the table by what the
//! layer becomes when it is converted again.
//!
//! Of parts whose digests are right: bytes that a disk changed are found by those. What is found here is a mistake
//! of whoever made the parts, or of the memory in which they were.
//!
//! Frames are decoded rather than compared as they are stored, which another version of zstd may do otherwise.

use std::io;

use longshore_types::{ByteCount, Digest};

use super::frame::FrameReader;
use super::table::Table;
use crate::manifest::Descriptor;

/// What is wrong with the parts of a layer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    /// Frames that end elsewhere than the table says.
    #[error("its frames have {} bytes, and by their table {}", found.0, expected.0)]
    Length {
        /// By the table.
        expected: ByteCount,
        /// That there are.
        found: ByteCount,
    },
    /// A frame that cannot be decoded, or decodes to something else.
    #[error("its frame {0} is stored as something else than its table says")]
    Stored(usize),
    /// The parts of another layer.
    #[error("it is of the layer {kept}, not of {derived}")]
    DiffId {
        /// By the table.
        kept: Digest,
        /// That it should be.
        derived: Digest,
    },
    /// Another tree.
    #[error(
        "its index is {} of {} bytes, and becomes {} of {}",
        kept.digest, kept.size.0, derived.digest, derived.size.0
    )]
    Index {
        /// By the table.
        kept: Descriptor,
        /// What it becomes.
        derived: Descriptor,
    },
    /// More or fewer contents.
    #[error("it has {} bytes of contents, and becomes {}", kept.0, derived.0)]
    Contents {
        /// By the table.
        kept: ByteCount,
        /// What it becomes.
        derived: ByteCount,
    },
    /// Other contents.
    #[error("the BLAKE3 of its frame {idx} is {kept}, and becomes {derived}")]
    Frame {
        /// Which frame; the first of them.
        idx: usize,
        /// By the table, in hexadecimal digits.
        kept: String,
        /// What it becomes.
        derived: String,
    },
    /// Other numbers of entries, whiteouts and the like.
    #[error("what reading its archive told is something else")]
    Report,
}

impl Table {
    /// How it differs from the table of the same layer that was converted again, however either is compressed;
    /// not at all when it is right.
    pub fn difference(&self, derived: &Self) -> Option<Difference> {
        let Self { diff_id, index, data, report, frames } = self;
        if *diff_id != derived.diff_id {
            return Some(Difference::DiffId { kept: *diff_id, derived: derived.diff_id });
        }
        if *index != derived.index {
            return Some(Difference::Index { kept: *index, derived: derived.index });
        }
        if *data != derived.data || frames.len() != derived.frames.len() {
            return Some(Difference::Contents { kept: *data, derived: derived.data });
        }
        let mut pairs = frames.iter().zip(&derived.frames).enumerate();
        if let Some((idx, (kept, derived))) = pairs.find(|(_, (a, b))| a.digest != b.digest) {
            let hex = |digest: [u8; 32]| blake3::Hash::from_bytes(digest).to_hex().to_string();
            let (kept, derived) = (hex(kept.digest), hex(derived.digest));
            return Some(Difference::Frame { idx, kept, derived });
        }
        (*report != derived.report).then_some(Difference::Report)
    }
}

/// Frames as they come, one behind the other in pieces of any length, held against their table.
pub struct StoredFrames<'a> {
    table: &'a Table,
    reader: FrameReader,
    /// The frame that comes, and what of it has come.
    idx: usize,
    stored: Vec<u8>,
    /// Room for what it decodes to.
    bytes: Vec<u8>,
    n_found: u64,
    /// The first that is something else.
    wrong: Option<usize>,
}

impl<'a> StoredFrames<'a> {
    /// Nothing has come yet.
    pub fn new(table: &'a Table) -> io::Result<Self> {
        let (reader, wrong) = (FrameReader::new()?, None);
        let (stored, bytes) = (Vec::new(), Vec::new());
        Ok(Self { table, reader, idx: 0, stored, bytes, n_found: 0, wrong })
    }

    /// Takes the next bytes.
    pub fn take(&mut self, mut piece: &[u8]) {
        self.n_found += piece.len() as u64;
        // What comes behind the last one, or behind a wrong one, is counted and no more.
        while let (None, Some(frame)) = (self.wrong, self.table.frames.get(self.idx)) {
            let n_missing = self.table.stored_bytes(self.idx) - self.stored.len() as u64;
            let n_here = usize::try_from(n_missing).unwrap_or(usize::MAX).min(piece.len());
            let (now, later) = piece.split_at(n_here);
            self.stored.extend_from_slice(now);
            piece = later;
            if (n_here as u64) < n_missing {
                return;
            }
            self.bytes.resize(self.table.frame_bytes(self.idx), 0);
            if self.reader.read(frame, &self.stored, &mut self.bytes).is_err() {
                self.wrong = Some(self.idx);
            }
            self.stored.clear();
            self.idx += 1;
        }
    }

    /// What is wrong with all that came, if anything is.
    pub fn finish(self) -> Option<Difference> {
        if let Some(idx) = self.wrong {
            return Some(Difference::Stored(idx));
        }
        let (expected, found) = (self.table.stored(), ByteCount(self.n_found));
        (expected != found).then_some(Difference::Length { expected, found })
    }
}
