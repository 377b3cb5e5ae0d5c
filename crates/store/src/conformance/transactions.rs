//! Conditions, operations and limits.

use futures_util::future::join_all;

use crate::error::StoreError;
use crate::key_value::{LeaseId, Revision};
use crate::store::{Page, Store};
use crate::transaction::{
    Compare, MAX_OPERATIONS, MAX_REQUEST_BYTES, Op, OpResponse, Relation, Transaction,
};

use super::{Subject, commit, get, put, show, show_all};

async fn keys(store: &dyn Store) -> Vec<String> {
    let listing = store.list("/", Page::default()).await;
    show_all(&listing.expect("the store lists its keys").items)
}

pub async fn one_transaction_is_one_revision(subject: &mut dyn Subject) {
    let store = subject.open().await;
    let before = put(&*store, "/old", "1").await;
    let all = Transaction::new().put("/a", "1").put("/b", "2").delete("/old");
    let result = commit(&*store, all).await;
    assert!(result.succeeded);
    assert_eq!(result.revision, before.next());
    let responses = [OpResponse::Put, OpResponse::Put, OpResponse::Deleted(1)];
    assert_eq!(result.responses, responses);
    let listing = store.list("/", Page::default()).await;
    let listing = listing.expect("the store lists its keys");
    assert_eq!(show_all(&listing.items), ["/a=1", "/b=2"]);
    for kv in listing.items {
        assert_eq!(kv.mod_revision, result.revision);
    }
}

pub async fn what_changes_nothing_makes_no_revision(subject: &mut dyn Subject) {
    let store = subject.open().await;
    let before = put(&*store, "/a", "1").await;
    let idle = [
        Transaction::new(),
        Transaction::new().get("/a"),
        Transaction::new().delete("/absent").delete_prefix("/absent"),
        Transaction::new().when(Compare::absent("/a")).put("/b", ""),
    ];
    for transaction in idle {
        let result = commit(&*store, transaction).await;
        assert_eq!(result.revision, before);
    }
    assert_eq!(put(&*store, "/a", "1").await, before.next());
}

pub async fn conditions_compare_as_etcd_does(subject: &mut dyn Subject) {
    use Relation::{Equal, Greater, Less, NotEqual};
    let store = subject.open().await;
    let created = put(&*store, "/a", "m").await;
    let modified = put(&*store, "/a", "m").await;
    let absent = Revision(0);
    let cases = [
        (Compare::exists("/a"), true),
        (Compare::absent("/a"), false),
        (Compare::exists("/no"), false),
        (Compare::absent("/no"), true),
        (Compare::create_revision("/a", Equal, created), true),
        (Compare::create_revision("/a", Equal, modified), false),
        (Compare::create_revision("/a", Less, modified), true),
        (Compare::mod_revision("/a", Equal, modified), true),
        (Compare::mod_revision("/a", NotEqual, modified), false),
        (Compare::mod_revision("/a", Greater, created), true),
        (Compare::mod_revision("/a", Less, modified.next()), true),
        (Compare::mod_revision("/no", Equal, absent), true),
        (Compare::mod_revision("/no", Less, created), true),
        (Compare::version("/a", Equal, 2), true),
        (Compare::version("/a", Greater, 2), false),
        (Compare::version("/no", Equal, 0), true),
        (Compare::value("/a", Equal, "m"), true),
        (Compare::value("/a", NotEqual, "m"), false),
        (Compare::value("/a", Less, "n"), true),
        (Compare::value("/a", Greater, "ma"), false),
        // A key that does not exist has no value, not even one that differs.
        (Compare::value("/no", Equal, ""), false),
        (Compare::value("/no", NotEqual, "m"), false),
        (Compare::value("/no", Less, "m"), false),
    ];
    for (condition, expected) in cases {
        let shown = format!("{condition:?}");
        let result = commit(&*store, Transaction::new().when(condition)).await;
        assert_eq!(result.succeeded, expected, "{shown}");
    }
}

pub async fn all_conditions_must_hold(subject: &mut dyn Subject) {
    let store = subject.open().await;
    put(&*store, "/a", "1").await;
    let guarded = |last: Compare| {
        Transaction::new()
            .when(Compare::exists("/a"))
            .when(last)
            .put("/then", "1")
            .otherwise_get("/a")
            .otherwise(Op::Put { key: "/otherwise".to_owned(), value: "1".into(), lease: None })
    };
    let refused = commit(&*store, guarded(Compare::exists("/b"))).await;
    assert!(!refused.succeeded);
    let [OpResponse::Got(Some(seen)), OpResponse::Put] = &refused.responses[..] else {
        panic!("unexpected responses {:?}", refused.responses);
    };
    assert_eq!(show(seen), "/a=1");
    assert_eq!(keys(&*store).await, ["/a=1", "/otherwise=1"]);
    let done = commit(&*store, guarded(Compare::absent("/b"))).await;
    assert!(done.succeeded);
    assert_eq!(keys(&*store).await, ["/a=1", "/otherwise=1", "/then=1"]);
}

pub async fn a_later_operation_sees_an_earlier_one(subject: &mut dyn Subject) {
    let store = subject.open().await;
    put(&*store, "/k/a", "old").await;
    put(&*store, "/k/b", "old").await;
    let all = Transaction::new()
        .get("/k/a")
        .put("/k/a", "new")
        .get("/k/a")
        .delete("/k/b")
        .get("/k/b")
        .then(Op::GetPrefix { prefix: "/k/".to_owned() });
    let result = commit(&*store, all).await;
    let [
        OpResponse::Got(Some(before)),
        OpResponse::Put,
        OpResponse::Got(Some(after)),
        OpResponse::Deleted(1),
        OpResponse::Got(None),
        OpResponse::GotPrefix(rest),
    ] = &result.responses[..]
    else {
        panic!("unexpected responses {:?}", result.responses);
    };
    assert_eq!((show(before).as_str(), show(after).as_str()), ("/k/a=old", "/k/a=new"));
    assert_eq!(after.mod_revision, result.revision);
    assert_eq!(show_all(rest), ["/k/a=new"]);
}

pub async fn a_prefix_is_deleted_and_nothing_beside_it(subject: &mut dyn Subject) {
    let store = subject.open().await;
    for key in ["/a", "/a/", "/a/1", "/a/ü", "/a0", "/b/1"] {
        put(&*store, key, "").await;
    }
    let result = commit(&*store, Transaction::new().delete_prefix("/a/")).await;
    assert_eq!(result.responses, [OpResponse::Deleted(3)]);
    assert_eq!(keys(&*store).await, ["/a=", "/a0=", "/b/1="]);
    // More keys than a transaction may name go all the same.
    for start in (0..300).step_by(100) {
        let some = (start..start + 100)
            .fold(Transaction::new(), |all, i| all.put(format!("/many/{i}"), ""));
        commit(&*store, some).await;
    }
    let result = commit(&*store, Transaction::new().delete_prefix("/many/")).await;
    assert_eq!(result.responses, [OpResponse::Deleted(300)]);
}

pub async fn those_in_order_go_no_further_than_one_that_is_refused(subject: &mut dyn Subject) {
    let store = subject.open().await;
    let before = put(&*store, "/a", "1").await;
    let put = |key: &str| Transaction::new().put(key, "1");
    let all = vec![
        put("/b"),
        put("/c").when(Compare::absent("/a")),
        put("/b").when(Compare::exists("/b")).delete("/a"),
    ];
    let results = store.commit_in_order(all).await.expect("the store commits them");
    let done: Vec<_> = results.iter().map(|one| (one.succeeded, one.revision)).collect();
    let (first, second) = (before.next(), before.next().next());
    assert_eq!(done, [(true, first), (false, first), (true, second)]);
    assert_eq!(keys(&*store).await, ["/b=1"]);
    assert_eq!(store.commit_in_order(vec![]).await.expect("there is nothing to do"), []);

    let lease = LeaseId(u64::MAX >> 1);
    let all = vec![put("/d"), Transaction::new().put_leased("/e", "1", lease), put("/f")];
    let refused = store.commit_in_order(all).await;
    assert!(matches!(refused, Err(StoreError::LeaseNotFound { .. })), "{refused:?}");
    assert_eq!(keys(&*store).await, ["/b=1", "/d=1"], "nothing is done after it");
    // What breaks a limit is seen before anything is done.
    let large =
        (0..=MAX_OPERATIONS).fold(Transaction::new(), |all, n| all.put(format!("/{n}"), ""));
    store.commit_in_order(vec![put("/g"), large]).await.expect_err("it has too many operations");
    assert_eq!(keys(&*store).await, ["/b=1", "/d=1"]);
}

pub async fn limits_are_kept_and_reached(subject: &mut dyn Subject) {
    let store = subject.open().await;
    let puts = |n: usize| (0..n).fold(Transaction::new(), |all, i| all.put(format!("/n/{i}"), ""));
    let before = commit(&*store, puts(MAX_OPERATIONS)).await.revision;
    let large = vec![7; MAX_REQUEST_BYTES - 1024];
    commit(&*store, Transaction::new().put("/large", large.clone())).await;
    let kv = get(&*store, "/large").await.expect("the key was written");
    assert_eq!(kv.value, large);

    let refused = store.commit(puts(MAX_OPERATIONS + 1)).await;
    assert!(matches!(refused, Err(StoreError::TooManyOperations { found: 129, limit: 128, .. })));
    let too_large = Transaction::new().put("/large", vec![7; MAX_REQUEST_BYTES]);
    let refused = store.commit(too_large).await;
    assert!(matches!(refused, Err(StoreError::RequestTooLarge { .. })));
    let twice = Transaction::new().put("/a", "1").put("/a", "2");
    let refused = store.commit(twice).await;
    assert!(matches!(refused, Err(StoreError::DuplicateKey { .. })));
    assert_eq!(put(&*store, "/a", "1").await, before.next().next());
}

pub async fn concurrent_swaps_lose_no_update(subject: &mut dyn Subject) {
    const WRITERS: usize = 8;
    const INCREMENTS: usize = 25;
    let store = subject.open().await;
    put(&*store, "/counter", "0").await;
    let increment_often = async || {
        for _ in 0..INCREMENTS {
            loop {
                let seen = get(&*store, "/counter").await.expect("the counter exists");
                let text = std::str::from_utf8(&seen.value).expect("the counter is text");
                let count: usize = text.parse().expect("the counter is a number");
                let swap = Transaction::new()
                    .when(Compare::unchanged(&seen))
                    .put("/counter", (count + 1).to_string());
                if commit(&*store, swap).await.succeeded {
                    break;
                }
            }
        }
    };
    join_all((0..WRITERS).map(|_| increment_often())).await;
    let counter = get(&*store, "/counter").await.expect("the counter exists");
    assert_eq!(show(&counter), format!("/counter={}", WRITERS * INCREMENTS));
}
