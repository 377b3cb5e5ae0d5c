//! Reading, from one redb snapshot per call.

use std::ops::Bound;

use redb::{Database, ReadOnlyTable, ReadableDatabase, ReadableTable};

use crate::error::StoreError;
use crate::key_value::{Event, KeyValue, Revision};
use crate::store::{Listing, Page};
use crate::watch::WatchBatch;

use super::fault;
use super::recent::Stretch;
use super::tables::{
    CURRENT, Entry, HeadRow, LOG, META, META_COMPACTED, META_REVISION, Position, PositionRow,
    TOMBSTONES,
};

/// A read of the history goes on until it has seen so many changes, then to the end of a revision.
const MAX_STRETCH_EVENTS: usize = 1024;
/// Or so many bytes of them.
const MAX_STRETCH_BYTES: usize = 1 << 20;

/// The store as it stood when the snapshot was taken.
pub struct Snapshot {
    current: ReadOnlyTable<&'static str, HeadRow>,
    tombstones: ReadOnlyTable<&'static str, PositionRow>,
    log: ReadOnlyTable<PositionRow, &'static [u8]>,
    /// The newest revision.
    pub revision: Revision,
    /// The oldest revision that can be read.
    pub compacted: Revision,
}

impl Snapshot {
    pub fn take(database: &Database) -> Result<Self, StoreError> {
        let taking = "taking a snapshot";
        let transaction = database.begin_read().map_err(fault(taking))?;
        let meta = transaction.open_table(META).map_err(fault(taking))?;
        let number = |name| -> Result<Revision, StoreError> {
            let stored = meta.get(name).map_err(fault(taking))?;
            Ok(Revision(stored.map_or(0, |stored| stored.value())))
        };
        Ok(Self {
            revision: number(META_REVISION)?,
            compacted: number(META_COMPACTED)?,
            current: transaction.open_table(CURRENT).map_err(fault(taking))?,
            tombstones: transaction.open_table(TOMBSTONES).map_err(fault(taking))?,
            log: transaction.open_table(LOG).map_err(fault(taking))?,
        })
    }

    pub fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        let head = self.current.get(key).map_err(fault("reading a key"))?;
        head.map(|head| key_value(&self.log, position_of(head.value()))).transpose()
    }

    pub fn list(&self, prefix: &str, page: &Page) -> Result<Listing, StoreError> {
        let at = page.at.unwrap_or(self.revision);
        self.check_kept(at)?;
        if at > self.revision {
            return Err(StoreError::FutureRevision { requested: at, current: self.revision });
        }
        let limit = page.limit.unwrap_or(usize::MAX);
        let mut listing = Listing { items: Vec::new(), revision: at, more: false };
        let range = (start_of(prefix, page), Bound::Unbounded);
        let live =
            self.current.range::<&str>(range).map_err(fault("listing keys"))?.map(|row| {
                row.map(|(key, head)| (key.value().to_owned(), position_of(head.value())))
            });
        // A key that is deleted now may have been there then.
        let gone = if at < self.revision {
            let rows = self.tombstones.range::<&str>(range);
            Some(rows.map_err(fault("listing keys"))?)
        } else {
            None
        };
        let gone = gone.into_iter().flatten().map(|row| {
            row.map(|(key, position)| {
                (key.value().to_owned(), Position::from_row(position.value()))
            })
        });
        for found in merge(live, gone) {
            let (key, position) = found.map_err(fault("listing keys"))?;
            if !key.starts_with(prefix) {
                break;
            }
            let Some(kv) = self.as_of(position, at)? else {
                continue;
            };
            if listing.items.len() == limit {
                listing.more = true;
                break;
            }
            listing.items.push(kv);
        }
        Ok(listing)
    }

    /// The changes under `prefix` from revision `from` on: a bounded stretch of them.
    pub fn history(&self, from: Revision, prefix: &str) -> Result<Stretch, StoreError> {
        self.check_kept(from)?;
        let mut batches: Vec<WatchBatch> = Vec::new();
        let (mut n_events, mut n_bytes) = (0, 0);
        let mut last = from;
        for row in self.log.range((from.0, 0)..).map_err(fault("reading the history"))? {
            let (row, stored) = row.map_err(fault("reading the history"))?;
            let position = Position::from_row(row.value());
            let full = n_events >= MAX_STRETCH_EVENTS || n_bytes >= MAX_STRETCH_BYTES;
            if full && position.revision > last {
                return Ok(Stretch { batches, next: position.revision });
            }
            last = position.revision;
            n_events += 1;
            n_bytes += stored.value().len();
            let event = Entry::decode(position, stored.value())?.event;
            if !event.key().starts_with(prefix) {
                continue;
            }
            match batches.last_mut().filter(|batch| batch.revision == last) {
                Some(batch) => batch.events.push(event),
                None => batches.push(WatchBatch { revision: last, events: vec![event] }),
            }
        }
        Ok(Stretch { batches, next: from.max(self.revision.next()) })
    }

    /// Fails when the history at `revision` is no longer complete.
    pub fn check_kept(&self, revision: Revision) -> Result<(), StoreError> {
        if revision < self.compacted {
            return Err(StoreError::Compacted { requested: revision, at: self.compacted });
        }
        Ok(())
    }

    /// The key whose newest change is at `position` as it stood at revision `at`.
    fn as_of(&self, position: Position, at: Revision) -> Result<Option<KeyValue>, StoreError> {
        let mut next = Some(position);
        while let Some(position) = next {
            let row = self.log.get(position.row()).map_err(fault("reading the history"))?;
            // Compaction has dropped the change, which only happens to one that was superseded
            // before `at`, or to a deletion: there was no such key.
            let Some(row) = row else {
                return Ok(None);
            };
            let entry = Entry::decode(position, row.value())?;
            if position.revision <= at {
                return Ok(match entry.event {
                    Event::Put(kv) => Some(kv),
                    Event::Delete { .. } => None,
                });
            }
            next = entry.previous;
        }
        Ok(None)
    }
}

/// The key that the log entry at `position` wrote.
pub fn key_value(
    log: &impl ReadableTable<PositionRow, &'static [u8]>,
    position: Position,
) -> Result<KeyValue, StoreError> {
    let row = log.get(position.row()).map_err(fault("reading a value"))?;
    let event =
        row.map(|row| Entry::decode(position, row.value())).transpose()?.map(|entry| entry.event);
    match event {
        Some(Event::Put(kv)) => Ok(kv),
        Some(Event::Delete { .. }) | None => Err(fault("reading a value")(MissingValue(position))),
    }
}

#[derive(Debug, thiserror::Error)]
#[error("no value is at revision {}, index {}", .0.revision, .0.index)]
struct MissingValue(Position);

fn position_of((revision, index, ..): HeadRow) -> Position {
    Position::from_row((revision, index))
}

fn start_of<'a>(prefix: &'a str, page: &'a Page) -> Bound<&'a str> {
    match page.after.as_deref() {
        Some(after) if after >= prefix => Bound::Excluded(after),
        Some(_) | None => Bound::Included(prefix),
    }
}

type Found = Result<(String, Position), redb::StorageError>;

/// Two listings in key order as one. No key is in both: it either exists or is deleted.
fn merge(
    live: impl Iterator<Item = Found>,
    gone: impl Iterator<Item = Found>,
) -> impl Iterator<Item = Found> {
    let (mut live, mut gone) = (live.peekable(), gone.peekable());
    std::iter::from_fn(move || match (live.peek(), gone.peek()) {
        (Some(Ok((first, _))), Some(Ok((second, _)))) if second < first => gone.next(),
        (None, _) | (Some(Ok(_)), Some(Err(_))) => gone.next(),
        (Some(_), _) => live.next(),
    })
}
