//! What scripts and other programs lean on: verbs that wait, events that are followed, changes made once.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Duration;

use longshore_api::v1::{AppView, EventView};
use longshore_e2e::eventually;
use serde_json::{Value, json};

use crate::scene::{web, with_web};

#[test]
fn verbs_wait_when_they_are_told_to() {
    let platform = with_web();
    platform.deploy(&web("web", 1)).unwrap();
    let app: AppView = platform.run(&["scale", "web=3", "--wait", "--json"]).json();
    assert_eq!((app.count, app.ready, app.state.as_str()), (3, 3, "running"));
    let id = platform.instances("web").unwrap()[0].id().to_string();
    let stopped: Value = platform.run(&["stop", &id, "--wait", "--json"]).json();
    assert_eq!(stopped, json!({"stopped": id, "gone": true}));
    assert!(platform.instances("web").unwrap().iter().all(|other| other.id().as_str() != id));
    platform.run(&["stop", "web", "--wait"]).ok();
    assert!(platform.instances("web").unwrap().is_empty());
    platform.run(&["scale", "web=1", "--wait", "--timeout", "1ms"]).fails(7, &["after 1ms"]);
    platform.run(&["rm", "web", "--wait"]).ok();
    platform.run(&["ps", "web"]).fails(4, &["there is no app web"]);
    platform.finish();
}

#[test]
fn events_are_followed_over_kills_of_the_control_plane() {
    let platform = with_web();
    let mut command = platform.client(&["events", "--follow", "--json"]);
    let mut follower = command.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let (sender, told) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let event: EventView = serde_json::from_str(&line).unwrap();
            if sender.send(event).is_err() {
                return;
            }
        }
    });
    // The first event shows that it listens; until then nothing is asked for that counts.
    eventually("events are followed", || {
        platform.run(&["secret", "set", "probe", "--from-file", "/etc/hostname"]).ok();
        Ok(told.recv_timeout(Duration::from_millis(200)).ok().map(drop))
    })
    .unwrap();
    platform.deploy(&web("web", 1)).unwrap();
    for count in 2..=4 {
        platform.role("global").unwrap().kill().unwrap();
        let scale = format!("web={count}");
        let scaled = || platform.run(&["scale", &scale]).code == Some(0);
        eventually("the API answers again", || Ok(scaled().then_some(()))).unwrap();
    }
    let mut scales = Vec::new();
    while scales.len() < 3 {
        let event = told.recv_timeout(Duration::from_secs(30)).unwrap();
        if event.what == "scale" {
            scales.push(event.subject);
        }
    }
    assert_eq!(scales, ["web from 1 to 2", "web from 2 to 3", "web from 3 to 4"]);
    follower.kill().unwrap();
    follower.wait().unwrap();
    reader.join().unwrap();
    platform.finish();
}
