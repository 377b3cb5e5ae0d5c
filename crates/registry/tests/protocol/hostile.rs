//! Clients that mean harm, or were written in a hurry.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;

async fn patient(stall: Duration) -> Harness {
    let root = tempfile::tempdir().unwrap();
    let mut options = options(root.path());
    options.body_stall = stall;
    Harness::around(serve(options).await, root)
}

/// Sends a request as it is written and gives the connection.
async fn send_raw(registry: &Harness, head: &str, body: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(registry.server.address).await.unwrap();
    let head = format!("{head}host: x\r\nauthorization: Bearer {ADMIN}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    stream
}

/// The statuses of all answers that come until the registry closes the connection, or `wanted`.
async fn statuses(mut stream: TcpStream, wanted: usize) -> Vec<u16> {
    let mut text = Vec::new();
    let mut found = Vec::new();
    while found.len() < wanted && stream.read_buf(&mut text).await.unwrap_or(0) > 0 {
        let text = String::from_utf8_lossy(&text);
        let lines = text.split("\r\n").filter_map(|line| line.split_once("HTTP/1.1 "));
        found = lines.map(|(_, rest)| rest[..3].parse().unwrap()).collect();
    }
    found
}

#[tokio::test]
async fn a_length_that_is_not_true_harms_nobody_else() {
    let registry = patient(Duration::from_millis(300)).await;
    let upload = registry.begin("a/b").await;
    let patch = format!("PATCH {upload} HTTP/1.1\r\n");
    // More was said than comes.
    let head = format!("{patch}content-length: 100\r\n");
    let stream = send_raw(&registry, &head, b"01234").await;
    assert_eq!(statuses(stream, 1).await, [408]);
    assert_eq!(registry.get(&upload).await.header("range"), "0-4");
    // Less was said than comes: the rest is no request.
    let head = format!("{patch}content-length: 2\r\n");
    let stream = send_raw(&registry, &head, b"56\x00\x00garbage\r\n\r\n").await;
    assert_eq!(statuses(stream, 2).await, [202, 400]);
    assert_eq!(registry.get(&upload).await.header("range"), "0-6");
    // Two lengths, none that is a number, and a length beside chunks, which is how a proxy and the
    // server behind it come to disagree about where a request ends.
    for lengths in [
        "content-length: 1\r\ncontent-length: 2\r\n",
        "content-length: -1\r\n",
        "content-length: 99999999999999999999\r\n",
        "transfer-encoding: gzip\r\n",
    ] {
        let head = format!("{patch}{lengths}");
        let stream = send_raw(&registry, &head, b"5\r\nabcde\r\n0\r\n\r\n").await;
        assert_eq!(statuses(stream, 1).await, [400], "{lengths}");
        assert_eq!(registry.get(&upload).await.header("range"), "0-6", "{lengths}");
    }
}

#[tokio::test]
async fn chunks_that_break_off_keep_what_came() {
    let registry = Harness::new().await;
    let upload = registry.begin("a/b").await;
    let head = format!("PATCH {upload} HTTP/1.1\r\ntransfer-encoding: chunked\r\n");
    let stream = send_raw(&registry, &head, b"5\r\n01234\r\nzz\r\n").await;
    assert_eq!(statuses(stream, 1).await.first(), Some(&400));
    assert_eq!(registry.get(&upload).await.header("range"), "0-4");
}

#[tokio::test]
async fn those_who_send_slowly_stop_nobody() {
    let registry = patient(Duration::from_secs(60)).await;
    let mut slow = Vec::new();
    for n in 0..200 {
        let path = match n % 2 {
            0 => registry.begin("a/slow").await,
            _ => format!("/v2/a/slow/manifests/{n}"),
        };
        let method = if n % 2 == 0 { "PATCH" } else { "PUT" };
        let head = format!("{method} {path} HTTP/1.1\r\ncontent-length: 1000000\r\n");
        slow.push(send_raw(&registry, &head, b"{").await);
    }
    let digest = registry.push_image("a/b", "1", &vec![7; 3 << 20]).await;
    let answer = registry.get("/v2/a/b/manifests/1").await;
    assert_eq!(answer.header("docker-content-digest"), digest);
    drop(slow);
}

#[tokio::test]
async fn a_manifest_that_never_comes_is_given_up() {
    let registry = patient(Duration::from_millis(300)).await;
    let head = "PUT /v2/a/b/manifests/1 HTTP/1.1\r\ncontent-length: 100\r\n";
    let stream = send_raw(&registry, head, b"{\"schemaVersion\"").await;
    assert_eq!(statuses(stream, 1).await, [408]);
    registry.get("/v2/a/b/manifests/1").await.assert_refused(404, "MANIFEST_UNKNOWN");
}

#[tokio::test]
async fn a_manifest_may_be_wide_and_not_deep() {
    let registry = Harness::new().await;
    let blob = descriptor(&registry.push_blob("a/b", b"{}").await, 2);
    let send = async |text: String| {
        let headers = [("content-type", IMAGE)];
        registry.send("PUT", "/v2/a/b/manifests/1", &headers, text).await
    };
    let with =
        |layers: String| format!("{{\"schemaVersion\":2,\"config\":{blob},\"layers\":{layers}}}");
    // Deeper than any parser should follow.
    let deep = format!("{}{}", "[".repeat(500_000), "]".repeat(500_000));
    send(with(deep.clone())).await.assert_refused(400, "MANIFEST_INVALID");
    // What the registry need not read is kept as it came, however deep.
    let unread = format!("\"x\":{deep},\"config\"");
    let unread = with("[]".to_owned()).replace("\"config\"", &unread);
    assert_eq!(send(unread.clone()).await.status, 201);
    assert_eq!(registry.get("/v2/a/b/manifests/1").await.text(), unread);
    // As many layers as fit.
    let wide = vec![blob.to_string(); 25_000].join(",");
    assert_eq!(send(with(format!("[{wide}]"))).await.status, 201);
    for bad in [
        "null".to_owned(),
        "[]".to_owned(),
        with("{}".to_owned()),
        with("[null]".to_owned()),
        with("[{\"mediaType\":\"x\",\"digest\":\"sha256:x\",\"size\":1}]".to_owned()),
        with("[{\"mediaType\":\"x\",\"digest\":1,\"size\":1}]".to_owned()),
        with(format!("[{}]", blob.to_string().replace("\"size\":2", "\"size\":-1"))),
        with("[],\"annotations\":{\"a\":1}".to_owned()),
        with("[],\"subject\":{\"mediaType\":\"x\",\"digest\":\"nonsense\",\"size\":1}".to_owned()),
        with("[]".to_owned()).replace("\"schemaVersion\":2", "\"schemaVersion\":1"),
        with("[]".to_owned())
            .replace("\"schemaVersion\":2", "\"schemaVersion\":2,\"schemaVersion\":2"),
    ] {
        send(bad).await.assert_refused(400, "MANIFEST_INVALID");
    }
}

#[tokio::test]
async fn indexes_of_indexes_are_as_deep_as_they_were_pushed() {
    let registry = Harness::new().await;
    let image = registry.push_image("a/b", "0", b"layer").await;
    let size = registry.get("/v2/a/b/manifests/0").await.body.len();
    let mut below = descriptor(&image, size);
    for depth in 1..=50 {
        let index =
            json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [below]}).to_string();
        let path = format!("/v2/a/b/manifests/{depth}");
        let headers = [("content-type", INDEX)];
        let answer = registry.send("PUT", &path, &headers, index.clone()).await;
        assert_eq!(answer.status, 201, "{depth}: {}", answer.text());
        below = descriptor(&digest(index.as_bytes()), index.len());
    }
    let top = format!("/v2/a/b/manifests/{}", below["digest"].as_str().unwrap());
    assert_eq!(registry.get(&top).await.status, 200);
}
