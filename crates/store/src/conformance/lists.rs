//! Listings, their pages and the past.

use crate::error::StoreError;
use crate::store::{Page, Store};

use super::{Subject, delete, put, show_all};

async fn list(store: &dyn Store, prefix: &str, page: Page) -> Vec<String> {
    let listing = store.list(prefix, page).await;
    show_all(&listing.expect("the store lists its keys").items)
}

pub async fn a_listing_is_in_order_and_under_its_prefix(subject: &mut dyn Subject) {
    let store = subject.open().await;
    assert!(list(&*store, "/", Page::default()).await.is_empty());
    for key in ["/b/2", "/a", "/b/10", "/c", "/b", "/b/ä", "/b/z", "/b0"] {
        put(&*store, key, "").await;
    }
    let under_b = ["/b/10=", "/b/2=", "/b/z=", "/b/ä="];
    assert_eq!(list(&*store, "/b/", Page::default()).await, under_b);
    assert_eq!(list(&*store, "/", Page::default()).await.len(), 8);
    assert!(list(&*store, "/d", Page::default()).await.is_empty());
    let last = put(&*store, "/e", "").await;
    let listing = store.list("/a", Page::default()).await;
    let listing = listing.expect("the store lists its keys");
    assert_eq!((listing.revision, listing.more), (last, false));
}

pub async fn pages_are_of_one_revision(subject: &mut dyn Subject) {
    let store = subject.open().await;
    for key in ["/k/1", "/k/2", "/k/3", "/k/4", "/k/5"] {
        put(&*store, key, "old").await;
    }
    let mut next = Some(Page::first(2));
    let mut pages = Vec::new();
    while let Some(page) = next {
        let listing = store.list("/k/", page).await;
        let listing = listing.expect("the store lists its keys");
        next = listing.next_page(2);
        pages.push(show_all(&listing.items));
        // What happens between the pages is in none of them.
        put(&*store, "/k/4", "new").await;
        put(&*store, "/k/25", "new").await;
        delete(&*store, "/k/5").await;
    }
    let expected: [&[&str]; 3] =
        [&["/k/1=old", "/k/2=old"], &["/k/3=old", "/k/4=old"], &["/k/5=old"]];
    assert_eq!(pages, expected);
    // A page that is exactly full is the last if nothing follows.
    let listing = store.list("/k/", Page::first(5)).await;
    assert!(!listing.expect("the store lists its keys").more);
    let before_all = Page { after: Some("/a".to_owned()), ..Page::first(1) };
    assert_eq!(list(&*store, "/k/", before_all).await, ["/k/1=old"]);
    let behind_all = Page { after: Some("/z".to_owned()), ..Page::default() };
    assert!(list(&*store, "/k/", behind_all).await.is_empty());
}

pub async fn the_past_can_be_listed(subject: &mut dyn Subject) {
    let store = subject.open().await;
    let mut states = vec![
        (put(&*store, "/a", "1").await, vec!["/a=1"]),
        (put(&*store, "/c", "1").await, vec!["/a=1", "/c=1"]),
        (put(&*store, "/a", "2").await, vec!["/a=2", "/c=1"]),
        (delete(&*store, "/a").await, vec!["/c=1"]),
        (put(&*store, "/b", "1").await, vec!["/b=1", "/c=1"]),
        (put(&*store, "/a", "3").await, vec!["/a=3", "/b=1", "/c=1"]),
        (delete(&*store, "/c").await, vec!["/a=3", "/b=1"]),
        (delete(&*store, "/a").await, vec!["/b=1"]),
    ];
    states.reverse();
    let newest = states[0].0;
    for (revision, expected) in &states {
        assert_eq!(list(&*store, "/", Page::at(*revision)).await, *expected, "{revision}");
    }
    let future = store.list("/", Page::at(newest.next())).await;
    assert!(matches!(
        future,
        Err(StoreError::FutureRevision { requested, current })
            if (requested, current) == (newest.next(), newest)
    ));
}
