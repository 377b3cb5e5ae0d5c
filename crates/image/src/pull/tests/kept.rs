//! Pulls of large layers that end in the middle, and the ones after them.

use std::cell::RefCell;
use std::time::SystemTime;

use super::super::fetch::PART;
use super::*;

/// The length of what is kept before a pull is ended, in whole buffers of its writer.
pub(super) const KEPT: u64 = 8 << 20;

/// An image of one large layer.
pub(super) fn large() -> ImageParts {
    let mut random = fastrand::Rng::with_seed(6);
    let mut bytes = vec![0; 14 * PART as usize];
    random.fill(&mut bytes);
    ImageParts::default().plain(Archive::default().file("a", &bytes))
}

/// How much is kept of the only blob.
pub(super) fn n_kept(root: &Path) -> u64 {
    let names = entries(root, "beginnings");
    let length =
        |name| std::fs::metadata(root.join("beginnings").join(name)).map(|file| file.len());
    names.first().map_or(0, |name| length(name).unwrap_or(0))
}

/// Opens a store anew, once the threads of a pull that ended let go of it.
async fn open_again(root: &Path) -> ImageStore {
    let opened = RefCell::new(None);
    let open = || {
        *opened.borrow_mut() =
            ImageStore::open_with(root, Limits::default(), Some(KernelPath::Directories)).ok();
        opened.borrow().is_some()
    };
    eventually(open).await;
    opened.into_inner().unwrap()
}

/// Ends a pull once so much of the blob is kept.
async fn begin(root: &Path, source: &Arc<FakeSource>, parts: &ImageParts, digest: &Digest) {
    source.fault(&parts.blob(0), Fault::HangsBehind(KEPT as usize + 9999));
    let store = open_again(root).await;
    tokio::select! {
        result = pull(&store, source, digest) => panic!("{result:?}"),
        () = eventually(|| n_kept(root) >= KEPT) => {}
    }
    eventually(|| entries(root, "staging").is_empty()).await;
    source.heal();
}

fn assert_whole(image: &Image) {
    let file = layers(image)[0].join("a");
    assert_eq!(std::fs::read(file).unwrap().len() as u64, 14 * PART);
}

#[tokio::test]
async fn what_came_of_a_large_layer_outlives_its_pull() {
    let root = tempfile::tempdir().unwrap();
    let source = Arc::new(FakeSource::default());
    let parts = large();
    let digest = parts.clone().publish(&source);
    begin(root.path(), &source, &parts, &digest).await;
    let (store, before) = (open_again(root.path()).await, source.n_bytes_given(&parts.blob(0)));
    assert_eq!(n_kept(root.path()), KEPT, "also when the store was opened again");
    let (image, report) = pull(&store, &source, &digest).await.unwrap();
    assert_whole(&image);
    let n_given = source.n_bytes_given(&parts.blob(0)) - before;
    assert_eq!(n_given, parts.blob_size(0) - KEPT);
    assert_eq!(report.bytes_fetched, ByteCount(n_given));
    assert_eq!(entries(root.path(), "beginnings"), [""; 0]);
    assert_no_leftovers(root.path());
}

#[tokio::test]
async fn a_beginning_that_is_wrong_is_found_and_not_tried_twice() {
    let root = tempfile::tempdir().unwrap();
    let source = Arc::new(FakeSource::default());
    let parts = large();
    let digest = parts.clone().publish(&source);
    for spoil in [
        |bytes: &mut Vec<u8>| bytes[5 << 20] ^= 1,
        |bytes: &mut Vec<u8>| bytes[0] ^= 1,
        |bytes: &mut Vec<u8>| bytes.fill(0),
    ] {
        begin(root.path(), &source, &parts, &digest).await;
        let path = root.path().join("beginnings").join(&entries(root.path(), "beginnings")[0]);
        let mut bytes = std::fs::read(&path).unwrap();
        spoil(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
        let store = open_again(root.path()).await;
        let error = pull(&store, &source, &digest).await.unwrap_err();
        assert!(
            matches!(&error, PullImageError::UnpackLayer { source, .. }
                if matches!(source, UnpackError::BlobDigest { .. })),
            "{error:?}"
        );
        assert_eq!(error.retry(), Retry::CanHelp);
        assert_eq!(entries(root.path(), "beginnings"), [""; 0]);
        let (image, report) = pull(&store, &source, &digest).await.unwrap();
        assert_whole(&image);
        assert_eq!(report.bytes_fetched.0, parts.blob_size(0));
        clear(&store);
    }
}

#[tokio::test]
async fn a_beginning_of_any_length_is_gone_on_from() {
    let source = Arc::new(FakeSource::default());
    let parts = large();
    let digest = parts.clone().publish(&source);
    let size = parts.blob_size(0);
    let whole = parts.clone();
    for (length, expected) in [
        (0, 0),
        (1, 0),
        (4097, 4096),
        (PART, PART),
        (size - 1, size - size % 4096),
        (size, size - size % 4096),
        (size + 1, 0),
        (3 * size, 0),
    ] {
        let root = tempfile::tempdir().unwrap();
        let store = open(root.path());
        let mut bytes = whole.bytes(0).to_vec();
        bytes.resize(length as usize, 7);
        let path = root.path().join("beginnings").join(parts.blob(0).hex());
        std::fs::write(path, bytes).unwrap();
        let (image, report) = pull(&store, &source, &digest).await.unwrap();
        assert_whole(&image);
        assert_eq!(report.bytes_fetched.0, size - expected, "{length}");
        assert_eq!(entries(root.path(), "beginnings"), [""; 0]);
    }
}

#[tokio::test]
async fn beginnings_go_when_nobody_comes_back_for_them() {
    let root = tempfile::tempdir().unwrap();
    drop(open(root.path()));
    let make = |name: &str, hours: u64| {
        let file = std::fs::File::create(root.path().join("beginnings").join(name)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(hours * 3600)).unwrap();
    };
    make("old", 25);
    make("new", 23);
    let store = open(root.path());
    assert_eq!(entries(root.path(), "beginnings"), ["new"]);
    make("old", 25);
    store.remove_old_beginnings().unwrap();
    assert_eq!(entries(root.path(), "beginnings"), ["new"]);
}

#[tokio::test]
async fn what_is_refused_is_not_kept() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let source = Arc::new(FakeSource::default());
    let bytes = vec![1; 3 * PART as usize];
    let archive = || Archive::default().file("a", &bytes);
    for parts in [
        ImageParts::default().plain(archive().file("../climbs", b"")),
        ImageParts::default().plain(archive()).diff_ids(&[digest_of(b"x")]),
    ] {
        pull(&store, &source, &parts.publish(&source)).await.unwrap_err();
        assert_eq!(entries(root.path(), "beginnings"), [""; 0]);
    }
}
