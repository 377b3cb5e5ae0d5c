//! The embedded store against the simplest thing that could be right: random operations on both,
//! and after each the same answer, the same present and the same past.

#[path = "model/naive.rs"]
mod naive;

use std::path::PathBuf;
use std::time::Duration;

use longshore_store::{
    Compare, Event, LeaseId, Op, Page, RedbOptions, RedbStore, Relation, Revision, Store,
    StoreError, Transaction, WatchBatch,
};
use proptest::prelude::*;

use self::naive::Naive;

const TTL: Duration = Duration::from_secs(3600);

/// Few keys, so that operations meet; one is a prefix of others, and `/a/` of some only.
const KEYS: [&str; 6] = ["/a", "/a/1", "/a/2", "/ab", "/b", "/b/1"];
const PREFIXES: [&str; 4] = ["/", "/a", "/a/", "/b/1"];

/// A step; indices and distances are taken modulo what there is.
#[derive(Debug, Clone)]
enum Step {
    Commit(Vec<Condition>, Vec<Change>, Vec<Change>),
    List { prefix: usize, limit: usize, back: u64 },
    Watch { prefix: usize, back: u64 },
    Compact { back: u64 },
    Grant,
    Revoke { lease: usize },
    Reopen,
}

#[derive(Debug, Clone)]
enum Condition {
    Absent(usize),
    ModRevision(usize, Relation, u64),
    Version(usize, Relation, u64),
    Value(usize, Relation, u8),
}

#[derive(Debug, Clone)]
enum Change {
    Put(usize, u8, Option<usize>),
    Delete(usize),
    DeletePrefix(usize),
    Get(usize),
    GetPrefix(usize),
}

fn relation() -> impl Strategy<Value = Relation> {
    prop::sample::select(vec![
        Relation::Equal,
        Relation::NotEqual,
        Relation::Less,
        Relation::Greater,
    ])
}

fn condition() -> impl Strategy<Value = Condition> {
    let key = 0..KEYS.len();
    prop_oneof![
        key.clone().prop_map(Condition::Absent),
        (key.clone(), relation(), 0..8_u64)
            .prop_map(|(key, relation, back)| Condition::ModRevision(key, relation, back)),
        (key.clone(), relation(), 0..4_u64)
            .prop_map(|(key, relation, version)| Condition::Version(key, relation, version)),
        (key, relation(), 0..3_u8)
            .prop_map(|(key, relation, value)| Condition::Value(key, relation, value)),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    let key = 0..KEYS.len();
    let lease = prop::option::weighted(0.3, 0..4_usize);
    prop_oneof![
        5 => (key.clone(), 0..3_u8, lease)
            .prop_map(|(key, value, lease)| Change::Put(key, value, lease)),
        2 => key.clone().prop_map(Change::Delete),
        1 => (0..PREFIXES.len()).prop_map(Change::DeletePrefix),
        1 => key.prop_map(Change::Get),
        1 => (0..PREFIXES.len()).prop_map(Change::GetPrefix),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let changes = |most| prop::collection::vec(change(), 0..most);
    let prefix = 0..PREFIXES.len();
    prop_oneof![
        12 => (prop::collection::vec(condition(), 0..2), changes(5), changes(3))
            .prop_map(|(when, then, otherwise)| Step::Commit(when, then, otherwise)),
        3 => (prefix.clone(), 1..5_usize, 0..20_u64)
            .prop_map(|(prefix, limit, back)| Step::List { prefix, limit, back }),
        3 => (prefix, 0..20_u64).prop_map(|(prefix, back)| Step::Watch { prefix, back }),
        1 => (0..12_u64).prop_map(|back| Step::Compact { back }),
        1 => Just(Step::Grant),
        1 => (0..4_usize).prop_map(|lease| Step::Revoke { lease }),
        1 => Just(Step::Reopen),
    ]
}

/// The store under test beside the model.
struct Pair {
    path: PathBuf,
    store: Option<RedbStore>,
    naive: Naive,
    leases: Vec<LeaseId>,
}

impl Pair {
    fn open(path: PathBuf) -> Self {
        let mut pair = Self { path, store: None, naive: Naive::new(), leases: Vec::new() };
        pair.reopen();
        pair
    }

    fn reopen(&mut self) {
        self.store = None;
        let options = RedbOptions { keep_revisions: None, ..RedbOptions::default() };
        self.store = Some(RedbStore::open_with(&self.path, &options).expect("the store opens"));
    }

    fn store(&self) -> &dyn Store {
        self.store.as_ref().expect("the store is only closed while it is reopened")
    }

    fn back(&self, distance: u64) -> Revision {
        Revision(self.naive.revision().0.saturating_sub(distance))
    }

    fn lease(&self, index: usize) -> LeaseId {
        // Some are never granted, some are revoked.
        self.leases.get(index).copied().unwrap_or(LeaseId(999))
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Commit(when, then, otherwise) => self.commit(when, then, otherwise).await,
            Step::List { prefix, limit, back } => self.list(PREFIXES[prefix], limit, back).await,
            Step::Watch { prefix, back } => self.watch(PREFIXES[prefix], self.back(back)).await,
            Step::Compact { back } => {
                let to = self.back(back);
                self.store().compact(to).await.expect("the past can be compacted");
                self.naive.compact(to);
            }
            Step::Grant => {
                let lease = self.store().grant_lease(TTL).await.expect("a lease is granted");
                assert!(!self.leases.contains(&lease), "lease {lease} was granted twice");
                self.leases.push(lease);
                self.naive.grant(lease);
            }
            Step::Revoke { lease } => {
                let lease = self.lease(lease);
                let revoked = self.store().revoke_lease(lease).await;
                assert_eq!(shown(revoked), shown(self.naive.revoke(lease)));
            }
            Step::Reopen => self.reopen(),
        }
        self.compare_present().await;
    }

    async fn commit(&mut self, when: Vec<Condition>, then: Vec<Change>, otherwise: Vec<Change>) {
        let mut transaction = Transaction::new();
        for condition in when {
            transaction = transaction.when(self.condition(condition));
        }
        for change in then {
            transaction = transaction.then(self.op(change));
        }
        for change in otherwise {
            transaction = transaction.otherwise(self.op(change));
        }
        let expected = self.naive.commit(&transaction);
        let result = self.store().commit(transaction).await;
        assert_eq!(shown(result), shown(expected));
    }

    fn condition(&self, condition: Condition) -> Compare {
        match condition {
            Condition::Absent(key) => Compare::absent(KEYS[key]),
            Condition::ModRevision(key, relation, back) => {
                Compare::mod_revision(KEYS[key], relation, self.back(back))
            }
            Condition::Version(key, relation, version) => {
                Compare::version(KEYS[key], relation, version)
            }
            Condition::Value(key, relation, value) => {
                Compare::value(KEYS[key], relation, vec![value])
            }
        }
    }

    fn op(&self, change: Change) -> Op {
        let text = str::to_owned;
        match change {
            Change::Put(key, value, lease) => Op::Put {
                key: text(KEYS[key]),
                value: vec![value].into(),
                lease: lease.map(|index| self.lease(index)),
            },
            Change::Delete(key) => Op::Delete { key: text(KEYS[key]) },
            Change::DeletePrefix(prefix) => Op::DeletePrefix { prefix: text(PREFIXES[prefix]) },
            Change::Get(key) => Op::Get { key: text(KEYS[key]) },
            Change::GetPrefix(prefix) => Op::GetPrefix { prefix: text(PREFIXES[prefix]) },
        }
    }

    async fn list(&self, prefix: &str, limit: usize, back: u64) {
        let at = self.back(back);
        let mut page = Page { at: Some(at), ..Page::first(limit) };
        let mut found = Vec::new();
        loop {
            match self.store().list(prefix, page).await {
                Ok(listing) => {
                    assert!(listing.items.len() <= limit && listing.revision == at);
                    found.extend_from_slice(&listing.items);
                    match listing.next_page(limit) {
                        Some(next) => page = next,
                        None => break,
                    }
                }
                Err(error) => {
                    assert_eq!(shown::<()>(Err(error)), shown(self.naive.list(prefix, at)));
                    return;
                }
            }
        }
        assert_eq!(shown(Ok(found)), shown(self.naive.list(prefix, at)));
    }

    async fn watch(&self, prefix: &str, from: Revision) {
        let expected = self.naive.watch(prefix, from);
        let told = match self.store().watch(prefix, from).await {
            Ok(mut watch) => {
                let mut told = Vec::new();
                while told.len() < expected.as_ref().map_or(0, Vec::len) {
                    told.push(sorted(watch.next().await.expect("it goes on").expect("no error")));
                }
                Ok(told)
            }
            Err(error) => Err(error),
        };
        let expected = expected.map(|batches| batches.into_iter().map(sorted).collect::<Vec<_>>());
        assert_eq!(shown(told), shown(expected));
    }

    async fn compare_present(&self) {
        let listing = self.store().list("/", Page::default()).await.expect("the store lists");
        assert_eq!(listing.revision, self.naive.revision());
        assert_eq!(shown(Ok(listing.items)), shown(self.naive.list("/", listing.revision)));
        for key in KEYS {
            let kv = self.store().get(key).await.expect("the store reads");
            assert_eq!(kv.as_ref(), self.naive.get(key));
        }
    }

    /// Every revision that is kept, listed; and all of history, watched.
    async fn compare_past(&self) {
        for back in 0..=self.naive.revision().0 {
            self.list("/", usize::MAX, back).await;
        }
        for prefix in PREFIXES {
            self.watch(prefix, self.naive.compacted()).await;
        }
    }
}

/// The order of events within one revision is not compared, it is no promise.
fn sorted(mut batch: WatchBatch) -> WatchBatch {
    batch.events.sort_by(|a: &Event, b: &Event| a.key().cmp(b.key()));
    batch
}

/// Errors have no equality; their text says all. Which of several doubled keys is named is open.
fn shown<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    match result {
        Ok(value) => format!("{value:#?}"),
        Err(StoreError::DuplicateKey { .. }) => "refused: a duplicate key".to_owned(),
        Err(error) => format!("refused: {error}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_store_does_what_the_model_does(steps in prop::collection::vec(step(), 1..60)) {
        let directory = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut pair = Pair::open(directory.path().join("store.redb"));
            for step in steps {
                pair.step(step).await;
            }
            pair.compare_past().await;
            pair.reopen();
            pair.compare_past().await;
        });
    }
}
