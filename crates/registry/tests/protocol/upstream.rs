//! Images of other registries, given as if they were here.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use longshore_image::client::DockerConfig;
use longshore_registry::{Metrics, OpenRegistryError, Registry, UpstreamOptions};
use tokio::sync::{Semaphore, watch};

use super::crash::Process;
use super::other::Other;
use super::server::{NOBODY, READER, TEAM};
use super::*;

const MANIFEST: &str = "/v2/hub.test/team/app/manifests/1";

/// A registry that gives the images of others as those of `hub`.
struct Below {
    registry: Harness,
    others: Vec<Other>,
}

impl Below {
    async fn start(n_others: usize) -> Self {
        Self::start_with(n_others, |_| ()).await
    }

    async fn start_with(n_others: usize, change: impl FnOnce(&mut RegistryOptions)) -> Self {
        let mut others = Vec::new();
        for _ in 0..n_others {
            others.push(Other::start().await);
        }
        let registry = below(&others, change).await;
        Self { registry, others }
    }

    fn other(&self) -> &Other {
        &self.others[0]
    }

    async fn blob(&self, digest: &str) -> Answer {
        self.registry.get(&format!("/v2/hub.test/team/app/blobs/{digest}")).await
    }
}

async fn below(others: &[Other], change: impl FnOnce(&mut RegistryOptions)) -> Harness {
    let root = tempfile::tempdir().unwrap();
    let mut options = options(&root.path().join("registry"));
    let sources = others.iter().map(|other| format!("hub.test={}", other.url()).parse().unwrap());
    options.upstreams.sources = sources.collect();
    change(&mut options);
    Harness::around(serve(options).await, root)
}

/// Who we are to registries: `me`, by this password.
fn credentials(dir: &Path, hosts: &[String], password: &str) -> DockerConfig {
    let auths =
        hosts.iter().map(|host| (host.clone(), json!({"username": "me", "password": password})));
    let auths: serde_json::Map<_, _> = auths.collect();
    let file = dir.join("config.json");
    std::fs::write(&file, json!({"auths": auths}).to_string()).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    DockerConfig::read_private(&file).unwrap()
}

fn noise(n_bytes: usize) -> Vec<u8> {
    let mut bytes = vec![0; n_bytes];
    fastrand::Rng::with_seed(n_bytes as u64).fill(&mut bytes);
    bytes
}

/// What was begun and is nothing yet.
fn passing(registry: &Harness) -> usize {
    std::fs::read_dir(registry.root.path().join("registry/tmp")).unwrap().count()
}

#[tokio::test]
async fn an_image_of_another_registry_is_given_by_a_token_of_it_and_when_it_is_gone() {
    // Another one of ours, which wants a token that is got from it with a password.
    let theirs = Harness::new().await;
    let layer = noise(3 << 20);
    let manifest = theirs.push_image("team/app", "1", &layer).await;
    let host = theirs.server.address.to_string();
    let dir = tempfile::tempdir().unwrap();
    let credentials = Some(credentials(dir.path(), std::slice::from_ref(&host), READER));
    let registry = below(&[], |options| {
        let sources = vec![format!("hub.test=http://{host}").parse().unwrap()];
        options.upstreams = UpstreamOptions { sources, credentials, ..UpstreamOptions::default() };
    });
    let registry = registry.await;
    let blob = format!("/v2/hub.test/team/app/blobs/{}", digest(&layer));
    let head = registry.send("HEAD", &blob, &[], "").await;
    assert_eq!((head.status, head.header("content-length")), (200, "3145728"));
    let head = registry.send("HEAD", MANIFEST, &[], "").await;
    assert_eq!((head.status, head.header("docker-content-digest")), (200, manifest.as_str()));
    let wanted = theirs.get("/v2/team/app/manifests/1").await;
    let check = async || {
        let by_digest = format!("/v2/hub.test/team/app/manifests/{manifest}");
        for path in [MANIFEST, &by_digest] {
            let answer = registry.get(path).await;
            assert_eq!((answer.status, &answer.body), (200, &wanted.body), "{path}");
            assert_eq!(answer.header("content-type"), IMAGE);
        }
        let answer = registry.get(&blob).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(answer.body == layer);
        let part = registry.send("GET", &blob, &[("range", "bytes=5-9")], "").await;
        assert_eq!((part.status, &part.body[..]), (206, &layer[5..10]));
    };
    check().await;
    // With all that it has.
    drop(theirs);
    check().await;
    let tags = registry.get("/v2/hub.test/team/app/tags/list").await;
    assert_eq!(tags.json()["tags"], json!(["1"]));
    assert_eq!(passing(&registry), 0);
    // What never was here cannot be had now.
    assert_ne!(registry.get("/v2/hub.test/team/app/manifests/2").await.status, 200);
}

#[tokio::test]
async fn rights_are_those_of_any_repository_and_nobody_pushes_there() {
    let below = Below::start(1).await;
    let (manifest, layer) = below.other().add_image("team/app", "1", b"layer");
    let registry = &below.registry;
    let blob = format!("/v2/hub.test/team/app/blobs/{layer}");
    for path in [MANIFEST, &blob] {
        for token in [NOBODY, TEAM] {
            let answer = registry.send_as(token, "GET", path, &[], "").await;
            answer.assert_refused(403, "DENIED");
        }
        let answer = registry.send_as("wrong", "GET", path, &[], "").await;
        answer.assert_refused(401, "UNAUTHORIZED");
    }
    assert!(below.other().asked().is_empty(), "nobody goes there for who may not");
    for (method, path) in [
        ("POST", "/v2/hub.test/team/app/blobs/uploads/"),
        ("POST", "/v2/hub.test/new/blobs/uploads/"),
        ("PUT", MANIFEST),
    ] {
        let answer = registry.send(method, path, &[("content-type", IMAGE)], "{}").await;
        answer.assert_refused(403, "DENIED");
        assert!(answer.text().contains("another registry"), "{}", answer.text());
    }
    assert_eq!(registry.send_as(READER, "GET", MANIFEST, &[], "").await.status, 200);
    // What is here may be removed, and comes again.
    let by_digest = format!("/v2/hub.test/team/app/manifests/{manifest}");
    assert_eq!(registry.send("DELETE", &by_digest, &[], "").await.status, 202);
    assert_eq!(registry.get(&by_digest).await.status, 200);
    for (path, code) in [
        ("/v2/hub.test/team/app/manifests/2", "MANIFEST_UNKNOWN"),
        ("/v2/hub.test/none/manifests/1", "MANIFEST_UNKNOWN"),
        (&format!("/v2/hub.test/team/app/blobs/{}", digest(b"none")), "BLOB_UNKNOWN"),
    ] {
        registry.get(path).await.assert_refused(404, code);
    }
    let elsewhere = registry.get("/v2/docker.io/library/nginx/manifests/1").await;
    elsewhere.assert_refused(404, "MANIFEST_UNKNOWN");
    let told = elsewhere.text();
    assert!(told.contains("--upstream docker.io=https://registry-1.docker.io"), "{told}");
}

#[tokio::test]
async fn a_blob_comes_once_however_many_ask_and_is_read_while_it_comes() {
    let below = Below::start(1).await;
    let bytes = noise(3 << 20);
    let layer = below.other().add_blob(&bytes);
    let pieces = Arc::new(Semaphore::new(16));
    *below.other().said.pieces.lock().unwrap() = Some(Arc::clone(&pieces));
    let path = format!("/v2/hub.test/team/app/blobs/{layer}");
    let ask = |range: Option<&'static str>| {
        let request = below.registry.http.get(below.registry.url(&path)).bearer_auth(READER);
        range.iter().fold(request, |request, range| request.header("range", *range)).send()
    };
    let mut first = ask(None).await.unwrap();
    assert_eq!(first.headers()["content-length"], "3145728");
    let mut read = Vec::new();
    while read.len() < 1 << 20 {
        read.extend_from_slice(&first.chunk().await.unwrap().unwrap());
    }
    assert!(read == bytes[..1 << 20], "it is read before all of it is there");
    // Who asks for its beginning gets all of it, and who wants the end waits for that.
    let ranges = ["bytes=0-99", "bytes=3000000-3000009", "bytes=-1"];
    let mut answers = Vec::new();
    for range in ranges {
        answers.push(ask(Some(range)).await.unwrap());
    }
    answers.push(ask(None).await.unwrap());
    pieces.add_permits(100);
    while let Some(piece) = first.chunk().await.unwrap() {
        read.extend_from_slice(&piece);
    }
    assert!(read == bytes);
    let size = bytes.len();
    let expected =
        [(200, 0..size), (206, 3_000_000..3_000_010), (206, size - 1..size), (200, 0..size)];
    for (answer, (status, part)) in answers.into_iter().zip(expected) {
        let answer = Answer::read(answer).await;
        assert_eq!(answer.status, status);
        assert!(answer.body == bytes[part.clone()], "{part:?}");
    }
    assert_eq!(below.other().n_asked(&layer), 1);
    assert!(below.blob(&layer).await.body == bytes);
    assert_eq!(below.other().n_asked(&layer), 1, "from then on it is here");
}

#[tokio::test]
async fn what_breaks_off_goes_on_elsewhere_and_who_failed_is_passed_over() {
    let below = Below::start(2).await;
    let bytes = noise(3 << 20);
    let [first, second] = &below.others[..] else { unreachable!() };
    let layer = first.add_blob(&bytes);
    second.add_blob(&bytes);
    first.said.breaks_after.store(2 << 20, Ordering::Relaxed);
    let answer = below.blob(&layer).await;
    assert_eq!(answer.status, 200);
    assert!(answer.body == bytes);
    assert_eq!((first.n_asked(&layer), second.n_asked(&layer)), (1, 1));
    // It is asked for nothing else for a while, and what the second has not is nowhere.
    let lone = first.add_blob(b"lone");
    below.blob(&lone).await.assert_refused(404, "BLOB_UNKNOWN");
    assert_eq!(first.n_asked(&lone), 0);
    // Where all fail, all are tried again.
    second.said.is_away.store(true, Ordering::Relaxed);
    assert_eq!(below.blob(&digest(b"other")).await.status, 502);
    assert_eq!(below.blob(&lone).await.status, 200);
}

#[tokio::test]
async fn what_a_mirror_lacks_the_next_has_and_its_size_too() {
    let below = Below::start(2).await;
    let [mirror, origin] = &below.others[..] else { unreachable!() };
    let layer = origin.add_blob(b"of the origin");
    let path = format!("/v2/hub.test/team/app/blobs/{layer}");
    let head = below.registry.send("HEAD", &path, &[], "").await;
    assert_eq!((head.status, head.header("content-length")), (200, "13"));
    assert!(below.blob(&layer).await.body == b"of the origin");
    assert!(mirror.n_asked(&layer) > 0, "it was asked first");
}

#[tokio::test]
async fn a_wrong_blob_is_given_to_nobody_whole_and_kept_nowhere() {
    let below = Below::start(1).await;
    let bytes = noise(2 << 20);
    let layer = below.other().add_blob(&bytes);
    below.other().said.lies.store(true, Ordering::Relaxed);
    let path = below.registry.url(&format!("/v2/hub.test/team/app/blobs/{layer}"));
    for range in [None, Some("bytes=100-")] {
        let request = below.registry.http.get(&path).bearer_auth(ADMIN);
        let request = range.iter().fold(request, |request, range| request.header("range", *range));
        let answer = request.send().await.unwrap();
        assert!(answer.bytes().await.is_err(), "it must not end as if it were whole");
    }
    eventually("nothing is left", || passing(&below.registry) == 0).await;
    below.other().said.lies.store(false, Ordering::Relaxed);
    assert!(below.blob(&layer).await.body == bytes);
}

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..2000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{what}: it does not come to that");
}

#[tokio::test]
async fn a_tag_is_believed_for_a_while_and_its_last_answer_while_the_upstream_is_away() {
    let below = Below::start_with(1, |options| options.upstreams.fresh = Duration::ZERO).await;
    let (one, _) = below.other().add_image("team/app", "1", b"one");
    let named =
        async || below.registry.get(MANIFEST).await.header("docker-content-digest").to_owned();
    assert_eq!(named().await, one);
    let n_before = below.other().asked().len();
    assert_eq!(named().await, one);
    let asked = below.other().asked()[n_before..].to_vec();
    assert_eq!(asked, [("HEAD /v2/team/app/manifests/1".to_owned(), None)], "a look suffices");
    let (two, _) = below.other().add_image("team/app", "1", b"two");
    assert_eq!(named().await, two);
    below.other().said.is_away.store(true, Ordering::Relaxed);
    assert_eq!(named().await, two);
    let n_before = below.other().asked().len();
    assert_eq!(named().await, two);
    assert_eq!(below.other().asked().len(), n_before, "nobody waits for it again and again");
    let unknown = below.registry.get("/v2/hub.test/team/app/manifests/2").await;
    unknown.assert_refused(502, "UNKNOWN");
    assert!(unknown.text().contains("the upstream hub"), "{}", unknown.text());
    // An answer that it is gone is one.
    below.other().said.is_away.store(false, Ordering::Relaxed);
    assert_eq!(below.registry.get("/v2/hub.test/team/app/manifests/2").await.status, 404);
    below.other().forget("team/app", "1");
    below.registry.get(MANIFEST).await.assert_refused(404, "MANIFEST_UNKNOWN");

    let fresh = Below::start(1).await;
    fresh.other().add_image("team/app", "1", b"one");
    for _ in 0..3 {
        assert_eq!(fresh.registry.get(MANIFEST).await.status, 200);
    }
    assert_eq!(fresh.other().n_asked("manifests/1"), 1);
}

#[tokio::test]
async fn what_comes_from_where_is_counted_by_upstream() {
    let metrics = Metrics::default();
    let below = Below::start_with(1, |options| {
        options.upstreams.fresh = Duration::ZERO;
        options.metrics = metrics.clone();
    });
    let below = below.await;
    let counted = || {
        let mut registry = longshore_registry::metrics_registry();
        metrics.register(&mut registry);
        let text = longshore_telemetry::metrics::text(&registry);
        let of_hub = text.lines().filter(|line| line.contains("upstream=\"hub.test\""));
        let all: BTreeMap<_, _> = of_hub.map(|line| line.rsplit_once(' ').unwrap()).collect();
        let number = |name: String| all[&*name].parse::<u64>().unwrap();
        let wanted = |what: &str| {
            ["here", "fetched", "last", "refused", "failed"].map(|outcome| {
                let labels = format!("upstream=\"hub.test\",what=\"{what}\",outcome=\"{outcome}\"");
                number(format!("longshore_registry_upstream_requests_total{{{labels}}}"))
            })
        };
        let fetched = "longshore_registry_upstream_fetched_bytes_total{upstream=\"hub.test\"}";
        (wanted("manifest"), wanted("blob"), number(fetched.to_owned()))
    };
    assert_eq!(counted(), ([0; 5], [0; 5], 0), "they are told from the beginning");
    let bytes = noise(3 << 20);
    let (_, layer) = below.other().add_image("team/app", "1", &bytes);
    for _ in 0..2 {
        assert_eq!(below.registry.get(MANIFEST).await.status, 200);
        assert!(below.blob(&layer).await.body == bytes);
    }
    assert_eq!(counted(), ([1, 1, 0, 0, 0], [1, 1, 0, 0, 0], 3 << 20));
    below
        .registry
        .get("/v2/hub.test/team/app/manifests/2")
        .await
        .assert_refused(404, "MANIFEST_UNKNOWN");
    below.blob(&digest(b"none")).await.assert_refused(404, "BLOB_UNKNOWN");
    assert_eq!(counted(), ([1, 1, 0, 1, 0], [1, 1, 0, 1, 0], 3 << 20));
    below.other().said.is_away.store(true, Ordering::Relaxed);
    assert_eq!(below.registry.get(MANIFEST).await.status, 200);
    assert_eq!(below.blob(&digest(b"other")).await.status, 502);
    assert_eq!(below.registry.get("/v2/hub.test/team/app/manifests/2").await.status, 502);
    assert_eq!(counted(), ([1, 1, 1, 1, 1], [1, 1, 0, 1, 1], 3 << 20));
}

#[tokio::test]
async fn a_token_is_used_until_its_end_and_got_anew_when_it_is_refused() {
    let other = Other::start().await;
    other.want_token();
    let dir = tempfile::tempdir().unwrap();
    let credentials = Some(credentials(dir.path(), &[other.address.to_string()], "secret"));
    let others = [other];
    let registry = below(&others, |options| {
        options.upstreams.fresh = Duration::ZERO;
        options.upstreams.credentials = credentials;
    });
    let registry = registry.await;
    let other = &others[0];
    let (_, layer) = other.add_image("team/app", "1", b"layer");
    let pull = async || registry.get(MANIFEST).await.status;
    assert_eq!((pull().await, pull().await), (200, 200));
    assert_eq!(registry.get(&format!("/v2/hub.test/team/app/blobs/{layer}")).await.status, 200);
    let tokens = || other.asked().into_iter().filter(|(what, _)| what.starts_with("GET /token"));
    let asked: Vec<_> = tokens().map(|(what, _)| what).collect();
    assert_eq!(asked, ["GET /token?service=other&scope=repository%3Ateam%2Fapp%3Apull"]);
    // What ends at once is got for each request, without a refusal in between.
    other.said.lifetime.store(0, Ordering::Relaxed);
    other.add_image("team/other", "1", b"other");
    let path = "/v2/hub.test/team/other/manifests/1";
    assert_eq!((registry.get(path).await.status, registry.get(path).await.status), (200, 200));
    assert_eq!(tokens().count(), 3);
    for (what, shown) in other.asked() {
        let shown = shown.unwrap_or_default();
        let is_password = shown.starts_with("Basic ");
        assert_eq!(is_password, what.starts_with("GET /token"), "{what}: {shown}");
    }
}

#[tokio::test]
async fn a_password_does_where_it_is_wanted_and_who_has_none_is_told_so() {
    for (password, status, part) in
        [("secret", 200, ""), ("wrong", 403, "cannot read the manifest")]
    {
        let other = Other::start().await;
        *other.said.challenge.lock().unwrap() = Some("Basic realm=\"x\"".to_owned());
        other.add_image("team/app", "1", b"layer");
        let dir = tempfile::tempdir().unwrap();
        let credentials = Some(credentials(dir.path(), &[other.address.to_string()], password));
        let others = [other];
        let with = below(&others, |options| options.upstreams.credentials = credentials).await;
        let answer = with.get(MANIFEST).await;
        assert_eq!(answer.status, status, "{}", answer.text());
        assert!(answer.text().contains(part) && !answer.text().contains("wrong:"));
        let without = below(&others, |_| ()).await.get(MANIFEST).await;
        without.assert_refused(403, "DENIED");
        assert!(without.text().contains("upstream_credentials"), "{}", without.text());
    }
}

#[tokio::test]
async fn bytes_that_are_elsewhere_are_fetched_there_without_what_opens_the_registry() {
    let other = Other::start().await;
    let elsewhere = Other::start().await;
    other.want_token();
    *other.said.blobs_at.lock().unwrap() = Some(elsewhere.url());
    let bytes = noise(100_000);
    let layer = elsewhere.add_blob(&bytes);
    let dir = tempfile::tempdir().unwrap();
    let credentials = Some(credentials(dir.path(), &[other.address.to_string()], "secret"));
    let others = [other];
    let registry = below(&others, |options| options.upstreams.credentials = credentials).await;
    let answer = registry.get(&format!("/v2/hub.test/team/app/blobs/{layer}")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.body == bytes);
    assert_eq!(elsewhere.asked(), [(format!("GET /v2/x/blobs/{layer}"), None)]);
}

#[tokio::test]
async fn tls_is_spoken_and_a_registry_sends_nobody_into_the_clear() {
    let secure = Other::start_secure().await;
    secure.add_image("team/app", "1", b"layer");
    let clear = Other::start().await;
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, secure.ca.as_ref().unwrap()).unwrap();
    let credentials = Some(credentials(dir.path(), &[secure.address.to_string()], "secret"));
    let others = [secure];
    let with = |ca: Option<std::path::PathBuf>| {
        let credentials = credentials.clone();
        below(&others, |options| {
            options.upstreams.credentials = credentials;
            options.upstreams.ca = ca;
        })
    };
    let untrusted = with(None).await.get(MANIFEST).await;
    untrusted.assert_refused(502, "UNKNOWN");
    let registry = with(Some(ca.clone())).await;
    assert_eq!(registry.get(MANIFEST).await.status, 200);

    let secure = &others[0];
    secure.want_token();
    assert_eq!(with(Some(ca.clone())).await.get(MANIFEST).await.status, 200, "by a token, too");
    let realm = format!("Bearer realm=\"{}/token\"", clear.url());
    *secure.said.challenge.lock().unwrap() = Some(realm);
    let refused = with(Some(ca.clone())).await.get(MANIFEST).await;
    refused.assert_refused(502, "UNKNOWN");
    assert!(refused.text().contains("it is not https"), "{}", refused.text());
    *secure.said.challenge.lock().unwrap() = None;
    *secure.said.blobs_at.lock().unwrap() = Some(clear.url());
    let layer = clear.add_blob(b"layer");
    let refused = with(Some(ca)).await.get(&format!("/v2/hub.test/team/app/blobs/{layer}")).await;
    refused.assert_refused(502, "UNKNOWN");
    assert!(clear.asked().is_empty(), "nobody goes there");
}

#[tokio::test]
async fn what_is_no_manifest_or_too_large_is_not_taken() {
    let below = Below::start_with(1, |options| options.max_blob.0 = 1 << 20).await;
    let other = below.other();
    let artifact = json!({"schemaVersion": 2, "mediaType": IMAGE, "layers": [],
        "artifactType": longshore_image::converted::artifact::ARTIFACT_TYPE,
        "config": descriptor(&digest(b"{}"), 2)});
    let old = "application/vnd.docker.distribution.manifest.v1+json";
    for (tag, kind, bytes) in [
        ("huge", IMAGE, vec![b' '; (4 << 20) + 1]),
        ("text", IMAGE, b"no JSON".to_vec()),
        ("old", old, b"{}".to_vec()),
        ("ours", IMAGE, artifact.to_string().into_bytes()),
    ] {
        other.add_manifest("team/app", tag, kind, &bytes);
        let answer = below.registry.get(&format!("/v2/hub.test/team/app/manifests/{tag}")).await;
        assert_eq!(answer.status, 502, "{tag}: {}", answer.text());
    }
    let large = other.add_blob(&noise((1 << 20) + 1));
    below.blob(&large).await.assert_refused(502, "UNKNOWN");
    assert_eq!(passing(&below.registry), 0);
    assert!(!below.registry.root.path().join("registry/repositories/hub").exists());
    // One that says it has another's bytes gives them; nothing is linked for its word.
    below.registry.push_blob("team/private", b"private").await;
    let answer = below.blob(&digest(b"private")).await;
    answer.assert_refused(404, "BLOB_UNKNOWN");
}

#[tokio::test]
async fn what_nobody_pulls_goes_unless_a_release_needs_it() {
    let (pins, pinned) = watch::channel(Arc::default());
    let impatient = |options: &mut RegistryOptions| {
        options.push_lease = Duration::ZERO;
        options.keep_untagged = Duration::ZERO;
        options.pins = pinned;
    };
    let below = Below::start_with(1, impatient).await;
    let (kept, kept_layer) = below.other().add_image("team/app", "1", b"kept");
    let (_, gone_layer) = below.other().add_image("team/app", "2", b"gone");
    let registry = &below.registry;
    for (tag, layer) in [("1", &kept_layer), ("2", &gone_layer)] {
        let path = format!("/v2/hub.test/team/app/manifests/{tag}");
        assert_eq!(registry.get(&path).await.status, 200);
        assert_eq!(below.blob(layer).await.status, 200);
    }
    let own = registry.push_image("hub2/app", "1", b"own").await;
    let pin =
        [(("hub.test/team/app".parse().unwrap(), kept.parse().unwrap()), "web r1".to_owned())];
    pins.send_replace(Arc::new(BTreeMap::from(pin)));
    let answer = registry.send("POST", "/v2/_longshore/garbage", &[], "").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let tags = registry.get("/v2/hub.test/team/app/tags/list").await;
    assert_eq!(tags.json()["tags"], json!(["1"]));
    below.other().said.is_away.store(true, Ordering::Relaxed);
    assert_eq!(registry.get(&format!("/v2/hub.test/team/app/manifests/{kept}")).await.status, 200);
    assert_eq!(below.blob(&kept_layer).await.status, 200);
    assert_eq!(below.blob(&gone_layer).await.status, 502);
    let own = registry.get(&format!("/v2/hub2/app/manifests/{own}")).await;
    assert_eq!(own.status, 200, "a tag keeps what was pushed");
}

#[tokio::test]
async fn nothing_is_named_by_half_after_kill_9() {
    let other = Other::start().await;
    let bytes = noise(4 << 20);
    let layer = other.add_blob(&bytes);
    let pieces = Arc::new(Semaphore::new(48));
    *other.said.pieces.lock().unwrap() = Some(Arc::clone(&pieces));
    let root = tempfile::tempdir().unwrap();
    let upstream = format!("hub.test={}", other.url());
    let http = http_client();
    let mut process = Process::start_below(root.path(), &upstream);
    let path = format!("/v2/hub.test/team/app/blobs/{layer}");
    let ask = |process: &Process| {
        http.get(format!("http://{}{path}", process.address)).bearer_auth(ADMIN).send()
    };
    let mut answer = ask(&process).await.unwrap();
    let mut n_read = 0;
    while n_read < 2 << 20 {
        n_read += answer.chunk().await.unwrap().unwrap().len();
    }
    process.kill();
    while let Ok(Some(_)) = answer.chunk().await {}

    pieces.add_permits(1000);
    let process = Process::start_below(root.path(), &upstream);
    assert_eq!(std::fs::read_dir(root.path().join("tmp")).unwrap().count(), 0);
    assert!(!root.path().join("repositories/hub").exists());
    let answer = Answer::read(ask(&process).await.unwrap()).await;
    assert!(answer.status == 200 && answer.body == bytes);
    assert_eq!(other.n_asked(&layer), 2);
}

#[tokio::test]
async fn a_name_to_which_somebody_pushed_is_no_upstream() {
    let registry = Harness::new().await;
    registry.push_image("hub.test/app", "1", b"ours").await;
    let Harness { server, root, .. } = registry;
    drop(server);
    let mut options = stored(options(root.path())).await;
    options.upstreams.sources = vec!["hub.test=http://127.0.0.1:1".parse().unwrap()];
    let refused = loop {
        match Registry::open(options.clone()) {
            // What served it is about to end.
            Err(OpenRegistryError::InUse { .. }) => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            opened => break opened.unwrap_err(),
        }
    };
    let told = longshore_types::chain(&refused);
    assert!(told.contains("images were pushed to hub.test/app"), "{told}");
}
