//! Longshore's state: a key-value store with etcd's semantics behind one trait.
//!
//! [`Store`] is what services use, as `Arc<dyn Store>`: revisions, conditional transactions,
//! leases, watches that resume, compaction. [`RedbStore`] is the embedded implementation, one file
//! with nothing to install; [`EtcdStore`] is an etcd cluster, and [`conformance`] is the list of what
//! both must do. [`record`] gives stored values a version. [`backup`] is what a store holds as a file,
//! [`restore`] fills an empty store from that, and [`world`] tells the lives of a store apart.
//!
//! The crate knows nothing of apps or locations: who owns a key decides what is in it.
//! Test: `cargo nextest run -p longshore-store`.

#![deny(missing_docs)]

pub mod backup;
pub mod conformance;
pub mod record;
pub mod restore;
pub mod world;

mod embedded;
mod error;
mod etcd;
mod key;
mod key_value;
mod metrics;
mod store;
mod transaction;
mod watch;

pub use embedded::{OpenStoreError, RedbOptions, RedbStore};
pub use error::StoreError;
pub use etcd::{
    BadEtcdAddress, EtcdAddress, EtcdStore, EtcdTls, EtcdTlsFile, EtcdTlsFiles, EtcdTlsProblem,
};
pub use key::MAX_KEY_BYTES;
pub use key_value::{Event, KeyValue, LeaseId, Revision};
pub use metrics::{Measured, StoreMetrics};
pub use record::{Record, RecordError};
pub use store::{Listing, Page, Store};
pub use transaction::{
    Compare, MAX_OPERATIONS, MAX_REQUEST_BYTES, Op, OpResponse, Relation, Target, Transaction,
    TransactionResult,
};
pub use watch::{Watch, WatchBatch};

/// What another implementation of a store provides and is given. Users of a store need none of it.
pub mod backend {
    pub use crate::key::{Key, Prefix};
    pub use crate::store::Backend;
    pub use crate::transaction::CheckedTransaction;
}
