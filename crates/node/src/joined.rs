//! A node of another machine than its location's: how it joins, and as whom it speaks from then on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::{Extension, Router};
use futures_util::future::BoxFuture;
use http::Method;
use longshore_link::{
    CallError, Client, Endpoint, JoinError, KeptIdentity, Service, Tunnel, be_called,
    expired_config, joined_identity, only,
};
use longshore_trust::{
    CertificateRequest, Credentials, JoinRequest, JoinToken, Name, Peer, Signed, client_config,
};
use longshore_types::{LocationName, NodeName};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long to wait after an ingress let no connection be opened: requests come through the location meanwhile.
const OPEN_AGAIN: Duration = Duration::from_secs(2);
/// The gate's path of what an ingress may ask for.
const CONNECT: &str = "/port-forward";

/// Joins `location` by a token for that: makes a key, has the location sign it, and keeps both in `file`.
///
/// # Errors
///
/// When the location cannot be reached or refuses, or the file cannot be written.
pub async fn join(
    token: &JoinToken,
    (location, node): (LocationName, NodeName),
    file: &Path,
) -> Result<(), JoinError> {
    let server = (Name::Location(location), "/join");
    longshore_link::join(token, server, file, |key| JoinRequest {
        secret: token.secret.clone(),
        node,
        key,
    })
    .await
}

/// What a node has by having joined.
pub struct Joined {
    node: NodeName,
    location: LocationName,
    identity: KeptIdentity,
    client: Client,
    /// The same, showing nothing.
    bare: Client,
}

impl Joined {
    /// What is kept in `file`, for speaking to the location at `endpoint`.
    pub fn open(node: NodeName, file: PathBuf, endpoint: Endpoint) -> Result<Self, JoinError> {
        let identity = joined_identity(&file)?;
        let location = match identity.name() {
            Some(Name::Node(location, named)) if named == node => location,
            _ => {
                let name = format!("node {node}");
                return Err(JoinError::Another { path: file, name });
            }
        };
        let kept = KeptIdentity::new(file, &identity)?;
        let name = Name::Location(location.clone());
        let client =
            Client::secured(endpoint.clone(), client_config(kept.credentials())?, name.clone());
        let bare = Client::secured(endpoint, expired_config(&identity)?, name);
        Ok(Self { node, location, identity: kept, client, bare })
    }

    /// Speaks to the location as this node.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// What is shown to who connects.
    pub fn credentials(&self) -> Credentials {
        self.identity.credentials().clone()
    }

    /// Keeps the certificate good. Never ends.
    pub async fn keep(self: Arc<Self>) {
        let this = &self;
        let ask = |request, expired| async move {
            let (client, path) = match expired {
                false => (&this.client, format!("/link/nodes/{}/certificate", this.node)),
                // Nobody lets in who shows this.
                true => (&this.bare, format!("/renew/{}", this.node)),
            };
            client.call::<CertificateRequest, Signed>(Method::POST, &path, Some(&request)).await
        };
        self.identity.keep(ask).await;
    }

    /// Keeps connections open over which the gate is called, by the location and by its ingresses.
    pub fn dial_out(
        self: &Arc<Self>,
        gate: &Router,
        ingresses: watch::Receiver<Vec<String>>,
        service: &Service,
    ) {
        let called = Arc::clone(self).be_called(gate.clone(), service.shutdown());
        service.spawn("calls", called);
        let reached = Arc::clone(self).be_reached(gate.clone(), ingresses, service.shutdown());
        service.spawn("requests", reached);
    }

    /// Keeps connections open over which the location calls the gate, wherever this machine is.
    async fn be_called(
        self: Arc<Self>,
        gate: Router,
        shutdown: CancellationToken,
    ) -> std::io::Result<()> {
        let location = Peer::Dialled(Name::Location(self.location.clone()));
        let open = move || {
            let joined = Arc::clone(&self);
            async move { joined.client.tunnel(&format!("/link/nodes/{}/reverse", joined.node)).await }
        };
        be_called(open, gate.layer(Extension(location)), shutdown).await
    }

    /// Keeps connections open to the ingresses of the location, over which requests for instances come where the gate
    /// cannot be dialled. Whether it can, the location finds out; one connection that nobody needs costs nothing.
    async fn be_reached(
        self: Arc<Self>,
        gate: Router,
        mut ingresses: watch::Receiver<Vec<String>>,
        shutdown: CancellationToken,
    ) -> std::io::Result<()> {
        let name = Name::Ingress(self.location.clone());
        let gate = gate.layer(Extension(Peer::Dialled(name.clone())));
        let mut open = JoinSet::new();
        while !shutdown.is_cancelled() {
            let until = shutdown.child_token();
            for address in ingresses.borrow_and_update().iter() {
                let endpoint = Endpoint::Tls(address.clone());
                let config =
                    client_config(self.identity.credentials()).map_err(std::io::Error::other)?;
                let ingress = Client::secured(endpoint, config, name.clone());
                open.spawn(be_called(opening(ingress), gate.clone(), until.clone()));
            }
            // The sender lives as long as the agent.
            let _ = shutdown.run_until_cancelled(ingresses.changed()).await;
            until.cancel();
            while open.try_join_next().is_some() {}
        }
        while open.join_next().await.is_some() {}
        Ok(())
    }

    /// The gate, for those alone whom it is for: the location, and its ingresses as far as they connect to
    /// instances.
    pub fn guard(self: &Arc<Self>, gate: Router) -> Router {
        gate.route_layer(from_fn_with_state(Arc::clone(self), only_the_location))
    }
}

/// Opens connections to an ingress, not too often where that does not work.
fn opening(ingress: Client) -> impl Fn() -> BoxFuture<'static, Result<Tunnel, CallError>> {
    move || {
        let ingress = ingress.clone();
        Box::pin(async move {
            let opened = ingress.tunnel("/link/reverse").await;
            if opened.is_err() {
                tokio::time::sleep(OPEN_AGAIN).await;
            }
            opened
        })
    }
}

async fn only_the_location(
    State(joined): State<Arc<Joined>>,
    Extension(peer): Extension<Peer>,
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
