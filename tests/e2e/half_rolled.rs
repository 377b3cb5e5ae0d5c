//! Kill anything at any moment while releases are replaced, commands run inside of instances, programs
//! are run for a client and logs are read: every release that was acknowledged is whole in the end, and
//! nothing is left of the others.

use std::io::{ErrorKind, Read as _};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use longshore_api::v1::{AppView, DeployResponse, InstanceView};
use longshore_e2e::platform::{Instances, Remote};
use longshore_e2e::websocket::Message;
use longshore_e2e::{Platform, WebSocket, eventually};
use longshore_types::{InstanceId, ReleaseNumber};
use serde_json::{Value, json};

use crate::faults::{Random, Victim, kill, n_kills};
use crate::scene::{OnEtcd, but, traffic, web, with_web};

/// The next release, by one of the ways that there are.
fn release(round: u32, random: &mut Random) -> Value {
    let way = match random.below(4) {
        0 => json!({"rollout": {"canary": 1, "canary_wait": "1s"}}),
        1 => json!({"release": {"command": ["/bin/sh", "-c", "sleep 0.5"]}}),
        2 => json!({"rollout": {"max_surge": 3}}),
        _ => json!({}),
    };
    but(but(web("web", 3), &json!({"env": {"ROUND": round.to_string()}})), &way)
}

/// Deploys until somebody says that it is done: to say the same again changes nothing.
fn deploy(remote: &Remote, manifest: &Value) -> ReleaseNumber {
    let done = eventually("a deploy is acknowledged", || {
        let body = Some(json!({ "manifest": manifest }));
        let answer = remote.call_raw("PUT", "/v1/projects/default/apps/web", body)?;
        ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
        let response: DeployResponse = serde_json::from_slice(&answer.body)?;
        Ok(Some(response.release.number))
    });
    done.unwrap()
}

fn any_instance(remote: &Remote) -> Result<InstanceId> {
    let answer = remote.call_raw("GET", "/v1/projects/default/instances?app=web", None)?;
    let all: Vec<InstanceView> = serde_json::from_slice(&answer.body)?;
    Ok(all.first().context("there is none now")?.id().clone())
}

/// Runs commands in whatever instance there is, in a terminal every other time. One that ends well
/// has said all that it should.
fn run_commands(remote: &Remote, done: &AtomicBool) -> u32 {
    let mut n_answers = 0;
    while !done.load(Ordering::Relaxed) {
        if let Ok((said, true)) = run_command(remote, n_answers % 2 == 1) {
            assert_eq!(said.trim_end(), "whole");
            n_answers += 1;
        } else {
            // The API answers a token so many requests a second.
            thread::sleep(Duration::from_millis(100));
        }
    }
    n_answers
}

/// What a command said, and whether it ended well.
fn run_command(remote: &Remote, in_terminal: bool) -> Result<(String, bool)> {
    let id = any_instance(remote)?;
    let query = "command=/bin/sh&command=-c&command=sleep%200.05%3B%20echo%20whole";
    let path = format!("/v1/projects/default/instances/{id}/exec?{query}&tty={in_terminal}");
    let authorization = format!("Bearer {}", remote.token());
    let headers = [
        ("authorization", authorization.as_str()),
        ("sec-websocket-protocol", "exec.v1.longshore"),
    ];
    let mut socket = WebSocket::connect_with(remote.address()?, "api", &path, &headers)?;
    let mut said = String::new();
    loop {
        match socket.receive()? {
            Message::Binary(bytes) if bytes == b"\x03{\"exit\":{\"code\":0}}" => {
                return Ok((said, true));
            }
            Message::Binary(bytes) if bytes.first() == Some(&1) => {
                said.push_str(&String::from_utf8_lossy(&bytes[1..]));
            }
            _ => return Ok((said, false)),
        }
    }
}

/// Runs programs that are there for their client. One that ends well has said all that it should.
fn run_programs(client: &mut Command, done: &AtomicBool) -> u32 {
    let mut n_answers = 0;
    while !done.load(Ordering::Relaxed) {
        let output = client.output().unwrap();
        if output.status.success() {
            assert_eq!(String::from_utf8_lossy(&output.stdout), "whole\n");
            n_answers += 1;
        }
    }
    n_answers
}

/// Removes the programs whose client could not.
fn remove_programs(platform: &Platform) {
    let apps: Vec<AppView> = serde_json::from_str(&platform.run(&["apps", "--json"]).ok()).unwrap();
    for app in apps.iter().filter(|app| app.app.as_str().starts_with("run-")) {
        let removed = platform.run(&["rm", app.app.as_str(), "--wait"]);
        // It may have been about to go.
        assert!(matches!(removed.code, Some(0 | 4)), "{removed}");
    }
}

/// Follows the log of an instance until it breaks off or nobody wants it any more.
fn follow_a_log(remote: &Remote, done: &AtomicBool) -> Result<()> {
    let id = any_instance(remote)?;
    let path = format!("/v1/projects/default/instances/{id}/logs?follow=true");
    let mut stream = remote.open(&path)?;
    stream.set_read_timeout(Some(Duration::from_millis(100)))?;
    let mut buffer = [0; 4096];
    while !done.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Waits until a release is all that there is of the app.
fn whole(platform: &Platform, number: ReleaseNumber) -> Result<()> {
    eventually("the release is whole", || {
        let app = platform.app("web")?;
        ensure!((app.release, app.state.as_str()) == (number, "running"), "{app:?}");
        let all = platform.instances("web")?;
        let is_of_it = |one: &InstanceView| one.release == number && !one.is_command;
        ensure!(all.len() == 3 && all.iter().all(is_of_it), "{all:?}");
        let answer = platform.get("web.localhost", "/")?;
        ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
        Ok(Some(()))
    })
}

#[test]
fn random_kills_leave_no_release_half_rolled() {
    let mut platform = with_web();
    kills(&mut platform);
    platform.finish();
}

#[test]
fn random_kills_with_the_state_in_etcd_leave_no_release_half_rolled() {
    let mut on = OnEtcd::start(3);
    kills(&mut on.platform);
    on.platform.finish();
}

fn kills(platform: &mut Platform) {
    let mut random = Random::from_environment();
    platform.deploy(&web("web", 3)).unwrap();
    let (mut n_commands, mut n_programs) = (0, 0);
    let small = ["--memory", "32MiB", "--cpu", "0.1", "--disk", "64MiB", "--timeout", "10s"];
    let script = ["default/web:1", "/bin/sh", "-c", "sleep 0.05; echo whole"];
    let mut client = platform.client(&[&["run"], &small[..], &script].concat());
    client.stdin(Stdio::null());
    for round in 1..=n_kills() {
        let manifest = release(round, &mut random);
        let victim = random.victim();
        println!("kill {round}: {victim:?} during {manifest}");
        let through = traffic(platform, "web");
        let (remote, done) = (platform.remote(), AtomicBool::new(false));
        let wait = Duration::from_millis(random.below(2000));
        let number = thread::scope(|scope| {
            let deploying = scope.spawn(|| deploy(&remote, &manifest));
            let commands = scope.spawn(|| run_commands(&remote, &done));
            let programs = scope.spawn(|| run_programs(&mut client, &done));
            // It may break with what is killed; it must not keep anything from ending.
            scope.spawn(|| follow_a_log(&remote, &done));
            // The moment of the kill is random on purpose: nothing is waited for here.
            thread::sleep(wait);
            let killed = kill(platform, victim).and_then(|()| match victim {
                Victim::Supervisor | Victim::Everything => platform.up(Instances::Keep),
                Victim::Role(_) => Ok(()),
            });
            let number = deploying.join();
            done.store(true, Ordering::Relaxed);
            n_commands += commands.join().unwrap();
            n_programs += programs.join().unwrap();
            killed.unwrap();
            number.unwrap()
        });
        remove_programs(platform);
        whole(platform, number)
            .unwrap_or_else(|error| panic!("kill {round}, {victim:?}: {error:#}"));
        let failures = through.stop();
        let may_break =
            !matches!(victim, Victim::Role("global" | "location" | "node" | "registry"));
        assert!(may_break || failures.is_empty(), "{victim:?}: {failures:?}");
    }
    assert!(n_commands > 0, "no command ever ended well");
    assert!(n_programs > 0, "no program ever ended well");
    println!("{n_commands} commands and {n_programs} programs ended well");
}
