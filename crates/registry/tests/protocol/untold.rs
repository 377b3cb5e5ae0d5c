//! A registry on another machine than the control plane's, while that is away.

use std::time::Duration;

use longshore_registry::{Pushes, RegistryOptions};
use tokio::sync::watch;

use super::*;

#[tokio::test]
async fn nothing_is_changed_while_it_is_not_known_who_may_and_pulls_go_on() {
    let root = tempfile::tempdir().unwrap();
    let (tell, is_told) = watch::channel(true);
    let pushes = Pushes::WhileTold { hold: Duration::from_secs(1) };
    let options = RegistryOptions { is_told, pushes, ..options(root.path()) };
    let registry = Harness::around(serve(options).await, root);
    let image = registry.push_image("a/b", "one", b"layer").await;
    let begun = registry.begin("a/b").await;
    tell.send_replace(false);

    let layer = digest(b"layer");
    let (manifest, blob) = (format!("/v2/a/b/manifests/{image}"), format!("/v2/a/b/blobs/{layer}"));
    for path in [&manifest, &blob, "/v2/a/b/tags/list", "/v2/"] {
        assert_eq!(registry.get(path).await.status, 200, "{path}");
    }
    for (method, path) in [
        ("POST", "/v2/a/b/blobs/uploads/"),
        ("PATCH", &begun),
        ("PUT", "/v2/a/b/manifests/two"),
        ("DELETE", &manifest),
        ("DELETE", &blob),
        ("PUT", "/v2/_longshore/retention/a/b"),
        ("DELETE", "/v2/_longshore/retention/a/b"),
    ] {
        let answer = registry.send(method, path, &[], "").await;
        answer.assert_refused(403, "DENIED");
        assert!(answer.text().contains("the control plane is away"), "{}", answer.text());
    }
    // Who may not push at all is told that.
    let path = "/v2/a/b/blobs/uploads/";
    let answer = registry.send_as(server::READER, "POST", path, &[], "").await;
    answer.assert_refused(403, "DENIED");
    assert!(answer.text().contains("has no right to push to a/b"), "{}", answer.text());
    let garbage = registry.send("POST", "/v2/_longshore/garbage", &[], "").await;
    garbage.assert_refused(503, "UNKNOWN");

    // One that comes while the control plane is started again is held until that is back.
    let pushed = registry.push_image("a/b", "two", b"layer");
    let told = async {
        tokio::task::yield_now().await;
        tell.send_replace(true);
    };
    tokio::join!(pushed, told);
    assert_eq!(registry.get("/v2/a/b/manifests/two").await.status, 200);
}
