//! The embedded store: one redb file and its journal, one thread that writes, any number of readers.
//!
//! redb gives atomic, durable transactions over tables and snapshots for readers; revisions,
//! history, leases and watches are built on top (see `embedded/tables.rs` for how they are stored).
//! Every commit waits for the disk, and one wait serves all commits that gathered during the last
//! one, so many writers cost little more than one. What they wait for is a record in the journal
//! (`embedded/journal.rs`); redb itself writes once for many of them (`embedded/writer.rs`), or when somebody
//! reads, which who keeps up by a watch does not.
//!
//! redb commits in one phase with checksums, and a file that was not closed is walked through once
//! when it is opened. Its alternative, two phases and a saved allocator, would open at once and wait
//! for the disk twice on each commit; control-plane state is small and is written far more often
//! than it is opened.

mod apply;
mod compaction;
mod follow;
mod journal;
mod leases;
mod open;
mod queue;
mod read;
mod recent;
mod steps;
mod tables;
mod writer;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use redb::{Database, ReadableDatabase, ReadableTable};
use tokio::sync::{oneshot, watch};

use crate::error::StoreError;
use crate::key::{Key, Prefix};
use crate::key_value::{KeyValue, LeaseId, Revision};
use crate::store::{Backend, Listing, Page};
use crate::transaction::{CheckedTransaction, TransactionResult};
use crate::watch::{Watch, WatchBatch};

use self::leases::LeaseClock;
use self::open::Opened;
use self::queue::{Queue, Reply, Request};
use self::read::Snapshot;
use self::recent::Recent;

pub use self::open::OpenStoreError;

/// With so many bytes no more transactions are added to those that are done in one batch, whose room in the journal
/// has a limit.
const MAX_TOGETHER_BYTES: usize = 4 << 20;

/// How an embedded store runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedbOptions {
    /// Compact by itself so that at least this many of the newest revisions, and few more, can be
    /// read and watched from; `None` leaves compaction to [`crate::Store::compact`].
    pub keep_revisions: Option<u64>,
    /// The most memory for cached pages, in bytes.
    pub cache_bytes: usize,
    /// With less than this free on its disk, in bytes, the store refuses to write: a write that
    /// fails half way would cost its process a restart.
    pub kept_free: u64,
}

impl Default for RedbOptions {
    /// 10,000 revisions, 16 MiB; 48 MiB kept free: a batch of commits may come to 8 MiB in the journal, and with
    /// what that has from before to twice as much in the file.
    fn default() -> Self {
        Self { keep_revisions: Some(10_000), cache_bytes: 16 << 20, kept_free: 48 << 20 }
    }
}

/// The embedded [`crate::Store`]. One process holds a file at a time.
///
/// Dropping it finishes what was asked of it, closes the file and ends its watches; it blocks for as
/// long as the disk takes. Its methods need a tokio runtime.
#[derive(Debug)]
pub struct RedbStore {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

impl RedbStore {
    /// Opens the store in the file at `path`, which is made if it is not there; its directory must
    /// be. Every lease starts with its full time.
    pub fn open(path: &Path) -> Result<Self, OpenStoreError> {
        Self::open_with(path, &RedbOptions::default())
    }

    /// Opens the store with options other than the default.
    pub fn open_with(path: &Path, options: &RedbOptions) -> Result<Self, OpenStoreError> {
        let opened = open::open(path, options.cache_bytes)?;
        let room = Room { path: path.to_owned(), kept_free: options.kept_free };
        Self::start(path, opened, options.keep_revisions, Some(room))
    }

    /// The files of the store at `path`: itself, and its journal. They belong together.
    pub fn files(path: &Path) -> [PathBuf; 2] {
        [path.to_owned(), open::journal_of(path)]
    }

    /// Starts the writer of a store that has been opened; `path` is for the errors.
    fn start(
        path: &Path,
        Opened { database, journal }: Opened,
        keep_revisions: Option<u64>,
        room: Option<Room>,
    ) -> Result<Self, OpenStoreError> {
        let unreadable = |source: StoreError| OpenStoreError::Read {
            path: path.to_owned(),
            source: source.into(),
        };
        let newest = Snapshot::take(&database).map_err(unreadable)?.revision;
        let leases = restore_leases(&database).map_err(unreadable)?;
        let shared = Arc::new(Shared {
            database: RwLock::new(Some(database)),
            queue: Queue::new(),
            leases: Mutex::new(leases),
            recent: Recent::default(),
            newest: watch::Sender::new(newest),
            is_unsettled: AtomicBool::new(false),
            failure: OnceLock::new(),
            room,
        });
        let writer = writer::spawn(Arc::clone(&shared), journal, keep_revisions)
            .map_err(|source| OpenStoreError::Open { path: path.to_owned(), source })?;
        Ok(Self { shared, writer: Some(writer) })
    }
}

impl Drop for RedbStore {
    fn drop(&mut self) {
        self.shared.queue.close();
        if self.writer.take().is_some_and(|writer| writer.join().is_err()) {
            tracing::error!("the store's writer panicked");
        }
        // Taking the lock waits for the reads under way, so that the file is free afterwards.
        let database = self.shared.database.write();
        let database = database.unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Err(error)) = database.map(Database::close) {
            tracing::warn!(
                error = &error as &dyn Error,
                "the store's file was not closed properly, the next opening will repair it"
            );
        }
        self.shared.fail(&StoreError::Closed);
    }
}

fn restore_leases(database: &Database) -> Result<LeaseClock, StoreError> {
    let reading = "reading its leases";
    let transaction = database.begin_read().map_err(fault(reading))?;
    let table = transaction.open_table(tables::LEASES).map_err(fault(reading))?;
    let now = Instant::now();
    let mut clock = LeaseClock::default();
    for row in table.iter().map_err(fault(reading))? {
        let (id, ttl_ms) = row.map_err(fault(reading))?;
        let ttl = Duration::from_millis(ttl_ms.value());
        clock.start(LeaseId(id.value()), ttl, now);
    }
    Ok(clock)
}

/// What the store's methods, its writer and its watches share.
#[derive(Debug)]
struct Shared {
    /// `None` once the store is closed.
    database: RwLock<Option<Database>>,
    queue: Queue,
    leases: Mutex<LeaseClock>,
    recent: Recent,
    /// The newest revision that is on disk and in `recent`.
    newest: watch::Sender<Revision>,
    /// Whether something was acknowledged that a snapshot would not have yet.
    is_unsettled: AtomicBool,
    /// Set once, when the disk has failed or the store is closed.
    failure: OnceLock<StoreError>,
    /// The disk of its file; absent when it has none.
    room: Option<Room>,
}

/// The disk that a store lies on.
#[derive(Debug)]
struct Room {
    path: PathBuf,
    kept_free: u64,
}

impl Room {
    /// Fails when less is free than is kept for the store. A disk that cannot be asked is taken to
    /// have room: writing tells.
    fn check(&self) -> Result<(), StoreError> {
        let Ok(space) = rustix::fs::statvfs(&self.path) else { return Ok(()) };
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        if free >= self.kept_free {
            return Ok(());
        }
        Err(StoreError::DiskFull { path: self.path.clone(), free, needed: self.kept_free })
    }
}

impl Shared {
    fn with_database<T>(
        &self,
        use_it: impl FnOnce(&Database) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        use_it(database.as_ref().ok_or(StoreError::Closed)?)
    }

    /// Reads from a snapshot, which has all that was acknowledged before, on a thread that may wait for the
    /// disk.
    async fn snapshot<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Snapshot) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.check_usable()?;
        if self.is_unsettled.load(Ordering::Acquire) {
            self.ask(|reply| Request::Settle { reply }).await?;
        }
        let shared = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            shared.with_database(|database| read(&Snapshot::take(database)?))
        })
        .await
        .unwrap_or_else(|error| Err(fault("running a read")(error)))
    }

    fn lease_clock(&self) -> MutexGuard<'_, LeaseClock> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes known what is on disk now.
    fn publish(&self, changes: Vec<WatchBatch>) {
        let Some(newest) = changes.last().map(|change| change.revision) else {
            return;
        };
        for change in changes {
            self.recent.push(change);
        }
        self.newest.send_replace(newest);
    }

    /// Lets every later call fail with `error`, and the watches now.
    fn fail(&self, error: &StoreError) {
        self.failure.get_or_init(|| error.clone());
        self.newest.send_modify(|_| ());
    }

    fn check_usable(&self) -> Result<(), StoreError> {
        match self.failure.get() {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// Hands a request to the writer and waits for its answer.
    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let closed = || self.failure.get().cloned().unwrap_or(StoreError::Closed);
        let queued = self.queue.push(request(reply)).await;
        queued.map_err(|_| closed())?;
        answer.await.unwrap_or_else(|_| Err(closed()))
    }
}

impl Backend for RedbStore {
    async fn get(&self, key: Key<'_>) -> Result<Option<KeyValue>, StoreError> {
        let key = key.as_str().to_owned();
        self.shared.snapshot(move |snapshot| snapshot.get(&key)).await
    }

    async fn list(&self, prefix: Prefix<'_>, page: Page) -> Result<Listing, StoreError> {
        let prefix = prefix.as_str().to_owned();
        self.shared.snapshot(move |snapshot| snapshot.list(&prefix, &page)).await
    }

    async fn commit(
        &self,
        transaction: CheckedTransaction,
    ) -> Result<TransactionResult, StoreError> {
        self.shared.ask(|reply| Request::Commit { transaction, reply }).await
    }

    async fn commit_in_order(
        &self,
        transactions: Vec<CheckedTransaction>,
    ) -> Result<Vec<TransactionResult>, StoreError> {
        let mut results = Vec::with_capacity(transactions.len());
        let mut left = transactions.into_iter().peekable();
        while left.peek().is_some() {
            // What is in one batch is refused as a whole when the disk is full, and this waits for each batch.
            let (mut together, mut n_bytes) = (Vec::new(), 0);
            while n_bytes < MAX_TOGETHER_BYTES
                && let Some(transaction) = left.next()
            {
                n_bytes += transaction.n_bytes();
                together.push(transaction);
            }
            let asked = |reply| Request::CommitInOrder { transactions: together, reply };
            results.extend(self.shared.ask(asked).await?);
        }
        Ok(results)
    }

    async fn watch(&self, prefix: Prefix<'_>, from: Revision) -> Result<Watch, StoreError> {
        self.shared.snapshot(move |snapshot| snapshot.check_kept(from)).await?;
        Ok(follow::follow(&self.shared, prefix.as_str(), from))
    }

    async fn compact(&self, to: Revision) -> Result<(), StoreError> {
        // In stretches, so that other commits are served in between.
        while !self.shared.ask(|reply| Request::Compact { to, reply }).await? {}
        Ok(())
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.shared.ask(|reply| Request::Grant { ttl, reply }).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.shared.check_usable()?;
        // Not through the writer: a renewal must not be late because the disk is slow.
        if self.shared.lease_clock().renew(lease, Instant::now()) {
            Ok(())
        } else {
            Err(StoreError::LeaseNotFound { lease })
        }
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.shared.ask(|reply| Request::Revoke { lease, reply }).await
    }
}

/// Turns an error of the disk, redb's mostly, into the store's.
fn fault<E: Error + Send + Sync + 'static>(doing: &'static str) -> impl FnOnce(E) -> StoreError {
    move |source| StoreError::Storage { doing, source: Arc::new(source) }
}

#[cfg(test)]
mod tests;
