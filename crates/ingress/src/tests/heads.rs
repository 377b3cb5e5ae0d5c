//! Heads of messages: what is passed on, what is changed, and what is refused.

use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::played::*;

/// Sends bytes and reads what comes until the connection ends.
async fn talk(ingress: &Ingress, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(ingress.address).await.unwrap();
    // A write may fail because the ingress has refused and closed already.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    // A reset after the answer is the kernel's way to say that not all was read.
    let _ = in_time("the end of the connection", stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// What an instance sees of a request: the lines of its head in lower case and sorted, and what
/// followed it at once. `answer` is what it answers.
async fn seen(raw: &RawInstance, answer: &[u8]) -> (String, Vec<String>) {
    let mut stream = raw.accept().await;
    let head = read_head(&mut stream).await;
    stream.write_all(answer).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut lines = head.lines().filter(|line| !line.is_empty());
    let first = lines.next().unwrap().to_owned();
    let mut fields: Vec<_> = lines.map(str::to_ascii_lowercase).collect();
    fields.sort();
    (first, fields)
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";

/// The head of a request, the request line that arrives, and the fields beside those that tell of
/// the user.
const PASSED_ON: &[(&str, &str, &[&str])] = &[
    (
        "GET /a?b=%20c HTTP/1.1\r\nHost: WEB.test.:8080\r\nX-Request-Id: mine\r\n",
        "GET /a?b=%20c HTTP/1.1",
        &["host: web.test.:8080", "x-forwarded-host: web.test.:8080", "x-request-id: mine"],
    ),
    (
        "GET http://web.test HTTP/1.1\r\nHost: other.test\r\nX-Request-Id: mine\r\n",
        "GET / HTTP/1.1",
        &["host: web.test", "x-forwarded-host: web.test", "x-request-id: mine"],
    ),
    (
        "GET http://web.test?q HTTP/1.1\r\nHost: web.test\r\nX-Request-Id: mine\r\n",
        "GET /?q HTTP/1.1",
        &["host: web.test", "x-forwarded-host: web.test", "x-request-id: mine"],
    ),
    (
        "OPTIONS * HTTP/1.1\r\nHost: web.test\r\nX-Request-Id: mine\r\n",
        "OPTIONS * HTTP/1.1",
        &["host: web.test", "x-forwarded-host: web.test", "x-request-id: mine"],
    ),
    (
        "GET / HTTP/1.0\r\nHost: web.test\r\nX-Request-Id: mine\r\nUpgrade: x\r\n",
        "GET / HTTP/1.1",
        &["host: web.test", "x-forwarded-host: web.test", "x-request-id: mine"],
    ),
    (
        "GET / HTTP/1.1\r\nHost: web.test\r\nX-Request-Id: mine\r\nConnection: close, X-Hop\r\n\
         X-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: x\r\nTE: trailers, deflate\r\n\
         X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 7.7.7.7\r\nX-Forwarded-Proto: https\r\n\
         X-Forwarded-Host: evil\r\nX-Forwarded-Port: 1\r\nForwarded: for=6.6.6.6\r\n\
         X-Real-IP: 6.6.6.6\r\nCookie: a=1\r\nCookie: b=2\r\nX-Kept: 1\r\nX-Kept: 2\r\n",
        "GET / HTTP/1.1",
        &[
            "connection: te",
            "cookie: a=1; b=2",
            "host: web.test",
            "te: trailers",
            "x-forwarded-host: web.test",
            "x-kept: 1",
            "x-kept: 2",
            "x-request-id: mine",
        ],
    ),
    (
        // Upgrades to HTTP/2 are not offered to instances.
        "GET / HTTP/1.1\r\nHost: web.test\r\nX-Request-Id: mine\r\n\
         Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
        "GET / HTTP/1.1",
        &["host: web.test", "x-forwarded-host: web.test", "x-request-id: mine"],
    ),
    (
        "GET / HTTP/1.1\r\nHost: web.test\r\nX-Request-Id: mine\r\nConnection: keep-alive, \
         Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n",
        "GET / HTTP/1.1",
        &[
            "connection: upgrade",
            "host: web.test",
            "sec-websocket-key: k",
            "upgrade: websocket",
            "x-forwarded-host: web.test",
            "x-request-id: mine",
        ],
    ),
];

#[tokio::test]
async fn an_instance_sees_what_it_should_of_a_request() {
    let raw = RawInstance::start().await;
    let scene = Scene::new(&[&raw.endpoint]).await;
    let told = ["x-forwarded-for: 127.0.0.1", "x-forwarded-proto: http"];
    for (sent, first, fields) in PASSED_ON {
        let closing = if sent.contains("Connection:") { "" } else { "Connection: close\r\n" };
        let bytes = format!("{sent}{closing}\r\n");
        let exchange = async {
            let mut stream = TcpStream::connect(scene.ingress.address).await.unwrap();
            stream.write_all(bytes.as_bytes()).await.unwrap();
            seen(&raw, OK).await
        };
        let (arrived, arrived_fields) = exchange.await;
        assert_eq!(&arrived, first, "{sent}");
        let mut expected: Vec<_> = told.iter().chain(*fields).map(|f| (*f).to_owned()).collect();
        expected.sort();
        assert_eq!(arrived_fields, expected, "{sent}");
    }
}

#[tokio::test]
async fn a_request_without_a_usable_id_gets_one() {
    let raw = RawInstance::start().await;
    let scene = Scene::new(&[&raw.endpoint]).await;
    let too_long = "x".repeat(129);
    for given in ["", "X-Request-Id: \r\n", "X-Request-Id: a b\r\n", &too_long_line(&too_long)] {
        let bytes = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n{given}\r\n");
        let (_, (_, fields)) = tokio::join!(talk(&scene.ingress, bytes.as_bytes()), seen(&raw, OK));
        let ids: Vec<_> = fields.iter().filter_map(|f| f.strip_prefix("x-request-id: ")).collect();
        assert_eq!(ids.len(), 1, "{given}");
        assert_eq!(ids[0].len(), 32, "{given}");
        assert!(ids[0].bytes().all(|digit| digit.is_ascii_hexdigit()), "{given}");
    }
}

fn too_long_line(id: &str) -> String {
    format!("X-Request-Id: {id}\r\n")
}

#[tokio::test]
async fn a_user_sees_what_it_should_of_an_answer() {
    let raw = RawInstance::start().await;
    let scene = Scene::new(&[&raw.endpoint]).await;
    let answer =
        b"HTTP/1.1 418 Teapot\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: x\r\n\
        Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nServer: theirs\r\nTransfer-Encoding: chunked\r\n\r\n\
        3\r\nabc\r\n0\r\n\r\n";
    let mut client = scene.ingress.client().await;
    for _ in 0..2 {
        client.ready().await.unwrap();
        let asked = client.send_request(request(HOST, "/"));
        let (answer, _) = tokio::join!(asked, seen(&raw, answer));
        let answer = answer.unwrap();
        assert_eq!(answer.status(), StatusCode::IM_A_TEAPOT);
        let mut names: Vec<_> = answer.headers().keys().map(|name| name.as_str()).collect();
        names.sort_unstable();
        // The connection to the user stays open although the instance closed its own.
        assert_eq!(names, ["date", "server", "set-cookie", "transfer-encoding"]);
        assert_eq!(answer.headers().get_all("set-cookie").iter().count(), 2);
        assert_eq!(text(answer).await, "abc");
    }
}

/// What a user may send, and the status line that comes back; none for a closed connection.
const GARBAGE: &[(&[u8], &str)] = &[
    (b"\r\n\r\n\r\n\0", "400"),
    (b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", "400"),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello of some length", "400"),
    (b"GET\r\n\r\n", "400"),
    (b"GET / HTTP/9.9\r\nHost: web.test\r\n\r\n", "400"),
    (b"GET / HTTP/1.1\r\n\r\n", "400"),
    (b"GET / HTTP/1.0\r\n\r\n", "400"),
    (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", "400"),
    (b"GET / HTTP/1.1\r\nHost: web.test\r\nHost: web.test\r\n\r\n", "400"),
    (b"GET / HTTP/1.1\r\nHost: web.test, other.test\r\n\r\n", "400"),
    (b"GET / HTTP/1.1\r\nHost: web.test/path\r\n\r\n", "400"),
    (b"GET / HTTP/1.1\r\nHost: user@web.test\r\n\r\n", "400"),
    (b"GET / HTTP/1.1\r\nHost: web test\r\n\r\n", "400"),
    (b"GET / HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n", "400"),
    (b"GET / HTTP/1.1\r\nHost: .\r\n\r\n", "400"),
    (b"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "404"),
    (b"GET / HTTP/1.1\r\nHost: ..\r\n\r\n", "404"),
    (b"GET / HTTP/1.1\r\nHost : web.test\r\n\r\n", "400"),
    (b"GET / HTTP/1.1\r\nHost: web.test\r\nA: b\r\n folded\r\n\r\n", "400"),
    (b"GET / HTTP/1.1\r\nHost: web.test\r\nA\0B: c\r\n\r\n", "400"),
    (b"GET / HTTP/1.1\r\nHost: web.test\r\nA: b\0c\r\n\r\n", "400"),
    (b"CONNECT web.test:80 HTTP/1.1\r\nHost: web.test\r\n\r\n", "501"),
    (b"POST / HTTP/1.1\r\nHost: web.test\r\nContent-Length: x\r\n\r\n", "400"),
    (b"POST / HTTP/1.1\r\nHost: web.test\r\nContent-Length: -1\r\n\r\n", "400"),
    (b"POST / HTTP/1.1\r\nHost: web.test\r\nContent-Length: +1\r\n\r\na", "400"),
    (
        b"POST / HTTP/1.1\r\nHost: web.test\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "400",
    ),
    (b"POST / HTTP/1.1\r\nHost: web.test\r\nContent-Length: 1, 2\r\n\r\nab", "400"),
    (b"POST / HTTP/1.1\r\nHost: web.test\r\nContent-Length: 18446744073709551616\r\n\r\n", "400"),
    (b"POST / HTTP/1.1\r\nHost: web.test\r\nTransfer-Encoding: gzip\r\n\r\n", "400"),
    (b"POST / HTTP/1.1\r\nHost: web.test\r\nTransfer-Encoding: chunked, gzip\r\n\r\n", "400"),
    (b"POST / HTTP/1.1\r\nHost: web.test\r\nTransfer-Encoding: xchunked\r\n\r\n", "400"),
    (b"POST / HTTP/1.0\r\nHost: web.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400"),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nnot a frame of HTTP/2 at all, and long enough", ""),
    (b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", "400"),
];

#[tokio::test]
async fn garbage_is_refused_and_never_reaches_an_instance() {
    let instance = Instance::saying("fine").await;
    let untouched = RawInstance::start().await;
    let mut limits = limits();
    limits.head = std::time::Duration::from_millis(300);
    let scene = Scene::with(limits, &[&untouched.endpoint]).await;
    let mut wrong = Vec::new();
    for (bytes, status) in GARBAGE {
        let answer = talk(&scene.ingress, bytes).await;
        let got = answer.split(' ').nth(1).filter(|_| answer.starts_with("HTTP/1.")).unwrap_or("");
        if got != *status {
            wrong.push(format!("{} got {answer:?}, not {status}", bytes.escape_ascii()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let many = "A: b\r\n".repeat(200);
    let long = "a".repeat(100_000);
    for (what, head) in [
        ("many fields", format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{many}\r\n")),
        ("a long field", format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nA: {long}\r\n\r\n")),
        ("a long path", format!("GET /{long} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")),
    ] {
        let answer = talk(&scene.ingress, head.as_bytes()).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{what}: {answer:?}");
    }
    scene.location.give_and_wait(2, &[&instance.endpoint]).await;
    assert_eq!(scene.ingress.get().await.1, "fine");
    let untouched = futures_util::poll!(Box::pin(untouched.listener.accept()));
    assert!(untouched.is_pending(), "no garbage went to the instance");
}

/// A request with both lengths is read by its chunks alone, passed on with one framing, and is the
/// last of its connection (RFC 9112 section 6.3), so what follows it is nobody's request.
#[tokio::test]
async fn a_request_cannot_be_smuggled_behind_another() {
    let raw = RawInstance::start().await;
    let scene = Scene::new(&[&raw.endpoint]).await;
    let chunked = "Transfer-Encoding: chunked\r\n";
    let mut revision = 2;
    for lengths in [
        format!("Content-Length: 5\r\n{chunked}"),
        format!("{chunked}Content-Length: 5\r\n"),
        format!("Content-Length: 5\r\n{chunked}Content-Length: 5\r\n"),
        format!("Content-Length: 0\r\n{chunked}"),
    ] {
        let bytes = format!(
            "POST /first HTTP/1.1\r\nHost: {HOST}\r\n{lengths}\r\n0\r\n\r\n\
             GET /smuggled HTTP/1.1\r\nHost: {HOST}\r\n\r\n"
        );
        let instance = async {
            let mut stream = raw.accept().await;
            let mut all = Vec::new();
            while !all.ends_with(b"0\r\n\r\n") {
                all.push(in_time("a request", stream.read_u8()).await.unwrap());
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            (stream, String::from_utf8(all).unwrap().to_ascii_lowercase())
        };
        scene.location.give_and_wait(revision, &[&raw.endpoint]).await;
        let (answer, (mut stream, seen)) =
            tokio::join!(talk(&scene.ingress, bytes.as_bytes()), instance);
        // Without a table for it the connection is closed, and nothing more had come over it.
        scene.location.give_and_wait(revision + 1, &[]).await;
        revision += 2;
        let mut more = Vec::new();
        in_time("the end", stream.read_to_end(&mut more)).await.unwrap();
        assert!(seen.starts_with("post /first"), "{seen}");
        assert!(seen.contains("transfer-encoding: chunked"), "{lengths}: {seen}");
        assert!(!seen.contains("content-length"), "{lengths}: {seen}");
        assert_eq!(more, b"", "{lengths}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{lengths}: {answer}");
    }
}
