//! What every store must do, as a list of cases that an implementation's tests run.
//!
//! The cases see a store only through [`Store`], so that they bind the embedded store and any other
//! alike. They assume nothing about the revision that an empty store is at, and wait for what must
//! happen instead of for a time.

mod certificates;
mod compaction;
mod etcd_server;
mod keys;
mod leases;
mod lists;
mod transactions;
mod watches;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::key_value::{Event, KeyValue, Revision};
use crate::store::Store;
use crate::transaction::{Transaction, TransactionResult};
use crate::watch::{Watch, WatchBatch};

pub use certificates::Certificates;
pub use etcd_server::{EtcdServer, ServerTls};

/// How long a case may take, and within it how long it waits for one event.
const CASE_DEADLINE: Duration = Duration::from_secs(120);
const EVENT_DEADLINE: Duration = Duration::from_secs(60);

/// One place for a store's state, empty at first.
pub trait Subject: Send {
    /// Opens the store. At a second call the handle of the first has been dropped, and what was
    /// committed through it must be there.
    fn open(&mut self) -> BoxFuture<'_, Arc<dyn Store>>;
}

/// One thing that a store must do.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// What it does, as the name of the function that checks it.
    pub name: &'static str,
    run: for<'a> fn(&'a mut dyn Subject) -> BoxFuture<'a, ()>,
}

impl Case {
    /// Checks it; panics when it does not hold.
    pub async fn run(&self, subject: &mut dyn Subject) {
        let done = tokio::time::timeout(CASE_DEADLINE, (self.run)(subject)).await;
        assert!(done.is_ok(), "not done after {CASE_DEADLINE:?}");
    }
}

macro_rules! cases {
    ($($module:ident::$name:ident),* $(,)?) => {
        &[$(Case {
            name: concat!(stringify!($module), "::", stringify!($name)),
            run: |subject| Box::pin($module::$name(subject)),
        }),*]
    };
}

/// All of it.
pub const CASES: &[Case] = cases![
    keys::a_put_is_read_back,
    keys::revisions_and_versions_count_writes,
    keys::a_deleted_key_comes_back_as_new,
    keys::unusable_keys_are_refused,
    keys::everything_survives_a_reopening,
    transactions::one_transaction_is_one_revision,
    transactions::what_changes_nothing_makes_no_revision,
    transactions::conditions_compare_as_etcd_does,
    transactions::all_conditions_must_hold,
    transactions::a_later_operation_sees_an_earlier_one,
    transactions::a_prefix_is_deleted_and_nothing_beside_it,
    transactions::those_in_order_go_no_further_than_one_that_is_refused,
    transactions::limits_are_kept_and_reached,
    transactions::concurrent_swaps_lose_no_update,
    lists::a_listing_is_in_order_and_under_its_prefix,
    lists::pages_are_of_one_revision,
    lists::the_past_can_be_listed,
    watches::a_watch_tells_what_happens,
    watches::a_watch_tells_what_happened,
    watches::a_watch_waits_for_a_revision_to_come,
    watches::one_revision_is_one_batch,
    watches::a_watch_keeps_to_its_prefix,
    watches::many_watches_see_the_same,
    watches::replay_goes_live_without_gap_or_duplicate,
    watches::a_slow_watch_loses_nothing,
    compaction::history_before_the_point_is_gone,
    compaction::keys_outlive_their_history,
    compaction::a_deletion_at_the_point_is_still_told,
    compaction::compacting_again_or_too_far,
    compaction::compaction_survives_a_reopening,
    leases::a_lease_that_runs_out_takes_its_keys,
    leases::a_renewed_lease_does_not_run_out,
    leases::a_revoked_lease_takes_its_keys,
    leases::a_key_follows_its_last_lease,
    leases::a_lease_that_is_not_there_is_refused,
    leases::leases_survive_a_reopening,
];

/// Runs every case on a subject of its own, at the same time.
///
/// # Panics
///
/// When one or more do not hold, after all have run; each has printed why by then.
pub async fn check_all(mut make: impl FnMut() -> Box<dyn Subject>) {
    let running: Vec<_> = CASES
        .iter()
        .map(|case| {
            let mut subject = make();
            let check = async move { case.run(&mut *subject).await };
            (case.name, tokio::spawn(check))
        })
        .collect();
    let mut failed = Vec::new();
    for (name, check) in running {
        if check.await.is_err() {
            failed.push(name);
        }
    }
    assert!(failed.is_empty(), "cases that do not hold: {failed:#?}");
}

/// Does a transaction that must be accepted.
async fn commit(store: &dyn Store, transaction: Transaction) -> TransactionResult {
    let result = store.commit(transaction).await;
    result.expect("the store accepts the transaction")
}

/// Writes one key; its revision.
async fn put(store: &dyn Store, key: &str, value: &'static str) -> Revision {
    commit(store, Transaction::new().put(key, value)).await.revision
}

/// Deletes one key; the revision afterwards.
async fn delete(store: &dyn Store, key: &str) -> Revision {
    commit(store, Transaction::new().delete(key)).await.revision
}

async fn get(store: &dyn Store, key: &str) -> Option<KeyValue> {
    store.get(key).await.expect("the store reads the key")
}

async fn watch(store: &dyn Store, prefix: &str, from: Revision) -> Watch {
    let watch = store.watch(prefix, from).await;
    watch.expect("the store watches from a revision that it keeps")
}

/// What the watch tells next.
async fn next(watch: &mut Watch) -> WatchBatch {
    tokio::time::timeout(EVENT_DEADLINE, watch.next())
        .await
        .expect("an event comes before the deadline")
        .expect("the watch goes on")
        .expect("the watch tells events")
}

/// What the next `n` revisions of the watch tell, shortened for comparing.
async fn next_n(watch: &mut Watch, n: usize) -> Vec<(Revision, Vec<String>)> {
    let mut told = Vec::new();
    while told.len() < n {
        let batch = next(watch).await;
        told.push((batch.revision, batch.events.iter().map(shorten).collect()));
    }
    told
}

/// `/key=value` or `-/key`.
fn shorten(event: &Event) -> String {
    match event {
        Event::Put(kv) => show(kv),
        Event::Delete { key, .. } => format!("-{key}"),
    }
}

/// `/key=value`.
fn show(kv: &KeyValue) -> String {
    format!("{}={}", kv.key, String::from_utf8_lossy(&kv.value))
}

fn show_all(items: &[KeyValue]) -> Vec<String> {
    items.iter().map(show).collect()
}
