//! The platform as the unit that ships with it, under a systemd that manages the same cgroups.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use longshore_e2e::process::Process;
use longshore_e2e::skip::note_skip;
use longshore_e2e::{Platform, Traffic, eventually, image::BUSYBOX_PORT, image::checked};
use longshore_types::ExitReason;
use serde_json::json;

use crate::scene::{but, lives, page, script, web, with_web};

/// A unit of this test's own, gone with it.
struct Unit {
    name: String,
    file: PathBuf,
}

impl Unit {
    /// The shipped unit, save for where the binary, the configuration and the data are.
    fn install(platform: &Platform) -> Self {
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dist/longshore.service");
        let shipped = fs::read_to_string(shipped).unwrap();
        let is_kept = |line: &&str| !line.contains("Directory");
        let lines: Vec<String> = shipped
            .lines()
            .filter(is_kept)
            .map(|line| match line.strip_prefix("ExecStart=") {
                Some(_) => {
                    let binary = longshore_e2e::platform::binary().unwrap();
                    let config = platform.dir().join("up.toml");
                    format!("ExecStart={} up --config {}", binary.display(), config.display())
                }
                None => line.to_owned(),
            })
            .collect();
        let name = format!("longshore-test-{}.service", std::process::id());
        let unit = Self { file: Path::new("/run/systemd/system").join(&name), name };
        fs::create_dir_all("/run/systemd/system").unwrap();
        fs::write(&unit.file, lines.join("\n")).unwrap();
        systemctl(&["daemon-reload"]);
        unit
    }

    fn run(&self, verb: &str) {
        systemctl(&[verb, &self.name]);
    }

    fn main_pid(&self) -> String {
        let output = Command::new("systemctl")
            .args(["show", "--property", "MainPID", "--value", &self.name])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        // On the way out of a failed test it says more than a second failure would.
        let _ = Command::new("systemctl").args(["stop", &self.name]).status();
        let _ = fs::remove_file(&self.file);
        let _ = Command::new("systemctl").arg("daemon-reload").status();
    }
}

fn systemctl(arguments: &[&str]) {
    checked(Command::new("systemctl").args(arguments)).unwrap();
}

fn wait_until_it_answers(platform: &Platform) {
    eventually("the API answers", || {
        let response = platform.call_raw("GET", "/v1/health", None)?;
        Ok((response.status == 200).then_some(()))
    })
    .unwrap();
}

/// The cgroups of all containers, as directories.
fn cgroups(platform: &Platform) -> Vec<PathBuf> {
    let all = Process::all().unwrap();
    let shims = platform.shims().unwrap();
    let containers =
        all.iter().filter(|process| shims.iter().any(|shim| shim.pid == process.parent));
    let mut found: Vec<PathBuf> = containers
        .map(|process| {
            let text = fs::read_to_string(format!("/proc/{}/cgroup", process.pid)).unwrap();
            let path = text.trim().strip_prefix("0::/").unwrap();
            Path::new("/sys/fs/cgroup").join(path)
        })
        .collect();
    found.sort();
    found
}

#[test]
fn instances_of_the_shipped_unit_keep_their_limits_and_outlive_it() {
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    if !Path::new("/run/systemd/system").exists() || !unified {
        note_skip("this machine has no systemd with cgroup v2 alone (see cargo xtask vm test)");
        return;
    }
    let mut platform = with_web();
    assert!(platform.down().unwrap().success());
    let unit = Unit::install(&platform);
    unit.run("start");
    wait_until_it_answers(&platform);
    platform.deploy(&web("web", 2)).unwrap();
    let before = platform.instances("web").unwrap();
    let homes = cgroups(&platform);
    assert_eq!(homes.len(), 2, "{homes:?}");
    let limits_hold = || {
        for home in &homes {
            let limit = fs::read_to_string(home.join("memory.max")).unwrap();
            assert_eq!(limit.trim(), (32 << 20).to_string(), "{}", home.display());
        }
    };
    limits_hold();

    let id = before[0].id().as_str();
    let said = platform.run(&["exec", id, "--", "/bin/sh", "-c", "echo here; exit 7"]);
    assert_eq!((said.code, said.stdout.as_str()), (Some(7), "here\n"));
    let hog = json!({
        "process": {"command": ["/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"]},
        "restart": "never",
    });
    platform.deploy_only(&but(script("hog", ""), &hog)).unwrap();
    let ended = platform
        .wait_for_instance("hog", "ended", |instance| instance.observed.last_exit.is_some())
        .unwrap();
    assert!(matches!(ended.observed.last_exit, Some(ExitReason::OutOfMemory { .. })), "{ended:?}");

    // systemd looks at all cgroups anew, and at those of a unit that dies.
    eprintln!("two instances run, one ended for want of memory");
    systemctl(&["daemon-reload"]);
    let address = before[0].observed.address.unwrap();
    let direct = Traffic::start((address, BUSYBOX_PORT).into(), "web");
    let first = unit.main_pid();
    systemctl(&["kill", "--signal", "KILL", "--kill-who", "main", &unit.name]);
    eventually("systemd starts it again", || {
        let now = unit.main_pid();
        Ok((now != first && now != "0").then_some(()))
    })
    .unwrap();
    wait_until_it_answers(&platform);
    platform.wait_until_settled("web").unwrap();
    eprintln!("systemd started it again");
    assert_eq!(lives(&platform.instances("web").unwrap()), lives(&before));
    assert_eq!(cgroups(&platform), homes);
    limits_hold();
    assert_eq!(page(&platform, "web"), "one");
    assert_eq!(direct.stop(), Vec::<String>::new());
    unit.run("stop");
    platform.finish();
}
