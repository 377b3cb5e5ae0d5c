//! The power is cut: what a manifest was acknowledged for is there, with every byte, and nothing is
//! there that is not whole.

use longshore_loop::power::Disk;

use super::*;

fn layer(image: u32, layer: u32) -> Vec<u8> {
    format!("{image} {layer} ").into_bytes().repeat(3000 + 100 * layer as usize)
}

/// Pushes an image of so many layers, and gives its manifest.
async fn push(registry: &Harness, image: u32, n_layers: u32) -> String {
    let config = descriptor(&registry.push_blob("a/b", b"{}").await, 2);
    let mut layers = Vec::new();
    for n in 0..n_layers {
        let bytes = layer(image, n);
        layers.push(descriptor(&registry.push_blob("a/b", &bytes).await, bytes.len()));
    }
    let manifest =
        json!({"schemaVersion": 2, "mediaType": IMAGE, "config": config, "layers": layers});
    let path = format!("/v2/a/b/manifests/{image}");
    let headers = [("content-type", IMAGE)];
    let answer = registry.send("PUT", &path, &headers, manifest.to_string()).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    manifest.to_string()
}

#[tokio::test]
async fn an_acknowledged_manifest_outlives_it_with_all_it_refers_to() {
    let files = tempfile::tempdir().unwrap();
    let place = |name: String| (files.path().join(&name), files.path().join(name + ".mounted"));
    let (file, at) = place("disk".to_owned());
    let disk = Disk::make(&file, &at, 96).unwrap();
    let root = disk.path().join("registry");
    let registry = Harness::around(serve(options(&root)).await, tempfile::tempdir().unwrap());
    for (round, n_layers) in [1, 20, 5, 12].into_iter().enumerate() {
        let round = round as u32;
        // One after another and at once, for they are brought to the disk together.
        let mut manifests = vec![push(&registry, 10 * round, n_layers).await];
        let at_once = (1..4).map(|n| push(&registry, 10 * round + n, n_layers));
        manifests.extend(futures_util::future::join_all(at_once).await);
        // This one no manifest has asked for.
        let loose = registry.push_blob("a/b", &layer(1000, round)).await;

        let (copy, at) = place(format!("copy-{round}"));
        let after = disk.after_a_power_cut(&copy, &at).unwrap();
        let root = after.path().join("registry");
        let found = Harness::around(serve(options(&root)).await, tempfile::tempdir().unwrap());
        for (n, manifest) in manifests.iter().enumerate() {
            let answer = found.get(&format!("/v2/a/b/manifests/{}", 10 * round + n as u32)).await;
            assert_eq!(answer.text(), *manifest, "round {round}");
            for layer in answer.json()["layers"].as_array().unwrap() {
                let name = layer["digest"].as_str().unwrap();
                let answer = found.get(&format!("/v2/a/b/blobs/{name}")).await;
                assert_eq!((answer.status, digest(&answer.body).as_str()), (200, name));
            }
        }
        let answer = found.get(&format!("/v2/a/b/blobs/{loose}")).await;
        assert!(answer.status == 404 || digest(&answer.body) == loose, "half a blob");
        drop(found);
        drop(after);
        std::fs::remove_file(copy).unwrap();
    }
    drop(registry);
}
