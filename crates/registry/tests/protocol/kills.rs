//! Kill the registry at any moment while images are pushed and pulled and what nobody needs is removed:
//! what was acknowledged is there, nothing is there by half, uploads go on, and nothing is left over.
//!
//! `LONGSHORE_KILLS` says how often (5 unless told), `LONGSHORE_SEED` repeats the choices.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use tokio::sync::watch;

use super::crash::Process;
use super::*;

/// How long what nobody needs is kept: about as long as a push takes here, so that some of them lose
/// what they have sent, and are told so.
const LEASE: Duration = Duration::from_millis(300);

/// Between two looks.
async fn pause() {
    tokio::time::sleep(Duration::from_millis(5)).await;
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

/// An image whose push was acknowledged.
#[derive(Clone)]
struct Image {
    path: String,
    manifest: String,
}

/// What pushers, pullers and the killer share.
struct World {
    http: reqwest::Client,
    address: watch::Receiver<String>,
    pushed: Mutex<Vec<Image>>,
    /// Requests that were begun: what the killer counts to find its moment.
    begun: AtomicUsize,
    resumed: AtomicUsize,
    stop: AtomicBool,
}

impl World {
    /// One request; `None` when the registry died in it or is not there.
    async fn send(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> Option<Answer> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        let url = format!("http://{}{path}", *self.address.borrow());
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let request =
            self.http.request(method, url).bearer_auth(ADMIN).header("content-type", kind);
        let response = request.body(body.to_vec()).send().await.ok()?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = response.bytes().await.ok()?.to_vec();
        let answer = Answer { status, headers, body };
        assert!(status < 500, "{path}: {}", answer.text());
        Some(answer)
    }

    /// Pushes a blob in chunks, going on after each death with what the registry has.
    async fn push_blob(&self, repository: &str, bytes: &[u8]) {
        let mut upload: Option<String> = None;
        while !self.stop.load(Ordering::Relaxed) {
            let begun = match &upload {
                Some(path) => self.send("GET", path, "", b"").await,
                None => {
                    let path = format!("/v2/{repository}/blobs/uploads/");
                    self.send("POST", &path, "", b"").await
                }
            };
            let Some(begun) = begun else {
                pause().await;
                continue;
            };
            if begun.status == 404 {
                upload = None;
                continue;
            }
            let path = begun.header("location").to_owned();
            let last: usize = begun.header("range").strip_prefix("0-").unwrap().parse().unwrap();
            let mut have = if last == 0 { 0 } else { last + 1 };
            if upload.is_some() && have > 0 {
                self.resumed.fetch_add(1, Ordering::Relaxed);
            }
            upload = Some(path.clone());
            while let Some(chunk) = bytes.get(have..).filter(|rest| !rest.is_empty()) {
                let chunk = &chunk[..chunk.len().min(300_000)];
                match self.send("PATCH", &path, "", chunk).await {
                    Some(answer) if answer.status == 202 => have += chunk.len(),
                    _ => break,
                }
            }
            if have < bytes.len() {
                continue;
            }
            let path = format!("{path}?digest={}", digest(bytes));
            match self.send("PUT", &path, "", b"").await {
                Some(answer) if answer.status == 201 => return,
                // One byte more or less was kept than was acknowledged: the digest tells.
                Some(_) => upload = None,
                None => {}
            }
        }
    }

    async fn push_images(self: Arc<Self>, mut random: Rng, name: u64) {
        for n in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let repository = format!("team/{name}");
            let mut layers = Vec::new();
            for _ in 0..1 + random.usize(..3) {
                // Of more than one part, where there are parts.
                let large = if is_in_s3() { 12_000_000 } else { 2_000_000 };
                let size = if random.u8(..4) == 0 { large } else { 20_000 };
                let mut bytes = vec![0; 1 + random.usize(..size)];
                random.fill(&mut bytes);
                self.push_blob(&repository, &bytes).await;
                layers.push(descriptor(&digest(&bytes), bytes.len()));
            }
            let manifest = json!({"schemaVersion": 2, "mediaType": IMAGE,
                "config": layers[0], "layers": layers});
            let path = format!("/v2/{repository}/manifests/{n}");
            let manifest = manifest.to_string();
            let answer = self.send("PUT", &path, IMAGE, manifest.as_bytes()).await;
            if answer.is_some_and(|answer| answer.status == 201) {
                self.pushed.lock().unwrap().push(Image { path, manifest });
            }
        }
    }

    async fn pull_images(self: Arc<Self>, mut random: Rng) {
        while !self.stop.load(Ordering::Relaxed) {
            let image = {
                let pushed = self.pushed.lock().unwrap();
                let idx = random.usize(..pushed.len().max(1));
                pushed.get(idx).cloned()
            };
            match image {
                Some(image) => {
                    self.pull(&image).await;
                }
                None => pause().await,
            }
        }
    }

    async fn collect(self: Arc<Self>) {
        while !self.stop.load(Ordering::Relaxed) {
            self.send("POST", "/v2/_longshore/garbage", "", b"").await;
            pause().await;
        }
    }

    /// Pulls an image; what comes must be right, though it need not come.
    async fn pull(&self, image: &Image) -> usize {
        let mut n_whole = 0;
        if let Some(answer) = self.send("GET", &image.path, "", b"").await {
            assert_eq!(answer.text(), image.manifest, "{}", image.path);
            n_whole += 1;
        }
        let document: Value = serde_json::from_str(&image.manifest).unwrap();
        let (repository, _) = image.path.split_once("/manifests/").unwrap();
        for layer in document["layers"].as_array().unwrap() {
            let name = layer["digest"].as_str().unwrap();
            let answer = self.send("GET", &format!("{repository}/blobs/{name}"), "", b"").await;
            if let Some(answer) = answer {
                assert_eq!(digest(&answer.body), name, "{}", image.path);
                n_whole += 1;
            }
        }
        n_whole
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_kills_while_images_are_pushed_and_pulled_lose_nothing() {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().subsec_nanos();
    let seed = number("LONGSHORE_SEED", now.into());
    println!("repeat with LONGSHORE_SEED={seed}");
    let mut random = Rng::with_seed(seed);
    let root = tempfile::tempdir().unwrap();
    let _store = is_in_s3().then(s3::shared);
    let mut process = Process::start_impatient(root.path(), LEASE);
    let (sender, address) = watch::channel(process.address.clone());
    let world = Arc::new(World {
        http: http_client(),
        address,
        pushed: Mutex::default(),
        begun: AtomicUsize::new(0),
        resumed: AtomicUsize::new(0),
        stop: AtomicBool::new(false),
    });
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(world.clone().collect());
    for n in 0..4 {
        tasks.spawn(world.clone().push_images(random.fork(), n));
        tasks.spawn(world.clone().pull_images(random.fork()));
    }
    for kill in 0..number("LONGSHORE_KILLS", 5) {
        let until = world.begun.load(Ordering::Relaxed) + 20 + random.usize(..60);
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        while world.begun.load(Ordering::Relaxed) < until {
            assert!(tokio::time::Instant::now() < deadline, "nothing happens before kill {kill}");
            if let Some(Err(error)) = tasks.try_join_next() {
                std::panic::resume_unwind(error.into_panic());
            }
            pause().await;
        }
        process.kill();
        process = Process::start_impatient(root.path(), LEASE);
        sender.send_replace(process.address.clone());
    }
    world.stop.store(true, Ordering::Relaxed);
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    process.kill();
    let process = Process::start_impatient(root.path(), Duration::ZERO);
    sender.send_replace(process.address.clone());
    // Uploads that were broken off would keep what came before them.
    for upload in std::fs::read_dir(root.path().join("uploads")).unwrap() {
        let dir = upload.unwrap().path();
        match std::fs::read_to_string(dir.join("repository")) {
            Ok(owner) if !owner.is_empty() => {
                let upload = dir.file_name().unwrap().to_str().unwrap();
                let path = format!("/v2/{owner}/blobs/uploads/{upload}");
                world.send("DELETE", &path, "", b"").await;
                assert!(!dir.exists(), "{dir:?} is left");
            }
            // It was half made.
            _ => std::fs::remove_dir_all(&dir).unwrap(),
        }
    }
    let collected = world.send("POST", "/v2/_longshore/garbage", "", b"").await.unwrap();
    println!("{} blobs went last", collected.json()["blobs"]);
    let pushed = std::mem::take(&mut *world.pushed.lock().unwrap());
    println!("{} images, {} uploads went on", pushed.len(), world.resumed.load(Ordering::Relaxed));
    assert!(!pushed.is_empty(), "nothing was pushed");
    for image in &pushed {
        let document: Value = serde_json::from_str(&image.manifest).unwrap();
        let n_parts = 1 + document["layers"].as_array().unwrap().len();
        assert_eq!(world.pull(image).await, n_parts, "{}", image.path);
    }
    drop(process);
    nothing_is_left_over(root.path(), &pushed).await;
}

/// Every file of bytes is whole and part of an image that was acknowledged, or of one whose
/// acknowledgement was lost; nothing is on its way any more.
async fn nothing_is_left_over(root: &Path, pushed: &[Image]) {
    let mut options = stored(options(root)).await;
    options.upload_age = Duration::ZERO;
    let registry = longshore_registry::Registry::open(options).unwrap();
    registry.remove_gone().await.unwrap();
    drop(registry);
    for name in ["tmp", "uploads", "pending"] {
        assert_eq!(std::fs::read_dir(root.join(name)).unwrap().count(), 0, "{name}");
    }
    let files = walk(&root.join("repositories"));
    let links: std::collections::HashSet<_> =
        files.iter().filter_map(|path| path.file_name()?.to_str()).collect();
    let in_place = walk(&root.join("blobs"));
    let in_place = in_place.into_iter().map(|path| {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        (name, path)
    });
    let bytes: Vec<_> = in_place.chain(s3::blobs_of(root)).collect();
    let manifests = files.iter().filter(|path| path.to_string_lossy().contains("_manifests"));
    let mut needed: std::collections::HashSet<String> =
        pushed.iter().map(|image| server::hex(image.manifest.as_bytes())).collect();
    for manifest in manifests.filter_map(|path| path.file_name()?.to_str()) {
        let path = root.join("blobs/sha256").join(&manifest[..2]).join(manifest);
        // A link without bytes means nothing; a kill in a deletion leaves it.
        let Ok(bytes) = std::fs::read(path) else { continue };
        let document: Value = serde_json::from_slice(&bytes).unwrap();
        let layers = document["layers"].as_array().unwrap().iter().chain([&document["config"]]);
        needed.extend(layers.map(|layer| layer["digest"].as_str().unwrap()[7..].to_owned()));
        needed.insert(manifest.to_owned());
    }
    for (name, path) in &bytes {
        assert_eq!(server::hex(&std::fs::read(path).unwrap()), *name, "half a blob");
        assert!(links.contains(name.as_str()), "{name} belongs to nobody");
        assert!(needed.contains(name), "nobody needs {name}");
    }
    println!("{} files of bytes", bytes.len());
}

fn walk(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    let mut unseen = vec![dir.to_owned()];
    while let Some(dir) = unseen.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { unseen.push(path) } else { found.push(path) }
        }
    }
    found
}
