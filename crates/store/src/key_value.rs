//! What a store holds and reports: keys with their values and histories, and the changes to them.

use std::fmt;

use bytes::Bytes;

/// A point in the history of one store: the number of writing transactions up to and with it.
///
/// It is global to the store, so two keys written by one transaction carry the same revision. An
/// empty store is at revision 1, as etcd's is. Revisions of different stores are not comparable,
/// and a restored store may repeat one: nothing that must grow for ever may be built from them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision(pub u64);

impl Revision {
    /// The revision after this one; a watch that follows a listing starts here.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The name of a lease, chosen by the store that granted it; never used twice by one store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A key as it stood at some revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: Bytes,
    /// The revision at which the key came into being, after its last deletion if it had one.
    pub create_revision: Revision,
    /// The revision that last wrote it; a condition on this is a compare-and-swap.
    pub mod_revision: Revision,
    /// How often it was written since it came into being: 1 after the first time.
    pub version: u64,
    /// The lease that the last write tied it to; it is deleted with that lease.
    pub lease: Option<LeaseId>,
}

/// One change to one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The key was written; this is how it stood afterwards.
    Put(KeyValue),
    /// The key was deleted, by a transaction or with its lease.
    Delete {
        /// The key that is gone.
        key: String,
        /// The revision of the deletion.
        revision: Revision,
    },
}

impl Event {
    /// The key that changed.
    pub fn key(&self) -> &str {
        match self {
            Self::Put(kv) => &kv.key,
            Self::Delete { key, .. } => key,
        }
    }

    /// The revision of the change.
    pub fn revision(&self) -> Revision {
        match self {
            Self::Put(kv) => kv.mod_revision,
            Self::Delete { revision, .. } => *revision,
        }
    }
}
