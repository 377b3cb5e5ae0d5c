//! A release takes the place of another one: without a failed request, tried by canaries first where
//! it says so, taken back when it does not become healthy, and whole whoever deploys meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use longshore_e2e::http::Request;
use longshore_e2e::image;
use longshore_e2e::websocket::Message;
use longshore_e2e::{Platform, WebSocket, eventually, programs};
use serde_json::{Value, json};

use crate::scene::{busybox, but, host, ids, page, traffic, web, web_file, with_web};

#[test]
fn a_new_release_replaces_the_old_one_without_a_failed_request() {
    let platform = with_web();
    platform.deploy(&web("web", 2)).unwrap();
    let old = ids(&platform.instances("web").unwrap());
    let traffic = traffic(&platform, "web");

    platform.push(&busybox(&platform, "two"), "default/web:2").unwrap();
    let manifest = but(web("web", 2), &json!({"image": "default/web:2"}));
    let response = platform.deploy(&manifest).unwrap();
    assert!(response.changed);
    eventually("the old instances are gone", || {
        let now = platform.instances("web")?;
        Ok(ids(&now).is_disjoint(&old).then_some(()))
    })
    .unwrap();

    assert_eq!(page(&platform, "web"), "two");

    // And back: to the digest that the first release had, whatever its tag names by now.
    platform.push(&busybox(&platform, "three"), "default/web:1").unwrap();
    let back = platform.run(&["rollback", "web"]).ok();
    assert!(back.contains("web r1: 2 of 2 healthy"), "{back}");
    assert_eq!(page(&platform, "web"), "one");
    let releases = platform.run(&["releases", "web"]).ok();
    assert!(releases.contains("current"), "{releases}");
    platform.run(&["rollback", "web", "r9"]).fails(3, &["release = r9", "r1, r2"]);

    traffic.goes_on().unwrap();
    assert_eq!(traffic.stop(), Vec::<String>::new());
    platform.finish();
}

/// A Node.js server that answers slowly when asked to, and echoes what comes by WebSocket.
fn node(changes: &Value) -> Value {
    let manifest = json!({
        "app": "node",
        "image": "default/node:1",
        "count": 2,
        "port": 3000,
        "resources": {"memory": "96MiB", "cpu": "0.5", "disk": "64MiB"},
        "health": {"kind": "http", "path": "/", "interval": "1s"},
    });
    but(manifest, changes)
}

fn echo(socket: &mut WebSocket) {
    socket.send_text("still there?").unwrap();
    assert_eq!(socket.receive().unwrap(), Message::Text("still there?".to_owned()));
}

#[test]
fn requests_under_way_and_websockets_end_before_their_instance_and_not_never() {
    let platform = Platform::start().unwrap();
    platform.push_from(&programs::image("node").unwrap(), "default/node:1").unwrap();
    platform.deploy(&node(&json!({}))).unwrap();
    let (address, host) = (platform.ingress_address(), host("node"));
    let connect = || WebSocket::connect(address, &host, "/echo").unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let slow = || {
            let mut n_answers = 0;
            while !done.load(Ordering::Relaxed) {
                let answer = Request::get(&host, "/slow/2").send(address).unwrap();
                assert_eq!(answer.status, 200, "{}", answer.text());
                n_answers += 1;
            }
            n_answers
        };
        let slow: Vec<_> = (0..4).map(|_| scope.spawn(slow)).collect();
        let mut sockets: Vec<_> = (0..4).map(|_| connect()).collect();
        let deploying = scope.spawn(|| {
            let short = json!({"process": {"drain": "2s"}, "env": {"RELEASE": "2"}});
            platform.deploy(&node(&short)).unwrap()
        });
        eventually("all instances but those that drain are new", || {
            let all = platform.instances("node")?;
            Ok(all.iter().all(|one| one.draining || one.release.0 == 2).then_some(()))
        })
        .unwrap();
        // Longer than the application would take, were it told to stop now.
        let until = Instant::now() + Duration::from_secs(4);
        while Instant::now() < until {
            sockets.iter_mut().for_each(echo);
            thread::sleep(Duration::from_millis(100));
        }
        assert!(!deploying.is_finished(), "the old ones are still needed");
        drop(sockets);
        deploying.join().unwrap();

        // A connection that nobody closes holds nothing up for ever: then the application is told,
        // and says so to its clients.
        let mut kept = connect();
        echo(&mut kept);
        platform.deploy(&node(&json!({"env": {"RELEASE": "3"}}))).unwrap();
        assert_eq!(kept.receive().unwrap(), Message::Close(Some(1001)));
        done.store(true, Ordering::Relaxed);
        for client in slow {
            assert!(client.join().unwrap() > 2);
        }
    });
    platform.finish();
}

#[test]
fn a_canary_is_tried_beside_the_old_release_and_then_promoted_or_taken_back() {
    let platform = with_web();
    platform.deploy(&web("web", 2)).unwrap();
    let digest = platform.releases("web").unwrap().remove(0).image_digest.to_string();
    let traffic = traffic(&platform, "web");
    platform.push(&busybox(&platform, "two"), "default/web:2").unwrap();
    let file = web_file(&platform, "2", 2, "rollout = { canary = 1 }");
    let deploy = || platform.run(&["deploy", "--file", &file]);
    let text = deploy().ok();
    assert!(text.contains("web r2: canaries beside r1: 1 of 1 healthy"), "{text}");
    let pages = || {
        let mut pages: Vec<_> = (0..40).map(|_| page(&platform, "web")).collect();
        pages.sort();
        pages.dedup();
        pages
    };
    assert_eq!(pages(), ["one", "two"]);
    let releases = |platform: &Platform| {
        let all = platform.instances("web").unwrap();
        let mut releases: Vec<_> = all.iter().map(|one| one.release.0).collect();
        releases.sort_unstable();
        releases
    };
    assert_eq!(releases(&platform), [1, 1, 2]);

    // Taken back, and nobody else was touched.
    let before = ids(&platform.instances("web").unwrap());
    platform.run(&["rollback", "web"]).ok();
    assert_eq!((releases(&platform), pages()), (vec![1, 1], vec!["one".to_owned()]));
    assert!(ids(&platform.instances("web").unwrap()).is_subset(&before));
    platform.run(&["promote", "web"]).fails(1, &["no canary of app web is running"]);

    deploy().ok();
    let canary = platform.instances("web").unwrap().into_iter().find(|one| one.release.0 == 3);
    let text = platform.run(&["promote", "web"]).ok();
    assert!(text.contains("web r3: 2 of 2 healthy"), "{text}");
    assert_eq!((releases(&platform), pages()), (vec![3, 3], vec!["two".to_owned()]));
    let now = ids(&platform.instances("web").unwrap());
    assert!(now.contains(canary.unwrap().id()), "the canary is one of them");
    assert_eq!(traffic.stop(), Vec::<String>::new());

    // What a release that is kept runs stays, whoever wants it gone.
    let image = format!("docker://{}/default/web@{digest}", platform.endpoints().registry);
    let delete = || {
        let mut skopeo = platform.tool("skopeo");
        let credentials = format!("anyone:{}", platform.token());
        skopeo.args(["--insecure-policy", "delete", "--tls-verify=false", "--creds", &credentials]);
        skopeo.arg(&image);
        image::checked(&mut skopeo)
    };
    let refused = delete().unwrap_err().to_string();
    assert!(refused.contains("in use by the release web r1"), "{refused}");
    platform.remove("web").unwrap();
    eventually("the registry has heard that the app is gone", || {
        Ok(delete().is_ok().then_some(()))
    })
    .unwrap();
    platform.finish();
}

#[test]
fn a_release_command_runs_first_and_one_that_fails_changes_nothing() {
    let platform = with_web();
    let deploy = |script: &str| {
        let command = format!("[release]\ncommand = [\"/bin/sh\", \"-c\", \"{script}\"]");
        let file = web_file(&platform, "1", 1, &command);
        platform.run(&["deploy", "--file", &file])
    };
    let failing = "echo there is; echo no such table >&2; exit 3";
    let refused = "web: the release command of r1 exited with code 3: no such table";
    deploy(failing).fails(7, &[refused, "  | there is", "  | no such table"]);
    assert_eq!(platform.instances("web").unwrap().iter().filter(|one| !one.is_command).count(), 0);
    let done = deploy("echo migrated");
    assert!(done.stderr.contains("  | migrated"), "{done}");
    assert!(done.ok().contains("web r2: 1 of 1 healthy"));
    let before = ids(&platform.instances("web").unwrap());
    let traffic = traffic(&platform, "web");
    deploy(failing).fails(7, &["of r3 exited with code 3: no such table; r2 runs"]);
    eventually("the command's instance is gone", || {
        Ok((ids(&platform.instances("web")?) == before).then_some(()))
    })
    .unwrap();
    assert_eq!(traffic.stop(), Vec::<String>::new());
    platform.finish();
}

#[test]
fn of_two_deploys_at_once_the_later_wins_and_nothing_is_half_done() {
    let platform = with_web();
    platform.deploy(&web("web", 2)).unwrap();
    let traffic = traffic(&platform, "web");
    for round in 0..3 {
        let deploy = |side: &str| {
            let manifest = but(web("web", 2), &json!({"env": {side: round}}));
            platform.deploy_only(&manifest).unwrap().release.number
        };
        let later = thread::scope(|scope| {
            let [left, right] = ["left", "right"].map(|side| scope.spawn(move || deploy(side)));
            left.join().unwrap().max(right.join().unwrap())
        });
        let app = platform.wait_until_settled("web").unwrap();
        let all = platform.instances("web").unwrap();
        assert_eq!((app.release, all.len()), (later, 2));
        assert!(all.iter().all(|one| one.release == later), "{all:?}");
    }
    assert_eq!(traffic.stop(), Vec::<String>::new());
    platform.finish();
}

#[test]
fn a_release_that_does_not_become_healthy_is_taken_back() {
    let platform = with_web();
    platform.deploy(&web("web", 2)).unwrap();
    let before = ids(&platform.instances("web").unwrap());
    let traffic = traffic(&platform, "web");
    let bad = "health = { path = \"/missing\" }\nrollout = { deadline = \"3s\" }";
    let deployed = platform.run(&["deploy", "--file", &web_file(&platform, "1", 2, bad)]);
    deployed.fails(7, &["web r2 does not become healthy; r1 runs again", "404"]);
    let app = platform.wait_until_settled("web").unwrap();
    assert_eq!((app.release.0, app.failed.map(|failed| failed.0)), (1, Some(2)));
    assert_eq!(ids(&platform.instances("web").unwrap()), before, "nobody else was touched");
    assert_eq!(traffic.stop(), Vec::<String>::new());
    platform.finish();
}
