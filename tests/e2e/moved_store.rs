//! The state of the control plane moves to another store, and back to what it was yesterday, while what
//! runs goes on.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use longshore_e2e::cli::Finished;
use longshore_e2e::process::signal;
use longshore_e2e::{Platform, eventually};
use longshore_store::conformance::EtcdServer;
use rustix::process::Signal;

use crate::control_plane::ControlPlane;
use crate::scene::{Lives, busybox, lives, page, traffic, web, web_file, with_web};

/// The platform as the control plane beside it is asked.
struct Beside<'a> {
    platform: &'a Platform,
    control_plane: ControlPlane,
}

impl<'a> Beside<'a> {
    /// In place of the one of the platform: the location finds it where that was.
    fn start(platform: &'a Platform, name: &str, store: &str) -> Self {
        let control_plane = ControlPlane::start(platform, name, store, &link(platform)).unwrap();
        let this = Self { platform, control_plane };
        eventually("the control plane answers", || {
            let nodes = this.run(&["nodes", "--json"]);
            ensure!(nodes.code == Some(0) && nodes.stdout.contains("reachable"), "{nodes}");
            Ok(Some(()))
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}", this.control_plane.log()));
        this
    }

    fn run(&self, arguments: &[&str]) -> Finished {
        let mut command = self.platform.client(arguments);
        let output = command.env("LONGSHORE_API", self.control_plane.api()).output().unwrap();
        Finished::new(arguments, output)
    }

    fn lives(&self, app: &str) -> Result<Lives> {
        let said = self.run(&["ps", app, "--json"]);
        ensure!(said.code == Some(0), "{said}");
        Ok(lives(&serde_json::from_str::<Vec<_>>(&said.stdout)?))
    }

    fn has(&self, app: &str, wanted: &Lives) {
        eventually("the instances are known, and the same", || {
            let found = self.lives(app)?;
            ensure!(found == *wanted, "{found:?}\n{}", self.control_plane.log());
            Ok(Some(()))
        })
        .unwrap();
    }
}

/// Where the location looks for a control plane.
fn link(platform: &Platform) -> PathBuf {
    let agent = platform.agent_id().unwrap();
    platform.dir().join("run").join(agent).join("links/global.sock")
}

/// A process that is stopped as long as this is there.
struct Asleep(i32);

impl Asleep {
    fn new(pid: i32) -> Self {
        signal(pid, Signal::STOP).unwrap();
        Self(pid)
    }
}

impl Drop for Asleep {
    fn drop(&mut self) {
        signal(self.0, Signal::CONT).unwrap();
    }
}

#[test]
fn a_control_plane_moves_to_etcd_and_back_to_a_backup_and_what_runs_goes_on() {
    let mut platform = with_web();
    let dir = tempfile::tempdir().unwrap();
    let etcd = EtcdServer::cluster(dir.path(), 1).unwrap();
    let (moved, restored) =
        ["moved", "restored"].map(|name| format!("{}/{name}", EtcdServer::address(&etcd))).into();
    platform.push(&busybox(&platform, "two"), "default/web:2").unwrap();
    let file = |tag: &str| web_file(&platform, tag, 2, "");
    platform.run(&["deploy", "--file", &file("1")]).ok();
    let backup = platform.dir().join("backup").display().to_string();
    let said = platform.run(&["store", "backup", &backup]).ok();
    assert!(said.starts_with("backed up ") && said.contains(&backup), "{said}");
    platform.deploy(&web("late", 1)).unwrap();
    let (web_lives, late_lives) =
        (lives(&platform.instances("web").unwrap()), lives(&platform.instances("late").unwrap()));
    let through = (traffic(&platform, "web"), traffic(&platform, "late"));

    // Ends the control plane alone: the supervisor, which would start it again, sleeps meanwhile.
    let data = platform.data_dir().display().to_string();
    let migrate = ["store", "migrate", "--from", &data, "--to", &moved];
    platform.run(&migrate).fails(1, &["in use", "end the control plane first"]);
    let global = platform.role("global").unwrap();
    let asleep = Asleep::new(platform.supervisor_pid().unwrap());
    // Nobody waits in the backlog of who sleeps.
    std::fs::remove_file(link(&platform)).unwrap();
    global.kill().unwrap();
    let said = eventually("the state moves", || {
        let said = platform.run(&migrate);
        ensure!(said.code == Some(0), "{said}");
        Ok(Some(said.stdout))
    })
    .unwrap();
    assert!(said.starts_with("moved ") && said.contains(&moved), "{said}");
    let beside = Beside::start(&platform, "on-etcd", &moved);
    beside.has("web", &web_lives);
    beside.has("late", &late_lives);
    platform.run(&migrate).fails(1, &["is not empty", "/tokens"]);
    let back = ["store", "migrate", "--from", &moved, "--to", dir.path().to_str().unwrap()];
    platform.run(&back).fails(1, &["a control plane runs", "/leader"]);
    // A deploy and a rollback, as ever.
    beside.run(&["deploy", "--file", &file("2")]).ok();
    assert_eq!(page(&platform, "web"), "two");
    beside.run(&["rollback", "web", "--wait"]).ok();
    assert_eq!(page(&platform, "web"), "one");
    let web_lives = beside.lives("web").unwrap();

    // Yesterday's backup: what came after it is told, and goes on.
    drop(beside);
    let restore = |file: &str| platform.run(&["store", "restore", file, "--store", &restored]);
    let mut torn = std::fs::read(&backup).unwrap();
    torn.pop();
    let torn_file = format!("{backup}-torn");
    std::fs::write(&torn_file, torn).unwrap();
    restore(&torn_file).fails(3, &["checksum"]);
    assert!(restore(&backup).ok().starts_with("restored "));
    let beside = Beside::start(&platform, "restored", &restored);
    beside.has("web", &web_lives);
    beside.has("late", &late_lives);
    let events = eventually("what is not known is told", || {
        let events = beside.run(&["events", "--json"]).ok();
        ensure!(events.contains("late at local, which the restored store"), "{events}");
        Ok(Some(events))
    });
    assert!(!events.unwrap().contains("web at local"));
    let apps = beside.run(&["apps"]).ok();
    assert!(apps.contains("web") && !apps.contains("late"), "{apps}");
    assert_eq!(through.1.stop(), Vec::<String>::new());
    beside.run(&["rm", "late", "--wait"]).ok();
    eventually("it is gone", || {
        let gone = beside.run(&["ps", "late"]);
        ensure!(gone.code == Some(4), "{gone}");
        Ok(Some(()))
    })
    .unwrap();
    beside.has("web", &web_lives);
    assert_eq!(through.0.stop(), Vec::<String>::new());

    beside.control_plane.end().unwrap();
    drop(asleep);
    platform.down().unwrap();
    platform.configure(format!("store = {restored:?}\n"));
    platform.finish();
}
