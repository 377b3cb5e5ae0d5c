//! The file that says what the frames of a layer are.
//!
//! ```text
//! magic, version, DiffID, digest and size of the index, bytes of contents, report, a row for each frame
//! ```
//!
//! It is named by its digest, so it needs no checksum. Frames lie one behind the other, so where one
//! begins follows from those before it: none can overlap another or lie outside. What is read of any
//! bytes is a table whose numbers fit together, or an error.
//!
//! Rejected: offsets, which could lead anywhere; JSON, which for a layer of 100 GiB would take ten
//! megabytes to say what four do.

use longshore_types::{ByteCount, Digest};

use super::frame::FRAME;
use crate::erofs::BLOCK;
use crate::limits::{LimitExceeded, Limits};
use crate::manifest::Descriptor;
use crate::unpack::LayerReport;

const MAGIC: &[u8; 8] = b"LSTABLE\n";
/// Raised when the meaning of a file changes.
const VERSION: u32 = 1;

/// Bytes of what stands before the rows, and of a row.
const HEAD_BYTES: usize = 8 + 4 + 32 + 32 + 8 + 8 + 5 * 8 + 1;
const ROW_BYTES: usize = 1 + 4 + 32;

const ZEROS: u8 = 0;
const RAW: u8 = 1;
const ZSTD: u8 = 2;

/// What the frames of a layer are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Of the layer.
    pub diff_id: Digest,
    /// The file with its tree.
    pub index: Descriptor,
    /// How many bytes of contents there are: whole blocks.
    pub data: ByteCount,
    /// What reading its archive told, without the paths of directories.
    pub report: LayerReport,
    /// In the order of the contents.
    pub frames: Vec<Frame>,
}

/// A piece of the contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// How it is stored.
    pub stored: Stored,
    /// BLAKE3 of its bytes; nothing when they are zeros.
    pub digest: [u8; 32],
}

/// How a frame is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// Nowhere: its bytes are zeros, of a sparse file mostly.
    Zeros,
    /// As it is.
    Raw,
    /// As so many bytes of zstd.
    Zstd(u32),
}

/// Why bytes are not the table of a layer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// They are something else.
    #[error("it is not the table of a layer")]
    Magic,
    /// They were written by a later release.
    #[error("it has the version {0}, this release knows {VERSION}")]
    Version(u32),
    /// They end too early, or do not end.
    #[error("it has {found} bytes and not the {expected} of its frames")]
    Length {
        /// For the contents that it speaks of.
        expected: u64,
        /// That there are.
        found: u64,
    },
    /// The contents are no whole blocks.
    #[error("it speaks of {0} bytes of contents, which are no whole blocks")]
    Contents(u64),
    /// The layer is larger than is allowed.
    #[error("the layer asks for too much")]
    Limit(#[from] LimitExceeded),
    /// A frame can not be as it says.
    #[error("its frame {0} cannot be stored as it says")]
    Frame(usize),
    /// A number that means yes or no is neither.
    #[error("it says neither yes nor no where it has to")]
    Flag,
}

impl Frame {
    /// A frame of zeros.
    pub(crate) const ZEROS: Self = Self { stored: Stored::Zeros, digest: [0; 32] };

    /// Whether these are its bytes.
    pub(crate) fn is(&self, bytes: &[u8]) -> bool {
        match self.stored {
            Stored::Zeros => bytes.iter().all(|&byte| byte == 0),
            Stored::Raw | Stored::Zstd(_) => *blake3::hash(bytes).as_bytes() == self.digest,
        }
    }

    /// Fills `bytes`, which are as long as the frame, with what is said to be in it; whether it is. If not, they
    /// mean nothing.
    pub(crate) fn take(&self, contents: &[u8], bytes: &mut [u8]) -> bool {
        if contents.len() != bytes.len() {
            return false;
        }
        bytes.copy_from_slice(contents);
        self.is(bytes)
    }
}

impl Table {
    /// The bytes by which it is kept.
    pub fn encode(&self) -> Vec<u8> {
        let Self { diff_id, index, data, report, frames } = self;
        let LayerReport {
            entries,
            unpacked,
            whiteouts,
            dropped_devices,
            dropped_xattrs,
            hides_all,
            implicit_directories: _, // An index says so itself.
        } = report;
        let mut out = Vec::with_capacity(HEAD_BYTES + frames.len() * ROW_BYTES);
        out.extend_from_slice(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend_from_slice(diff_id.as_bytes());
        out.extend_from_slice(index.digest.as_bytes());
        out.extend(index.size.0.to_le_bytes());
        out.extend(data.0.to_le_bytes());
        for number in [*entries, unpacked.0, *whiteouts, *dropped_devices, *dropped_xattrs] {
            out.extend(number.to_le_bytes());
        }
        out.push(u8::from(*hides_all));
        for Frame { stored, digest } in frames {
            let (kind, n_bytes) = match stored {
                Stored::Zeros => (ZEROS, 0),
                Stored::Raw => (RAW, 0),
                Stored::Zstd(n_bytes) => (ZSTD, *n_bytes),
            };
            out.push(kind);
            out.extend(n_bytes.to_le_bytes());
            out.extend_from_slice(digest);
        }
        out
    }

    /// Reads a table of a layer that the limits allow.
    pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Self, TableError> {
        if !bytes.starts_with(MAGIC) {
            return Err(TableError::Magic);
        }
        let found = bytes.len() as u64;
        let short = TableError::Length { expected: HEAD_BYTES as u64, found };
        let mut rest = Rest(&bytes[MAGIC.len()..]);
        match u32::from_le_bytes(rest.take().ok_or(short.clone())?) {
            VERSION => {}
            other => return Err(TableError::Version(other)),
        }
        let head = Head::read(&mut rest).ok_or(short)?;
        let (data, hides_all) = (head.data, head.hides_all);
        LimitExceeded::check("bytes of contents", data, most_data(limits))?;
        LimitExceeded::check("bytes in the index", head.index.size.0, limits.index_bytes.0)?;
        if !data.is_multiple_of(BLOCK) {
            return Err(TableError::Contents(data));
        }
        if hides_all > 1 {
            return Err(TableError::Flag);
        }
        let n_frames = data.div_ceil(FRAME as u64);
        let expected = HEAD_BYTES as u64 + n_frames * ROW_BYTES as u64;
        if expected != found {
            return Err(TableError::Length { expected, found });
        }
        let [entries, unpacked, whiteouts, dropped_devices, dropped_xattrs] = head.numbers;
        let report = LayerReport {
            entries,
            unpacked: ByteCount(unpacked),
            whiteouts,
            dropped_devices,
            dropped_xattrs,
            hides_all: hides_all == 1,
            implicit_directories: Vec::new(),
        };
        let mut table = Self {
            diff_id: head.diff_id,
            index: head.index,
            data: ByteCount(data),
            report,
            frames: Vec::with_capacity(n_frames as usize),
        };
        for idx in 0..n_frames as usize {
            let frame = read_frame(&mut rest, table.frame_bytes(idx));
            table.frames.push(frame.ok_or(TableError::Frame(idx))?);
        }
        Ok(table)
    }

    /// How many bytes of the contents a frame has.
    pub(crate) fn frame_bytes(&self, idx: usize) -> usize {
        let from = idx as u64 * FRAME as u64;
        self.data.0.saturating_sub(from).min(FRAME as u64) as usize
    }

    /// How many bytes are stored of a frame.
    pub(crate) fn stored_bytes(&self, idx: usize) -> u64 {
        match self.frames[idx].stored {
            Stored::Zeros => 0,
            Stored::Raw => self.frame_bytes(idx) as u64,
            Stored::Zstd(n_bytes) => u64::from(n_bytes),
        }
    }

    /// How many bytes are stored of all of them.
    pub fn stored(&self) -> ByteCount {
        ByteCount((0..self.frames.len()).map(|idx| self.stored_bytes(idx)).sum())
    }
}

/// The most bytes of contents that a layer can have: each file ends with its block.
fn most_data(limits: &Limits) -> u64 {
    limits.layer_bytes.0.saturating_add(limits.entries.saturating_mul(BLOCK))
}

/// The longest table that the limits allow, in bytes.
pub(crate) fn most_bytes(limits: &Limits) -> u64 {
    let n_frames = most_data(limits).div_ceil(FRAME as u64);
    n_frames.saturating_mul(ROW_BYTES as u64).saturating_add(HEAD_BYTES as u64)
}

/// What stands before the rows.
struct Head {
    diff_id: Digest,
    index: Descriptor,
    data: u64,
    numbers: [u64; 5],
    hides_all: u8,
}

impl Head {
    /// `None` when it ends too early.
    fn read(rest: &mut Rest<'_>) -> Option<Self> {
        let diff_id = Digest::from_sha256(rest.take()?);
        let digest = Digest::from_sha256(rest.take()?);
        let index = Descriptor { digest, size: ByteCount(rest.number()?) };
        let data = rest.number()?;
        let mut numbers = [0; 5];
        for number in &mut numbers {
            *number = rest.number()?;
        }
        let [hides_all] = rest.take()?;
        Some(Self { diff_id, index, data, numbers, hides_all })
    }
}

/// The next row, for a frame of so many bytes; `None` when it cannot be.
fn read_frame(rest: &mut Rest<'_>, frame_bytes: usize) -> Option<Frame> {
    let [kind] = rest.take()?;
    let n_bytes = u32::from_le_bytes(rest.take()?);
    let digest = rest.take()?;
    let stored = match (kind, n_bytes) {
        (ZEROS, 0) if digest == [0; 32] => Stored::Zeros,
        (RAW, 0) => Stored::Raw,
        (ZSTD, 1..) if (n_bytes as usize) < frame_bytes => Stored::Zstd(n_bytes),
        _ => return None,
    };
    Some(Frame { stored, digest })
}

/// What is left to be read.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn number(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
}
