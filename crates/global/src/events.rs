//! What was changed, by whom and from where.
//!
//! An event is written in the transaction of its change, so that there is neither without the other. What
//! is no change of the store, a command that is run inside, is written before it is done.

use std::fmt::Display;
use std::net::SocketAddr;

use longshore_api::v1::EventView;
use longshore_link::now;
use longshore_store::{MAX_OPERATIONS, Page, RecordError, Store, StoreError, Transaction};
use longshore_types::{AppName, ProjectName};

use crate::records::{EventRecord, Key, decode, encode};

/// Below this, one record per event, in the order of their times.
const EVENTS: &str = "/events/";
/// How many are kept.
const KEPT: usize = 10_000;

/// Who changes something.
#[derive(Debug, Clone)]
pub struct Who {
    /// The name of the token; the platform itself when absent.
    pub token: Option<AppName>,
    /// The other end of the connection.
    pub from: Option<SocketAddr>,
}

impl Who {
    /// What the platform does by itself.
    pub const PLATFORM: Self = Self { token: None, from: None };
}

/// Adds to a change that it is told of. `what` is a verb as the CLI has it.
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
