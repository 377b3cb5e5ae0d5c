//! Bodies, upgraded connections and HTTP/2 on their way through.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Barrier, mpsc};

use longshore_api::links::Endpoint;
use longshore_types::AppProtocol;

use super::played::*;

const CHUNK: usize = 64 << 10;
/// 200 MiB in all.
const N_CHUNKS: u64 = 3200;
/// What the kernel's buffers of four sockets and hyper's own may hold together.
const MOST_IN_BETWEEN: u64 = 64 << 20;

fn post<B>(body: B) -> Request<B> {
    Request::post("/").header(header::HOST, HOST).body(body).unwrap()
}

/// A request under way to an instance that gives back what it is sent.
struct Echo {
    scene: Scene,
    instance: Instance,
    sender: mpsc::Sender<Bytes>,
    answer: Incoming,
}

impl Echo {
    async fn begin() -> Self {
        let echo =
            Router::new().fallback(async |request: axum::extract::Request| request.into_body());
        let instance = Instance::start(echo).await;
        let scene = Scene::new(&[&instance.endpoint]).await;
        let mut client = client::<ChannelBody>(scene.ingress.address).await;
        let (sender, body) = channel_body();
        let answer = in_time("the head", client.send_request(post(body))).await.unwrap();
        Self { scene, instance, sender, answer: answer.into_body() }
    }

    async fn say(&mut self, said: &'static str) {
        self.sender.send(Bytes::from_static(said.as_bytes())).await.unwrap();
        let frame = in_time("a frame", self.answer.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), said);
    }

    /// Ends the request; the answer must end with it.
    async fn end(mut self) -> Scene {
        drop(self.sender);
        assert!(in_time("the end", self.answer.frame()).await.is_none());
        self.scene
    }
}

#[tokio::test]
async fn bytes_go_through_before_the_body_ends_both_ways() {
    let mut echo = Echo::begin().await;
    for said in ["one", "two", "three"] {
        echo.say(said).await;
    }
    echo.end().await;
}

#[tokio::test]
async fn the_location_hears_which_instances_that_left_have_requests_under_way() {
    let mut echo = Echo::begin().await;
    let location = &echo.scene.location;
    location.give(2, &[]);
    let busy = std::slice::from_ref(&echo.instance.endpoint.instance);
    location.acked_when(|ack| ack.revision == 2 && ack.busy == busy).await;
    // It goes on as if nothing were.
    echo.say("more").await;
    let scene = echo.end().await;
    scene.location.acked_when(|ack| ack.revision == 2 && ack.busy.is_empty()).await;
}

/// Waits until a count has stopped growing, and returns it.
async fn settled(count: &AtomicU64) -> u64 {
    let mut ticks = tokio::time::interval(Duration::from_millis(50));
    let (mut last, mut same) = (0, 0);
    while same < 10 {
        ticks.tick().await;
        let now = count.load(Ordering::Relaxed);
        same = if now == last && now > 0 { same + 1 } else { 0 };
        last = now;
    }
    last
}

/// Frames that are counted when they are asked for.
fn counted_frames(asked: Arc<AtomicU64>) -> Body {
    let chunk = Bytes::from(vec![7; CHUNK]);
    Body::from_stream(stream::iter(0..N_CHUNKS).map(move |_| {
        asked.fetch_add(CHUNK as u64, Ordering::Relaxed);
        Ok::<_, Infallible>(chunk.clone())
    }))
}

const PROTOCOLS: [AppProtocol; 2] = [AppProtocol::Http1, AppProtocol::H2c];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_answer_is_held_back_until_the_user_takes_it() {
    for protocol in PROTOCOLS {
        large_answer(protocol).await;
    }
}

async fn large_answer(protocol: AppProtocol) {
    let produced = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&produced);
    let handler = Router::new().fallback(async move || counted_frames(Arc::clone(&counted)));
    let instance = Instance::start(handler).await;
    let endpoint = Endpoint { protocol, ..instance.endpoint.clone() };
    let scene = Scene::new(&[&endpoint]).await;
    let mut answer = scene.ingress.send(request(HOST, "/")).await.into_body();
    let ahead = in_time("a standstill", settled(&produced)).await;
    assert!(ahead < MOST_IN_BETWEEN, "{ahead} bytes were taken for a user who reads nothing");
    let mut taken = 0;
    while let Some(frame) = in_time("a frame", answer.frame()).await {
        taken += frame.unwrap().into_data().unwrap().len() as u64;
    }
    assert_eq!(taken, N_CHUNKS * CHUNK as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_request_is_held_back_until_the_instance_takes_it() {
    for protocol in PROTOCOLS {
        large_request(protocol).await;
    }
}

async fn large_request(protocol: AppProtocol) {
    let taking = Arc::new(tokio::sync::Notify::new());
    let may_take = Arc::clone(&taking);
    let handler = async move |request: axum::extract::Request| {
        may_take.notified().await;
        let mut taken = 0;
        let mut body = request.into_body();
        while let Some(frame) = body.frame().await {
            taken += frame.unwrap().into_data().unwrap().len() as u64;
        }
        taken.to_string()
    };
    let instance = Instance::start(Router::new().fallback(handler)).await;
    let endpoint = Endpoint { protocol, ..instance.endpoint.clone() };
    let scene = Scene::new(&[&endpoint]).await;
    let sent = Arc::new(AtomicU64::new(0));
    let mut client = client::<Body>(scene.ingress.address).await;
    let answer = tokio::spawn(client.send_request(post(counted_frames(Arc::clone(&sent)))));
    let ahead = in_time("a standstill", settled(&sent)).await;
    assert!(ahead < MOST_IN_BETWEEN, "{ahead} bytes were taken for an instance that reads nothing");
    taking.notify_one();
    let answer = in_time("the answer", answer).await.unwrap().unwrap();
    assert_eq!(text(answer).await, (N_CHUNKS * CHUNK as u64).to_string());
}

/// More than the memory that it may take by far.
const GIBIBYTE: u64 = 1 << 30;

/// The most that this process has had in memory since it was asked to count anew, bytes.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gibibyte_each_way_leaves_memory_flat() {
    for protocol in PROTOCOLS {
        // The instance and the user are in this process too, and hold no more than a chunk.
        let echo =
            Router::new().fallback(async |request: axum::extract::Request| request.into_body());
        let instance = Instance::start(echo).await;
        let endpoint = Endpoint { protocol, ..instance.endpoint.clone() };
        let scene = Scene::new(&[&endpoint]).await;
        let mut client = client::<Body>(scene.ingress.address).await;
        let chunk = Bytes::from(vec![7; CHUNK]);
        let chunks = stream::iter(0..GIBIBYTE / CHUNK as u64);
        let body = Body::from_stream(chunks.map(move |_| Ok::<_, Infallible>(chunk.clone())));
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        let before = peak_memory();
        let mut answer = client.send_request(post(body)).await.unwrap().into_body();
        let mut taken = 0;
        while let Some(frame) = in_time("a frame", answer.frame()).await {
            taken += frame.unwrap().into_data().unwrap().len() as u64;
        }
        let grown = peak_memory() - before;
        assert_eq!(taken, GIBIBYTE);
        assert!(grown < 32 << 20, "{protocol:?}: {grown} bytes more for a gibibyte each way");
    }
}

fn upgrade_request() -> String {
    format!(
        "GET /chat HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    )
}

#[tokio::test]
async fn an_upgraded_connection_is_passed_through_until_both_sides_ended() {
    let raw = RawInstance::start().await;
    let scene = Scene::new(&[&raw.endpoint]).await;
    let mut user = TcpStream::connect(scene.ingress.address).await.unwrap();
    user.write_all(upgrade_request().as_bytes()).await.unwrap();
    let mut instance = raw.accept().await;
    assert!(read_head(&mut instance).await.contains("upgrade: websocket\r\n"));
    // The first bytes of the new protocol come in one packet with the head.
    let accepted = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
        Upgrade: websocket\r\nSec-WebSocket-Accept: s3cret\r\n\r\nhello";
    instance.write_all(accepted).await.unwrap();
    let head = read_head(&mut user).await.to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    for field in ["connection: upgrade", "upgrade: websocket", "sec-websocket-accept: s3cret"] {
        assert!(head.contains(&format!("{field}\r\n")), "{head}");
    }
    let mut five = [0; 5];
    in_time("the first bytes", user.read_exact(&mut five)).await.unwrap();
    assert_eq!(&five, b"hello");
    for said in [*b"apple", *b"pears"] {
        user.write_all(&said).await.unwrap();
        in_time("bytes there", instance.read_exact(&mut five)).await.unwrap();
        instance.write_all(&five).await.unwrap();
        in_time("bytes back", user.read_exact(&mut five)).await.unwrap();
        assert_eq!(five, said);
    }
    // One side may end before the other.
    user.shutdown().await.unwrap();
    assert_eq!(in_time("the end there", instance.read(&mut five)).await.unwrap(), 0);
    instance.write_all(b"a bye").await.unwrap();
    drop(instance);
    let mut rest = String::new();
    in_time("the end back", user.read_to_string(&mut rest)).await.unwrap();
    assert_eq!(rest, "a bye");
}

#[tokio::test]
async fn an_upgrade_that_is_declined_is_an_ordinary_request() {
    let instance = Instance::saying("no").await;
    let scene = Scene::new(&[&instance.endpoint]).await;
    let mut client = scene.ingress.client().await;
    for _ in 0..2 {
        let mut asking = request(HOST, "/");
        asking.headers_mut().insert(header::CONNECTION, "upgrade".parse().unwrap());
        asking.headers_mut().insert(header::UPGRADE, "websocket".parse().unwrap());
        client.ready().await.unwrap();
        let answer = client.send_request(asking).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(text(answer).await, "no");
    }
}

pub(super) async fn http2_client(ingress: &Ingress) -> http2::SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(ingress.address).await.unwrap();
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (sender, connection) = handshake.unwrap();
    tokio::spawn(connection);
    sender
}

fn http2_request(path: &str) -> Request<Full<Bytes>> {
    Request::get(format!("http://WEB.test:80{path}")).body(Full::default()).unwrap()
}

#[tokio::test]
async fn http2_requests_share_a_connection() {
    let all_there = Arc::new(Barrier::new(30));
    let handler = async move |request: axum::extract::Request| {
        all_there.wait().await;
        let host = request.headers()[header::HOST].to_str().unwrap().to_owned();
        let cookie = request.headers()[header::COOKIE].to_str().unwrap().to_owned();
        format!("{} {host} {cookie}", request.uri())
    };
    let instance = Instance::start(Router::new().fallback(handler)).await;
    let scene = Scene::new(&[&instance.endpoint]).await;
    let client = http2_client(&scene.ingress).await;
    let asking = (0..30).map(|idx| {
        let mut client = client.clone();
        let mut request = http2_request(&format!("/{idx}"));
        for cookie in ["a=1", "b=2"] {
            request.headers_mut().append(header::COOKIE, cookie.parse().unwrap());
        }
        async move { text(client.send_request(request).await.unwrap()).await }
    });
    let answers = in_time("all answers", join_all(asking)).await;
    for (idx, answer) in answers.iter().enumerate() {
        assert_eq!(answer, &format!("/{idx} WEB.test:80 a=1; b=2"));
    }
}

#[tokio::test]
async fn http2_must_not_name_two_hosts() {
    let instance = Instance::saying("fine").await;
    let scene = Scene::new(&[&instance.endpoint]).await;
    let mut client = http2_client(&scene.ingress).await;
    for (host, status) in [("web.test:80", 200), ("other.test", 400)] {
        let mut request = http2_request("/");
        request.headers_mut().insert(header::HOST, host.parse().unwrap());
        assert_eq!(client.send_request(request).await.unwrap().status(), status, "{host}");
    }
}

/// Answers one request with trailers, as an instance that speaks HTTP/1.1.
pub(super) async fn play_with_trailers(raw: &RawInstance) -> TcpStream {
    let mut stream = raw.accept().await;
    read_head(&mut stream).await;
    let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: grpc-status\r\n\r\n\
            2\r\nhi\r\n0\r\ngrpc-status: 0\r\n\r\n";
    stream.write_all(answer).await.unwrap();
    stream
}

#[tokio::test]
async fn trailers_go_through() {
    let raw = RawInstance::start().await;
    let scene = Scene::new(&[&raw.endpoint]).await;
    let playing = play_with_trailers(&raw);
    let mut client = http2_client(&scene.ingress).await;
    let (answer, _stream) = tokio::join!(client.send_request(http2_request("/")), playing);
    let collected = in_time("the body", answer.unwrap().into_body().collect()).await.unwrap();
    assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(collected.to_bytes(), "hi");
}
