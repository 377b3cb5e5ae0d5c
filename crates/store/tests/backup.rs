//! What is backed up comes back, whole or not at all.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use longshore_store::backup::{Backup, BackupFileError, BadBackup};
use longshore_store::restore::{RestoreError, contents, is_half_restored};
use longshore_store::world::{Origin, WORLD, World};
use longshore_store::{MAX_OPERATIONS, Page, RedbStore, Revision, Store, Transaction};
use proptest::prelude::*;

const NOW: u64 = 1_700_000_000_000;

fn store(dir: &Path, name: &str) -> RedbStore {
    RedbStore::open(&dir.join(name)).unwrap()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

async fn items(store: &dyn Store) -> Vec<(String, Bytes)> {
    let listing = store.list("/", Page::default()).await.unwrap();
    listing.items.into_iter().map(|item| (item.key, item.value)).collect()
}

fn some_items() -> impl Strategy<Value = Vec<(String, Bytes)>> {
    let key = "/[a-c]{1,2}(/[a-zä]{1,3}){0,2}";
    let value = prop::collection::vec(any::<u8>(), 0..2000).prop_map(Bytes::from);
    prop::collection::btree_map(key, value, 0..300).prop_map(|items| items.into_iter().collect())
}

fn some_backup() -> impl Strategy<Value = Backup> {
    (any::<u64>(), any::<u64>(), any::<u64>(), some_items()).prop_map(
        |(epoch, revision, taken_at, items)| Backup {
            epoch,
            revision: Revision(revision),
            taken_at,
            items,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn what_is_backed_up_comes_back(all in some_items(), leased in 0..5_usize) {
        let dir = tempfile::tempdir().unwrap();
        block_on(async {
            let from = store(dir.path(), "from.redb");
            for part in all.chunks(MAX_OPERATIONS) {
                let put = |change: Transaction, (key, value): &(String, Bytes)| change.put(key, value.clone());
                from.commit(part.iter().fold(Transaction::new(), put)).await.unwrap();
            }
            let lease = from.grant_lease(Duration::from_secs(600)).await.unwrap();
            for number in 0..leased {
                let put = Transaction::new().put_leased(format!("/leased/{number}"), "", lease);
                from.commit(put).await.unwrap();
            }
            let file = dir.path().join("backup");
            Backup::take(&from, NOW).await.unwrap().write(&file).unwrap();
            let backup = Backup::read(&file).unwrap();
            let to = store(dir.path(), "to.redb");
            let world = World::after(backup.epoch, Origin::Restored, NOW);
            backup.restore(&to, &world).await.unwrap();
            let mut expected = all.clone();
            expected.push((WORLD.to_owned(), longshore_store::record::encode(&world).unwrap()));
            expected.sort();
            assert_eq!(items(&to).await, expected);
            assert_eq!(World::of(&to).await.unwrap(), world);
            // And on, as often as one likes, with an epoch that grows.
            let again = Backup::take(&to, NOW).await.unwrap();
            assert_eq!(again.epoch, world.epoch);
            let third = store(dir.path(), "third.redb");
            again.restore(&third, &World::after(again.epoch, Origin::Migrated, NOW)).await.unwrap();
            assert_eq!(World::of(&third).await.unwrap().epoch, world.epoch + 1);
            let but_world = |items: Vec<(String, Bytes)>| items.into_iter().filter(|item| item.0 != WORLD).collect::<Vec<_>>();
            assert_eq!(but_world(items(&third).await), all);
        });
    }

    #[test]
    fn a_torn_or_altered_file_is_refused(backup in some_backup(), at in any::<prop::sample::Index>(), bit in 0..8_u32) {
        let file = backup.encode();
        assert_eq!(Backup::decode(&file).unwrap(), backup);
        let at = at.index(file.len());
        assert!(Backup::decode(&file[..at]).is_err(), "torn at {at}");
        let mut altered = file.clone();
        altered[at] ^= 1 << bit;
        assert!(Backup::decode(&altered).is_err(), "altered at {at}");
        let longer = [&file[..], &[0]].concat();
        assert!(matches!(Backup::decode(&longer), Err(BadBackup::Torn)));
    }
}

#[test]
fn a_file_is_private_and_whole_or_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("backup");
    let backup = Backup { epoch: 0, revision: Revision(7), taken_at: NOW, items: Vec::new() };
    backup.write(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    // Another one takes its place, and nothing is left beside it.
    let newer = Backup { revision: Revision(8), ..backup };
    newer.write(&path).unwrap();
    assert_eq!(Backup::read(&path).unwrap(), newer);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    let nowhere = dir.path().join("none/backup");
    assert!(matches!(newer.write(&nowhere), Err(BackupFileError::Write { .. })));
    std::fs::write(&path, "something else").unwrap();
    let foreign = Backup::read(&path).unwrap_err();
    assert!(matches!(&foreign, BackupFileError::Bad { source: BadBackup::Foreign, .. }));
}

#[test]
fn a_backup_of_a_newer_release_is_refused_by_its_version() {
    let head = br#"{"version":2,"else":true}"#;
    let mut file = b"longshore store backup\n".to_vec();
    file.extend((head.len() as u64).to_le_bytes());
    file.extend(head);
    use sha2::Digest as _;
    let hash = sha2::Sha256::digest(&file);
    file.extend(hash);
    assert!(matches!(Backup::decode(&file), Err(BadBackup::Newer { found: 2 })));
}

#[tokio::test]
async fn only_an_empty_store_is_restored_into() {
    let dir = tempfile::tempdir().unwrap();
    let to = store(dir.path(), "to.redb");
    for key in ["/tokens/admin", "/tokens/ci", "/leader"] {
        to.commit(Transaction::new().put(key, "1")).await.unwrap();
    }
    let before = items(&to).await;
    let backup = Backup {
        epoch: 0,
        revision: Revision(1),
        taken_at: NOW,
        items: vec![("/a".to_owned(), Bytes::from("1"))],
    };
    let refused = backup.restore(&to, &World::FIRST).await.unwrap_err();
    assert!(matches!(refused, RestoreError::NotEmpty(_)));
    let said = refused.to_string();
    assert!(said.contains("1 below /leader, 2 below /tokens; nothing was changed"), "{said}");
    assert_eq!(items(&to).await, before);
    assert_eq!(contents(&to).await.unwrap().as_deref(), Some("1 below /leader, 2 below /tokens"));
}

#[tokio::test]
async fn a_restore_that_was_cut_short_is_known_and_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    let to = store(dir.path(), "to.redb");
    // As it is after the first of several transactions.
    let half = Transaction::new().put("/restoring", "{}").put("/of-the-other", "1");
    to.commit(half).await.unwrap();
    assert!(is_half_restored(&to).await.unwrap());
    assert_eq!(contents(&to).await.unwrap(), None);
    let many = (0..1000).map(|number| (format!("/k/{number:04}"), Bytes::from(vec![7; 5000])));
    let backup = Backup { epoch: 5, revision: Revision(1), taken_at: NOW, items: many.collect() };
    let world = World::after(5, Origin::Restored, NOW);
    backup.restore(&to, &world).await.unwrap();
    assert!(!is_half_restored(&to).await.unwrap());
    let restored = items(&to).await;
    assert_eq!(restored.len(), 1001);
    assert!(restored.iter().all(|(key, _)| key.starts_with("/k/") || key == WORLD));
}
