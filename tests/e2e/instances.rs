//! The life of an instance: its logs, its end and the reason, its limits and what it cannot do.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use longshore_e2e::platform::binary;
use longshore_e2e::{Platform, eventually};
use longshore_types::{ExitReason, InstancePhase};
use serde_json::{Value, json};

use crate::scene::{but, host, page, script, web, with_web};

#[test]
fn logs_are_followed_while_they_are_written() {
    let platform = with_web();
    let text = "echo first kept-$((6*7)); echo wrong >&2; while sleep 0.1; do echo again; done";
    platform.deploy(&script("talker", text)).unwrap();
    let mut command = platform.client(&["logs", "--follow", "talker"]);
    let mut follower = command.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let mut seen: Vec<String> = Vec::new();
    // Ends with the test's own time limit when nothing comes.
    for line in lines {
        seen.push(line.unwrap());
        let has = |text: &str| seen.iter().any(|line| line.contains(text));
        if has("first") && has("! wrong") && seen.iter().filter(|l| l.contains("again")).count() > 2
        {
            break;
        }
    }
    follower.kill().unwrap();
    follower.wait().unwrap();

    let tail = platform.run(&["logs", "--tail", "1", "talker"]).ok();
    assert_eq!(tail.lines().count(), 1, "{tail}");
    // What was written first is older than this by now, however fast all went.
    std::thread::sleep(Duration::from_millis(1200));
    let recent = platform.run(&["logs", "--since", "1s", "talker"]).ok();
    assert!(recent.contains("again") && !recent.contains("first"), "{recent}");
    let all = platform.run(&["logs", "--since", "1h", "talker"]).ok();
    assert!(all.contains("first kept-42"), "{all}");
    // Whoever passed it on kept none of it: a jurisdiction binds it with its instance.
    let files = files_with(&platform.data_dir(), b"kept-42");
    let shims = platform.data_dir().join("node/shims");
    assert!(!files.is_empty() && files.iter().all(|file| file.starts_with(&shims)), "{files:?}");
    platform.finish();
}

/// The files below a directory that have these bytes in them.
fn files_with(dir: &Path, bytes: &[u8]) -> Vec<PathBuf> {
    // What was there a moment ago may be gone, and a socket cannot be read.
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let each = entries.flat_map(|entry| {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        let has = |path: &PathBuf| {
            // Larger are only the disks of instances, in which nothing of the platform is.
            if std::fs::metadata(path).is_ok_and(|metadata| metadata.len() > 32 << 20) {
                return false;
            }
            let content = std::fs::read(path).unwrap_or_default();
            content.windows(bytes.len()).any(|window| window == bytes)
        };
        match (kind.is_dir(), kind.is_file()) {
            (true, _) => files_with(&path, bytes),
            (_, true) => Some(path).filter(has).into_iter().collect(),
            _ => Vec::new(),
        }
    });
    each.collect()
}

#[test]
fn exec_gives_output_and_exit_code() {
    let platform = with_web();
    platform.deploy(&web("web", 1)).unwrap();
    let instance = platform.instances("web").unwrap().remove(0);
    let id = instance.id().as_str();
    let script = "echo out; echo err >&2; pwd; echo $EXTRA; id -u; exit 7";
    let options = ["exec", "--user", "web", "--workdir", "/www", "--env", "EXTRA=more", id, "--"];
    let finished = platform.run(&[&options[..], &["/bin/sh", "-c", script]].concat());
    assert_eq!(finished.code, Some(7), "{finished}");
    assert_eq!(finished.stdout, "out\n/www\nmore\n1000\n");
    assert_eq!(finished.stderr, "err\n");
    platform.run(&["exec", id, "--", "/no/such/program"]).fails(1, &["/no/such/program"]);
    platform.finish();
}

#[test]
fn a_stopped_instance_gets_its_signal_and_is_replaced() {
    let platform = with_web();
    // A shell runs a trap between commands, so it must not wait in one long one.
    let text = "trap 'echo asked to stop; exit 0' TERM; echo ready; while :; do sleep 0.1; done";
    platform.deploy(&script("polite", text)).unwrap();
    let first = platform.instances("polite").unwrap().remove(0);
    let mut command = platform.client(&["logs", "--follow", first.id().as_str()]);
    let follower = command.stdout(Stdio::piped()).spawn().unwrap();
    platform.run(&["stop", first.id().as_str()]).ok();
    let next = platform.wait_for_instance("polite", "took its place", |next| {
        next.id() != first.id() && next.observed.phase == InstancePhase::Healthy
    });
    next.unwrap();
    // The log ends with the instance.
    let output = follower.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("asked to stop"), "{text}");
    platform.finish();
}

#[test]
fn running_out_of_memory_is_the_reason() {
    let platform = with_web();
    let hog = json!({
        "process": {"command": ["/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"]},
        "restart": "never",
    });
    platform.deploy_only(&but(script("hog", ""), &hog)).unwrap();
    let ended = platform
        .wait_for_instance("hog", "ended", |instance| instance.observed.last_exit.is_some())
        .unwrap();
    let Some(ExitReason::OutOfMemory { peak: Some(peak), .. }) = ended.observed.last_exit else {
        panic!("{ended:?}");
    };
    let said = format!("out of memory: used {peak} of 32 MiB");
    let id = ended.id().as_str();
    for command in [&["ps", "hog"][..], &["explain", id], &["logs", "hog"]] {
        let shown = platform.run(command).ok();
        assert!(shown.contains(&said), "{command:?}: {shown}");
    }
    platform.finish();
}

#[test]
fn an_instance_that_ends_is_started_again_after_a_wait() {
    let platform = with_web();
    platform.deploy_only(&script("short", "echo here; exit 3")).unwrap();
    let again = platform
        .wait_for_instance("short", "was started twice", |instance| instance.observed.restarts >= 2)
        .unwrap();
    assert_eq!(again.observed.last_exit, Some(ExitReason::Exited { code: 3 }));
    let waits = platform.wait_for_instance("short", "waits", |instance| {
        instance.id() == again.id() && instance.observed.phase == InstancePhase::Backoff
    });
    waits.unwrap();
    platform.finish();
}

#[test]
fn limits_hold() {
    let platform = with_web();
    let limits = json!({"resources": {"memory": "32MiB", "cpu": "0.25", "pids": 8}});
    platform.deploy(&but(web("web", 1), &limits)).unwrap();
    let id = platform.instances("web").unwrap().remove(0).id().clone();
    let forks = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 5 & done; echo all";
    let finished = platform.run(&["exec", id.as_str(), "--", "/bin/sh", "-c", forks]);
    assert!(!finished.stdout.contains("all"), "{finished}");
    assert!(finished.stderr.contains("fork"), "{finished}");
    assert_eq!(page(&platform, "web"), "one");
    platform.finish();
}

fn read(platform: &Platform, id: &str, script: &str) -> String {
    platform.run(&["exec", id, "--", "/bin/sh", "-c", script]).stdout
}

/// chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service, sys_chroot,
/// audit_write and setfcap: what docker grants, without mknod and net_raw.
const TWELVE_CAPABILITIES: &str = "00000000a00405fb";

#[test]
fn the_first_process_has_every_protection() {
    let platform = with_web();
    platform.deploy(&web("web", 1)).unwrap();
    let id = platform.instances("web").unwrap().remove(0).id().clone();
    // Of the first process and of one that exec started.
    for process in ["1", "self"] {
        let status = read(&platform, id.as_str(), &format!("cat /proc/{process}/status"));
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
        };
        assert_eq!(field("Seccomp:"), "2", "{process}");
        assert_eq!(field("NoNewPrivs:"), "1", "{process}");
        for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
            assert_eq!(field(set), TWELVE_CAPABILITIES, "{process}: {set}");
        }
        for set in ["CapInh:", "CapAmb:"] {
            let set = u64::from_str_radix(&field(set), 16).unwrap();
            let twelve = u64::from_str_radix(TWELVE_CAPABILITIES, 16).unwrap();
            assert_eq!(set & !twelve, 0, "{process}: {status}");
        }
    }
    platform.finish();
}

#[test]
fn an_instance_cannot_reach_the_machine() {
    let platform = with_web();
    platform.deploy(&web("web", 1)).unwrap();
    let id = platform.instances("web").unwrap().remove(0).id().clone();
    let sneaked = platform.dir().join("sneaked").display().to_string();
    for script in [
        "busybox mount -t tmpfs tmpfs /tmp".to_owned(),
        "busybox unshare -m true".to_owned(),
        "busybox mknod /tmp/disk b 254 0 && cat /tmp/disk".to_owned(),
        "ls -l /dev | busybox grep '^b'".to_owned(),
        "echo 1 > /proc/sys/kernel/panic".to_owned(),
        "echo b > /proc/sysrq-trigger".to_owned(),
        "cat /proc/kcore".to_owned(),
        "busybox reboot -f".to_owned(),
        "busybox hostname changed".to_owned(),
        format!("echo x > {sneaked}"),
    ] {
        let finished = platform.run(&["exec", id.as_str(), "--", "/bin/sh", "-c", &script]);
        assert_ne!(finished.code, Some(0), "{script}: {finished}");
    }
    assert!(!std::path::Path::new(&sneaked).exists());
    platform.finish();
}

#[test]
fn an_instance_that_fails_its_check_gets_no_requests_and_is_restarted() {
    let platform = with_web();
    let check = json!({"health": {"kind": "http", "path": "/", "interval": "1s", "failures": 1}});
    platform.deploy(&but(web("web", 2), &check)).unwrap();
    let sick = platform.instances("web").unwrap().remove(0);
    read(&platform, sick.id().as_str(), "busybox rm /www/index.html");
    platform
        .wait_for_instance("web", "was ended for its health", |instance| {
            instance.id() == sick.id() && instance.observed.last_exit == Some(ExitReason::Unhealthy)
        })
        .unwrap();
    eventually("only healthy instances answer", || {
        let response = platform.get(&host("web"), "/")?;
        Ok((response.status == 200).then_some(()))
    })
    .unwrap();
    platform.finish();
}

#[test]
fn top_is_drawn_again_on_a_terminal_and_knows_who_is_busy() {
    let platform = with_web();
    platform.deploy(&web("web", 1)).unwrap();
    platform.deploy(&script("busy", "while :; do :; done")).unwrap();
    let shown = platform.run(&["top", "busy", "--json"]).ok();
    let rows: Vec<Value> = serde_json::from_str(&shown).unwrap();
    let percent = rows[0]["cpu_percent"].as_f64().unwrap();
    // How much of its share it gets depends on what else runs here; more it never gets.
    assert!(percent > 0.0 && percent < 150.0, "{shown}");
    assert!(rows[0]["usage"]["memory"].as_u64().unwrap() > 0, "{shown}");
    assert!(rows[0]["usage"]["received"].is_u64(), "{shown}");

    let id = platform.instances("web").unwrap().remove(0).id().to_string();
    let command = format!("{} top web", binary().unwrap().display());
    let mut script = platform.tool("script");
    let mut terminal = platform
        .let_in(script.args(["-qefc", &command, "/dev/null"]))
        .stdout(Stdio::piped())
        .spawn()
        .expect("script can be run; its package is bsdutils");
    let mut output = terminal.stdout.take().unwrap();
    let mut seen = String::new();
    // Ends with the test's own time limit when nothing comes.
    while seen.matches("\x1b[H").count() < 2 {
        let mut buffer = [0; 4096];
        let length = output.read(&mut buffer).unwrap();
        assert!(length > 0, "{seen}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    terminal.kill().unwrap();
    terminal.wait().unwrap();
    assert!(seen.contains(&id) && seen.contains("MEMORY"), "{seen}");
    platform.finish();
}
