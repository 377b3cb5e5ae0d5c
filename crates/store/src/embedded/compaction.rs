//! Dropping history.
//!
//! Compaction rides on the batches that make it necessary: each drops a bounded stretch, so
//! it never holds the writer up for long and costs no fsync of its own. After a crash the point
//! reached is simply where it goes on.

use redb::ReadableTable;

use crate::error::StoreError;
use crate::key_value::{Event, Revision};

use super::apply::Tables;
use super::fault;
use super::steps::Step;
use super::tables::{Entry, Position};

/// The most revisions that one batch drops: twice the most that one adds, so that dropping keeps up.
const MAX_STRETCH: u64 = 512;
/// So many revisions beyond those to keep gather before a stretch of them is dropped, so that a
/// single commit does not carry a compaction each time.
const SLACK: u64 = 64;

impl Tables<'_> {
    /// Drops a stretch of history when there are more than `keep` revisions and some slack.
    pub fn compact_automatically(&mut self, keep: u64) -> Result<(), StoreError> {
        let to = self.revision.0.saturating_sub(keep);
        if to > self.compacted.0 + SLACK {
            self.compact_towards(Revision(to))?;
        }
        Ok(())
    }

    /// Drops a stretch of the history before `to`; whether that was the last of it.
    pub fn compact(&mut self, to: Revision) -> Result<Result<bool, StoreError>, StoreError> {
        if to > self.revision {
            return Ok(Err(StoreError::FutureRevision { requested: to, current: self.revision }));
        }
        if to > self.compacted {
            self.compact_towards(to)?;
        }
        Ok(Ok(to <= self.compacted))
    }

    /// Every change of the stretch, the point reached included, takes with it the change that it
    /// superseded. A deletion before that point goes itself: nothing is left to be told of the key.
    /// The deletion at the point stays for watches that begin there, and goes next time, which is
    /// why a stretch begins with the last revision of the one before.
    fn compact_towards(&mut self, to: Revision) -> Result<(), StoreError> {
        self.compact_to(Revision(to.0.min(self.compacted.0 + MAX_STRETCH)))
    }

    /// Drops all before `to`, in one stretch.
    pub(super) fn compact_to(&mut self, to: Revision) -> Result<(), StoreError> {
        let mut obsolete = Vec::new();
        let mut deletions = Vec::new();
        for row in
            self.log.range((self.compacted.0, 0)..=(to.0, u32::MAX)).map_err(fault("compacting"))?
        {
            let (row, stored) = row.map_err(fault("compacting"))?;
            let position = Position::from_row(row.value());
            let Entry { previous, event } = Entry::decode(position, stored.value())?;
            obsolete.extend(previous);
            if let Event::Delete { key, revision } = event
                && revision < to
            {
                obsolete.push(position);
                deletions.push((key, position));
            }
        }
        for position in obsolete {
            self.log.remove(position.row()).map_err(fault("compacting"))?;
        }
        for (key, position) in deletions {
            // The key may have come back and gone again, and then the tombstone is a later one.
            let tombstone = self
                .tombstones
                .get(key.as_str())
                .map_err(fault("compacting"))?
                .map(|row| row.value());
            if tombstone == Some(position.row()) {
                self.tombstones.remove(key.as_str()).map_err(fault("compacting"))?;
            }
        }
        self.compacted = to;
        self.steps.add(Step::Compacted(to));
        Ok(())
    }
}
