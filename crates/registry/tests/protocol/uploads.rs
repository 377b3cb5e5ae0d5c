use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

fn finish(upload: &str, bytes: &[u8]) -> String {
    format!("{upload}?digest={}", digest(bytes))
}

#[tokio::test]
async fn in_chunks_with_and_without_places() {
    let registry = Harness::new().await;
    for (first, last_place, bytes) in [
        (Some("0-4"), Some("5-9"), b"0123456789"),
        (None, None, b"abcdefghij"),
        (Some("0-4"), None, b"klmnopqrst"),
    ] {
        let place = |place: Option<&'static str>| place.map(|place| ("content-range", place));
        let upload = registry.begin("a/b").await;
        let headers: Vec<_> = place(first).into_iter().collect();
        let answer = registry.send("PATCH", &upload, &headers, bytes[..5].to_vec()).await;
        assert_eq!((answer.status, answer.header("range")), (202, "0-4"));
        let status = registry.get(answer.header("location")).await;
        assert_eq!((status.status, status.header("range")), (204, "0-4"));
        let headers: Vec<_> = place(last_place).into_iter().collect();
        let path = finish(status.header("location"), bytes);
        let answer = registry.send("PUT", &path, &headers, bytes[5..].to_vec()).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        assert_eq!(answer.header("docker-content-digest"), digest(bytes));
        assert_eq!(registry.get(answer.header("location")).await.body, bytes);
        registry.get(&upload).await.assert_refused(404, "BLOB_UPLOAD_UNKNOWN");
    }
}

#[tokio::test]
async fn in_one_request_or_two() {
    let registry = Harness::new().await;
    for bytes in [&b""[..], b"x", b"0123456789"] {
        let name = digest(bytes);
        let path = format!("/v2/a/one/blobs/uploads/?digest={name}");
        let one = registry.send("POST", &path, &[], bytes.to_vec()).await;
        let upload = registry.begin("a/two").await;
        let two = registry.send("PUT", &finish(&upload, bytes), &[], bytes.to_vec()).await;
        // A chunk may be empty, and so may the request that ends the upload.
        let upload = registry.begin("a/three").await;
        for chunk in [&b""[..], bytes, b""] {
            assert_eq!(registry.send("PATCH", &upload, &[], chunk.to_vec()).await.status, 202);
        }
        let three = registry.send("PUT", &finish(&upload, bytes), &[], "").await;
        for (answer, repository) in [(one, "a/one"), (two, "a/two"), (three, "a/three")] {
            assert_eq!(answer.status, 201, "{}", answer.text());
            assert_eq!(answer.header("location"), format!("/v2/{repository}/blobs/{name}"));
            assert_eq!(answer.header("docker-content-digest"), name);
            assert_eq!(registry.get(answer.header("location")).await.body, bytes);
        }
    }
    // One that has no byte yet says so as the protocol can.
    let upload = registry.begin("a/b").await;
    let status = registry.get(&upload).await;
    assert_eq!((status.status, status.header("range")), (204, "0-0"));
    let late = registry.send("PATCH", &upload, &[("content-range", "5-9")], "56789").await;
    late.assert_refused(416, "BLOB_UPLOAD_INVALID");
    assert_eq!(leftovers(&registry), 1);
}

#[tokio::test]
async fn chunks_out_of_order_or_of_another_length_are_refused() {
    let registry = Harness::new().await;
    let upload = registry.begin("a/b").await;
    let send = async |place: &str, bytes: &'static str| {
        let headers = [("content-range", place)];
        registry.send("PATCH", &upload, &headers, bytes).await
    };
    assert_eq!(send("0-4", "01234").await.status, 202);
    for place in ["0-4", "4-8", "6-10"] {
        let answer = send(place, "56789").await;
        answer.assert_refused(416, "BLOB_UPLOAD_INVALID");
        assert_eq!(answer.header("range"), "0-4");
        assert_eq!(answer.header("location"), upload);
    }
    send("nonsense", "56789").await.assert_refused(400, "BLOB_UPLOAD_INVALID");
    send("5-6", "56789").await.assert_refused(413, "SIZE_INVALID");
    send("5-9", "56").await.assert_refused(400, "SIZE_INVALID");
    // The two bytes that came are kept, and the client can learn so.
    assert_eq!(registry.get(&upload).await.header("range"), "0-6");
    assert_eq!(send("7-9", "789").await.status, 202);
    let path = finish(&upload, b"0123456789");
    assert_eq!(registry.send("PUT", &path, &[], "").await.status, 201);
}

#[tokio::test]
async fn digests_are_checked_and_a_wrong_one_ends_the_upload() {
    let registry = Harness::new().await;
    let upload = registry.begin("a/b").await;
    assert_eq!(registry.send("PATCH", &upload, &[], "bytes").await.status, 202);
    for query in ["", "?digest=", "?digest=sha256:12", "?digest=sha512:12"] {
        let answer = registry.send("PUT", &format!("{upload}{query}"), &[], "").await;
        answer.assert_refused(400, "DIGEST_INVALID");
    }
    let answer = registry.send("PUT", &finish(&upload, b"other"), &[], "").await;
    answer.assert_refused(400, "DIGEST_INVALID");
    let answer = registry.send("PUT", &finish(&upload, b"bytes"), &[], "").await;
    answer.assert_refused(404, "BLOB_UPLOAD_UNKNOWN");
    let path = format!("/v2/a/b/blobs/uploads/?digest={}", digest(b"other"));
    let answer = registry.send("POST", &path, &[], "bytes").await;
    answer.assert_refused(400, "DIGEST_INVALID");
    assert_eq!(leftovers(&registry), 0);
}

#[tokio::test]
async fn an_upload_belongs_to_its_repository_and_can_be_cancelled() {
    let registry = Harness::new().await;
    let upload = registry.begin("a/b").await;
    let elsewhere = upload.replace("/a/b/", "/a/c/");
    for (method, path) in [("PATCH", &elsewhere), ("DELETE", &elsewhere), ("GET", &elsewhere)] {
        let answer = registry.send(method, path, &[], "").await;
        answer.assert_refused(404, "BLOB_UPLOAD_UNKNOWN");
    }
    assert_eq!(registry.send("DELETE", &upload, &[], "").await.status, 204);
    let answer = registry.send("PATCH", &upload, &[], "bytes").await;
    answer.assert_refused(404, "BLOB_UPLOAD_UNKNOWN");
    assert_eq!(leftovers(&registry), 0);
}

#[tokio::test]
async fn mounts_from_another_repository() {
    let registry = Harness::new().await;
    let blob = registry.push_blob("a/b", b"bytes").await;
    let mount = |query: String| format!("/v2/c/d/blobs/uploads/?{query}");
    for (query, status) in [
        (format!("mount={blob}&from=a/b"), 201),
        (format!("mount={blob}&from=none"), 202),
        (format!("mount={blob}&from=../a/b"), 202),
        (format!("mount={blob}"), 202),
        (format!("mount={}&from=a/b", digest(b"none")), 202),
        ("mount=nonsense&from=a/b".to_owned(), 400),
    ] {
        let answer = registry.send("POST", &mount(query.clone()), &[], "").await;
        assert_eq!(answer.status, status, "{query}");
    }
    let path = format!("/v2/c/d/blobs/{blob}");
    assert_eq!(registry.get(&path).await.text(), "bytes");
}

#[tokio::test]
async fn sixteen_clients_push_the_same_blob() {
    let registry = Harness::new().await;
    let bytes: Vec<u8> = (0..5_000_000_u32).map(|n| (n % 251) as u8).collect();
    let pushes = (0..16).map(|n| registry.push_blob(["a/b", "c/d"][n % 2], &bytes));
    let digests = futures_util::future::join_all(pushes).await;
    assert!(digests.iter().all(|pushed| *pushed == digest(&bytes)));
    for name in ["a/b", "c/d"] {
        let path = format!("/v2/{name}/blobs/{}", digest(&bytes));
        assert_eq!(registry.get(&path).await.body, bytes);
    }
    assert_eq!(leftovers(&registry), 0);
}

/// Sends a request whose body stops before its end, and keeps the connection open.
async fn send_half(registry: &Harness, path: &str) -> tokio::net::TcpStream {
    let mut stream = tokio::net::TcpStream::connect(registry.server.address).await.unwrap();
    let request = format!(
        "PATCH {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ADMIN}\r\ncontent-length: 10\r\n\r\n01234"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

#[tokio::test]
async fn a_client_that_stops_sending_is_cut_off_and_can_resume() {
    let root = tempfile::tempdir().unwrap();
    let mut options = options(root.path());
    options.body_stall = Duration::from_millis(300);
    let registry = Harness::around(serve(options).await, root);
    let upload = registry.begin("a/b").await;
    let mut stalled = send_half(&registry, &upload).await;
    let mut answer = Vec::new();
    stalled.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert_eq!(registry.get(&upload).await.header("range"), "0-4");
    let path = finish(&upload, b"0123456789");
    assert_eq!(registry.send("PUT", &path, &[], "56789").await.status, 201);
}

#[tokio::test]
async fn a_connection_that_breaks_leaves_what_it_sent() {
    let registry = Harness::new().await;
    let upload = registry.begin("a/b").await;
    drop(send_half(&registry, &upload).await);
    // The request that broke holds the upload until it has written its bytes; this one waits.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while registry.get(&upload).await.header("range") != "0-4" {
        assert!(tokio::time::Instant::now() < deadline, "the bytes are lost");
        tokio::task::yield_now().await;
    }
    let path = finish(&upload, b"0123456789");
    assert_eq!(registry.send("PUT", &path, &[], "56789").await.status, 201);
}

#[tokio::test]
async fn a_blob_over_the_limit_is_refused_whatever_its_length_header_says() {
    let root = tempfile::tempdir().unwrap();
    let mut options = options(root.path());
    options.max_blob = longshore_types::ByteCount(1000);
    let registry = Harness::around(serve(options).await, root);
    let path = format!("/v2/a/b/blobs/uploads/?digest={}", digest(&[7; 2000]));
    let answer = registry.send("POST", &path, &[], vec![7; 2000]).await;
    answer.assert_refused(413, "SIZE_INVALID");
    let upload = registry.begin("a/b").await;
    let pieces = (0..4).map(|_| Ok::<_, std::io::Error>(vec![7_u8; 500]));
    let streamed = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
    let answer = registry.send("PATCH", &upload, &[], streamed).await;
    answer.assert_refused(413, "SIZE_INVALID");
    registry.push_blob("a/b", &[7; 1000]).await;
}

fn leftovers(registry: &Harness) -> usize {
    let count = |name| std::fs::read_dir(registry.root.path().join(name)).unwrap().count();
    count("uploads") + count("tmp")
}
