//! Locations that nobody can dial, reached over connections that they open.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::routing::{get, post};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::Full;
use longshore_api::links::{Elsewhere, Peering, Places};
use longshore_link::now;
use longshore_trust::{Credentials, Identity, Name, client_config, server_name};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use super::elsewhere::*;
use super::played::*;
use crate::limits::Limits;

/// A location behind a NAT: at its address nobody says a word.
struct Hidden {
    site: Site,
    at: TcpListener,
}

impl Hidden {
    async fn new(site: Site) -> Self {
        // Connections are made by the kernel and never spoken to, which is as good as packets that are dropped.
        Self { site, at: TcpListener::bind("127.0.0.1:0").await.unwrap() }
    }

    /// How it is known that is reached through these.
    fn peering(&self, relays: &[&Site]) -> Peering {
        let address = Some(self.at.local_addr().unwrap().to_string());
        Peering { address, relays: names(relays), ..self.site.peering() }
    }
}

fn names(sites: &[&Site]) -> Vec<longshore_types::LocationName> {
    sites.iter().map(|site| location(site.name)).collect()
}

/// One that takes no connection and opens none to others.
fn undialled(site: &Site) -> Peering {
    Peering { address: None, ..site.peering() }
}

fn told<const N: usize>(peers: [(&Site, Peering); N], at: &[&Site]) -> Elsewhere {
    let peers = peers.into_iter().map(|(site, peering)| (location(site.name), peering));
    let places = Places { hosts: vec![HOST.parse().unwrap()], at: names(at) };
    let apps = (!at.is_empty()).then(|| (app(), places));
    Elsewhere { peers: peers.collect(), apps: apps.into_iter().collect() }
}

/// Waits until a location has connections open to these.
async fn has_relays(site: &Site, relays: &[&Site]) {
    let mut said = site.location.measured.clone();
    let open = said
        .wait_for(|ways| relays.iter().all(|relay| ways.relays.contains(&location(relay.name))));
    in_time("connections to relays", open).await.unwrap();
}

/// A world of three: `near` has no instance, `hidden` has, and `relay` is dialled by both.
async fn three(world: &World, instance: &Instance) -> (Site, Site, Hidden) {
    let hidden = Hidden::new(world.site("hidden", &[&instance.endpoint]).await).await;
    let relay = world.site("relay", &[]).await;
    let near = world.site("near", &[]).await;
    hidden.site.location.tell(told([(&near, undialled(&near)), (&relay, relay.peering())], &[]));
    let of_relay = [(&near, undialled(&near)), (&hidden.site, hidden.peering(&[]))];
    relay.location.tell(told(of_relay, &[]));
    has_relays(&hidden.site, &[&relay]).await;
    let of_near = [(&relay, relay.peering()), (&hidden.site, hidden.peering(&[&relay]))];
    near.location.tell(told(of_near, &[&hidden.site]));
    (near, relay, hidden)
}

#[tokio::test]
async fn who_cannot_be_dialled_is_reached_through_a_relay_that_reads_nothing() {
    let echo = async |request: Request<axum::body::Body>| request.into_body();
    let instance = Router::new().route("/", get(async || "from behind").post(echo));
    let (world, instance) = (World::new(), Instance::start(instance).await);
    let raw = RawInstance::start().await;
    let (near, relay, hidden) = three(&world, &instance).await;
    near.answers((OK, "from behind")).await;
    assert_eq!(near.metric("longshore_ingress_elsewhere_relayed{to=\"hidden\"}").await, 1.0);
    assert!(hidden.site.metric("longshore_ingress_taken_in_total{from=\"near\"}").await >= 1.0);
    // It is measured as any.
    let mut said = near.location.measured.clone();
    let measured = said.wait_for(|ways| ways.round_trip_micros.contains_key(&location("hidden")));
    in_time("the distance", measured).await.unwrap();

    let body = Bytes::from(vec![b'x'; 300 << 10]);
    let carried = relay.metric("longshore_ingress_carried_bytes_total{to=\"hidden\"}").await;
    let send = Request::post("/").header(header::HOST, HOST).body(Full::new(body.clone()));
    let answer = near.ingress.send(send.unwrap()).await;
    assert!(text(answer).await.as_bytes() == body);
    let moved = async {
        let name = "longshore_ingress_carried_bytes_total{to=\"hidden\"}";
        while relay.metric(name).await < carried + 600_000.0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    in_time("that all of it went through the relay", moved).await;
    assert_eq!(relay.metric("longshore_ingress_taken_in_total").await, 0.0);

    // An upgrade goes over a connection of its own, in the same way.
    hidden.site.location.give_and_wait(2, &[&raw.endpoint]).await;
    let mut user = TcpStream::connect(near.ingress.address).await.unwrap();
    let asking =
        b"GET /ws HTTP/1.1\r\nHost: web.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    user.write_all(asking).await.unwrap();
    let mut instance = raw.accept().await;
    read_head(&mut instance).await;
    let switch =
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    instance.write_all(switch).await.unwrap();
    assert!(read_head(&mut user).await.starts_with("HTTP/1.1 101"));
    let mut four = [0; 4];
    user.write_all(b"ping").await.unwrap();
    in_time("what the user says", instance.read_exact(&mut four)).await.unwrap();
    instance.write_all(b"pong").await.unwrap();
    in_time("what the instance says", user.read_exact(&mut four)).await.unwrap();
    assert_eq!(&four, b"pong");
}

#[tokio::test]
async fn who_opened_connections_to_this_one_is_reached_over_them_and_dialled_once_that_works() {
    let (world, instance) = (World::new(), Instance::saying("from behind").await);
    let hidden = Hidden::new(world.site("hidden", &[&instance.endpoint]).await).await;
    let limits = Limits { look: Duration::ZERO, ..limits() };
    let near = world.site_with("near", limits, &[]).await;
    hidden.site.location.tell(told([(&near, near.peering())], &[]));
    near.location.tell(told([(&hidden.site, hidden.peering(&[]))], &[&hidden.site]));
    near.answers((OK, "from behind")).await;
    let relayed = "longshore_ingress_elsewhere_relayed{to=\"hidden\"}";
    assert_eq!(near.metric(relayed).await, 1.0);
    assert_eq!(near.metric("longshore_ingress_carried_total").await, 0.0);
    // The NAT goes.
    let at = hidden.at.local_addr().unwrap();
    drop(hidden.at);
    let listener = TcpListener::bind(at).await.unwrap();
    let door = hidden.site.peers.clone();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut far = TcpStream::connect(&door).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
        }
    });
    let direct = async {
        while near.metric(relayed).await != 0.0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    in_time("that it is dialled", direct).await;
    assert_eq!(near.ingress.get().await, (OK, "from behind".to_owned()));
}

#[tokio::test]
async fn when_a_relay_dies_requests_go_through_the_other_and_what_may_not_is_not_repeated() {
    let (asked, sent) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (asking, sending) = (Arc::clone(&asked), Arc::clone(&sent));
    let second_time = async move || {
        if asking.fetch_add(1, Ordering::SeqCst) == 0 {
            std::future::pending::<()>().await;
        }
        "the second time"
    };
    let never = async move || {
        sending.fetch_add(1, Ordering::SeqCst);
        std::future::pending::<&str>().await
    };
    let router = Router::new()
        .route("/", get(async || "from behind"))
        .route("/slow", get(second_time))
        .route("/once", post(never));
    let (world, instance) = (World::new(), Instance::start(router).await);
    let hidden = Hidden::new(world.site("hidden", &[&instance.endpoint]).await).await;
    let dies = || Limits { drain: Duration::ZERO, ..limits() };
    let mut relays = [
        Some(world.site_with("one", dies(), &[]).await),
        Some(world.site_with("two", dies(), &[]).await),
    ];
    let near = world.site("near", &[]).await;
    {
        let both = [relays[0].as_ref().unwrap(), relays[1].as_ref().unwrap()];
        let [one, two] = both;
        let of_hidden = [(&near, undialled(&near)), (one, one.peering()), (two, two.peering())];
        hidden.site.location.tell(told(of_hidden, &[]));
        for relay in both {
            let of_relay = [(&near, undialled(&near)), (&hidden.site, hidden.peering(&[]))];
            relay.location.tell(told(of_relay, &[]));
        }
        has_relays(&hidden.site, &both).await;
        let of_near =
            [(one, one.peering()), (two, two.peering()), (&hidden.site, hidden.peering(&both))];
        near.location.tell(told(of_near, &[&hidden.site]));
    }
    near.answers((OK, "from behind")).await;
    let is_there = async |count: &AtomicUsize| {
        while count.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let slow = near.ingress.send(request(HOST, "/slow"));
    let once = Request::post("/once").header(header::HOST, HOST).body(Full::from("pay"));
    let once = near.ingress.send(once.unwrap());
    let kill = async {
        in_time("a request", is_there(&asked)).await;
        in_time("a request", is_there(&sent)).await;
        let carried = "longshore_ingress_carried_total{to=\"hidden\"}";
        let first = relays[0].as_ref().unwrap().metric(carried).await;
        let used = relays[usize::from(first == 0.0)].take().unwrap();
        used.ingress.shutdown.cancel();
        in_time("the end of the relay", used.ingress.ended).await.unwrap().unwrap();
    };
    let (slow, once, ()) = tokio::join!(slow, once, kill);
    assert_eq!((slow.status(), text(slow).await), (OK, "the second time".to_owned()));
    assert_eq!(once.status(), StatusCode::BAD_GATEWAY);
    assert_eq!((asked.load(Ordering::SeqCst), sent.load(Ordering::SeqCst)), (2, 1));
    assert_eq!(near.ingress.get().await, (OK, "from behind".to_owned()));
}

/// Asks over a connection for a connection to a location; the status of the answer.
async fn carried<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, path: &str) -> u16 {
    let asking = format!(
        "GET {path} HTTP/1.1\r\nHost: relay.longshore.internal\r\nConnection: upgrade\r\n\
         Upgrade: tcp\r\n\r\n"
    );
    stream.write_all(asking.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(in_time("an answer", stream.read_u8()).await.unwrap());
    }
    std::str::from_utf8(&head[9..12]).unwrap().parse().unwrap()
}

async fn meet<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    identity: &Identity,
    name: &str,
) -> tokio_rustls::client::TlsStream<S> {
    let config = client_config(&Credentials::new(identity).unwrap()).unwrap();
    let name = server_name(&Name::Ingress(location(name)));
    let meeting = TlsConnector::from(config).connect(name, stream);
    in_time("a handshake", meeting).await.unwrap()
}

#[tokio::test]
async fn a_relay_carries_between_locations_of_its_world_alone_and_not_on_to_another_relay() {
    let (world, instance) = (World::new(), Instance::saying("from behind").await);
    let (near, relay, hidden) = three(&world, &instance).await;
    near.answers((OK, "from behind")).await;
    let of_near = near.authority.identify(&Name::Ingress(location("near")), now()).unwrap();
    let knock = async || shake(&relay, Some(&of_near), &world).await.unwrap();
    // Nobody is asked for himself, nor who has opened nothing or is not known.
    for (path, status) in [("/to/near", 404), ("/to/relay", 404), ("/to/nobody", 404), ("/", 404)] {
        assert_eq!(carried(&mut knock().await, path).await, status, "{path}");
    }
    // It has no answer for others: an app of that host there is not.
    let mut user = TcpStream::connect(relay.ingress.address).await.unwrap();
    assert_eq!(carried(&mut user, "/to/hidden").await, 404);

    // What is carried is spoken to as what is dialled, and carries nothing on.
    let mut stream = knock().await;
    assert_eq!(carried(&mut stream, "/to/hidden").await, 101);
    let mut stream = meet(stream, &of_near, "hidden").await;
    assert_eq!(carried(&mut stream, "/to/relay").await, 404);
    let mut stream = knock().await;
    assert_eq!(carried(&mut stream, "/to/hidden").await, 101);
    let mut stream = meet(stream, &of_near, "hidden").await;

    // Once one of the two is removed, nothing is carried between them any more, what is being carried neither.
    relay.location.tell(told([(&near, undialled(&near))], &[]));
    let cut = async { while stream.read_u8().await.is_ok() {} };
    in_time("the end of what is carried", cut).await;
    assert_eq!(carried(&mut knock().await, "/to/hidden").await, 404);
    drop(hidden);
}

#[tokio::test]
async fn through_a_relay_requests_go_to_no_other_than_the_location_that_is_meant() {
    let (world, instance) = (World::new(), Instance::saying("stolen").await);
    let (near, relay, hidden) = three(&world, &instance).await;
    // The relay has what another one opened under the name of the one that is meant.
    let meant = Peering {
        authority: world.authority("hidden").key().to_string(),
        ..hidden.peering(&[&relay])
    };
    let peers = BTreeMap::from([(location("relay"), relay.peering()), (location("hidden"), meant)]);
    let before = told([(&relay, relay.peering())], &[&hidden.site]);
    near.location.tell(Elsewhere { peers, ..before });
    let tried = async {
        while relay.metric("longshore_ingress_carried_total{to=\"hidden\"}").await == 0.0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    in_time("a try through the relay", tried).await;
    near.answers(NOBODY).await;
    assert_eq!(hidden.site.metric("longshore_ingress_taken_in_total").await, 0.0);
}
