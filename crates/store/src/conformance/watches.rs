//! Watches: live, from the past, and across the seam.

use futures_util::future::join_all;

use crate::key_value::{Event, Revision};
use crate::transaction::Transaction;

use super::{Subject, commit, delete, get, next, next_n, put, shorten, watch};

pub async fn a_watch_tells_what_happens(subject: &mut dyn Subject) {
    let store = subject.open().await;
    let before = put(&*store, "/a", "0").await;
    let mut watch = watch(&*store, "/", before.next()).await;
    let first = put(&*store, "/a", "1").await;
    let batch = next(&mut watch).await;
    assert_eq!(batch.revision, first);
    // The event carries the key as a read at that moment would have.
    let expected = get(&*store, "/a").await.expect("the key was written");
    assert_eq!(batch.events, [Event::Put(expected)]);
    let second = delete(&*store, "/a").await;
    let batch = next(&mut watch).await;
    let expected = Event::Delete { key: "/a".to_owned(), revision: second };
    assert_eq!((batch.revision, batch.events), (second, vec![expected]));
}

pub async fn a_watch_tells_what_happened(subject: &mut dyn Subject) {
    let store = subject.open().await;
    let first = put(&*store, "/a", "1").await;
    let second = put(&*store, "/b", "2").await;
    let third = delete(&*store, "/a").await;
    let told = [
        (first, vec!["/a=1".to_owned()]),
        (second, vec!["/b=2".to_owned()]),
        (third, vec!["-/a".to_owned()]),
    ];
    for (from, expected) in [(Revision(0), &told[..]), (first, &told), (second, &told[1..])] {
        let mut watch = watch(&*store, "/", from).await;
        assert_eq!(next_n(&mut watch, expected.len()).await, expected);
    }
    drop(store);

    let store = subject.open().await;
    let mut watch = watch(&*store, "/", first).await;
    assert_eq!(next_n(&mut watch, 3).await, told);
}

pub async fn a_watch_waits_for_a_revision_to_come(subject: &mut dyn Subject) {
    let store = subject.open().await;
    let before = put(&*store, "/a", "0").await;
    let mut watch = watch(&*store, "/", before.next().next()).await;
    put(&*store, "/a", "1").await;
    let told = put(&*store, "/a", "2").await;
    assert_eq!(next_n(&mut watch, 1).await, [(told, vec!["/a=2".to_owned()])]);
}

pub async fn one_revision_is_one_batch(subject: &mut dyn Subject) {
    let store = subject.open().await;
    let start = put(&*store, "/k/old", "").await;
    let live = watch(&*store, "/k/", start.next()).await;
    let all =
        Transaction::new().put("/k/b", "1").put("/other", "").put("/k/a", "2").delete("/k/old");
    let revision = commit(&*store, all).await.revision;
    let replayed = watch(&*store, "/k/", revision).await;
    for mut watch in [replayed, live] {
        let batch = next(&mut watch).await;
        assert_eq!(batch.revision, revision);
        // Which order the events of one revision have is the implementation's.
        let mut told: Vec<_> = batch.events.iter().map(shorten).collect();
        told.sort();
        assert_eq!(told, ["-/k/old", "/k/a=2", "/k/b=1"]);
    }
}

pub async fn a_watch_keeps_to_its_prefix(subject: &mut dyn Subject) {
    let store = subject.open().await;
    let start = put(&*store, "/a/0", "").await;
    let mut live = watch(&*store, "/a/", start.next()).await;
    for key in ["/a", "/a0", "/b/1"] {
        put(&*store, key, "").await;
    }
    let told = put(&*store, "/a/1", "").await;
    delete(&*store, "/a").await;
    let last = delete(&*store, "/a/0").await;
    let expected = [(told, vec!["/a/1=".to_owned()]), (last, vec!["-/a/0".to_owned()])];
    assert_eq!(next_n(&mut live, 2).await, expected);
    let mut replayed = watch(&*store, "/a/", start.next()).await;
    assert_eq!(next_n(&mut replayed, 2).await, expected);
}

pub async fn many_watches_see_the_same(subject: &mut dyn Subject) {
    let store = subject.open().await;
    let start = put(&*store, "/start", "").await.next();
    let mut watches = Vec::new();
    for i in 0..20 {
        // Each begins somewhere else in the history.
        put(&*store, "/k", "").await;
        watches.push((i, watch(&*store, "/k", start).await));
    }
    let (_, first) = &mut watches[0];
    let expected = next_n(first, 20).await;
    for (i, watch) in &mut watches[1..] {
        assert_eq!(next_n(watch, 20).await, expected, "watch {i}");
    }
}

pub async fn replay_goes_live_without_gap_or_duplicate(subject: &mut dyn Subject) {
    const WRITERS: usize = 4;
    const WRITES: usize = 100;
    let store = subject.open().await;
    let start = put(&*store, "/start", "").await.next();
    let write = async |writer: usize| {
        for _ in 0..WRITES {
            put(&*store, &format!("/k/{writer}"), "").await;
        }
    };
    let read = async |_: usize| {
        let mut watch = watch(&*store, "/k/", start).await;
        let mut expected = start;
        while expected.0 < start.0 + (WRITERS * WRITES) as u64 {
            assert_eq!(next(&mut watch).await.revision, expected);
            expected = expected.next();
            if expected.0.is_multiple_of(50) {
                // Falls behind, so that it has to catch up again.
                tokio::task::yield_now().await;
            }
        }
    };
    let writers = join_all((0..WRITERS).map(write));
    let readers = join_all((0..WRITERS).map(read));
    futures_util::join!(writers, readers);
}

pub async fn a_slow_watch_loses_nothing(subject: &mut dyn Subject) {
    const BATCHES: usize = 60;
    const CONCURRENT: usize = 64;
    let store = subject.open().await;
    let start = put(&*store, "/start", "").await.next();
    let mut watch = watch(&*store, "/k", start).await;
    // More than any implementation should hold in memory for one watcher.
    let value = vec![b'x'; 4096];
    for _ in 0..BATCHES {
        let put = || commit(&*store, Transaction::new().put("/k", value.clone()));
        join_all((0..CONCURRENT).map(|_| put())).await;
    }
    for i in 0..(BATCHES * CONCURRENT) as u64 {
        assert_eq!(next(&mut watch).await.revision.0, start.0 + i);
    }
}
