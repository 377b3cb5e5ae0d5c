//! What is bounded, and what happens at the bound.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;
use http::{Request, header};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use super::played::*;
use crate::limits::Limits;

const SHORT: Duration = Duration::from_millis(300);

#[tokio::test]
async fn an_instance_that_gives_no_answer_is_504() {
    let raw = RawInstance::start().await;
    let scene = Scene::with(Limits { silence: SHORT, ..limits() }, &[&raw.endpoint]).await;
    let (answer, mut stream) = tokio::join!(scene.ingress.get(), raw.accept());
    assert_eq!(answer.0, 504);
    assert!(answer.1.contains("instance-silent"), "{}", answer.1);
    read_head(&mut stream).await;
    let end = in_time("the end of the connection", stream.read(&mut [0; 1])).await;
    assert_eq!(end.unwrap(), 0, "it is not used again");
}

#[tokio::test]
async fn an_answer_in_which_the_instance_falls_silent_is_cut_off() {
    let raw = RawInstance::start().await;
    let scene = Scene::with(Limits { silence: SHORT, ..limits() }, &[&raw.endpoint]).await;
    let playing = async {
        let mut stream = raw.accept().await;
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nfour").await.unwrap();
        stream
    };
    let (answer, _stream) = tokio::join!(scene.ingress.send(request(HOST, "/")), playing);
    assert_eq!(answer.status(), 200);
    let outcome = in_time("the end of the body", answer.into_body().collect()).await;
    assert!(outcome.is_err(), "a cut answer must not look whole");
}

#[tokio::test]
async fn a_user_who_does_not_send_the_rest_is_408() {
    let echo = Router::new().fallback(async |body: Bytes| body);
    let instance = Instance::start(echo).await;
    let scene = Scene::with(Limits { silence: SHORT, ..limits() }, &[&instance.endpoint]).await;
    let mut client = client::<ChannelBody>(scene.ingress.address).await;
    let (sender, body) = channel_body();
    sender.send(Bytes::from_static(b"the first part")).await.unwrap();
    let post = Request::post("/").header(header::HOST, HOST).body(body).unwrap();
    let answer = in_time("the answer", client.send_request(post)).await.unwrap();
    assert_eq!(answer.status(), 408);
}

/// Frames with pauses of a tenth of the limit, for one and a half times the limit.
fn drip(limit: Duration) -> Body {
    Body::from_stream(stream::unfold(0, move |count| async move {
        tokio::time::sleep(limit / 10).await;
        (count < 15).then(|| (Ok::<_, std::convert::Infallible>(Bytes::from("x")), count + 1))
    }))
}

#[tokio::test]
async fn bytes_reset_the_limit_of_silence() {
    let limit = Duration::from_secs(2);
    let drips = Router::new().fallback(async move |body: Bytes| {
        assert_eq!(body.len(), 15);
        drip(limit)
    });
    let instance = Instance::start(drips).await;
    let scene = Scene::with(Limits { silence: limit, ..limits() }, &[&instance.endpoint]).await;
    let mut client = client::<Body>(scene.ingress.address).await;
    let post = Request::post("/").header(header::HOST, HOST).body(drip(limit)).unwrap();
    let answer = in_time("the answer", client.send_request(post)).await.unwrap();
    assert_eq!(text(answer).await.len(), 15);
}

#[tokio::test]
async fn a_connection_without_a_request_is_closed() {
    let scene = Scene::with(Limits { head: SHORT, idle: SHORT, ..limits() }, &[]).await;
    let head = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    for sent in ["", "P", "PRI * HTTP/2.0\r\n", "GET / HT", "GET / HTTP/1.1\r\nA: b\r\n", &head] {
        let mut stream = TcpStream::connect(scene.ingress.address).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        in_time(sent, stream.read_to_end(&mut answer)).await.unwrap();
        let answered = answer.starts_with(b"HTTP/1.1 503");
        assert_eq!(answered, sent == head, "{sent:?}: {}", answer.escape_ascii());
    }
}

#[tokio::test]
async fn an_idle_http2_connection_is_closed() {
    let scene = Scene::with(Limits { head: SHORT, idle: SHORT, ..limits() }, &[]).await;
    let mut stream = TcpStream::connect(scene.ingress.address).await.unwrap();
    // The preface and empty settings, and never a request.
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    in_time("the end", stream.read_to_end(&mut Vec::new())).await.unwrap();
}

#[tokio::test]
async fn a_user_who_does_not_take_the_answer_is_left() {
    let raw = RawInstance::start().await;
    let scene = Scene::with(Limits { silence: SHORT, ..limits() }, &[&raw.endpoint]).await;
    let mut user = TcpStream::connect(scene.ingress.address).await.unwrap();
    let head = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    user.write_all(head.as_bytes()).await.unwrap();
    let mut stream = raw.accept().await;
    read_head(&mut stream).await;
    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
    let chunk = vec![0; 1 << 20];
    let flooding = async { while stream.write_all(&chunk).await.is_ok() {} };
    in_time("the end of the flood", flooding).await;
}

#[tokio::test]
async fn more_requests_than_allowed_are_told_to_come_again() {
    let (started, mut starts) = mpsc::unbounded_channel::<oneshot::Sender<()>>();
    let handler = async move || {
        let (release, released) = oneshot::channel();
        started.send(release).unwrap();
        released.await.unwrap();
        "done"
    };
    let instance = Instance::start(Router::new().fallback(handler)).await;
    let scene = Scene::with(Limits { requests: 1, ..limits() }, &[&instance.endpoint]).await;
    let address = scene.ingress.address;
    let ask = move || async move {
        let answer = client(address).await.send_request(request(HOST, "/")).await.unwrap();
        text(answer).await
    };
    let first = tokio::spawn(ask());
    let release = in_time("the first", starts.recv()).await.unwrap();
    let (status, text) = scene.ingress.get().await;
    assert_eq!(status, 503);
    assert!(text.contains("ingress-overloaded"), "{text}");
    release.send(()).unwrap();
    assert_eq!(in_time("the first's answer", first).await.unwrap(), "done");

    let third = tokio::spawn(ask());
    in_time("the third", starts.recv()).await.unwrap().send(()).unwrap();
    assert_eq!(in_time("the third's answer", third).await.unwrap(), "done");
}

#[tokio::test]
async fn a_user_who_goes_away_frees_the_instance() {
    let raw = RawInstance::start().await;
    let scene = Scene::with(Limits { requests: 1, ..limits() }, &[&raw.endpoint]).await;
    let mut user = TcpStream::connect(scene.ingress.address).await.unwrap();
    let head = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    user.write_all(head.as_bytes()).await.unwrap();
    let mut stream = raw.accept().await;
    read_head(&mut stream).await;
    drop(user);
    let end = in_time("the end of the connection", stream.read(&mut [0; 1])).await;
    assert_eq!(end.unwrap(), 0);
}

#[tokio::test]
async fn a_shutdown_lets_requests_end_and_takes_no_new_ones() {
    let raw = RawInstance::start().await;
    let scene = Scene::new(&[&raw.endpoint]).await;
    let address = scene.ingress.address;
    let asking = tokio::spawn(async move {
        let answer = client(address).await.send_request(request(HOST, "/")).await.unwrap();
        text(answer).await
    });
    let mut stream = raw.accept().await;
    read_head(&mut stream).await;
    let mut idle = TcpStream::connect(address).await.unwrap();

    scene.ingress.shutdown.cancel();
    in_time("the end of an idle connection", idle.read_to_end(&mut Vec::new())).await.unwrap();
    while TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlast").await.unwrap();
    assert_eq!(in_time("the answer", asking).await.unwrap(), "last");
    in_time("the end", scene.ingress.ended).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_ever() {
    let raw = RawInstance::start().await;
    let scene = Scene::with(Limits { drain: SHORT, ..limits() }, &[&raw.endpoint]).await;
    let mut tunnel = TcpStream::connect(scene.ingress.address).await.unwrap();
    let asked = format!(
        "GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    );
    tunnel.write_all(asked.as_bytes()).await.unwrap();
    let mut instance = raw.accept().await;
    read_head(&mut instance).await;
    let accepted = b"HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    instance.write_all(accepted).await.unwrap();
    read_head(&mut tunnel).await;
    let mut stuck = TcpStream::connect(scene.ingress.address).await.unwrap();
    let head = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    stuck.write_all(head.as_bytes()).await.unwrap();
    let mut unanswered = raw.accept().await;
    read_head(&mut unanswered).await;

    scene.ingress.shutdown.cancel();
    in_time("the end", scene.ingress.ended).await.unwrap().unwrap();
    for (what, stream) in [("tunnel", &mut tunnel), ("request", &mut stuck)] {
        // The end or a reset: the connection is gone either way.
        let end = in_time(what, stream.read(&mut [0; 1])).await;
        assert_eq!(end.unwrap_or(0), 0, "{what}");
    }
}
