//! A store that an earlier release wrote opens and holds what it held.
//!
//! `fixtures/` has, for each format version there ever was, two stores written by the release that
//! introduced it: one closed properly, one as kill -9 leaves it. They are never written again. A
//! release that raises the format version adds its own with
//! `LONGSHORE_WRITE_FIXTURES=1 cargo nextest run -p longshore-store --test fixture`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use longshore_store::{
    Compare, Event, KeyValue, Page, RedbOptions, RedbStore, Revision, Store, StoreError,
    Transaction,
};

const FORMAT_VERSION: u64 = 2;
const STATES: [&str; 2] = ["closed", "killed"];

/// The store itself, and its journal, which those of the first format do not have.
const PARTS: [&str; 2] = ["", ".journal"];

fn fixture(version: u64, state: &str, part: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    directory.join(format!("format-{version}-{state}.redb{part}.zst"))
}

fn part_of(path: &Path, part: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(part);
    name.into()
}

fn open(path: &Path) -> RedbStore {
    let options = RedbOptions { keep_revisions: None, ..RedbOptions::default() };
    RedbStore::open_with(path, &options).expect("the store opens")
}

/// Something of everything that a file can hold.
async fn write(store: &RedbStore) {
    let ttl = Duration::from_secs(3600);
    let commit = async |transaction| store.commit(transaction).await.expect("it is accepted");
    commit(Transaction::new().put("/apps/a", "one").put("/apps/b", "one")).await; // 2
    commit(Transaction::new().put("/apps/a", "two")).await; // 3
    commit(Transaction::new().delete("/apps/b")).await; // 4
    let lease = store.grant_lease(ttl).await.expect("a lease is granted");
    let ended = store.grant_lease(ttl).await.expect("a lease is granted");
    commit(Transaction::new().put_leased("/leased", "1", lease)).await; // 5
    commit(Transaction::new().put_leased("/ended", "1", ended)).await; // 6
    store.revoke_lease(ended).await.expect("the lease is revoked"); // 7
    commit(Transaction::new().put("/large", vec![b'x'; 50_000]).put("/empty", "")).await; // 8
    commit(Transaction::new().put("/apps/b", "back").delete("/empty")).await; // 9
    store.compact(Revision(4)).await.expect("the store compacts");
}

fn shown(items: &[KeyValue]) -> Vec<String> {
    let one = |kv: &KeyValue| {
        let value = String::from_utf8_lossy(&kv.value);
        let value = if value.len() > 100 { format!("{} bytes", value.len()) } else { value.into() };
        let (create, modified) = (kv.create_revision, kv.mod_revision);
        let lease = kv.lease.map_or(0, |lease| lease.0);
        format!("{}={value} {create}-{modified} v{} l{lease}", kv.key, kv.version)
    };
    items.iter().map(one).collect()
}

async fn check(store: &RedbStore) {
    let listing = store.list("/", Page::default()).await.expect("the store lists");
    assert_eq!(listing.revision, Revision(9));
    assert_eq!(
        shown(&listing.items),
        [
            "/apps/a=two 2-3 v2 l0",
            "/apps/b=back 9-9 v1 l0",
            "/large=50000 bytes 8-8 v1 l0",
            "/leased=1 5-5 v1 l1",
        ]
    );
    let past = store.list("/", Page::at(Revision(6))).await.expect("the past is kept");
    assert_eq!(
        shown(&past.items),
        ["/apps/a=two 2-3 v2 l0", "/ended=1 6-6 v1 l2", "/leased=1 5-5 v1 l1"]
    );
    let error = store.watch("/", Revision(3)).await.expect_err("that was compacted");
    assert!(matches!(error, StoreError::Compacted { at: Revision(4), .. }), "{error}");

    // And it goes on from there.
    let lease = listing.items[3].lease.expect("the key has a lease");
    store.keep_alive(lease).await.expect("the lease runs");
    let fresh = store.grant_lease(Duration::from_secs(60)).await.expect("a lease is granted");
    assert_eq!(fresh.0, 3);
    let swap = Transaction::new().when(Compare::unchanged(&listing.items[0])).put("/apps/a", "3");
    let result = store.commit(swap).await.expect("it is accepted");
    assert_eq!((result.succeeded, result.revision), (true, Revision(10)));
    store.revoke_lease(lease).await.expect("the lease is revoked");
    let mut watch = store.watch("/", Revision(4)).await.expect("that is kept");
    let mut told = Vec::new();
    while told.len() < 8 {
        let batch = watch.next().await.expect("the watch goes on").expect("and has no error");
        let events: Vec<_> = batch.events.iter().map(Event::key).collect();
        told.push(format!("{} {}", batch.revision, events.join(" ")));
    }
    assert_eq!(
        told,
        [
            "4 /apps/b",
            "5 /leased",
            "6 /ended",
            "7 /ended",
            "8 /large /empty",
            "9 /apps/b /empty",
            "10 /apps/a",
            "11 /leased"
        ]
    );
}

/// What the release at hand writes: the file when it was closed, and one as a kill leaves it.
async fn written_now(directory: &Path) -> [PathBuf; 2] {
    let [closed, killed] = STATES.map(|state| directory.join(state));
    let store = open(&closed);
    write(&store).await;
    // Whatever has been acknowledged is in the files by now, which nobody has closed.
    for part in PARTS {
        fs::copy(part_of(&closed, part), part_of(&killed, part)).expect("it can be copied");
    }
    drop(store);
    [closed, killed]
}

#[tokio::test]
async fn a_store_written_by_this_release_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let paths = written_now(directory.path()).await;
    for (state, path) in STATES.iter().zip(&paths) {
        if std::env::var_os("LONGSHORE_WRITE_FIXTURES").is_some() {
            for part in PARTS {
                let plain = fs::read(part_of(path, part)).unwrap();
                let packed = zstd::encode_all(&plain[..], 19).unwrap();
                fs::write(fixture(FORMAT_VERSION, state, part), packed).unwrap();
            }
        }
        check(&open(path)).await;
    }
}

#[tokio::test]
async fn a_store_written_by_an_earlier_release_is_read() {
    let directory = tempfile::tempdir().unwrap();
    for version in 1..=FORMAT_VERSION {
        for state in STATES {
            let path = directory.path().join(format!("{version}-{state}"));
            for part in &PARTS[..if version == 1 { 1 } else { 2 }] {
                let packed = fixture(version, state, part);
                let packed =
                    fs::read(&packed).unwrap_or_else(|error| panic!("{packed:?}: {error}"));
                fs::write(part_of(&path, part), zstd::decode_all(&packed[..]).unwrap()).unwrap();
            }
            check(&open(&path)).await;
        }
    }
}
