//! An etcd cluster does what every store must do, and outlives any of its members. Needs the apt
//! package etcd-server.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{self, StreamExt};
use longshore_store::conformance::{self, EtcdServer, Subject};
use longshore_store::{EtcdStore, Page, Revision, Store, StoreError, Transaction};

/// Few enough that two cores start them in time.
const AT_ONCE: usize = 6;

struct Cluster {
    dir: tempfile::TempDir,
    members: Vec<EtcdServer>,
    prefix: &'static str,
}

impl Cluster {
    fn new(n_members: usize, prefix: &'static str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let members = EtcdServer::cluster(dir.path(), n_members).expect("etcd runs");
        Self { dir, members, prefix }
    }

    async fn store(&self) -> EtcdStore {
        let mut address = EtcdServer::address(&self.members);
        self.prefix.clone_into(&mut address.prefix);
        EtcdStore::connect(&address, None).await.expect("the cluster answers")
    }
}

impl Subject for Cluster {
    fn open(&mut self) -> BoxFuture<'_, Arc<dyn Store>> {
        async { Arc::new(self.store().await) as Arc<dyn Store> }.boxed()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_conforms() {
    let checks = conformance::CASES.iter().map(|case| async {
        let check = tokio::spawn(async {
            let cluster = tokio::task::spawn_blocking(|| Cluster::new(1, "/longshore"));
            case.run(&mut cluster.await.expect("no panic")).await;
        });
        (case.name, check.await.is_err())
    });
    let done = stream::iter(checks).buffer_unordered(AT_ONCE).collect::<Vec<_>>().await;
    let failed: Vec<_> = done.into_iter().filter(|(_, failed)| *failed).map(|it| it.0).collect();
    assert!(failed.is_empty(), "cases that do not hold: {failed:#?}");
}

/// Commits until it is certain that it was done.
async fn put(store: &EtcdStore, key: &str, value: String) -> Revision {
    loop {
        match store.commit(Transaction::new().put(key, value.clone())).await {
            Ok(result) => return result.revision,
            Err(StoreError::Storage { .. }) => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_member_may_die_and_nothing_acknowledged_is_lost() {
    let mut cluster = tokio::task::spawn_blocking(|| Cluster::new(3, "")).await.expect("no panic");
    let store = cluster.store().await;
    let start = put(&store, "/start", String::new()).await;
    let mut watch = store.watch("/k/", start.next()).await.expect("history is there");
    for round in 0..3 {
        let victim = round % cluster.members.len();
        let value = format!("during {round}");
        let (_, acknowledged) = tokio::join!(
            async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                cluster.members[victim].kill();
            },
            async {
                let mut all = Vec::new();
                for number in 0..20 {
                    let key = format!("/k/{round}-{number}");
                    put(&store, &key, value.clone()).await;
                    all.push(key);
                }
                all
            }
        );
        // Read through whoever is left.
        let listing = store.list("/k/", Page::default()).await.expect("two of three answer");
        for key in &acknowledged {
            assert!(listing.items.iter().any(|kv| kv.key == *key), "{key} is lost");
        }
        // The watch tells each of them, whoever it was with, in order and once.
        let mut told: Vec<String> = Vec::new();
        let mut last = Revision(0);
        while acknowledged.iter().any(|key| !told.contains(key)) {
            let next = tokio::time::timeout(Duration::from_secs(60), watch.next()).await;
            let batch = next.expect("an event").expect("the watch goes on").expect("no failure");
            assert!(batch.revision > last, "{} after {last}", batch.revision);
            last = batch.revision;
            told.extend(batch.events.iter().map(|event| event.key().to_owned()));
        }
        cluster.members[victim].start().expect("etcd runs");
        let member = &mut cluster.members[victim];
        tokio::task::block_in_place(|| member.wait_until_it_listens()).expect("it comes back");
    }
    drop(cluster.dir);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_away_is_told_and_waited_for() {
    let mut cluster =
        tokio::task::spawn_blocking(|| Cluster::new(1, "/a")).await.expect("no panic");
    let store = cluster.store().await;
    let start = put(&store, "/start", "1".to_owned()).await;
    let mut watch = store.watch("/", start.next()).await.expect("history is there");
    cluster.members[0].kill();
    let failed = store.commit(Transaction::new().put("/x", "")).await;
    assert!(matches!(failed, Err(StoreError::Storage { .. })), "{failed:?}");
    // A read that begins while it is away is answered when it is back.
    let reading = tokio::time::timeout(Duration::from_secs(60), store.get("/start"));
    let (read, ()) = tokio::join!(reading, async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        cluster.members[0].start().expect("etcd runs");
    });
    let kv = read.expect("in time").expect("it is answered").expect("it was written");
    assert_eq!((kv.key.as_str(), &kv.value[..]), ("/start", &b"1"[..]));
    let written = put(&store, "/later", String::new()).await;
    loop {
        let next = tokio::time::timeout(Duration::from_secs(60), watch.next()).await;
        let batch = next.expect("an event").expect("the watch goes on").expect("no failure");
        if batch.revision == written {
            assert_eq!(batch.events[0].key(), "/later");
            break;
        }
    }
    // Another prefix is another store.
    let mut other = EtcdServer::address(&cluster.members);
    other.prefix = "/b".to_owned();
    let other = EtcdStore::connect(&other, None).await.expect("the cluster answers");
    let listing = other.list("/", Page::default()).await.expect("it lists");
    assert!(listing.items.is_empty(), "{listing:?}");
}
