//! What a store tells operators; `docs/metrics.md` says what each means.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use longshore_telemetry::metrics::{Registry, Unit, times};
use longshore_telemetry::scrape::at_scrape;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

use crate::embedded::RedbStore;
use crate::error::StoreError;
use crate::key::{Key, Prefix};
use crate::key_value::{KeyValue, LeaseId, Revision};
use crate::store::{Backend, Listing, Page};
use crate::transaction::{CheckedTransaction, TransactionResult};
use crate::watch::Watch;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Committed {
    outcome: &'static str,
}

const OUTCOMES: [&str; 3] = [DONE, DISK_FULL, FAILED];
const DONE: &str = "done";
const DISK_FULL: &str = "disk_full";
const FAILED: &str = "failed";

/// The metrics of a store.
#[derive(Debug, Clone)]
pub struct StoreMetrics {
    commits: Family<Committed, Counter>,
    duration: Histogram,
}

impl Default for StoreMetrics {
    fn default() -> Self {
        let commits = Family::<Committed, Counter>::default();
        // They are told from the beginning, so that the first failure is a change.
        for outcome in OUTCOMES {
            drop(commits.get_or_create(&Committed { outcome }));
        }
        Self { commits, duration: times() }
    }
}

impl StoreMetrics {
    /// So many transactions were done together, or the first that was not has failed: of transactions in order that
    /// failed this alone is counted, once, and none that was done before it.
    fn note(&self, began: Instant, done: Result<usize, &StoreError>) {
        let took = began.elapsed().as_secs_f64();
        let (outcome, n_ended) = match done {
            Ok(n_done) => (DONE, n_done),
            Err(StoreError::DiskFull { .. }) => (DISK_FULL, 1),
            Err(_) => (FAILED, 1),
        };
        let commits = self.commits.get_or_create(&Committed { outcome });
        for _ in 0..n_ended {
            self.duration.observe(took);
            commits.inc();
        }
    }

    /// Fills a registry with these and with the size of the store's file and journal.
    pub fn register(&self, registry: &mut Registry, file: PathBuf) {
        let registry = registry.sub_registry_with_prefix("longshore_store");
        let help = "Transactions by how they ended: done, disk_full, failed";
        registry.register("commits", help, self.commits.clone());
        registry.register_with_unit(
            "commit_duration",
            "From a transaction to its answer, the wait for the disk included",
            Unit::Seconds,
            self.duration.clone(),
        );
        at_scrape(registry, move |scrape| {
            let size = |path: &PathBuf| std::fs::metadata(path).map_or(0, |found| found.len());
            let size: u64 = RedbStore::files(&file).iter().map(size).sum();
            scrape.gauge("size_bytes", "The size of the file and its journal", size as f64)
        });
    }
}

/// A store whose commits are counted and measured.
#[derive(Debug)]
pub struct Measured<B> {
    store: B,
    metrics: StoreMetrics,
}

impl<B: Backend> Measured<B> {
    /// The store, told of by `metrics`.
    pub fn new(store: B, metrics: StoreMetrics) -> Self {
        Self { store, metrics }
    }
}

impl<B: Backend> Backend for Measured<B> {
    async fn commit(
        &self,
        transaction: CheckedTransaction,
    ) -> Result<TransactionResult, StoreError> {
        let began = Instant::now();
        let result = self.store.commit(transaction).await;
        self.metrics.note(began, result.as_ref().map(|_| 1));
        result
    }

    async fn commit_in_order(
        &self,
        transactions: Vec<CheckedTransaction>,
    ) -> Result<Vec<TransactionResult>, StoreError> {
        let began = Instant::now();
        let results = self.store.commit_in_order(transactions).await;
        self.metrics.note(began, results.as_ref().map(Vec::len));
        results
    }

    async fn get(&self, key: Key<'_>) -> Result<Option<KeyValue>, StoreError> {
        self.store.get(key).await
    }

    async fn list(&self, prefix: Prefix<'_>, page: Page) -> Result<Listing, StoreError> {
        self.store.list(prefix, page).await
    }

    async fn watch(&self, prefix: Prefix<'_>, from: Revision) -> Result<Watch, StoreError> {
        self.store.watch(prefix, from).await
    }

    async fn compact(&self, to: Revision) -> Result<(), StoreError> {
        self.store.compact(to).await
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.store.grant_lease(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.keep_alive(lease).await
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.revoke_lease(lease).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Store, Transaction};

    #[tokio::test]
    async fn commits_are_counted_and_measured_and_reads_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("store.redb");
        let metrics = StoreMetrics::default();
        let mut registry = Registry::default();
        metrics.register(&mut registry, file.clone());
        let store = Measured::new(RedbStore::open(&file).unwrap(), metrics);
        for value in ["1", "2"] {
            Store::commit(&store, Transaction::new().put("/a", value)).await.unwrap();
        }
        assert!(Store::get(&store, "/a").await.unwrap().is_some());
        let text = longshore_telemetry::metrics::text(&registry);
        assert!(text.contains("longshore_store_commits_total{outcome=\"done\"} 2\n"), "{text}");
        assert!(text.contains("longshore_store_commit_duration_seconds_count 2\n"), "{text}");
        let size = text.lines().find_map(|line| line.strip_prefix("longshore_store_size_bytes "));
        assert!(size.unwrap().parse::<f64>().unwrap() > 0.0, "{text}");
    }
}
