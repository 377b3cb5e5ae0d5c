use std::sync::atomic::{AtomicUsize, Ordering};

use axum::extract::State;
use axum::routing::get;
use futures_util::StreamExt as _;
use longshore_types::LocationName;

use super::*;
use crate::{Endpoint, Listener, json_lines};

/// Who calls, and how its peer reaches it.
struct Caller {
    reverse: Reverse,
    client: Client,
    service: Service,
}

async fn accept(
    State((reverse, service)): State<(Reverse, Service)>,
    upgrade: Upgrade,
) -> Result<Response, Refusal> {
    reverse.accept(upgrade, &service)
}

fn caller() -> Caller {
    let listener = Listener::bind("test", &Endpoint::Tcp("127.0.0.1:0".into())).unwrap();
    let client = Client::new(listener.endpoint().unwrap());
    let service = Service::new(CancellationToken::new());
    let reverse = Reverse::new(&Name::Location("ams".parse::<LocationName>().unwrap()));
    let state = (reverse.clone(), service.clone());
    let router = Router::new().route("/reverse", get(accept)).with_state(state);
    tokio::spawn(listener.serve(router, service.shutdown()));
    Caller { reverse, client, service }
}

/// Opens connections to the caller, and counts them.
#[derive(Clone, Default)]
struct Peer {
    opened: Arc<AtomicUsize>,
    end: CancellationToken,
}

impl Peer {
    fn start(caller: &Caller) -> Self {
        let (peer, service) = (Self::default(), caller.service.clone());
        let until = peer.end.clone();
        let slow = || async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            axum::Json("slow")
        };
        let router = Router::new()
            .route("/here", get(|| async { axum::Json("here") }))
            .route("/slow", get(slow))
            .route(
                "/lines",
                get(move || async { json_lines(futures_util::stream::pending::<u8>(), until) }),
            )
            .route(
                "/echo",
                get(move |upgrade: Upgrade| async move {
                    upgrade.tunnel(&service, "echo", |tunnel| async {
                        let (mut reads, mut writes) = tokio::io::split(tunnel);
                        let _ = tokio::io::copy(&mut reads, &mut writes).await;
                    })
                }),
            );
        let (opened, client) = (Arc::clone(&peer.opened), caller.client.clone());
        let open = move || {
            let (opened, client) = (Arc::clone(&opened), client.clone());
            async move {
                let tunnel = client.tunnel("/reverse").await?;
                opened.fetch_add(1, Ordering::Relaxed);
                Ok(tunnel)
            }
        };
        tokio::spawn(be_called(open, router, peer.end.clone()));
        peer
    }

    fn opened(&self) -> usize {
        self.opened.load(Ordering::Relaxed)
    }
}

async fn call(client: &Client, path: &str) -> Result<String, CallError> {
    client.get(path).await
}

#[tokio::test]
async fn who_only_dials_out_is_called_in_every_way() {
    let caller = caller();
    let client = caller.reverse.client();
    // The first call is made before there is a connection, and waits for one.
    let (answer, peer) = tokio::join!(call(client, "/here"), async { Peer::start(&caller) });
    assert_eq!(answer.unwrap(), "here");
    let mut echo = client.tunnel("/echo").await.unwrap();
    echo.write_all(b"there and back").await.unwrap();
    let mut back = [0; 14];
    echo.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"there and back");
    let refused = call(client, "/none").await.unwrap_err();
    assert!(matches!(refused, CallError::Status { status: 404, .. }), "{refused}");
    // Streams end when the peer does.
    let mut lines = client.watch::<u8>("/lines").await.unwrap();
    peer.end.cancel();
    assert!(lines.next().await.is_none());
}

#[tokio::test]
async fn many_calls_at_once_find_as_many_connections() {
    let caller = caller();
    let peer = Peer::start(&caller);
    let calls: Vec<_> = (0..100)
        .map(|_| {
            let client = caller.reverse.client().clone();
            tokio::spawn(async move { call(&client, "/slow").await })
        })
        .collect();
    for answer in calls {
        assert_eq!(answer.await.unwrap().unwrap(), "slow");
    }
    assert!(peer.opened() <= 100 + MOST, "{} opened", peer.opened());
    // Once none is in use, no more are opened than wait.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let before = peer.opened();
    assert_eq!(call(caller.reverse.client(), "/slow").await.unwrap(), "slow");
    assert!(peer.opened() <= before + 1, "{} opened", peer.opened() - before);
}

#[tokio::test]
async fn a_peer_that_was_started_anew_is_called_and_one_that_is_gone_is_unreachable() {
    let caller = caller();
    let client = caller.reverse.client();
    for _ in 0..3 {
        let peer = Peer::start(&caller);
        assert_eq!(call(client, "/here").await.unwrap(), "here");
        peer.end.cancel();
    }
    let error = call(client, "/here").await.unwrap_err();
    assert!(matches!(error, CallError::Unreachable { .. }) && error.retryable(), "{error}");
}

#[tokio::test]
async fn connections_that_lead_nowhere_are_passed_over() {
    let caller = caller();
    // As those of a machine that was cut off: open as far as this end knows.
    let mut silent = Vec::new();
    for _ in 0..MOST + 5 {
        silent.push(caller.client.tunnel("/reverse").await.unwrap());
    }
    let waiting = || caller.reverse.waiting.idle().len();
    while waiting() < MOST {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let client = caller.reverse.client();
    let (answer, _peer) = tokio::join!(call(client, "/here"), async {
        tokio::time::sleep(TAKE_WITHIN / 2).await;
        Peer::start(&caller)
    });
    assert_eq!(answer.unwrap(), "here");
    assert!(waiting() <= 1, "what waited as long leads nowhere either");
}
