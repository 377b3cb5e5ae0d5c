//! Images on the disk of a node: what it has of which, which go when room is needed, and which never do.

use anyhow::{Context as _, ensure};
use longshore_api::links::StartPath;
use longshore_e2e::image::{Entries, Layered};
use longshore_e2e::small_disk::SmallDisk;
use longshore_e2e::{Platform, UpOptions, eventually};
use serde_json::{Value, json};

use crate::odd_images::{base, shell};

/// What nothing packs, in bytes.
const BULK: usize = 11 << 20;

/// Pushes an image that is no other's, and returns its digest.
fn push(platform: &Platform, name: &str) -> String {
    let mut seed =
        name.bytes().fold(0x9e37_79b9_7f4a_7c15, |seed: u64, byte| seed << 7 ^ u64::from(byte));
    let noise = (0..BULK / 8).flat_map(|_| {
        // Xorshift.
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed.to_le_bytes()
    });
    let noise: Vec<u8> = noise.collect();
    let bulk = Entries::default().file("bulk", 0o644, &noise);
    let image = Layered::new(shell("while sleep 1; do :; done")).layer(base()).layer(bulk);
    let layout = image.write(&platform.dir().join(name)).unwrap();
    let repository = format!("default/{name}");
    platform.push(&layout, &format!("{repository}:1")).unwrap();
    // Whoever pushed it may have written its manifest anew.
    let listed: Value = platform.run(&["image", "ls", &repository, "--json"]).json();
    listed[0]["digest"].as_str().unwrap().to_owned()
}

fn manifest(app: &str, image: &str) -> Value {
    json!({
        "app": app,
        "image": format!("default/{image}:1"),
        "resources": {"memory": "32MiB", "cpu": "0.1", "disk": "8MiB"},
        "process": {"stop_grace": "1s"},
    })
}

/// An image of the node, with its state and the reasons for which it is kept.
fn found(platform: &Platform, digest: &str) -> anyhow::Result<Option<(String, Vec<String>)>> {
    let node = &platform.run(&["nodes", "--json"]).ok();
    let node: Value = serde_json::from_str(node)?;
    let node = node[0]["node"].as_str().context("a node")?.to_owned();
    let listed = platform.run(&["image", "ls", "--node", &node, "--json"]).ok();
    let listed: Value = serde_json::from_str(&listed)?;
    let images = listed.as_array().context("a list")?;
    let image = images.iter().find(|image| image["digest"] == digest);
    Ok(image.map(|image| {
        let holds = image["holds"].as_array().into_iter().flatten();
        let reasons = holds.map(|hold| hold["reason"].as_str().unwrap_or_default().to_owned());
        (image["state"].as_str().unwrap_or_default().to_owned(), reasons.collect())
    }))
}

fn path(platform: &Platform, app: &str) -> Option<StartPath> {
    platform.instances(app).unwrap().remove(0).observed.path
}

#[test]
fn a_disk_that_fills_loses_the_images_that_nobody_needs_and_no_others() {
    // With the fifth image it is over 11 percent; one gone, it is under 10.
    let disk = SmallDisk::new(512).unwrap();
    let elsewhere = vec![("node", disk.path())];
    let config = "image_disk = \"10-11\"\n".to_owned();
    let options = UpOptions { elsewhere, config, ..UpOptions::default() };
    let platform = Platform::start_with(&options).unwrap();
    let names = ["first", "second", "oldest", "older", "newest"];
    let [first, second, oldest, older, newest] = names.map(|name| push(&platform, name));
    for image in ["first", "second"] {
        platform.deploy(&manifest("web", image)).unwrap();
    }
    for app in ["oldest", "older"] {
        platform.deploy(&manifest(app, app)).unwrap();
        platform.remove(app).unwrap();
    }
    let here = found(&platform, &oldest).unwrap();
    let listed = platform.run(&["image", "ls", "--location", "local", "--json"]).ok();
    assert_eq!(
        here,
        Some(("complete".to_owned(), vec![])),
        "{oldest} is not as it should be in {listed}"
    );
    platform.deploy(&manifest("newest", "newest")).unwrap();
    eventually("the least recently used goes", || {
        ensure!(found(&platform, &oldest)?.is_none(), "it is there");
        Ok(Some(()))
    })
    .unwrap();
    let is = |digest: &str, state: &str, reasons: &[&str]| {
        let reasons = reasons.iter().map(|reason| (*reason).to_owned()).collect();
        assert_eq!(found(&platform, digest).unwrap(), Some((state.to_owned(), reasons)));
    };
    is(&first, "complete", &["rollback"]);
    is(&second, "mounted", &["instance", "release"]);
    is(&older, "complete", &[]);
    is(&newest, "mounted", &["instance", "release"]);
    let table = platform.run(&["image", "ls", "--location", "local"]).ok();
    let row = table.lines().find(|line| line.contains("rollback"));
    assert!(row.is_some_and(|row| row.contains(&first[..19])), "{table}");
    platform.run(&["rollback", "web"]).ok();
    platform.wait_until_settled("web").unwrap();
    assert_eq!(path(&platform, "web"), Some(StartPath::Cached));

    // What went comes again, and that is the only difference.
    platform.deploy(&manifest("oldest", "oldest")).unwrap();
    assert_eq!(path(&platform, "oldest"), Some(StartPath::Pulled));
    platform.finish();
}
