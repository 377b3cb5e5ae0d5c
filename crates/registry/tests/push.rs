//! Our own client, packer and pusher against the registry.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[path = "support/server.rs"]
mod server;

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::TryStreamExt as _;
use longshore_image::client::{BlobSource, Mounted, RegistryClient, RegistryClientError};
use longshore_image::mount::{ImageTree, KernelPath};
use longshore_image::pack::{PackOptions, PackOutput, pack};
use longshore_image::push::{LocalImage, PushProgress, PushTarget, Pushed, push};
use longshore_image::source::{Given, Part, Retry, Source, SourceError};
use longshore_image::{ImageStore, Limits};
use longshore_types::{Digest, Repository};
use serde_json::json;
use server::{ADMIN, NOBODY, READER, Server, hex, options, serve};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

struct Harness {
    server: Server,
    dir: tempfile::TempDir,
}

impl Harness {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = serve(options(&dir.path().join("registry"))).await;
        Self { server, dir }
    }

    fn client(&self, token: &str) -> RegistryClient {
        client(&self.server.address.to_string(), token)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn push(&self, path: &Path, wanted: Option<&str>, to: &PushTarget) -> Pushed {
        push(&self.client(ADMIN), path, wanted, to, &|_| ()).await.unwrap()
    }
}

fn client(address: &str, token: &str) -> RegistryClient {
    RegistryClient::new(&format!("http://{address}"), Some(token.to_owned())).unwrap()
}

fn repository(name: &str) -> Repository {
    name.parse().unwrap()
}

fn target(name: &str) -> PushTarget {
    PushTarget { repository: repository(name), tag: Some("1".parse().unwrap()), mount_from: None }
}

fn digest(bytes: &[u8]) -> Digest {
    Digest::from_hex(&hex(bytes)).unwrap()
}

/// Bytes that do not repeat in a way that could hide a chunk in the wrong place.
fn noise(n_bytes: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let step = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as u8
    };
    std::iter::repeat_with(step).take(n_bytes).collect()
}

async fn read_blob(client: &RegistryClient, name: &str, digest: &Digest, from: u64) -> Vec<u8> {
    match read_part(client, name, digest, Part { from, n_bytes: None }).await {
        (bytes, IsPart(is_part)) if is_part == (from > 0) => bytes,
        (_, is_part) => panic!("{is_part:?}"),
    }
}

#[derive(Debug, PartialEq, Eq)]
struct IsPart(bool);

async fn read_part(
    client: &RegistryClient,
    name: &str,
    digest: &Digest,
    part: Part,
) -> (Vec<u8>, IsPart) {
    let (stream, is_part) = match client.blob(&repository(name), digest, part).await.unwrap() {
        Given::Part(stream) => (stream, IsPart(true)),
        Given::Whole(stream) => (stream, IsPart(false)),
    };
    let pieces: Vec<_> = stream.try_collect().await.unwrap();
    (pieces.concat(), is_part)
}

#[tokio::test]
async fn a_packed_image_is_pushed_once_mounted_and_pulled() {
    let registry = Harness::new().await;
    let layout = registry.path("layout");
    let archive = registry.path("image.tar");
    let packed =
        pack(&PackOptions::new("/bin/busybox", PackOutput::Layout(layout.clone()))).unwrap();
    pack(&PackOptions::new("/bin/busybox", PackOutput::Archive(archive.clone()))).unwrap();

    let pushed = registry.push(&layout, None, &target("team/app")).await;
    assert_eq!(pushed.digest, packed.digest);
    assert_eq!((pushed.n_sent, pushed.n_present), (2, 0));
    assert!(pushed.bytes_sent > packed.layer_size.0);
    let again = registry.push(&archive, Some("latest"), &target("team/app")).await;
    assert_eq!((again.digest, again.n_sent, again.bytes_sent), (packed.digest, 0, 0));
    let mut elsewhere = target("team/copy");
    elsewhere.mount_from = Some(repository("team/app"));
    let mounted = registry.push(&archive, None, &elsewhere).await;
    assert_eq!((mounted.digest, mounted.n_sent, mounted.n_present), (packed.digest, 0, 2));

    let client = registry.client(READER);
    client.ping().await.unwrap();
    let name = repository("team/copy");
    assert_eq!(client.resolve(&name, "1").await.unwrap(), Some(packed.digest));
    assert_eq!(client.resolve(&name, "2").await.unwrap(), None);
    assert_eq!(client.tags(&name).await.unwrap(), ["1"]);
    let all = client.repositories().await.unwrap();
    assert_eq!(all, [repository("team/app"), repository("team/copy")]);
    let source: &dyn Source = &client;
    let manifest = source.manifest(&name, &packed.digest).await.unwrap();
    assert_eq!(digest(&manifest.bytes), packed.digest);
    let layer = read_blob(&client, "team/copy", &packed.layer, 0).await;
    assert_eq!(digest(&layer), packed.layer);
    let rest = read_blob(&client, "team/copy", &packed.layer, 1000).await;
    assert_eq!(rest, layer[1000..]);
    let part = Part { from: 1000, n_bytes: std::num::NonZeroU64::new(50) };
    let middle = read_part(&client, "team/copy", &packed.layer, part).await;
    assert_eq!(middle, (layer[1000..1050].to_vec(), IsPart(true)));

    let admin = registry.client(ADMIN);
    admin.delete_manifest(&name, "1").await.unwrap();
    assert_eq!(admin.resolve(&name, "1").await.unwrap(), None);
}

/// Forwards connections to the registry and cuts the first of them after some megabytes.
async fn cutting_proxy(to: std::net::SocketAddr, cuts: usize) -> std::net::SocketAddr {
    static LEFT: AtomicUsize = AtomicUsize::new(0);
    LEFT.store(cuts, Ordering::Relaxed);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let server = tokio::net::TcpStream::connect(to).await.unwrap();
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                let back =
                    tokio::spawn(
                        async move { tokio::io::copy(&mut from_server, &mut to_client).await },
                    );
                let mut buffer = vec![0; 64 << 10];
                let mut passed = 0;
                while let Ok(n_bytes @ 1..) = from_client.read(&mut buffer).await {
                    passed += n_bytes;
                    let cut = passed > 6 << 20
                        && LEFT
                            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                                left.checked_sub(1)
                            })
                            .is_ok();
                    if cut || to_server.write_all(&buffer[..n_bytes]).await.is_err() {
                        break;
                    }
                }
                back.abort();
            });
        }
    });
    address
}

#[tokio::test]
async fn a_push_goes_on_where_a_broken_connection_left_it() {
    let registry = Harness::new().await;
    let bytes = noise(40 << 20);
    let path = registry.path("blob");
    fs::write(&path, [b"before".as_slice(), &bytes, b"after"].concat()).unwrap();
    let source = BlobSource::File { path, offset: 6, length: bytes.len() as u64 };
    let proxy = cutting_proxy(registry.server.address, 3).await;
    let through = client(&proxy.to_string(), ADMIN);
    let seen = Mutex::new(Vec::new());
    let name = repository("a/b");
    let wanted = digest(&bytes);
    through
        .push_blob(&name, &wanted, &source, &|sent| seen.lock().unwrap().push(sent))
        .await
        .unwrap();
    let seen = seen.into_inner().unwrap();
    assert!(seen.is_sorted(), "nothing that arrived is sent again: {seen:?}");
    assert!(seen.iter().any(|sent| sent % (4 << 20) != 0), "a chunk was cut: {seen:?}");
    let direct = registry.client(ADMIN);
    assert_eq!(direct.blob_size(&name, &wanted).await.unwrap(), Some(40 << 20));
    assert!(read_blob(&direct, "a/b", &wanted, 0).await == bytes);
}

#[tokio::test]
async fn a_wrong_digest_is_not_tried_again() {
    let registry = Harness::new().await;
    for n_bytes in [10, 9 << 20] {
        let source = BlobSource::Bytes(noise(n_bytes).into());
        let client = registry.client(ADMIN);
        let (name, wanted) = (repository("a/b"), digest(b"other"));
        let pushed = client.push_blob(&name, &wanted, &source, &|_| ()).await;
        let error = pushed.unwrap_err();
        assert_eq!(error.code(), Some("DIGEST_INVALID"), "{error}");
        assert!(!error.is_retryable());
    }
}

#[tokio::test]
async fn errors_say_what_happened_and_whether_to_try_again() {
    let registry = Harness::new().await;
    let name = repository("team/app");
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nowhere = closed.local_addr().unwrap().to_string();
    drop(closed);
    for (client, code, status, retryable) in [
        (registry.client("wrong"), Some("UNAUTHORIZED"), 401, false),
        (registry.client(NOBODY), Some("DENIED"), 403, false),
        (registry.client(READER), Some("MANIFEST_UNKNOWN"), 404, false),
        (client(&nowhere, ADMIN), None, 0, true),
    ] {
        let error = client.manifest(&name, "1").await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert_eq!(error.status().map_or(0, |status| status.as_u16()), status);
        assert_eq!(error.is_retryable(), retryable, "{error}");
        let expected = if retryable { Retry::CanHelp } else { Retry::Pointless };
        assert_eq!(SourceError::from(error).retry(), expected);
    }
    let reader = registry.client(READER);
    let from = repository("team/other");
    let error = reader.mount(&name, &digest(b"x"), &from).await.unwrap_err();
    assert_eq!(error.code(), Some("DENIED"));
    let admin = registry.client(ADMIN);
    let mounted = admin.mount(&name, &digest(b"x"), &from).await.unwrap();
    assert_eq!(mounted, Mounted::No);
    let uploads = fs::read_dir(registry.path("registry/uploads")).unwrap();
    assert_eq!(uploads.count(), 0, "the upload that came in its place is cancelled");
    for bad in ["", "127.0.0.1:5000", "ftp://x", "http://"] {
        let refused = RegistryClient::new(bad, None);
        assert!(matches!(refused, Err(RegistryClientError::Url { .. })), "{bad}");
    }
}

#[tokio::test]
async fn a_manifest_with_another_digest_is_refused() {
    let app = axum::Router::new().fallback(async || "{}");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    let client = client(&address.to_string(), ADMIN);
    let name = repository("a/b");
    let wanted = digest(b"other").to_string();
    let error = client.manifest(&name, &wanted).await.unwrap_err();
    assert!(matches!(error, RegistryClientError::Digest { .. }), "{error}");
    assert_eq!(client.manifest(&name, "tag").await.unwrap().digest, digest(b"{}"));
    // It ignores ranges too.
    let part = Part { from: 1, n_bytes: None };
    let whole = read_part(&client, "a/b", &digest(b"{}"), part).await;
    assert_eq!(whole, (b"{}".to_vec(), IsPart(false)));
}

/// Writes a tar like that of `docker save`, of two images that share a layer.
fn docker_archive(path: &Path) {
    let mut tar = tar::Builder::new(fs::File::create(path).unwrap());
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes).unwrap();
    };
    add("a/layer.tar", &noise(100_000));
    add("one.json", b"{\"one\":1}");
    add("two.json", b"{\"two\":2}");
    let list = json!([
        {"Config": "one.json", "RepoTags": ["one:1"], "Layers": ["a/layer.tar"]},
        {"Config": "two.json", "RepoTags": null, "Layers": ["a/layer.tar", "b/layer.tar"]},
        {"Config": "two.json", "RepoTags": ["lost:1"], "Layers": ["../../etc/passwd"]},
    ]);
    add("manifest.json", list.to_string().as_bytes());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    tar.append_link(&mut header, "b/layer.tar", "../a/layer.tar").unwrap();
    tar.into_inner().unwrap();
}

/// Writes a tar like that of `docker save`, of an image of one layer with one file.
fn large_image(path: &Path, contents: &[u8]) {
    let append = |tar: &mut tar::Builder<_>, name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes).unwrap();
    };
    let mut layer = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(contents.len() as u64);
    header.set_mode(0o644);
    layer.append_data(&mut header, "file", contents).unwrap();
    let layer = layer.into_inner().unwrap();
    let architecture = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let config = json!({
        "os": "linux", "architecture": architecture,
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
    });
    let list = json!([{"Config": "large.json", "RepoTags": ["large:1"], "Layers": ["layer.tar"]}]);
    let mut tar = tar::Builder::new(fs::File::create(path).unwrap());
    append(&mut tar, "layer.tar", &layer);
    append(&mut tar, "large.json", config.to_string().as_bytes());
    append(&mut tar, "manifest.json", list.to_string().as_bytes());
    tar.into_inner().unwrap();
}

#[tokio::test]
async fn a_layer_of_several_parts_is_pulled() {
    let registry = Harness::new().await;
    let (archive, contents) = (registry.path("large.tar"), noise(20 << 20));
    large_image(&archive, &contents);
    let pushed = registry.push(&archive, None, &target("a/large")).await;
    let (root, name) = (registry.path("images"), repository("a/large"));
    let form = Some(KernelPath::Directories);
    let store = ImageStore::open_with(&root, Limits::default(), form).unwrap();
    let source = Arc::new(registry.client(READER));
    let (image, report) = store.pull(source, &name, &pushed.digest, &|_| ()).await.unwrap();
    assert_eq!(report.bytes_fetched, report.bytes_unpacked);
    assert!(report.bytes_fetched.0 > 20 << 20);
    let ImageTree::Directories(layers) = &image.tree else { panic!("{image:?}") };
    assert!(fs::read(layers[0].join("file")).unwrap() == contents);
}

#[tokio::test]
async fn a_docker_archive_is_pushed_without_unpacking_it() {
    let registry = Harness::new().await;
    let archive = registry.path("saved.tar");
    docker_archive(&archive);
    let pushed = registry.push(&archive, Some("one:1"), &target("a/b")).await;
    assert_eq!(pushed.n_sent, 2);
    let client = registry.client(READER);
    let manifest = client.manifest(&repository("a/b"), "1").await.unwrap();
    assert_eq!(manifest.digest, pushed.digest);
    let document: serde_json::Value = serde_json::from_slice(&manifest.bytes).unwrap();
    assert_eq!(document["config"]["digest"], digest(b"{\"one\":1}").to_string());
    let layer = digest(&noise(100_000));
    assert_eq!(document["layers"][0]["digest"], layer.to_string());
    assert_eq!(read_blob(&client, "a/b", &layer, 0).await, noise(100_000));

    for (wanted, expected) in [
        (None, "there are 3 images; choose one of: one:1, two.json, lost:1"),
        (Some("three"), "there is no image named \"three\""),
        (Some("lost:1"), "the image lacks ../../etc/passwd"),
    ] {
        let error = LocalImage::open(&archive, wanted).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn what_is_no_image_is_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let check = |expected: &str| {
        let error = LocalImage::open(&path, None).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check("cannot open");
    fs::write(&path, noise(5000)).unwrap();
    check("neither a directory nor a tar");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    check("no OCI layout");
    fs::write(path.join("index.json"), "{").unwrap();
    check("index.json is malformed");
    fs::write(path.join("index.json"), r#"{"manifests":[]}"#).unwrap();
    check("there are 0 images");
    let missing = json!({"manifests": [{"digest": digest(b"x"), "mediaType": "t"}]});
    fs::write(path.join("index.json"), missing.to_string()).unwrap();
    check("the image lacks blobs/sha256/");
}

#[tokio::test]
async fn an_index_is_pushed_after_its_manifests() {
    let registry = Harness::new().await;
    let layout = registry.path("layout");
    let packed =
        pack(&PackOptions::new("/bin/busybox", PackOutput::Layout(layout.clone()))).unwrap();
    let blobs = layout.join("blobs/sha256");
    let mut manifest = Vec::new();
    let file = fs::File::open(blobs.join(packed.digest.hex()));
    file.unwrap().read_to_end(&mut manifest).unwrap();
    let index_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({"schemaVersion": 2, "mediaType": index_type, "manifests": [
        {"mediaType": "application/vnd.oci.image.manifest.v1+json",
         "digest": packed.digest, "size": manifest.len()}]})
    .to_string();
    let index_digest = digest(index.as_bytes());
    fs::write(blobs.join(index_digest.hex()), &index).unwrap();
    let top = json!({"schemaVersion": 2, "manifests": [
        {"mediaType": index_type, "digest": index_digest, "size": index.len()}]});
    fs::write(layout.join("index.json"), top.to_string()).unwrap();

    let order = Mutex::new(Vec::new());
    let client = registry.client(ADMIN);
    let progress = |event| {
        if let PushProgress::Manifest { digest } = event {
            order.lock().unwrap().push(digest);
        }
    };
    let pushed = push(&client, &layout, None, &target("a/b"), &progress).await;
    assert_eq!(pushed.unwrap().digest, index_digest);
    assert_eq!(order.into_inner().unwrap(), [packed.digest, index_digest]);
    let name = repository("a/b");
    assert_eq!(client.resolve(&name, "1").await.unwrap(), Some(index_digest));
}
