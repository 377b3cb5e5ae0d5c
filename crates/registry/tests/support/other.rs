//! Another registry, of the kind that a test needs: one that wants a token, that is away, that breaks off, that lies.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use super::server::hex;

/// Bytes that are sent at once.
const PIECE: usize = 64 << 10;

/// The media type and the bytes of a manifest.
type Manifest = (String, Vec<u8>);

/// What it says and does.
#[derive(Default)]
pub struct Said {
    /// By repository, and tag or digest.
    manifests: Mutex<HashMap<(String, String), Manifest>>,
    blobs: Mutex<HashMap<String, Vec<u8>>>,
    /// What it was asked, with what was shown.
    asked: Mutex<Vec<(String, Option<String>)>>,
    /// Whether it answers nothing but that it cannot.
    pub is_away: AtomicBool,
    /// Whether one byte of each blob is another than it should be.
    pub lies: AtomicBool,
    /// After so many bytes the next blob breaks off.
    pub breaks_after: AtomicUsize,
    /// With how many pieces of blobs it goes on; without it all.
    pub pieces: Mutex<Option<Arc<Semaphore>>>,
    /// The header with which it wants to know who asks; the password is `secret`.
    pub challenge: Mutex<Option<String>>,
    /// Seconds for which its tokens hold.
    pub lifetime: AtomicUsize,
    /// Where blobs are to be had instead.
    pub blobs_at: Mutex<Option<String>>,
}

/// One that is there until it is dropped.
pub struct Other {
    pub address: SocketAddr,
    pub said: Arc<Said>,
    serving: tokio::task::JoinHandle<()>,
    /// By which one that speaks TLS is believed.
    pub ca: Option<String>,
}

impl Drop for Other {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Other {
    pub async fn start() -> Self {
        let (said, listener, address) = Self::begin().await;
        let router = Router::new().fallback(answer).with_state(Arc::clone(&said));
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, said, serving, ca: None }
    }

    /// One that speaks TLS, vouched for by nobody that this machine knows.
    pub async fn start_secure() -> Self {
        let (said, listener, address) = Self::begin().await;
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        // Only the first call of a process can set it, and all set the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = rustls::ServerConfig::builder().with_no_client_auth();
        let config = config.with_single_cert(vec![made.cert.der().clone()], key).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let router = Router::new().fallback(answer).with_state(Arc::clone(&said));
        let serving = tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (acceptor, router) = (acceptor.clone(), router.clone());
                tokio::spawn(async move {
                    // Who does not believe it closes the connection.
                    let Ok(socket) = acceptor.accept(socket).await else { return };
                    let service = TowerToHyperService::new(router);
                    let builder = Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        Self { address, said, serving, ca: Some(made.cert.pem()) }
    }

    async fn begin() -> (Arc<Said>, TcpListener, SocketAddr) {
        let said = Said { lifetime: AtomicUsize::new(300), ..Said::default() };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (Arc::new(said), listener, address)
    }

    pub fn url(&self) -> String {
        let scheme = if self.ca.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// Wants a token that it gives itself.
    pub fn want_token(&self) {
        let realm = format!("{}/token", self.url());
        let challenge = format!("Bearer realm=\"{realm}\",service=\"other\"");
        *self.said.challenge.lock().unwrap() = Some(challenge);
    }

    pub fn add_blob(&self, bytes: &[u8]) -> String {
        let digest = format!("sha256:{}", hex(bytes));
        self.said.blobs.lock().unwrap().insert(digest.clone(), bytes.to_vec());
        digest
    }

    /// Under a tag, and under its digest.
    pub fn add_manifest(&self, repository: &str, tag: &str, kind: &str, bytes: &[u8]) -> String {
        let digest = format!("sha256:{}", hex(bytes));
        let mut manifests = self.said.manifests.lock().unwrap();
        for name in [tag, &digest] {
            let key = (repository.to_owned(), name.to_owned());
            manifests.insert(key, (kind.to_owned(), bytes.to_vec()));
        }
        digest
    }

    /// An image of one layer; gives the digests of its manifest and of the layer.
    pub fn add_image(&self, repository: &str, tag: &str, layer: &[u8]) -> (String, String) {
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let described = |digest: &str, size: usize| json!({"mediaType": "application/octet-stream", "digest": digest, "size": size});
        let config = described(&self.add_blob(b"{}"), 2);
        let digest = self.add_blob(layer);
        let layers = [described(&digest, layer.len())];
        let manifest =
            json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers});
        let bytes = manifest.to_string();
        (self.add_manifest(repository, tag, kind, bytes.as_bytes()), digest)
    }

    pub fn forget(&self, repository: &str, tag: &str) {
        let key = (repository.to_owned(), tag.to_owned());
        self.said.manifests.lock().unwrap().remove(&key);
    }

    /// How often it was asked for what ends so.
    pub fn n_asked(&self, end: &str) -> usize {
        self.asked().iter().filter(|(what, _)| what.ends_with(end)).count()
    }

    /// What it was asked, with what was shown.
    pub fn asked(&self) -> Vec<(String, Option<String>)> {
        self.said.asked.lock().unwrap().clone()
    }
}

async fn answer(State(said): State<Arc<Said>>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    let shown = parts.headers.get(header::AUTHORIZATION);
    let shown = shown.map(|shown| shown.to_str().unwrap().to_owned());
    let line = format!("{} {}", parts.method, parts.uri);
    said.asked.lock().unwrap().push((line, shown.clone()));
    if said.is_away.load(Ordering::Relaxed) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let path = parts.uri.path();
    if path == "/token" {
        return token(&said, shown.as_deref());
    }
    let challenge = said.challenge.lock().unwrap().clone();
    if let Some(challenge) = challenge
        && !is_let_in(shown.as_deref())
    {
        let headers = [(header::WWW_AUTHENTICATE, challenge)];
        return (StatusCode::UNAUTHORIZED, headers).into_response();
    }
    let rest = path.strip_prefix("/v2/").unwrap_or_default();
    if let Some((repository, name)) = rest.split_once("/manifests/") {
        let key = (repository.to_owned(), name.to_owned());
        let found = said.manifests.lock().unwrap().get(&key).cloned();
        let Some((kind, bytes)) = found else { return StatusCode::NOT_FOUND.into_response() };
        let digest = format!("sha256:{}", hex(&bytes));
        let headers = [("content-type", kind), ("docker-content-digest", digest)];
        let bytes = if parts.method == Method::HEAD { Vec::new() } else { bytes };
        return (headers, bytes).into_response();
    }
    match rest.split_once("/blobs/") {
        Some((_, digest)) => blob(&said, &parts.method, digest, &parts.headers),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

fn is_let_in(shown: Option<&str>) -> bool {
    shown.is_some_and(|shown| shown.starts_with("Bearer token-") || shown == BASIC)
}

/// `me:secret`.
const BASIC: &str = "Basic bWU6c2VjcmV0";

fn token(said: &Said, shown: Option<&str>) -> Response {
    if shown != Some(BASIC) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let asked = said.asked.lock().unwrap().len();
    let lifetime = said.lifetime.load(Ordering::Relaxed);
    json!({"token": format!("token-{asked}"), "expires_in": lifetime}).to_string().into_response()
}

fn blob(said: &Arc<Said>, method: &Method, digest: &str, headers: &HeaderMap) -> Response {
    if let Some(elsewhere) = said.blobs_at.lock().unwrap().clone() {
        let to = format!("{elsewhere}/v2/x/blobs/{digest}");
        return (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, to)]).into_response();
    }
    let Some(mut bytes) = said.blobs.lock().unwrap().get(digest).cloned() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let size = bytes.len();
    if *method == Method::HEAD {
        return ([(header::CONTENT_LENGTH, size.to_string())], Body::empty()).into_response();
    }
    if said.lies.load(Ordering::Relaxed) {
        bytes[size / 2] ^= 1;
    }
    let range = headers.get(header::RANGE).map(|range| range.to_str().unwrap());
    let from = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
    let from = from.map_or(0, |from| from.parse().unwrap());
    let left = bytes.split_off(from);
    let breaks_after = said.breaks_after.swap(0, Ordering::Relaxed);
    let pieces = said.pieces.lock().unwrap().clone();
    let state = (Bytes::from(left.clone()), breaks_after, pieces);
    let body = stream::try_unfold(state, async |(mut left, breaks_after, pieces)| {
        if left.is_empty() {
            return Ok(None);
        }
        if let Some(pieces) = &pieces {
            pieces.acquire().await.unwrap().forget();
        }
        let piece = left.split_to(left.len().min(PIECE));
        match breaks_after.checked_sub(piece.len()) {
            _ if breaks_after == 0 => Ok(Some((piece, (left, 0, pieces)))),
            Some(more) if more > 0 => Ok(Some((piece, (left, more, pieces)))),
            _ => Err(std::io::Error::other("it breaks off")),
        }
    });
    let length = [(header::CONTENT_LENGTH, left.len().to_string())];
    let body = Body::from_stream(body);
    if range.is_none() {
        return (length, body).into_response();
    }
    let range = [(header::CONTENT_RANGE, format!("bytes {from}-{}/{size}", size - 1))];
    (StatusCode::PARTIAL_CONTENT, length, range, body).into_response()
}
