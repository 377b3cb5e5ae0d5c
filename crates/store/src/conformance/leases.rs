//! Leases: running out, being renewed and revoked, and what becomes of their keys.

use std::time::Duration;

use crate::error::StoreError;
use crate::key_value::{LeaseId, Revision};
use crate::store::Store;
use crate::transaction::Transaction;

use super::{Subject, commit, delete, get, next, next_n, put, shorten, watch};

const SHORT: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(3600);

async fn grant(store: &dyn Store, ttl: Duration) -> LeaseId {
    store.grant_lease(ttl).await.expect("the store grants a lease")
}

async fn revoke(store: &dyn Store, lease: LeaseId) {
    let revoked = store.revoke_lease(lease).await;
    revoked.expect("the store revokes the lease");
}

async fn put_leased(store: &dyn Store, key: &str, lease: LeaseId) -> Revision {
    let put = Transaction::new().put_leased(key, "", lease);
    commit(store, put).await.revision
}

pub async fn a_lease_that_runs_out_takes_its_keys(subject: &mut dyn Subject) {
    let store = subject.open().await;
    put(&*store, "/free", "").await;
    let lease = grant(&*store, SHORT).await;
    let both = Transaction::new().put_leased("/l/a", "", lease).put_leased("/l/b", "", lease);
    let written = commit(&*store, both).await.revision;
    let mut watch = watch(&*store, "/", written.next()).await;
    let batch = next(&mut watch).await;
    let mut told: Vec<_> = batch.events.iter().map(shorten).collect();
    told.sort();
    assert_eq!(told, ["-/l/a", "-/l/b"]);
    assert_eq!(batch.revision, written.next());
    assert_eq!(get(&*store, "/l/a").await, None);
    assert!(get(&*store, "/free").await.is_some());
    let late = store.keep_alive(lease).await;
    assert!(matches!(late, Err(StoreError::LeaseNotFound { lease: l }) if l == lease));
}

pub async fn a_renewed_lease_does_not_run_out(subject: &mut dyn Subject) {
    const RENEWED: Duration = Duration::from_secs(5);
    let store = subject.open().await;
    let renewed = grant(&*store, RENEWED).await;
    put_leased(&*store, "/renewed", renewed).await;
    // The other one lasts longer, so when it has run out the first one would have too.
    let left = grant(&*store, RENEWED + SHORT).await;
    let written = put_leased(&*store, "/left", left).await;
    let mut watch = watch(&*store, "/", written.next()).await;
    let mut renewal = tokio::time::interval(RENEWED / 50);
    let end = next(&mut watch);
    tokio::pin!(end);
    let batch = loop {
        tokio::select! {
            batch = &mut end => break batch,
            _ = renewal.tick() => {
                store.keep_alive(renewed).await.expect("the lease still runs");
            }
        }
    };
    assert_eq!(batch.events.iter().map(shorten).collect::<Vec<_>>(), ["-/left"]);
    let kv = get(&*store, "/renewed").await.expect("the key is kept");
    assert_eq!(kv.lease, Some(renewed));
}

pub async fn a_revoked_lease_takes_its_keys(subject: &mut dyn Subject) {
    let store = subject.open().await;
    let lease = grant(&*store, LONG).await;
    let other = grant(&*store, LONG).await;
    assert_ne!(lease, other);
    put_leased(&*store, "/a", lease).await;
    put_leased(&*store, "/other", other).await;
    let written = put_leased(&*store, "/b", lease).await;
    let mut watch = watch(&*store, "/", written.next()).await;
    revoke(&*store, lease).await;
    let batch = next(&mut watch).await;
    let mut told: Vec<_> = batch.events.iter().map(shorten).collect();
    told.sort();
    assert_eq!((batch.revision, told), (written.next(), vec!["-/a".to_owned(), "-/b".to_owned()]));
    assert!(get(&*store, "/other").await.is_some());
    // A lease without keys ends without a revision.
    let idle = grant(&*store, LONG).await;
    revoke(&*store, idle).await;
    assert_eq!(put(&*store, "/c", "").await, batch.revision.next());
}

pub async fn a_key_follows_its_last_lease(subject: &mut dyn Subject) {
    let store = subject.open().await;
    let (first, second) = (grant(&*store, LONG).await, grant(&*store, LONG).await);
    for key in ["/kept", "/freed", "/moved", "/reborn"] {
        put_leased(&*store, key, first).await;
    }
    put(&*store, "/freed", "").await;
    put_leased(&*store, "/moved", second).await;
    delete(&*store, "/reborn").await;
    let before = put(&*store, "/reborn", "").await;
    let mut watch = watch(&*store, "/", before.next()).await;
    revoke(&*store, first).await;
    revoke(&*store, second).await;
    let told = [
        (before.next(), vec!["-/kept".to_owned()]),
        (before.next().next(), vec!["-/moved".to_owned()]),
    ];
    assert_eq!(next_n(&mut watch, 2).await, told);
    for key in ["/freed", "/reborn"] {
        let kv = get(&*store, key).await.expect("the key is kept");
        assert_eq!(kv.lease, None, "{key}");
    }
}

pub async fn a_lease_that_is_not_there_is_refused(subject: &mut dyn Subject) {
    let store = subject.open().await;
    let before = put(&*store, "/a", "1").await;
    let ended = grant(&*store, LONG).await;
    revoke(&*store, ended).await;
    for lease in [ended, LeaseId(1 << 60)] {
        let tied = Transaction::new().put("/a", "2").put_leased("/b", "", lease);
        let refusals = [
            store.commit(tied).await.err(),
            store.keep_alive(lease).await.err(),
            store.revoke_lease(lease).await.err(),
        ];
        for refusal in refusals {
            assert!(
                matches!(refusal, Some(StoreError::LeaseNotFound { lease: l }) if l == lease),
                "{refusal:?}"
            );
        }
    }
    let kv = get(&*store, "/a").await.expect("the key was written");
    assert_eq!((kv.value.as_ref(), kv.mod_revision), (&b"1"[..], before));
    for ttl in [Duration::ZERO, SHORT / 2, LONG * 24 * 366] {
        let refused = store.grant_lease(ttl).await;
        assert!(matches!(refused, Err(StoreError::InvalidTtl { .. })), "{ttl:?}");
    }
}

pub async fn leases_survive_a_reopening(subject: &mut dyn Subject) {
    let store = subject.open().await;
    let long = grant(&*store, LONG).await;
    let short = grant(&*store, SHORT).await;
    let revoked = grant(&*store, LONG).await;
    revoke(&*store, revoked).await;
    put_leased(&*store, "/long", long).await;
    drop(store);

    let store = subject.open().await;
    store.keep_alive(long).await.expect("the lease still runs");
    let gone = store.keep_alive(revoked).await;
    assert!(matches!(gone, Err(StoreError::LeaseNotFound { .. })));
    let fresh = grant(&*store, LONG).await;
    assert!(![long, short, revoked].contains(&fresh));
    let written = put(&*store, "/a", "").await;
    let mut watch = watch(&*store, "/", written.next()).await;
    revoke(&*store, long).await;
    assert_eq!(next_n(&mut watch, 1).await, [(written.next(), vec!["-/long".to_owned()])]);
}
