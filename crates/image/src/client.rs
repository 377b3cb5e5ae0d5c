//! A client of OCI registries.
//!
//! Written over reqwest and not `oci-client`: that crate takes the blobs it pushes in chunks from memory,
//! asks nobody how much of an interrupted upload arrived, retries nothing, has no limit on silence, and goes for a
//! token wherever a registry says. A push that survives a registry killed in its middle is a promise of ours, so
//! the upload had to be ours; what is left of the protocol is smaller than the adapter would be. Our registry takes a
//! token as it is; to others one logs in ([`Credentials`]).
//!
//! There is no limit on how long a transfer takes, only on how long nothing moves ([`STALL`]).

mod challenge;
mod docker_config;
mod error;
mod login;
mod places;
mod upload;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use longshore_types::garbage::{Garbage, KeptManifest};
use longshore_types::{Digest, Repository, Retention};
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, LINK, LOCATION,
    RANGE,
};
use reqwest::redirect::Policy;
use reqwest::{Method, Request, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::source::{FetchedManifest, Given, Part, Retry, Source, SourceError};

pub use docker_config::{DockerConfig, DockerConfigError};
pub use error::RegistryClientError;
use error::{read_at_most, without_query};
pub use login::Credentials;
use login::Login;
pub use places::Misplaced;
pub use upload::BlobSource;

/// How long nothing may move before a request is given up.
pub const STALL: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(10);

/// Where a Longshore registry tells what nobody needs, and removes it.
const GARBAGE: &str = "/v2/_longshore/garbage";
/// Where it gives what it converted of an image.
const CONVERTED: &str = "/v2/_longshore/converted";
/// Where it is told what a repository keeps.
const RETENTION: &str = "/v2/_longshore/retention";
/// Where it tells why what it has is there.
const KEPT: &str = "/v2/_longshore/kept";

/// The largest manifest that is read, in bytes.
const MAX_MANIFEST: usize = 4 << 20;
/// The largest page of a list that is read, in bytes.
const MAX_LIST: usize = 16 << 20;

const MANIFEST_TYPES: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json";

/// A manifest as a registry sent it, with the digest of its bytes.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// The digest of `bytes`, computed here.
    pub digest: Digest,
    /// The stated media type.
    pub media_type: String,
    /// The exact bytes.
    pub bytes: Bytes,
}

/// Whether a registry mounted a blob from another repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mounted {
    /// The repository has the blob now.
    Yes,
    /// It must be pushed.
    No,
}

/// A blob on its way.
pub struct OpenedBlob {
    /// Whether the bytes are all of it, as from a registry that has no parts to give.
    pub is_whole: bool,
    /// How many bytes the whole blob has, when the registry says so.
    pub size: Option<u64>,
    /// The bytes, which nobody has checked.
    pub bytes: BoxStream<'static, Result<Bytes, RegistryClientError>>,
}

/// By which certificates a registry at `https` is believed.
#[derive(Debug, Clone, Copy, Default)]
pub enum Trust<'a> {
    /// Those that this machine trusts.
    #[default]
    Machine,
    /// Those in a file, in PEM, and no others.
    Only(&'a Path),
    /// Those in a file, in PEM, and those that this machine trusts.
    Also(&'a Path),
}

/// Speaks with one registry. Cloning shares its connections, and what it is logged in with.
#[derive(Debug, Clone)]
pub struct RegistryClient {
    http: reqwest::Client,
    base: Url,
    login: Arc<Login>,
}

/// The certificates of a file in PEM.
fn certificates(path: &Path) -> Result<Vec<reqwest::Certificate>, RegistryClientError> {
    let failed = |source| RegistryClientError::Read { path: path.to_owned(), source };
    let pem = std::fs::read(path).map_err(failed)?;
    let invalid = |error| failed(io::Error::new(io::ErrorKind::InvalidData, error));
    match reqwest::Certificate::from_pem_bundle(&pem).map_err(invalid)? {
        none if none.is_empty() => {
            Err(failed(io::Error::new(io::ErrorKind::InvalidData, "it has no certificate in PEM")))
        }
        certificates => Ok(certificates),
    }
}

impl RegistryClient {
    /// A client of the registry at `base_url` (`http://host:port`, `https://host` or `unix:/path`); the token
    /// is sent with each request.
    pub fn new(base_url: &str, token: Option<String>) -> Result<Self, RegistryClientError> {
        let credentials = token.map_or(Credentials::Anonymous, Credentials::Token);
        Self::connect(base_url, &credentials, Trust::Machine)
    }

    /// A client of the registry there, logged in with `credentials` once it asks.
    pub fn connect(
        base_url: &str,
        credentials: &Credentials,
        trust: Trust<'_>,
    ) -> Result<Self, RegistryClientError> {
        let refuse = || RegistryClientError::Url { url: base_url.to_owned() };
        let socket = base_url.strip_prefix("unix:");
        // In the requests over a socket the host means nothing.
        let base = if socket.is_some() { "http://localhost" } else { base_url };
        let base = Url::parse(base).map_err(|_| refuse())?;
        if !base.has_host() || !matches!(base.scheme(), "http" | "https") {
            return Err(refuse());
        }
        // Only the first call of a process can set it, and all set the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = |redirects: Policy| -> Result<reqwest::Client, RegistryClientError> {
            let builder = reqwest::Client::builder().connect_timeout(CONNECT).redirect(redirects);
            let builder = match trust {
                Trust::Only(ca) => builder.tls_certs_only(certificates(ca)?),
                Trust::Also(ca) => builder.tls_certs_merge(certificates(ca)?),
                // A machine without any CA certificate must still be able to speak to our own registry.
                Trust::Machine if base.scheme() == "http" => builder.tls_certs_only([]),
                Trust::Machine => builder,
            };
            let builder = match socket {
                Some(socket) => builder.unix_socket(socket),
                None => builder,
            };
            builder.build().map_err(RegistryClientError::Build)
        };
        let http = client(places::policy(&base))?;
        // It goes for tokens where the registry says, and nowhere else.
        let for_tokens = match credentials {
            Credentials::Token(_) => http.clone(),
            Credentials::Anonymous | Credentials::Password { .. } => client(Policy::none())?,
        };
        let login = Arc::new(Login::new(&base, credentials, for_tokens)?);
        Ok(Self { http, base, login })
    }

    /// Checks that the registry is there and knows the token.
    pub async fn ping(&self) -> Result<(), RegistryClientError> {
        let request = self.request(Method::GET, self.path("/v2/"));
        self.send("log in", request).await.map(drop)
    }

    /// The digest that a tag names; `None` when there is no such tag.
    pub async fn resolve(
        &self,
        repository: &Repository,
        reference: &str,
    ) -> Result<Option<Digest>, RegistryClientError> {
        // By the bytes and not by a header that registries may leave out.
        match self.manifest(repository, reference).await {
            Ok(manifest) => Ok(Some(manifest.digest)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A manifest by tag or digest. With a digest, the bytes are checked against it.
    pub async fn manifest(
        &self,
        repository: &Repository,
        reference: &str,
    ) -> Result<Manifest, RegistryClientError> {
        let url = self.path(&format!("/v2/{repository}/manifests/{reference}"));
        let request = self.request(Method::GET, url).header(ACCEPT, MANIFEST_TYPES);
        let response = self.send("read the manifest", request).await?;
        let media_type =
            header(response.headers(), CONTENT_TYPE.as_str()).unwrap_or_default().to_owned();
        let bytes = read_manifest(response).await?;
        let digest = Digest::from_sha256(Sha256::digest(&bytes).into());
        match reference.parse::<Digest>() {
            Ok(wanted) if wanted != digest => {
                Err(RegistryClientError::Digest { wanted, found: digest })
            }
            _ => Ok(Manifest { digest, media_type, bytes }),
        }
    }

    /// The digest that a tag names, as the registry says it; `None` when it does not say. That has to be held against
    /// the bytes.
    pub async fn said_digest(
        &self,
        repository: &Repository,
        tag: &str,
    ) -> Result<Option<Digest>, RegistryClientError> {
        let url = self.path(&format!("/v2/{repository}/manifests/{tag}"));
        let request = self.request(Method::HEAD, url).header(ACCEPT, MANIFEST_TYPES);
        let response = self.send("look for the manifest", request).await?;
        let said = header(response.headers(), "docker-content-digest");
        Ok(said.and_then(|digest| digest.parse().ok()))
    }

    /// Part of a blob, or all of it from a registry that has no parts to give.
    pub async fn open_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        part: Part,
    ) -> Result<OpenedBlob, RegistryClientError> {
        let url = self.path(&format!("/v2/{repository}/blobs/{digest}"));
        let mut request = self.request(Method::GET, url);
        if let Some(range) = part.range() {
            request = request.header(RANGE, range);
        }
        let response = self.send("read the blob", request).await?;
        let headers = response.headers();
        let number = |text: Option<&str>| text.and_then(|text| text.parse().ok());
        // A registry may ignore the range and send all.
        let is_whole = response.status() != StatusCode::PARTIAL_CONTENT;
        let size = match is_whole {
            true => number(header(headers, CONTENT_LENGTH.as_str())),
            false => {
                let range = header(headers, CONTENT_RANGE.as_str());
                number(range.and_then(|range| Some(range.rsplit_once('/')?.1)))
            }
        };
        Ok(OpenedBlob { is_whole, size, bytes: body(response).boxed() })
    }

    /// The artifact that names what the registry converted of the image with this manifest, when it has; never of
    /// a registry that does not convert.
    pub async fn converted(
        &self,
        repository: &Repository,
        manifest: &Digest,
    ) -> Result<Option<Bytes>, RegistryClientError> {
        let mut url = self.path(&format!("{CONVERTED}/{repository}"));
        url.query_pairs_mut().append_pair("manifest", &manifest.to_string());
        let request = self.request(Method::GET, url);
        match self.send("ask for what is converted", request).await {
            Ok(response) => read_manifest(response).await.map(Some),
            // As one of a release before answers, too.
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The size of a blob in bytes, when the repository has it.
    pub async fn blob_size(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<u64>, RegistryClientError> {
        match self.blob_length(repository, digest).await {
            Ok(length) => Ok(Some(length)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The same of one that should be there.
    pub async fn blob_length(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<u64, RegistryClientError> {
        let url = self.path(&format!("/v2/{repository}/blobs/{digest}"));
        let response = self.send("look for the blob", self.request(Method::HEAD, url)).await?;
        let length = header(response.headers(), "content-length");
        length
            .and_then(|length| length.parse().ok())
            .ok_or(RegistryClientError::Answer("a blob without its length"))
    }

    /// Takes a blob over from another repository of the same registry, without sending it.
    pub async fn mount(
        &self,
        repository: &Repository,
        digest: &Digest,
        from: &Repository,
    ) -> Result<Mounted, RegistryClientError> {
        let mut url = self.path(&format!("/v2/{repository}/blobs/uploads/"));
        url.query_pairs_mut()
            .append_pair("mount", &digest.to_string())
            .append_pair("from", from.as_str());
        let request = self.request(Method::POST, url);
        let response = self.send("mount the blob", request).await?;
        if response.status() == StatusCode::CREATED {
            return Ok(Mounted::Yes);
        }
        // The registry began an upload in its place, which nobody will use.
        let upload = self.location(&response)?;
        let request = self.request(Method::DELETE, upload);
        match self.send("cancel the upload", request).await {
            Ok(_) => {}
            // Some registries cannot; it will grow old there.
            Err(error) => tracing::debug!(%error, "an unused upload stays"),
        }
        Ok(Mounted::No)
    }

    /// Stores a manifest under a tag or its digest; what it refers to must be there.
    pub async fn push_manifest(
        &self,
        repository: &Repository,
        reference: &str,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<(), RegistryClientError> {
        let url = self.path(&format!("/v2/{repository}/manifests/{reference}"));
        let request = self.request(Method::PUT, url).header(CONTENT_TYPE, media_type).body(bytes);
        self.send("push the manifest", request).await.map(drop)
    }

    /// The tags of a repository, in the registry's order.
    pub async fn tags(&self, repository: &Repository) -> Result<Vec<String>, RegistryClientError> {
        #[derive(Deserialize)]
        struct Page {
            tags: Option<Vec<String>>,
        }
        let mut url = self.path(&format!("/v2/{repository}/tags/list"));
        let mut tags = Vec::new();
        loop {
            let request = self.request(Method::GET, url.clone());
            let response = self.send("list the tags", request).await?;
            let next = next_page(response.headers(), &url);
            let page: Page = json(response).await?;
            tags.extend(page.tags.unwrap_or_default());
            match next {
                Some(next) => url = next,
                None => return Ok(tags),
            }
        }
    }

    /// The repositories from which the token may pull.
    pub async fn repositories(&self) -> Result<Vec<Repository>, RegistryClientError> {
        #[derive(Deserialize)]
        struct Page {
            repositories: Vec<Repository>,
        }
        let mut url = self.path("/v2/_catalog");
        let mut repositories = Vec::new();
        loop {
            let request = self.request(Method::GET, url.clone());
            let response = self.send("list the repositories", request).await?;
            let next = next_page(response.headers(), &url);
            let page: Page = json(response).await?;
            repositories.extend(page.repositories);
            match next {
                Some(next) => url = next,
                None => return Ok(repositories),
            }
        }
    }

    /// Deletes a tag, or a manifest with all its tags when given a digest.
    pub async fn delete_manifest(
        &self,
        repository: &Repository,
        reference: &str,
    ) -> Result<(), RegistryClientError> {
        let url = self.path(&format!("/v2/{repository}/manifests/{reference}"));
        let request = self.request(Method::DELETE, url);
        self.send("delete the manifest", request).await.map(drop)
    }

    /// What nobody needs of what a Longshore registry has.
    pub async fn garbage(&self) -> Result<Garbage, RegistryClientError> {
        let request = self.request(Method::GET, self.path(GARBAGE));
        json(self.send("look for what nobody needs", request).await?).await
    }

    /// Has a Longshore registry remove what nobody needs.
    pub async fn remove_garbage(&self) -> Result<Garbage, RegistryClientError> {
        let request = self.request(Method::POST, self.path(GARBAGE));
        json(self.send("remove what nobody needs", request).await?).await
    }

    /// What a repository of a Longshore registry keeps.
    pub async fn retention(
        &self,
        repository: &Repository,
    ) -> Result<Retention, RegistryClientError> {
        let url = self.path(&format!("{RETENTION}/{repository}"));
        json(self.send("ask what is kept", self.request(Method::GET, url)).await?).await
    }

    /// Tells a Longshore registry what a repository keeps.
    pub async fn set_retention(
        &self,
        repository: &Repository,
        retention: &Retention,
    ) -> Result<Retention, RegistryClientError> {
        let url = self.path(&format!("{RETENTION}/{repository}"));
        let request = self.request(Method::PUT, url).json(retention);
        json(self.send("say what is kept", request).await?).await
    }

    /// Why each manifest of a repository of a Longshore registry is there.
    pub async fn kept(
        &self,
        repository: &Repository,
    ) -> Result<Vec<KeptManifest>, RegistryClientError> {
        let url = self.path(&format!("{KEPT}/{repository}"));
        json(self.send("ask why images are there", self.request(Method::GET, url)).await?).await
    }

    fn path(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(path);
        url
    }

    fn request(&self, method: Method, url: Url) -> RequestBuilder {
        self.http.request(method, url)
    }

    /// Sends a request without a body, or with a small one, and refuses a refusal. Where the registry wants to know
    /// who asks, it is told and asked once more.
    async fn send(
        &self,
        action: &'static str,
        request: RequestBuilder,
    ) -> Result<Response, RegistryClientError> {
        let built = request.build();
        let mut request = built.map_err(|source| RegistryClientError::Send { action, source })?;
        let again = request.try_clone();
        let shown = self.login.show(&mut request).await;
        let mut response = self.execute(action, request).await?;
        if let Some(mut again) = again
            && let Some(header) = self.login.learn(&shown, &response).await?
        {
            again.headers_mut().insert(AUTHORIZATION, header);
            response = self.execute(action, again).await?;
        }
        match is_good(response.status()) {
            true => Ok(response),
            false => Err(RegistryClientError::refused(action, response).await),
        }
    }

    async fn execute(
        &self,
        action: &'static str,
        request: Request,
    ) -> Result<Response, RegistryClientError> {
        match tokio::time::timeout(STALL, self.http.execute(request)).await {
            Err(_) => Err(RegistryClientError::Stalled { action }),
            Ok(sent) => sent.map_err(|source| {
                let source = without_query(source);
                RegistryClientError::Send { action, source }
            }),
        }
    }

    /// Where the registry says that an upload goes on.
    fn location(&self, response: &Response) -> Result<Url, RegistryClientError> {
        header(response.headers(), LOCATION.as_str())
            .and_then(|location| response.url().join(location).ok())
            .filter(|location| places::check(&self.base, location).is_ok())
            .ok_or(RegistryClientError::Answer("an upload without a Location that may be gone to"))
    }
}

impl Source for RegistryClient {
    fn manifest<'a>(
        &'a self,
        repository: &'a Repository,
        digest: &'a Digest,
    ) -> BoxFuture<'a, Result<FetchedManifest, SourceError>> {
        Box::pin(async move {
            let manifest = self.manifest(repository, &digest.to_string()).await?;
            Ok(FetchedManifest { media_type: manifest.media_type, bytes: manifest.bytes })
        })
    }

    fn blob<'a>(
        &'a self,
        repository: &'a Repository,
        digest: &'a Digest,
        part: Part,
    ) -> BoxFuture<'a, Result<Given, SourceError>> {
        Box::pin(async move {
            let opened = self.open_blob(repository, digest, part).await?;
            let bytes = opened.bytes.map_err(SourceError::from).boxed();
            Ok(if opened.is_whole { Given::Whole(bytes) } else { Given::Part(bytes) })
        })
    }

    fn converted<'a>(
        &'a self,
        repository: &'a Repository,
        manifest: &'a Digest,
    ) -> BoxFuture<'a, Result<Option<Bytes>, SourceError>> {
        Box::pin(async move { Ok(self.converted(repository, manifest).await?) })
    }
}

/// The bytes of a document that is no longer than a manifest may be.
async fn read_manifest(response: Response) -> Result<Bytes, RegistryClientError> {
    read_at_most(response, MAX_MANIFEST, "a manifest over 4 MiB").await
}

impl From<RegistryClientError> for SourceError {
    fn from(error: RegistryClientError) -> Self {
        let retry = match error.is_retryable() {
            true => Retry::CanHelp,
            false => Retry::Pointless,
        };
        Self::new("the registry", retry).caused_by(error)
    }
}

fn is_good(status: StatusCode) -> bool {
    status.is_success()
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// A body that fails when nothing comes for [`STALL`].
fn body(
    response: Response,
) -> impl futures_util::Stream<Item = Result<Bytes, RegistryClientError>> + Send + Unpin + 'static {
    const ACTION: &str = "read the answer";
    let bytes = Box::pin(response.bytes_stream());
    let parts = futures_util::stream::try_unfold(bytes, async |mut bytes| {
        match tokio::time::timeout(STALL, bytes.next()).await {
            Err(_) => Err(RegistryClientError::Stalled { action: ACTION }),
            Ok(None) => Ok(None),
            Ok(Some(Ok(part))) => Ok(Some((part, bytes))),
            Ok(Some(Err(source))) => {
                let source = without_query(source);
                Err(RegistryClientError::Send { action: ACTION, source })
            }
        }
    });
    Box::pin(parts)
}

async fn json<T: serde::de::DeserializeOwned>(
    response: Response,
) -> Result<T, RegistryClientError> {
    let bytes = read_at_most(response, MAX_LIST, "a list over 16 MiB").await?;
    serde_json::from_slice(&bytes).map_err(|_| RegistryClientError::Answer("a malformed list"))
}

/// The address in `Link: <...>; rel="next"`.
fn next_page(headers: &HeaderMap, here: &Url) -> Option<Url> {
    let link = header(headers, LINK.as_str())?;
    let (target, parameters) = link.strip_prefix('<')?.split_once('>')?;
    let is_next = parameters.contains("rel=\"next\"") || parameters.contains("rel=next");
    let next = here.join(target).ok().filter(|_| is_next)?;
    // A list goes on where it began, or not at all.
    (next.origin() == here.origin()).then_some(next)
}
