//! What is written of an app, and what that has to be followed by.

use longshore_store::{MAX_REQUEST_BYTES, Transaction};
use longshore_types::LocationName;

use super::wanted::left_with;
use super::{MOST_AT_ONCE, allotment_key_text};
use crate::catalog::AppKey;
use crate::events::{Who, with_event};
use crate::records::{AllotmentRecord, encode};
use crate::reports::ByLocation;

/// The next change of an app.
pub struct Planned {
    pub change: Transaction,
    pub then: Then,
}

impl Planned {
    /// The app is looked at again once this is written.
    pub fn look(change: Transaction) -> Self {
        Self { change, then: Then::Look }
    }
}

/// What comes after a change.
#[derive(Debug, PartialEq, Eq)]
pub enum Then {
    /// Another look: there may be more to do.
    Look,
    /// Nothing before something else happens, or these locations say that they have heard of it.
    Wait(Vec<LocationName>),
}

/// The first of the changes that an app's allotments need, as many as one transaction takes. The rest comes
/// when these are seen. Any of them may be made without the others: budgets grow only into what is in
/// nobody's hands before, so that their sum stays within `max` whichever have grown.
pub struct Change<'a> {
    reports: &'a ByLocation,
    pub transaction: Option<Transaction>,
    /// Whether there is more than that.
    pub is_part: bool,
    /// Where room is to be made, and why.
    rooms: Vec<String>,
    n_puts: usize,
    n_bytes: usize,
}

impl<'a> Change<'a> {
    /// How many bytes of values are put at once, which leaves room for keys and conditions.
    const MOST_BYTES: usize = MAX_REQUEST_BYTES / 2;

    /// None yet.
    pub fn new(reports: &'a ByLocation) -> Self {
        let (transaction, rooms) = (None, Vec::new());
        Self { reports, transaction, is_part: false, rooms, n_puts: 0, n_bytes: 0 }
    }

    /// Puts what a location is given, unless that is what it has.
    pub fn put_if_changed(
        &mut self,
        key: &AppKey,
        location: &LocationName,
        before: Option<&AllotmentRecord>,
        mut record: AllotmentRecord,
    ) {
        let is_heard = self.reports.is_heard(location);
        if is_heard {
            record.left_with = None;
        }
        if before == Some(&record) {
            return;
        }
        // One more tells of them.
        if self.n_puts + 1 >= MOST_AT_ONCE || self.n_bytes >= Self::MOST_BYTES {
            self.is_part = true;
            return;
        }
        if record.make_room > before.map_or(0, |before| before.make_room) {
            self.rooms.push(format!("{} at {location}: {}", key.1, record.decision.why));
        }
        record.generation = record.generation.next();
        if let Some(before) = before.filter(|_| !is_heard) {
            record.left_with = left_with(self.reports.get(location), key, before);
        }
        let (key, value) = (allotment_key_text(location, key), encode(&record));
        self.n_puts += 1;
        self.n_bytes += value.len();
        self.transaction = Some(self.transaction.take().unwrap_or_default().put(key, value));
    }

    /// The transaction, with the event that tells for what others leave.
    pub fn told(self, key: &AppKey) -> Option<Transaction> {
        let rooms = self.rooms.join("; ");
        let with = |change| with_event(change, &Who::PLATFORM, Some(&key.0), "preempt", rooms);
        if self.rooms.is_empty() { self.transaction } else { self.transaction.map(with) }
    }
}
