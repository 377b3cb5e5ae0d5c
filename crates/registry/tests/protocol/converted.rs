//! What the registry makes of layers in the background: told of, had by nodes, of nobody else's making, and
//! gone with its image.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use longshore_image::client::RegistryClient;
use longshore_image::mount::KernelPath;
use longshore_image::{ImageStore, Limits, PullReport};
use longshore_registry::RegistryOptions;
use longshore_types::ByteCount;

use super::crash::Process;
use super::server::TEAM;
use super::*;

const TYPE: &str = "application/vnd.longshore.image.converted.v1";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

pub(super) fn converting(options: RegistryOptions) -> RegistryOptions {
    RegistryOptions { convert_from: Some(ByteCount(1000)), ..options }
}

async fn harness() -> Harness {
    let root = tempfile::tempdir().unwrap();
    let server = serve(converting(options(root.path()))).await;
    Harness::around(server, root)
}

/// A layer with one file of bytes that do not shrink.
pub(super) fn layer(n_bytes: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; n_bytes];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    archive(&bytes)
}

/// An archive with one file.
pub(super) fn archive(bytes: &[u8]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    archive.append_data(&mut header, "noise", bytes).unwrap();
    archive.into_inner().unwrap()
}

/// The config of an image whose layers unpack to these archives.
pub(super) fn config(archives: &[&[u8]]) -> String {
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let diff_ids: Vec<String> = archives.iter().map(|archive| digest(archive)).collect();
    json!({"architecture": architecture, "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}})
    .to_string()
}

pub(super) fn manifest(config: &str, layers: &[&[u8]]) -> String {
    let described = |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()});
    let layers: Vec<Value> = layers.iter().map(|layer| described(LAYER, layer)).collect();
    json!({"schemaVersion": 2, "mediaType": IMAGE, "layers": layers,
        "config": described("application/vnd.oci.image.config.v1+json", config.as_bytes())})
    .to_string()
}

impl Harness {
    /// Pushes an image of one layer, which is said to unpack to `archive`; gives its manifest's digest.
    pub(super) async fn push_layer(
        &self,
        token: &str,
        repository: &str,
        layer: &[u8],
        archive: &[u8],
    ) -> String {
        self.push_layers(token, repository, &[(layer, archive)]).await
    }

    /// The same of several layers, each with what it is said to unpack to.
    pub(super) async fn push_layers(
        &self,
        token: &str,
        repository: &str,
        layers: &[(&[u8], &[u8])],
    ) -> String {
        let (layers, archives): (Vec<&[u8]>, Vec<&[u8]>) = layers.iter().copied().unzip();
        let config = config(&archives);
        for blob in layers.iter().copied().chain([config.as_bytes()]) {
            let path = format!("/v2/{repository}/blobs/uploads/?digest={}", digest(blob));
            let answer = self.send_as(token, "POST", &path, &[], blob.to_vec()).await;
            assert_eq!(answer.status, 201, "{}", answer.text());
        }
        let manifest = manifest(&config, &layers);
        let digest = digest(manifest.as_bytes());
        let path = format!("/v2/{repository}/manifests/{digest}");
        let answer = self.send_as(token, "PUT", &path, &[("content-type", IMAGE)], manifest).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        digest
    }

    pub(super) async fn converted(&self, repository: &str, manifest: &str) -> Answer {
        self.get(&format!("/v2/_longshore/converted/{repository}?manifest={manifest}")).await
    }

    /// Waits until an image is converted, and gives the artifact.
    pub(super) async fn until_converted(&self, repository: &str, manifest: &str) -> Value {
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        loop {
            let answer = self.converted(repository, manifest).await;
            if answer.status == 200 {
                assert_eq!(answer.header("content-type"), IMAGE);
                assert_eq!(answer.header("docker-content-digest"), digest(&answer.body));
                return answer.json();
            }
            answer.assert_refused(404, "MANIFEST_UNKNOWN");
            assert!(std::time::Instant::now() < deadline, "{manifest} is not converted");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Pulls as a node with an empty store does.
    pub(super) async fn pull(&self, repository: &str, manifest: &str) -> PullReport {
        let root = tempfile::tempdir().unwrap();
        let kernel = Some(KernelPath::Loop);
        let store = ImageStore::open_with(root.path(), Limits::default(), kernel).unwrap();
        let client = RegistryClient::new(&self.url(""), Some(ADMIN.to_owned())).unwrap();
        let (repository, digest) = (repository.parse().unwrap(), manifest.parse().unwrap());
        let pulled = store.pull(Arc::new(client), &repository, &digest, &|_| ()).await;
        pulled.unwrap().1
    }

    pub(super) async fn status(&self, path: String) -> u16 {
        self.send("HEAD", &path, &[], "").await.status
    }
}

/// The digests of the blobs that an artifact names, without its config.
pub(super) fn blobs(artifact: &Value) -> Vec<String> {
    let layers = artifact["layers"].as_array().unwrap().iter();
    layers.map(|layer| layer["digest"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn an_image_is_converted_beside_what_was_pushed_and_nodes_have_it_so() {
    let registry = harness().await;
    let layer = layer(2_500_000, 1);
    let image = registry.push_layer(ADMIN, "a/b", &layer, &layer).await;
    let artifact = registry.until_converted("a/b", &image).await;
    assert_eq!(
        (&artifact["artifactType"], &artifact["subject"]["digest"]),
        (&json!(TYPE), &json!(image))
    );
    assert_eq!(blobs(&artifact).len(), 3);
    // As any client sees it.
    let listed =
        registry.get(&format!("/v2/a/b/referrers/{image}?artifactType={TYPE}")).await.json();
    let digest_of_artifact = digest(artifact_text(&registry, &image).await.as_bytes());
    assert_eq!(listed["manifests"][0]["digest"], json!(digest_of_artifact));
    let whole = registry.get(&format!("/v2/a/b/blobs/{}", digest(&layer))).await;
    assert!(whole.body == layer, "what was pushed is as it was");
    let report = registry.pull("a/b", &image).await;
    assert_eq!((report.layers, report.converted_layers, report.why_plain.len()), (1, 1, 0));
    // Who pushes the same again finds it converted already.
    let again = registry.push_layer(ADMIN, "a/other", &layer, &layer).await;
    let other = registry.until_converted("a/other", &again).await;
    assert_eq!(blobs(&other), blobs(&artifact));
}

async fn artifact_text(registry: &Harness, image: &str) -> String {
    registry.converted("a/b", image).await.text()
}

#[tokio::test]
async fn what_only_the_registry_makes_nobody_pushes() {
    let registry = harness().await;
    let image = registry.push_image("a/b", "1", b"layer").await;
    let subject = json!({"mediaType": IMAGE, "digest": image, "size": 1});
    let of = |kind: &str, config: &str| {
        json!({"schemaVersion": 2, "mediaType": IMAGE, "artifactType": kind, "layers": [],
            "config": {"mediaType": config, "digest": digest(b"{}"), "size": 2}, "subject": subject})
        .to_string()
    };
    for (kind, config, status) in [
        (TYPE, "application/vnd.oci.empty.v1+json", 403),
        ("", TYPE, 403),
        ("another/type", TYPE, 201),
    ] {
        for reference in ["tag", &digest(of(kind, config).as_bytes())] {
            let path = format!("/v2/a/b/manifests/{reference}");
            let headers = [("content-type", IMAGE)];
            let answer = registry.send("PUT", &path, &headers, of(kind, config)).await;
            match status {
                403 => {
                    answer.assert_refused(403, "DENIED");
                    assert!(answer.text().contains(TYPE), "{}", answer.text());
                }
                _ => assert_eq!(answer.status, status, "{}", answer.text()),
            }
        }
    }
    registry.converted("a/b", &image).await.assert_refused(404, "MANIFEST_UNKNOWN");
    registry.converted("a/b", "latest").await.assert_refused(400, "DIGEST_INVALID");
    let path = format!("/v2/_longshore/converted/a/b?manifest={image}");
    assert_eq!(registry.send("PUT", &path, &[], "x").await.status, 405);
    let answer = registry.send_as(TEAM, "GET", &path, &[], "").await;
    assert_eq!(answer.status, 403, "who may not pull may not ask: {}", answer.text());
}

#[tokio::test]
async fn who_names_the_layer_of_another_gets_nothing_of_it() {
    let registry = harness().await;
    let (secret, own) = (layer(1_200_000, 2), layer(70_000, 3));
    let image = registry.push_layer(ADMIN, "a/b", &secret, &secret).await;
    let parts = blobs(&registry.until_converted("a/b", &image).await);
    // A config may name what it likes.
    let lie = registry.push_layer(TEAM, "team/x", &own, &secret).await;
    let honest = registry.push_layer(TEAM, "team/x", &own, &own).await;
    registry.until_converted("team/x", &honest).await;
    registry.converted("team/x", &lie).await.assert_refused(404, "MANIFEST_UNKNOWN");
    // A layer that is said to lie elsewhere need not be had by who names it.
    let foreign = "application/vnd.oci.image.layer.nondistributable.v1.tar";
    let mut elsewhere: Value =
        serde_json::from_str(&manifest(&config(&[&secret]), &[&secret])).unwrap();
    elsewhere["layers"][0]["mediaType"] = json!(foreign);
    elsewhere["layers"][0]["urls"] = json!(["https://example.com/layer"]);
    let elsewhere = elsewhere.to_string();
    let named = digest(elsewhere.as_bytes());
    let (path, headers) = (format!("/v2/team/x/manifests/{named}"), [("content-type", IMAGE)]);
    let answer = registry.send_as(TEAM, "PUT", &path, &headers, elsewhere).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    let next = layer(70_000, 9);
    let next = registry.push_layer(TEAM, "team/x", &next, &next).await;
    registry.until_converted("team/x", &next).await;
    registry.converted("team/x", &named).await.assert_refused(404, "MANIFEST_UNKNOWN");
    for part in &parts {
        assert_eq!(registry.status(format!("/v2/team/x/blobs/{part}")).await, 404);
    }
    // Who has its bytes gets what they become.
    let same = registry.push_layer(TEAM, "team/y", &secret, &secret).await;
    assert_eq!(blobs(&registry.until_converted("team/y", &same).await), parts);
}

#[tokio::test]
async fn what_no_node_would_take_is_remembered_and_stays_as_it_was_pushed() {
    let registry = harness().await;
    let mut broken = layer(100_000, 4);
    broken[0..100].fill(b'.');
    let image = registry.push_layer(ADMIN, "a/b", &broken, &broken).await;
    // They are converted one after the other.
    let fine = layer(100_000, 5);
    let fine_image = registry.push_layer(ADMIN, "a/b", &fine, &fine).await;
    registry.until_converted("a/b", &fine_image).await;
    registry.converted("a/b", &image).await.assert_refused(404, "MANIFEST_UNKNOWN");
    let hex = digest(&broken).replace("sha256:", "");
    let kept = registry.root.path().join(format!("converted/{hex}-{hex}"));
    let record: Value = serde_json::from_slice(&std::fs::read(kept).unwrap()).unwrap();
    assert!(!record["refused"].as_str().unwrap().is_empty(), "{record}");
    assert!(std::fs::read_dir(registry.root.path().join("uploads")).unwrap().next().is_none());
    let whole = registry.get(&format!("/v2/a/b/blobs/{}", digest(&broken))).await;
    assert!(whole.body == broken);
}

#[tokio::test]
async fn what_would_become_several_times_as_large_stays_as_it_was_pushed() {
    let registry = harness().await;
    let mut bytes = vec![0; 1_200_000];
    fastrand::Rng::with_seed(10).fill(&mut bytes);
    // It repeats over more than a frame, so none of them shrinks.
    let archive = archive(&bytes.repeat(6));
    let packed = zstd::encode_all(&archive[..], 3).unwrap();
    assert!(packed.len() < 2_000_000, "{}", packed.len());
    let image = registry.push_layer(ADMIN, "a/b", &packed, &archive).await;
    let fine = layer(100_000, 11);
    let fine = registry.push_layer(ADMIN, "a/b", &fine, &fine).await;
    registry.until_converted("a/b", &fine).await;
    registry.converted("a/b", &image).await.assert_refused(404, "MANIFEST_UNKNOWN");
    let hex = |bytes: &[u8]| digest(bytes).replace("sha256:", "");
    let kept = format!("converted/{}-{}", hex(&packed), hex(&archive));
    let record = std::fs::read(registry.root.path().join(kept)).unwrap();
    let record: Value = serde_json::from_slice(&record).unwrap();
    assert!(record["refused"].as_str().unwrap().contains("more than 4 times"), "{record}");
    assert!(std::fs::read_dir(registry.root.path().join("uploads")).unwrap().next().is_none());
}

#[tokio::test]
async fn it_goes_with_its_image_and_not_while_somebody_has_it() {
    let root = tempfile::tempdir().unwrap();
    let patience = Duration::from_secs(3600);
    let mut options = converting(options(root.path()));
    // An hour for what is touched, and none for what has no tag.
    options.keep_untagged = Duration::ZERO;
    let (options, pushed) =
        (options.clone(), RegistryOptions { push_lease: Duration::ZERO, ..options });
    assert_eq!(options.push_lease, patience);
    let registry = Harness::around(serve(options).await, root);
    let layer = layer(90_000, 6);
    let image = registry.push_layer(ADMIN, "a/b", &layer, &layer).await;
    let artifact = registry.until_converted("a/b", &image).await;
    let text = artifact_text(&registry, &image).await;
    let artifact_path = format!("/v2/a/b/manifests/{}", digest(text.as_bytes()));
    let deleted = registry.send("DELETE", &format!("/v2/a/b/manifests/{image}"), &[], "").await;
    assert_eq!(deleted.status, 202);
    registry.converted("a/b", &image).await.assert_refused(404, "MANIFEST_UNKNOWN");
    // A node was told of it a moment ago.
    registry.send("POST", "/v2/_longshore/garbage", &[], "").await;
    assert_eq!(registry.status(artifact_path.clone()).await, 200);
    let root = registry.root;
    drop(registry.server);
    let server = serve_when_free(converting(pushed)).await;
    let registry = Harness::around(server, root);
    let garbage = registry.send("POST", "/v2/_longshore/garbage", &[], "").await.json();
    assert_eq!(garbage["manifests"], 1, "{garbage}");
    assert_eq!(registry.status(artifact_path).await, 404);
    for blob in blobs(&artifact) {
        assert_eq!(registry.status(format!("/v2/a/b/blobs/{blob}")).await, 404);
    }
}

/// Serves once the thread of a converter that was dropped has let go of the directory.
pub(super) async fn serve_when_free(options: RegistryOptions) -> Server {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    let options = stored(options).await;
    while let Err(error) = longshore_registry::Registry::open(options.clone()) {
        assert!(std::time::Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    serve(options).await
}

#[tokio::test]
async fn what_is_damaged_on_the_disk_is_done_without() {
    if is_in_s3() {
        return;
    }
    let registry = harness().await;
    let layer = layer(2_500_000, 7);
    let image = registry.push_layer(ADMIN, "a/b", &layer, &layer).await;
    let artifact = registry.until_converted("a/b", &image).await;
    let hex = blobs(&artifact)[1].replace("sha256:", "");
    let path = registry.root.path().join("blobs/sha256").join(&hex[..2]).join(&hex);
    let mut frames = std::fs::read(&path).unwrap();
    frames[1_500_000] ^= 1;
    std::fs::write(&path, frames).unwrap();
    let report = registry.pull("a/b", &image).await;
    assert_eq!((report.layers, report.converted_layers), (1, 0));
    let why = &report.why_plain[0];
    assert!(why.contains("frame 1 of its converted form does not match"), "{why}");
}

#[tokio::test]
async fn a_kill_while_it_converts_loses_nothing() {
    let root = tempfile::tempdir().unwrap();
    let layer = layer(12_000_000, 8);
    let config = config(&[&layer]);
    let manifest = manifest(&config, &[&layer]);
    let http = http_client();
    let mut process = Process::start_converting(root.path());
    process.push(&http, &layer, &config, &manifest).await;
    let image = digest(manifest.as_bytes());
    let uploads = root.path().join("uploads");
    let n_uploads = |uploads: &Path| std::fs::read_dir(uploads).unwrap().count();
    let asked = format!("/v2/_longshore/converted/a/b?manifest={image}");
    let ask = async |process: &Process| process.send(&http, Method::GET, &asked, Vec::new()).await;
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    // In the middle of its first and its second try, or after them on a quick machine.
    for _ in 0..2 {
        while n_uploads(&uploads) == 0 && ask(&process).await.status != 200 {
            assert!(std::time::Instant::now() < deadline);
        }
        process.kill();
        process = Process::start_converting(root.path());
    }
    while ask(&process).await.status != 200 {
        assert!(std::time::Instant::now() < deadline, "it is not converted");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(n_uploads(&uploads), 0, "nothing of the tries before is left");
}
