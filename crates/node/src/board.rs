//! What the agent observes: one entry per instance, written by its actor alone.

use std::sync::Arc;

use longshore_api::links::{ObservedInstance, Told};
use longshore_types::InstanceId;
use tokio::sync::watch;

/// Every instance as it was last observed.
pub type Entries = Told<ObservedInstance>;

/// The entries, and who wants to know of changes.
#[derive(Debug)]
pub struct Board {
    entries: watch::Sender<Entries>,
}

impl Default for Board {
    fn default() -> Self {
        Self { entries: watch::channel(Entries::default()).0 }
    }
}

impl Board {
    /// Replaces an entry.
    pub fn put(&self, observed: &ObservedInstance) {
        self.entries.send_if_modified(|entries| {
            let news = entries.get(&observed.instance).is_none_or(|before| **before != *observed);
            if news {
                entries.insert(observed.instance.clone(), Arc::new(observed.clone()));
            }
            news
        });
    }

    /// Removes an entry.
    pub fn remove(&self, instance: &InstanceId) {
        self.entries.send_if_modified(|entries| entries.remove(instance));
    }

    /// All entries now.
    pub fn now(&self) -> Entries {
        self.entries.borrow().clone()
    }

    /// Tells of changes.
    pub fn subscribe(&self) -> watch::Receiver<Entries> {
        self.entries.subscribe()
    }
}
