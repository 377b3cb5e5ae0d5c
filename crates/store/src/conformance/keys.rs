//! Keys, their values, revisions and versions.

use crate::error::StoreError;
use crate::key_value::Revision;
use crate::store::Page;
use crate::transaction::Transaction;

use super::{Subject, commit, delete, get, put, show, show_all};

pub async fn a_put_is_read_back(subject: &mut dyn Subject) {
    let store = subject.open().await;
    assert_eq!(get(&*store, "/a").await, None);
    put(&*store, "/a", "1").await;
    let kv = get(&*store, "/a").await.expect("the key was written");
    assert_eq!((show(&kv).as_str(), kv.lease), ("/a=1", None));
    // Any bytes are a value, none at all too.
    let bytes = [0, 255, b'\n'];
    let odd = Transaction::new().put("/odd", bytes.to_vec()).put("/empty", "");
    commit(&*store, odd).await;
    let odd = get(&*store, "/odd").await.expect("the key was written");
    assert_eq!(odd.value[..], bytes);
    let empty = get(&*store, "/empty").await.expect("the key was written");
    assert!(empty.value.is_empty());
}

pub async fn revisions_and_versions_count_writes(subject: &mut dyn Subject) {
    let store = subject.open().await;
    let first = put(&*store, "/a", "1").await;
    let other = put(&*store, "/b", "1").await;
    let second = put(&*store, "/a", "2").await;
    assert_eq!((other, second), (first.next(), first.next().next()));
    let kv = get(&*store, "/a").await.expect("the key was written");
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (first, second, 2));
}

pub async fn a_deleted_key_comes_back_as_new(subject: &mut dyn Subject) {
    let store = subject.open().await;
    put(&*store, "/a", "1").await;
    put(&*store, "/a", "2").await;
    delete(&*store, "/a").await;
    assert_eq!(get(&*store, "/a").await, None);
    let again = put(&*store, "/a", "3").await;
    let kv = get(&*store, "/a").await.expect("the key was written");
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (again, again, 1));
}

pub async fn unusable_keys_are_refused(subject: &mut dyn Subject) {
    let store = subject.open().await;
    let before = put(&*store, "/a", "1").await;
    for key in ["", "a", "/a\0", &format!("/{}", "a".repeat(1024))] {
        let refusals = [
            store.get(key).await.err(),
            store.list(key, Page::default()).await.err(),
            store.watch(key, Revision(0)).await.err(),
            store.commit(Transaction::new().put(key, "")).await.err(),
        ];
        for refusal in refusals {
            assert!(matches!(refusal, Some(StoreError::InvalidKey { .. })), "{key:?}: {refusal:?}");
        }
    }
    assert_eq!(put(&*store, "/a", "2").await, before.next());
}

pub async fn everything_survives_a_reopening(subject: &mut dyn Subject) {
    let store = subject.open().await;
    let first = put(&*store, "/a", "1").await;
    put(&*store, "/b", "1").await;
    put(&*store, "/a", "2").await;
    let last = delete(&*store, "/b").await;
    let kv = get(&*store, "/a").await;
    drop(store);

    let store = subject.open().await;
    assert_eq!(get(&*store, "/a").await, kv);
    assert_eq!(get(&*store, "/b").await, None);
    let past = store.list("/", Page::at(first.next())).await;
    let past = past.expect("the past was not compacted");
    assert_eq!(show_all(&past.items), ["/a=1", "/b=1"]);
    assert_eq!(put(&*store, "/b", "2").await, last.next());
}
