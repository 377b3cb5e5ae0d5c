//! Large layers, of which several parts are fetched at a time.

use super::super::LAYERS_AT_ONCE;
use super::super::fetch::{PART, PARTS_AT_ONCE, SHARED};
use super::*;
use crate::converted::tests::noise;

/// An image of one layer without compression, of more parts than are fetched at a time.
fn large() -> ImageParts {
    let mut random = fastrand::Rng::with_seed(5);
    let mut bytes = vec![0; 9 * PART as usize / 2];
    random.fill(&mut bytes);
    ImageParts::default().plain(Archive::default().file("a", &bytes).file("b", &bytes))
}

async fn assert_pulled(source: &Arc<FakeSource>, digest: &Digest) {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let (image, _) = pull(&store, source, digest).await.unwrap();
    let layer = &layers(&image)[0];
    let read = |name| std::fs::read(layer.join(name)).unwrap();
    assert_eq!(read("a").len() as u64, 9 * PART / 2);
    assert!(read("a") == read("b"));
    assert_no_leftovers(root.path());
}

#[tokio::test]
async fn parts_that_break_off_are_asked_for_from_there() {
    let source = Arc::new(FakeSource::default());
    let parts = large();
    let digest = parts.clone().publish(&source);
    assert_pulled(&source, &digest).await;
    let n_parts = parts.blob_size(0).div_ceil(PART) as usize;
    assert_eq!((n_parts, source.n_layer_requests()), (10, 10));
    assert_eq!(source.n_bytes_given(&parts.blob(0)), parts.blob_size(0));

    let n_bytes = PART as usize * 2 / 3;
    source.fault(&parts.blob(0), Fault::BreaksEvery(n_bytes));
    assert_pulled(&source, &digest).await;
    assert_eq!(source.n_layer_requests(), 10 + 19, "two for each but the last, which is short");
    assert_eq!(source.n_bytes_given(&parts.blob(0)), 2 * parts.blob_size(0), "no byte twice");
}

/// Heals a source once it was asked so often for parts, and not more often.
async fn heal_after(source: &FakeSource, n_requests: usize) {
    eventually(|| source.n_layer_requests() == n_requests).await;
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(source.n_layer_requests(), n_requests);
    source.heal();
}

#[tokio::test]
async fn no_more_parts_are_ahead_than_the_window_has() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let source = Arc::new(FakeSource::default());
    let parts = large();
    let digest = parts.clone().publish(&source);
    source.fault(&parts.blob(0), Fault::HangsAt(100_000));
    let watch = heal_after(&source, PARTS_AT_ONCE);
    let (pulled, ()) = tokio::join!(pull(&store, &source, &digest), watch);
    pulled.unwrap();
    assert_eq!(source.n_layer_requests(), 10);
}

/// Of three large layers whose first parts hang.
#[tokio::test]
async fn layers_share_the_parts_that_are_ahead() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let source = Arc::new(FakeSource::default());
    let layer = |n| Archive::default().file("large", &noise(9 * PART as usize, n));
    let parts = (0..3).fold(ImageParts::default(), |parts, n| parts.plain(layer(n)));
    let digest = parts.clone().publish(&source);
    for idx in 0..3 {
        source.fault(&parts.blob(idx), Fault::HangsAt(100_000));
    }
    let watch = heal_after(&source, LAYERS_AT_ONCE + SHARED);
    let (pulled, ()) = tokio::join!(pull(&store, &source, &digest), watch);
    pulled.unwrap();
    assert_eq!(source.n_layer_requests(), 30, "all of each, once");
}

#[tokio::test]
async fn a_source_that_has_no_parts_gives_one_stream() {
    let source = Arc::new(FakeSource::default());
    let parts = large();
    let digest = parts.clone().publish(&source);
    source.fault(&parts.blob(0), Fault::HasNoParts);
    assert_pulled(&source, &digest).await;
    assert_eq!(source.n_layer_requests(), 1);
}

/// As a location of the release before does, which knows no ends of parts.
#[tokio::test]
async fn what_comes_behind_a_part_is_left() {
    let source = Arc::new(FakeSource::default());
    let parts = large();
    let digest = parts.clone().publish(&source);
    source.fault(&parts.blob(0), Fault::GoesOn);
    assert_pulled(&source, &digest).await;
    assert_eq!(source.n_layer_requests(), 10);
}

#[tokio::test]
async fn a_blob_in_parts_that_is_not_as_long_as_it_should_be_is_refused() {
    let n_bytes = large().blob_size(0);
    for (wrong, expected) in [
        (n_bytes + 1, "not"),
        (n_bytes - 1, "not"),
        (3 * PART + 5, "has 3145733 bytes, not"),
        (3 * PART, "no such part"),
        (5, "has 5 bytes, not"),
        (0, "has 0 bytes, not"),
    ] {
        let root = tempfile::tempdir().unwrap();
        let store = open(root.path());
        let source = Arc::new(FakeSource::default());
        let parts = large();
        let digest = parts.clone().publish(&source);
        source.replace_blob(&parts.blob(0), |blob| blob.resize(wrong as usize, 0));
        let error = pull(&store, &source, &digest).await.unwrap_err();
        assert!(longshore_types::chain(&error).contains(expected), "{wrong}: {error:?}");
        eventually(|| entries(root.path(), "staging").is_empty()).await;
    }
}

#[tokio::test]
async fn a_part_that_never_comes_fails_the_pull() {
    let source = Arc::new(FakeSource::default());
    let parts = large();
    let digest = parts.clone().publish(&source);
    // The first part goes well, and then nothing does.
    source.fault(&parts.blob(0), Fault::HangsAt(PART as usize - 1));
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let spoil = async {
        eventually(|| source.n_layer_requests() == PARTS_AT_ONCE).await;
        source.fault(&parts.blob(0), Fault::AlwaysBreaks);
        source.go_on();
    };
    let (pulled, ()) = tokio::join!(pull(&store, &source, &digest), spoil);
    let error = pulled.unwrap_err();
    assert!(matches!(error, PullImageError::FetchLayer { .. }), "{error:?}");
    assert_eq!(error.retry(), Retry::CanHelp);
    eventually(|| entries(root.path(), "staging").is_empty()).await;
}
