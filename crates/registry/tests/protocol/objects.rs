//! What is of its own where the bytes of blobs are in an object store: its failures, its leftovers, and the
//! way there from the disk.

use std::sync::atomic::Ordering;
use std::time::Duration;

use longshore_registry::{
    ConnectS3Error, Objects, OpenRegistryError, Registry, RegistryOptions, S3Credentials, S3Options,
};

use crate::protocol::s3::{self, ObjectStore, options as s3_options, shared};
use crate::protocol::server::{options, serve as serve_here};
use crate::protocol::{Harness, digest, serve, stored};

/// Of three parts and a bit.
const LARGE: usize = (15 << 20) + 12_345;

fn bytes(n_bytes: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; n_bytes];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// Ends a registry, and gives its directory once nobody has that any more.
async fn stop(registry: Harness) -> tempfile::TempDir {
    let Harness { server, http, root } = registry;
    drop((server, http));
    let lock = std::fs::File::open(root.path().join("lock")).unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while lock.try_lock().is_err() {
        assert!(tokio::time::Instant::now() < deadline, "it does not end");
        tokio::task::yield_now().await;
    }
    root
}

/// Does what the registry of a directory does again and again.
async fn remove_gone(root: &std::path::Path, upload_age: Duration) {
    let mut options = stored(options(root)).await;
    options.upload_age = upload_age;
    Registry::open(options).unwrap().remove_gone().await.unwrap();
}

#[tokio::test]
async fn a_large_blob_is_sent_in_parts_and_read_in_any_part() {
    let registry = Harness::new().await;
    let large = bytes(LARGE, 1);
    let part = 5 << 20;
    let upload = registry.begin("a/b").await;
    // Chunks end before, at and after the end of a part.
    let mut have = 0;
    for end in [1, part - 1, part, part + 1, 2 * part, LARGE - 1] {
        let answer = registry.send("PATCH", &upload, &[], large[have..end].to_vec()).await;
        assert_eq!(answer.status, 202, "{}", answer.text());
        assert_eq!(answer.header("range"), format!("0-{}", end - 1));
        have = end;
    }
    assert_eq!(shared().n_parts(), 3, "what is a part was sent before the end is known");
    let path = format!("{upload}?digest={}", digest(&large));
    let answer = registry.send("PUT", &path, &[], large[have..].to_vec()).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    let blob = answer.header("location").to_owned();
    assert_eq!(digest(&registry.get(&blob).await.body), digest(&large));
    for range in [0..1, part - 5..part + 5, LARGE - 7..LARGE] {
        let header = format!("bytes={}-{}", range.start, range.end - 1);
        let answer = registry.send("GET", &blob, &[("range", &header)], "").await;
        assert_eq!(answer.status, 206);
        assert!(answer.body == large[range.clone()], "{range:?}");
    }
    let exact = bytes(2 * part, 2);
    registry.push_blob("a/b", &exact).await;
    assert_eq!(shared().n_parts(), 0);
    assert_eq!(s3::blobs_of(registry.root.path()).len(), 2);
    // What is there is not sent to its end again, and not kept twice.
    let writes = shared().faults.n_writes.load(Ordering::Relaxed);
    registry.push_blob("c/d", b"small").await;
    registry.push_blob("a/b", b"small").await;
    assert_eq!(shared().faults.n_writes.load(Ordering::Relaxed), writes + 1);
    assert_eq!(s3::blobs_of(registry.root.path()).len(), 3);
}

#[tokio::test]
async fn blobs_of_an_object_store_are_all_that_it_has() {
    let registry = Harness::new().await;
    let manifest = registry.push_image("a/b", "tag", b"layer").await;
    let objects = shared().objects();
    let mut found: Vec<_> =
        objects.values().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    found.sort();
    assert_eq!(found, ["layer", "{}"]);
    // Nor is a name what somebody could know.
    for known in [&manifest[7..], &digest(b"layer")[7..], "tag", "a/b"] {
        assert!(objects.keys().all(|key| !key.contains(known)), "{known}: {objects:?}");
    }
}

#[tokio::test]
async fn what_is_deleted_or_given_up_goes_from_the_store_too() {
    let registry = Harness::new().await;
    let blob = registry.push_blob("a/b", b"shared").await;
    registry.push_blob("c/d", b"shared").await;
    let given_up = registry.begin("a/b").await;
    let left = registry.begin("a/b").await;
    for upload in [&given_up, &left] {
        let answer = registry.send("PATCH", upload, &[], bytes(LARGE, 3)).await;
        assert_eq!(answer.status, 202, "{}", answer.text());
    }
    let wrong = format!("/v2/a/b/blobs/uploads/?digest={}", digest(b"other"));
    registry
        .send("POST", &wrong, &[], bytes(6 << 20, 4))
        .await
        .assert_refused(400, "DIGEST_INVALID");
    let store = shared();
    assert_eq!((store.objects().len(), store.n_parts()), (1, 7));
    assert_eq!(registry.send("DELETE", &given_up, &[], "").await.status, 204);
    for (name, n_left) in [("a/b", 1), ("c/d", 0)] {
        let path = format!("/v2/{name}/blobs/{blob}");
        assert_eq!(registry.send("DELETE", &path, &[], "").await.status, 202);
        registry.get(&path).await.assert_refused(404, "BLOB_UNKNOWN");
        let known = std::fs::read_dir(registry.root.path().join("objects/sha256/")).unwrap();
        let known = known.flat_map(|shard| std::fs::read_dir(shard.unwrap().path()).unwrap());
        assert_eq!(known.count(), n_left, "{name}");
    }
    let root = stop(registry).await;
    remove_gone(root.path(), Duration::from_secs(3600)).await;
    assert_eq!((store.objects().len(), store.n_parts()), (0, 3), "one upload may go on");
    remove_gone(root.path(), Duration::ZERO).await;
    assert_eq!((store.objects().len(), store.n_parts()), (0, 0));
    assert_eq!(std::fs::read_dir(root.path().join("gone")).unwrap().count(), 0);
}

#[tokio::test]
async fn what_the_store_refuses_for_a_moment_is_tried_again() {
    let registry = Harness::new().await;
    let (store, large) = (shared(), bytes(LARGE, 5));
    store.faults.refused.store(3, Ordering::Relaxed);
    let blob = registry.push_blob("a/b", &large).await;
    store.faults.broken.store(2, Ordering::Relaxed);
    registry.push_blob("a/b", b"small").await;
    let path = format!("/v2/a/b/blobs/{blob}");
    for fault in [&store.faults.refused, &store.faults.broken, &store.faults.cut] {
        fault.store(2, Ordering::Relaxed);
        let answer = registry.get(&path).await;
        assert_eq!((answer.status, digest(&answer.body)), (200, digest(&large)));
        assert_eq!(fault.load(Ordering::Relaxed), 0, "it happened");
    }
}

#[tokio::test]
async fn a_store_that_is_away_is_told_and_nothing_is_half_there() {
    let registry = Harness::new().await;
    let (store, large) = (shared(), bytes(LARGE, 6));
    let blob = registry.push_blob("a/b", b"before").await;
    let upload = registry.begin("a/b").await;
    store.faults.refused.store(usize::MAX, Ordering::Relaxed);
    let refused = registry.send("PATCH", &upload, &[], large.clone()).await;
    refused.assert_refused(503, "UNKNOWN");
    assert!(refused.text().contains("object store"), "{}", refused.text());
    let path = format!("/v2/a/b/blobs/uploads/?digest={}", digest(b"small"));
    registry.send("POST", &path, &[], "small").await.assert_refused(503, "UNKNOWN");
    let before = format!("/v2/a/b/blobs/{blob}");
    registry.get(&before).await.assert_refused(503, "UNKNOWN");
    // What is known here is told without the store.
    assert_eq!(registry.send("HEAD", &before, &[], "").await.status, 200);
    let small = format!("/v2/a/b/blobs/{}", digest(b"small"));
    registry.get(&small).await.assert_refused(404, "BLOB_UNKNOWN");

    store.faults.refused.store(0, Ordering::Relaxed);
    assert_eq!(registry.get(&before).await.text(), "before");
    // The upload goes on with what came before it was refused.
    let status = registry.get(&upload).await;
    let last: usize = status.header("range").strip_prefix("0-").unwrap().parse().unwrap();
    let path = format!("{upload}?digest={}", digest(&large));
    let answer = registry.send("PUT", &path, &[], large[last + 1..].to_vec()).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    assert_eq!(digest(&registry.get(answer.header("location")).await.body), digest(&large));
    let root = stop(registry).await;
    remove_gone(root.path(), Duration::ZERO).await;
    assert_eq!(s3::blobs_of(root.path()).len(), 2);
}

/// As a bucket does that drops what was begun long ago.
#[tokio::test]
async fn an_upload_that_the_store_has_forgotten_is_begun_anew() {
    let registry = Harness::new().await;
    let (store, large) = (shared(), bytes(LARGE, 8));
    let answer = registry.push_blob("a/b", b"known").await;
    for last in ["PATCH", "PUT"] {
        let upload = registry.begin("a/b").await;
        assert_eq!(registry.send("PATCH", &upload, &[], large.clone()).await.status, 202);
        store.faults.unknown.store(usize::MAX, Ordering::Relaxed);
        let path = format!("{upload}?digest={}", digest(&large));
        let refused = registry.send(last, &path, &[], bytes(6 << 20, 9)).await;
        refused.assert_refused(404, "BLOB_UPLOAD_UNKNOWN");
        store.faults.unknown.store(0, Ordering::Relaxed);
        registry.get(&upload).await.assert_refused(404, "BLOB_UPLOAD_UNKNOWN");
    }
    let upload = registry.begin("a/b").await;
    assert_eq!(registry.send("PATCH", &upload, &[], large.clone()).await.status, 202);
    store.faults.unknown.store(usize::MAX, Ordering::Relaxed);
    let path = format!("{upload}?digest={}", digest(&large));
    registry.send("PUT", &path, &[], "").await.assert_refused(404, "BLOB_UPLOAD_UNKNOWN");
    store.faults.unknown.store(0, Ordering::Relaxed);
    registry.push_blob("a/b", &large).await;
    // An object that was taken away is a fault of the registry, not of who asks.
    for object in store.objects().values() {
        std::fs::remove_file(object).unwrap();
    }
    registry.get(&format!("/v2/a/b/blobs/{answer}")).await.assert_refused(503, "UNKNOWN");
}

#[tokio::test]
async fn blobs_on_the_disk_stay_there_and_new_ones_go_to_the_store() {
    let root = tempfile::tempdir().unwrap();
    let here = Harness::around(serve_here(options(root.path())).await, root);
    let old = here.push_image("a/b", "old", b"old layer").await;
    let upload = here.begin("a/b").await;
    assert_eq!(here.send("PATCH", &upload, &[], "by").await.status, 202);
    let root = stop(here).await;

    let store = shared();
    let registry = Harness::around(serve(options(root.path())).await, root);
    let answer = registry.get("/v2/a/b/manifests/old").await;
    assert_eq!(answer.header("docker-content-digest"), old);
    let layer = format!("/v2/a/b/blobs/{}", digest(b"old layer"));
    assert_eq!(registry.get(&layer).await.text(), "old layer");
    assert_eq!(store.objects().len(), 0);
    registry.push_blob("c/d", b"old layer").await;
    assert_eq!(store.objects().len(), 0, "it is here already");
    // An upload goes on across the change.
    let path = format!("{upload}?digest={}", digest(b"bytes"));
    assert_eq!(registry.send("PUT", &path, &[], "tes").await.status, 201);
    registry.push_image("a/b", "new", b"new layer").await;
    assert_eq!(store.objects().len(), 2, "the same configuration was here");
    let root = stop(registry).await;

    // From now on it is not to be forgotten where they are.
    let refused = Registry::open(options(root.path())).unwrap_err();
    let OpenRegistryError::Storage { source, .. } = refused else { panic!("{refused}") };
    let told = std::error::Error::source(&source).unwrap().to_string();
    assert!(told.contains("its blobs are in s3://images/tests, and it was told to"), "{told}");
    let mut elsewhere = store.options();
    elsewhere.location = "s3://images/other".parse().unwrap();
    let objects = Some(Objects::connect(elsewhere).await.unwrap());
    let other = RegistryOptions { objects, ..options(root.path()) };
    assert!(matches!(Registry::open(other), Err(OpenRegistryError::Storage { .. })));
    Registry::open(stored(options(root.path())).await).unwrap();
    let location = store.options().location;
    assert!(Registry::has_used(root.path(), &location));
    assert!(!Registry::has_used(root.path(), &"s3://images/other".parse().unwrap()));
}

#[tokio::test]
async fn a_store_that_was_used_before_may_be_away_at_the_start() {
    let root = tempfile::tempdir().unwrap();
    let registry = Harness::around(serve(options(root.path())).await, root);
    registry.push_image("a/b", "tag", b"layer").await;
    let (store, root) = (shared(), stop(registry).await);
    store.faults.refused.store(usize::MAX, Ordering::Relaxed);
    assert!(Objects::connect(store.options()).await.is_err());
    let objects = Some(Objects::connect_again(store.options()).await.unwrap());
    let again = RegistryOptions { objects, ..options(root.path()) };
    let registry = Harness::around(serve(again).await, root);
    assert_eq!(registry.get("/v2/a/b/manifests/tag").await.status, 200);
    let layer = format!("/v2/a/b/blobs/{}", digest(b"layer"));
    registry.get(&layer).await.assert_refused(503, "UNKNOWN");
    store.faults.refused.store(0, Ordering::Relaxed);
    assert_eq!(registry.get(&layer).await.text(), "layer");
}

#[tokio::test]
async fn another_bucket_of_the_same_name_is_refused_and_nothing_is_forgotten_for_it() {
    let registry = Harness::new().await;
    let store = shared();
    registry.push_image("a/b", "tag", b"layer").await;
    let root = stop(registry).await;
    let n_marks = |store: &ObjectStore| store.all().len() - store.objects().len();
    let (right, other) = (Objects::connect(store.options()).await.unwrap(), ObjectStore::start());
    let wrong = Objects::connect(other.options()).await.unwrap();
    // The next start finds out, of a registry of an older release too: it has put nothing there yet.
    Registry::check_store(root.path(), &wrong).await.unwrap();
    remove_gone(root.path(), Duration::ZERO).await;
    assert_eq!(n_marks(&store), 1);
    Registry::check_store(root.path(), &right).await.unwrap();
    let error = Registry::check_store(root.path(), &wrong).await.unwrap_err();
    let cause = std::iter::successors(std::error::Error::source(&error), |error| error.source());
    let told = cause.last().unwrap().to_string();
    assert!(told.contains("it is another bucket of that name, or one that was emptied"), "{told}");
    // One that was away at the start is found out when something is to be removed from it.
    let registry = Harness::around(serve(stored(options(root.path())).await).await, root);
    assert_eq!(registry.send("DELETE", "/v2/a/b/manifests/tag", &[], "").await.status, 202);
    let layer = format!("/v2/a/b/blobs/{}", digest(b"layer"));
    assert_eq!(registry.send("DELETE", &layer, &[], "").await.status, 202);
    let root = stop(registry).await;
    let opened = RegistryOptions { objects: Some(wrong), ..options(root.path()) };
    assert!(Registry::open(opened).unwrap().remove_gone().await.is_err());
    assert_eq!(store.objects().len(), 2);
    remove_gone(root.path(), Duration::ZERO).await;
    assert_eq!((store.objects().len(), n_marks(&store), n_marks(&other)), (1, 1, 0));
    // A store that does not answer may be the right one.
    store.faults.refused.store(usize::MAX, Ordering::Relaxed);
    Registry::check_store(root.path(), &right).await.unwrap();
}

#[tokio::test]
async fn a_store_that_cannot_be_used_is_refused_before_anybody_is_served() {
    let store = ObjectStore::start();
    let refused = async |options: S3Options| {
        let error = Objects::connect(options).await.unwrap_err();
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        (error.to_string(), cause.unwrap_or_default())
    };
    let mut stranger = store.options();
    stranger.credentials = Some(S3Credentials::new("stranger", "secret"));
    let (told, cause) = refused(stranger).await;
    assert_eq!(told, "cannot write an object in s3://images/tests, as a registry must");
    assert!(cause.contains("403") || cause.contains("privileges"), "{cause}");
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut away = s3_options(&free.to_string());
    away.patience = Duration::from_millis(200);
    let (told, _) = refused(away).await;
    assert!(told.contains("cannot write"), "{told}");
    let mut small = store.options();
    small.part_size = longshore_types::ByteCount(1 << 20);
    assert!(matches!(Objects::connect(small).await, Err(ConnectS3Error::PartSize { .. })));
    Objects::connect(store.options()).await.unwrap();
    assert_eq!(store.objects().len(), 0, "the object that was written is gone");
}

/// A push whose registry dies when the store has the object and nobody was told so.
#[tokio::test]
async fn a_push_that_died_at_its_last_step_is_done_again() {
    let registry = Harness::new().await;
    let (_store, large) = (shared(), bytes(LARGE, 7));
    let upload = registry.begin("a/b").await;
    assert_eq!(registry.send("PATCH", &upload, &[], large.clone()).await.status, 202);
    let dir = registry.root.path().join("uploads").join(upload.rsplit('/').next().unwrap());
    let before = std::fs::read(dir.join("object")).unwrap();
    let tail = std::fs::read(dir.join("data")).unwrap();
    let path = format!("{upload}?digest={}", digest(&large));
    assert_eq!(registry.send("PUT", &path, &[], "").await.status, 201);
    // As it was when the store had completed it.
    let root = stop(registry).await;
    std::fs::remove_dir_all(root.path().join("repositories")).unwrap();
    std::fs::remove_dir_all(root.path().join("objects")).unwrap();
    std::fs::create_dir(&dir).unwrap();
    for (name, bytes) in [("object", &before[..]), ("data", &tail), ("repository", b"a/b")] {
        std::fs::write(dir.join(name), bytes).unwrap();
    }
    std::fs::create_dir_all(root.path().join("objects/sha256")).unwrap();
    let registry = Harness::around(serve(options(root.path())).await, root);
    let status = registry.get(&upload).await;
    assert_eq!(status.header("range"), format!("0-{}", LARGE - 1));
    let answer = registry.send("PUT", &path, &[], "").await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    assert_eq!(digest(&registry.get(answer.header("location")).await.body), digest(&large));
    assert_eq!(s3::blobs_of(registry.root.path()).len(), 1);
}
