//! The protocol, endpoint by endpoint and refusal by refusal, over real connections. `protocol_s3.rs` is the
//! same with the bytes of blobs in an object store.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[path = "support/other.rs"]
pub(crate) mod other;
#[path = "support/s3.rs"]
pub(crate) mod s3;
#[path = "support/server.rs"]
pub(crate) mod server;

#[path = "protocol/access.rs"]
mod access;
#[path = "protocol/blobs.rs"]
mod blobs;
#[path = "protocol/checked.rs"]
mod checked;
#[path = "protocol/converted.rs"]
mod converted;
#[path = "protocol/crash.rs"]
mod crash;
#[path = "protocol/disk.rs"]
mod disk;
#[path = "protocol/forms.rs"]
mod forms;
#[path = "protocol/full_disk.rs"]
mod full_disk;
#[path = "protocol/garbage.rs"]
mod garbage;
#[path = "protocol/hostile.rs"]
mod hostile;
#[path = "protocol/kills.rs"]
mod kills;
#[path = "protocol/listings.rs"]
mod listings;
#[path = "protocol/manifests.rs"]
mod manifests;
#[path = "protocol/pins.rs"]
mod pins;
#[path = "protocol/power_cut.rs"]
mod power_cut;
#[path = "protocol/referrers.rs"]
mod referrers;
#[path = "protocol/tokens.rs"]
mod tokens;
#[path = "protocol/untold.rs"]
mod untold;
#[path = "protocol/uploads.rs"]
mod uploads;
#[path = "protocol/upstream.rs"]
mod upstream;

use longshore_registry::{Objects, RegistryOptions};
use reqwest::{Method, Response};
use serde_json::{Value, json};
use server::{ADMIN, Server, changing_options, hex, options};

/// Whether the bytes of blobs are in an object store: whether this is `protocol_s3`.
pub(crate) fn is_in_s3() -> bool {
    env!("CARGO_CRATE_NAME").ends_with("_s3")
}

/// The options with where the bytes of blobs are.
pub(crate) async fn stored(mut options: RegistryOptions) -> RegistryOptions {
    if is_in_s3() && options.objects.is_none() {
        let connected = Objects::connect(s3::shared().options()).await;
        options.objects = Some(connected.unwrap());
    }
    options
}

pub(crate) async fn serve(options: RegistryOptions) -> Server {
    let needs = is_in_s3().then(s3::shared);
    server::serve_with(stored(options).await, needs).await
}

/// A registry and a client that speaks with one token.
pub(crate) struct Harness {
    pub(crate) server: Server,
    pub(crate) http: reqwest::Client,
    pub(crate) root: tempfile::TempDir,
}

pub(crate) fn http_client() -> reqwest::Client {
    // Nothing here uses TLS, but the client wants to know who would do it. Only the first call of a
    // process can set it, and all set the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().tls_certs_only([]).no_proxy().build().unwrap()
}

/// One answer, read to its end.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Harness {
    pub(crate) async fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let server = serve(options(root.path())).await;
        Self::around(server, root)
    }

    pub(crate) fn around(server: Server, root: tempfile::TempDir) -> Self {
        let http = http_client();
        Self { server, http, root }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.server.address)
    }

    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> Answer {
        self.send_as(ADMIN, method, path, headers, body).await
    }

    pub(crate) async fn send_as(
        &self,
        token: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> Answer {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = self.http.request(method, self.url(path)).bearer_auth(token).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Answer::read(request.send().await.unwrap()).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "").await
    }

    /// Pushes a blob in one request and gives its digest.
    pub(crate) async fn push_blob(&self, repository: &str, bytes: &[u8]) -> String {
        let digest = digest(bytes);
        let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
        let answer = self.send("POST", &path, &[], bytes.to_vec()).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        digest
    }

    /// Pushes an image of one layer under a tag and gives the manifest's digest.
    pub(crate) async fn push_image(&self, repository: &str, tag: &str, layer: &[u8]) -> String {
        let config = descriptor(&self.push_blob(repository, b"{}").await, 2);
        let layer = descriptor(&self.push_blob(repository, layer).await, layer.len());
        let manifest =
            json!({"schemaVersion": 2, "mediaType": IMAGE, "config": config, "layers": [layer]});
        let path = format!("/v2/{repository}/manifests/{tag}");
        let headers = [("content-type", IMAGE)];
        let answer = self.send("PUT", &path, &headers, manifest.to_string()).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        digest(manifest.to_string().as_bytes())
    }

    /// Begins an upload and gives its path.
    pub(crate) async fn begin(&self, repository: &str) -> String {
        let path = format!("/v2/{repository}/blobs/uploads/");
        let answer = self.send("POST", &path, &[], "").await;
        assert_eq!(answer.status, 202);
        answer.header("location").to_owned()
    }
}

impl Answer {
    pub(crate) async fn read(response: Response) -> Self {
        Self {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: response.bytes().await.unwrap().to_vec(),
        }
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.text()))
    }

    /// The code of a refusal, which must have the specified form.
    pub(crate) fn code(&self) -> String {
        let body = self.json();
        let error = &body["errors"][0];
        assert!(!error["message"].as_str().unwrap().is_empty());
        assert_eq!(self.header("content-type"), "application/json");
        error["code"].as_str().unwrap().to_owned()
    }

    pub(crate) fn assert_refused(&self, status: u16, code: &str) {
        assert_eq!((self.status, self.code().as_str()), (status, code), "{}", self.text());
    }
}

pub(crate) const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";

pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(bytes))
}

pub(crate) fn descriptor(digest: &str, size: usize) -> Value {
    json!({"mediaType": "application/octet-stream", "digest": digest, "size": size})
}
