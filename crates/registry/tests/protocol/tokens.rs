//! Logging in: a challenge, a passing token for what was asked, and what it then opens.

use super::server::{NOBODY, READER, TEAM};
use super::*;

/// Asks the token endpoint, logging in with a token as the password.
async fn ask(registry: &Harness, password: &str, query: &str) -> Answer {
    let url = registry.url(&format!("/token?{query}"));
    let request = registry.http.get(url).basic_auth("anyone", Some(password));
    Answer::read(request.send().await.unwrap()).await
}

/// A passing token with these scopes, as far as the rights go.
async fn passing(registry: &Harness, password: &str, scopes: &[&str]) -> String {
    let scopes: Vec<_> = scopes.iter().map(|scope| format!("scope={scope}")).collect();
    let query = format!("service=longshore&account=anyone&{}", scopes.join("&"));
    let answer = ask(registry, password, &query).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("cache-control"), "no-store");
    let json = answer.json();
    assert_eq!(json["token"], json["access_token"]);
    assert_eq!(json["expires_in"], 300);
    json["token"].as_str().unwrap().to_owned()
}

/// A parameter of the challenge in an answer.
fn parameter(answer: &Answer, name: &str) -> Option<String> {
    let challenge = answer.header("www-authenticate").strip_prefix("Bearer ")?;
    let (_, rest) = challenge.split_once(&format!("{name}=\""))?;
    Some(rest.split_once('"')?.0.to_owned())
}

#[tokio::test]
async fn a_challenge_leads_to_a_token_that_opens_what_was_asked() {
    let registry = Harness::new().await;
    registry.push_image("team/app", "1", b"layer").await;
    for (method, path, status) in [
        ("GET", "/v2/", 200),
        ("GET", "/v2/_catalog", 200),
        ("GET", "/v2/team/app/tags/list", 200),
        ("HEAD", "/v2/team/app/manifests/1", 200),
        ("POST", "/v2/team/app/blobs/uploads/", 202),
    ] {
        let answer = registry.send_as("", method, path, &[], "").await;
        assert_eq!(answer.status, 401, "{method} {path}");
        assert_eq!(parameter(&answer, "service").as_deref(), Some("longshore"));
        assert_eq!(parameter(&answer, "realm"), Some(registry.url("/token")));
        let scope = parameter(&answer, "scope");
        assert_eq!(scope.is_none(), path == "/v2/", "{path}");
        let token = passing(&registry, TEAM, &[scope.as_deref().unwrap_or_default()]).await;
        let answer = registry.send_as(&token, method, path, &[], "").await;
        assert_eq!(answer.status, status, "{method} {path}");
    }
}

#[tokio::test]
async fn a_passing_token_opens_nothing_beside_its_scopes_and_nothing_beyond_the_rights() {
    let registry = Harness::new().await;
    for name in ["team/app", "team/more", "other/app"] {
        registry.push_image(name, "1", b"layer").await;
    }
    let pull = passing(&registry, TEAM, &["repository:team/app:pull"]).await;
    let everything = passing(
        &registry,
        TEAM,
        &["repository:team/app:*", "repository:other/app:pull,push,delete", "registry:catalog:*"],
    )
    .await;
    let none = passing(&registry, NOBODY, &["repository:team/app:pull"]).await;
    for (token, method, path, status) in [
        (&pull, "GET", "/v2/", 200),
        (&pull, "GET", "/v2/team/app/manifests/1", 200),
        (&pull, "GET", "/v2/team/more/manifests/1", 401),
        (&pull, "POST", "/v2/team/app/blobs/uploads/", 401),
        (&pull, "GET", "/v2/_catalog", 401),
        (&pull, "GET", "/v2/other/app/manifests/1", 403),
        (&pull, "DELETE", "/v2/team/app/manifests/1", 403),
        (&everything, "GET", "/v2/team/app/manifests/1", 200),
        (&everything, "POST", "/v2/team/app/blobs/uploads/", 202),
        (&everything, "DELETE", "/v2/team/app/manifests/1", 403),
        (&everything, "GET", "/v2/other/app/manifests/1", 403),
        (&none, "GET", "/v2/team/app/manifests/1", 403),
    ] {
        let answer = registry.send_as(token, method, path, &[], "").await;
        assert_eq!(answer.status, status, "{method} {path}");
        // Only where another token would help is the client told to fetch one.
        let error = parameter(&answer, "error");
        assert_eq!(error.as_deref(), (status == 401).then_some("insufficient_scope"), "{path}");
    }
    let catalog = registry.send_as(&everything, "GET", "/v2/_catalog", &[], "").await;
    assert_eq!(catalog.json()["repositories"], json!(["team/app", "team/more"]));
}

#[tokio::test]
async fn a_mount_needs_the_scope_of_where_it_mounts_from() {
    let registry = Harness::new().await;
    let blob = registry.push_blob("team/from", b"bytes").await;
    let path = format!("/v2/team/to/blobs/uploads/?mount={blob}&from=team/from");
    for (scopes, status) in [
        (&["repository:team/to:pull,push"][..], 202),
        (&["repository:team/to:pull,push", "repository:team/from:pull"], 201),
    ] {
        let token = passing(&registry, TEAM, scopes).await;
        let answer = registry.send_as(&token, "POST", &path, &[], "").await;
        assert_eq!(answer.status, status, "{scopes:?}");
    }
}

#[tokio::test]
async fn only_a_token_of_ours_gets_a_passing_token() {
    let registry = Harness::new().await;
    let passing = passing(&registry, READER, &["repository:team/app:pull"]).await;
    // One does not beget another, or it would never end.
    for password in ["wrong", "", passing.as_str()] {
        let answer = ask(&registry, password, "service=longshore").await;
        answer.assert_refused(401, "UNAUTHORIZED");
        assert_eq!(answer.header("www-authenticate"), "Basic realm=\"longshore\"");
    }
    let scopes = vec!["scope=repository:a/b:pull"; 65].join("&");
    ask(&registry, READER, &scopes).await.assert_refused(400, "UNSUPPORTED");
    let changed = format!("{}x", passing);
    let answer = registry.send_as(&changed, "GET", "/v2/", &[], "").await;
    answer.assert_refused(401, "UNAUTHORIZED");
}

#[tokio::test]
async fn a_passing_token_ends_with_its_time_and_with_the_token_behind_it() {
    let root = tempfile::tempdir().unwrap();
    let (sender, mut options) = changing_options(root.path());
    let registry = Harness::around(serve(options.clone()).await, root);
    let token = passing(&registry, READER, &["repository:team/app:pull"]).await;
    let base = async |token: &str| registry.send_as(token, "GET", "/v2/", &[], "").await.status;
    assert_eq!(base(&token).await, 200);
    sender.send_replace(std::sync::Arc::default());
    assert_eq!(base(&token).await, 401);

    let root = tempfile::tempdir().unwrap();
    options = server::options(root.path());
    options.passing_lifetime = std::time::Duration::ZERO;
    let registry = Harness::around(serve(options).await, root);
    let answer = ask(&registry, READER, "service=longshore").await;
    let token = answer.json()["token"].as_str().unwrap().to_owned();
    let answer = registry.send_as(&token, "GET", "/v2/", &[], "").await;
    answer.assert_refused(401, "UNAUTHORIZED");
}

#[tokio::test]
async fn a_host_that_is_none_gets_no_place_to_log_in() {
    let registry = Harness::new().await;
    for (host, challenge) in [
        ("name.test:5000", "Bearer realm=\"http://name.test:5000/token\",service=\"longshore\""),
        ("user@name.test", "Basic realm=\"longshore\""),
        ("a\"b", "Basic realm=\"longshore\""),
    ] {
        let request = registry.http.get(registry.url("/v2/")).header("host", host);
        let answer = Answer::read(request.send().await.unwrap()).await;
        assert_eq!(answer.header("www-authenticate"), challenge, "{host}");
    }
}
