//! A disk that is full while an image comes: the instance says so, everything else goes on, and the
//! same pull succeeds once there is room.

use std::fs;
use std::path::Path;

use anyhow::ensure;
use longshore_e2e::image::{Entries, Layered};
use longshore_e2e::small_disk::SmallDisk;
use longshore_e2e::{Platform, UpOptions, eventually};
use longshore_types::InstancePhase;
use serde_json::json;

use crate::odd_images::{base, shell};
use crate::scene::{busybox, but, page, web};

/// The size of a file of the image.
const LARGE: u64 = 400 << 20;
/// What is left on the disk, in MiB.
const LEFT: u64 = 300;

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

#[test]
fn a_pull_onto_a_full_disk_says_so_and_succeeds_when_there_is_room() {
    // The node alone lies there, and there is room enough by the plan: it offers what is free less a
    // tenth of the disk, and does not know how large an image is.
    let disk = SmallDisk::new(1024).unwrap();
    let elsewhere = vec![("node", disk.path())];
    let platform = Platform::start_with(&UpOptions { elsewhere, ..UpOptions::default() }).unwrap();
    platform.push(&busybox(&platform, "one"), "default/web:1").unwrap();
    platform.deploy(&but(web("web", 1), &json!({"resources": {"disk": "8MiB"}}))).unwrap();
    let before = platform.instances("web").unwrap().remove(0);

    let contents = vec![b'x'; usize::try_from(LARGE).unwrap()];
    let large = Entries::default().file("large", 0o644, &contents);
    let large =
        Layered::new(shell("ls -l /large; while sleep 1; do :; done")).layer(base()).layer(large);
    let layout = platform.dir().join("large");
    platform.push(&large.write(&layout).unwrap(), "default/large:1").unwrap();
    fs::remove_dir_all(&layout).unwrap();

    disk.leave(LEFT).unwrap();
    let manifest = json!({
        "app": "large",
        "image": "default/large:1",
        "resources": {"memory": "32MiB", "cpu": "0.1", "disk": "8MiB"},
    });
    platform.deploy_only(&manifest).unwrap();
    let store = platform.data_dir().join("node/images");
    let place = format!("{:?}", store.display());
    platform
        .wait_for_instance("large", "says that the disk is full", |instance| {
            let note = instance.observed.note.clone().unwrap_or_default();
            let last = instance.observed.last_exit.as_ref().map(ToString::to_string);
            let told = format!("{note} {}", last.unwrap_or_default());
            told.contains("the disk is full below") && told.contains(&place)
        })
        .unwrap();
    // What runs does not notice, and the platform answers.
    assert_eq!(page(&platform, "web"), "one");
    platform.run(&["ps"]).ok();

    disk.empty().unwrap();
    platform
        .wait_for_instance("large", "runs", |one| one.observed.phase == InstancePhase::Healthy)
        .unwrap();
    let log = platform.run(&["logs", "large"]).ok();
    assert!(log.contains(&LARGE.to_string()), "{log}");
    eventually("nothing half is left", || {
        ensure!(is_empty(&store.join("staging")) && is_empty(&store.join("trash")), "something is");
        Ok(Some(()))
    })
    .unwrap();
    let after = platform.instances("web").unwrap().remove(0);
    assert_eq!(after.id(), before.id());
    assert_eq!(after.observed.restarts, before.observed.restarts);
    assert_eq!(after.observed.started_at, before.observed.started_at);
    platform.finish();
}
