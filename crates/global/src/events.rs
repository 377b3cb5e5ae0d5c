//! What was changed, by whom and from where.
//!
//! An event is written in the transaction of its change, so that there is neither without the other. What
//! is no change of the store, a command that is run inside, is written before it is done.
//!
//! The newest are kept in memory too, where those who follow them read on from the place that they have
//! come to; who is further behind reads the store. A place is a revision of the store, so it outlives
//! every process.

use std::collections::VecDeque;
use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use longshore_api::v1::EventView;
use longshore_link::now;
use longshore_store::{
    KeyValue, MAX_OPERATIONS, Page, RecordError, Revision, Store, StoreError, Transaction,
};
use longshore_types::{AppName, ProjectName};
use tokio::sync::watch;

use crate::records::{AnswerRecord, EventRecord, Key, decode, encode};

/// Below this, one record per event, in the order of their times.
const EVENTS: &str = "/events/";
/// How many are kept.
const KEPT: usize = 10_000;
/// How many of them in memory.
const IN_MEMORY: usize = 1000;

/// Who changes something.
#[derive(Debug, Clone)]
pub struct Who {
    /// The name of the token; the platform itself when absent.
    pub token: Option<AppName>,
    /// The other end of the connection.
    pub from: Option<SocketAddr>,
    /// What tells that the request was carried out, when it is to be carried out once.
    pub once: Option<OnceMark>,
}

/// Where it is written that a request was carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnceMark {
    /// The key of the record.
    pub record: String,
    /// The hexadecimal SHA-256 of what was asked for.
    pub request_hash: String,
}

impl Who {
    /// What the platform does by itself.
    pub const PLATFORM: Self = Self { token: None, from: None, once: None };
}

/// Adds to a change that it is told of, and that its request was carried out. `what` is a verb as the CLI
/// has it.
pub fn with_event(
    change: Transaction,
    who: &Who,
    project: Option<&ProjectName>,
    what: &str,
    subject: impl Display,
) -> Transaction {
    let event = EventView {
        at: now(),
        token: who.token.clone(),
        from: who.from.map(|from| from.to_string()),
        project: project.cloned(),
        what: what.to_owned(),
        subject: subject.to_string(),
    };
    // What comes in the same millisecond gets the next random number.
    let key = Key::Event(event.at, uuid::Uuid::new_v4().simple().to_string());
    let change = match &who.once {
        Some(OnceMark { record, request_hash }) => {
            let done =
                AnswerRecord { request_hash: request_hash.clone(), at: event.at, answer: None };
            change.put(record.clone(), encode(&done))
        }
        None => change,
    };
    change.put(key.to_string(), encode(&EventRecord(event)))
}

/// The newest events that `is_shown` lets pass, the newest last.
pub async fn newest(
    store: &dyn Store,
    limit: usize,
    is_shown: impl Fn(&EventView) -> bool,
) -> Result<Vec<EventView>, EventsError> {
    let mut shown = Vec::new();
    for stored in store.list(EVENTS, Page::default()).await?.items.iter().rev() {
        if shown.len() == limit {
            break;
        }
        let EventRecord(event) = decode(stored)?;
        if is_shown(&event) {
            shown.push(event);
        }
    }
    shown.reverse();
    Ok(shown)
}

/// An event and the revision that it was written in.
pub type Told = (Revision, EventView);

/// The newest events in memory. Cheap to clone.
#[derive(Debug, Clone)]
pub struct EventLog {
    newest: Arc<Mutex<Newest>>,
    revision: watch::Sender<Revision>,
}

#[derive(Debug, Default)]
struct Newest {
    /// Everything after this revision is there.
    complete_after: Revision,
    /// Up to this one, that is.
    complete_to: Revision,
    events: VecDeque<Told>,
}

impl Default for EventLog {
    fn default() -> Self {
        Self { newest: Arc::default(), revision: watch::channel(Revision::default()).0 }
    }
}

/// What somebody who follows the events has to be told next.
#[derive(Debug)]
pub struct News {
    /// True when there were others that are forgotten.
    pub missed: bool,
    /// The events, in the order in which they were written.
    pub events: Vec<Told>,
}

impl EventLog {
    /// Begins at a revision, up to which the store was listed.
    pub fn begin(&self, at: Revision) {
        let mut newest = self.lock();
        (newest.complete_after, newest.complete_to) = (at, at);
        drop(newest);
        self.revision.send_replace(at);
    }

    /// Takes over what was written in one revision, perhaps nothing of which is an event.
    pub fn push(&self, revision: Revision, stored: &[&KeyValue]) -> Result<(), RecordError> {
        let mut newest = self.lock();
        newest.complete_to = revision;
        for stored in stored {
            let EventRecord(event) = decode(stored)?;
            newest.events.push_back((revision, event));
        }
        while newest.events.len() > IN_MEMORY {
            if let Some((dropped, _)) = newest.events.pop_front() {
                newest.complete_after = dropped;
            }
        }
        if !stored.is_empty() {
            self.revision.send_replace(revision);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Newest> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells when there is more.
    pub fn subscribe(&self) -> watch::Receiver<Revision> {
        self.revision.subscribe()
    }

    /// What was written after `place`; moves that to the newest.
    pub async fn since(
        &self,
        place: &mut Revision,
        store: &dyn Store,
    ) -> Result<News, EventsError> {
        let seen = *place;
        if let Some(events) = self.in_memory_since(seen) {
            *place = events.last().map_or(seen, |(revision, _)| *revision);
            return Ok(News { missed: false, events });
        }
        let listing = store.list(EVENTS, Page::default()).await?;
        let mut events = Vec::new();
        for stored in listing.items.iter().filter(|stored| stored.mod_revision > seen) {
            let EventRecord(event) = decode(stored)?;
            events.push((stored.mod_revision, event));
        }
        events.sort_by_key(|(revision, _)| *revision);
        // Where the oldest that is kept is new to the reader too, there may have been others.
        let all_new = listing.items.len() >= KEPT && events.len() == listing.items.len();
        // A place that the store has not come to yet is one of another store.
        let foreign = seen > listing.revision;
        *place = listing.revision;
        Ok(News { missed: all_new || foreign, events })
    }

    fn in_memory_since(&self, seen: Revision) -> Option<Vec<Told>> {
        let newest = self.lock();
        let known = seen >= newest.complete_after && seen <= newest.complete_to;
        let new = newest.events.iter().filter(|(revision, _)| *revision > seen);
        known.then(|| new.cloned().collect())
    }
}

/// Why events cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// One cannot be understood.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Forgets the oldest when there are too many.
pub async fn forget_old(store: &dyn Store) -> Result<(), StoreError> {
    let kept = store.list(EVENTS, Page::default()).await?.items;
    let surplus = kept.len().saturating_sub(KEPT);
    for oldest in kept[..surplus].chunks(MAX_OPERATIONS) {
        let keys = oldest.iter().map(|stored| stored.key.clone());
        store.commit(keys.fold(Transaction::new(), Transaction::delete)).await?;
    }
    Ok(())
}
