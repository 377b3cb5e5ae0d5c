//! Which instance gets a request, and what is answered when none can.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use futures_util::future::{BoxFuture, join_all};
use http::{Request, StatusCode, header};
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};

use longshore_api::links::{Endpoint, RoutingTable};
use longshore_types::LocationEpoch;

use super::played::*;
use crate::gate::{DirectGate, NodeGate, Stream};
use crate::limits::Limits;

/// A handler that tells of each request and answers it when it is told to.
fn holding(name: &'static str, held: mpsc::UnboundedSender<oneshot::Sender<()>>) -> Router {
    Router::new().fallback(async move || {
        let (release, released) = oneshot::channel();
        held.send(release).unwrap();
        released.await.unwrap();
        name
    })
}

#[tokio::test]
async fn after_an_acknowledgement_no_request_goes_by_an_older_table() {
    let (a, b) = (Instance::saying("a").await, Instance::saying("b").await);
    let scene = Scene::new(&[&a.endpoint]).await;
    let mut client = scene.ingress.client().await;
    for revision in 2..40 {
        let (instance, expected) = if revision % 2 == 0 { (&b, "b") } else { (&a, "a") };
        scene.location.give_and_wait(revision, &[&instance.endpoint]).await;
        client.ready().await.unwrap();
        let answer = client.send_request(request(HOST, "/")).await.unwrap();
        assert_eq!(text(answer).await, expected, "by table {revision}");
    }
}

#[tokio::test]
async fn a_request_to_an_instance_that_leaves_goes_on_to_its_end() {
    let (held, mut requests) = mpsc::unbounded_channel();
    let old = Instance::start(holding("old", held)).await;
    let new = Instance::saying("new").await;
    let scene = Scene::new(&[&old.endpoint]).await;
    let address = scene.ingress.address;
    let in_flight = tokio::spawn(async move {
        client(address).await.send_request(request(HOST, "/")).await.unwrap()
    });
    let release = in_time("the request", requests.recv()).await.unwrap();

    scene.location.give_and_wait(2, &[&new.endpoint]).await;
    assert_eq!(scene.ingress.get().await.1, "new");
    release.send(()).unwrap();
    let answer = in_time("the answer", in_flight).await.unwrap();
    assert_eq!(text(answer).await, "old");
}

#[tokio::test]
async fn requests_in_flight_are_spread_evenly() {
    let (held, mut requests) = mpsc::unbounded_channel();
    let a = Instance::start(holding("a", held.clone())).await;
    let b = Instance::start(holding("b", held)).await;
    let scene = Scene::new(&[&a.endpoint, &b.endpoint]).await;
    let all = join_all((0..10).map(|_| scene.ingress.get()));
    let release = async {
        let mut releases = Vec::new();
        while releases.len() < 10 {
            releases.push(in_time("a request", requests.recv()).await.unwrap());
        }
        releases.into_iter().for_each(|release| release.send(()).unwrap());
    };
    let (answers, ()) = tokio::join!(all, release);
    let mut counts = BTreeMap::new();
    answers.into_iter().for_each(|(_, text)| *counts.entry(text).or_insert(0) += 1);
    assert_eq!(counts, BTreeMap::from([("a".to_owned(), 5), ("b".to_owned(), 5)]));
}

#[tokio::test]
async fn a_dead_endpoint_fails_no_request() {
    let alive = Instance::saying("alive").await;
    let dead = dead_endpoint().await;
    let scene = Scene::new(&[&dead, &alive.endpoint]).await;
    let some_at_once = join_all((0..50).map(|_| scene.ingress.get())).await;
    let mut answers = some_at_once;
    for _ in 0..50 {
        answers.push(scene.ingress.get().await);
    }
    for (status, text) in answers {
        assert_eq!((status, text.as_str()), (StatusCode::OK, "alive"));
    }
}

/// A gate behind which one endpoint never accepts, as if its packets were dropped.
#[derive(Debug)]
struct StuckGate(Endpoint);

impl NodeGate for StuckGate {
    fn dial<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, io::Result<Box<dyn Stream>>> {
        match *endpoint == self.0 {
            true => Box::pin(std::future::pending()),
            false => DirectGate.dial(endpoint),
        }
    }
}

#[tokio::test]
async fn an_endpoint_that_drops_packets_fails_no_request_unless_there_is_no_other() {
    let alive = Instance::saying("alive").await;
    let stuck = dead_endpoint().await;
    let dir = tempfile::tempdir().unwrap();
    let location = Location::start(dir.path());
    let limits = Limits { connect: Duration::from_millis(300), ..limits() };
    let gate = Arc::new(StuckGate(stuck.clone()));
    let ingress = Ingress::start_with_gate(dir.path(), limits, gate);
    location.give_and_wait(1, &[&stuck, &alive.endpoint]).await;
    for (status, text) in join_all((0..20).map(|_| ingress.get())).await {
        assert_eq!((status, text.as_str()), (StatusCode::OK, "alive"));
    }
    location.give_and_wait(2, &[&stuck]).await;
    assert_eq!(ingress.get().await.0, StatusCode::BAD_GATEWAY);
}

#[tokio::test]
async fn a_body_is_sent_whole_to_another_endpoint_when_the_first_refuses() {
    let echo = Router::new().fallback(async |body: bytes::Bytes| body);
    let alive = Instance::start(echo).await;
    let body = "x".repeat(300_000);
    for _ in 0..10 {
        let dead = dead_endpoint().await;
        let scene = Scene::new(&[&dead, &alive.endpoint]).await;
        let mut post = request(HOST, "/");
        *post.method_mut() = http::Method::POST;
        *post.body_mut() = body.clone().into();
        assert_eq!(text(scene.ingress.send(post).await).await, body);
    }
}

#[tokio::test]
async fn a_connection_is_used_again_and_dies_with_its_endpoint() {
    let raw = RawInstance::start().await;
    let other = Instance::saying("other").await;
    let scene = Scene::new(&[&raw.endpoint]).await;
    let playing = async {
        let mut stream = raw.accept().await;
        for _ in 0..20 {
            read_head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nraw").await.unwrap();
        }
        stream
    };
    let asking = async {
        for _ in 0..20 {
            assert_eq!(scene.ingress.get().await.1, "raw");
        }
    };
    let (mut stream, ()) = tokio::join!(playing, asking);
    scene.location.give_and_wait(2, &[&other.endpoint]).await;
    let end = in_time("the end of the idle connection", stream.read(&mut [0; 1])).await;
    assert_eq!(end.unwrap(), 0);
}

#[tokio::test]
async fn a_connection_that_the_instance_closed_while_idle_fails_no_request() {
    let raw = RawInstance::start().await;
    let scene = Scene::new(&[&raw.endpoint]).await;
    let playing = async {
        for _ in 0..20 {
            let mut stream = raw.accept().await;
            read_head(&mut stream).await;
            // It does not say that it will close.
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nraw").await.unwrap();
            stream.shutdown().await.unwrap();
        }
    };
    let asking = async {
        for _ in 0..20 {
            assert_eq!(scene.ingress.get().await.1, "raw");
        }
    };
    tokio::join!(playing, asking);
}

/// Answers one request and closes its connection on the next as soon as that has arrived.
async fn play_closing_worker(raw: &RawInstance) {
    let mut stream = raw.accept().await;
    read_head(&mut stream).await;
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nraw").await.unwrap();
    read_head(&mut stream).await;
}

#[tokio::test]
async fn a_connection_that_closes_under_a_safe_request_fails_it_not() {
    let raw = RawInstance::start().await;
    let scene = Scene::new(&[&raw.endpoint]).await;
    let playing = async {
        play_closing_worker(&raw).await;
        let mut stream = raw.accept().await;
        let again = read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nnew").await.unwrap();
        again
    };
    let asking = async {
        assert_eq!(scene.ingress.get().await.1, "raw");
        let request = Request::get("/page?q=1")
            .header("Host", HOST)
            .header("X-Mine", "kept")
            .body(Full::default());
        let answer = scene.ingress.send(request.unwrap()).await;
        assert_eq!(text(answer).await, "new");
    };
    let (again, ()) = tokio::join!(playing, asking);
    assert!(again.starts_with("GET /page?q=1 HTTP/1.1\r\n"), "{again}");
    assert!(again.to_ascii_lowercase().contains("x-mine: kept"), "{again}");
}

#[tokio::test]
async fn what_may_change_something_is_sent_once() {
    for method in ["POST", "PUT", "DELETE"] {
        let raw = RawInstance::start().await;
        let scene = Scene::new(&[&raw.endpoint]).await;
        let asking = async {
            assert_eq!(scene.ingress.get().await.1, "raw");
            let request = Request::builder().method(method).uri("/").header("Host", HOST);
            scene.ingress.send(request.body(Full::default()).unwrap()).await.status()
        };
        let ((), status) = tokio::join!(play_closing_worker(&raw), asking);
        assert_eq!(status, StatusCode::BAD_GATEWAY, "{method}");
    }
}

#[tokio::test]
async fn a_new_connection_that_closes_is_an_answer() {
    let raw = RawInstance::start().await;
    let scene = Scene::new(&[&raw.endpoint]).await;
    let playing = async { read_head(&mut raw.accept().await).await };
    let (_, (status, _)) = tokio::join!(playing, scene.ingress.get());
    assert_eq!(status, StatusCode::BAD_GATEWAY);
}

#[tokio::test]
async fn what_cannot_be_served_is_a_problem_with_a_code() {
    let dead = dead_endpoint().await;
    let garbage = RawInstance::start().await;
    let scene = Scene::new(&[&dead]).await;

    let cases = [
        ("absent.test", 404, "unknown-host", false),
        ("empty.test", 503, "no-healthy-instance", true),
        (HOST, 502, "instance-unreachable", false),
    ];
    for (host, status, code, again) in cases {
        let answer = scene.ingress.send(request(host, "/")).await;
        assert_eq!(answer.status(), status, "{host}");
        assert_eq!(answer.headers()[header::CONTENT_TYPE], "application/problem+json");
        assert_eq!(answer.headers().contains_key(header::RETRY_AFTER), again, "{host}");
        assert!(answer.headers().contains_key("x-request-id"));
        let problem: serde_json::Value = serde_json::from_str(&text(answer).await).unwrap();
        assert_eq!((&problem["code"], &problem["status"]), (&code.into(), &status.into()));

        let mut page = request(host, "/");
        page.headers_mut().insert(header::ACCEPT, "text/html,*/*;q=0.8".parse().unwrap());
        let answer = scene.ingress.send(page).await;
        assert_eq!(answer.status(), status);
        assert_eq!(answer.headers()[header::CONTENT_TYPE], "text/html; charset=utf-8");
        assert!(text(answer).await.contains(code));
    }

    scene.location.give_and_wait(2, &[&garbage.endpoint]).await;
    for bytes in ["", "\0\u{1}garbage\r\n\r\n", "HTTP/1.1 2", "HTTP/1.1 101 Go\r\n\r\n"] {
        let playing = async {
            let mut stream = garbage.accept().await;
            read_head(&mut stream).await;
            stream.write_all(bytes.as_bytes()).await.unwrap();
        };
        let ((status, text), ()) = tokio::join!(scene.ingress.get(), playing);
        assert_eq!(status, 502, "{bytes:?}");
        assert!(text.contains("instance-broke-off"), "{bytes:?}");
    }
}

#[tokio::test]
async fn before_the_first_table_every_request_is_told_to_come_again() {
    let dir = tempfile::tempdir().unwrap();
    let ingress = Ingress::start(dir.path(), limits());
    let answer = ingress.send(request(HOST, "/")).await;
    assert_eq!(answer.status(), 503);
    assert!(answer.headers().contains_key(header::RETRY_AFTER));
    assert!(text(answer).await.contains("no-routes-yet"));
}

#[tokio::test]
async fn an_ingress_serves_without_its_location_also_after_a_restart() {
    let (a, b) = (Instance::saying("a").await, Instance::saying("b").await);
    let Scene { location, ingress, dir } = Scene::new(&[&a.endpoint]).await;
    location.give_and_wait(70, &[&a.endpoint]).await;
    let first_name = location.ingresses();
    drop(location);
    assert_eq!(ingress.get().await.1, "a");

    ingress.shutdown.cancel();
    in_time("the end of the ingress", ingress.ended).await.unwrap().unwrap();
    let ingress = Ingress::start(dir.path(), limits());
    assert_eq!(ingress.get().await.1, "a", "by the stored table");

    // The location comes back with its clock set back, and is heard all the same.
    let location = Location::start(dir.path());
    location.give_and_wait(7, &[&b.endpoint]).await;
    assert_eq!(ingress.get().await.1, "b");
    let second_name = location.ingresses();
    assert_eq!((first_name.len(), second_name.len()), (1, 1));
    assert_ne!(first_name, second_name, "a restarted ingress is another one");

    // Within one stream an older table is refused: the next newer one is taken, it is not.
    location.give(6, &[&a.endpoint]);
    location.give_and_wait(8, &[&b.endpoint]).await;
    assert_eq!(ingress.get().await.1, "b");
}

#[tokio::test]
async fn a_table_of_an_earlier_life_of_the_location_is_refused() {
    let (a, b) = (Instance::saying("a").await, Instance::saying("b").await);
    let Scene { location, ingress, dir } = Scene::new(&[&a.endpoint]).await;
    let of_life = |life, revision, endpoints: &[&Endpoint]| RoutingTable {
        location_epoch: LocationEpoch(life),
        ..table(revision, endpoints)
    };
    location.give_table_and_wait(of_life(2, 50, &[&a.endpoint])).await;
    drop(location);
    ingress.shutdown.cancel();
    in_time("the end of the ingress", ingress.ended).await.unwrap().unwrap();

    // Its store was lost and is found again, and knows of revisions that are newer.
    let ingress = Ingress::start(dir.path(), limits());
    let location = Location::start(dir.path());
    location.give_in_vain(of_life(1, 90, &[&b.endpoint])).await;
    location.give_table_and_wait(of_life(2, 51, &[&a.endpoint])).await;
    assert_eq!(ingress.get().await.1, "a");
    location.give_table_and_wait(of_life(3, 52, &[&b.endpoint])).await;
    assert_eq!(ingress.get().await.1, "b");
}
