//! Which bytes of a blob are here, who brings which, and who reads where: what a reader does next, and what a fetch.
//!
//! Nothing but sums: no file, no network, no clock. A fetch brings what is missing from where a reader is, to that
//! one's end or to the next byte that is here or on its way, so no byte is asked for twice. It goes as fast as it is
//! read and keeps a bounded way ahead, as if it were passed on; who wants what lies far ahead of a fetch takes the
//! rest of that over, for nobody is to wait for bytes that it does not need. Rejected: a grid of chunks, of which who
//! begins in the middle of one gets its beginning first; to fetch as fast as the line gives, past the limits that
//! nodes keep to.

use std::collections::BTreeMap;
use std::ops::Range;

/// How far ahead of a fetch a byte may be that is waited for.
pub const FAR: u64 = 2 << 20;

/// How far ahead of who reads a fetch may be.
pub const AHEAD: u64 = 8 << 20;

/// The most that is read at once.
pub const PIECE: u64 = 256 << 10;

/// Ranges of bytes, none of which touches another.
#[derive(Debug, Default)]
pub struct Spans(BTreeMap<u64, u64>);

impl Spans {
    /// Adds some.
    pub fn insert(&mut self, Range { mut start, mut end }: Range<u64>) {
        if start >= end {
            return;
        }
        while let Some((&before, &until)) = self.0.range(..=end).next_back() {
            if until < start {
                break;
            }
            (start, end) = (start.min(before), end.max(until));
            self.0.remove(&before);
        }
        self.0.insert(start, end);
    }

    /// Where those end that have this byte.
    fn end_of(&self, at: u64) -> Option<u64> {
        let (_, end) = self.0.range(..=at).next_back()?;
        (*end > at).then_some(*end)
    }

    /// Where the first begin that are behind this byte.
    fn next_after(&self, at: u64) -> Option<u64> {
        self.0.range(at..).next().map(|(start, _)| *start)
    }

    /// Whether all up to there are among them.
    pub fn has_all(&self, size: u64) -> bool {
        size == 0 || self.end_of(0).is_some_and(|end| end >= size)
    }

    /// How many they are.
    #[cfg(test)]
    pub fn count(&self) -> u64 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }
}

/// A reader, a fetch.
pub type Id = u64;

#[derive(Debug)]
struct Reader {
    /// What it has yet to read.
    left: Range<u64>,
    waits_for: Option<Id>,
    /// Why what it waits for does not come.
    failure: Option<String>,
}

/// The way of a blob to those who read it.
#[derive(Debug, Default)]
pub struct Way {
    here: Spans,
    /// What each has yet to bring.
    fetches: BTreeMap<Id, Range<u64>>,
    readers: BTreeMap<Id, Reader>,
    n_ids: Id,
}

/// What a reader does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Takes these bytes, which are here.
    Read(Range<u64>),
    /// Waits for news.
    Wait,
    /// Has this fetch begun, and waits for it.
    Fetch(Id),
    /// Gives up.
    Broken(String),
    /// It has all.
    End,
}

/// What a fetch does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Go {
    /// Brings what comes next.
    On,
    /// Waits until that is wanted.
    Pause,
    /// Ends: nobody wants the rest of it, or it is another's.
    Stop,
}

impl Way {
    fn id(&mut self) -> Id {
        self.n_ids += 1;
        self.n_ids
    }

    /// Somebody reads.
    pub fn join(&mut self, left: Range<u64>) -> Id {
        let id = self.id();
        self.readers.insert(id, Reader { left, waits_for: None, failure: None });
        id
    }

    /// Somebody does no more.
    pub fn leave(&mut self, reader: Id) {
        self.readers.remove(&reader);
    }

    /// A reader took so many bytes.
    pub fn took(&mut self, reader: Id, n_bytes: u64) {
        if let Some(reader) = self.readers.get_mut(&reader) {
            reader.left.start += n_bytes;
        }
    }

    /// What a reader does now.
    pub fn step(&mut self, id: Id) -> Step {
        let Some(reader) = self.readers.get_mut(&id) else { return Step::End };
        if let Some(why) = reader.failure.take() {
            return Step::Broken(why);
        }
        let left = reader.left.clone();
        if left.is_empty() {
            return Step::End;
        }
        if let Some(end) = self.here.end_of(left.start) {
            return Step::Read(left.start..end.min(left.end).min(left.start + PIECE));
        }
        let mut fetches = self.fetches.iter_mut();
        let brings = fetches.find(|(_, part)| part.contains(&left.start));
        let (fetch, step) = match brings {
            Some((fetch, part)) if left.start - part.start <= FAR => (*fetch, Step::Wait),
            others => {
                if let Some((_, part)) = others {
                    part.end = left.start;
                }
                let fetch = self.begin(left.clone());
                (fetch, Step::Fetch(fetch))
            }
        };
        if let Some(reader) = self.readers.get_mut(&id) {
            reader.waits_for = Some(fetch);
        }
        step
    }

    /// A fetch begins of what is neither here nor on its way.
    pub fn begin(&mut self, wanted: Range<u64>) -> Id {
        let others = self.fetches.values().filter(|part| !part.is_empty()).map(|part| part.start);
        let others = others.filter(|start| *start > wanted.start).min();
        let next = self.here.next_after(wanted.start).into_iter().chain(others).min();
        let end = next.map_or(wanted.end, |next| next.min(wanted.end));
        let id = self.id();
        self.fetches.insert(id, wanted.start..end);
        id
    }

    /// What a fetch has yet to bring.
    pub fn left_of(&self, fetch: Id) -> Range<u64> {
        self.fetches.get(&fetch).cloned().unwrap_or_default()
    }

    /// What a fetch does now.
    pub fn go(&self, fetch: Id) -> Go {
        let left = self.left_of(fetch);
        if left.is_empty() {
            return Go::Stop;
        }
        let wanted = self.readers.values().map(|reader| &reader.left);
        let wanted = wanted.filter(|of| of.end > left.start && of.start < left.end);
        // Those that wait for it, and those whose next bytes are here up to where it is.
        let follows = |at: u64| at >= left.start || self.here.end_of(at) == Some(left.start);
        let at = wanted.map(|of| of.start).filter(|at| follows(*at)).max();
        match at {
            None => Go::Stop,
            Some(at) if at + AHEAD > left.start => Go::On,
            Some(_) => Go::Pause,
        }
    }

    /// So many bytes are here that a fetch brought.
    pub fn brought(&mut self, fetch: Id, n_bytes: u64) {
        if let Some(left) = self.fetches.get_mut(&fetch) {
            self.here.insert(left.start..left.start + n_bytes);
            left.start += n_bytes;
        }
    }

    /// A fetch ended; those that wait for it are told why, where they are to give up. Without that they go on with
    /// another one.
    pub fn ended(&mut self, fetch: Id, why: Option<&str>) {
        if self.fetches.remove(&fetch).is_none() {
            return;
        }
        for reader in self.readers.values_mut().filter(|reader| reader.waits_for == Some(fetch)) {
            reader.waits_for = None;
            reader.failure = why.map(str::to_owned);
        }
    }

    /// Whether nobody reads it or brings more of it.
    pub fn is_idle(&self) -> bool {
        self.readers.is_empty() && self.fetches.is_empty()
    }

    /// Whether all of it is here.
    pub fn has_all(&self, size: u64) -> bool {
        self.here.has_all(size)
    }
}

#[cfg(test)]
mod tests;
