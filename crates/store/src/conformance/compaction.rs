//! Compaction: what goes, what stays, and how it is told.

use crate::error::StoreError;
use crate::key_value::Revision;
use crate::store::{Page, Store};

use super::{Subject, delete, get, next_n, put, show_all, watch};

async fn compact(store: &dyn Store, to: Revision) {
    store.compact(to).await.expect("the store compacts");
}

fn assert_compacted<T: std::fmt::Debug>(result: Result<T, StoreError>, point: Revision) {
    match result {
        Err(StoreError::Compacted { at, .. }) => assert_eq!(at, point),
        other => panic!("expected compacted at {point}, got {other:?}"),
    }
}

pub async fn history_before_the_point_is_gone(subject: &mut dyn Subject) {
    let store = subject.open().await;
    let first = put(&*store, "/a", "1").await;
    let point = put(&*store, "/a", "2").await;
    let last = put(&*store, "/a", "3").await;
    compact(&*store, point).await;
    assert_compacted(store.list("/", Page::at(first)).await, point);
    assert_compacted(store.watch("/", first).await, point);
    assert_compacted(store.watch("/", Revision(0)).await, point);
    let past = store.list("/", Page::at(point)).await;
    let past = past.expect("the point itself can be listed");
    assert_eq!(show_all(&past.items), ["/a=2"]);
    let mut watch = watch(&*store, "/", point).await;
    let told = [(point, vec!["/a=2".to_owned()]), (last, vec!["/a=3".to_owned()])];
    assert_eq!(next_n(&mut watch, 2).await, told);
}

pub async fn keys_outlive_their_history(subject: &mut dyn Subject) {
    let store = subject.open().await;
    let created = put(&*store, "/old", "1").await;
    put(&*store, "/gone", "1").await;
    put(&*store, "/back", "1").await;
    delete(&*store, "/gone").await;
    delete(&*store, "/back").await;
    for _ in 0..10 {
        put(&*store, "/busy", "x").await;
    }
    let point = put(&*store, "/back", "2").await;
    compact(&*store, point).await;
    let listing = store.list("/", Page::default()).await;
    let listing = listing.expect("the store lists its keys");
    assert_eq!(show_all(&listing.items), ["/back=2", "/busy=x", "/old=1"]);
    let old = get(&*store, "/old").await.expect("the key was written");
    assert_eq!((old.create_revision, old.mod_revision), (created, created));
    let busy = get(&*store, "/busy").await.expect("the key was written");
    assert_eq!(busy.version, 10);
    // They can be changed, deleted and seen in what history there is, as before.
    let changed = put(&*store, "/old", "2").await;
    delete(&*store, "/old").await;
    let past = store.list("/old", Page::at(point)).await;
    assert_eq!(show_all(&past.expect("the point can be listed").items), ["/old=1"]);
    let past = store.list("/old", Page::at(changed)).await;
    assert_eq!(show_all(&past.expect("the past can be listed").items), ["/old=2"]);
}

pub async fn a_deletion_at_the_point_is_still_told(subject: &mut dyn Subject) {
    let store = subject.open().await;
    put(&*store, "/a", "1").await;
    let point = delete(&*store, "/a").await;
    let last = put(&*store, "/b", "1").await;
    compact(&*store, point).await;
    let told = [(point, vec!["-/a".to_owned()]), (last, vec!["/b=1".to_owned()])];
    let mut first = watch(&*store, "/", point).await;
    assert_eq!(next_n(&mut first, 2).await, told);
    compact(&*store, last).await;
    let mut second = watch(&*store, "/", last).await;
    assert_eq!(next_n(&mut second, 1).await, told[1..]);
    assert_eq!(get(&*store, "/a").await, None);
}

pub async fn compacting_again_or_too_far(subject: &mut dyn Subject) {
    let store = subject.open().await;
    put(&*store, "/a", "1").await;
    let point = put(&*store, "/a", "2").await;
    let last = put(&*store, "/a", "3").await;
    let future = store.compact(last.next()).await;
    assert!(matches!(
        future,
        Err(StoreError::FutureRevision { requested, current })
            if (requested, current) == (last.next(), last)
    ));
    compact(&*store, last).await;
    compact(&*store, last).await;
    compact(&*store, point).await;
    // Going back does not bring anything back.
    assert_compacted(store.list("/", Page::at(point)).await, last);
    assert_eq!(put(&*store, "/a", "4").await, last.next());
}

pub async fn compaction_survives_a_reopening(subject: &mut dyn Subject) {
    let store = subject.open().await;
    let first = put(&*store, "/a", "1").await;
    let point = put(&*store, "/a", "2").await;
    compact(&*store, point).await;
    drop(store);

    let store = subject.open().await;
    assert_compacted(store.watch("/", first).await, point);
    let mut watch = watch(&*store, "/", point).await;
    assert_eq!(next_n(&mut watch, 1).await, [(point, vec!["/a=2".to_owned()])]);
}
