//! A disk that is full at each path that writes: a clear answer, nothing half visible, and all goes
//! on once there is room.

use super::disk::Disk;
use super::*;

async fn on(disk: &Disk) -> Harness {
    let server = serve(options(&disk.path().join("registry"))).await;
    Harness::around(server, tempfile::tempdir().unwrap())
}

fn left(disk: &Disk, name: &str) -> usize {
    std::fs::read_dir(disk.path().join("registry").join(name)).unwrap().count()
}

/// Everything that writes, as method, path, media type and body.
async fn writes(registry: &Harness) -> Vec<(&'static str, String, &'static str, Vec<u8>)> {
    let blob = registry.push_blob("a/b", b"{}").await;
    let new = vec![8; 100_000];
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": IMAGE,
        "config": descriptor(&blob, 2),
        "layers": [],
        "subject": descriptor(&digest(b"subject"), 1),
    })
    .to_string();
    let open = registry.begin("a/b").await;
    let whole = registry.begin("a/b").await;
    let by_digest = format!("/v2/a/b/manifests/{}", digest(manifest.as_bytes()));
    vec![
        ("POST", "/v2/a/b/blobs/uploads/".to_owned(), "", Vec::new()),
        ("POST", format!("/v2/a/b/blobs/uploads/?digest={}", digest(&new)), "", new.clone()),
        ("POST", format!("/v2/a/new/blobs/uploads/?mount={blob}&from=a/b"), "", Vec::new()),
        ("PATCH", open, "", new.clone()),
        ("PUT", format!("{whole}?digest={}", digest(&new)), "", new),
        ("PUT", by_digest, IMAGE, manifest.clone().into_bytes()),
        ("PUT", "/v2/a/b/manifests/new".to_owned(), IMAGE, manifest.clone().into_bytes()),
        ("PUT", "/v2/a/b/manifests/old".to_owned(), IMAGE, manifest.into_bytes()),
    ]
}

async fn each_write_is_refused_and_works_later(is_out_of_files: bool) {
    let disk = Disk::tmpfs(8, 700);
    let registry = on(&disk).await;
    let old = registry.push_image("a/b", "old", &vec![7; 1 << 20]).await;
    let writes = writes(&registry).await;
    let filler = if is_out_of_files { disk.without_files() } else { disk.without_room() };
    let send = async |(method, path, kind, body): &(&str, String, &str, Vec<u8>)| {
        registry.send(method, path, &[("content-type", kind)], body.clone()).await
    };
    for write in &writes {
        let answer = send(write).await;
        // A link takes a file and no room; bytes for an upload that was begun take room and no file.
        let works = match (write.0, is_out_of_files) {
            ("POST", false) => write.1.contains("mount="),
            ("PATCH", true) => true,
            _ => false,
        };
        if works {
            assert!([201, 202].contains(&answer.status), "{} {}", write.0, write.1);
            continue;
        }
        answer.assert_refused(507, "UNKNOWN");
        assert!(answer.text().contains("disk is full"), "{} {}", write.0, answer.text());
    }
    // What was there is there, and nothing else.
    let answer = registry.get("/v2/a/b/tags/list").await;
    assert_eq!(answer.json()["tags"], json!(["old"]));
    let answer = registry.get("/v2/a/b/manifests/old").await;
    assert_eq!(answer.header("docker-content-digest"), old);
    for write in &writes {
        if let Some((_, digest)) = write.1.split_once("digest=") {
            let answer = registry.get(&format!("/v2/a/b/blobs/{digest}")).await;
            answer.assert_refused(404, "BLOB_UNKNOWN");
        }
    }
    let referrers = format!("/v2/a/b/referrers/{}", digest(b"subject"));
    assert_eq!(registry.get(&referrers).await.json()["manifests"], json!([]));
    assert_eq!(left(&disk, "tmp"), 0);
    // Removing works without room, and makes some.
    registry.push_image_gone("a/b", "old", &old).await;

    drop(filler);
    for write in writes.iter().filter(|write| !write.1.contains("uploads/") || write.0 == "POST") {
        let answer = send(write).await;
        assert!([201, 202].contains(&answer.status), "{} {}", write.0, answer.text());
    }
    registry.push_image("a/b", "more", &vec![9; 1 << 20]).await;
    assert_eq!(registry.get(&referrers).await.json()["manifests"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn each_path_that_writes_refuses_without_room() {
    each_write_is_refused_and_works_later(false).await;
}

#[tokio::test]
async fn each_path_that_writes_refuses_without_files() {
    each_write_is_refused_and_works_later(true).await;
}

impl Harness {
    /// Deletes an image by its digest.
    async fn push_image_gone(&self, repository: &str, tag: &str, digest: &str) {
        let path = format!("/v2/{repository}/manifests/{digest}");
        assert_eq!(self.send("DELETE", &path, &[], "").await.status, 202);
        let path = format!("/v2/{repository}/manifests/{tag}");
        self.get(&path).await.assert_refused(404, "MANIFEST_UNKNOWN");
    }
}

#[tokio::test]
async fn a_full_disk_is_told_and_leaves_nothing() {
    let disk = Disk::tmpfs(4, 700);
    let registry = on(&disk).await;
    let bytes = vec![7; 8 << 20];
    let upload = registry.begin("a/b").await;
    let answer = registry.send("PATCH", &upload, &[], bytes.clone()).await;
    answer.assert_refused(507, "UNKNOWN");
    let path = format!("/v2/a/b/blobs/uploads/?digest={}", digest(&bytes));
    let answer = registry.send("POST", &path, &[], bytes).await;
    answer.assert_refused(507, "UNKNOWN");
    assert_eq!(left(&disk, "uploads"), 0);
    registry.push_image("a/b", "1", &vec![7; 1 << 20]).await;
}
