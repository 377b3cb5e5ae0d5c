//! Nodes that cannot be dialled, reached over connections that they keep open to the ingress.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::Query;
use axum::routing::get;
use http::{Method, StatusCode};
use longshore_api::links::{Endpoint, Reach, RoutingTable};
use longshore_link::{CallError, Client, Listener, Service, Upgrade, be_called, now};
use longshore_trust::{Credentials, Identity, LocationAuthority, Name, client_config};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::elsewhere::{OK, World, location};
use super::played::*;
use crate::IngressOptions;

/// A location with its ingress, which reaches nodes as a real one does.
struct Here {
    authority: Arc<LocationAuthority>,
    location: Option<Location>,
    user_at: SocketAddr,
    door: String,
    _dir: tempfile::TempDir,
    _end: tokio_util::sync::DropGuard,
}

#[derive(Deserialize)]
struct Port {
    port: u16,
}

impl Here {
    async fn start(world: &World) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Arc::new(world.authority("here"));
        let location = Location::start_with(dir.path(), Some(Arc::clone(&authority)));
        let bind = |name: &str, endpoint| Listener::bind(name, &endpoint).unwrap();
        let any = || "127.0.0.1:0".to_owned();
        let listener = bind("ingress", longshore_link::Endpoint::Tcp(any()));
        let peers = bind("peers", longshore_link::Endpoint::Tls(any()));
        let user_at = listener.endpoint().unwrap().authority().parse().unwrap();
        let door = peers.endpoint().unwrap().authority().to_owned();
        let options = IngressOptions {
            listener,
            peers: Some(peers),
            location: longshore_link::Endpoint::Unix(dir.path().join("location.sock")),
            state_dir: dir.path().join("state"),
            metrics: None,
            secure: None,
        };
        let end = CancellationToken::new();
        tokio::spawn(crate::run(options, end.clone()));
        let _end = end.drop_guard();
        Self { authority, location: Some(location), user_at, door, _dir: dir, _end }
    }

    fn node(&self, name: &str) -> Identity {
        let name = Name::Node(location("here"), name.parse().unwrap());
        self.authority.identify(&name, now()).unwrap()
    }

    /// The door, for who shows this.
    fn at_the_door(&self, identity: &Identity) -> Client {
        let config = client_config(&Credentials::new(identity).unwrap()).unwrap();
        let at = longshore_link::Endpoint::Tls(self.door.clone());
        Client::secured(at, config, Name::Ingress(location("here")))
    }

    /// Says of nodes by which keys they are known, and that `n2` has an instance.
    async fn tell(&self, revision: u64, instance: &Instance, known: &[(&str, &Identity)]) {
        let key = |identity: &Identity| identity.public_key().unwrap().fingerprint().to_string();
        let nodes = known.iter().map(|(name, identity)| (name.parse().unwrap(), key(identity)));
        let endpoint = Endpoint {
            node: "n2".parse().unwrap(),
            reach: Reach::Location,
            ..instance.endpoint.clone()
        };
        let nodes: BTreeMap<_, _> = nodes.collect();
        let table = RoutingTable { nodes, ..table(revision, &[&endpoint]) };
        self.location.as_ref().unwrap().give_table_and_wait(table).await;
    }

    async fn get(&self) -> StatusCode {
        let mut client = client(self.user_at).await;
        let answer = client.send_request(request(HOST, "/")).await.unwrap();
        let status = answer.status();
        let told = text(answer).await;
        assert!(status != OK || told == "from behind", "{told}");
        status
    }

    async fn answers(&self, wanted: StatusCode) {
        let asking = async {
            while self.get().await != wanted {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        in_time(wanted.as_str(), asking).await;
    }
}

/// Keeps connections open as a node, over which its instances are reached.
fn keeps_open(door: Client) -> CancellationToken {
    let end = CancellationToken::new();
    let service = Service::new(end.clone());
    let gate = get(move |Query(Port { port }): Query<Port>, upgrade: Upgrade| async move {
        upgrade.tunnel(&service, "port", move |mut tunnel| async move {
            let mut instance = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut tunnel, &mut instance).await;
        })
    });
    let gate = Router::new().route("/instances/{instance}/port-forward", gate);
    let open = move || {
        let door = door.clone();
        async move { door.tunnel("/link/reverse").await }
    };
    tokio::spawn(be_called(open, gate, end.clone()));
    end
}

#[tokio::test]
async fn a_node_that_cannot_be_dialled_is_reached_over_what_it_opened_and_without_its_location() {
    let (world, instance) = (World::new(), Instance::saying("from behind").await);
    let mut here = Here::start(&world).await;
    let node = here.node("n2");
    here.tell(1, &instance, &[("n2", &node)]).await;
    let end = keeps_open(here.at_the_door(&node));
    here.answers(OK).await;
    drop(here.location.take());
    let asking = (0..20).map(|_| here.get());
    assert!(futures_util::future::join_all(asking).await.iter().all(|status| *status == OK));
    // Started anew it is reached again.
    end.cancel();
    let _end = keeps_open(here.at_the_door(&node));
    here.answers(OK).await;
}

#[tokio::test]
async fn a_node_opens_connections_for_itself_and_for_as_long_as_it_is_one() {
    let (world, instance) = (World::new(), Instance::saying("from behind").await);
    let here = Here::start(&world).await;
    let (node, other) = (here.node("n2"), here.node("n3"));
    here.tell(1, &instance, &[("n2", &node)]).await;
    // The same name with another key, a node that is not known, one of another location, and no node.
    let elsewhere = {
        let name = Name::Node(location("there"), "n2".parse().unwrap());
        world.authority("there").identify(&name, now()).unwrap()
    };
    let scheduler = here.authority.identify(&Name::Location(location("here")), now()).unwrap();
    for stranger in [&here.node("n2"), &other, &elsewhere, &scheduler] {
        let opened = in_time("a refusal", here.at_the_door(stranger).tunnel("/link/reverse")).await;
        assert!(matches!(opened, Err(CallError::Unreachable { .. })), "{opened:?}");
    }
    // It has nothing else to ask there, and gets no app.
    let door = here.at_the_door(&node);
    let asked = door.send(Method::GET, "/", None::<&()>).await;
    assert!(matches!(asked, Err(CallError::Status { status: 404, .. })), "{asked:?}");
    let asked = door.tunnel("/to/there").await;
    assert!(matches!(asked, Err(CallError::Status { status: 404, .. })), "{asked:?}");

    let _end = keeps_open(door.clone());
    here.answers(OK).await;
    // Removed, it is nobody: neither by what it opens nor by what it had opened. (To another instance, for requests go
    // on over a connection to the first for as long as its location names that.)
    let second = Instance::saying("from behind").await;
    here.tell(2, &second, &[("n2", &node)]).await;
    here.answers(OK).await;
    let third = Instance::saying("from behind").await;
    here.tell(3, &third, &[]).await;
    assert_eq!(here.get().await, StatusCode::BAD_GATEWAY);
    let opened = in_time("a refusal", here.at_the_door(&node).tunnel("/link/reverse")).await;
    assert!(matches!(opened, Err(CallError::Unreachable { .. })), "{opened:?}");
}
