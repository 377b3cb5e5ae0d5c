use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::routing::{any, get, post};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::Method;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

use super::*;
use crate::{Endpoint, Listener, Upgrade};

async fn serve(router: Router) -> Client {
    let listener = Listener::bind("test", &Endpoint::Tcp("127.0.0.1:0".into())).unwrap();
    let client = Client::new(listener.endpoint().unwrap());
    tokio::spawn(listener.serve(router, CancellationToken::new()));
    client
}

struct Between {
    far: Client,
    service: Service,
    until: CancellationToken,
}

/// A service that passes everything on to another.
async fn before(far: Client) -> (Client, Arc<Between>) {
    let until = CancellationToken::new();
    let service = Service::new(until.clone());
    let between = Arc::new(Between { far, service, until });
    let pass = |State(between): State<Arc<Between>>, request: Request| async move {
        let more = [(HeaderName::from_static("passed"), HeaderValue::from_static("yes"))];
        let more = HeaderMap::from_iter(more);
        let Between { far, service, until } = &*between;
        match far.pass_on_request(request, more, service, until).await {
            Ok(answer) => answer,
            Err(NotPassedOn::NotSent(_)) => {
                Response::builder().status(502).body(Body::empty()).unwrap()
            }
            Err(NotPassedOn::BrokeOff(_)) => {
                Response::builder().status(504).body(Body::empty()).unwrap()
            }
        }
    };
    let near = serve(Router::new().fallback(pass).with_state(Arc::clone(&between))).await;
    (near, between)
}

/// Says back what was asked.
async fn echo(request: Request) -> Response {
    let mut answer = Response::builder().status(418);
    for name in ["x-twice", "passed", "x-hop", "connection", "transfer-encoding"] {
        for value in request.headers().get_all(name) {
            answer = answer.header(format!("saw-{name}"), value);
        }
    }
    let asked = format!("{} {}", request.method(), request.uri());
    let answer = answer.header("saw", asked).header("connection", "x-mine").header("x-mine", "1");
    answer.body(request.into_body()).unwrap()
}

#[tokio::test]
async fn everything_but_what_is_about_a_connection_goes_through() {
    let (near, _between) = before(serve(Router::new().fallback(any(echo))).await).await;
    let pieces = ["a", "bc"].map(|piece| Ok::<_, Infallible>(Bytes::from(piece)));
    let mut headers = HeaderMap::new();
    headers.append("x-twice", HeaderValue::from_static("1"));
    headers.append("x-twice", HeaderValue::from_static("2"));
    headers.insert("x-hop", HeaderValue::from_static("mine"));
    headers.insert("connection", HeaderValue::from_static("x-hop"));
    let body = Body::from_stream(stream::iter(pieces));
    let sent = near.request(Method::PATCH, "/a/%20b?c=d&e", body, headers).unwrap();
    let answer = sent.await.unwrap();
    assert_eq!(answer.status(), 418);
    let saw = answer.headers();
    assert_eq!(saw["saw"], "PATCH /a/%20b?c=d&e");
    assert_eq!(saw["saw-passed"], "yes");
    assert_eq!(saw.get_all("saw-x-twice").iter().count(), 2);
    assert!(!saw.contains_key("saw-x-hop") && !saw.contains_key("x-mine"), "{saw:?}");
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "abc");
}

#[tokio::test]
async fn answers_come_as_they_are_made_and_break_off_where_they_do() {
    let (sender, receiver) = mpsc::channel::<Result<Bytes, std::io::Error>>(1);
    let receiver = Arc::new(std::sync::Mutex::new(Some(receiver)));
    let stream = get(move || async move {
        let receiver = receiver.lock().unwrap().take().unwrap();
        Body::from_stream(tokio_stream_of(receiver))
    });
    let (near, _between) = before(serve(Router::new().route("/", stream)).await).await;
    let mut bytes = near.download("/").await.unwrap();
    for piece in ["one", "two"] {
        sender.send(Ok(Bytes::from(piece))).await.unwrap();
        assert_eq!(bytes.next().await.unwrap().unwrap(), piece);
    }
    sender.send(Err(std::io::Error::other("torn"))).await.unwrap();
    assert!(bytes.next().await.unwrap().is_err(), "half an answer is not the whole of it");
}

fn tokio_stream_of<T>(receiver: mpsc::Receiver<T>) -> impl futures_util::Stream<Item = T> {
    stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) })
}

#[tokio::test]
async fn upgrades_go_through_and_end_with_who_passes_them_on() {
    let far_service = Service::new(CancellationToken::new());
    let tunnel = get(|State(service): State<Service>, upgrade: Upgrade| async move {
        upgrade.tunnel(&service, "tunnel", |mut tunnel| async move {
            let mut said = [0; 5];
            while tunnel.read_exact(&mut said).await.is_ok() {
                said.reverse();
                tunnel.write_all(&said).await.unwrap();
            }
        })
    });
    let far = serve(Router::new().route("/", tunnel).with_state(far_service)).await;
    let (near, between) = before(far).await;
    let mut tunnel = near.tunnel("/").await.unwrap();
    tunnel.write_all(b"hello").await.unwrap();
    let mut answer = [0; 5];
    tunnel.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"olleh");
    // What is refused there is refused here.
    assert!(near.send(Method::GET, "/", None::<&()>).await.is_err());
    between.until.cancel();
    assert_eq!(tunnel.read(&mut answer).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn it_is_told_apart_whether_the_other_one_saw_the_request() {
    let seen = Arc::new(tokio::sync::Notify::new());
    let tells = Arc::clone(&seen);
    let silent = post(move || async move {
        tells.notify_one();
        std::future::pending::<()>().await
    });
    let (near, between) = before(serve(Router::new().route("/", silent)).await).await;
    let status = |client: Client| async move {
        let sent = client.request(Method::POST, "/", Body::empty(), HeaderMap::new()).unwrap();
        sent.await.unwrap().status().as_u16()
    };
    let asked = tokio::spawn(status(near));
    seen.notified().await;
    between.until.cancel();
    assert_eq!(asked.await.unwrap(), 504);
    let nowhere = Client::new("http://127.0.0.1:1".parse().unwrap());
    let (near, _between) = before(nowhere).await;
    assert_eq!(status(near).await, 502);
}
