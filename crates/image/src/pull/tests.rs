//! Whole pulls from a source in memory.

mod converted;
mod crash;
mod fake;
mod forms;
mod full;
mod hostile;
mod images;
mod kept;
mod neighbours;
mod parts;

use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use crate::limits::Limits;
use crate::mount::{ImageTree, KernelPath};
use crate::store::{Collected, Stocked};
use crate::tar::tests::{Archive, RawHeader};
use crate::unpack::tests::digest_of;
use fake::{FakeSource, Fault};
use images::ImageParts;

use super::*;

/// A store of the form that every kernel has.
fn open(root: &Path) -> ImageStore {
    open_by(root, KernelPath::Directories)
}

fn open_by(root: &Path, kernel: KernelPath) -> ImageStore {
    ImageStore::open_with(root, Limits::default(), Some(kernel)).unwrap()
}

/// The directories that are stacked.
fn layers(image: &Image) -> &[PathBuf] {
    match &image.tree {
        ImageTree::Directories(layers) => layers,
        ImageTree::Erofs(_) => panic!("{image:?} is not of directories"),
    }
}

fn repository() -> Repository {
    "default/web".parse().unwrap()
}

async fn pull(
    store: &ImageStore,
    source: &Arc<FakeSource>,
    digest: &Digest,
) -> Result<(Image, PullReport), PullImageError> {
    store.pull(Arc::clone(source) as _, &repository(), digest, &|_| ()).await
}

/// A source with one image.
pub(crate) fn published() -> (Arc<dyn Source>, Digest) {
    let source = Arc::new(FakeSource::default());
    let digest = three_layers().publish(&source);
    (source, digest)
}

pub(crate) async fn pull_from(
    store: &ImageStore,
    source: &Arc<dyn Source>,
    digest: &Digest,
) -> Image {
    store.pull(Arc::clone(source), &repository(), digest, &|_| ()).await.unwrap().0
}

/// What lies in a directory of the store, by name.
fn entries(root: &Path, name: &str) -> Vec<String> {
    let listing = std::fs::read_dir(root.join(name)).unwrap();
    let mut names: Vec<String> =
        listing.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn assert_no_leftovers(root: &Path) {
    assert_eq!(entries(root, "staging"), [""; 0]);
    assert_eq!(entries(root, "trash"), [""; 0]);
}

fn three_layers() -> ImageParts {
    ImageParts::default()
        .gzip(
            Archive::default()
                .directory("./")
                .directory("etc")
                .file("etc/a", b"1")
                .file("gone", b""),
        )
        .zstd(Archive::default().file("etc/b", b"2").file(".wh.gone", b""))
        .plain(Archive::default().file("etc/c", &[3; 300_000]))
}

/// Looks at what a pull told of how far it was: always more, until all was there; how much that is.
#[track_caller]
fn how_it_came(events: &[PullEvent]) -> ByteCount {
    let progress = PullProgress::default();
    let mut before = ByteCount(0);
    for event in events {
        progress.note(event);
        let (done, of) = progress.so_far();
        assert!(before <= done && done <= of, "{before} and then {done} of {of} after {event:?}");
        before = done;
    }
    assert_eq!(before, progress.so_far().1, "not all came");
    before
}

#[tokio::test]
async fn an_image_of_every_compression() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let source = Arc::new(FakeSource::default());
    let digest = three_layers().publish(&source);
    let events = Mutex::new(Vec::new());
    let progress = |event| events.lock().unwrap().push(event);
    let (image, report) =
        store.pull(Arc::clone(&source) as _, &repository(), &digest, &progress).await.unwrap();
    assert_eq!((report.layers, report.reused_layers), (3, 0));
    assert!(report.bytes_unpacked > report.bytes_fetched);
    // One more for the time of the root, which the layers above the first do not describe.
    assert_eq!((image.digest, image.manifest, layers(&image).len()), (digest, digest, 4));
    assert_eq!(image.config.cmd, ["/bin/sh"]);
    for (layer, file) in layers(&image).iter().zip(["etc/a", "etc/b", "etc/c"]) {
        assert!(layer.join(file).is_file());
    }
    assert_no_leftovers(root.path());
    let events = events.into_inner().unwrap();
    let PullEvent::Resolved { layers: told } = &events[0] else { panic!("{:?}", events[0]) };
    let sizes = told.iter().map(|(_, size)| size.0);
    assert_eq!((told.len(), sizes.sum()), (3, report.bytes_fetched.0));
    assert_eq!(how_it_came(&events), report.bytes_fetched);
    let done = events.iter().filter(|event| matches!(event, PullEvent::LayerDone { .. })).count();
    assert_eq!(done, 3);

    let (again, report) = pull(&store, &source, &digest).await.unwrap();
    assert_eq!((again, report.reused_layers), (image.clone(), 3));
    drop(store);
    let store = open(root.path());
    assert_eq!(store.image(&digest), Some(image.clone()));
    assert_eq!(store.list_images(), [image]);
}

#[tokio::test]
async fn an_index_leads_to_the_image_for_this_machine() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let source = Arc::new(FakeSource::default());
    let manifest = three_layers().publish(&source);
    let index = source.publish_index(&manifest);
    let (image, _) = pull(&store, &source, &index).await.unwrap();
    assert_eq!((image.digest, image.manifest), (index, manifest));
    assert_eq!(store.image(&index), Some(image));
    assert_eq!(store.image(&manifest), None);
    let (_, report) = pull(&store, &source, &manifest).await.unwrap();
    assert_eq!(report.reused_layers, 3);
}

#[tokio::test]
async fn layers_are_shared_and_fetched_once() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let source = Arc::new(FakeSource::default());
    let base = || ImageParts::default().gzip(Archive::default().file("base", &[1; 100_000]));
    let digests = [
        base().gzip(Archive::default().file("a", b"")).publish(&source),
        base().gzip(Archive::default().file("b", b"")).publish(&source),
        // The same layer twice: overlayfs would refuse the directory twice.
        base()
            .gzip(Archive::default().file("b", b""))
            .gzip(Archive::default().file("base", &[1; 100_000]))
            .publish(&source),
    ];
    let pulls = (0..12).map(|n| pull(&store, &source, &digests[n % 3]));
    let results: Vec<_> = futures_util::future::join_all(pulls).await;
    for (n, result) in results.into_iter().enumerate() {
        assert_eq!(layers(&result.unwrap().0).len(), 2, "{n}");
    }
    assert_eq!(entries(root.path(), "layers").len(), 3);
    assert_eq!(source.n_layer_requests(), 3);
    assert_no_leftovers(root.path());
}

/// What a case does to the source, and what the pull must say.
struct Case {
    name: &'static str,
    spoil: fn(&FakeSource, &ImageParts, &Digest),
    is_expected: fn(&PullImageError) -> bool,
    retry: Retry,
}

async fn assert_refused(cases: impl IntoIterator<Item = Case>) {
    for Case { name, spoil, is_expected, retry } in cases {
        let root = tempfile::tempdir().unwrap();
        let store = open(root.path());
        let source = Arc::new(FakeSource::default());
        let parts = three_layers();
        let digest = parts.clone().publish(&source);
        spoil(&source, &parts, &digest);
        let error = pull(&store, &source, &digest).await.unwrap_err();
        assert!(is_expected(&error), "{name}: {error:?}");
        assert_eq!(error.retry(), retry, "{name}");
        assert_eq!(store.image(&digest), None, "{name}");
        assert_eq!(entries(root.path(), "images"), [""; 0], "{name}");
        eventually(|| entries(root.path(), "staging").is_empty()).await;
        // And the same image without the fault.
        let source = Arc::new(FakeSource::default());
        three_layers().publish(&source);
        pull(&store, &source, &digest).await.unwrap();
    }
}

#[tokio::test]
async fn nothing_of_an_image_with_a_broken_layer_becomes_visible() {
    assert_refused([
        Case {
            name: "damaged",
            spoil: |source, parts, _| source.replace_blob(&parts.blob(1), |blob| blob[20] ^= 1),
            is_expected: |error| {
                matches!(error, PullImageError::UnpackLayer { source, .. }
                    if matches!(source, UnpackError::BlobDigest { .. }))
            },
            retry: Retry::CanHelp,
        },
        Case {
            name: "cut",
            spoil: |source, parts, _| source.replace_blob(&parts.blob(0), |blob| blob.truncate(99)),
            is_expected: is_blob_size,
            retry: Retry::CanHelp,
        },
        Case {
            name: "too long",
            spoil: |source, parts, _| source.replace_blob(&parts.blob(2), |blob| blob.push(0)),
            is_expected: is_blob_size,
            retry: Retry::CanHelp,
        },
        Case {
            name: "missing",
            spoil: |source, parts, _| source.remove_blob(&parts.blob(1)),
            is_expected: |error| matches!(error, PullImageError::FetchLayer { .. }),
            retry: Retry::Pointless,
        },
        Case {
            name: "of a source that never gets better",
            spoil: |source, parts, _| source.fault(&parts.blob(1), Fault::AlwaysBreaks),
            is_expected: |error| matches!(error, PullImageError::FetchLayer { .. }),
            retry: Retry::CanHelp,
        },
    ])
    .await;
}

fn is_blob_size(error: &PullImageError) -> bool {
    matches!(error, PullImageError::UnpackLayer { source, .. }
        if matches!(source, UnpackError::BlobSize { .. }))
}

fn is_mismatch(error: &PullImageError) -> bool {
    matches!(error, PullImageError::Mismatch { .. })
}

#[tokio::test]
async fn nothing_of_an_image_with_a_broken_config_becomes_visible() {
    assert_refused([
        Case {
            name: "damaged",
            spoil: |source, parts, _| {
                source.replace_blob(&parts.config_digest(), |blob| blob[0] = b' ');
            },
            is_expected: is_mismatch,
            retry: Retry::CanHelp,
        },
        Case {
            name: "too long",
            spoil: |source, parts, _| {
                source.replace_blob(&parts.config_digest(), |blob| blob.push(b' '));
            },
            is_expected: is_mismatch,
            retry: Retry::CanHelp,
        },
        Case {
            name: "missing",
            spoil: |source, parts, _| source.remove_blob(&parts.config_digest()),
            is_expected: |error| matches!(error, PullImageError::FetchConfig { .. }),
            retry: Retry::Pointless,
        },
    ])
    .await;
}

#[tokio::test]
async fn nothing_of_an_image_with_a_broken_manifest_becomes_visible() {
    assert_refused([
        Case {
            name: "damaged",
            spoil: |source, _, digest| source.replace_manifest(digest, |bytes| bytes.push(b' ')),
            is_expected: is_mismatch,
            retry: Retry::CanHelp,
        },
        Case {
            name: "missing",
            spoil: |source, _, digest| source.remove_manifest(digest),
            is_expected: |error| matches!(error, PullImageError::FetchManifest { .. }),
            retry: Retry::Pointless,
        },
        Case {
            name: "huge",
            spoil: |source, _, digest| {
                source.replace_manifest(digest, |bytes| bytes.resize(5 << 20, b' '));
            },
            is_expected: |error| matches!(error, PullImageError::Limit { .. }),
            retry: Retry::Pointless,
        },
        Case {
            name: "stated to be an index",
            spoil: |source, _, digest| source.restate_manifest(digest, images::INDEX),
            is_expected: |error| matches!(error, PullImageError::Manifest { .. }),
            retry: Retry::Pointless,
        },
    ])
    .await;
}

/// Waits for something that a thread does on its own.
pub(super) async fn eventually(is_so: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(std::time::Instant::now() < deadline, "it did not happen in 20 seconds");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn contradictions_of_manifest_and_config_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let source = Arc::new(FakeSource::default());
    let layer = || Archive::default().file("a", b"");
    let publish = |parts: ImageParts| parts.publish(&source);
    let fewer = publish(ImageParts::default().gzip(layer()).diff_ids(&[]));
    let error = pull(&store, &source, &fewer).await.unwrap_err();
    assert!(matches!(error, PullImageError::LayerCount { layers: 1, diff_ids: 0 }));
    let other = publish(ImageParts::default().gzip(layer()).diff_ids(&[digest_of(b"x")]));
    let error = pull(&store, &source, &other).await.unwrap_err();
    assert!(
        matches!(error, PullImageError::UnpackLayer { source: UnpackError::DiffId { .. }, .. }),
        "{error:?}"
    );
    let many = (0..500).fold(ImageParts::default(), |parts, _| parts.gzip(layer()));
    let error = pull(&store, &source, &publish(many)).await.unwrap_err();
    assert!(matches!(error, PullImageError::Limit { .. }), "{error:?}");
    let foreign = publish(ImageParts::default().architecture("z80"));
    let error = pull(&store, &source, &foreign).await.unwrap_err();
    assert!(matches!(error, PullImageError::Config { .. }), "{error:?}");
    assert_eq!(entries(root.path(), "images"), [""; 0]);
}

#[tokio::test]
async fn a_broken_stream_is_resumed_where_it_broke() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let source = Arc::new(FakeSource::default());
    let large = |name| Archive::default().file(name, &[1; 300_000]);
    let parts = ImageParts::default().plain(large("a")).plain(large("b"));
    let digest = parts.clone().publish(&source);
    source.fault(&parts.blob(0), Fault::BreaksEvery(10_000));
    source.fault(&parts.blob(1), Fault::StallsEvery(200_000));
    source.fault(&parts.config_digest(), Fault::BreaksEvery(100));
    let (_, report) = pull(&store, &source, &digest).await.unwrap();
    assert_eq!(report.reused_layers, 0);
    for idx in [0, 1] {
        assert_eq!(source.n_bytes_given(&parts.blob(idx)), parts.blob_size(idx), "no byte twice");
    }
    assert!(source.n_layer_requests() > 30);
}

#[tokio::test]
async fn a_dropped_pull_leaves_nothing_and_can_be_repeated() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let source = Arc::new(FakeSource::default());
    let parts = three_layers();
    let digest = parts.clone().publish(&source);
    source.fault(&parts.blob(2), Fault::HangsAt(100_000));
    let staged_a_file = || {
        let staged = entries(root.path(), "staging");
        staged.iter().any(|name| root.path().join("staging").join(name).join("fs/etc/c").exists())
    };
    tokio::select! {
        result = pull(&store, &source, &digest) => panic!("{result:?}"),
        () = eventually(staged_a_file) => {}
    }
    eventually(|| entries(root.path(), "staging").is_empty()).await;
    source.heal();
    let (image, _) = pull(&store, &source, &digest).await.unwrap();
    assert_eq!(layers(&image).len(), 4);
}

#[tokio::test]
async fn collecting_spares_what_a_pull_is_about_to_need() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let source = Arc::new(FakeSource::default());
    let old = ImageParts::default().gzip(Archive::default().file("old", b"")).publish(&source);
    pull(&store, &source, &old).await.unwrap();
    let parts = three_layers();
    let digest = parts.clone().publish(&source);
    source.fault(&parts.blob(2), Fault::HangsAt(100_000));
    let collect = async {
        eventually(|| entries(root.path(), "layers").len() == 3).await;
        let store = store.clone();
        let collected = tokio::task::spawn_blocking(move || clear(&store)).await.unwrap();
        source.heal();
        collected
    };
    let (collected, pulled) = tokio::join!(collect, pull(&store, &source, &digest));
    assert_eq!((collected.images, collected.layers.len()), (vec![old], 1));
    assert_eq!(pulled.unwrap().1.reused_layers, 0);
    assert_eq!(store.collect(&[old]).unwrap(), Default::default(), "that was gone before");
    let collected = clear(&store);
    assert_eq!((collected.images, collected.layers.len()), (vec![digest], 3));
    assert_eq!(entries(root.path(), "layers"), [""; 0]);
    assert_no_leftovers(root.path());
}

/// Removes all that nobody holds.
fn clear(store: &ImageStore) -> Collected {
    let all: Vec<_> = store.list_images().iter().map(|image| image.digest).collect();
    store.collect(&all).unwrap()
}

#[tokio::test]
async fn what_is_held_stays_and_a_shared_layer_goes_with_its_last_image() {
    for kernel in [KernelPath::Directories, *forms::ways().last().unwrap()] {
        let root = tempfile::tempdir().unwrap();
        let store = open_by(root.path(), kernel);
        let source = Arc::new(FakeSource::default());
        let first = three_layers().publish(&source);
        let second = three_layers().plain(Archive::default().file("more", b"x")).publish(&source);
        for digest in [&first, &second] {
            pull(&store, &source, digest).await.unwrap();
        }
        let (held, again) = (store.hold(&first).unwrap(), store.hold(&first).unwrap());
        let collected = clear(&store);
        assert_eq!((collected.images, collected.layers.len()), (vec![second], 1));
        drop(held);
        assert_eq!(clear(&store), Default::default(), "it is held twice");
        drop(again);
        let collected = clear(&store);
        assert_eq!((collected.images, collected.layers.len()), (vec![first], 3));
        assert!(store.hold(&first).is_none());
        assert_no_leftovers(root.path());
    }
}

#[tokio::test]
async fn the_stock_tells_what_images_take_and_when_they_were_used_also_after_a_restart() {
    for kernel in [KernelPath::Directories, *forms::ways().last().unwrap()] {
        let root = tempfile::tempdir().unwrap();
        let store = open_by(root.path(), kernel);
        let source = Arc::new(FakeSource::default());
        let digest = three_layers().publish(&source);
        pull(&store, &source, &digest).await.unwrap();
        let [came] = <[Stocked; 1]>::try_from(store.stock().unwrap()).unwrap();
        assert_eq!((came.digest, came.held, came.layers.len()), (digest, false, 3));
        assert!(came.layers.values().all(|size| size.0 >= 4096), "{came:?}");
        let long_ago = std::time::SystemTime::UNIX_EPOCH + Duration::from_millis(1_234_567);
        let record = root.path().join("images").join(format!("{}.json", digest.hex()));
        let times = std::fs::FileTimes::new().set_modified(long_ago);
        std::fs::File::open(&record).unwrap().set_times(times).unwrap();
        drop(store);
        let store = open_by(root.path(), kernel);
        assert_eq!(store.stock().unwrap()[0].last_used, long_ago);
        let held = store.hold(&digest).unwrap();
        held.note_use();
        let used = &store.stock().unwrap()[0];
        assert!(used.held && used.last_used >= came.last_used, "{used:?}");
        assert_eq!(used.size(), came.size());
    }
}

/// What a container sees: layers from a pull, mounted.
#[tokio::test]
async fn a_pulled_image_mounts_as_its_layers_say() {
    for kernel in forms::ways() {
        pulled_image_mounts_as_its_layers_say(kernel).await;
    }
}

async fn pulled_image_mounts_as_its_layers_say(kernel: KernelPath) {
    let scratch = crate::mount::tests::Scratch::new();
    let store = open_by(&scratch.path().join("store"), kernel);
    let source = Arc::new(FakeSource::default());
    let directory = |name: &str, mode| RawHeader::new(b'5', name.as_bytes()).mode(mode).clone();
    let shared = || Archive::default().file("tmp/deep/er/file", b"upper").file("replaced/new", b"");
    let base = Archive::default()
        .raw(&directory("./", 0o711), b"")
        .pax(&[("SCHILY.xattr.user.note", b"kept")])
        .raw(directory("tmp", 0o1777).owner(5, 6).mtime(1_234_567), b"")
        .raw(&directory("tmp/deep", 0o700), b"")
        .raw(&directory("replaced", 0o700), b"")
        .file("gone", b"")
        .file("hidden/old", b"");
    let parts = ImageParts::default()
        .gzip(base)
        .gzip(Archive::default().file(".wh.replaced", b"").file(".wh.gone", b""))
        .gzip(shared())
        .gzip(Archive::default().file("hidden/.wh..wh..opq", b"").file("hidden/new", b""));
    let digest = parts.publish(&source);
    let (image, _) = pull(&store, &source, &digest).await.unwrap();
    if kernel == KernelPath::Directories {
        assert_eq!(layers(&image).len(), 5);
    }
    let (base, target) = (scratch.path().join("base"), scratch.path().join("rootfs"));
    image.mount(&base, &target, None).unwrap();
    let mut nodes = crate::unpack::tests::listing::list(&target);
    nodes.retain(|_, node| node.kind == 'd');
    let seen: Vec<_> = nodes
        .iter()
        .map(|(path, node)| (String::from_utf8_lossy(path).into_owned(), node.mode, node.uid))
        .collect();
    let expected = [
        ("", 0o711, 0),
        ("hidden", 0o755, 0),
        ("replaced", 0o755, 0),
        ("tmp", 0o1777, 5),
        ("tmp/deep", 0o700, 0),
        ("tmp/deep/er", 0o755, 0),
    ];
    assert_eq!(seen, expected.map(|(path, mode, uid)| (path.to_owned(), mode, uid)));
    let tmp = &nodes[&b"tmp"[..]];
    assert_eq!(tmp.mtime, (1_234_567, 0));
    assert_eq!(tmp.xattrs[&b"user.note"[..]], b"kept");
    assert!(target.join("tmp/deep/er/file").is_file() && target.join("hidden/new").is_file());
    assert!(!target.join("gone").exists() && !target.join("hidden/old").exists());

    // The same layer in an image where nothing below describes anything needs no help.
    let alone = ImageParts::default().gzip(shared()).publish(&source);
    let (image, _) = pull(&store, &source, &alone).await.unwrap();
    if kernel == KernelPath::Directories {
        assert_eq!(layers(&image).len(), 1);
    }
    let others: Vec<_> = store.list_images().iter().map(|image| image.digest).collect();
    let others: Vec<_> = others.into_iter().filter(|digest| *digest != alone).collect();
    store.collect(&others).unwrap();
    assert_eq!(entries(&scratch.path().join("store"), "attributes"), [""; 0]);
}

#[tokio::test]
async fn a_layer_that_hides_everything_below_is_the_lowest() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let source = Arc::new(FakeSource::default());
    let parts = ImageParts::default()
        .gzip(Archive::default().file("old", b""))
        .gzip(Archive::default().file(".wh..wh..opq", b"").file("new", b""))
        .gzip(Archive::default().file("top", b""));
    let (image, report) = pull(&store, &source, &parts.publish(&source)).await.unwrap();
    assert_eq!((report.layers, layers(&image).len()), (3, 2));
    assert!(layers(&image)[0].join("new").is_file());
    let empty = ImageParts::default().publish(&source);
    let (image, _) = pull(&store, &source, &empty).await.unwrap();
    assert!(layers(&image).is_empty());
}
