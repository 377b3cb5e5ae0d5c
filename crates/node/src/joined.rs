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
/// What other nodes may ask for.
const LAYERS: &str = "/layers/";

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

    /// The name of this node.
    pub fn node(&self) -> &NodeName {
        &self.node
    }

    /// Speaks to another node of the location as this one.
    pub fn neighbour(&self, node: &NodeName, gate: Endpoint) -> Result<Client, JoinError> {
        let name = Name::Node(self.location.clone(), node.clone());
        Ok(Client::secured(gate, client_config(self.identity.credentials())?, name))
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

    /// The gate, for those alone whom it is for: the location, its ingresses as far as they connect to instances,
    /// and its nodes as far as they ask for layers.
    pub fn guard(self: &Arc<Self>, gate: Router) -> Router {
        gate.route_layer(from_fn_with_state(Arc::clone(self), only_whom_it_is_for))
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

async fn only_whom_it_is_for(
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
        Some(Name::Node(location, _)) => {
            *location == joined.location && request.uri().path().starts_with(LAYERS)
        }
        Some(Name::Global | Name::Registry) | None => false,
    };
    only(may, peer, request, next).await
}

#[cfg(test)]
pub mod tests {
    use axum::routing::get;
    use longshore_api::ProblemCode;
    use longshore_link::{Listener, now};
    use longshore_trust::{Fingerprint, LocationAuthority, NewKey, RootAuthority};

    use super::*;

    pub fn ams() -> LocationName {
        "ams".parse().unwrap()
    }

    /// The authority of a location `ams`.
    pub fn authority(dir: &Path) -> LocationAuthority {
        let root = RootAuthority::open(&dir.join("root.json"), now()).unwrap();
        let key = NewKey::generate().unwrap();
        let signed = root.sign_location(&ams(), &key.public(), now()).unwrap();
        LocationAuthority::new(ams(), &key.signed(&signed, now()).unwrap()).unwrap()
    }

    /// Its node `n1`, which finds it there.
    pub fn joined(dir: &Path, authority: &LocationAuthority, at: Endpoint) -> Arc<Joined> {
        let n1: NodeName = "n1".parse().unwrap();
        let identity = authority.identify(&Name::Node(ams(), n1.clone()), now()).unwrap();
        let file = dir.join("identity.json");
        identity.save(&file).unwrap();
        Arc::new(Joined::open(n1, file, at).unwrap())
    }

    #[tokio::test]
    async fn the_gate_gives_nodes_layers_alone_and_those_of_its_location_alone() {
        let dir = tempfile::tempdir().unwrap();
        let nowhere = Endpoint::Tls("127.0.0.1:1".to_owned());
        let joined = joined(dir.path(), &authority(dir.path()), nowhere);
        let answer = get(|| async { axum::Json(()) });
        let gate = Router::new()
            .route("/layers/{layer}/frames/{frame}", answer.clone())
            .route("/images", answer.clone())
            .route("/instances/{instance}/port-forward", answer);
        let gate = joined.guard(gate);
        let location = |name: &str| name.parse::<LocationName>().unwrap();
        let n2 = || "n2".parse().unwrap();
        let known = |name| Peer::Known { name, key: Fingerprint::of(b"key"), authority: None };
        let paths = ["/layers/l/frames/0", "/images", "/instances/layers/port-forward"];
        for (nth, (peer, expected)) in [
            (known(Name::Location(location("ams"))), [true, true, true]),
            (known(Name::Ingress(location("ams"))), [false, false, true]),
            (known(Name::Node(location("ams"), n2())), [true, false, false]),
            (known(Name::Node(location("sin"), n2())), [false, false, false]),
            (known(Name::Location(location("sin"))), [false, false, false]),
            (known(Name::Registry), [false, false, false]),
            (known(Name::Global), [false, false, false]),
            (Peer::Stranger, [false, false, false]),
        ]
        .into_iter()
        .enumerate()
        {
            let at = Endpoint::Unix(dir.path().join(format!("gate-{nth}.sock")));
            let listener = Listener::bind("gate", &at).unwrap();
            let router = gate.clone().layer(Extension(peer.clone()));
            let end = CancellationToken::new();
            tokio::spawn(listener.serve(router, end.clone()));
            let client = Client::new(at);
            for (path, may) in paths.into_iter().zip(expected) {
                match client.get::<()>(path).await {
                    Ok(()) => assert!(may, "{peer:?} {path}"),
                    Err(CallError::Refused(problem)) => {
                        assert_eq!((problem.code, may), (ProblemCode::Forbidden, false));
                    }
                    Err(error) => panic!("{peer:?} {path}: {error}"),
                }
            }
            end.cancel();
        }
    }
}
