//! A large blob in several parts at a time, handed over in their order.
//!
//! One connection rarely gives what a long line or a busy registry could. The parts ahead of the one
//! that is handed over wait in memory, whole at most, and the next is asked for when that one is
//! through; so the window is what bounds them. All windows of a pull together have no more of them than
//! [`SHARED`] besides the one of each that is handed over. A part that breaks off is asked for again from
//! there, and nothing else with it.
//!
//! The first part goes alone until the source has answered: one that has no parts to give sends the
//! whole blob, as one stream. The last part has no end, so that a blob is noticed that is too long.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::num::NonZeroU64;
use std::ops::Range;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt as _, try_unfold};
use longshore_types::{ByteCount, Digest};
use tokio::sync::SemaphorePermit;

use super::super::LAYERS_AT_ONCE;
use super::{Fetcher, Gives, PartFetch};
use crate::source::{Part, SourceError};

/// Bytes of a part.
pub(in crate::pull) const PART: u64 = if cfg!(test) { 1 << 20 } else { 8 << 20 };

/// Parts of one blob that are asked for at the same time.
pub(in crate::pull) const PARTS_AT_ONCE: usize = 4;

/// Parts ahead of those that are handed over, of all blobs of a pull: with these, as many as two full windows.
pub(in crate::pull) const SHARED: usize = 2 * PARTS_AT_ONCE - LAYERS_AT_ONCE;

/// Pieces of one part that are held before its turn comes: a source may send crumbs.
const MOST_PIECES: usize = (PART >> 9) as usize;

pub(in crate::pull) struct Window<'a> {
    fetcher: &'a Fetcher<'a>,
    digest: Digest,
    size: u64,
    /// How many bytes of the blob came so far, those before the first part included.
    n_given: u64,
    parts: VecDeque<InFlight<'a>>,
    /// Where the part begins that is asked for next; `None` when there is no further one.
    next_from: Option<u64>,
    last: Last,
    was_opened: bool,
}

/// How the last part is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    /// Without an end.
    Open,
    /// As long as it has to be.
    Bounded,
}

impl<'a> Window<'a> {
    pub fn new(
        fetcher: &'a Fetcher<'a>,
        digest: Digest,
        from: u64,
        ByteCount(size): ByteCount,
    ) -> Self {
        let parts = VecDeque::with_capacity(PARTS_AT_ONCE);
        // A source cannot be asked for what is behind the end.
        let next_from = (from < size || from == 0).then_some(from);
        let last = Last::Open;
        Self { fetcher, digest, size, n_given: from, parts, next_from, last, was_opened: false }
    }

    /// The same of some bytes of a blob that is longer.
    pub fn of_range(fetcher: &'a Fetcher<'a>, digest: Digest, bytes: Range<u64>) -> Self {
        let window = Self::new(fetcher, digest, bytes.start, ByteCount(bytes.end));
        let next_from = (!bytes.is_empty()).then_some(bytes.start);
        Self { next_from, last: Last::Bounded, ..window }
    }

    /// The next piece of the blob, never empty, or `None` at its end as the source sees it. After a
    /// call that was dropped, or failed, there must be none.
    pub async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        if !self.was_opened {
            self.open().await?;
            self.was_opened = true;
        }
        poll_fn(|context| self.poll_next(context)).await
    }

    async fn open(&mut self) -> Result<(), SourceError> {
        let Some(mut first) = self.next_part() else { return Ok(()) };
        if let Gives::Whole = first.open().await? {
            first.n_left = None;
            self.next_from = None;
        }
        self.parts.push_back(InFlight::new(first, None));
        Ok(())
    }

    /// Asks for as many parts as there may be, and for one in any case.
    fn ask_ahead(&mut self) {
        while self.parts.len() < PARTS_AT_ONCE {
            let turn = self.fetcher.ahead.try_acquire().ok();
            if turn.is_none() && !self.parts.is_empty() {
                return;
            }
            let Some(part) = self.next_part() else { return };
            self.parts.push_back(InFlight::new(part, turn));
        }
    }

    /// The part after the last one.
    fn next_part(&mut self) -> Option<PartFetch<'a>> {
        let from = self.next_from?;
        let to = from + PART;
        let has_more = to < self.size;
        self.next_from = has_more.then_some(to);
        let n_bytes = match self.last {
            _ if has_more => NonZeroU64::new(PART),
            Last::Open => None,
            Last::Bounded => NonZeroU64::new(self.size - from),
        };
        Some(self.fetcher.part(self.digest, Part { from, n_bytes }))
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, SourceError>> {
        loop {
            self.ask_ahead();
            for part in self.parts.iter_mut().skip(1) {
                // One that a source sends more for than was asked for, or in crumbs, is read on when its turn comes.
                while part.may_fill() && part.fill(context).is_ready() {}
            }
            let Some(head) = self.parts.front_mut() else { return Poll::Ready(Ok(None)) };
            // It is ahead of nothing any more.
            head.turn = None;
            if head.ready.is_empty() {
                let _ = head.fill(context);
            }
            if let Some(piece) = head.ready.pop_front() {
                self.n_given += piece.len() as u64;
                return Poll::Ready(Ok(Some(piece)));
            }
            match head.end.take() {
                None => return Poll::Pending,
                // It broke off behind the last byte, before it said that this was all.
                Some(Err(_)) if self.n_given == self.size => return Poll::Ready(Ok(None)),
                Some(Err(error)) => return Poll::Ready(Err(error)),
                Some(Ok(Ended::Whole)) => drop(self.parts.pop_front()),
                Some(Ok(Ended::Early)) => {
                    self.parts.clear();
                    self.next_from = None;
                }
            }
        }
    }
}

/// How a part ended.
enum Ended {
    Whole,
    /// The blob ends inside of it.
    Early,
}

struct InFlight<'a> {
    pieces: BoxStream<'a, Result<Bytes, SourceError>>,
    /// What is here of it.
    ready: VecDeque<Bytes>,
    /// How many bytes that is, until it is taken.
    n_ready: u64,
    end: Option<Result<Ended, SourceError>>,
    /// Bytes that have to come yet, when its length is known.
    n_left: Option<u64>,
    /// Of [`SHARED`].
    turn: Option<SemaphorePermit<'a>>,
}

impl<'a> InFlight<'a> {
    fn new(part: PartFetch<'a>, turn: Option<SemaphorePermit<'a>>) -> Self {
        let n_left = part.n_left;
        let pieces = try_unfold(part, async |mut part| {
            let piece = part.next().await?;
            Ok(piece.map(|piece| (piece, part)))
        });
        let (ready, n_ready, end) = (VecDeque::new(), 0, None);
        Self { pieces: pieces.boxed(), ready, n_ready, end, n_left, turn }
    }

    /// Whether more of it may be held before its turn comes.
    fn may_fill(&self) -> bool {
        self.n_ready <= PART && self.ready.len() < MOST_PIECES
    }

    /// Takes one piece, or the end; ready for as long as there may be another.
    fn fill(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.end.is_some() {
            return Poll::Pending;
        }
        match self.pieces.poll_next_unpin(context) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(Ok(piece))) => {
                if let Some(n_left) = &mut self.n_left {
                    *n_left -= piece.len() as u64;
                }
                self.n_ready += piece.len() as u64;
                self.ready.push_back(piece);
            }
            Poll::Ready(Some(Err(error))) => self.end = Some(Err(error)),
            Poll::Ready(None) => {
                let is_whole = self.n_left.is_none_or(|n_left| n_left == 0);
                self.end = Some(Ok(if is_whole { Ended::Whole } else { Ended::Early }));
            }
        }
        Poll::Ready(())
    }
}
