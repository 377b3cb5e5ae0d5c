//! The registry as a process of its own, killed in the middle of a push.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::*;

const ROOT: &str = "LONGSHORE_TEST_REGISTRY_ROOT";
/// Where its object store is.
const STORE: &str = "LONGSHORE_TEST_REGISTRY_STORE";
/// In milliseconds; with it, what nobody needs is kept no longer.
const LEASE: &str = "LONGSHORE_TEST_REGISTRY_LEASE";
/// Is there when it converts what is pushed.
const CONVERTS: &str = "LONGSHORE_TEST_REGISTRY_CONVERTS";
/// Is there when it also checks all the time what it made.
const CHECKS: &str = "LONGSHORE_TEST_REGISTRY_CHECKS";
/// The upstream that it has.
const UPSTREAM: &str = "LONGSHORE_TEST_REGISTRY_UPSTREAM";

/// Not a test by itself: what the tests below start as a process of its own.
#[tokio::test]
async fn serves_when_started_as_a_child() {
    let Some(root) = std::env::var_os(ROOT) else {
        return;
    };
    let mut options = options(Path::new(&root));
    if let Some(lease) = std::env::var(LEASE).ok().and_then(|text| text.parse().ok()) {
        options.push_lease = Duration::from_millis(lease);
        options.keep_untagged = Duration::ZERO;
    }
    if std::env::var_os(CONVERTS).is_some() {
        options.convert_from = Some(longshore_types::ByteCount(1000));
    }
    if std::env::var_os(CHECKS).is_some() {
        options.check_interval = Duration::from_millis(5);
        options.check_again = Duration::ZERO;
    }
    if let Ok(upstream) = std::env::var(UPSTREAM) {
        options.upstreams.sources = vec![upstream.parse().unwrap()];
    }
    if let Ok(address) = std::env::var(STORE) {
        options.objects = Some(Objects::connect(s3::options(&address)).await.unwrap());
    }
    let server = server::serve(options).await;
    println!("\nlistening on {}", server.address);
    std::future::pending::<()>().await;
}

/// A registry in a process of its own.
pub struct Process {
    child: Child,
    pub address: String,
    _store: Option<std::sync::Arc<s3::ObjectStore>>,
}

impl Process {
    pub fn start(root: &Path) -> Self {
        Self::start_with(root, &[])
    }

    /// One that keeps what nobody needs for so long only.
    pub fn start_impatient(root: &Path, lease: Duration) -> Self {
        Self::start_with(root, &[(LEASE, lease.as_millis().to_string())])
    }

    /// One that converts what is pushed.
    pub fn start_converting(root: &Path) -> Self {
        Self::start_with(root, &[(CONVERTS, String::new())])
    }

    /// The same with checks of what it made, one after the other.
    pub fn start_checking(root: &Path) -> Self {
        Self::start_with(root, &[(CONVERTS, String::new()), (CHECKS, String::new())])
    }

    /// One that gives the images of another registry, `NAME=URL`.
    pub fn start_below(root: &Path, upstream: &str) -> Self {
        Self::start_with(root, &[(UPSTREAM, upstream.to_owned())])
    }

    fn start_with(root: &Path, environment: &[(&str, String)]) -> Self {
        let store = is_in_s3().then(s3::shared);
        let name = format!("{}::serves_when_started_as_a_child", module_path!());
        let (_crate, name) = name.split_once("::").unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(ROOT, root)
            .envs(store.iter().map(|store| (STORE, store.address.to_string())))
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let address = BufReader::new(child.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("listening on ").map(str::to_owned));
        let address = address.expect("the child says where it listens");
        Self { child, address, _store: store }
    }

    /// What it answers its administrator.
    pub async fn send(
        &self,
        http: &reqwest::Client,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Answer {
        let url = format!("http://{}{path}", self.address);
        let request = http.request(method, url).bearer_auth(ADMIN).header("content-type", IMAGE);
        Answer::read(request.body(body).send().await.unwrap()).await
    }

    /// Pushes an image of one layer to `a/b`.
    pub async fn push(&self, http: &reqwest::Client, layer: &[u8], config: &str, manifest: &str) {
        for blob in [layer, config.as_bytes()] {
            let path = format!("/v2/a/b/blobs/uploads/?digest={}", digest(blob));
            assert_eq!(self.send(http, Method::POST, &path, blob.to_vec()).await.status, 201);
        }
        let path = format!("/v2/a/b/manifests/{}", digest(manifest.as_bytes()));
        assert_eq!(self.send(http, Method::PUT, &path, manifest.into()).await.status, 201);
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Already dead where a test killed it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_push_goes_on_after_kill_9() {
    let root = tempfile::tempdir().unwrap();
    let http = http_client();
    let bytes: Vec<u8> = (0..6_000_000_u32).map(|n| (n % 249) as u8).collect();
    let send = async |process: &Process, method: &str, path: &str, body: Vec<u8>| {
        let url = format!("http://{}{path}", process.address);
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let request = http.request(method, url).bearer_auth(ADMIN).body(body);
        Answer::read(request.send().await.unwrap()).await
    };

    let mut process = Process::start(root.path());
    let begun = send(&process, "POST", "/v2/a/b/blobs/uploads/", Vec::new()).await;
    let upload = begun.header("location").to_owned();
    let answer = send(&process, "PATCH", &upload, bytes[..2_000_000].to_vec()).await;
    assert_eq!(answer.status, 202);
    // A chunk that never ends, so that the kill finds it in flight.
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Vec<u8>, std::io::Error>>(1);
    let chunk = futures_util::stream::unfold(receiver, async |mut receiver| {
        receiver.recv().await.map(|item| (item, receiver))
    });
    let in_flight = http
        .patch(format!("http://{}{upload}", process.address))
        .bearer_auth(ADMIN)
        .body(reqwest::Body::wrap_stream(Box::pin(chunk)))
        .send();
    let in_flight = tokio::spawn(in_flight);
    for part in bytes[2_000_000..5_000_000].chunks(500_000) {
        sender.send(Ok(part.to_vec())).await.unwrap();
    }
    process.kill();
    assert!(in_flight.await.unwrap().is_err());
    drop(sender);

    let mut process = Process::start(root.path());
    let status = send(&process, "GET", &upload, Vec::new()).await;
    let last: usize = status.header("range").strip_prefix("0-").unwrap().parse().unwrap();
    assert!((1_999_999..5_000_000).contains(&last), "{last}");
    let path = format!("{upload}?digest={}", digest(&bytes));
    let finished = send(&process, "PUT", &path, bytes[last + 1..].to_vec()).await;
    assert_eq!(finished.status, 201, "{}", finished.text());
    process.kill();

    // What was acknowledged outlives the next kill, and nothing else is left.
    let process = Process::start(root.path());
    let blob = send(&process, "GET", finished.header("location"), Vec::new()).await;
    assert_eq!(blob.body, bytes);
    let uploads = std::fs::read_dir(root.path().join("uploads")).unwrap();
    assert_eq!(uploads.count(), 0);
}
