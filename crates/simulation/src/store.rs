//! A store in memory, as one would first think of it: the keys, and every change there ever was.
//!
//! It does what the conformance suite asks, and has no thread and no file, so that all it does follows from what
//! it is asked and from the clock of the runtime. A [`Way`] to it is what one process has: with delays, and cut off
//! at times, and then what it wanted written may have been or not.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::stream;
use longshore_store::backend::{Backend, CheckedTransaction, Key, Prefix};
use longshore_store::{
    Compare, Event, KeyValue, LeaseId, Listing, Op, OpResponse, Page, Revision, StoreError, Target,
    TransactionResult, Watch, WatchBatch,
};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

type Keys = BTreeMap<String, KeyValue>;

/// The store. Its clones are the same one.
#[derive(Clone)]
pub struct Memory(Arc<Shared>);

struct Shared {
    inner: Mutex<Inner>,
    newest: watch::Sender<Revision>,
}

struct Inner {
    revision: Revision,
    keys: Keys,
    /// The keys before the oldest change that is kept.
    base: Keys,
    history: Vec<WatchBatch>,
    compacted: Revision,
    leases: BTreeMap<LeaseId, Lease>,
    last_lease: u64,
}

struct Lease {
    ttl: Duration,
    ends: Instant,
}

/// What a transaction has changed so far.
struct Draft<'a> {
    inner: &'a mut Inner,
    revision: Revision,
    events: Vec<Event>,
}

impl Draft<'_> {
    fn put(&mut self, key: &str, value: &bytes::Bytes, lease: Option<LeaseId>) {
        let old = self.inner.keys.get(key);
        let new = KeyValue {
            key: key.to_owned(),
            value: value.clone(),
            create_revision: old.map_or(self.revision, |old| old.create_revision),
            mod_revision: self.revision,
            version: old.map_or(1, |old| old.version + 1),
            lease,
        };
        self.inner.keys.insert(key.to_owned(), new.clone());
        self.events.push(Event::Put(new));
    }

    fn delete(&mut self, keys: Vec<String>) -> u64 {
        let mut n_deleted = 0;
        for key in keys {
            if self.inner.keys.remove(&key).is_some() {
                n_deleted += 1;
                self.events.push(Event::Delete { key, revision: self.revision });
            }
        }
        n_deleted
    }

    fn operation(&mut self, operation: &Op) -> OpResponse {
        match operation {
            Op::Put { key, value, lease } => {
                self.put(key, value, *lease);
                OpResponse::Put
            }
            Op::Delete { key } => OpResponse::Deleted(self.delete(vec![key.clone()])),
            Op::DeletePrefix { prefix } => {
                let under = self.inner.under(prefix).map(|found| found.key.clone()).collect();
                OpResponse::Deleted(self.delete(under))
            }
            Op::Get { key } => OpResponse::Got(self.inner.keys.get(key).cloned()),
            Op::GetPrefix { prefix } => {
                OpResponse::GotPrefix(self.inner.under(prefix).cloned().collect())
            }
        }
    }

    /// Makes one revision of it, where anything changed.
    fn settle(self) {
        if !self.events.is_empty() {
            self.inner.revision = self.revision;
            let (revision, events) = (self.revision, self.events);
            self.inner.history.push(WatchBatch { revision, events });
        }
    }
}

impl Inner {
    fn under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a KeyValue> {
        let from = self.keys.range(prefix.to_owned()..).map(|(_, found)| found);
        from.take_while(move |found| found.key.starts_with(prefix))
    }

    fn draft(&mut self) -> Draft<'_> {
        Draft { revision: self.revision.next(), events: Vec::new(), inner: self }
    }

    fn end(&mut self, lease: LeaseId) {
        self.leases.remove(&lease);
        let its = self.keys.values().filter(|found| found.lease == Some(lease));
        let its = its.map(|found| found.key.clone()).collect();
        let mut draft = self.draft();
        draft.delete(its);
        draft.settle();
    }

    /// Ends the leases that have run out.
    fn expire(&mut self, now: Instant) {
        let over = self.leases.iter().filter(|(_, lease)| lease.ends <= now);
        for lease in over.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.end(lease);
        }
    }

    fn next_end(&self) -> Option<Instant> {
        self.leases.values().map(|lease| lease.ends).min()
    }

    fn check_kept(&self, revision: Revision) -> Result<(), StoreError> {
        if revision < self.compacted {
            return Err(StoreError::Compacted { requested: revision, at: self.compacted });
        }
        Ok(())
    }

    fn check_there(&self, requested: Revision) -> Result<(), StoreError> {
        let current = self.revision;
        if requested > current {
            return Err(StoreError::FutureRevision { requested, current });
        }
        Ok(())
    }

    /// The keys as of a revision.
    fn as_of(&self, at: Revision) -> Keys {
        let mut keys = self.base.clone();
        for batch in self.history.iter().take_while(|batch| batch.revision <= at) {
            apply(&mut keys, batch);
        }
        keys
    }

    fn list(&self, prefix: &str, page: &Page) -> Result<Listing, StoreError> {
        let revision = page.at.unwrap_or(self.revision);
        self.check_kept(revision)?;
        self.check_there(revision)?;
        let past = (revision < self.revision).then(|| self.as_of(revision));
        let keys = past.as_ref().unwrap_or(&self.keys);
        let is_after = |key: &str| page.after.as_deref().is_none_or(|after| key > after);
        let under = keys.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        let mut found = under.filter(|(key, _)| is_after(key)).map(|(_, found)| found.clone());
        let items = found.by_ref().take(page.limit.unwrap_or(usize::MAX)).collect();
        Ok(Listing { items, revision, more: found.next().is_some() })
    }

    fn holds(&self, condition: &Compare) -> bool {
        let found = self.keys.get(&condition.key);
        let relation = condition.relation;
        let number = |of: fn(&KeyValue) -> u64| found.map_or(0, of);
        match &condition.target {
            Target::CreateRevision(given) => {
                relation.holds(&number(|found| found.create_revision.0), &given.0)
            }
            Target::ModRevision(given) => {
                relation.holds(&number(|found| found.mod_revision.0), &given.0)
            }
            Target::Version(given) => relation.holds(&number(|found| found.version), given),
            Target::Value(given) => found.is_some_and(|found| relation.holds(&found.value, given)),
        }
    }

    fn commit(
        &mut self,
        transaction: &CheckedTransaction,
    ) -> Result<TransactionResult, StoreError> {
        let succeeded = transaction.conditions().iter().all(|condition| self.holds(condition));
        let operations = transaction.branch(succeeded);
        for operation in operations {
            if let Op::Put { lease: Some(lease), .. } = operation
                && !self.leases.contains_key(lease)
            {
                return Err(StoreError::LeaseNotFound { lease: *lease });
            }
        }
        let mut draft = self.draft();
        let responses = operations.iter().map(|operation| draft.operation(operation)).collect();
        draft.settle();
        Ok(TransactionResult { succeeded, revision: self.revision, responses })
    }

    fn compact(&mut self, to: Revision) -> Result<(), StoreError> {
        self.check_there(to)?;
        if to > self.compacted {
            let kept = self.history.partition_point(|batch| batch.revision < to);
            for batch in self.history.drain(..kept) {
                apply(&mut self.base, &batch);
            }
            self.compacted = to;
        }
        Ok(())
    }

    /// The first change under a prefix from a revision on.
    fn next_batch(&self, prefix: &str, from: Revision) -> Result<Option<WatchBatch>, StoreError> {
        self.check_kept(from)?;
        let first = self.history.partition_point(|batch| batch.revision < from);
        let mut batches = self.history[first..].iter().map(|batch| WatchBatch {
            revision: batch.revision,
            events: batch
                .events
                .iter()
                .filter(|one| one.key().starts_with(prefix))
                .cloned()
                .collect(),
        });
        Ok(batches.find(|batch| !batch.events.is_empty()))
    }
}

fn apply(keys: &mut Keys, batch: &WatchBatch) {
    for event in &batch.events {
        match event {
            Event::Put(new) => _ = keys.insert(new.key.clone(), new.clone()),
            Event::Delete { key, .. } => _ = keys.remove(key),
        }
    }
}

impl Default for Memory {
    fn default() -> Self {
        let inner = Inner {
            revision: Revision(1),
            keys: Keys::new(),
            base: Keys::new(),
            history: Vec::new(),
            compacted: Revision(0),
            leases: BTreeMap::new(),
            last_lease: 0,
        };
        let newest = watch::Sender::new(inner.revision);
        Self(Arc::new(Shared { inner: Mutex::new(inner), newest }))
    }
}

impl Memory {
    /// Gives every lease its whole time anew, as a store that is started again does.
    pub fn restart(&self) {
        let now = Instant::now();
        let mut inner = self.inner();
        inner.leases.values_mut().for_each(|lease| lease.ends = now + lease.ttl);
    }

    /// Ends what has run out by now.
    pub fn expire(&self) {
        self.change(|_| ());
    }

    /// The newest revision.
    pub fn revision(&self) -> Revision {
        self.inner().revision
    }

    /// The changes after a revision.
    pub fn changes_after(&self, revision: Revision) -> Vec<WatchBatch> {
        let inner = self.inner();
        let first = inner.history.partition_point(|batch| batch.revision <= revision);
        inner.history[first..].to_vec()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let (result, newest) = {
            let mut inner = self.inner();
            inner.expire(Instant::now());
            (change(&mut inner), inner.revision)
        };
        self.0.newest.send_if_modified(|known| std::mem::replace(known, newest) != newest);
        result
    }

    async fn next_batch(&self, prefix: &str, from: Revision) -> Result<WatchBatch, StoreError> {
        let mut newest = self.0.newest.subscribe();
        loop {
            let (found, end) =
                self.change(|inner| (inner.next_batch(prefix, from), inner.next_end()));
            if let Some(batch) = found? {
                return Ok(batch);
            }
            newest.mark_unchanged();
            let end = async {
                match end {
                    Some(end) => sleep_until(end).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // The sender lives as long as this.
                _ = newest.changed() => {}
                () = end => {}
            }
        }
    }
}

impl Backend for Memory {
    async fn get(&self, key: Key<'_>) -> Result<Option<KeyValue>, StoreError> {
        Ok(self.change(|inner| inner.keys.get(key.as_str()).cloned()))
    }

    async fn list(&self, prefix: Prefix<'_>, page: Page) -> Result<Listing, StoreError> {
        self.change(|inner| inner.list(prefix.as_str(), &page))
    }

    async fn commit(
        &self,
        transaction: CheckedTransaction,
    ) -> Result<TransactionResult, StoreError> {
        self.change(|inner| inner.commit(&transaction))
    }

    async fn watch(&self, prefix: Prefix<'_>, from: Revision) -> Result<Watch, StoreError> {
        self.change(|inner| inner.check_kept(from))?;
        let followed = Some((self.clone(), prefix.as_str().to_owned(), from));
        Ok(Watch::new(stream::unfold(followed, |followed| async {
            let (store, prefix, from) = followed?;
            match store.next_batch(&prefix, from).await {
                Ok(batch) => {
                    let next = batch.revision.next();
                    Some((Ok(batch), Some((store, prefix, next))))
                }
                Err(error) => Some((Err(error), None)),
            }
        })))
    }

    async fn compact(&self, to: Revision) -> Result<(), StoreError> {
        self.change(|inner| inner.compact(to))
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        Ok(self.change(|inner| {
            inner.last_lease += 1;
            let id = LeaseId(inner.last_lease);
            inner.leases.insert(id, Lease { ttl, ends: Instant::now() + ttl });
            id
        }))
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.change(|inner| match inner.leases.get_mut(&lease) {
            Some(known) => {
                known.ends = Instant::now() + known.ttl;
                Ok(())
            }
            None => Err(StoreError::LeaseNotFound { lease }),
        })
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.change(|inner| match inner.leases.contains_key(&lease) {
            true => {
                inner.end(lease);
                Ok(())
            }
            false => Err(StoreError::LeaseNotFound { lease }),
        })
    }
}

/// How a process reaches the store: its requests and the answers take their time, and none comes through while
/// the way is cut.
pub struct Way {
    store: Memory,
    /// The control plane that this is the way of, and where it is told of what it may not write.
    of: Option<(String, Strayed)>,
    random: Mutex<fastrand::Rng>,
    cut: watch::Receiver<bool>,
}

/// Plans that were written by who did not lead, a line each.
pub type Strayed = Arc<Mutex<Vec<String>>>;

/// How long a request waits for the way to be there again before it is given up.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct CutOff;

impl std::fmt::Display for CutOff {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the way to the store is cut")
    }
}

impl std::error::Error for CutOff {}

impl Way {
    /// A way that is cut as long as `cut` says so.
    pub fn new(store: Memory, seed: u64, cut: watch::Receiver<bool>) -> Self {
        Self { store, of: None, random: Mutex::new(fastrand::Rng::with_seed(seed)), cut }
    }

    /// The same for the control plane of this id. What it plans without the lead is told.
    #[must_use]
    pub fn of(mut self, id: String, strayed: Strayed) -> Self {
        self.of = Some((id, strayed));
        self
    }

    /// A transaction, with a look at who leads at that moment.
    fn commit_now(
        &self,
        transaction: &CheckedTransaction,
    ) -> Result<TransactionResult, StoreError> {
        let plans = |operation: &Op| match operation {
            Op::Put { key, .. } | Op::Delete { key } => key.starts_with("/allotments/"),
            Op::DeletePrefix { .. } | Op::Get { .. } | Op::GetPrefix { .. } => false,
        };
        let plans = transaction.branch(true).iter().any(plans);
        let result = self.store.change(|inner| inner.commit(transaction))?;
        if let Some((id, strayed)) = self.of.as_ref().filter(|_| plans && result.succeeded) {
            let leader = self.store.inner().keys.get("/leader").map(|found| found.value.clone());
            let leader =
                String::from_utf8_lossy(leader.as_deref().unwrap_or_default()).into_owned();
            if !leader.contains(&format!("\"id\":\"{id}\"")) {
                let line =
                    format!("{id} wrote a plan at {}, while {leader:?} led", result.revision);
                strayed.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        }
        Ok(result)
    }

    async fn pass(&self) -> Result<(), StoreError> {
        let millis = self.random.lock().unwrap_or_else(PoisonError::into_inner).u64(0..12);
        sleep(Duration::from_millis(millis)).await;
        let mut cut = self.cut.clone();
        let whole = cut.wait_for(|cut| !cut);
        match tokio::time::timeout(GIVEN_UP_AFTER, whole).await {
            Ok(_) => Ok(()),
            Err(_) => Err(StoreError::Storage { doing: "asking", source: Arc::new(CutOff) }),
        }
    }

    /// A request, and its answer.
    async fn ask<T>(
        &self,
        request: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        self.pass().await?;
        let answer = request.await;
        self.pass().await?;
        answer
    }
}

impl Backend for Way {
    async fn get(&self, key: Key<'_>) -> Result<Option<KeyValue>, StoreError> {
        self.ask(Backend::get(&self.store, key)).await
    }

    async fn list(&self, prefix: Prefix<'_>, page: Page) -> Result<Listing, StoreError> {
        self.ask(Backend::list(&self.store, prefix, page)).await
    }

    async fn commit(
        &self,
        transaction: CheckedTransaction,
    ) -> Result<TransactionResult, StoreError> {
        self.ask(async { self.commit_now(&transaction) }).await
    }

    async fn watch(&self, prefix: Prefix<'_>, from: Revision) -> Result<Watch, StoreError> {
        let watch = self.ask(Backend::watch(&self.store, prefix, from)).await?;
        let cut = self.cut.clone();
        Ok(Watch::new(stream::unfold((watch, cut), |(mut watch, mut cut)| async {
            let batch = watch.next().await?;
            // What was told meanwhile comes when the way is there again.
            let _ = cut.wait_for(|cut| !cut).await;
            Some((batch, (watch, cut)))
        })))
    }

    async fn compact(&self, to: Revision) -> Result<(), StoreError> {
        self.ask(Backend::compact(&self.store, to)).await
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.ask(Backend::grant_lease(&self.store, ttl)).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.ask(Backend::keep_alive(&self.store, lease)).await
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.ask(Backend::revoke_lease(&self.store, lease)).await
    }
}
