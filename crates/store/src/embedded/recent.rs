//! The newest revisions in memory, so that watchers who keep up never read the disk.
//!
//! One ring for all watchers bounds the memory whatever their number and speed: who falls behind
//! the ring reads the history on disk until it has caught up. A queue for each watcher would need a
//! rule for when it is full, and the rule would be this one.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use crate::key_value::{Event, Revision};
use crate::watch::WatchBatch;

/// The most revisions kept.
const MAX_REVISIONS: usize = 1024;
/// The most bytes of keys and values kept.
const MAX_BYTES: usize = 4 << 20;
/// The most revisions that one read looks at.
const MAX_READ: usize = 256;

/// The newest revisions, without gaps.
#[derive(Debug, Default)]
pub struct Recent(Mutex<Ring>);

#[derive(Debug, Default)]
struct Ring {
    revisions: VecDeque<Arc<WatchBatch>>,
    n_bytes: usize,
}

/// A stretch of history for one watcher.
#[derive(Debug, PartialEq, Eq)]
pub struct Stretch {
    /// The revisions that changed something under the prefix.
    pub batches: Vec<WatchBatch>,
    /// Where to read on.
    pub next: Revision,
}

impl Recent {
    /// Adds the revision after the newest.
    pub fn push(&self, batch: WatchBatch) {
        let mut ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ring.n_bytes += n_bytes(&batch);
        ring.revisions.push_back(Arc::new(batch));
        while ring.revisions.len() > MAX_REVISIONS || ring.n_bytes > MAX_BYTES {
            let Some(oldest) = ring.revisions.pop_front() else {
                break;
            };
            ring.n_bytes -= n_bytes(&oldest);
        }
    }

    /// The changes under `prefix` from revision `from` on, or `None` when the ring does not reach
    /// back that far.
    pub fn read(&self, from: Revision, prefix: &str) -> Option<Stretch> {
        let revisions: Vec<_> = {
            let ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let behind = from.0.checked_sub(ring.revisions.front()?.revision.0)?;
            let skip = usize::try_from(behind).ok()?;
            ring.revisions.iter().skip(skip).take(MAX_READ).cloned().collect()
        };
        let next = revisions.last().map_or(from, |last| last.revision.next());
        let batches = revisions.iter().filter_map(|batch| under(batch, prefix)).collect();
        Some(Stretch { batches, next })
    }
}

fn under(batch: &WatchBatch, prefix: &str) -> Option<WatchBatch> {
    let events: Vec<Event> =
        batch.events.iter().filter(|event| event.key().starts_with(prefix)).cloned().collect();
    (!events.is_empty()).then_some(WatchBatch { revision: batch.revision, events })
}

fn n_bytes(batch: &WatchBatch) -> usize {
    batch
        .events
        .iter()
        .map(|event| match event {
            Event::Put(kv) => kv.key.len() + kv.value.len(),
            Event::Delete { key, .. } => key.len(),
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::key_value::KeyValue;

    fn put(revision: u64, key: &str, n_bytes: usize) -> WatchBatch {
        WatchBatch {
            revision: Revision(revision),
            events: vec![Event::Put(KeyValue {
                key: key.to_owned(),
                value: Bytes::from(vec![0; n_bytes]),
                create_revision: Revision(revision),
                mod_revision: Revision(revision),
                version: 1,
                lease: None,
            })],
        }
    }

    fn revisions(stretch: &Stretch) -> Vec<u64> {
        stretch.batches.iter().map(|batch| batch.revision.0).collect()
    }

    #[test]
    fn a_reader_gets_its_prefix_from_where_it_asks() {
        let recent = Recent::default();
        assert_eq!(recent.read(Revision(5), "/"), None);
        for revision in 5..=9 {
            let key = if revision % 2 == 0 { "/even" } else { "/odd" };
            recent.push(put(revision, key, 1));
        }
        assert_eq!(recent.read(Revision(4), "/"), None);
        let all = recent.read(Revision(5), "/").unwrap();
        assert_eq!((revisions(&all), all.next), (vec![5, 6, 7, 8, 9], Revision(10)));
        let even = recent.read(Revision(7), "/even").unwrap();
        assert_eq!((revisions(&even), even.next), (vec![8], Revision(10)));
        let none = recent.read(Revision(10), "/").unwrap();
        assert_eq!((revisions(&none), none.next), (vec![], Revision(10)));
    }

    #[test]
    fn the_ring_is_bounded_in_revisions_and_in_bytes() {
        let recent = Recent::default();
        for revision in 1..=2000 {
            recent.push(put(revision, "/k", 1));
        }
        assert_eq!(recent.read(Revision(976), "/"), None);
        let oldest = recent.read(Revision(977), "/").unwrap();
        assert_eq!((oldest.batches.len(), oldest.next), (256, Revision(977 + 256)));
        recent.push(put(2001, "/k", MAX_BYTES - 10));
        assert_eq!(recent.read(Revision(1990), "/"), None);
        assert!(recent.read(Revision(2001), "/").is_some());
        recent.push(put(2002, "/k", MAX_BYTES));
        assert_eq!(recent.read(Revision(2002), "/"), None);
        recent.push(put(2003, "/k", 1));
        assert!(recent.read(Revision(2003), "/").is_some());
    }
}
