//! Nodes of other machines: how they are let in, and what each may then do and not do.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Path as Segment;
use axum::response::IntoResponse as _;
use axum::routing::{get, post};
use futures_util::StreamExt as _;
use http::{Method, StatusCode};
use longshore_api::links::{
    AllotmentSet, AssignmentSet, HoldsRequest, ImageHolds, InstanceSecretsRequest, RoutingTable,
    SecretValues,
};
use longshore_api::{Problem, ProblemCode};
use longshore_link::{Body, CallError, Client, Endpoint, Listener, Refusal, Service, Upgrade, now};
use longshore_location::{Joining, JoiningOptions};
use longshore_trust::{
    CertificateRequest, Credentials, Fingerprint, Identity, JoinRequest, LocationAuthority, Name,
    NewKey, RedeemRequest, RootAuthority, Signed, client_config, joining_config,
};
use longshore_types::{Cordon, Digest, Timestamp};
use serde_json::{Value, json};
use sha2::Digest as _;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use crate::{World, report, set, until};

/// A location that nodes may join, at an address.
pub struct Scene {
    pub dir: TempDir,
    pub world: World,
    pub root: Arc<RootAuthority>,
    pub address: String,
    registry: CancellationToken,
}

/// The secrets of the only tokens, each of which is good once.
pub const SECRET: &str = "good once";
pub const OTHER_SECRET: &str = "good once, too";

/// What the registry has: a manifest with one layer, and another image.
pub fn registry(layer: &'static [u8]) -> (Router, Digest, Digest) {
    let digest = |bytes: &[u8]| Digest::from_sha256(sha2::Sha256::digest(bytes).into());
    let of_layer = digest(layer);
    let manifest = json!({"layers": [{"digest": of_layer.to_string()}]}).to_string();
    let of_manifest = digest(manifest.as_bytes());
    let mut held = BTreeMap::new();
    for (name, bytes) in [
        (format!("manifests/{of_manifest}"), manifest.into_bytes()),
        (format!("blobs/{of_layer}"), layer.to_vec()),
        (format!("blobs/{}", digest(b"of others")), b"of others".to_vec()),
        (format!("blobs/{}", digest(b"converted")), b"converted".to_vec()),
    ] {
        held.insert(name, bytes);
    }
    let held = Arc::new(held);
    let give = get(move |Segment((kind, digest)): Segment<(String, String)>| async move {
        match held.get(&format!("{kind}/{digest}")) {
            Some(bytes) => bytes.clone().into_response(),
            None => StatusCode::NOT_FOUND.into_response(),
        }
    });
    (Router::new().route("/v2/default/web/{kind}/{digest}", give), of_manifest, of_layer)
}

/// The part of the global plane that lets machines join.
pub fn global(root: &Arc<RootAuthority>) -> Router {
    let root = Arc::clone(root);
    let authority = post(move |Body(CertificateRequest { key }): Body<_>| async move {
        axum::Json(root.sign_location(&"ams".parse().unwrap(), &key, now()).unwrap())
    });
    let good = [SECRET, OTHER_SECRET].map(|secret| Fingerprint::of(secret.as_bytes()));
    let left = Arc::new(Mutex::new(Vec::from(good)));
    let redeem = post(move |Body(RedeemRequest { secret, .. }): Body<_>| async move {
        let mut left = left.lock().unwrap();
        match left.iter().position(|good| *good == secret) {
            Some(idx) => {
                left.remove(idx);
                Ok(axum::Json(()))
            }
            None => Err(Refusal(Problem::new(ProblemCode::Forbidden, "this token is of no use"))),
        }
    });
    Router::new()
        .route("/link/locations/ams/authority", authority)
        .route("/link/locations/ams/join-tokens", redeem)
}

impl Scene {
    pub async fn start(registry: Router) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = Arc::new(RootAuthority::open(&dir.path().join("root.json"), now()).unwrap());
        let shutdown = CancellationToken::new();
        let registry_at = Endpoint::Unix(dir.path().join("registry.sock"));
        let listener = Listener::bind("registry", &registry_at).unwrap();
        tokio::spawn(listener.serve(registry, shutdown.clone()));
        let (world, address) = Self::location(dir.path(), &root).await;
        let scene = Self { dir, world, root, address, registry: shutdown };
        scene.listens().await;
        scene
    }

    /// A location has its authority a moment after it was started.
    pub async fn listens(&self) {
        let ready = async {
            let stranger = self.stranger();
            while matches!(
                stranger.get::<Value>("/link/routes").await,
                Err(CallError::Unreachable { .. })
            ) {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), ready).await.unwrap();
    }

    pub async fn location(dir: &Path, root: &Arc<RootAuthority>) -> (World, String) {
        let any = Endpoint::Tls("127.0.0.1:0".to_owned());
        let listener = Listener::bind("nodes", &any).unwrap();
        let address = listener.endpoint().unwrap().authority().to_owned();
        let joining = JoiningOptions {
            joining: Joining { listener, advertised: address.clone() },
            ingress: Some("192.0.2.9:4606".to_owned()),
        };
        (World::start_with(dir, Some(joining), global(root)).await, address)
    }

    fn at(&self, config: Arc<rustls::ClientConfig>) -> Client {
        let ams = Name::Location("ams".parse().unwrap());
        Client::secured(Endpoint::Tls(self.address.clone()), config, ams)
    }

    /// Who has nothing but the fingerprint of the root.
    fn stranger(&self) -> Client {
        self.at(joining_config(Fingerprint::of(self.root.certificate())).unwrap())
    }

    /// Who shows a certificate.
    pub fn with(&self, identity: &Identity) -> Client {
        self.at(client_config(&Credentials::new(identity).unwrap()).unwrap())
    }

    pub async fn join(&self, node: &str, secret: &str) -> Result<Identity, CallError> {
        let key = NewKey::generate().unwrap();
        let request = JoinRequest {
            secret: secret.to_owned().into(),
            node: node.parse().unwrap(),
            key: key.public(),
        };
        let signed: Signed = self.stranger().call(Method::POST, "/join", Some(&request)).await?;
        Ok(key.signed(&signed, now()).unwrap())
    }

    /// An authority as a location `name` of this world would have it.
    fn authority(&self, name: &str) -> LocationAuthority {
        let key = NewKey::generate().unwrap();
        let signed = self.root.sign_location(&name.parse().unwrap(), &key.public(), now()).unwrap();
        LocationAuthority::new(name.parse().unwrap(), &key.signed(&signed, now()).unwrap()).unwrap()
    }

    pub async fn end(self) {
        self.registry.cancel();
        self.world.stop().await;
        drop(self.dir);
    }
}

pub fn refused<T: std::fmt::Debug>(outcome: Result<T, CallError>, code: ProblemCode) -> String {
    match outcome {
        Err(CallError::Refused(problem)) if problem.code == code => problem.detail,
        other => panic!("{other:?}"),
    }
}

async fn says(client: &Client, node: &str, gate: &str) -> Result<(), CallError> {
    let path = format!("/link/nodes/{node}/report");
    client.call(Method::POST, &path, Some(&report(node, gate, &[]))).await
}

#[tokio::test]
async fn a_token_lets_one_node_in_once_and_under_a_name_of_its_own() {
    let scene = Scene::start(Router::new()).await;
    scene.world.node_says(&[]).await;
    // Settled, the location knows its own node.
    let mut sets = scene.world.watch::<AssignmentSet>("/link/nodes/n1/assignments").await;
    until(&mut sets, |_| true).await;
    refused(scene.join("n2", "guessed").await, ProblemCode::Forbidden);
    let taken = refused(scene.join("n1", SECRET).await, ProblemCode::Conflict);
    assert!(taken.contains("--name"), "{taken}");
    let much = json!({"secret": SECRET, "node": "n2", "key": "x".repeat(100_000)});
    let too_large = scene.stranger().call::<_, Signed>(Method::POST, "/join", Some(&much)).await;
    refused(too_large, ProblemCode::TooLarge);
    // The refusals have cost the token nothing.
    let identity = scene.join("n2", SECRET).await.unwrap();
    says(&scene.with(&identity), "n2", "https://192.0.2.1:1").await.unwrap();
    refused(scene.join("n3", SECRET).await, ProblemCode::Forbidden);
    refused(scene.join("n2", SECRET).await, ProblemCode::Conflict);
    scene.end().await;
}

#[tokio::test]
async fn a_node_speaks_for_itself_and_for_nobody_else() {
    let scene = Scene::start(Router::new()).await;
    let identity = scene.join("n2", SECRET).await.unwrap();
    let node = scene.with(&identity);
    let gate = "https://192.0.2.1:1";
    says(&node, "n2", gate).await.unwrap();
    // Another node's links, the ingress's and the global plane's.
    refused(says(&node, "n1", gate).await, ProblemCode::Forbidden);
    for path in
        ["/link/nodes/n1/assignments", "/link/routes", "/gate/nodes/n1/instances/web-00000000/logs"]
    {
        refused(node.get::<Value>(path).await, ProblemCode::Forbidden);
    }
    let stop = json!({"instance": "web-00000000"});
    let stopped = node.call::<_, Value>(Method::POST, "/gate/stop", Some(&stop)).await;
    refused(stopped, ProblemCode::Forbidden);
    let request = InstanceSecretsRequest { instance: "web-00000000".parse().unwrap() };
    let secrets: Result<SecretValues, _> =
        node.call(Method::POST, "/link/nodes/n2/secrets", Some(&request)).await;
    refused(secrets, ProblemCode::Forbidden);
    let asked = HoldsRequest::default();
    let others: Result<ImageHolds, _> =
        node.call(Method::POST, "/link/nodes/n1/images/holds", Some(&asked)).await;
    refused(others, ProblemCode::Forbidden);
    // A gate through which this location would speak to another is none.
    for gate in ["unix:/run/global.sock", "http://127.0.0.1:80", "nonsense"] {
        refused(says(&node, "n2", gate).await, ProblemCode::InvalidRequest);
    }
    // Nor does anyone of this machine speak for a node of another.
    refused(says(&scene.world.location, "n2", gate).await, ProblemCode::Forbidden);
    scene.end().await;
}

#[tokio::test]
async fn what_did_not_join_is_no_node_whatever_it_shows() {
    let scene = Scene::start(Router::new()).await;
    let n2 = Name::Node("ams".parse().unwrap(), "n2".parse().unwrap());
    let gate = "https://192.0.2.1:1";
    refused(says(&scene.stranger(), "n2", gate).await, ProblemCode::Forbidden);
    // Signed as it should be, by an authority of this very location, and never let in.
    let signed = scene.authority("ams").identify(&n2, now()).unwrap();
    refused(says(&scene.with(&signed), "n2", gate).await, ProblemCode::Forbidden);
    scene.join("n2", SECRET).await.unwrap();
    refused(says(&scene.with(&signed), "n2", gate).await, ProblemCode::Forbidden);
    // A node of another location with the same name.
    let elsewhere = Name::Node("sin".parse().unwrap(), "n2".parse().unwrap());
    let elsewhere = scene.authority("sin").identify(&elsewhere, now()).unwrap();
    refused(says(&scene.with(&elsewhere), "n2", gate).await, ProblemCode::Forbidden);
    scene.end().await;
}

#[tokio::test]
async fn a_node_is_named_anew_with_its_own_key_and_survives_a_restart_of_the_location() {
    let mut scene = Scene::start(Router::new()).await;
    let identity = scene.join("n2", SECRET).await.unwrap();
    let path = "/link/nodes/n2/certificate";
    let ask = |key| CertificateRequest { key };
    let other = ask(NewKey::generate().unwrap().public());
    let refusal = scene.with(&identity).call::<_, Signed>(Method::POST, path, Some(&other)).await;
    refused(refusal, ProblemCode::Forbidden);
    scene.world.stop().await;
    (scene.world, scene.address) = Scene::location(scene.dir.path(), &scene.root).await;
    scene.listens().await;
    // What follows is between the two alone.
    scene.world.lose_global().await;
    let own = ask(identity.public_key().unwrap());
    let signed = loop {
        match scene.with(&identity).call::<_, Signed>(Method::POST, path, Some(&own)).await {
            Err(CallError::Unreachable { .. }) => {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            other => break other.unwrap(),
        }
    };
    let renewed = identity.renewed(&signed, now()).unwrap();
    says(&scene.with(&renewed), "n2", "https://192.0.2.1:1").await.unwrap();
    // With a certificate that has expired nobody is let in; it asks without, and with its own key alone.
    let bare = async |node: &str, request| {
        let path = format!("/renew/{node}");
        scene.stranger().call::<_, Signed>(Method::POST, &path, Some(request)).await
    };
    refused(bare("n2", &other).await, ProblemCode::Forbidden);
    refused(bare("n3", &own).await, ProblemCode::Forbidden);
    let signed = bare("n2", &own).await.unwrap();
    let renewed = identity.renewed(&signed, now()).unwrap();
    says(&scene.with(&renewed), "n2", "https://192.0.2.1:1").await.unwrap();
    scene.end().await;
}

#[tokio::test]
async fn a_node_has_the_images_of_its_assignments_and_no_others() {
    let (registry, image, layer) = registry(b"the layer");
    let scene = Scene::start(registry).await;
    let node = scene.with(&scene.join("n2", SECRET).await.unwrap());
    let ask = async |what: &str, digest: &Digest| {
        let path = format!("/link/nodes/n2/images/{what}?repository=default/web&digest={digest}");
        let answer = node.send(Method::GET, &path, None::<&()>).await?;
        let bytes = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap();
        Ok::<_, CallError>(bytes.to_bytes())
    };
    refused(ask("manifest", &image).await, ProblemCode::Forbidden);
    refused(ask("blob", &layer).await, ProblemCode::Forbidden);
    // Once an instance of it is assigned to the node.
    says(&node, "n2", "https://192.0.2.1:1").await.unwrap();
    let mut wanted = set(5, 1);
    let allotment = &mut Arc::make_mut(&mut wanted).allotments[0];
    Arc::make_mut(&mut allotment.release).image_digest = image;
    scene.world.allot.send_replace(wanted);
    let mut sets = node.watch::<AssignmentSet>("/link/nodes/n2/assignments").await.unwrap();
    until(&mut sets, |set| set.assignments.len() == 1).await;
    assert!(ask("manifest", &image).await.unwrap().starts_with(b"{\"layers\""));
    assert_eq!(ask("blob", &layer).await.unwrap(), "the layer");
    let other = Digest::from_sha256(sha2::Sha256::digest(b"of others").into());
    refused(ask("blob", &other).await, ProblemCode::Forbidden);
    refused(ask("manifest", &layer).await, ProblemCode::Forbidden);
    scene.end().await;
}

#[tokio::test]
async fn a_node_that_was_removed_is_nobody_until_an_operator_lets_it_join_again() {
    let scene = Scene::start(Router::new()).await;
    let identity = scene.join("n2", SECRET).await.unwrap();
    let node = scene.with(&identity);
    let gate = "https://192.0.2.1:1";
    says(&node, "n2", gate).await.unwrap();
    scene.world.allot.send_replace(set(5, 1));
    let path = "/link/nodes/n2/assignments";
    let mut sets = node.watch::<AssignmentSet>(path).await.unwrap();
    let first = until(&mut sets, |set| set.assignments.len() == 1).await;
    // It hears where ingresses are, and they by which key it is known that opens connections to them.
    assert_eq!(first.ingresses, ["192.0.2.9:4606"]);
    let mut tables = scene.world.watch::<RoutingTable>("/link/routes").await;
    let key = identity.public_key().unwrap().fingerprint().to_string();
    let nodes = BTreeMap::from([("n2".parse().unwrap(), key)]);
    until(&mut tables, |table| table.nodes == nodes).await;
    let cordon = Cordon { since: Timestamp(0), by: None, drains: true, removed: true };
    let wished = |generation, cordons| {
        Arc::new(AllotmentSet { cordons, ..AllotmentSet::clone(&set(generation, 1)) })
    };
    scene.world.allot.send_replace(wished(6, BTreeMap::from([("n2".parse().unwrap(), cordon)])));
    until(&mut sets, |set| set.assignments.is_empty()).await;
    refused(says(&node, "n2", gate).await, ProblemCode::Forbidden);
    // It has heard what it has to hear; from then on its certificate opens nothing.
    while sets.next().await.is_some() {}
    until(&mut tables, |table| table.nodes.is_empty()).await;
    refused(node.get::<Value>(path).await, ProblemCode::Forbidden);
    let again = refused(scene.join("n2", SECRET).await, ProblemCode::Forbidden);
    assert!(again.contains("longshore uncordon n2 --location ams"), "{again}");
    scene.world.allot.send_replace(wished(7, BTreeMap::new()));
    let may_join = async {
        // The only token is spent, so the next refusal is that.
        while refused(scene.join("n2", SECRET).await, ProblemCode::Forbidden) == again {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), may_join).await.unwrap();
    refused(says(&node, "n2", gate).await, ProblemCode::Forbidden);
    scene.end().await;
}

/// Keeps connections open as node `n2`, and answers by a word.
fn be_called(node: Client, word: &'static str) -> CancellationToken {
    let end = CancellationToken::new();
    let service = Service::new(end.clone());
    let echo = get(move |upgrade: Upgrade| async move {
        upgrade.tunnel(&service, "echo", |tunnel| async {
            let (mut reads, mut writes) = tokio::io::split(tunnel);
            let _ = tokio::io::copy(&mut reads, &mut writes).await;
        })
    });
    let gate = Router::new()
        .route("/instances/web-00000000/logs", get(move || async move { axum::Json(word) }))
        .route("/instances/web-00000000/port-forward", echo);
    let open = move || {
        let node = node.clone();
        async move { node.tunnel("/link/nodes/n2/reverse").await }
    };
    tokio::spawn(longshore_link::be_called(open, gate, end.clone()));
    end
}

const LOGS: &str = "/gate/nodes/n2/instances/web-00000000/logs";

#[tokio::test]
async fn a_node_that_only_dials_out_is_called_over_what_it_opened_and_nobody_is_in_its_place() {
    let scene = Scene::start(Router::new()).await;
    let location = &scene.world.location;
    let identity = scene.join("n2", SECRET).await.unwrap();
    let node = scene.with(&identity);
    let end = be_called(node.clone(), "n2 itself");
    assert_eq!(location.get::<String>(LOGS).await.unwrap(), "n2 itself");
    // Requests to its instances go that way too, for an ingress.
    let forward = "/link/ingress/nodes/n2/instances/web-00000000/port-forward?port=80";
    let mut tunnel = location.tunnel(forward).await.unwrap();
    tunnel.write_all(b"request").await.unwrap();
    let mut back = [0; 7];
    tunnel.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"request");
    refused(node.tunnel(forward).await, ProblemCode::Forbidden);
    // Another's connections are not its to open, nor are its own those of whom it is not.
    refused(node.tunnel("/link/nodes/n1/reverse").await, ProblemCode::Forbidden);
    refused(scene.stranger().tunnel("/link/nodes/n2/reverse").await, ProblemCode::Forbidden);
    refused(location.tunnel("/link/nodes/n2/reverse").await, ProblemCode::Forbidden);
    refused(location.tunnel("/link/nodes/n1/reverse").await, ProblemCode::InvalidRequest);
    // Started anew it is called again.
    end.cancel();
    let _end = be_called(node, "n2 anew");
    assert_eq!(location.get::<String>(LOGS).await.unwrap(), "n2 anew");
    scene.end().await;
}
