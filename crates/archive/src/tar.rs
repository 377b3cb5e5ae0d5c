//! Reads a tar stream as a sequence of entries, knowing nothing of where they will be put.
//!
//! `tar-core` is the one parser of headers; this module feeds it, hands file contents through without
//! copying, and refuses what the parser lets pass but other tar programs read differently (see
//! [`strict`]). An archive that two programs read differently is an attack more often than a mistake,
//! so it is refused and not guessed at.
//!
//! What an entry means for a file system is for the caller: `unpack` fills a directory, and an index
//! of a layer can be built from the same stream.

mod entry;
mod strict;

use std::io::{self, Read};

use tar_core::parse::{ParseError, ParseEvent, Parser};

use crate::limits::{LimitExceeded, TarLimits};

use entry::{Content, RawEntry};
pub use entry::{Entry, EntryKind, EntryPath, PathProblem, Xattr};
pub use strict::Ambiguity;

const BLOCK: u64 = tar_core::HEADER_SIZE as u64;

/// Size of the read buffer; contents are handed out in pieces of at most this many bytes.
const BUFFER: usize = 256 << 10;

/// Why a stream is not an archive that we accept.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The stream below could not be read.
    #[error("reading the archive")]
    Read(#[source] io::Error),
    /// The stream ends inside an entry.
    #[error("the archive ends in the middle of entry {entry}")]
    Truncated {
        /// Which entry, counted from 1.
        entry: u64,
    },
    /// A header that the parser refuses.
    #[error("malformed tar header of entry {entry}")]
    Header {
        /// Which entry, counted from 1.
        entry: u64,
        /// What is wrong with it.
        #[source]
        source: ParseError,
    },
    /// A header that tar programs read differently.
    #[error("ambiguous tar header of entry {entry}")]
    Ambiguous {
        /// Which entry, counted from 1.
        entry: u64,
        /// What is wrong with it.
        #[source]
        source: Ambiguity,
    },
    /// The entry has a path that must not be used.
    #[error("entry {path:?}")]
    Path {
        /// The path as written, made printable.
        path: String,
        /// What is wrong with it.
        #[source]
        problem: PathProblem,
    },
    /// The entry is of a kind that has no meaning in a layer.
    #[error("entry {path:?} has the unknown type {kind:?}")]
    UnknownKind {
        /// The path as written, made printable.
        path: String,
        /// The type byte of the header.
        kind: char,
    },
    /// The archive asks for more than is allowed.
    #[error("the archive asks for too much")]
    Limit(#[from] LimitExceeded),
}

/// A stream of entries over any reader of uncompressed tar bytes.
///
/// Call [`TarReader::next_entry`], then [`TarReader::next_chunk`] until it gives `None`; contents
/// that are not read are skipped. After the last entry, [`TarReader::finish`] reads to the end of
/// the stream, so that a digest computed below covers all of it.
pub struct TarReader<R> {
    input: Input<R>,
    parser: Parser,
    limits: TarLimits,
    content: Content,
    n_entries: u64,
    total_bytes: u64,
}

/// A part of a file's contents and where it belongs. What no chunk covers reads as zeros.
#[derive(Debug, PartialEq, Eq)]
pub struct Chunk<'a> {
    /// Position in the file, in bytes.
    pub offset: u64,
    /// The bytes there; never empty.
    pub bytes: &'a [u8],
}

impl<R: Read> TarReader<R> {
    /// Reads an archive from `source` within `limits`.
    pub fn new(source: R, limits: impl Into<TarLimits>) -> Self {
        let limits = limits.into();
        let parser = Parser::new(tar_core::parse::Limits {
            max_metadata_size: limits.header_bytes,
            max_path_len: Some(limits.path_bytes),
            max_pending_entries: 4,
            max_sparse_entries: limits.sparse_regions,
        });
        Self {
            input: Input::new(source),
            parser: lenient_about_values(parser),
            limits,
            content: Content::default(),
            n_entries: 0,
            total_bytes: 0,
        }
    }

    /// The next entry, or `None` at the end of the archive.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        self.skip_content()?;
        loop {
            match self.parse_next()? {
                Parsed::NeedData(min_bytes) => {
                    let most = 2 * self.limits.header_bytes as usize + BUFFER;
                    let held = self.input.available().len();
                    if self.input.grow(min_bytes, most)? == Grown::AtEnd {
                        // Some writers leave out the two blocks of zeros; the layer's digest, not
                        // they, says whether it is whole.
                        let only_zeros = self.input.available().iter().all(|&byte| byte == 0);
                        let whole_blocks = (held as u64).is_multiple_of(BLOCK);
                        return match only_zeros && whole_blocks {
                            true => Ok(None),
                            false => Err(TarError::Truncated { entry: self.n_entries + 1 }),
                        };
                    }
                }
                Parsed::Skip(n_bytes) => self.input.consume(n_bytes),
                Parsed::End(n_bytes) => {
                    self.input.consume(n_bytes);
                    return Ok(None);
                }
                Parsed::Entry(n_bytes, raw) => {
                    self.input.consume(n_bytes);
                    return self.accept(*raw).map(Some);
                }
            }
        }
    }

    /// One step of the parser over what is buffered, copied out of the buffer.
    fn parse_next(&mut self) -> Result<Parsed, TarError> {
        let input = self.input.available();
        let entry = self.n_entries + 1;
        let ambiguous = |source| TarError::Ambiguous { entry, source };
        let event =
            self.parser.parse(input).map_err(|source| TarError::Header { entry, source })?;
        Ok(match event {
            ParseEvent::NeedData { min_bytes } => Parsed::NeedData(min_bytes),
            ParseEvent::End { consumed } => Parsed::End(consumed),
            ParseEvent::GlobalExtensions { consumed, pax_data } => {
                strict::check_global(&input[..consumed], pax_data).map_err(ambiguous)?;
                Parsed::Skip(consumed)
            }
            ParseEvent::Entry { consumed, entry } => {
                let fields =
                    strict::check_entry(&input[..consumed], &entry, None).map_err(ambiguous)?;
                Parsed::Entry(consumed, Box::new(RawEntry::new(entry, fields, None)))
            }
            ParseEvent::SparseEntry { consumed, entry, sparse_map, real_size } => {
                let sparse = entry::SparseMap { regions: sparse_map, real_size };
                let fields = strict::check_entry(&input[..consumed], &entry, Some(&sparse))
                    .map_err(ambiguous)?;
                Parsed::Entry(consumed, Box::new(RawEntry::new(entry, fields, Some(sparse))))
            }
        })
    }

    /// Checks a parsed entry against the limits and makes its contents the ones to be read next.
    fn accept(&mut self, raw: RawEntry) -> Result<Entry, TarError> {
        self.n_entries += 1;
        LimitExceeded::check("entries", self.n_entries, self.limits.entries)?;
        let (entry, content) = raw.resolve(&self.limits)?;
        if let EntryKind::File { size } = entry.kind {
            self.total_bytes = self.total_bytes.saturating_add(size);
            let allowed = self.limits.file_bytes;
            LimitExceeded::check("bytes in files", self.total_bytes, allowed)?;
        }
        self.content = content;
        Ok(entry)
    }

    /// The next piece of the current entry's contents, or `None` when there is no more.
    pub fn next_chunk(&mut self) -> Result<Option<Chunk<'_>>, TarError> {
        let Some((offset, wanted)) = self.content.next_range() else {
            self.skip_padding()?;
            return Ok(None);
        };
        if self.input.available().is_empty() && self.input.grow(1, BUFFER)? == Grown::AtEnd {
            return Err(TarError::Truncated { entry: self.n_entries });
        }
        let n_bytes = wanted.min(self.input.available().len() as u64) as usize;
        self.content.advance(n_bytes as u64);
        Ok(Some(Chunk { offset, bytes: self.input.take(n_bytes) }))
    }

    fn skip_content(&mut self) -> Result<(), TarError> {
        while self.next_chunk()?.is_some() {}
        Ok(())
    }

    fn skip_padding(&mut self) -> Result<(), TarError> {
        let mut left = self.content.take_padding();
        while left > 0 {
            if self.input.available().is_empty() && self.input.grow(1, BUFFER)? == Grown::AtEnd {
                return Err(TarError::Truncated { entry: self.n_entries });
            }
            let n_bytes = left.min(self.input.available().len());
            self.input.consume(n_bytes);
            left -= n_bytes;
        }
        Ok(())
    }

    /// Reads what follows the end of the archive, which every tar program ignores, and gives the
    /// reader back.
    pub fn finish(mut self) -> Result<R, TarError> {
        loop {
            self.input.consume(self.input.available().len());
            if self.input.grow(1, BUFFER)? == Grown::AtEnd {
                return Ok(self.input.source);
            }
        }
    }
}

/// The parser refuses negative times and nothing else that we want; [`strict`] checks every value
/// itself, so the parser is told to pass over values that it cannot read.
fn lenient_about_values(mut parser: Parser) -> Parser {
    parser.set_ignore_pax_errors(true);
    parser
}

enum Parsed {
    NeedData(usize),
    Skip(usize),
    End(usize),
    Entry(usize, Box<RawEntry>),
}

#[derive(PartialEq, Eq)]
enum Grown {
    More,
    AtEnd,
}

/// A window on the stream that can be looked at before it is consumed.
struct Input<R> {
    source: R,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl<R: Read> Input<R> {
    fn new(source: R) -> Self {
        Self { source, buffer: vec![0; BUFFER], start: 0, end: 0 }
    }

    fn available(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    fn consume(&mut self, n_bytes: usize) {
        self.start += n_bytes;
    }

    fn take(&mut self, n_bytes: usize) -> &[u8] {
        self.start += n_bytes;
        &self.buffer[self.start - n_bytes..self.start]
    }

    /// Reads more, so that the window has at least `min_bytes` and more than it had, or all that is
    /// left; `most` is the longest window that is allowed.
    ///
    /// The window doubles, because the parser begins again with each attempt: growing by blocks
    /// would let one long header cost the square of its length.
    fn grow(&mut self, min_bytes: usize, most: usize) -> Result<Grown, TarError> {
        let held = self.end - self.start;
        LimitExceeded::check("bytes of headers for one entry", held as u64, most as u64 - 1)?;
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, held);
        let target = min_bytes.max(held.saturating_mul(2)).clamp(held + 1, most);
        if self.buffer.len() < target {
            self.buffer.resize(target, 0);
        }
        while self.end < target {
            match self.source.read(&mut self.buffer[self.end..]) {
                Ok(0) if self.end == held => return Ok(Grown::AtEnd),
                Ok(0) => break,
                Ok(n_bytes) => self.end += n_bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(TarError::Read(error)),
            }
        }
        Ok(Grown::More)
    }
}
