//! A full disk: each role says so, keeps what it acknowledged, and goes on when there is room.

use longshore_e2e::small_disk::SmallDisk;
use longshore_e2e::{Platform, UpOptions, eventually};
use serde_json::json;

use crate::scene::{busybox, but, host, page, script, traffic, web};

/// A platform with `default/web:1`, all of it or some roles on a disk of their own.
fn platform(options: &UpOptions) -> Platform {
    let platform = Platform::start_with(options).unwrap();
    let image = busybox(&platform, "one");
    platform.push(&image, "default/web:1").unwrap();
    platform
}

/// The same app with little of everything.
fn small(app: &str) -> serde_json::Value {
    let resources = json!({"memory": "32MiB", "cpu": "0.25", "disk": "8MiB"});
    but(web(app, 1), &json!({ "resources": resources }))
}

#[test]
fn a_platform_on_a_full_disk_says_so_and_goes_on_when_there_is_room() {
    let disk = SmallDisk::new(1024).unwrap();
    let parent = Some(disk.path());
    let platform = platform(&UpOptions { parent, ..UpOptions::default() });
    platform.deploy(&small("first")).unwrap();
    let before = platform.instances("first").unwrap().remove(0);
    let traffic = traffic(&platform, "first");
    disk.fill().unwrap();

    let path = "/v1/projects/default/apps/second";
    let refused =
        platform.call_raw("PUT", path, Some(json!({"manifest": small("second")}))).unwrap();
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.text().contains("is full: 0 MiB are free"), "{}", refused.text());
    platform.run(&["scale", "first=2"]).fails(6, &["is full", "make room"]);
    platform.run(&["token", "create", "ci", "--push", "*"]).fails(6, &["is full"]);
    // Reading needs no room, and neither does coming back.
    for role in ["global", "location", "node"] {
        platform.role(role).unwrap().kill().unwrap();
    }
    eventually("every role is back and tells of the first app", || {
        let listed = platform.run(&["ps", "first"]);
        anyhow::ensure!(listed.stdout.contains("healthy"), "{listed}\n{}", platform.log_tail());
        Ok(Some(()))
    })
    .unwrap();
    assert_eq!(page(&platform, "first"), "one");

    disk.empty().unwrap();
    platform.deploy(&small("second")).unwrap();
    let after = platform.instances("first").unwrap().remove(0);
    assert_eq!((after.id(), after.release), (before.id(), before.release));
    assert_eq!((after.observed.restarts, platform.app("first").unwrap().count), (0, 1));
    assert_eq!(traffic.stop(), Vec::<String>::new());
    platform.finish();
}

#[test]
fn a_location_with_a_full_disk_keeps_what_runs_and_decides_when_there_is_room() {
    let disk = SmallDisk::new(64).unwrap();
    let elsewhere = vec![("location", disk.path())];
    let platform = platform(&UpOptions { elsewhere, ..UpOptions::default() });
    platform.deploy(&small("first")).unwrap();
    disk.fill().unwrap();
    // Acknowledged by the global plane, whose disk has room.
    platform.deploy_only(&small("second")).unwrap();
    eventually("the location says why nothing happens", || {
        let said = platform.log_tail();
        anyhow::ensure!(said.contains("what was decided waits: the disk with"), "{said}");
        Ok(Some(()))
    })
    .unwrap();
    assert_eq!(page(&platform, "first"), "one");
    platform.role("location").unwrap().kill().unwrap();
    eventually("the first app goes on", || {
        Ok((platform.get(&host("first"), "/")?.status == 200).then_some(()))
    })
    .unwrap();
    disk.empty().unwrap();
    platform.wait_until_settled("second").unwrap();
    assert_eq!(platform.instances("first").unwrap()[0].observed.restarts, 0);
    platform.finish();
}

#[test]
fn a_node_with_a_full_disk_keeps_what_runs_and_starts_more_when_there_is_room() {
    let disk = SmallDisk::new(512).unwrap();
    let elsewhere = vec![("node", disk.path())];
    let platform = platform(&UpOptions { elsewhere, ..UpOptions::default() });
    platform.deploy(&small("first")).unwrap();
    let ends = "while [ ! -e /tmp/end ]; do sleep 0.1; done; exit 1";
    platform.deploy(&but(script("ends", ends), &json!({"resources": {"disk": "8MiB"}}))).unwrap();
    let ending = platform.instances("ends").unwrap().remove(0);
    disk.fill().unwrap();
    platform.deploy_only(&small("second")).unwrap();
    // It is refused by the plan, or by the node, if the plan was quicker than the last look.
    eventually("the second app says what it lacks", || {
        let note = platform.app("second")?.note.unwrap_or_default();
        let said = note.contains("of disk needed") || note.contains("No space left on device");
        anyhow::ensure!(said, "{note}");
        Ok(Some(()))
    })
    .unwrap();
    assert_eq!(page(&platform, "first"), "one");
    platform.run(&["exec", ending.id().as_str(), "--", "/bin/sh", "-c", ": > /tmp/end"]);
    let stuck = |instance: &longshore_api::v1::InstanceView| {
        let end = instance.observed.last_exit.as_ref().map(ToString::to_string);
        end.is_some_and(|end| end.contains("No space left on device") || end == "shim died")
    };
    platform.wait_for_instance("ends", "cannot be started again", stuck).unwrap();

    disk.empty().unwrap();
    platform.wait_until_settled("second").unwrap();
    platform.wait_until_settled("ends").unwrap();
    assert_eq!(platform.instances("first").unwrap()[0].observed.restarts, 0);
    platform.finish();
}
