use super::*;

const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

async fn put(registry: &Harness, reference: &str, media_type: &str, body: &str) -> Answer {
    let path = format!("/v2/a/b/manifests/{reference}");
    let headers = [("content-type", media_type)];
    let headers = if media_type.is_empty() { &[][..] } else { &headers[..] };
    registry.send("PUT", &path, headers, body.to_owned()).await
}

#[tokio::test]
async fn each_kind_comes_back_as_it_was_pushed() {
    let registry = Harness::new().await;
    let config = descriptor(&registry.push_blob("a/b", b"{}").await, 2);
    for (image_type, index_type) in [(IMAGE, INDEX), (DOCKER, DOCKER_LIST)] {
        // Spaces and key order are the pusher's and must survive.
        let image = format!(
            "{{ \"schemaVersion\":2,  \"mediaType\":\"{image_type}\", \"config\":{config}, \"layers\":[] }}\n"
        );
        let index = json!({"schemaVersion": 2, "mediaType": index_type,
            "manifests": [descriptor(&digest(image.as_bytes()), image.len())]})
        .to_string();
        for (media_type, body, tag) in
            [(image_type, &image, "image"), (index_type, &index, "index")]
        {
            let answer = put(&registry, tag, media_type, body).await;
            let digest = digest(body.as_bytes());
            assert_eq!(answer.status, 201, "{}", answer.text());
            assert_eq!(answer.header("docker-content-digest"), digest);
            let location = answer.header("location").to_owned();
            assert_eq!(location, format!("/v2/a/b/manifests/{digest}"));
            assert_eq!(put(&registry, &digest, media_type, body).await.status, 201);
            for path in [location, format!("/v2/a/b/manifests/{tag}")] {
                let got = registry.get(&path).await;
                assert_eq!(got.text(), *body);
                assert_eq!(got.header("content-type"), media_type);
                assert_eq!(got.header("docker-content-digest"), digest);
                let head = registry.send("HEAD", &path, &[], "").await;
                assert_eq!(head.header("content-length"), body.len().to_string());
                let etag = got.header("etag").to_owned();
                for (method, known, status) in [
                    ("GET", etag.as_str(), 304),
                    ("HEAD", etag.as_str(), 304),
                    ("GET", &format!("\"other\", W/{etag}"), 304),
                    ("GET", "*", 304),
                    ("GET", "\"other\"", 200),
                ] {
                    let headers = [("if-none-match", known)];
                    let answer = registry.send(method, &path, &headers, "").await;
                    assert_eq!(answer.status, status, "{method} {known}");
                    assert_eq!(answer.header("docker-content-digest"), digest);
                }
            }
        }
    }
}

#[tokio::test]
async fn a_manifest_is_refused_for_what_it_says_or_misses() {
    let registry = Harness::new().await;
    let config = descriptor(&registry.push_blob("a/b", b"{}").await, 2);
    let elsewhere = descriptor(&registry.push_blob("a/other", b"x").await, 1);
    let image = |config: &Value, layer: &Value| {
        json!({"schemaVersion": 2, "config": config, "layers": [layer]}).to_string()
    };
    let index = |child: &Value| json!({"schemaVersion": 2, "manifests": [child]}).to_string();
    let wrong_size = descriptor(&digest(b"{}"), 3);
    let good = image(&config, &config);
    let huge = format!("{}{good}", " ".repeat(4 << 20));
    let unknown = digest(b"unknown");
    for (reference, media_type, body, status, code) in [
        ("1", IMAGE, image(&elsewhere, &config), 400, "MANIFEST_BLOB_UNKNOWN"),
        ("1", IMAGE, image(&config, &elsewhere), 400, "MANIFEST_BLOB_UNKNOWN"),
        ("1", INDEX, index(&elsewhere), 400, "MANIFEST_BLOB_UNKNOWN"),
        ("1", INDEX, index(&config), 400, "MANIFEST_BLOB_UNKNOWN"),
        ("1", IMAGE, image(&wrong_size, &config), 400, "SIZE_INVALID"),
        ("1", IMAGE, huge, 413, "SIZE_INVALID"),
        ("1", IMAGE, "{".to_owned(), 400, "MANIFEST_INVALID"),
        ("1", INDEX, good.clone(), 400, "MANIFEST_INVALID"),
        ("1", "", good.clone(), 400, "MANIFEST_INVALID"),
        ("1", "text/plain", good.clone(), 400, "MANIFEST_INVALID"),
        (".bad", IMAGE, good.clone(), 400, "MANIFEST_INVALID"),
        ("sha256:12", IMAGE, good.clone(), 400, "DIGEST_INVALID"),
        (&unknown, IMAGE, good.clone(), 400, "DIGEST_INVALID"),
    ] {
        let answer = put(&registry, reference, media_type, &body).await;
        answer.assert_refused(status, code);
    }
    let tags = registry.get("/v2/a/b/tags/list").await;
    assert_eq!(tags.json()["tags"], json!([]));
    assert_eq!(put(&registry, "1", IMAGE, &good).await.status, 201);
}

#[tokio::test]
async fn deleting_by_tag_and_by_digest() {
    let registry = Harness::new().await;
    let digest = registry.push_image("a/b", "one", b"layer").await;
    registry.push_image("a/b", "two", b"layer").await;
    let delete = async |reference: &str| {
        let path = format!("/v2/a/b/manifests/{reference}");
        registry.send("DELETE", &path, &[], "").await.status
    };
    let get = async |reference: &str| {
        let path = format!("/v2/a/b/manifests/{reference}");
        registry.get(&path).await.status
    };
    assert_eq!(delete("one").await, 202);
    assert_eq!((get("one").await, get("two").await, get(&digest).await), (404, 200, 200));
    assert_eq!(delete(&digest).await, 202);
    assert_eq!((get("two").await, get(&digest).await), (404, 404));
    assert_eq!(delete(&digest).await, 404);
    let tags = registry.get("/v2/a/b/tags/list").await;
    assert_eq!(tags.json()["tags"], json!([]));
}

#[tokio::test]
async fn a_tag_moves() {
    let registry = Harness::new().await;
    let first = registry.push_image("a/b", "latest", b"one").await;
    let second = registry.push_image("a/b", "latest", b"two").await;
    let answer = registry.get("/v2/a/b/manifests/latest").await;
    assert_eq!(answer.header("docker-content-digest"), second);
    let path = format!("/v2/a/b/manifests/{first}");
    assert_eq!(registry.get(&path).await.status, 200);
}
