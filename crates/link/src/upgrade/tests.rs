use axum::Router;
use axum::extract::State;
use axum::routing::get;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{Endpoint, Listener};

const PROTOCOL: &str = "test.v1";
const LONGEST: usize = 1000;

/// Sends each message back twice, and says goodbye after "bye".
async fn echo(State(service): State<Service>, upgrade: Upgrade) -> Result<Response, Refusal> {
    let upgrade = upgrade.websocket(PROTOCOL, LONGEST)?;
    Ok(upgrade.accept(&service, "echo", |socket| async {
        let (mut sender, mut receiver) = socket.split();
        while let Ok(Some(message)) = receiver.receive().await {
            let is_last = &message[..] == b"bye";
            sender.send(message.clone()).await.unwrap();
            sender.send(message).await.unwrap();
            if is_last {
                break;
            }
        }
        let _ = sender.close().await;
    }))
}

async fn serve(router: Router) -> Client {
    let listener = Listener::bind("test", &Endpoint::Tcp("127.0.0.1:0".into())).unwrap();
    let client = Client::new(listener.endpoint().unwrap());
    tokio::spawn(listener.serve(router, CancellationToken::new()));
    client
}

/// Two servers, the second of which passes on to the first.
async fn chain() -> (Client, Service, CancellationToken) {
    let shutdown = CancellationToken::new();
    let service = Service::new(shutdown.clone());
    let last = Router::new().route("/echo", get(echo)).with_state(service.clone());
    let (last, between) = (serve(last).await, service.clone());
    let relay = get(move |upgrade: Upgrade| async move {
        let answer = last.relay_upgrade("/echo", upgrade, &between).await;
        answer.map_err(|error| match error {
            CallError::Refused(problem) => Refusal(problem),
            error => Refusal(Problem::new(ProblemCode::Unavailable, error.to_string())),
        })
    });
    (serve(Router::new().route("/relayed", relay)).await, service, shutdown)
}

#[tokio::test]
async fn messages_go_through_a_relay() {
    let (client, service, shutdown) = chain().await;
    let socket = client.websocket("/relayed", PROTOCOL, LONGEST).await.unwrap();
    let (mut sender, mut receiver) = socket.split();
    for length in [0, 1, 999, 1000] {
        sender.send(vec![7; length]).await.unwrap();
        for _ in 0..2 {
            assert_eq!(receiver.receive().await.unwrap().unwrap(), vec![7; length]);
        }
    }
    sender.send(&b"bye"[..]).await.unwrap();
    for _ in 0..2 {
        assert_eq!(receiver.receive().await.unwrap().unwrap(), &b"bye"[..]);
    }
    assert!(receiver.receive().await.unwrap().is_none());
    drop((sender, receiver));
    shutdown.cancel();
    service.run().await.unwrap();
}

#[tokio::test]
async fn a_message_that_is_too_long_ends_it() {
    let (client, ..) = chain().await;
    let socket = client.websocket("/relayed", PROTOCOL, LONGEST).await.unwrap();
    let (mut sender, mut receiver) = socket.split();
    sender.send(vec![7; 1001]).await.unwrap();
    assert!(!matches!(receiver.receive().await, Ok(Some(_))));
}

#[tokio::test]
async fn what_is_no_such_upgrade_is_refused() {
    let (client, ..) = chain().await;
    let refused = client.get::<()>("/relayed").await.unwrap_err();
    assert!(refused.to_string().contains("Connection: Upgrade"), "{refused}");
    let Err(refused) = client.websocket("/relayed", "test.v2", LONGEST).await else {
        panic!("not refused");
    };
    assert!(matches!(&refused, CallError::Refused(_)), "{refused:?}");
    assert!(refused.to_string().contains("test.v1"), "{refused}");
}

#[test]
fn a_key_is_accepted_as_the_standard_says() {
    // The example of RFC 6455, section 1.3.
    let accepted = accept_key(&HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==")).unwrap();
    assert_eq!(accepted, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
}

#[tokio::test]
async fn a_tunnel_carries_bytes_and_the_end_of_each_way() {
    let shutdown = CancellationToken::new();
    let service = Service::new(shutdown.clone());
    // Answers when all was said.
    let last = get(|State(service): State<Service>, upgrade: Upgrade| async move {
        upgrade.tunnel(&service, "tunnel", |mut tunnel| async move {
            let mut said = Vec::new();
            tunnel.read_to_end(&mut said).await.unwrap();
            said.reverse();
            tunnel.write_all(&said).await.unwrap();
            tunnel.shutdown().await.unwrap();
        })
    });
    let last = serve(Router::new().route("/last", last).with_state(service.clone())).await;
    let between = service.clone();
    let relay = get(move |upgrade: Upgrade| async move {
        last.relay_upgrade("/last", upgrade, &between).await.unwrap()
    });
    let client = serve(Router::new().route("/relayed", relay)).await;
    let mut tunnel = client.tunnel("/relayed").await.unwrap();
    let said: Vec<u8> = (0..200_000_u32).map(|number| number.to_le_bytes()[0]).collect();
    tunnel.write_all(&said).await.unwrap();
    tunnel.shutdown().await.unwrap();
    let mut answer = Vec::new();
    tunnel.read_to_end(&mut answer).await.unwrap();
    answer.reverse();
    assert_eq!(answer, said);
    shutdown.cancel();
    service.run().await.unwrap();
}
