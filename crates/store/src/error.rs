//! What a store can answer instead of what was asked for.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::key_value::{LeaseId, Revision};

/// Why a store did not do what it was asked.
///
/// One type for all operations: an operation has two or three of these, and callers mostly pass
/// them on. After any but [`StoreError::Storage`] and [`StoreError::Closed`] it is certain that
/// nothing changed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// A key or prefix that no store accepts.
    #[error("key {key:?} {problem}")]
    InvalidKey {
        /// The key, cut to its first 80 characters.
        key: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// More conditions, or more operations in one branch, than a transaction may have.
    #[error("the transaction has {found} {what}, the limit is {limit}")]
    TooManyOperations {
        /// `conditions` or `operations`.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there may be.
        limit: usize,
    },
    /// A request above the limit, all keys and values of both branches counted.
    #[error("the request takes {bytes} bytes, the limit is {limit}")]
    RequestTooLarge {
        /// Its size in bytes.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// One branch of a transaction writes a key twice, or writes a key that it also deletes: the
    /// revision that it makes could then not be told as one event per key.
    #[error("the transaction writes key {key:?} more than once")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// A lease must last between one second and a year.
    #[error("a lease of {ttl:?} is outside 1 s to 365 days")]
    InvalidTtl {
        /// What was asked for.
        ttl: Duration,
    },
    /// The lease was never granted, was revoked or ran out.
    #[error("lease {lease} does not exist or has run out")]
    LeaseNotFound {
        /// The lease.
        lease: LeaseId,
    },
    /// The history asked for is gone. The way on is a fresh listing and a watch from there.
    #[error("revision {requested} was compacted away; history begins at {at}")]
    Compacted {
        /// The revision that was needed.
        requested: Revision,
        /// The oldest revision that can still be read and watched from.
        at: Revision,
    },
    /// The store has not come to that revision yet.
    #[error("revision {requested} is in the future; the store is at {current}")]
    FutureRevision {
        /// The revision asked for.
        requested: Revision,
        /// The newest revision there is.
        current: Revision,
    },
    /// The disk has less free than is kept for the store, so it was not written to. Nothing took
    /// effect, reads go on, and writes do once there is room.
    #[error(
        "the disk with {} is full: {} MiB are free, {} MiB are kept for the store",
        path.display(), free >> 20, needed >> 20
    )]
    DiskFull {
        /// The file of the store.
        path: PathBuf,
        /// What is free there, in bytes.
        free: u64,
        /// What must be, in bytes.
        needed: u64,
    },
    /// The store is being closed. For a commit: it may or may not have taken effect.
    #[error("the store is closed")]
    Closed,
    /// The disk or the remote store failed. For a commit: it may or may not have taken effect.
    ///
    /// The embedded store answers nothing else after this, since what is on disk is only certain
    /// again after it has been opened anew; its process should end and be restarted.
    #[error("the store failed while {doing}")]
    Storage {
        /// What it was doing, as a phrase.
        doing: &'static str,
        /// What went wrong; shared, as one failure fails every commit that waited for it.
        #[source]
        source: Arc<dyn Error + Send + Sync>,
    },
}
