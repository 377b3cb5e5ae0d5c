//! What was converted is looked at now and then: damaged, it is made anew; different, nobody gets it any more.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use longshore_image::Limits;
use longshore_image::converted::{Converted, convert};
use longshore_image::unpack::LayerIdentity;
use longshore_registry::{Metrics, RegistryOptions};
use longshore_types::ByteCount;

use super::converted::{archive, blobs, config, converting, layer, manifest, serve_when_free};
use super::crash::Process;
use super::*;

/// One that checks all the time, and counts in `metrics`.
fn checking(root: &Path, metrics: &Metrics) -> RegistryOptions {
    RegistryOptions {
        check_interval: Duration::from_millis(5),
        check_again: Duration::ZERO,
        metrics: metrics.clone(),
        ..converting(options(root))
    }
}

async fn harness(metrics: &Metrics) -> Harness {
    let root = tempfile::tempdir().unwrap();
    let server = serve(checking(root.path(), metrics)).await;
    Harness::around(server, root)
}

/// What a registry counted, by the name of the metric with its labels.
fn counted(metrics: &Metrics, name: &str) -> f64 {
    let mut registry = longshore_registry::metrics_registry();
    metrics.register(&mut registry);
    let text = longshore_telemetry::metrics::text(&registry);
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

fn checks(metrics: &Metrics, outcome: &str) -> f64 {
    let name = format!("longshore_registry_conversion_checks_total{{outcome=\"{outcome}\"}}");
    counted(metrics, &name)
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The file with the bytes of a blob; none while they are not there.
fn file_of(root: &Path, digest: &str) -> Option<PathBuf> {
    let hex = digest.trim_start_matches("sha256:");
    let below = |dir: &str| root.join(dir).join(&hex[..2]).join(hex);
    if !is_in_s3() {
        return Some(below("blobs/sha256")).filter(|path| path.exists());
    }
    let record: Value =
        serde_json::from_slice(&std::fs::read(below("objects/sha256")).ok()?).unwrap();
    s3::shared().objects().remove(record["key"].as_str().unwrap())
}

/// Turns a bit in the middle of a blob round.
fn damage(root: &Path, digest: &str) {
    let path = file_of(root, digest).unwrap();
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let at = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

fn is_right(root: &Path, name: &str) -> bool {
    let bytes = file_of(root, name).and_then(|path| std::fs::read(path).ok());
    bytes.is_some_and(|bytes| digest(&bytes) == name)
}

#[tokio::test]
async fn what_the_disk_damaged_is_made_anew() {
    let metrics = Metrics::default();
    let registry = harness(&metrics).await;
    let (shared, own) = (layer(2_500_000, 30), layer(70_000, 31));
    let both = [(&shared[..], &shared[..]), (&own[..], &own[..])];
    let one = registry.push_layers(ADMIN, "a/b", &both).await;
    let other = registry.push_layer(ADMIN, "c/d", &shared, &shared).await;
    let parts = blobs(&registry.until_converted("c/d", &other).await);
    let all = blobs(&registry.until_converted("a/b", &one).await);
    assert!(parts.iter().all(|part| all.contains(part)));
    for (n_damaged, part) in (1_u32..).zip(&parts) {
        damage(registry.root.path(), part);
        until("it is found", async || checks(&metrics, "damaged") == f64::from(n_damaged)).await;
        assert_eq!(blobs(&registry.until_converted("a/b", &one).await), all);
        assert_eq!(blobs(&registry.until_converted("c/d", &other).await), parts);
        assert!(is_right(registry.root.path(), part), "{part}");
        for (repository, image, n_layers) in [("a/b", &one, 2), ("c/d", &other, 1)] {
            let report = registry.pull(repository, image).await;
            assert_eq!(report.converted_layers, n_layers, "{:?}", report.why_plain);
        }
    }
    let same = checks(&metrics, "same");
    until("they are looked at again", async || checks(&metrics, "same") >= same + 2.0).await;
    assert_eq!([checks(&metrics, "different"), checks(&metrics, "original_damaged")], [0.0; 2]);
    // Two at first, and one for each damage.
    let of_conversion = |name: &str| counted(&metrics, &format!("longshore_registry_{name}"));
    assert_eq!(of_conversion("conversions_total{outcome=\"done\"}"), 5.0);
    let read = own.len() + 4 * shared.len();
    assert_eq!(of_conversion("conversion_read_bytes_total"), read as f64);
    let written = of_conversion("conversion_written_bytes_total");
    assert!(written > 4.0 * 2_500_000.0 && written < 1.1 * read as f64, "{written}");
    assert_eq!(of_conversion("conversion_duration_seconds_count"), 5.0);
    assert_eq!(of_conversion("conversion_queue_images"), 0.0);
}

/// A layer, and parts of it of which every digest is right and one byte of a file is not: as a memory that lost a
/// bit would have made them.
fn wrong_parts(right: &[u8], wrong: &[u8]) -> [Vec<u8>; 3] {
    let identity = |archive: &[u8]| {
        let digest = digest(archive).parse().unwrap();
        LayerIdentity { blob: digest, size: ByteCount(archive.len() as u64), diff_id: digest }
    };
    let made = convert(wrong, &identity(wrong), &Limits::default(), Vec::new()).unwrap();
    let Converted { index, mut table, frames } = made;
    table.diff_id = identity(right).diff_id;
    [index, frames, table.encode()]
}

#[tokio::test]
async fn what_becomes_something_else_is_refused_for_good() {
    let _store = is_in_s3().then(s3::shared);
    let mut bytes = vec![0; 90_000];
    fastrand::Rng::with_seed(37).fill(&mut bytes);
    let right = archive(&bytes);
    bytes[50_000] ^= 1;
    let parts = wrong_parts(&right, &archive(&bytes));
    let packed = zstd::encode_all(&right[..], 3).unwrap();
    let fine = layer(60_000, 32);
    let root = tempfile::tempdir().unwrap();
    let server = serve(converting(options(root.path()))).await;
    let registry = Harness::around(server, root);
    let mut described = Vec::new();
    for part in &parts {
        let digest = registry.push_blob("a/b", part).await;
        described.push(json!({"digest": digest, "size": part.len()}));
    }
    let record = json!({"version": 1, "converted":
        {"index": described[0], "frames": described[1], "table": described[2]}});
    let outcomes = registry.root.path().join("converted");
    std::fs::create_dir(&outcomes).unwrap();
    let outcome = |blob: &[u8]| outcomes.join(format!("{}-{}", hex(blob), hex(&right)));
    for blob in [&right, &packed] {
        std::fs::write(outcome(blob), record.to_string()).unwrap();
    }
    let layers = [(&right[..], &right[..]), (&fine[..], &fine[..])];
    let one = registry.push_layers(ADMIN, "a/b", &layers).await;
    let two = registry.push_layer(ADMIN, "a/b", &packed, &right).await;
    let table = described[2]["digest"].as_str().unwrap().to_owned();
    for image in [&one, &two] {
        let artifact = registry.until_converted("a/b", image).await;
        assert!(blobs(&artifact).contains(&table), "it was believed to be right");
    }

    let metrics = Metrics::default();
    let Harness { server, http: _, root } = registry;
    drop(server);
    let server = serve_when_free(checking(root.path(), &metrics)).await;
    let registry = Harness::around(server, root);
    until("it is found", async || checks(&metrics, "different") == 1.0).await;
    // The other layer of the image is had converted as before.
    let left = blobs(&registry.until_converted("a/b", &one).await);
    assert!(left.len() == 3 && !left.contains(&table), "{left:?}");
    let report = registry.pull("a/b", &one).await;
    assert_eq!((report.layers, report.converted_layers), (2, 1), "{:?}", report.why_plain);
    // Neither it nor the same in another compression is tried again, wherever it is pushed.
    let same = registry.push_layer(ADMIN, "c/d", &right, &right).await;
    let next = layer(50_000, 33);
    let next = registry.push_layer(ADMIN, "c/d", &next, &next).await;
    registry.until_converted("c/d", &next).await;
    registry.converted("a/b", &two).await.assert_refused(404, "MANIFEST_UNKNOWN");
    registry.converted("c/d", &same).await.assert_refused(404, "MANIFEST_UNKNOWN");
    for blob in [&right, &packed] {
        let record: Value = serde_json::from_slice(&std::fs::read(outcome(blob)).unwrap()).unwrap();
        let why = record["refused"].as_str().unwrap();
        let told = "a check found something else: the BLAKE3 of its frame 0 is ";
        assert!(why.starts_with(told) && why.contains(", and becomes "), "{why}");
    }
    assert_eq!([checks(&metrics, "different"), checks(&metrics, "damaged")], [1.0, 0.0]);
}

#[tokio::test]
async fn what_is_gone_of_a_form_is_made_anew_with_the_next_look() {
    let _store = is_in_s3().then(s3::shared);
    let root = tempfile::tempdir().unwrap();
    let server = serve(converting(options(root.path()))).await;
    let registry = Harness::around(server, root);
    let layer = layer(90_000, 36);
    let image = registry.push_layer(ADMIN, "a/b", &layer, &layer).await;
    let parts = blobs(&registry.until_converted("a/b", &image).await);
    let frames = format!("/v2/a/b/blobs/{}", parts[1]);
    assert_eq!(registry.send("DELETE", &frames, &[], "").await.status, 202);
    let report = registry.pull("a/b", &image).await;
    assert_eq!((report.layers, report.converted_layers), (1, 0));
    let Harness { server, http: _, root } = registry;
    drop(server);
    let server = serve_when_free(converting(options(root.path()))).await;
    let registry = Harness::around(server, root);
    until("it is there", async || registry.status(frames.clone()).await == 200).await;
    assert_eq!(blobs(&registry.until_converted("a/b", &image).await), parts);
    assert_eq!(registry.pull("a/b", &image).await.converted_layers, 1);
}

#[tokio::test]
async fn what_cannot_be_read_keeps_nobody_else_waiting() {
    let metrics = Metrics::default();
    let registry = harness(&metrics).await;
    let (shared, own) = (layer(90_000, 38), layer(70_000, 39));
    let broken = registry.push_layer(ADMIN, "a/b", &own, &own).await;
    let lost = registry.push_layer(ADMIN, "c/d", &own, &own).await;
    let last = registry.push_layer(ADMIN, "e/f", &shared, &shared).await;
    let same = registry.push_layer(ADMIN, "e/g", &shared, &shared).await;
    registry.until_converted("c/d", &lost).await;
    registry.until_converted("a/b", &broken).await;
    let _store = is_in_s3().then(s3::shared);
    let parts = blobs(&registry.until_converted("e/f", &last).await);
    registry.until_converted("e/g", &same).await;
    let Harness { server, http: _, root } = registry;
    drop(server);
    // Two repositories have this artifact, and none can read it; a link names nothing; and of the last one a part is gone.
    let link = |repository: &str, image: &str| {
        let hex = image.trim_start_matches("sha256:");
        root.path().join(format!("repositories/{repository}/_converted/{hex}"))
    };
    let own_artifact = std::fs::read_to_string(link("a/b", &broken)).unwrap();
    let hex = own_artifact.trim_start_matches("sha256:");
    let path = root.path().join("blobs/sha256").join(&hex[..2]).join(hex);
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, "{").unwrap();
    std::fs::write(link("e/g", &same), "sha256:12").unwrap();
    damage(root.path(), &parts[1]);

    let server = serve_when_free(checking(root.path(), &metrics)).await;
    let registry = Harness::around(server, root);
    until("it is found", async || checks(&metrics, "damaged") >= 1.0).await;
    assert_eq!(blobs(&registry.until_converted("e/f", &last).await), parts);
    assert!(is_right(registry.root.path(), &parts[1]));
    registry.until_converted("a/b", &broken).await;
    registry.until_converted("c/d", &lost).await;
    assert!(std::fs::read(path).unwrap() == whole);
    assert_eq!(registry.converted("e/g", &same).await.status, 500);
    assert_eq!(checks(&metrics, "different"), 0.0);
}

#[tokio::test]
async fn an_original_whose_damage_is_found_before_its_digest_is_no_fault_of_the_converter() {
    let metrics = Metrics::default();
    let registry = harness(&metrics).await;
    let mut bytes = vec![0; 90_000];
    fastrand::Rng::with_seed(40).fill(&mut bytes);
    let mut layer = tar::Builder::new(Vec::new());
    layer.append_pax_extensions([("size", "000000000090000".as_bytes())]).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    layer.append_data(&mut header, "noise", &bytes[..]).unwrap();
    let layer = layer.into_inner().unwrap();
    let image = registry.push_layer(ADMIN, "a/b", &layer, &layer).await;
    registry.until_converted("a/b", &image).await;
    let path = file_of(registry.root.path(), &digest(&layer)).unwrap();
    let at = layer.windows(5).position(|bytes| bytes == b"size=").unwrap() + 5;
    std::fs::File::options().write(true).open(path).unwrap().write_all_at(b"9", at as u64).unwrap();
    until("it is found", async || checks(&metrics, "original_damaged") >= 1.0).await;
    assert_eq!(registry.pull("a/b", &image).await.converted_layers, 1);
    assert_eq!([checks(&metrics, "different"), checks(&metrics, "damaged")], [0.0; 2]);
}

#[tokio::test]
async fn a_form_outlives_what_it_was_made_of() {
    let metrics = Metrics::default();
    let registry = harness(&metrics).await;
    let layer = layer(1_200_000, 34);
    let image = registry.push_layer(ADMIN, "a/b", &layer, &layer).await;
    registry.until_converted("a/b", &image).await;
    damage(registry.root.path(), &digest(&layer));
    until("it is found", async || checks(&metrics, "original_damaged") >= 1.0).await;
    // It is the only good copy now.
    assert_eq!(registry.pull("a/b", &image).await.converted_layers, 1);
    assert_eq!([checks(&metrics, "different"), checks(&metrics, "damaged")], [0.0; 2]);
}

#[tokio::test]
async fn a_kill_while_it_is_checked_and_made_anew_leaves_nothing_half() {
    let root = tempfile::tempdir().unwrap();
    let _store = is_in_s3().then(s3::shared);
    let layer = layer(6_000_000, 35);
    let config = config(&[&layer]);
    let manifest = manifest(&config, &[&layer]);
    let image = digest(manifest.as_bytes());
    let http = http_client();
    let asked = format!("/v2/_longshore/converted/a/b?manifest={image}");
    let mut process = Process::start_converting(root.path());
    process.push(&http, &layer, &config, &manifest).await;
    let ask = async |process: &Process| process.send(&http, Method::GET, &asked, Vec::new()).await;
    let is_there = async |process: &Process| ask(process).await.status == 200;
    until("it is converted", async || is_there(&process).await).await;
    let artifact = ask(&process).await.json();
    let frames = blobs(&artifact).swap_remove(1);
    process.kill();
    damage(root.path(), &frames);
    let mut random = fastrand::Rng::new();
    for _ in 0..4 {
        process = Process::start_checking(root.path());
        tokio::time::sleep(Duration::from_millis(random.u64(0..60))).await;
        process.kill();
    }
    let process = Process::start_checking(root.path());
    until("it is made anew", async || is_right(root.path(), &frames) && is_there(&process).await)
        .await;
    let again = ask(&process).await.json();
    assert_eq!(blobs(&again), blobs(&artifact));
    assert_eq!(std::fs::read_dir(root.path().join("uploads")).unwrap().count(), 0);
}
