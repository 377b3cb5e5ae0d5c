use super::*;

#[tokio::test]
async fn whole_and_in_part() {
    let registry = Harness::new().await;
    let blob = registry.push_blob("a/b", b"0123456789").await;
    let path = format!("/v2/a/b/blobs/{blob}");
    let etag = format!("\"{blob}\"");
    for (headers, status, body, content_range) in [
        (vec![], 200, "0123456789", ""),
        (vec![("range", "bytes=2-4")], 206, "234", "bytes 2-4/10"),
        (vec![("range", "bytes=7-")], 206, "789", "bytes 7-9/10"),
        (vec![("range", "bytes=-2")], 206, "89", "bytes 8-9/10"),
        (vec![("range", "bytes=5-500")], 206, "56789", "bytes 5-9/10"),
        (vec![("range", "bytes=0-1,3-4")], 200, "0123456789", ""),
        (vec![("range", "bytes=0-1"), ("if-range", &etag)], 206, "01", "bytes 0-1/10"),
        (vec![("range", "bytes=0-1"), ("if-range", "\"x\"")], 200, "0123456789", ""),
        (vec![("if-none-match", &etag)], 304, "", ""),
        (vec![("if-none-match", "\"x\"")], 200, "0123456789", ""),
    ] {
        let answer = registry.send("GET", &path, &headers, "").await;
        assert_eq!(answer.status, status, "{headers:?}");
        assert_eq!(answer.text(), body, "{headers:?}");
        assert_eq!(answer.header("content-range"), content_range, "{headers:?}");
        assert_eq!(answer.header("docker-content-digest"), blob);
        assert_eq!(answer.header("etag"), etag);
        assert_eq!(answer.header("accept-ranges"), "bytes");
        if status != 304 {
            assert_eq!(answer.header("content-length"), body.len().to_string());
        }
    }
    let answer = registry.send("GET", &path, &[("range", "bytes=10-")], "").await;
    answer.assert_refused(416, "SIZE_INVALID");
    assert_eq!(answer.header("content-range"), "bytes */10");
}

#[tokio::test]
async fn head_tells_the_size_and_sends_nothing() {
    let registry = Harness::new().await;
    let blob = registry.push_blob("a/b", b"0123456789").await;
    let path = format!("/v2/a/b/blobs/{blob}");
    let answer = registry.send("HEAD", &path, &[], "").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-length"), "10");
    assert_eq!(answer.header("docker-content-digest"), blob);
    let path = format!("/v2/a/b/blobs/{}", digest(b"none"));
    assert_eq!(registry.send("HEAD", &path, &[], "").await.status, 404);
}

#[tokio::test]
async fn deletion_is_per_repository() {
    let registry = Harness::new().await;
    let blob = registry.push_blob("a/b", b"shared").await;
    registry.push_blob("c/d", b"shared").await;
    let mine = format!("/v2/a/b/blobs/{blob}");
    assert_eq!(registry.send("DELETE", &mine, &[], "").await.status, 202);
    registry.get(&mine).await.assert_refused(404, "BLOB_UNKNOWN");
    let theirs = format!("/v2/c/d/blobs/{blob}");
    assert_eq!(registry.get(&theirs).await.text(), "shared");
}

#[tokio::test]
async fn the_empty_blob() {
    let registry = Harness::new().await;
    let blob = registry.push_blob("a/b", b"").await;
    let path = format!("/v2/a/b/blobs/{blob}");
    let answer = registry.get(&path).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, ""));
    let answer = registry.send("GET", &path, &[("range", "bytes=0-")], "").await;
    answer.assert_refused(416, "SIZE_INVALID");
}
