//! What a release needs cannot be deleted.

use std::collections::BTreeMap;
use std::sync::Arc;

use longshore_registry::RegistryOptions;
use tokio::sync::watch;

use super::*;

#[tokio::test]
async fn what_a_release_is_made_of_stays_until_the_release_goes() {
    let root = tempfile::tempdir().unwrap();
    let (pins, pinned) = watch::channel(Arc::default());
    let options = RegistryOptions { pins: pinned, ..options(root.path()) };
    let registry = Harness::around(serve(options).await, root);
    let image = registry.push_image("a/b", "one", b"layer").await;
    let free = registry.push_image("a/b", "free", b"another layer").await;
    registry.push_image("a/other", "one", b"layer").await;
    let bytes = registry.get(&format!("/v2/a/b/manifests/{image}")).await.body;
    let mut child = descriptor(&image, bytes.len());
    child["mediaType"] = json!(IMAGE);
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [child]}).to_string();
    let headers = [("content-type", INDEX)];
    registry.send("PUT", "/v2/a/b/manifests/index", &headers, index.clone()).await;
    let index = digest(index.as_bytes());

    let table = [(("a/b".parse().unwrap(), index.parse().unwrap()), "web r3".to_owned())];
    pins.send_replace(Arc::new(BTreeMap::from(table)));
    let delete = async |path: &str| registry.send("DELETE", path, &[], "").await;
    let (layer, config) = (digest(b"layer"), digest(b"{}"));
    let needed = [
        format!("/v2/a/b/manifests/{index}"),
        format!("/v2/a/b/manifests/{image}"),
        format!("/v2/a/b/blobs/{layer}"),
        format!("/v2/a/b/blobs/{config}"),
    ];
    for path in &needed {
        let answer = delete(path).await;
        answer.assert_refused(409, "DENIED");
        assert!(answer.text().contains("in use by the release web r3"), "{}", answer.text());
        assert_eq!(registry.get(path).await.status, 200);
    }
    for free in [
        "/v2/a/b/manifests/index".to_owned(),
        format!("/v2/a/b/manifests/{free}"),
        format!("/v2/a/b/blobs/{}", digest(b"another layer")),
        format!("/v2/a/other/blobs/{layer}"),
    ] {
        assert_eq!(delete(&free).await.status, 202, "{free}");
    }

    pins.send_replace(Arc::default());
    for path in &needed {
        assert_eq!(delete(path).await.status, 202, "{path}");
    }
}
