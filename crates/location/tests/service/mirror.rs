//! What a location keeps of images: it comes once, is given to who may have it, and to them while the registry is
//! away.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Path as Segments;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, Method, StatusCode};
use http_body_util::BodyExt as _;
use longshore_api::ProblemCode;
use longshore_api::links::{AllotmentSet, AssignmentSet};
use longshore_link::{CallError, Client, Endpoint, Listener};
use longshore_types::{Digest, Generation, Manifest};
use serde_json::json;
use sha2::Digest as _;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::joining::refused;
use crate::{Outside, World, metrics_at, report, set, until};

const MIB: usize = 1 << 20;

/// What the registry has, and what was had of it.
#[derive(Default)]
struct Held {
    /// By repository, kind and digest.
    all: Mutex<BTreeMap<String, Bytes>>,
    /// Bytes of blobs.
    sent: AtomicU64,
    /// Each answer breaks off behind so many bytes.
    breaks_at: AtomicU64,
}

impl Held {
    fn put(&self, path: String, bytes: impl Into<Bytes>) {
        self.all.lock().unwrap().insert(path, bytes.into());
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    fn give(self: &Arc<Self>, path: &str, headers: &HeaderMap) -> Response {
        let Some(bytes) = self.all.lock().unwrap().get(path).cloned() else {
            return StatusCode::NOT_FOUND.into_response();
        };
        let size = bytes.len();
        let range = headers.get("range").map(|range| range.to_str().unwrap().to_owned());
        let part = range.as_deref().and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
        let (from, end) = part.map_or((0, size), |(from, last)| {
            let end = last.parse().map_or(size, |last: usize| size.min(last + 1));
            (from.parse().unwrap(), end)
        });
        let is_blob = path.contains("/blobs/");
        let (held, breaks_at) = (Arc::clone(self), self.breaks_at.load(Ordering::Relaxed));
        let pieces = stream::unfold((held, from), move |(held, at)| {
            let bytes = bytes.clone();
            async move {
                if breaks_at > 0 && (at - from) as u64 >= breaks_at {
                    // What was sent is on its way when the connection breaks.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    return Some((Err(std::io::Error::other("it broke off")), (held, at)));
                }
                let next = end.min(at + 50_000);
                if is_blob {
                    held.sent.fetch_add((next - at) as u64, Ordering::Relaxed);
                }
                (at < end).then(|| (Ok(bytes.slice(at..next)), (held, next)))
            }
        });
        let answer = Response::builder().header("content-length", end - from);
        let answer = match part {
            Some(_) => answer
                .status(StatusCode::PARTIAL_CONTENT)
                .header("content-range", format!("bytes {from}-{}/{size}", end - 1)),
            None => answer,
        };
        answer.body(Body::from_stream(pieces)).unwrap()
    }
}

/// Serves it at the socket of the registry until that is cancelled.
fn serve(dir: &Path, held: &Arc<Held>) -> CancellationToken {
    let end = CancellationToken::new();
    let listener = Listener::bind("registry", &Endpoint::Unix(dir.join("registry.sock"))).unwrap();
    let given = Arc::clone(held);
    let give = get(move |Segments(path): Segments<String>, headers: HeaderMap| async move {
        given.give(&path, &headers)
    });
    let converted = Arc::clone(held);
    let artifact =
        get(move |headers: HeaderMap| async move { converted.give("converted", &headers) });
    let router = Router::new()
        .route("/v2/_longshore/converted/default/web", artifact)
        .route("/v2/{*path}", give);
    tokio::spawn(listener.serve(router, end.clone()));
    end
}

fn digest(bytes: &[u8]) -> Digest {
    Digest::from_sha256(sha2::Sha256::digest(bytes).into())
}

/// Bytes that repeat nowhere near.
fn layer(seed: u64, n_bytes: usize) -> Bytes {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_le_bytes()[5]
    };
    (0..n_bytes).map(|_| next()).collect()
}

/// A location with two nodes that run an image of some layers.
struct Scene {
    dir: TempDir,
    world: World,
    held: Arc<Held>,
    registry: CancellationToken,
    layers: Vec<(Digest, Bytes)>,
    image: Digest,
}

async fn start(dir: &Path, mirror: &str) -> World {
    let outside = Outside { mirror: Some(mirror.parse().unwrap()), ..Outside::default() };
    World::start_as(dir, outside, Router::new()).await
}

impl Scene {
    async fn start(mirror: &str, layers: &[Bytes]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let held = Arc::<Held>::default();
        let layers: Vec<_> = layers.iter().map(|bytes| (digest(bytes), bytes.clone())).collect();
        for (digest, bytes) in &layers {
            held.put(format!("default/web/blobs/{digest}"), bytes.clone());
        }
        let image = put_manifest(&held, "default/web", layers.iter().map(|(digest, _)| digest));
        let (world, registry) = (start(dir.path(), mirror).await, serve(dir.path(), &held));
        let scene = Self { dir, world, held, registry, layers, image };
        scene.assign(set(5, 2)).await;
        scene
    }

    /// Has both nodes told of an instance of the image.
    async fn assign(&self, wanted: Arc<AllotmentSet>) {
        let mut wanted = AllotmentSet::clone(&wanted);
        let release = &mut wanted.allotments[0].release;
        Arc::make_mut(release).image_digest = self.image;
        self.nodes_say().await;
        self.world.allot.send_replace(Arc::new(wanted));
        for node in ["n1", "n2"] {
            let mut sets = self.watch(node).await;
            until(&mut sets, |set| !set.assignments.is_empty()).await;
        }
    }

    /// Has a node told of an instance of an image of another repository, too.
    async fn assign_other(&self, image: Digest) {
        let mut wanted = AllotmentSet::clone(&set(6, 2));
        let mut other = wanted.allotments[0].clone();
        Arc::make_mut(&mut wanted.allotments[0].release).image_digest = self.image;
        let document = json!({"app": "other", "image": "default/other:1", "port": 80, "count": 2});
        let manifest = Manifest::from_document(&document).unwrap();
        let release = Arc::make_mut(&mut other.release);
        (release.image_digest, release.manifest) = (image, manifest);
        other.hosts = vec!["other.localhost".parse().unwrap()];
        other.generation = Generation(6);
        wanted.allotments.push(other);
        self.world.allot.send_replace(Arc::new(wanted));
        until(&mut self.watch("n1").await, |set| set.assignments.len() == 2).await;
    }

    async fn watch(&self, node: &str) -> longshore_link::LineStream<AssignmentSet> {
        self.world.watch(&format!("/link/nodes/{node}/assignments")).await
    }

    async fn nodes_say(&self) {
        for node in ["n1", "n2"] {
            let path = format!("/link/nodes/{node}/report");
            let said = report(node, "unix:/nowhere/gate.sock", &[]);
            let called = self.world.location.call::<_, ()>(Method::POST, &path, Some(&said));
            called.await.unwrap();
        }
    }

    /// Starts the location anew.
    async fn restart(mut self, mirror: &str) -> Self {
        self.world.stop().await;
        self.world = start(self.dir.path(), mirror).await;
        self.nodes_say().await;
        for node in ["n1", "n2"] {
            until(&mut self.watch(node).await, |set| !set.assignments.is_empty()).await;
        }
        self
    }

    fn kept(&self, digest: &Digest) -> PathBuf {
        self.dir.path().join("data/mirror/blobs").join(digest.hex())
    }

    /// Waits until a blob is kept, or is no more.
    async fn until_kept(&self, digest: &Digest, is_kept: bool) {
        let search = async {
            while self.kept(digest).exists() != is_kept {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), search).await.expect("in time");
    }

    async fn until_kept_bytes(&self, n_bytes: u64) {
        let search = async {
            while self.metric("kept_bytes").await != n_bytes {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), search).await.expect("in time");
    }

    /// The value of a metric of the mirror.
    async fn metric(&self, name: &str) -> u64 {
        let client = Client::new(metrics_at(self.dir.path()));
        let answer = client.send(Method::GET, "/metrics", None::<&()>).await.unwrap();
        let text = answer.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(text.to_vec()).unwrap();
        let name = format!("longshore_location_mirror_{name} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&name));
        value.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    async fn end(self) {
        self.registry.cancel();
        self.world.stop().await;
    }
}

/// Puts a manifest with these layers into a repository; its digest.
fn put_manifest<'a>(
    held: &Held,
    repository: &str,
    layers: impl Iterator<Item = &'a Digest>,
) -> Digest {
    let layers: Vec<_> = layers.map(|digest| json!({"digest": digest})).collect();
    let manifest = json!({ "layers": layers }).to_string();
    let image = digest(manifest.as_bytes());
    held.put(format!("{repository}/manifests/{image}"), manifest);
    image
}

/// Asks as a node does.
async fn ask(
    location: &Client,
    node: &str,
    what: &str,
    of: (&str, &Digest),
    part: &str,
) -> Result<http::Response<hyper::body::Incoming>, CallError> {
    let (repository, digest) = of;
    let path =
        format!("/link/nodes/{node}/images/{what}?repository={repository}&digest={digest}{part}");
    location.send(Method::GET, &path, None::<&()>).await
}

/// The bytes of a blob or a part of it, when they come to their end.
async fn blob(location: &Client, node: &str, digest: &Digest, part: &str) -> Result<Bytes, String> {
    let answer = ask(location, node, "blob", ("default/web", digest), part).await;
    let answer = answer.map_err(|error| error.to_string())?;
    let is_part = answer.status() == StatusCode::PARTIAL_CONTENT;
    assert_eq!(is_part, !part.is_empty(), "{:?}", answer.status());
    let body = answer.into_body().collect().await.map_err(|error| error.to_string())?;
    Ok(body.to_bytes())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_several_ask_for_at_once_comes_once_whole_or_in_parts() {
    let layers = [layer(1, 3 * MIB), layer(2, 3 * MIB), layer(3, 3 * MIB)];
    let scene = Scene::start("64MiB", &layers).await;
    let location = &scene.world.location;
    let [(one, bytes), (two, of_two), (three, of_three)] = &scene.layers[..] else { panic!() };
    let before = scene.held.sent();
    let both = tokio::join!(blob(location, "n1", one, ""), blob(location, "n2", one, ""));
    assert!(both.0.unwrap() == bytes && both.1.unwrap() == bytes);
    assert_eq!(scene.held.sent() - before, 3 * MIB as u64);
    scene.until_kept_bytes(3 * MIB as u64).await;
    let part = blob(location, "n2", one, "&from=1048570&n_bytes=100").await.unwrap();
    assert!(part == bytes[1_048_570..1_048_670]);
    let end = blob(location, "n1", one, "&from=3145700&n_bytes=100").await.unwrap();
    assert!(end == bytes[3_145_700..]);
    let none = blob(location, "n1", one, "&from=3145728").await.unwrap_err();
    assert!(none.contains("the blob has 3145728 bytes"), "{none}");
    assert_eq!(scene.held.sent() - before, 3 * MIB as u64);

    // Parts, in any order, and who wants all of it.
    let before = scene.held.sent();
    let (a, b, c, d) = tokio::join!(
        blob(location, "n1", two, "&from=2500000&n_bytes=600000"),
        blob(location, "n2", two, "&from=5"),
        blob(location, "n1", two, "&from=0&n_bytes=1000000"),
        blob(location, "n2", two, ""),
    );
    assert!(a.unwrap() == of_two[2_500_000..3_100_000] && b.unwrap() == of_two[5..]);
    assert!(c.unwrap() == of_two[..1_000_000] && d.unwrap() == of_two);
    let sent = scene.held.sent() - before;
    // What was under way of a fetch whose rest another one took over is lost.
    assert!(sent < 4 * MIB as u64, "{sent}");
    scene.until_kept(two, true).await;

    // Who leaves in the middle takes nothing along.
    let before = scene.held.sent();
    let open = async |node| {
        let answer = ask(location, node, "blob", ("default/web", three), "").await.unwrap();
        let mut body = answer.into_body().into_data_stream();
        let first = body.next().await.unwrap().unwrap();
        (first, body)
    };
    let (leaves, (mut read, mut stays)) = (open("n1").await, open("n2").await);
    drop(leaves);
    let mut all = std::mem::take(&mut read).to_vec();
    while let Some(piece) = stays.next().await {
        all.extend_from_slice(&piece.unwrap());
    }
    assert!(all == *of_three);
    assert_eq!(scene.held.sent() - before, 3 * MIB as u64);
    scene.until_kept(three, true).await;

    let kept = 9 * MIB as u64;
    scene.until_kept_bytes(kept).await;
    assert!(scene.metric("fetched_bytes_total").await >= kept);
    assert!(scene.metric("given_bytes_total").await > kept * 3 / 2);
    assert_eq!(scene.metric("requests_total{outcome=\"passed\"}").await, 0);
    assert!(scene.metric("requests_total{outcome=\"here\"}").await >= 2);
    scene.end().await;
}

#[tokio::test]
async fn what_is_kept_is_given_while_the_registry_is_away_and_to_who_may_have_it() {
    let layers = [layer(1, MIB / 2), layer(2, MIB / 2)];
    let scene = Scene::start("64MiB", &layers).await;
    let artifact = json!({"layers": []}).to_string();
    scene.held.put("converted".to_owned(), artifact.clone());
    let (one, bytes) = scene.layers[0].clone();
    let (two, _) = scene.layers[1].clone();
    let location = &scene.world.location;
    assert!(blob(location, "n1", &one, "").await.unwrap() == bytes);
    scene.until_kept(&one, true).await;
    let image = scene.image;
    let of_image = ("default/web", &image);
    let manifest = ask(location, "n1", "manifest", of_image, "").await.unwrap();
    let manifest = manifest.into_body().collect().await.unwrap().to_bytes();
    ask(location, "n1", "converted", of_image, "").await.unwrap();

    // Also by a location that begins then.
    scene.registry.cancel();
    let scene = scene.restart("64MiB").await;
    let location = &scene.world.location;
    assert!(blob(location, "n2", &one, "").await.unwrap() == bytes);
    let again = ask(location, "n2", "manifest", of_image, "").await.unwrap();
    assert_eq!(again.headers()["content-type"], "application/octet-stream");
    assert_eq!(again.into_body().collect().await.unwrap().to_bytes(), manifest);
    let again = ask(location, "n2", "converted", of_image, "").await.unwrap();
    assert_eq!(again.into_body().collect().await.unwrap().to_bytes(), artifact);
    assert!(blob(location, "n2", &two, "").await.unwrap_err().contains("does not give it"));
    // Who runs none of it gets none of it, though it lies here.
    for what in ["blob", "manifest", "converted"] {
        let wanted = if what == "blob" { &one } else { &scene.image };
        let answer = ask(location, "n3", what, ("default/web", wanted), "").await;
        refused(answer, ProblemCode::Forbidden);
        let answer = ask(location, "n1", what, ("default/other", wanted), "").await;
        refused(answer, ProblemCode::Forbidden);
    }
    // What it was once said to have become and is not any more is not given again.
    scene.held.all.lock().unwrap().remove("converted");
    let registry = serve(scene.dir.path(), &scene.held);
    refused(ask(location, "n1", "converted", of_image, "").await, ProblemCode::NotFound);
    registry.cancel();
    refused(ask(location, "n1", "converted", of_image, "").await, ProblemCode::NotFound);
    scene.end().await;
}

#[tokio::test]
async fn a_blob_counts_for_the_repositories_that_the_registry_has_it_in() {
    let scene = Scene::start("64MiB", &[layer(1, MIB / 2)]).await;
    let (one, bytes) = scene.layers[0].clone();
    let location = &scene.world.location;
    assert!(blob(location, "n1", &one, "").await.unwrap() == bytes);
    scene.until_kept(&one, true).await;
    // A manifest of another repository names what that has not.
    let image = put_manifest(&scene.held, "default/other", [&one].into_iter());
    scene.assign_other(image).await;
    let of_other = ("default/other", &one);
    refused(ask(location, "n1", "blob", of_other, "").await, ProblemCode::NotFound);

    let sent = scene.held.sent();
    scene.held.put(format!("default/other/blobs/{one}"), bytes.clone());
    let given = ask(location, "n1", "blob", of_other, "").await.unwrap();
    assert!(given.into_body().collect().await.unwrap().to_bytes() == bytes);
    assert_eq!(scene.held.sent(), sent, "its bytes did not come again");
    // That is remembered.
    scene.registry.cancel();
    let scene = scene.restart("64MiB").await;
    let given = ask(&scene.world.location, "n1", "blob", of_other, "").await.unwrap();
    assert!(given.into_body().collect().await.unwrap().to_bytes() == bytes);
    scene.end().await;
}

#[tokio::test]
async fn what_came_of_one_repository_is_given_of_another_once_it_is_known_to_be_right() {
    let scene = Scene::start("64MiB", &[layer(1, MIB), layer(2, MIB)]).await;
    let digests = scene.layers.iter().map(|(digest, _)| digest);
    let image = put_manifest(&scene.held, "default/other", digests);
    scene.assign_other(image).await;
    let location = &scene.world.location;
    let mut kept = 0;
    // Other bytes, and as many as they are not.
    for ((digest, bytes), wrong) in scene.layers.iter().zip([layer(3, MIB), layer(4, MIB / 2)]) {
        scene.held.put(format!("default/other/blobs/{digest}"), wrong.clone());
        let of_other = ("default/other", digest);
        // Not all, so that nobody can say whether they are right.
        let part = "&from=0&n_bytes=1000";
        let given = ask(location, "n1", "blob", of_other, part).await.unwrap();
        assert!(given.into_body().collect().await.unwrap().to_bytes() == wrong[..1000]);
        assert!(blob(location, "n1", digest, part).await.unwrap() == bytes[..1000]);
        assert!(blob(location, "n1", digest, "").await.unwrap() == bytes);
        kept += MIB as u64;
        scene.until_kept_bytes(kept).await;
        let given = ask(location, "n1", "blob", of_other, "").await.unwrap();
        assert!(given.into_body().collect().await.unwrap().to_bytes() == bytes);
    }
    scene.end().await;
}

#[tokio::test]
async fn a_blob_that_the_registry_gives_another_size_of_is_begun_anew() {
    let scene = Scene::start("64MiB", &[layer(1, MIB)]).await;
    let location = &scene.world.location;
    let (one, bytes) = &scene.layers[0];
    let path = format!("default/web/blobs/{one}");
    let wrong = layer(2, MIB / 2);
    scene.held.put(path.clone(), wrong.clone());
    let part = blob(location, "n1", one, "&from=0&n_bytes=1000").await.unwrap();
    assert!(part == wrong[..1000]);
    scene.held.put(path, bytes.clone());
    blob(location, "n1", one, "&from=5000&n_bytes=1000").await.unwrap_err();
    let part = blob(location, "n1", one, "&from=5000&n_bytes=1000").await.unwrap();
    assert!(part == bytes[5000..6000]);
    assert!(blob(location, "n2", one, "").await.unwrap() == bytes);
    scene.until_kept(one, true).await;
    scene.end().await;
}

#[tokio::test]
async fn a_registry_that_breaks_off_is_asked_for_the_rest_and_one_that_gives_nothing_is_told() {
    let scene = Scene::start("64MiB", &[layer(1, 3 * MIB), layer(2, MIB)]).await;
    let location = &scene.world.location;
    // What manifests name is known from then on.
    refused(
        ask(location, "n1", "blob", ("default/web", &digest(b"other")), "").await,
        ProblemCode::Forbidden,
    );
    let [(one, bytes), (two, of_two)] = &scene.layers[..] else { panic!() };
    let before = scene.held.sent();
    scene.held.breaks_at.store(1_000_000, Ordering::Relaxed);
    let both = tokio::join!(blob(location, "n1", one, ""), blob(location, "n2", one, ""));
    assert!(both.0.unwrap() == bytes && both.1.unwrap() == bytes);
    scene.until_kept(one, true).await;

    scene.held.breaks_at.store(50_000, Ordering::Relaxed);
    blob(location, "n1", two, "").await.unwrap_err();
    scene.held.breaks_at.store(0, Ordering::Relaxed);
    let rest = blob(location, "n1", two, "&from=50000").await.unwrap();
    assert!(rest == of_two[50_000..]);
    assert!(blob(location, "n2", two, "").await.unwrap() == of_two);
    // What was under way when a connection broke is lost.
    let sent = scene.held.sent() - before;
    assert!(sent < 5 * MIB as u64, "{sent}");
    scene.end().await;
}

#[tokio::test]
async fn wrong_bytes_are_not_kept_and_what_a_disk_changed_comes_again() {
    let scene = Scene::start("64MiB", &[layer(1, MIB)]).await;
    let (one, bytes) = scene.layers[0].clone();
    let path = format!("default/web/blobs/{one}");
    scene.held.put(path.clone(), layer(2, MIB));
    // The node sees that they are wrong.
    assert!(blob(&scene.world.location, "n1", &one, "").await.ok().as_ref() != Some(&bytes));
    scene.held.put(path, bytes.clone());
    let until_right = async |scene: &Scene| {
        let search = async {
            while blob(&scene.world.location, "n2", &one, "").await.ok().as_ref() != Some(&bytes) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), search).await.expect("in time");
    };
    until_right(&scene).await;
    scene.until_kept(&one, true).await;

    let kept = scene.kept(&one);
    let mut damaged = std::fs::read(&kept).unwrap();
    damaged[MIB / 2] ^= 1;
    std::fs::write(&kept, damaged).unwrap();
    let scene = scene.restart("64MiB").await;
    let sent = scene.held.sent();
    until_right(&scene).await;
    assert_eq!(scene.held.sent() - sent, MIB as u64);
    scene.until_kept(&one, true).await;
    assert!(std::fs::read(&kept).unwrap() == bytes);
    scene.end().await;
}

#[tokio::test]
async fn what_has_no_room_comes_past_the_mirror_and_what_was_used_last_stays() {
    let scene =
        Scene::start("2MiB", &[layer(1, 3 * MIB), layer(2, MIB), layer(3, MIB), layer(4, MIB)])
            .await;
    let location = &scene.world.location;
    let [(large, bytes), rest @ ..] = &scene.layers[..] else { panic!() };
    for node in ["n1", "n2"] {
        assert!(blob(location, node, large, "").await.unwrap() == bytes);
        let part = blob(location, node, large, "&from=7&n_bytes=9").await.unwrap();
        assert!(part == bytes[7..16]);
    }
    assert_eq!(scene.metric("requests_total{outcome=\"passed\"}").await, 4);
    for (digest, bytes) in rest {
        assert!(blob(location, "n1", digest, "").await.unwrap() == bytes);
        scene.until_kept(digest, true).await;
    }
    scene.until_kept(&rest[0].0, false).await;
    scene.until_kept_bytes(2 * MIB as u64).await;
    // One that may keep nothing keeps nothing.
    let scene = scene.restart("0").await;
    assert!(!scene.dir.path().join("data/mirror").exists());
    let sent = scene.held.sent();
    let (digest, bytes) = &scene.layers[3];
    assert!(blob(&scene.world.location, "n1", digest, "").await.unwrap() == bytes);
    assert!(scene.held.sent() - sent >= MIB as u64);
    scene.end().await;
}
