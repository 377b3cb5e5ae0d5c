//! The protocol, endpoint by endpoint and refusal by refusal, over real connections.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[path = "support/server.rs"]
mod server;

#[path = "protocol/access.rs"]
mod access;
#[path = "protocol/blobs.rs"]
mod blobs;
#[path = "protocol/crash.rs"]
mod crash;
#[path = "protocol/disk.rs"]
mod disk;
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
#[path = "protocol/uploads.rs"]
mod uploads;

use reqwest::{Method, Response};
use serde_json::{Value, json};
use server::{ADMIN, Server, changing_options, hex, options, serve};

/// A registry and a client that speaks with one token.
struct Harness {
    server: Server,
    http: reqwest::Client,
    root: tempfile::TempDir,
}

fn http_client() -> reqwest::Client {
    // Nothing here uses TLS, but the client wants to know who would do it. Only the first call of a
    // process can set it, and all set the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().tls_certs_only([]).no_proxy().build().unwrap()
}

/// One answer, read to its end.
struct Answer {
    status: u16,
    headers: reqwest::header::HeaderMap,
    body: Vec<u8>,
}

impl Harness {
    async fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let server = serve(options(root.path())).await;
        Self::around(server, root)
    }

    fn around(server: Server, root: tempfile::TempDir) -> Self {
        let http = http_client();
        Self { server, http, root }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.server.address)
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> Answer {
        self.send_as(ADMIN, method, path, headers, body).await
    }

    async fn send_as(
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

    async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "").await
    }

    /// Pushes a blob in one request and gives its digest.
    async fn push_blob(&self, repository: &str, bytes: &[u8]) -> String {
        let digest = digest(bytes);
        let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
        let answer = self.send("POST", &path, &[], bytes.to_vec()).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        digest
    }

    /// Pushes an image of one layer under a tag and gives the manifest's digest.
    async fn push_image(&self, repository: &str, tag: &str, layer: &[u8]) -> String {
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
    async fn begin(&self, repository: &str) -> String {
        let path = format!("/v2/{repository}/blobs/uploads/");
        let answer = self.send("POST", &path, &[], "").await;
        assert_eq!(answer.status, 202);
        answer.header("location").to_owned()
    }
}

impl Answer {
    async fn read(response: Response) -> Self {
        Self {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: response.bytes().await.unwrap().to_vec(),
        }
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.text()))
    }

    /// The code of a refusal, which must have the specified form.
    fn code(&self) -> String {
        let body = self.json();
        let error = &body["errors"][0];
        assert!(!error["message"].as_str().unwrap().is_empty());
        assert_eq!(self.header("content-type"), "application/json");
        error["code"].as_str().unwrap().to_owned()
    }

    fn assert_refused(&self, status: u16, code: &str) {
        assert_eq!((self.status, self.code().as_str()), (status, code), "{}", self.text());
    }
}

const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(bytes))
}

fn descriptor(digest: &str, size: usize) -> Value {
    json!({"mediaType": "application/octet-stream", "digest": digest, "size": size})
}
