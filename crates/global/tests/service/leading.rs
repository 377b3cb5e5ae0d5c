//! Several control planes on one etcd: one leads, the others pass on what users ask. Needs the apt
//! package etcd-server.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use futures_util::StreamExt;
use http::Method;
use longshore_api::links::AllotmentSet;
use longshore_api::v1::{AppView, EventView, HealthView};
use longshore_api::{Problem, ProblemCode};
use longshore_global::StoreChoice;
use longshore_link::{CallError, Client, Endpoints, Followed};
use longshore_store::conformance::EtcdServer;
use longshore_store::{EtcdStore, Store, Transaction};
use longshore_types::Generation;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;

use crate::plane::{Plane, web};

struct World {
    dir: tempfile::TempDir,
    etcd: Vec<EtcdServer>,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("etcd");
        let etcd = tokio::task::spawn_blocking(move || EtcdServer::cluster(&path, 1));
        Self { etcd: etcd.await.unwrap().unwrap(), dir }
    }

    fn plane(&self, name: &str) -> Plane {
        let dir = self.dir.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        let store = StoreChoice::Etcd(EtcdServer::address(&self.etcd));
        Plane::start_on(&dir, store, NonZeroU32::new(1000).unwrap())
    }

    /// One that leads, and one that does not.
    async fn planes(&self) -> (Plane, Plane) {
        let first = self.plane("first");
        answers(&first).await;
        let second = self.plane("second");
        answers(&second).await;
        (first, second)
    }
}

/// Waits until it answers.
async fn answers(plane: &Plane) {
    let asked = async {
        while plane.user.get::<HealthView>("/v1/health").await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), asked).await.expect("it answers");
}

fn refused<T: std::fmt::Debug>(outcome: Result<T, CallError>) -> Problem {
    match outcome.unwrap_err() {
        CallError::Refused(problem) => problem,
        error => panic!("{error}"),
    }
}

/// Sends a request from an address of its own on loopback; the answer, and that address.
async fn from_elsewhere(to: &Client, request: &str) -> (String, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.9:0".parse().unwrap()).unwrap();
    let address = to.endpoint().authority().parse().unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    let from = stream.local_addr().unwrap();
    let request = format!(
        "{request}\r\nhost: x\r\nauthorization: Bearer admin-token\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    (String::from_utf8_lossy(&answer).into_owned(), from)
}

async fn newest_event(plane: &Plane) -> EventView {
    let mut events: Vec<EventView> = plane.user.get("/v1/events?limit=1").await.unwrap();
    events.pop().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_waits_passes_on_what_users_ask_and_tells_locations_where_to_go() {
    let world = World::new().await;
    let (first, second) = world.planes().await;

    // A location is told where to go, and goes there.
    let said = refused(second.link.get::<()>("/link/registry/table").await);
    assert_eq!((said.code, said.status), (ProblemCode::NotLeader, 421));
    assert_eq!(said.leader, Some(first.link.endpoint().to_string().into()));
    let followed = Followed::new(Endpoints::from(second.link.endpoint().clone()));
    let path = "/link/locations/ams/allotments";
    let mut sets = followed.watch::<AllotmentSet>(path).await.unwrap();
    assert!(sets.next().await.unwrap().unwrap().allotments.is_empty());
    first.report(Generation(0), vec![]).await;

    // Changes, reads, streams, refusals and the dashboard go through.
    let mut seen = second.user.events("/v1/projects/default/watch", None).await.unwrap();
    assert_eq!(seen.next().await.unwrap().unwrap().name, "state");
    second.deploy(web()).await.unwrap();
    assert_eq!(seen.next().await.unwrap().unwrap().name, "change");
    assert_eq!(second.app().await, first.app().await);
    let none = refused(second.user.get::<AppView>("/v1/projects/default/apps/none").await);
    assert_eq!(none.code, ProblemCode::NotFound);
    let (page, _) = from_elsewhere(&second.user, "GET /ui/ HTTP/1.1").await;
    assert!(page.starts_with("HTTP/1.1 200") && page.contains("content-security-policy"), "{page}");
    assert!(page.contains("<!doctype html>"), "{page}");

    // With its end goes what it was asked for, and the other one takes over with all there is.
    first.stop().await;
    while let Some(Ok(_)) = seen.next().await {}
    second.app_when_it_answers(|app| app.count == 2).await;
    second.report(Generation(0), vec![]).await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_passed_on_once_and_where_it_came_from_is_known() {
    let world = World::new().await;
    let (first, second) = world.planes().await;
    first.report(Generation(0), vec![]).await;
    second.deploy(web()).await.unwrap();

    let remove = "DELETE /v1/projects/default/apps/web HTTP/1.1";
    let (answer, from) = from_elsewhere(&second.user, remove).await;
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    assert_eq!(newest_event(&second).await.from, Some(from.to_string()));

    // One that comes around is refused, not sent around.
    let again = format!("{remove}\r\nlongshore-passed-on: x");
    let (answer, _) = from_elsewhere(&second.user, &again).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("\"no-leader\""), "{answer}");
    assert!(answer.to_lowercase().contains("retry-after: 1"), "{answer}");

    // Whoever says that a request is somebody else's has to show that they may.
    let forged = "POST /v1/secrets/rotate-key HTTP/1.1\r\nlongshore-passed-on: x\r\n\
                  longshore-passed-on-from: 192.0.2.1:1\r\ncontent-length: 0";
    let (answer, from) = from_elsewhere(&first.user, forged).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(newest_event(&first).await.from, Some(from.to_string()));
    second.stop().await;
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_leader_that_can_be_reached_it_says_so() {
    let world = World::new().await;
    let store = EtcdStore::connect(&EtcdServer::address(&world.etcd), None).await.unwrap();
    let lease = store.grant_lease(Duration::from_secs(600)).await.unwrap();
    let leader = r#"{"v":1,"data":{"id":"x","api":"http://127.0.0.1:1","link":"http://127.0.0.1:2","passing_key":"k"}}"#;
    store.commit(Transaction::new().put_leased("/leader", leader, lease)).await.unwrap();
    let plane = world.plane("one");
    let asked = async {
        loop {
            let problem = refused(plane.user.get::<HealthView>("/v1/health").await);
            assert_eq!((problem.code, problem.status), (ProblemCode::NoLeader, 503));
            if problem.detail.contains("cannot be reached") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), asked).await.expect("it knows who leads");
    let said = refused(plane.link.call::<_, ()>(Method::POST, "/link/x", Some(&())).await);
    assert_eq!(said.leader.as_deref(), Some("http://127.0.0.1:2"));
    // It leads once that one is gone.
    store.revoke_lease(lease).await.unwrap();
    answers(&plane).await;
    plane.stop().await;
}
