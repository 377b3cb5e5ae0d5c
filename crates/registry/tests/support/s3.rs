//! A server of the protocol of S3 over a directory of its own, which fails when it is told to.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use longshore_registry::{S3Credentials, S3Options};
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

const BUCKET: &str = "images";
const KEY: &str = "tester";
const SECRET: &str = "of the tester";

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// What is done to the next requests, each so many times.
#[derive(Debug, Default)]
pub struct Faults {
    /// Answered with a 503.
    pub refused: AtomicUsize,
    /// Answered as if what they are about were not there; those that write.
    pub unknown: AtomicUsize,
    /// Broken off without an answer.
    pub broken: AtomicUsize,
    /// Answered in part; those for bytes.
    pub cut: AtomicUsize,
    /// How many came that write.
    pub n_writes: AtomicUsize,
}

/// The server; its directory goes with it.
pub struct ObjectStore {
    pub address: SocketAddr,
    pub faults: Arc<Faults>,
    dir: tempfile::TempDir,
    runtime: Option<Runtime>,
}

impl Drop for ObjectStore {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

static SHARED: Mutex<Weak<ObjectStore>> = Mutex::new(Weak::new());

/// The one of this process, for as long as somebody has it.
pub fn shared() -> Arc<ObjectStore> {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let store = Arc::new(ObjectStore::start());
        *shared = Arc::downgrade(&store);
        store
    })
}

impl ObjectStore {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(BUCKET)).unwrap();
        let mut service = S3ServiceBuilder::new(s3s_fs::FileSystem::new(dir.path()).unwrap());
        service.set_auth(SimpleAuth::from_single(KEY, SECRET));
        let (service, faults) = (service.build(), Arc::new(Faults::default()));
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let served = Arc::clone(&faults);
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (service, faults) = (service.clone(), Arc::clone(&served));
                let answer = service_fn(move |request| {
                    answer(service.clone(), Arc::clone(&faults), request)
                });
                tokio::spawn(async move {
                    // Broken connections are what it is for.
                    let builder = Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(socket), answer).await;
                });
            }
        });
        Self { address, faults, dir, runtime: Some(runtime) }
    }

    /// How a registry reaches it, with little patience and small parts.
    pub fn options(&self) -> S3Options {
        options(&self.address.to_string())
    }

    /// The objects with blobs, by their keys.
    pub fn objects(&self) -> BTreeMap<String, PathBuf> {
        let mut all = self.all();
        all.retain(|key, _| !key.starts_with("registry-"));
        all
    }

    /// The same with what registries know it again by.
    pub fn all(&self) -> BTreeMap<String, PathBuf> {
        let Ok(entries) = std::fs::read_dir(self.dir.path().join(BUCKET).join("tests")) else {
            return BTreeMap::new();
        };
        let paths = entries.map(|entry| entry.unwrap().path());
        paths.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path)).collect()
    }

    /// How many parts there are of objects that are not complete.
    pub fn n_parts(&self) -> usize {
        let entries = std::fs::read_dir(self.dir.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_str().unwrap().starts_with(".upload_id-")).count()
    }
}

/// The blobs that a registry has here by their digests, each with the file of its object. All that is here must
/// be of one.
pub fn blobs_of(root: &Path) -> Vec<(String, PathBuf)> {
    let Some(store) = SHARED.lock().unwrap().upgrade() else { return Vec::new() };
    assert_eq!(store.n_parts(), 0, "parts are left");
    let Faults { refused, unknown, broken, cut, n_writes: _ } = &*store.faults;
    for fault in [refused, unknown, broken, cut] {
        assert_eq!(fault.load(Ordering::Relaxed), 0, "what was to fail did not");
    }
    let mut objects = store.objects();
    let shards = std::fs::read_dir(root.join("objects/sha256")).unwrap();
    let mut blobs = Vec::new();
    for record in shards.flat_map(|shard| std::fs::read_dir(shard.unwrap().path()).unwrap()) {
        let path = record.unwrap().path();
        let record: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let object = objects.remove(record["key"].as_str().unwrap());
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        blobs.push((name, object.expect("the object is there")));
    }
    assert!(objects.is_empty(), "nobody knows {objects:?}");
    blobs
}

/// How a registry reaches the one at an address.
pub fn options(address: &str) -> S3Options {
    let location = format!("s3://{BUCKET}/tests").parse().unwrap();
    S3Options {
        endpoint: Some(format!("http://{address}").parse().unwrap()),
        credentials: Some(S3Credentials::new(KEY, SECRET)),
        part_size: longshore_types::ByteCount(5 << 20),
        patience: Duration::from_secs(5),
        ..S3Options::new(location)
    }
}

/// Takes one from what is to be done.
fn take(fault: &AtomicUsize) -> bool {
    fault.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
}

async fn answer(
    service: S3Service,
    faults: Arc<Faults>,
    request: Request<Incoming>,
) -> Result<Response<Body>, io::Error> {
    let is_read = request.method() == Method::GET;
    if !is_read {
        faults.n_writes.fetch_add(1, Ordering::Relaxed);
    }
    if take(&faults.broken) {
        return Err(io::ErrorKind::ConnectionReset.into());
    }
    let refused = take(&faults.refused).then_some(StatusCode::SERVICE_UNAVAILABLE);
    let unknown = || (!is_read && take(&faults.unknown)).then_some(StatusCode::NOT_FOUND);
    if let Some(status) = refused.or_else(unknown) {
        let empty = Empty::new().map_err(|never: Infallible| match never {}).boxed_unsync();
        let mut refused = Response::new(empty);
        *refused.status_mut() = status;
        return Ok(refused);
    }
    // What it was asked for it does, whether the one who asked is still there or not.
    let called =
        tokio::spawn(async move { hyper::service::Service::call(&service, request).await });
    let answer = called.await.map_err(io::Error::other)?.map_err(io::Error::other)?;
    let answer = answer.map(|body| body.map_err(io::Error::other).boxed_unsync());
    if is_read && take(&faults.cut) {
        return Ok(answer.map(|body| {
            let some = body.into_data_stream().take(2).map(|bytes| bytes.map(Frame::data));
            let broken = stream::iter([Err(io::Error::from(io::ErrorKind::ConnectionReset))]);
            StreamBody::new(some.chain(broken)).boxed_unsync()
        }));
    }
    Ok(answer)
}
