//! Instances that behave badly: each is held in its own limits, ends for the right reason, and the
//! instance beside it does not notice.

use std::fs;
use std::path::{Path, PathBuf};

use longshore_api::v1::InstanceView;
use longshore_e2e::{Platform, eventually};
use longshore_types::{ExitReason, Resources};
use serde_json::{Value, json};

use crate::scene::{but, page, script, traffic, web, with_web};

/// An app that runs a script over and over, within little.
fn noisy(app: &str, text: &str) -> Value {
    let resources = json!({"memory": "24MiB", "cpu": "0.2", "pids": 24, "disk": "16MiB"});
    but(script(app, text), &json!({ "resources": resources }))
}

/// Waits until the log of an app has a line with this in it.
fn says(platform: &Platform, app: &str, text: &str) {
    let said = eventually(&format!("{app} says {text:?}"), || {
        let log = platform.run(&["logs", "--tail", "200", app]);
        anyhow::ensure!(log.stdout.contains(text), "{log}");
        Ok(Some(()))
    });
    said.unwrap();
}

fn ended_for_memory(instance: &InstanceView) -> bool {
    matches!(instance.observed.last_exit, Some(ExitReason::OutOfMemory { peak: Some(_), .. }))
}

/// Where the node keeps the log of an instance, its older files included.
fn log_files(platform: &Platform, instance: &InstanceView) -> Vec<PathBuf> {
    let dir = platform.data_dir().join("node/shims").join(instance.id().as_str());
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.to_string_lossy().contains("output.log")).collect()
}

fn size_of(files: &[PathBuf]) -> u64 {
    // One that was just rotated away has no size.
    files.iter().filter_map(|file| fs::metadata(file).ok()).map(|metadata| metadata.len()).sum()
}

/// What was allocated on the disk for the writable layer of an instance.
fn layer_size(platform: &Platform, instance: &InstanceView) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let dir = platform.data_dir().join("node/instances").join(instance.id().as_str());
    fs::metadata(dir.join("writable.ext4")).map_or(0, |metadata| metadata.blocks() * 512)
}

#[test]
fn a_fork_bomb_a_memory_hog_a_disk_filler_and_a_log_flood_disturb_nobody() {
    let platform = with_web();
    platform.deploy(&web("quiet", 1)).unwrap();
    let quiet = platform.instances("quiet").unwrap().remove(0);
    let traffic = traffic(&platform, "quiet");

    let bomb = "echo lit; bomb() { bomb | bomb & }; while :; do bomb; done";
    platform.deploy_only(&noisy("bomb", bomb)).unwrap();
    platform
        .deploy_only(&noisy("hog", "dd if=/dev/zero of=/dev/null bs=200M count=1; exit $?"))
        .unwrap();
    let shm = "dd if=/dev/zero of=/dev/shm/fill bs=1M count=60; exit $?";
    platform.deploy_only(&noisy("shm", shm)).unwrap();
    let filler = "while :; do dd if=/dev/zero of=/fill bs=1M; sleep 1; done";
    platform.deploy_only(&noisy("filler", filler)).unwrap();
    let flood = "exec busybox yes 'a line that says nothing and does not end'";
    platform.deploy_only(&noisy("flood", flood)).unwrap();

    says(&platform, "bomb", "lit");
    says(&platform, "bomb", "can't fork");
    says(&platform, "filler", "No space left on device");
    for app in ["hog", "shm"] {
        let again =
            |instance: &InstanceView| ended_for_memory(instance) && instance.observed.restarts >= 2;
        platform.wait_for_instance(app, "ran out of memory and was started again", again).unwrap();
    }
    let flooding = platform.instances("flood").unwrap().remove(0);
    let rotated = eventually("the flooded log is rotated", || {
        Ok((log_files(&platform, &flooding).len() > 1).then_some(()))
    });
    rotated.unwrap();
    assert!(size_of(&log_files(&platform, &flooding)) <= Resources::LOG.0);
    let filling = platform.instances("filler").unwrap().remove(0);
    assert!(layer_size(&platform, &filling) <= 16 << 20);

    let answered = traffic.answered();
    eventually("more is answered while they go on", || {
        Ok((traffic.answered() > answered + 50).then_some(()))
    })
    .unwrap();
    assert_eq!(traffic.stop(), Vec::<String>::new());
    let after = platform.instances("quiet").unwrap().remove(0);
    assert_eq!((after.id(), after.observed.restarts), (quiet.id(), 0));
    assert_eq!(filling.observed.restarts, 0, "a full disk ends nobody: {filling:?}");
    // They obey as anyone does.
    for app in ["bomb", "hog", "shm", "filler", "flood"] {
        platform.remove(app).unwrap();
    }
    assert_eq!(page(&platform, "quiet"), "one");
    platform.finish();
}

#[test]
fn what_is_hard_to_hold_is_held_and_removed() {
    let platform = with_web();
    platform.deploy(&web("quiet", 1)).unwrap();
    let traffic = traffic(&platform, "quiet");
    let files = "i=0; while echo > /tmp/$i; do i=$((i+1)); done; echo stopped; sleep 1000";
    platform.deploy_only(&noisy("files", files)).unwrap();
    // The children of a process that does not care for them.
    let zombies = "i=0; while [ $i -lt 15 ]; do busybox true & i=$((i+1)); done; echo born; \
                   exec sleep 1000";
    platform.deploy_only(&noisy("zombies", zombies)).unwrap();
    let line = "busybox dd if=/dev/zero bs=1M count=8 2>/dev/null | busybox tr '\\0' x; echo end; sleep 1000";
    platform.deploy_only(&noisy("line", line)).unwrap();
    let deep = "i=0; while [ $i -lt 1500 ]; do busybox mkdir d && cd -P d || break; i=$((i+1)); done; \
                echo deep $i; sleep 1000";
    platform.deploy_only(&noisy("deep", deep)).unwrap();
    let sparse = "dd if=/dev/zero of=/sparse bs=1 count=1 seek=100G && echo made; sleep 1000";
    platform.deploy_only(&noisy("sparse", sparse)).unwrap();

    says(&platform, "files", "No space left on device");
    says(&platform, "files", "stopped");
    says(&platform, "zombies", "born");
    says(&platform, "line", "end");
    says(&platform, "deep", "deep 1500");
    says(&platform, "sparse", "made");
    let long = platform.instances("line").unwrap().remove(0);
    assert!(size_of(&log_files(&platform, &long)) <= Resources::LOG.0);
    let sparse = platform.instances("sparse").unwrap().remove(0);
    assert!(layer_size(&platform, &sparse) < 4 << 20, "a hole takes no room");

    for app in ["files", "zombies", "line", "deep", "sparse"] {
        assert_eq!(platform.instances(app).unwrap()[0].observed.restarts, 0, "{app}");
        platform.remove(app).unwrap();
    }
    eventually("only the quiet one is left", || {
        let entries = fs::read_dir(platform.data_dir().join("node/instances"))?;
        let left: Vec<_> =
            entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
        let left: Vec<_> = left.iter().filter(|path| path.is_dir()).collect();
        anyhow::ensure!(left.len() == 1, "{left:?}");
        Ok(Some(()))
    })
    .unwrap();
    assert_eq!(traffic.stop(), Vec::<String>::new());
    platform.finish();
}

#[test]
fn a_full_disk_is_of_one_instance_alone_and_empty_at_its_next_start() {
    let platform = with_web();
    let filler = "ls /fill && echo left over; dd if=/dev/zero of=/fill bs=1M; echo full; \
                  while [ ! -e /tmp/end ]; do sleep 0.1; done; exit 3";
    platform.deploy_only(&noisy("filler", filler)).unwrap();
    let beside = "sleep 1000";
    platform.deploy(&noisy("beside", beside)).unwrap();
    says(&platform, "filler", "No space left on device");
    says(&platform, "filler", "full");
    let id = platform.instances("filler").unwrap().remove(0).id().clone();
    let exec = |app: &str, command: &str| {
        let id = platform.instances(app).unwrap().remove(0).id().clone();
        platform.run(&["exec", id.as_str(), "--", "/bin/sh", "-c", command])
    };
    let write = "dd if=/dev/zero of=/more bs=1M count=4";
    assert_ne!(exec("filler", write).code, Some(0), "it is full");
    assert_eq!(exec("beside", write).code, Some(0), "and nobody else is");
    let top = platform.run(&["top", "filler", "--json"]).ok();
    let rows: Vec<Value> = serde_json::from_str(&top).unwrap();
    let used = rows[0]["usage"]["disk"].as_u64().unwrap();
    assert!(used > 14 << 20 && used <= 16 << 20, "{top}");
    // Room for a name is made with a file that is smaller.
    exec("filler", "busybox truncate -s 1M /fill; : > /tmp/end");
    platform
        .wait_for_instance("filler", "was started again", |instance| {
            instance.id() == &id && instance.observed.restarts == 1
        })
        .unwrap();
    eventually("it is full again", || {
        let log = platform.run(&["logs", "filler"]);
        anyhow::ensure!(log.stdout.matches("full").count() >= 2, "{log}");
        Ok(Some(()))
    })
    .unwrap();
    let log = platform.run(&["logs", "filler"]).ok();
    assert!(!log.contains("left over"), "{log}");
    platform.finish();
}

/// The mounts and loop devices that carry a path.
fn traces(mark: &Path) -> Vec<String> {
    let mark = mark.display().to_string();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut found: Vec<_> =
        mounts.lines().filter(|line| line.contains(&mark)).map(str::to_owned).collect();
    for entry in fs::read_dir("/sys/block").unwrap().flatten() {
        let file = fs::read_to_string(entry.path().join("loop/backing_file"));
        found.extend(file.ok().filter(|file| file.contains(&mark)));
    }
    found
}

#[test]
fn an_agent_that_dies_keeps_the_layers_of_its_instances_and_leaks_none() {
    let mut platform = with_web();
    let text = "echo kept > /kept; echo ready; sleep 1000";
    platform.deploy(&noisy("keeper", text)).unwrap();
    says(&platform, "keeper", "ready");
    let id = platform.instances("keeper").unwrap().remove(0).id().clone();
    platform.role("node").unwrap().kill().unwrap();
    platform.kill_supervisor().unwrap();
    platform.up(longshore_e2e::platform::Instances::Keep).unwrap();
    platform.wait_until_settled("keeper").unwrap();
    let kept = platform.run(&["exec", id.as_str(), "--", "cat", "/kept"]).ok();
    assert_eq!(kept, "kept\n");
    assert_eq!(platform.instances("keeper").unwrap()[0].observed.restarts, 0);
    // Killed in the midst of many starts, it finds what it had begun.
    platform.deploy_only(&but(noisy("many", "sleep 1000"), &json!({"count": 6}))).unwrap();
    platform.role("node").unwrap().kill().unwrap();
    platform.wait_until_settled("many").unwrap();
    platform.remove("many").unwrap();
    let instances = platform.data_dir().join("node/instances");
    eventually("only the layer of the keeper is left", || {
        let found = traces(&instances);
        let all_keepers = found.iter().all(|line| line.contains(id.as_str()));
        anyhow::ensure!(all_keepers && found.len() <= 3, "{found:#?}");
        Ok(Some(()))
    })
    .unwrap();
    platform.finish();
}
