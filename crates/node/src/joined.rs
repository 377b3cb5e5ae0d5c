//! A node of another machine than its location's: how it joins, and as whom it speaks from then on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use http::Method;
use longshore_link::{CallError, Client, Endpoint, now, only};
use longshore_trust::{
    AuthorityError, CertificateRequest, Credentials, Identity, JoinRequest, JoinToken, Name,
    NewKey, Peer, Signed, client_config, joining_config,
};
use longshore_types::{LocationName, NodeName};

/// How often to look whether the certificate should be renewed.
const LOOK: Duration = Duration::from_secs(60);
/// The gate's path of what an ingress may ask for.
const CONNECT: &str = "/port-forward";

/// Why a node cannot join, or be one that has.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The file of its identity cannot be used.
    #[error("cannot use {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// There is no such file.
    #[error("this machine has not joined: there is no {0}")]
    NotJoined(PathBuf),
    /// The file is about another role.
    #[error("{path} is not about node {node}")]
    Another {
        /// Which file.
        path: PathBuf,
        /// Whom it should be about.
        node: NodeName,
    },
    /// The address of the location is none.
    #[error("the token is of no use: {0}")]
    Address(String),
    /// The location does not let it in, or cannot be asked.
    #[error(transparent)]
    Call(#[from] CallError),
    /// There is no key to be had.
    #[error(transparent)]
    Key(#[from] AuthorityError),
    /// What the location gave is of no use.
    #[error("the certificate is of no use")]
    Certificate(#[from] longshore_trust::TlsError),
}

/// Joins a location by a token: makes a key, has the location sign it, and keeps both in `file`.
///
/// # Errors
///
/// When the location cannot be reached or refuses, or the file cannot be written.
pub async fn join(token: &JoinToken, node: NodeName, file: &Path) -> Result<(), JoinError> {
    let endpoint = Endpoint::Tls(token.address.clone());
    let endpoint: Endpoint = endpoint.to_string().parse().map_err(JoinError::Address)?;
    let name = Name::Location(token.location.clone());
    let location = Client::secured(endpoint, joining_config(token.root)?, name);
    let key = NewKey::generate()?;
    let request =
        JoinRequest { secret: token.secret.clone(), node: node.clone(), key: key.public() };
    let signed: Signed = location.call(Method::POST, "/join", Some(&request)).await?;
    let failed = |source| JoinError::File { path: file.to_owned(), source };
    let identity = key.signed(&signed, now()).map_err(failed)?;
    Credentials::new(&identity)?;
    identity.save(file).map_err(failed)
}

/// What a node has by having joined.
pub struct Joined {
    node: NodeName,
    location: LocationName,
    file: PathBuf,
    credentials: Credentials,
    client: Client,
}

impl Joined {
    /// What is kept in `file`, for speaking to the location at `endpoint`.
    pub fn open(node: NodeName, file: PathBuf, endpoint: Endpoint) -> Result<Self, JoinError> {
        let identity = load(&file)?;
        let location = match identity.name() {
            Some(Name::Node(location, named)) if named == node => location,
            _ => return Err(JoinError::Another { path: file, node }),
        };
        let credentials = Credentials::new(&identity)?;
        let name = Name::Location(location.clone());
        let client = Client::secured(endpoint, client_config(&credentials)?, name);
        Ok(Self { node, location, file, credentials, client })
    }

    /// Speaks to the location as this node.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// What is shown to who connects.
    pub fn credentials(&self) -> Credentials {
        self.credentials.clone()
    }

    /// Keeps the certificate good.
    pub async fn keep(self: Arc<Self>) {
        loop {
            if let Err(error) = self.renew_when_due().await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "the certificate is not renewed");
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn renew_when_due(&self) -> Result<(), JoinError> {
        let identity = load(&self.file)?;
        if !identity.is_due(now()) {
            return Ok(());
        }
        let request = CertificateRequest { key: identity.public_key()? };
        let path = format!("/link/nodes/{}/certificate", self.node);
        let signed: Signed = self.client.call(Method::POST, &path, Some(&request)).await?;
        let failed = |source| JoinError::File { path: self.file.clone(), source };
        let renewed = identity.renewed(&signed, now()).map_err(failed)?;
        self.credentials.replace(&renewed)?;
        renewed.save(&self.file).map_err(failed)
    }

    /// The gate, for those alone whom it is for: the location, and its ingresses as far as they connect to
    /// instances.
    pub fn guard(self: &Arc<Self>, gate: Router) -> Router {
        gate.route_layer(from_fn_with_state(Arc::clone(self), only_the_location))
    }
}

fn load(file: &Path) -> Result<Identity, JoinError> {
    let loaded = Identity::load(file);
    let loaded = loaded.map_err(|source| JoinError::File { path: file.to_owned(), source })?;
    loaded.ok_or_else(|| JoinError::NotJoined(file.to_owned()))
}

async fn only_the_location(
    State(joined): State<Arc<Joined>>,
    axum::Extension(peer): axum::Extension<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let may = match peer.name() {
        Some(Name::Location(location)) => *location == joined.location,
        Some(Name::Ingress(location)) => {
            *location == joined.location && request.uri().path().ends_with(CONNECT)
        }
        Some(Name::Global | Name::Registry | Name::Node(..)) | None => false,
    };
    only(may, peer, request, next).await
}
