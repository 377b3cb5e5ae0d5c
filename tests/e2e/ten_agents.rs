//! Ten agents with ids of their own run on one kernel, beside a docker daemon that drops FORWARD.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use longshore_e2e::dockerd::Firewall;
use longshore_e2e::image::checked;
use longshore_e2e::{Dockerd, Platform};

use crate::scene::{busybox, page, web};

const BRIDGE: &str = "lstbr0";

/// The rules of iptables as they were, put back at the end; and a bridge for docker, taken away.
struct Rules(String);

impl Rules {
    fn keep() -> Self {
        let saved = Command::new("iptables-save").output().expect("install the package iptables");
        let rules = Self(String::from_utf8(saved.stdout).unwrap());
        checked(Command::new("ip").args(["link", "add", BRIDGE, "type", "bridge"])).unwrap();
        checked(Command::new("ip").args(["address", "add", "198.18.213.1/24", "dev", BRIDGE]))
            .unwrap();
        rules
    }
}

impl Drop for Rules {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", BRIDGE]).status();
        for table in ["filter", "nat"] {
            for action in ["--flush", "--delete-chain"] {
                let _ = Command::new("iptables").args(["--table", table, action]).status();
            }
        }
        let _ = Command::new("iptables").args(["--policy", "FORWARD", "ACCEPT"]).status();
        let restore = Command::new("iptables-restore").stdin(Stdio::piped()).spawn();
        if let Ok(mut restore) = restore {
            if let Some(mut stdin) = restore.stdin.take() {
                let _ = std::io::Write::write_all(&mut stdin, self.0.as_bytes());
            }
            let _ = restore.wait();
        }
    }
}

#[test]
fn ten_agents_run_beside_docker() {
    let _rules = Rules::keep();
    let docker = Dockerd::start(Firewall::Docker { bridge: BRIDGE }).unwrap();
    let mut platforms = Vec::new();
    for number in 0..10 {
        let platform = Platform::start().unwrap();
        let image = busybox(&platform, &format!("page-{number}"));
        platform.push(&image, "default/web:1").unwrap();
        platform.deploy(&web("web", 1)).unwrap();
        platforms.push(platform);
    }
    let agents: BTreeSet<_> =
        platforms.iter().map(|platform| platform.agent_id().unwrap()).collect();
    assert_eq!(agents.len(), 10, "{agents:?}");
    let addresses: BTreeSet<_> = platforms
        .iter()
        .map(|platform| platform.instances("web").unwrap()[0].observed.address.unwrap())
        .collect();
    assert_eq!(addresses.len(), 10, "{addresses:?}");
    for (number, platform) in platforms.iter().enumerate() {
        assert_eq!(page(platform, "web"), format!("page-{number}"));
    }
    // Each goes without taking anything of the others with it.
    while let Some(platform) = platforms.pop() {
        platform.finish();
        for (number, platform) in platforms.iter().enumerate() {
            assert_eq!(page(platform, "web"), format!("page-{number}"));
        }
    }
    docker.docker(&["info"]).unwrap();
}
