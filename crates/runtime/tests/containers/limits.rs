//! Limits hold.

use longshore_runtime::CgroupKind;
use longshore_types::{ByteCount, ExitReason, MilliCpu};

use crate::bed::{Bed, until_line};

#[tokio::test]
async fn limits_are_what_was_asked_for() {
    let bed = Bed::new();
    let mut spec = bed.spec(&["sleep", "1000"]);
    spec.limits.cpu = MilliCpu(250);
    spec.limits.memory = ByteCount::mib(48);
    spec.limits.pids = 17;
    let running = bed.start(&spec).await;
    let file = |controller, file| bed.payload_file(&spec.id, controller, file);
    assert_eq!(file("pids", "pids.max"), "17");
    match bed.shims.cgroup_kind() {
        CgroupKind::V1 => {
            assert_eq!(file("cpu", "cpu.cfs_quota_us"), "25000");
            assert_eq!(file("cpu", "cpu.cfs_period_us"), "100000");
            assert_eq!(file("memory", "memory.limit_in_bytes"), "50331648");
            for controller in ["cpu", "memory", "pids", "devices"] {
                let processes = file(controller, "cgroup.procs");
                assert_eq!(processes, running.pid().to_string(), "{controller}");
            }
        }
        CgroupKind::V2 => {
            assert_eq!(file("", "cpu.max"), "25000 100000");
            assert_eq!(file("", "memory.max"), "50331648");
            assert_eq!(file("", "memory.swap.max"), "0");
            assert_eq!(file("", "cgroup.procs"), running.pid().to_string());
        }
    }
    let usage = bed.shims.stats(&spec.id).await.expect("usage");
    assert_eq!(usage.pids, 1);
    assert!(usage.memory < ByteCount::mib(48), "{usage:?}");
    bed.finish().await;
}

#[tokio::test]
async fn processes_are_limited() {
    let bed = Bed::new();
    let mut spec = bed.script("for i in $(seq 40); do sleep 1000 & done; echo never");
    spec.limits.pids = 10;
    let (record, output) = bed.run(&spec).await;
    assert!(matches!(record.reason, ExitReason::Exited { code } if code != 0), "{record:?}");
    assert!(output.contains("can't fork") && !output.contains("never"), "{output}");
    bed.finish().await;
}

#[tokio::test]
async fn a_memory_hog_ends_as_out_of_memory() {
    let bed = Bed::new();
    let mut spec = bed.spec(&["dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"]);
    spec.limits.memory = ByteCount::mib(32);
    let (record, output) = bed.run(&spec).await;
    assert_eq!(record.reason, ExitReason::OutOfMemory, "{output}");
    assert_eq!(record.oom_kills, 1);
    bed.finish().await;
}

#[tokio::test]
async fn a_hog_behind_a_shell_is_told_apart_from_one_that_is_survived() {
    let bed = Bed::new();
    let hog = "dd if=/dev/zero of=/dev/null bs=200M count=1";
    let mut passed_on = bed.script(&format!("{hog}; exit $?"));
    passed_on.limits.memory = ByteCount::mib(32);
    assert_eq!(bed.run(&passed_on).await.0.reason, ExitReason::OutOfMemory);
    let mut survived = bed.script(&format!("{hog}; exit 0"));
    survived.limits.memory = ByteCount::mib(32);
    let record = bed.run(&survived).await.0;
    assert_eq!((record.reason, record.oom_kills), (ExitReason::Exited { code: 0 }, 1));
    bed.finish().await;
}

#[tokio::test]
async fn a_fork_bomb_is_ended_whole() {
    let bed = Bed::new();
    let bomb = "bomb() { bomb | bomb & }; echo lit; trap '' TERM; while :; do bomb; done";
    let mut spec = bed.script(bomb);
    spec.limits.pids = 40;
    let running = bed.start(&spec).await;
    until_line(&spec, "lit").await;
    let record = running.kill().await.expect("it ends");
    assert!(matches!(record.reason, ExitReason::Stopped | ExitReason::Exited { .. }), "{record:?}");
    bed.finish().await;
}
