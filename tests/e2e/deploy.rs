//! An image that was pushed is deployed, reached by host name and removed without a trace.

use std::collections::BTreeSet;

use longshore_api::v1::InstanceView;
use longshore_e2e::dockerd::Firewall;
use longshore_e2e::{Dockerd, eventually, image, programs};
use serde_json::json;

use crate::scene::{busybox, host, ids, page, web, web_file, with_web};

#[test]
fn scaling_changes_only_the_number_of_instances() {
    let platform = with_web();
    platform.deploy(&web("web", 2)).unwrap();
    assert_eq!(page(&platform, "web"), "one");
    let two = ids(&platform.instances("web").unwrap());
    assert_eq!(two.len(), 2);

    platform.run(&["scale", "web=3"]).ok();
    platform.wait_until_settled("web").unwrap();
    let three = ids(&platform.instances("web").unwrap());
    assert!(three.len() == 3 && three.is_superset(&two), "{two:?} {three:?}");

    platform.run(&["scale", "web=1"]).ok();
    let left = eventually("one instance is left", || {
        let left = ids(&platform.instances("web")?);
        Ok((left.len() == 1).then_some(left))
    });
    assert!(left.unwrap().is_subset(&three));
    assert_eq!(page(&platform, "web"), "one");

    platform.run(&["scale", "web=0"]).ok();
    eventually("none is left", || Ok(platform.instances("web")?.is_empty().then_some(()))).unwrap();
    assert_eq!(platform.get(&host("web"), "/").unwrap().status, 503);
    platform.finish();
}

#[test]
fn a_plan_shows_what_a_deploy_then_does() {
    let platform = with_web();
    let manifest = &web_file(&platform, "1", 1, "");
    let plan = |code: i32, texts: &[&str]| {
        let planned = platform.run(&["plan", "--exit-code", "--file", manifest]);
        assert_eq!(planned.code, Some(code), "{planned}");
        for text in texts {
            assert!(planned.stdout.contains(text), "no {text:?} in {planned}");
        }
    };
    plan(8, &["web: r1 would be the first release", "+ port = "]);
    platform.run(&["deploy", "--file", manifest]).ok();
    plan(0, &["web: nothing would change, r1 is deployed already"]);
    web_file(&platform, "1", 2, "");
    plan(8, &["web: r2 would take the place of r1", "~ count = 1 -> 2"]);
    assert_eq!(platform.instances("web").unwrap().len(), 1);
    platform.run(&["deploy", "--file", manifest]).ok();
    assert_eq!(platform.instances("web").unwrap().len(), 2);
    platform.finish();
}

#[test]
fn the_same_manifest_and_digest_change_nothing() {
    let platform = with_web();
    let first = platform.deploy(&web("web", 2)).unwrap();
    let before = platform.instances("web").unwrap();

    let again = platform.deploy(&web("web", 2)).unwrap();
    assert!(first.changed && !again.changed);
    assert_eq!(first.release.number, again.release.number);
    let after = platform.instances("web").unwrap();
    let started = |instances: &[InstanceView]| -> BTreeSet<_> {
        let each = instances.iter();
        each.map(|one| (one.id().clone(), one.observed.started_at, one.observed.restarts)).collect()
    };
    assert_eq!(started(&before), started(&after));
    platform.finish();
}

#[test]
fn a_tag_that_moved_does_not_change_what_runs() {
    let platform = with_web();
    platform.deploy(&web("web", 1)).unwrap();
    platform.push(&busybox(&platform, "moved"), "default/web:1").unwrap();
    let instance = platform.instances("web").unwrap().remove(0);

    // Its replacement still runs the digest that the release was pinned to.
    platform.run(&["stop", instance.id().as_str()]).ok();
    let next = platform.wait_for_instance("web", "took its place", |next| {
        next.id() != instance.id() && next.observed.ready_at.is_some()
    });
    next.unwrap();
    eventually("the old one is gone", || Ok((platform.instances("web")?.len() == 1).then_some(())))
        .unwrap();
    assert_eq!(page(&platform, "web"), "one");

    // Deploying again takes the tag as it is now.
    assert!(platform.deploy(&web("web", 1)).unwrap().changed);
    assert_eq!(page(&platform, "web"), "moved");
    platform.finish();
}

#[test]
fn an_app_that_is_removed_leaves_nothing() {
    let platform = with_web();
    platform.deploy(&web("web", 2)).unwrap();
    platform.deploy(&web("other", 1)).unwrap();
    platform.remove("web").unwrap();
    assert_eq!(platform.get(&host("web"), "/").unwrap().status, 404);
    platform.run(&["ps", "web"]).fails(4, &["web"]);
    assert_eq!(page(&platform, "other"), "one");
    platform.finish();
}

#[test]
fn every_instance_is_explained() {
    let platform = with_web();
    platform.deploy(&web("web", 1)).unwrap();
    let instance = platform.instances("web").unwrap().remove(0);
    let text = platform.run(&["explain", instance.id().as_str()]).ok();
    for part in [instance.location.as_str(), instance.node.as_str()] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // Both schedulers come to the same again.
    for role in ["global", "location"] {
        let log = platform.data_dir().join(role).join("decisions.jsonl");
        let told = platform.run(&["replay", log.to_str().unwrap()]).ok();
        assert!(
            !told.starts_with("0 decisions") && told.contains("the same, 0 otherwise"),
            "{told}"
        );
    }
    platform.finish();
}

#[test]
fn nginx_from_docker_and_skopeo_is_reached_by_host_name() {
    let platform = longshore_e2e::Platform::start().unwrap();
    let nginx = programs::image("nginx").unwrap();
    platform.push_from(&nginx, "default/nginx:skopeo").unwrap();

    let docker = Dockerd::start(Firewall::Untouched).unwrap();
    let registry = &platform.endpoints().registry;
    let reference = format!("{registry}/default/nginx:docker");
    let mut load = platform.tool("skopeo");
    let daemon = format!("docker-daemon:{reference}");
    load.args(["--insecure-policy", "copy", "--quiet", "--dest-daemon-host"]);
    image::checked(load.args([&docker.host(), &nginx, &daemon])).unwrap();
    let token = platform.token();
    docker.docker(&["login", "--username", "anyone", "--password", token, registry]).unwrap();
    docker.docker(&["push", "--quiet", &reference]).unwrap();
    drop(docker);

    for tag in ["skopeo", "docker"] {
        let app = format!("nginx-{tag}");
        let manifest = json!({
            "app": app,
            "image": format!("default/nginx:{tag}"),
            "count": 2,
            "port": 80,
            "hosts": [format!("{tag}.example.com")],
            "resources": {"memory": "64MiB", "cpu": "0.25"},
            "health": {"kind": "http", "path": "/"},
        });
        platform.deploy(&manifest).unwrap();
        for name in [host(&app), format!("{tag}.example.com")] {
            let response = platform.get(&name, "/").unwrap();
            assert_eq!(response.status, 200, "{name}: {}", response.text());
            assert!(response.text().contains("Welcome to nginx"), "{}", response.text());
        }
    }
    platform.finish();
}
