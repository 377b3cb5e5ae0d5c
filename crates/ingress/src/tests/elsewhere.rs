//! Requests between locations: ingresses of several, each with its certificate, over TLS.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use longshore_api::links::{AppRef, Elsewhere, Endpoint, Peering, Places, RoutingTable};
use longshore_link::{Client, Listener, now};
use longshore_trust::{
    Credentials, Identity, LocationAuthority, Name, NewKey, RootAuthority, client_config,
    joining_config, server_name,
};
use longshore_types::LocationName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::played::*;
use super::streams::{http2_client, play_with_trailers};
use crate::gate::DirectGate;
use crate::limits::Limits;

/// A root, and the locations below it.
pub struct World {
    pub root: RootAuthority,
    dir: tempfile::TempDir,
}

/// A location with its ingress, and where that takes requests of others.
pub struct Site {
    pub name: &'static str,
    pub dir: tempfile::TempDir,
    pub authority: Arc<LocationAuthority>,
    pub location: Location,
    pub ingress: Ingress,
    pub peers: String,
}

pub fn location(name: &str) -> LocationName {
    name.parse().unwrap()
}

pub fn app() -> AppRef {
    AppRef { project: Default::default(), app: "web".parse().unwrap() }
}

impl World {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = RootAuthority::open(&dir.path().join("root.json"), now()).unwrap();
        Self { root, dir }
    }

    pub fn authority(&self, name: &str) -> LocationAuthority {
        let key = NewKey::generate().unwrap();
        let signed = self.root.sign_location(&location(name), &key.public(), now()).unwrap();
        LocationAuthority::new(location(name), &key.signed(&signed, now()).unwrap()).unwrap()
    }

    pub async fn site(&self, name: &'static str, endpoints: &[&Endpoint]) -> Site {
        self.site_with(name, limits(), endpoints).await
    }

    pub async fn site_with(
        &self,
        name: &'static str,
        limits: Limits,
        endpoints: &[&Endpoint],
    ) -> Site {
        let dir = tempfile::tempdir().unwrap();
        let authority = Arc::new(self.authority(name));
        let location = Location::start_with(dir.path(), Some(Arc::clone(&authority)));
        let (ingress, peers) = start(dir.path(), limits);
        let site = Site { name, dir, authority, location, ingress, peers };
        site.location.give_and_wait(1, endpoints).await;
        site
    }
}

fn start(dir: &std::path::Path, limits: Limits) -> (Ingress, String) {
    let any = longshore_link::Endpoint::Tls("127.0.0.1:0".to_owned());
    let peers = Listener::bind("peers", &any).unwrap();
    let at = peers.endpoint().unwrap().authority().to_owned();
    let metrics = Listener::bind("metrics", &metrics_at(dir)).unwrap();
    let sockets = (Some(peers), Some(metrics));
    (Ingress::start_with(dir, limits, Arc::new(DirectGate), sockets), at)
}

fn metrics_at(dir: &std::path::Path) -> longshore_link::Endpoint {
    longshore_link::Endpoint::Unix(dir.join("metrics.sock"))
}

impl Site {
    pub fn peering(&self) -> Peering {
        let authority = self.authority.key().to_string();
        Peering { address: Some(self.peers.clone()), authority, relays: Vec::new() }
    }

    /// Tells of other locations, of which the first few have instances of the app.
    fn tell(&self, others: &[&Site], n_serving: usize) {
        self.location.tell(elsewhere(others, n_serving));
    }

    /// What a request is answered, again until that is `wanted`: tables take a moment.
    pub async fn answers(&self, wanted: (StatusCode, &str)) {
        let asking = async {
            loop {
                let (status, text) = self.ingress.get().await;
                if status == wanted.0 && text.contains(wanted.1) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        in_time(wanted.1, asking).await;
    }

    /// What is counted by the metrics that begin so, over all apps; 0 when none is told.
    pub async fn metric(&self, name: &str) -> f64 {
        let client = Client::new(metrics_at(self.dir.path()));
        let answer = client.send(http::Method::GET, "/metrics", None::<&()>).await.unwrap();
        let text = text(answer).await;
        let lines = text.lines().filter(|line| line.starts_with(name));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }
}

pub fn elsewhere(others: &[&Site], n_serving: usize) -> Elsewhere {
    let peers = others.iter().map(|site| (location(site.name), site.peering()));
    let at: Vec<_> = others.iter().take(n_serving).map(|site| location(site.name)).collect();
    let places = Places { hosts: vec![HOST.parse().unwrap()], at };
    let apps = (n_serving > 0).then(|| (app(), places));
    Elsewhere { peers: peers.collect(), apps: apps.into_iter().collect() }
}

pub const OK: StatusCode = StatusCode::OK;
pub const NOBODY: (StatusCode, &str) = (StatusCode::SERVICE_UNAVAILABLE, "no-healthy-instance");

#[tokio::test]
async fn a_request_for_which_nobody_is_here_is_answered_by_another_location() {
    let (world, instance) = (World::new(), Instance::saying("from afar").await);
    let own = Instance::saying("from here").await;
    let far = world.site("far", &[&instance.endpoint]).await;
    let near = world.site("near", &[]).await;
    near.answers(NOBODY).await;
    far.tell(&[&near], 0);
    near.tell(&[&far], 1);
    near.answers((OK, "from afar")).await;
    assert!(near.metric("longshore_ingress_passed_on_total{to=\"far\"}").await >= 1.0);
    // A user counts where he is.
    for (site, wanted) in [(&near, true), (&far, false)] {
        let counted = site.metric("longshore_ingress_user_requests_total{").await;
        assert_eq!(counted > 0.0, wanted, "{counted}");
    }
    assert!(far.metric("longshore_ingress_taken_in_total{from=\"near\"}").await >= 1.0);
    // The way is measured, by probes and not by what instances take.
    let measured = async {
        let name = "longshore_ingress_elsewhere_round_trip_seconds{to=\"far\"}";
        while near.metric(name).await == 0.0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    in_time("a measured round trip", measured).await;
    let mut told = near.location.measured.clone();
    let is_told = told.wait_for(|ways| {
        ways.round_trip_micros.get(&location("far")).is_some_and(|micros| *micros > 0)
    });
    assert_eq!(in_time("that it is told", is_told).await.unwrap().round_trip_micros.len(), 1);
    // What is here goes first, at once.
    near.location.give_and_wait(2, &[&own.endpoint]).await;
    assert_eq!(near.ingress.get().await, (OK, "from here".to_owned()));
    near.location.give_and_wait(3, &[]).await;
    assert_eq!(near.ingress.get().await, (OK, "from afar".to_owned()));
    // An app that this location was never given is reached too.
    near.location
        .give_table_and_wait(RoutingTable { revision: 4, ..RoutingTable::default() })
        .await;
    assert_eq!(near.ingress.get().await, (OK, "from afar".to_owned()));
}

#[tokio::test]
async fn an_instance_elsewhere_is_told_of_the_user_and_not_what_he_says_of_himself() {
    let seen = async |request: axum::extract::Request| {
        let headers = request.headers();
        let one = |name: &str| {
            let all = headers.get_all(name).iter().map(|value| value.to_str().unwrap());
            all.collect::<Vec<_>>().join("+")
        };
        let names = ["x-forwarded-for", "x-forwarded-host", "x-real-ip", "x-request-id", "host"];
        names.map(one).join("|")
    };
    let (world, instance) = (World::new(), Instance::start(Router::new().fallback(seen)).await);
    let far = world.site("far", &[&instance.endpoint]).await;
    let near = world.site("near", &[]).await;
    far.tell(&[&near], 0);
    near.tell(&[&far], 1);
    near.answers((OK, "|")).await;
    let forged = || {
        let mut request = request(HOST, "/");
        for (name, value) in [
            ("x-forwarded-for", "203.0.113.9"),
            ("x-forwarded-host", "admin.test"),
            ("x-real-ip", "203.0.113.9"),
            ("x-request-id", "mine"),
            ("longshore-refused", "no-healthy-instance"),
        ] {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        request
    };
    let expected = "127.0.0.1|web.test||mine|web.test";
    assert_eq!(text(near.ingress.send(forged()).await).await, expected);
    assert_eq!(text(far.ingress.send(forged()).await).await, expected);
}

#[tokio::test]
async fn a_request_is_passed_on_once_however_old_the_tables_are() {
    let world = World::new();
    let (one, two) = (world.site("one", &[]).await, world.site("two", &[]).await);
    one.tell(&[&two], 1);
    two.tell(&[&one], 1);
    let passed = async {
        while two.metric("longshore_ingress_taken_in_total{from=\"one\"}").await == 0.0 {
            assert_eq!(one.ingress.get().await.0, NOBODY.0);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    in_time("a request that was passed on", passed).await;
    assert_eq!(one.metric("longshore_ingress_taken_in_total").await, 0.0);
    assert_eq!(one.metric("longshore_ingress_passed_on_total{to=\"two\"}").await, 0.0);
    // The user hears of no other location.
    let answer = one.ingress.send(request(HOST, "/")).await;
    assert!(answer.headers().keys().all(|name| !name.as_str().starts_with("longshore")));
    assert!(text(answer).await.contains("app web has no healthy instance now"));
}

#[tokio::test]
async fn what_a_location_refuses_goes_to_the_next_one() {
    let (world, instance) = (World::new(), Instance::saying("last").await);
    let stale = world.site("stale", &[]).await;
    let last = world.site("last", &[&instance.endpoint]).await;
    let near = world.site("near", &[]).await;
    for other in [&stale, &last] {
        other.tell(&[&near], 0);
    }
    near.tell(&[&stale, &last], 2);
    near.answers((OK, "last")).await;
    // An instance that says it was refused is not believed.
    let liar = Router::new().fallback(async || ([("longshore-refused", "no-routes-yet")], "lies"));
    let liar = Instance::start(liar).await;
    last.location.give_and_wait(2, &[&liar.endpoint]).await;
    let answer = near.ingress.send(request(HOST, "/")).await;
    assert!(!answer.headers().contains_key("longshore-refused"));
    assert_eq!(text(answer).await, "lies");
}

#[tokio::test]
async fn what_was_sent_to_one_that_refused_goes_to_the_next_one_whole() {
    let echo = Router::new().fallback(async |request: axum::extract::Request| request.into_body());
    let (world, instance) = (World::new(), Instance::start(echo).await);
    let stale = world.site("stale", &[]).await;
    let last = world.site("last", &[&instance.endpoint]).await;
    // With so much to do it is asked second, however near it is.
    let mut held = Vec::new();
    for _ in 0..80 {
        let mut client = client::<ChannelBody>(last.ingress.address).await;
        let (sender, body) = channel_body();
        let post = Request::post("/").header(header::HOST, HOST).body(body).unwrap();
        held.push((in_time("a head", client.send_request(post)).await.unwrap(), sender, client));
    }
    let near = world.site("near", &[]).await;
    for other in [&stale, &last] {
        other.tell(&[&near], 0);
    }
    // What is told anew is not passed over.
    let told_anew = async || {
        for (n_serving, kept) in [(1, "[\"stale\"]"), (2, "[\"stale\",\"last\"]")] {
            near.tell(&[&stale, &last], n_serving);
            let file = near.dir.path().join("state/elsewhere.json");
            let is_kept = || std::fs::read_to_string(&file).is_ok_and(|text| text.contains(kept));
            let known = async {
                while !is_kept() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            in_time("what is told", known).await;
        }
        stale.metric("longshore_ingress_taken_in_total").await
    };
    for size in [1, 1000, 32 << 10] {
        let refused = told_anew().await;
        let body = Bytes::from(vec![b'x'; size]);
        let post = Request::post("/").header(header::HOST, HOST).body(Full::new(body.clone()));
        let answer = near.ingress.send(post.unwrap()).await;
        assert_eq!(answer.status(), OK, "{size}");
        assert!(text(answer).await.as_bytes() == body, "{size}");
        assert_eq!(stale.metric("longshore_ingress_taken_in_total").await, refused + 1.0);
    }
    // One that is still being sent goes on where it was.
    let refused = told_anew().await;
    let mut client = client::<ChannelBody>(near.ingress.address).await;
    let (sender, body) = channel_body();
    sender.send(Bytes::from_static(b"one")).await.unwrap();
    let post = Request::post("/").header(header::HOST, HOST).body(body).unwrap();
    let answer = in_time("the head", client.send_request(post)).await.unwrap();
    assert_eq!(answer.status(), OK);
    assert_eq!(stale.metric("longshore_ingress_taken_in_total").await, refused + 1.0);
    let mut answer = answer.into_body();
    for said in ["one", "two"] {
        let frame = in_time("a frame", answer.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), said);
        if said == "one" {
            sender.send(Bytes::from_static(b"two")).await.unwrap();
        }
    }
    drop(sender);
    assert!(in_time("the end", answer.frame()).await.is_none());
}

#[tokio::test]
async fn a_location_that_is_gone_is_passed_over_and_found_again() {
    let world = World::new();
    let (a, b) = (Instance::saying("a").await, Instance::saying("b").await);
    let first = world.site("first", &[&a.endpoint]).await;
    let second = world.site("second", &[&b.endpoint]).await;
    let near = world.site("near", &[]).await;
    for other in [&first, &second] {
        other.tell(&[&near], 0);
    }
    near.tell(&[&first, &second], 1);
    near.answers((OK, "a")).await;
    let gone = first.peers.clone();
    let Site { dir, ingress, .. } = first;
    ingress.shutdown.cancel();
    in_time("the end", ingress.ended).await.unwrap().unwrap();
    near.answers((StatusCode::SERVICE_UNAVAILABLE, "no-healthy-instance")).await;
    let reached = "longshore_ingress_elsewhere_reached{to=\"first\"}";
    assert_eq!(near.metric(reached).await, 0.0);

    // Back at its address it is found by a probe, without a request.
    let at = longshore_link::Endpoint::Tls(gone);
    let peers = Listener::bind("peers", &at).unwrap();
    let sockets = (Some(peers), None);
    let _back = Ingress::start_with(dir.path(), limits(), Arc::new(DirectGate), sockets);
    let found = async {
        while near.metric(reached).await == 0.0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    in_time("a probe that is answered", found).await;
    near.answers((OK, "a")).await;
}

#[tokio::test]
async fn bodies_and_upgrades_go_through_as_they_come() {
    let echo = Router::new().fallback(async |request: axum::extract::Request| request.into_body());
    let (world, instance) = (World::new(), Instance::start(echo).await);
    let raw = RawInstance::start().await;
    let far = world.site("far", &[&instance.endpoint]).await;
    let near = world.site("near", &[]).await;
    far.tell(&[&near], 0);
    near.tell(&[&far], 1);
    near.answers((OK, "")).await;

    let mut client = client::<ChannelBody>(near.ingress.address).await;
    let (sender, body) = channel_body();
    let post = Request::post("/").header(header::HOST, HOST).body(body).unwrap();
    let answer = in_time("the head", client.send_request(post)).await.unwrap();
    let mut answer = answer.into_body();
    for said in ["one", "two", "three"] {
        sender.send(Bytes::from_static(said.as_bytes())).await.unwrap();
        let frame = in_time("a frame", answer.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), said);
    }
    drop(sender);
    assert!(in_time("the end", answer.frame()).await.is_none());

    far.location.give_and_wait(2, &[&raw.endpoint]).await;
    let mut user = TcpStream::connect(near.ingress.address).await.unwrap();
    let asking =
        b"GET /ws HTTP/1.1\r\nHost: web.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    user.write_all(asking).await.unwrap();
    let mut instance = raw.accept().await;
    let head = read_head(&mut instance).await.to_ascii_lowercase();
    assert!(head.contains("upgrade: websocket"), "{head}");
    let switch =
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    instance.write_all(switch).await.unwrap();
    let head = read_head(&mut user).await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    let mut four = [0; 4];
    user.write_all(b"ping").await.unwrap();
    in_time("what the user says", instance.read_exact(&mut four)).await.unwrap();
    instance.write_all(b"pong").await.unwrap();
    in_time("what the instance says", user.read_exact(&mut four)).await.unwrap();
    assert_eq!(&four, b"pong");
}

#[tokio::test]
async fn trailers_go_through_both_ingresses() {
    let (world, raw) = (World::new(), RawInstance::start().await);
    let far = world.site("far", &[&raw.endpoint]).await;
    let near = world.site("near", &[]).await;
    far.tell(&[&near], 0);
    near.tell(&[&far], 1);
    let mut client = http2_client(&near.ingress).await;
    let playing = play_with_trailers(&raw);
    let asking = async {
        loop {
            let request = Request::get("http://web.test/").body(Full::<Bytes>::default()).unwrap();
            let answer = client.send_request(request).await.unwrap();
            // Until the table is there.
            if answer.status() == OK {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let (answer, _stream) = in_time("an answer", async { tokio::join!(asking, playing) }).await;
    let collected = in_time("the body", answer.into_body().collect()).await.unwrap();
    assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(collected.to_bytes(), "hi");
}

#[tokio::test]
async fn an_ingress_passes_on_without_its_location_also_after_a_restart() {
    let (world, instance) = (World::new(), Instance::saying("from afar").await);
    let far = world.site("far", &[&instance.endpoint]).await;
    let near = world.site("near", &[]).await;
    far.tell(&[&near], 0);
    near.tell(&[&far], 1);
    near.answers((OK, "from afar")).await;
    let Site { dir, authority, location, ingress, .. } = near;
    let kept = dir.path().join("state/elsewhere.json");
    let stored = async {
        while !std::fs::read_to_string(&kept).is_ok_and(|text| text.contains("web.test")) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    in_time("what is kept", stored).await;
    drop(location);
    ingress.shutdown.cancel();
    in_time("the end", ingress.ended).await.unwrap().unwrap();
    // A location that says nothing but who its ingress is, as one that has just begun.
    std::fs::remove_file(dir.path().join("location.sock")).unwrap();
    let silent = Router::new().route(
        "/link/ingress/certificate",
        axum::routing::post(
            move |longshore_link::Body(request): longshore_link::Body<
                longshore_trust::CertificateRequest,
            >| async move {
                let name = Name::Ingress(authority.location().clone());
                axum::Json(authority.sign(&name, &request.key, now()).unwrap())
            },
        ),
    );
    let at = longshore_link::Endpoint::Unix(dir.path().join("location.sock"));
    let listener = Listener::bind("location", &at).unwrap();
    tokio::spawn(listener.serve(silent, tokio_util::sync::CancellationToken::new()));
    let ingress = Ingress::start(dir.path(), limits());
    let served = async { while ingress.get().await != (OK, "from afar".to_owned()) {} };
    in_time("an answer", served).await;
}

/// Connects to where other locations come in, showing an identity or none; then asks for the app.
async fn knock(site: &Site, identity: Option<&Identity>, world: &World) -> Option<StatusCode> {
    let mut stream = shake(site, identity, world).await?;
    ask(&mut stream).await
}

pub async fn shake(
    site: &Site,
    identity: Option<&Identity>,
    world: &World,
) -> Option<TlsStream<TcpStream>> {
    let config = match identity {
        Some(identity) => client_config(&Credentials::new(identity).unwrap()).unwrap(),
        None => {
            let root = world.root.certificate();
            joining_config(longshore_trust::Fingerprint::of(root)).unwrap()
        }
    };
    let stream = TcpStream::connect(&site.peers).await.unwrap();
    let name = server_name(&Name::Ingress(location(site.name)));
    in_time("a handshake", TlsConnector::from(config).connect(name, stream)).await.ok()
}

pub async fn ask(stream: &mut TlsStream<TcpStream>) -> Option<StatusCode> {
    let asking = b"GET / HTTP/1.1\r\nHost: web.test\r\n\r\n";
    stream.write_all(asking).await.ok()?;
    let mut head = [0; 12];
    in_time("an answer or an end", stream.read_exact(&mut head)).await.ok()?;
    let status = std::str::from_utf8(&head[9..]).ok()?;
    Some(StatusCode::from_u16(status.parse().ok()?).unwrap())
}

#[tokio::test]
async fn who_is_no_ingress_of_another_location_of_this_world_is_not_spoken_to() {
    let (world, other_world) = (World::new(), World::new());
    assert!(world.dir.path() != other_world.dir.path());
    let instance = Instance::saying("secret").await;
    let site = world.site("far", &[&instance.endpoint]).await;
    let near = world.site("near", &[]).await;
    site.tell(&[&near], 0);
    let ingress = |name: &str| Name::Ingress(location(name));
    let of_near = near.authority.identify(&ingress("near"), now()).unwrap();
    let known = async { while knock(&site, Some(&of_near), &world).await != Some(OK) {} };
    in_time("the other location", known).await;

    let rejoined = world.authority("near");
    let removed = world.authority("removed");
    let node = Name::Node(location("near"), "n1".parse().unwrap());
    let strangers: BTreeMap<&str, Option<Identity>> = BTreeMap::from([
        ("who shows nothing", None),
        ("an ingress of another world", {
            let authority = other_world.authority("near");
            Some(authority.identify(&ingress("near"), now()).unwrap())
        }),
        ("a node of a known location", Some(near.authority.identify(&node, now()).unwrap())),
        ("the scheduler of a known location", {
            let name = Name::Location(location("near"));
            Some(near.authority.identify(&name, now()).unwrap())
        }),
        ("the control plane", Some(world.root.identify(&Name::Global, now()).unwrap())),
        ("a location that was removed", {
            Some(removed.identify(&ingress("removed"), now()).unwrap())
        }),
        ("one whose name another has now", {
            Some(rejoined.identify(&ingress("near"), now()).unwrap())
        }),
        ("the location itself", Some(site.authority.identify(&ingress("far"), now()).unwrap())),
    ]);
    for (who, identity) in &strangers {
        assert_eq!(knock(&site, identity.as_ref(), &world).await, None, "{who}");
    }
    assert!(site.metric("longshore_ingress_guests_refused_total").await >= 7.0);

    // One that is removed while it is connected is cut off.
    let mut open = shake(&site, Some(&of_near), &world).await.unwrap();
    assert_eq!(ask(&mut open).await, Some(OK));
    site.tell(&[], 0);
    let cut = async { while open.read_u8().await.is_ok() {} };
    in_time("the end of the connection", cut).await;
    assert_eq!(knock(&site, Some(&of_near), &world).await, None);
}

#[tokio::test]
async fn requests_go_to_no_other_than_the_location_that_is_meant() {
    let (world, instance) = (World::new(), Instance::saying("stolen").await);
    let thief = world.site("thief", &[&instance.endpoint]).await;
    let near = world.site("near", &[]).await;
    thief.tell(&[&near], 0);
    let known = |name: &str, authority: &LocationAuthority| {
        let (address, authority) = (Some(thief.peers.clone()), authority.key().to_string());
        let peering = Peering { address, authority, relays: Vec::new() };
        let places = Places { hosts: vec![HOST.parse().unwrap()], at: vec![location(name)] };
        Elsewhere {
            peers: BTreeMap::from([(location(name), peering)]),
            apps: BTreeMap::from([(app(), places)]),
        }
    };
    // At the address of another location, and under the name of one that was removed.
    let far = world.authority("far");
    let rejoined = world.authority("thief");
    for told in [known("far", &far), known("thief", &rejoined)] {
        near.location.tell(told);
        let tried = async {
            let name = "longshore_ingress_elsewhere_reached";
            let told = || async {
                let client = Client::new(metrics_at(near.dir.path()));
                let answer = client.send(http::Method::GET, "/metrics", None::<&()>).await;
                text(answer.unwrap()).await
            };
            while !told().await.lines().any(|line| line.starts_with(name) && line.ends_with(" 0.0"))
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        in_time("a failed try", tried).await;
        assert_eq!(near.ingress.get().await.0, NOBODY.0);
        near.location.tell(Elsewhere::default());
    }
    near.location.tell(known("thief", &thief.authority));
    near.answers((OK, "stolen")).await;
}
