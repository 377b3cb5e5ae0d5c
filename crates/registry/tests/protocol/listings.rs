use super::server::{NOBODY, READER, TEAM};
use super::*;

#[tokio::test]
async fn tags_page_by_page() {
    let registry = Harness::new().await;
    for tag in ["v2", "v10", "latest", "v1"] {
        registry.push_image("a/b", tag, b"layer").await;
    }
    let all = registry.get("/v2/a/b/tags/list").await;
    assert_eq!(all.json(), json!({"name": "a/b", "tags": ["latest", "v1", "v10", "v2"]}));
    assert_eq!(all.header("link"), "");

    let mut path = "/v2/a/b/tags/list?n=3".to_owned();
    let mut pages = Vec::new();
    loop {
        let page = registry.get(&path).await;
        pages.push(page.json()["tags"].clone());
        let Some(link) = page.header("link").strip_suffix(">; rel=\"next\"") else {
            break;
        };
        path = link.strip_prefix('<').unwrap().to_owned();
    }
    assert_eq!(json!(pages), json!([["latest", "v1", "v10"], ["v2"]]));

    let none = registry.get("/v2/a/b/tags/list?n=0").await;
    assert_eq!(none.json()["tags"], json!([]));
    let bad = registry.get("/v2/a/b/tags/list?n=many").await;
    bad.assert_refused(400, "PAGINATION_NUMBER_INVALID");
}

#[tokio::test]
async fn the_catalog_shows_what_the_token_may_pull() {
    let registry = Harness::new().await;
    for name in ["team/web", "team/web/deep", "other/db", "team"] {
        registry.push_image(name, "1", b"layer").await;
    }
    registry.push_blob("team/no-manifest", b"blob").await;
    let everything = json!(["other/db", "team", "team/web", "team/web/deep"]);
    for (token, expected) in [
        (ADMIN, everything.clone()),
        (READER, everything),
        (TEAM, json!(["team/web", "team/web/deep"])),
        (NOBODY, json!([])),
    ] {
        let answer = registry.send_as(token, "GET", "/v2/_catalog", &[], "").await;
        assert_eq!(answer.json()["repositories"], expected, "{token}");
    }
    let answer = registry.send_as(TEAM, "GET", "/v2/_catalog?n=1", &[], "").await;
    assert_eq!(answer.json()["repositories"], json!(["team/web"]));
    assert_eq!(answer.header("link"), "</v2/_catalog?n=1&last=team/web>; rel=\"next\"");
}
