//! What is particular to the embedded store: its file, its one writer, its failing disk.

pub mod disk;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use redb::ReadableDatabase;

use crate::error::StoreError;
use crate::key_value::{Event, Revision};
use crate::store::{Page, Store};
use crate::transaction::{Compare, Transaction};

use self::disk::Disk;
use super::{RedbOptions, RedbStore, open, tables};
use crate::key_value::KeyValue;

const TTL: Duration = Duration::from_secs(3600);

fn store_path(directory: &tempfile::TempDir) -> std::path::PathBuf {
    directory.path().join("store.redb")
}

/// The disks of a store's file and of its journal.
#[derive(Default)]
struct Disks {
    file: Disk,
    journal: Disk,
}

impl Disks {
    fn open(&self) -> RedbStore {
        let path = Path::new("a test's disk");
        let journal = |_| Ok(Some(Box::new(self.journal.clone()) as Box<dyn redb::StorageBackend>));
        let opened = open::open_backend(path, self.file.clone(), journal, 1 << 20).unwrap();
        RedbStore::start(path, opened, None, None).unwrap()
    }

    fn after_a_power_cut(&self, random: &mut fastrand::Rng) -> Self {
        Self {
            file: self.file.after_a_power_cut(random),
            journal: self.journal.after_a_power_cut(random),
        }
    }
}

/// Everything that is in a store.
async fn all(store: &RedbStore) -> Vec<KeyValue> {
    store.list("/", Page::default()).await.unwrap().items
}

/// Rows of three tables, once everything is in them: live keys, history, deletions.
async fn rows(store: &RedbStore) -> [u64; 3] {
    use redb::ReadableTableMetadata;
    let counted = store.shared.snapshot(|_| Ok(())).await;
    counted.unwrap();
    let counts = store.shared.with_database(|database| {
        let transaction = database.begin_read().unwrap();
        Ok([
            transaction.open_table(tables::CURRENT).unwrap().len().unwrap(),
            transaction.open_table(tables::LOG).unwrap().len().unwrap(),
            transaction.open_table(tables::TOMBSTONES).unwrap().len().unwrap(),
        ])
    });
    counts.unwrap()
}

fn put(key: &str, value: impl Into<bytes::Bytes>) -> Transaction {
    Transaction::new().put(key, value)
}

fn opening_error(path: &Path) -> String {
    RedbStore::open(path).unwrap_err().to_string().replace(&path.display().to_string(), "PATH")
}

#[test]
fn a_store_is_held_by_one_and_readable_by_its_owner() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = store_path(&directory);
    let store = RedbStore::open(&path).unwrap();
    assert_eq!(opening_error(&path), "the store at PATH is in use by another process");
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    drop(store);
    RedbStore::open(&path).unwrap();
}

#[test]
fn what_is_no_store_of_ours_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = store_path(&directory);

    fs::write(&path, "some notes, longer than a magic number").unwrap();
    assert_eq!(opening_error(&path), "could not read the store at PATH");
    assert!(fs::read(&path).unwrap().starts_with(b"some notes"));
    fs::remove_file(&path).unwrap();

    let foreign = redb::Database::create(&path).unwrap();
    let transaction = foreign.begin_write().unwrap();
    let recipes = redb::TableDefinition::<u64, u64>::new("recipes");
    transaction.open_table(recipes).unwrap().insert(1, 1).unwrap();
    transaction.commit().unwrap();
    drop(foreign);
    assert_eq!(opening_error(&path), "PATH is not a Longshore store");

    let missing = directory.path().join("missing/store.redb");
    assert_eq!(opening_error(&missing), "could not open the store at PATH");
}

#[test]
fn a_newer_format_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = store_path(&directory);
    drop(RedbStore::open(&path).unwrap());
    let database = redb::Database::create(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(tables::META).unwrap().insert(tables::META_FORMAT, 3).unwrap();
    transaction.commit().unwrap();
    drop(database);
    assert_eq!(
        opening_error(&path),
        "the store at PATH has format version 3, written by a newer release; this one reads up \
         to version 2"
    );
}

/// What redb leaves when it is killed while it makes a file: the size, part of the first page, and
/// no magic number.
#[tokio::test]
async fn a_file_whose_making_was_cut_short_is_made_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = store_path(&directory);
    drop(RedbStore::open(&path).unwrap());
    let whole = fs::read(&path).unwrap();
    let mut cut = vec![0; whole.len()];
    for header_written in [false, true] {
        if header_written {
            cut[9..320].copy_from_slice(&whole[9..320]);
        }
        fs::write(&path, &cut).unwrap();
        let store = RedbStore::open(&path).unwrap();
        store.commit(put("/a", "1")).await.unwrap();
    }
    // With anything behind the first page it is damage, and nothing is thrown away.
    cut[5000] = 1;
    fs::write(&path, &cut).unwrap();
    assert_eq!(opening_error(&path), "could not read the store at PATH");
    assert_eq!(fs::read(&path).unwrap(), cut);
}

#[tokio::test]
async fn history_is_compacted_by_itself() {
    let directory = tempfile::tempdir().unwrap();
    let options = RedbOptions { keep_revisions: Some(10), ..RedbOptions::default() };
    let store = RedbStore::open_with(&store_path(&directory), &options).unwrap();
    let mut newest = Revision(0);
    for _ in 0..20 {
        let commits = (0..50).map(|_| store.commit(put("/k", "x")));
        newest = join_all(commits).await.pop().unwrap().unwrap().revision;
    }
    // Ten are kept, and few more.
    store.list("/", Page::at(Revision(newest.0 - 10))).await.unwrap();
    let error = store.list("/", Page::at(Revision(newest.0 - 200))).await.unwrap_err();
    assert!(matches!(error, StoreError::Compacted { .. }), "{error}");
    let [_, log, _] = rows(&store).await;
    assert!(log <= 200, "old changes are still in the log");
}

#[tokio::test]
async fn compacting_leaves_one_row_per_key_and_none_per_deletion() {
    let directory = tempfile::tempdir().unwrap();
    let store = RedbStore::open(&store_path(&directory)).unwrap();
    let keys: Vec<_> = (0..20).map(|i| format!("/k/{i}")).collect();
    for round in 0..100 {
        for key in &keys[..if round % 10 == 9 { 20 } else { 5 }] {
            store.commit(put(key, "x")).await.unwrap();
        }
        store.commit(Transaction::new().delete_prefix("/k/1")).await.unwrap();
    }
    let newest = store.commit(put("/last", "x")).await.unwrap().revision;
    store.compact(newest).await.unwrap();
    // /k/0 to /k/9 but /k/1, and /last.
    assert_eq!(rows(&store).await, [10, 10, 0]);
}

#[tokio::test]
async fn a_watch_that_compaction_overtakes_is_told_so_and_ends() {
    let directory = tempfile::tempdir().unwrap();
    let store = RedbStore::open(&store_path(&directory)).unwrap();
    let start = store.commit(put("/k", "start")).await.unwrap().revision;
    let mut watch = store.watch("/", start).await.unwrap();
    let first = watch.next().await.unwrap().unwrap();
    assert!(matches!(&first.events[..], [Event::Put(kv)] if kv.value == "start"));
    // Six times a mebibyte is more than is kept in memory.
    let mut newest = start;
    for _ in 0..6 {
        newest = store.commit(put("/k", vec![0; 1 << 20])).await.unwrap().revision;
    }
    store.compact(newest).await.unwrap();
    let error = watch.next().await.unwrap().unwrap_err();
    assert!(
        matches!(error, StoreError::Compacted { requested, at }
            if (requested, at) == (start.next(), newest)),
        "{error}"
    );
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn closing_finishes_what_was_asked_and_ends_watches() {
    let directory = tempfile::tempdir().unwrap();
    let path = store_path(&directory);
    let store = RedbStore::open(&path).unwrap();
    let mut watch = store.watch("/", Revision(0)).await.unwrap();
    let mut commits: Vec<_> = (0..20).map(|i| store.commit(put(&format!("/{i}"), ""))).collect();
    for commit in &mut commits {
        // Asked for, but not waited for.
        let _ = futures_util::poll!(commit);
    }
    drop(commits);
    drop(store);
    let error = loop {
        if let Err(error) = watch.next().await.unwrap() {
            break error;
        }
    };
    assert!(matches!(error, StoreError::Closed), "{error}");
    assert!(watch.next().await.is_none());
    let store = RedbStore::open(&path).unwrap();
    assert_eq!(store.list("/", Page::default()).await.unwrap().items.len(), 20);
}

#[tokio::test]
async fn a_lease_has_its_full_time_again_after_a_reopening() {
    let directory = tempfile::tempdir().unwrap();
    let path = store_path(&directory);
    let store = RedbStore::open(&path).unwrap();
    let lease = store.grant_lease(TTL).await.unwrap();
    let granted_for = store.shared.lease_clock().next_deadline().unwrap();
    drop(store);
    let reopened = Instant::now();
    let store = RedbStore::open(&path).unwrap();
    let deadline = store.shared.lease_clock().next_deadline().unwrap();
    assert!(deadline >= reopened + TTL && deadline > granted_for);
    store.keep_alive(lease).await.unwrap();
    assert!(store.shared.lease_clock().next_deadline().unwrap() > deadline);
}

#[tokio::test]
async fn one_wait_for_the_disk_serves_all_commits_that_gathered() {
    let disks = Disks::default();
    let (store, disk) = (disks.open(), &disks.journal);
    let gate = disk.stop_syncs();
    let first = store.commit(put("/first", ""));
    tokio::pin!(first);
    assert!(futures_util::poll!(&mut first).is_pending());
    disk.until_a_sync_waits();
    let mut others: Vec<_> = (0..100).map(|i| store.commit(put(&format!("/{i}"), ""))).collect();
    for other in &mut others {
        assert!(futures_util::poll!(other).is_pending());
    }
    let before = disk.n_syncs();
    drop(gate);
    let first = first.await.unwrap().revision;
    let others = join_all(others).await;
    // One for each of the two batches.
    assert_eq!(disk.n_syncs() - before, 2);
    // Each has its own revision all the same.
    for (i, other) in others.into_iter().enumerate() {
        assert_eq!(other.unwrap().revision.0, first.0 + 1 + i as u64);
    }
}

#[tokio::test]
async fn those_in_order_wait_for_the_disk_together() {
    let disks = Disks::default();
    let (store, disk) = (disks.open(), &disks.journal);
    let before = disk.n_syncs();
    let all = (0..100).map(|i| put(&format!("/{i}"), "")).collect();
    let results = store.commit_in_order(all).await.unwrap();
    assert_eq!((results.len(), disk.n_syncs() - before), (100, 1));
    // What would be too much for one batch waits some more times.
    let large = vec![put("/large", vec![7; 1 << 20]); 9];
    store.commit_in_order(large).await.unwrap();
    assert_eq!(disk.n_syncs() - before, 1 + 3);
}

#[tokio::test]
async fn a_batch_is_refused_one_by_one() {
    let disks = Disks::default();
    let (store, disk) = (disks.open(), &disks.journal);
    let lease = store.grant_lease(TTL).await.unwrap();
    let gate = disk.stop_syncs();
    let first = store.commit(put("/a", "1"));
    tokio::pin!(first);
    assert!(futures_util::poll!(&mut first).is_pending());
    disk.until_a_sync_waits();
    let absent = |key: &str| Compare::absent(key);
    let mut create_b = store.commit(put("/b", "1").when(absent("/b")));
    let mut create_b_again = store.commit(put("/b", "2").when(absent("/b")));
    let mut revoke = store.revoke_lease(lease);
    let mut late = store.commit(put("/c", "1").put_leased("/d", "1", lease));
    let mut last = store.commit(put("/e", "1"));
    assert!(futures_util::poll!(&mut create_b).is_pending());
    assert!(futures_util::poll!(&mut create_b_again).is_pending());
    assert!(futures_util::poll!(&mut revoke).is_pending());
    assert!(futures_util::poll!(&mut late).is_pending());
    assert!(futures_util::poll!(&mut last).is_pending());
    drop(gate);
    let first = first.await.unwrap().revision;
    let created = create_b.await.unwrap();
    assert_eq!((created.succeeded, created.revision), (true, first.next()));
    let again = create_b_again.await.unwrap();
    assert_eq!((again.succeeded, again.revision), (false, first.next()));
    revoke.await.unwrap();
    let late = late.await.unwrap_err();
    assert!(matches!(late, StoreError::LeaseNotFound { .. }), "{late}");
    assert_eq!(last.await.unwrap().revision, first.next().next());
    let keys = store.list("/", Page::default()).await.unwrap().items;
    let keys: Vec<_> = keys.iter().map(|kv| kv.key.as_str()).collect();
    assert_eq!(keys, ["/a", "/b", "/e"]);
}

#[tokio::test]
async fn a_failed_disk_fails_everything_until_the_store_is_opened_anew() {
    let disks = Disks::default();
    let (store, disk) = (disks.open(), &disks.journal);
    let lease = store.grant_lease(TTL).await.unwrap();
    let kept = store.commit(put("/kept", "1")).await.unwrap().revision;
    let mut watch = store.watch("/", kept.next()).await.unwrap();

    disk.fail(true);
    let commits = join_all((0..10).map(|i| store.commit(put(&format!("/{i}"), "")))).await;
    for commit in commits {
        assert!(matches!(commit, Err(StoreError::Storage { .. })), "{commit:?}");
    }
    let told = watch.next().await.unwrap();
    assert!(matches!(told, Err(StoreError::Storage { .. })), "{told:?}");
    disk.fail(false);
    let refusals = [
        store.commit(put("/later", "1")).await.err(),
        store.get("/kept").await.err(),
        store.watch("/", Revision(0)).await.err(),
        store.keep_alive(lease).await.err(),
        store.grant_lease(TTL).await.err(),
    ];
    for refusal in refusals {
        assert!(matches!(refusal, Some(StoreError::Storage { .. })), "{refusal:?}");
    }
    drop(store);

    let store = disks.open();
    let kv = store.get("/kept").await.unwrap().unwrap();
    assert_eq!(kv.mod_revision, kept);
    store.keep_alive(lease).await.unwrap();
    store.commit(put("/later", "1")).await.unwrap();
}

#[tokio::test]
async fn what_was_acknowledged_outlives_a_file_that_fails() {
    let disks = Disks::default();
    let store = disks.open();
    store.commit(put("/first", "1")).await.unwrap();
    disks.file.fail(true);
    let mut n_acknowledged = 0;
    // Until the file is to have what the journal has.
    let error = loop {
        match store.commit(put(&format!("/later/{n_acknowledged}"), "1")).await {
            Ok(_) => n_acknowledged += 1,
            Err(error) => break error,
        }
        assert!(n_acknowledged < 100_000, "the file is never written to");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert!(matches!(error, StoreError::Storage { .. }), "{error}");
    assert!(n_acknowledged > 0, "the journal alone was enough");
    drop(store);

    disks.file.fail(false);
    let store = disks.open();
    // That one was in the journal, too.
    let found = all(&store).await.len();
    assert!([n_acknowledged + 1, n_acknowledged + 2].contains(&found), "{found}, {n_acknowledged}");
}

/// Something of everything that a batch can have; large ones have the journal begin anew.
async fn change(store: &RedbStore, random: &mut fastrand::Rng) {
    let key = format!("/{}", random.u8(..8));
    match random.u8(..12) {
        0 => {
            let lease = store.grant_lease(TTL).await.unwrap();
            store.commit(Transaction::new().put_leased(&key, "leased", lease)).await.unwrap();
            if random.bool() {
                store.revoke_lease(lease).await.unwrap();
            }
        }
        1 => drop(store.commit(put(&key, vec![random.u8(..); 1 << 20])).await.unwrap()),
        2 => drop(store.commit(Transaction::new().delete_prefix("/1")).await.unwrap()),
        3 => {
            let newest = all(store).await.iter().map(|kv| kv.mod_revision).max();
            store.compact(newest.unwrap_or(Revision(1))).await.unwrap();
        }
        4 => drop(store.get(&key).await.unwrap()),
        _ => drop(store.commit(put(&key, vec![random.u8(..); 20])).await.unwrap()),
    }
}

#[tokio::test]
async fn a_power_cut_at_any_moment_loses_nothing_acknowledged() {
    for seed in 0..4 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut disks = Disks::default();
        for _ in 0..3 {
            let store = disks.open();
            for _ in 0..random.u8(..30) {
                change(&store, &mut random).await;
            }
            let before = all(&store).await;
            // One more is under way when the power goes.
            let gate = disks.journal.stop_syncs();
            let mut last = store.commit(put("/last", vec![1; random.usize(..20_000)]));
            assert!(futures_util::poll!(&mut last).is_pending());
            disks.journal.until_a_sync_waits();
            let left = disks.after_a_power_cut(&mut random);
            drop(gate);
            last.await.unwrap();
            let after = all(&store).await;
            drop(store);
            let found = all(&left.open()).await;
            assert!(found == before || found == after, "seed {seed}: {found:?}");
            disks = left;
        }
    }
}

/// The power goes while the file takes over what the journal has.
#[tokio::test]
async fn a_power_cut_while_the_journal_begins_anew_loses_nothing() {
    for seed in 0..4 {
        let mut random = fastrand::Rng::with_seed(seed);
        let disks = Disks::default();
        let store = disks.open();
        for _ in 0..10 {
            change(&store, &mut random).await;
        }
        let gate = disks.file.stop_syncs();
        // Until it is long enough.
        let mut n_acknowledged = 0;
        while !disks.file.a_sync_waits() {
            let commit = store.commit(put(&format!("/n/{n_acknowledged:02}"), vec![0; 1 << 20]));
            if tokio::time::timeout(Duration::from_millis(200), commit).await.is_ok() {
                n_acknowledged += 1;
            }
        }
        let left = disks.after_a_power_cut(&mut random);
        drop(gate);
        let mut expected = all(&store).await;
        drop(store);
        let found = all(&left.open()).await;
        // One that was asked for and not acknowledged may have come into the journal before.
        let last = format!("/n/{n_acknowledged:02}");
        if !found.iter().any(|kv| kv.key == last) {
            expected.retain(|kv| kv.key != last);
        }
        assert!(found == expected, "seed {seed}");
    }
}

#[tokio::test]
async fn a_store_that_was_not_closed_is_not_opened_without_its_journal() {
    let dir = tempfile::tempdir().unwrap();
    let path = store_path(&dir);
    let journal = open::journal_of(&path);
    let store = RedbStore::open(&path).unwrap();
    store.commit(put("/a", "1")).await.unwrap();
    let copies = [&path, &journal].map(|path| fs::read(path).unwrap());
    drop(store);
    // Everything is in the file of one that was closed.
    fs::remove_file(&journal).unwrap();
    drop(RedbStore::open(&path).unwrap());

    let back = |with: Option<&[u8]>| {
        fs::write(&path, &copies[0]).unwrap();
        match with {
            Some(with) => fs::write(&journal, with).unwrap(),
            None => fs::remove_file(&journal).unwrap(),
        }
    };
    back(None);
    assert_eq!(
        opening_error(&path),
        "the store at PATH was not closed, and what it had last is in PATH.journal, which is not \
         there: put it back, or make an empty file of that name to go on without"
    );
    assert!(!journal.exists());
    let mut damaged = copies[1].clone();
    damaged[100] ^= 1;
    for (with, has) in [(&copies[1], 1), (&Vec::new(), 0), (&damaged, 0)] {
        back(Some(with));
        assert_eq!(all(&RedbStore::open(&path).unwrap()).await.len(), has);
    }
    // That of another store.
    let other = dir.path().join("other.redb");
    let store = RedbStore::open(&other).unwrap();
    store.commit(put("/b", "1")).await.unwrap();
    drop(store);
    back(Some(&fs::read(open::journal_of(&other)).unwrap()));
    assert_eq!(opening_error(&path), "could not read the journal PATH.journal");
    // A new store there takes its place, and leaves what may be all that there is of the one before.
    fs::remove_file(&path).unwrap();
    let of_other = fs::read(&journal).unwrap();
    let store = RedbStore::open(&path).unwrap();
    assert_eq!(all(&store).await, []);
    store.commit(put("/c", "1")).await.unwrap();
    assert_eq!(fs::read(dir.path().join("store.redb.journal.before")).unwrap(), of_other);
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let store = RedbStore::open(&path).unwrap();
    let kept = store.commit(put("/kept", "1")).await.unwrap().revision;
    let lease = store.grant_lease(TTL).await.unwrap();
    drop(store);

    // No disk has that much free.
    let options = RedbOptions { kept_free: u64::MAX, ..RedbOptions::default() };
    let store = RedbStore::open_with(&path, &options).unwrap();
    for refusal in [
        store.commit(put("/later", "1")).await.err(),
        store.commit_in_order(vec![put("/later", "1"); 2]).await.err(),
        store.grant_lease(TTL).await.err(),
        store.revoke_lease(lease).await.err(),
    ] {
        assert!(matches!(refusal, Some(StoreError::DiskFull { .. })), "{refusal:?}");
        assert!(refusal.unwrap().to_string().contains("store.redb is full"));
    }
    assert_eq!(store.get("/kept").await.unwrap().unwrap().mod_revision, kept);
    store.keep_alive(lease).await.unwrap();
    drop(store);

    let store = RedbStore::open(&path).unwrap();
    assert_eq!(store.get("/later").await.unwrap(), None);
    store.commit(put("/later", "1")).await.unwrap();
}
