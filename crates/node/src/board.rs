//! What the agent observes: one entry per instance, written by its actor alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use longshore_api::links::ObservedInstance;
use longshore_types::InstanceId;
use tokio::sync::watch;

/// Every instance as it was last observed.
pub type Entries = BTreeMap<InstanceId, Arc<ObservedInstance>>;

/// The entries, and who wants to know of changes.
#[derive(Debug)]
pub struct Board {
    entries: watch::Sender<Arc<Entries>>,
}

impl Default for Board {
    fn default() -> Self {
        Self { entries: watch::channel(Arc::default()).0 }
    }
}

impl Board {
    /// Replaces an entry.
    pub fn put(&self, observed: &ObservedInstance) {
        self.entries.send_if_modified(|entries| {
            let news = entries.get(&observed.instance).is_none_or(|before| **before != *observed);
            if news {
                let observed = Arc::new(observed.clone());
                Arc::make_mut(entries).insert(observed.instance.clone(), observed);
            }
            news
        });
    }

    /// Removes an entry.
    pub fn remove(&self, instance: &InstanceId) {
        self.entries.send_if_modified(|entries| Arc::make_mut(entries).remove(instance).is_some());
    }

    /// All entries now.
    pub fn now(&self) -> Arc<Entries> {
        Arc::clone(&self.entries.borrow())
    }

    /// Tells of changes.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Entries>> {
        self.entries.subscribe()
    }
}
