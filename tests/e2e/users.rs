//! Users of an instance's own.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;

use longshore_e2e::Platform;
use longshore_types::{IdRange, InstanceId};
use serde_json::json;

use crate::scene::{but, web, with_web};

fn ids(platform: &Platform, id: &InstanceId) -> Option<IdRange> {
    let all = platform.instances("web").unwrap();
    all.iter().find(|one| one.id() == id).unwrap().observed.ids
}

/// The number of the first process of an instance, as the machine counts.
fn pid(platform: &Platform, id: &InstanceId) -> String {
    let mark = format!("LONGSHORE_INSTANCE={id}").into_bytes();
    let has_mark = |pid: &String| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == mark)
    };
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let found = pids.filter(|name| name.parse::<u32>().is_ok()).find(has_mark);
    found.unwrap_or_else(|| panic!("{id} has no process; {}", platform.dir().display()))
}

fn exec(platform: &Platform, id: &InstanceId, script: &str) -> String {
    let finished = platform.run(&["exec", id.as_str(), "--", "/bin/sh", "-c", script]);
    assert_eq!(finished.code, Some(0), "{script}: {finished}");
    finished.stdout
}

#[test]
fn each_instance_has_users_of_its_own_and_keeps_them_when_the_agent_is_killed() {
    let platform = with_web();
    platform.deploy(&web("web", 2)).unwrap();
    let instances = platform.instances("web").unwrap();
    let ranges: Vec<IdRange> =
        instances.iter().map(|one| one.observed.ids.expect("it has users of its own")).collect();
    assert_ne!(ranges[0], ranges[1]);
    for (instance, range) in instances.iter().zip(&ranges) {
        let id = instance.id();
        let pid = pid(&platform, id);
        let map = fs::read_to_string(format!("/proc/{pid}/uid_map")).unwrap();
        let map: Vec<&str> = map.split_whitespace().collect();
        assert_eq!(map, ["0", range.first().to_string().as_str(), "65536"]);
        assert_eq!(fs::metadata(format!("/proc/{pid}")).unwrap().uid(), range.first());

        let written = exec(
            &platform,
            id,
            "id -u; echo own >/www/own; echo given >/www/given; busybox chown 33:34 /www/given; \
             stat -c %u /www/own /www/given /bin/busybox /etc/hosts; cat /proc/self/uid_map",
        );
        let words: Vec<&str> = written.split_whitespace().collect();
        let first = range.first().to_string();
        assert_eq!(words, ["0", "0", "33", "0", "65534", "0", first.as_str(), "65536"]);
        let upper = platform.data_dir().join("node/instances").join(id.as_str());
        let at = |file: &str| {
            let metadata = fs::metadata(upper.join("writable/upper/www").join(file)).unwrap();
            (metadata.uid(), metadata.gid())
        };
        assert_eq!(at("own"), (range.first(), range.first()));
        assert_eq!(at("given"), (range.first() + 33, range.first() + 34));
    }
    let explained = platform.run(&["explain", "web"]);
    for range in &ranges {
        assert!(explained.stdout.contains(&format!("users: ids {range} ")), "{explained}");
    }

    platform.role("node").unwrap().kill().unwrap();
    // The third is started by the next agent.
    platform.run(&["scale", "web=3"]).ok();
    platform.wait_until_settled("web").unwrap();
    for (instance, range) in instances.iter().zip(&ranges) {
        assert_eq!(ids(&platform, instance.id()), Some(*range));
        assert_eq!(exec(&platform, instance.id(), "cat /www/own"), "own\n");
    }
    let all = platform.instances("web").unwrap();
    let distinct: BTreeSet<IdRange> = all.iter().filter_map(|one| one.observed.ids).collect();
    assert_eq!(distinct.len(), 3, "{all:#?}");
    platform.finish();
}

#[test]
fn an_app_may_do_without_users_of_its_own_and_that_is_shown() {
    let platform = with_web();
    platform.deploy(&but(web("web", 1), &json!({"user_namespace": false}))).unwrap();
    let id = platform.instances("web").unwrap().remove(0).id().clone();
    assert_eq!(ids(&platform, &id), None);
    assert_eq!(fs::metadata(format!("/proc/{}", pid(&platform, &id))).unwrap().uid(), 0);
    let map = exec(&platform, &id, "cat /proc/self/uid_map");
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "0", "4294967295"]);
    let explained = platform.run(&["explain", "web"]);
    assert!(explained.stdout.contains("user_namespace = false"), "{explained}");
    platform.finish();
}

#[test]
fn a_user_that_no_namespace_has_is_refused_in_plain_words() {
    let platform = with_web();
    let user = json!({"process": {"user": "70000"}});
    platform.deploy_only(&but(web("web", 1), &user)).unwrap();
    let refused = |note: &Option<String>| {
        note.as_ref().is_some_and(|note| {
            note.contains("no user or group 70000") && note.contains("user_namespace = false")
        })
    };
    platform
        .wait_for_instance("web", "says why it cannot start", |one| refused(&one.observed.note))
        .unwrap();
    platform.finish();
}
