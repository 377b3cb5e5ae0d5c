//! The control plane's state in an etcd: nothing is lost with a control plane, nor while etcd is away,
//! and of several control planes each answers.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use anyhow::ensure;
use longshore_e2e::process::{Process, signal};
use longshore_e2e::{Platform, eventually};
use longshore_store::conformance::EtcdServer;
use rustix::process::Signal;
use serde_json::json;

use crate::control_plane::ControlPlane;
use crate::scene::{OnEtcd, but, ids, lives, page, traffic, web};

/// A platform with its state in an etcd, and one app.
fn with_app() -> OnEtcd {
    let on = OnEtcd::start(1);
    on.platform.deploy(&web("web", 1)).unwrap();
    on
}

fn scale(platform: &Platform, count: usize) {
    let web = format!("web={count}");
    eventually("the control plane takes a change", || {
        let scaled = platform.run(&["scale", &web]);
        ensure!(scaled.code == Some(0), "{scaled}");
        Ok(Some(()))
    })
    .unwrap();
    eventually("the change is carried out", || {
        // Also those that drain have ended.
        let (ready, there) = (platform.app("web")?.ready, platform.instances("web")?.len());
        ensure!(ready as usize == count && there == count, "{ready} are ready, {there} there");
        Ok(Some(()))
    })
    .unwrap();
}

#[test]
fn nothing_is_lost_with_a_control_plane_or_while_etcd_is_away() {
    let mut on = OnEtcd::start_secured();
    on.platform.deploy(&web("web", 1)).unwrap();
    assert!(!on.platform.data_dir().join("global/store.redb").exists());
    on.platform.role("global").unwrap().kill().unwrap();
    scale(&on.platform, 2);
    // Away, as with its machine: what runs goes on, and changes are refused.
    on.etcd[0].kill();
    assert_eq!(page(&on.platform, "web"), "one");
    eventually("changes are refused", || {
        let refused = on.platform.run(&["scale", "web=3"]);
        ensure!(refused.code != Some(0), "{refused}");
        Ok(Some(()))
    })
    .unwrap();
    assert_eq!(page(&on.platform, "web"), "one");
    on.etcd[0].start().unwrap();
    scale(&on.platform, 1);
    assert_eq!(page(&on.platform, "web"), "one");
    on.platform.finish();
}

/// A second control plane on the same etcd.
fn second(on: &OnEtcd) -> ControlPlane {
    let store = format!("{}/longshore", EtcdServer::address(&on.etcd));
    let link = on.platform.dir().join("second.sock");
    ControlPlane::start(&on.platform, "second", &store, &link).unwrap()
}

/// Lets it lead in place of the first one.
fn leads(second: &ControlPlane, first: &Process) {
    // As with a machine that hangs: nobody gives the lead away, so it runs out.
    signal(first.pid, Signal::STOP).unwrap();
    let leads = eventually("the second leads", || {
        ensure!(second.log().contains("leads from now on"), "{}", second.log());
        Ok(Some(()))
    });
    signal(first.pid, Signal::CONT).unwrap();
    leads.unwrap();
}

/// What it answers over its API while another one leads: reads, logs that go on, commands inside.
fn everything_is_answered(platform: &Platform, api: &str) {
    let asked = |arguments: &[&str]| {
        let mut command = platform.client(arguments);
        command.env("LONGSHORE_API", api).stdin(Stdio::null());
        command
    };
    let instances = platform.instances("web").unwrap();
    let id = instances[0].id().as_str();
    let inside = asked(&["exec", id, "--", "sh", "-c", "echo inside; exit 7"]).output().unwrap();
    let said = String::from_utf8_lossy(&inside.stdout);
    assert_eq!((inside.status.code(), &*said), (Some(7), "inside\n"), "{inside:?}");
    let mut follow = asked(&["logs", "-f", id]).stdout(Stdio::piped()).spawn().unwrap();
    let told = BufReader::new(follow.stdout.take().unwrap());
    let writes = "while sleep 0.1; do echo said > /proc/1/fd/1; done";
    let mut writer = asked(&["exec", id, "--", "sh", "-c", writes]).spawn().unwrap();
    let line = told.lines().map(Result::unwrap).find(|line| line.contains("said"));
    for child in [&mut follow, &mut writer] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(line.is_some(), "the log broke off");
}

#[test]
fn every_control_plane_answers_and_a_rollout_outlives_the_one_that_leads() {
    let on = with_app();
    let token = on.platform.token().to_owned();
    let second = second(&on);
    eventually("the one that waits answers", || {
        let apps = second.asks(&token, "/v1/projects/default/apps")?;
        ensure!(apps.status == 200 && apps.text().contains("\"count\":1"), "{}", apps.text());
        Ok(Some(()))
    })
    .unwrap();
    everything_is_answered(&on.platform, second.api());
    scale(&on.platform, 3);

    // The other way around: what was asked so far is asked through the one of the platform.
    leads(&second, &on.platform.role("global").unwrap());
    scale(&on.platform, 2);
    scale(&on.platform, 3);
    everything_is_answered(&on.platform, &on.platform.endpoints().api);

    let before = ids(&on.platform.instances("web").unwrap());
    let through = traffic(&on.platform, "web");
    let next = but(web("web", 3), &json!({"env": {"RELEASE": "2"}}));
    on.platform.deploy_only(&next).unwrap();
    let new = on.platform.wait_for_instance("web", "is of the new release", |one| {
        !before.contains(one.id()) && one.observed.started_at.is_some()
    });
    let new = lives(&[new.unwrap()]);
    // With kill -9, in the midst of it.
    drop(second);
    let app = eventually("the rollout is complete", || {
        let app = on.platform.app("web")?;
        ensure!(app.state == "running" && app.ready == 3 && app.outdated == 0, "{app:?}");
        Ok(Some(app))
    })
    .unwrap();
    assert_eq!(app.release.0, 2);
    let after = on.platform.instances("web").unwrap();
    assert!(new.iter().all(|life| lives(&after).get(life.0) == Some(life.1)), "{new:?} {after:?}");
    assert!(ids(&after).is_disjoint(&before));
    assert_eq!(through.stop(), Vec::<String>::new());
    let events = on.platform.run(&["events"]).ok();
    assert_eq!(events.matches("complete").count(), 2, "{events}");
    on.platform.finish();
}
