use super::server::{NOBODY, READER, TEAM};
use super::*;

#[tokio::test]
async fn who_may_do_what() {
    let registry = Harness::new().await;
    let manifest = registry.push_image("team/app", "1", b"layer").await;
    registry.push_image("other/app", "1", b"layer").await;
    let blob = digest(b"layer");
    let read = |token, repository: &str, status| {
        let paths = [
            format!("/v2/{repository}/tags/list"),
            format!("/v2/{repository}/manifests/1"),
            format!("/v2/{repository}/manifests/{manifest}"),
            format!("/v2/{repository}/blobs/{blob}"),
        ];
        paths.map(|path| (token, "GET", path, status))
    };
    let write = |token, repository: &str, status| {
        [
            (token, "POST", format!("/v2/{repository}/blobs/uploads/"), status),
            (token, "PUT", format!("/v2/{repository}/manifests/2"), status),
        ]
    };
    let delete = |token, repository: &str, status| {
        [
            (token, "DELETE", format!("/v2/{repository}/manifests/1"), status),
            (token, "DELETE", format!("/v2/{repository}/blobs/{blob}"), status),
            // It says for which releases.
            (token, "GET", format!("/v2/_longshore/kept/{repository}"), status),
        ]
    };
    let cases = [
        read(READER, "team/app", 200).to_vec(),
        read(READER, "other/app", 200).to_vec(),
        read(TEAM, "team/app", 200).to_vec(),
        read(TEAM, "other/app", 403).to_vec(),
        read(NOBODY, "team/app", 403).to_vec(),
        read("wrong", "team/app", 401).to_vec(),
        read("", "team/app", 401).to_vec(),
        write(READER, "team/app", 403).to_vec(),
        write(TEAM, "other/app", 403).to_vec(),
        write(TEAM, "team", 403).to_vec(),
        write(NOBODY, "team/app", 403).to_vec(),
        write("wrong", "team/app", 401).to_vec(),
        delete(READER, "team/app", 403).to_vec(),
        delete(TEAM, "team/app", 403).to_vec(),
    ];
    for (token, method, path, expected) in cases.concat() {
        let answer = registry.send_as(token, method, &path, &[], "").await;
        assert_eq!(answer.status, expected, "{token} {method} {path}");
        match expected {
            401 => {
                answer.assert_refused(401, "UNAUTHORIZED");
                let challenge = answer.header("www-authenticate");
                let realm = format!("Bearer realm=\"{}\"", registry.url("/token"));
                assert!(challenge.starts_with(&realm), "{challenge}");
                assert!(challenge.contains(",scope=\"repository:team/app:"), "{challenge}");
            }
            403 => answer.assert_refused(403, "DENIED"),
            _ => {}
        }
    }
}

#[tokio::test]
async fn the_base_answers_whoever_has_a_token() {
    let registry = Harness::new().await;
    for path in ["/v2/", "/v2"] {
        for (token, expected) in [(NOBODY, 200), ("wrong", 401)] {
            let answer = registry.send_as(token, "GET", path, &[], "").await;
            assert_eq!(answer.status, expected);
            let version = answer.header("docker-distribution-api-version");
            assert_eq!(version, "registry/2.0");
        }
    }
    let without = registry.http.get(registry.url("/v2/")).send().await;
    assert_eq!(without.unwrap().status(), 401);
    let as_password =
        registry.http.get(registry.url("/v2/")).basic_auth("anyone", Some(READER)).send().await;
    assert_eq!(as_password.unwrap().status(), 200);
}

#[tokio::test]
async fn a_mount_tells_nothing_of_what_the_token_may_not_pull() {
    let registry = Harness::new().await;
    let secret = registry.push_blob("other/app", b"secret").await;
    let path = format!("/v2/team/app/blobs/uploads/?mount={secret}&from=other/app");
    let answer = registry.send_as(TEAM, "POST", &path, &[], "").await;
    assert_eq!(answer.status, 202);
    let path = format!("/v2/team/app/blobs/{secret}");
    let answer = registry.send_as(TEAM, "GET", &path, &[], "").await;
    answer.assert_refused(404, "BLOB_UNKNOWN");
}

#[tokio::test]
async fn what_is_not_there_and_what_cannot_be_asked() {
    let registry = Harness::new().await;
    let blob = registry.push_blob("a/b", b"x").await;
    let unknown = digest(b"unknown");
    for (method, path, status, code) in [
        ("GET", "/".to_owned(), 404, "UNSUPPORTED"),
        ("GET", "/v2/a/b/nonsense".to_owned(), 404, "UNSUPPORTED"),
        ("GET", "/v2/a/b/referrers/sha256:12".to_owned(), 400, "DIGEST_INVALID"),
        ("POST", format!("/v2/a/b/referrers/{unknown}"), 405, "UNSUPPORTED"),
        ("POST", "/token".to_owned(), 405, "UNSUPPORTED"),
        ("POST", "/v2/".to_owned(), 405, "UNSUPPORTED"),
        ("DELETE", "/v2/_catalog".to_owned(), 405, "UNSUPPORTED"),
        ("POST", "/v2/a/b/tags/list".to_owned(), 405, "UNSUPPORTED"),
        ("PATCH", "/v2/a/b/manifests/1".to_owned(), 405, "UNSUPPORTED"),
        ("PUT", format!("/v2/a/b/blobs/{blob}"), 405, "UNSUPPORTED"),
        ("GET", "/v2/a/b/blobs/uploads/".to_owned(), 405, "UNSUPPORTED"),
        ("POST", "/v2/a/b/blobs/uploads/x".to_owned(), 405, "UNSUPPORTED"),
        ("GET", "/v2/A/b/tags/list".to_owned(), 400, "NAME_INVALID"),
        ("GET", "/v2/a..b/manifests/1".to_owned(), 400, "NAME_INVALID"),
        ("GET", "/v2/a%2F..%2Fb/manifests/1".to_owned(), 400, "NAME_INVALID"),
        ("POST", "/v2/_x/blobs/uploads/".to_owned(), 400, "NAME_INVALID"),
        ("GET", "/v2/a/b/blobs/sha256:12".to_owned(), 400, "DIGEST_INVALID"),
        ("GET", format!("/v2/a/b/blobs/{}", blob.to_uppercase()), 400, "DIGEST_INVALID"),
        ("GET", format!("/v2/a/b/blobs/{unknown}"), 404, "BLOB_UNKNOWN"),
        ("GET", format!("/v2/a/c/blobs/{blob}"), 404, "BLOB_UNKNOWN"),
        ("DELETE", format!("/v2/a/c/blobs/{blob}"), 404, "BLOB_UNKNOWN"),
        ("GET", "/v2/a/b/manifests/1".to_owned(), 404, "MANIFEST_UNKNOWN"),
        ("GET", "/v2/a/b/manifests/.not-a-tag".to_owned(), 404, "MANIFEST_UNKNOWN"),
        ("DELETE", "/v2/a/b/manifests/1".to_owned(), 404, "MANIFEST_UNKNOWN"),
        ("GET", format!("/v2/a/b/manifests/{unknown}"), 404, "MANIFEST_UNKNOWN"),
        ("GET", format!("/v2/a/b/manifests/{blob}"), 404, "MANIFEST_UNKNOWN"),
        ("DELETE", format!("/v2/a/b/manifests/{unknown}"), 404, "MANIFEST_UNKNOWN"),
        ("GET", "/v2/a/b/manifests/sha256:12".to_owned(), 400, "DIGEST_INVALID"),
        ("GET", "/v2/none/tags/list".to_owned(), 404, "NAME_UNKNOWN"),
        ("PATCH", "/v2/a/b/blobs/uploads/x".to_owned(), 404, "BLOB_UPLOAD_UNKNOWN"),
    ] {
        let answer = registry.send(method, &path, &[], "").await;
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text());
        answer.assert_refused(status, code);
        assert_eq!(status == 405, answer.headers.contains_key("allow"), "{path}");
    }
}
