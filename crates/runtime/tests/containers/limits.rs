//! Limits hold.

use std::fs;

use longshore_runtime::CgroupKind;
use longshore_types::{ByteCount, ExitReason, MilliCpu};

use crate::bed::{Bed, until_line};

pub async fn limits_are_what_was_asked_for(bed: Bed) {
    let mut spec = bed.spec(&["sleep", "1000"]);
    spec.limits.cpu = MilliCpu(250);
    spec.limits.memory = ByteCount::mib(if bed.is_sandboxed() { 192 } else { 48 });
    spec.limits.pids = if bed.is_sandboxed() { 117 } else { 17 };
    let (memory, pids) = (spec.limits.memory.0.to_string(), spec.limits.pids.to_string());
    let running = bed.start(&spec).await;
    let file = |controller, file| bed.payload_file(&spec.id, controller, file);
    assert_eq!(file("pids", "pids.max"), pids);
    // All that a kernel of its own consists of is inside, however much that is.
    let assert_inside = |processes: String| {
        let expected = running.pid().to_string();
        assert!(processes.lines().any(|pid| pid == expected), "{expected}: {processes}");
        assert!(bed.is_sandboxed() || processes.lines().count() == 1, "{processes}");
        for pid in processes.lines() {
            let inside = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
            assert!(!inside.contains("longshore"), "{inside}");
        }
    };
    match bed.shims.cgroup_kind() {
        CgroupKind::V1 => {
            assert_eq!(file("cpu", "cpu.cfs_quota_us"), "25000");
            assert_eq!(file("cpu", "cpu.cfs_period_us"), "100000");
            assert_eq!(file("memory", "memory.limit_in_bytes"), memory);
            for controller in ["cpu", "memory", "pids", "devices"] {
                assert_inside(file(controller, "cgroup.procs"));
            }
        }
        CgroupKind::V2 => {
            assert_eq!(file("", "cpu.max"), "25000 100000");
            assert_eq!(file("", "memory.max"), memory);
            assert_eq!(file("", "memory.swap.max"), "0");
            assert_inside(file("", "cgroup.procs"));
        }
    }
    let usage = bed.shims.stats(&spec.id).await.expect("usage");
    assert!(usage.pids == 1 || bed.is_sandboxed(), "{usage:?}");
    assert!(usage.memory < spec.limits.memory, "{usage:?}");
    bed.finish().await;
}

pub async fn processes_are_limited(bed: Bed) {
    let (pids, n_forks) = if bed.is_sandboxed() { (64, 400) } else { (10, 40) };
    let mut spec =
        bed.script(&format!("for i in $(seq {n_forks}); do sleep 1000 & done; echo never"));
    spec.limits.pids = pids;
    let (record, output) = bed.run(&spec).await;
    assert!(!output.contains("never"), "{output}");
    if bed.is_sandboxed() {
        // A kernel that gets no more threads gives up, and its container with it.
        assert_ne!(record.reason, ExitReason::Exited { code: 0 });
    } else {
        assert!(matches!(record.reason, ExitReason::Exited { code } if code != 0), "{record:?}");
        assert!(output.contains("can't fork"), "{output}");
    }
    bed.finish().await;
}

pub async fn a_memory_hog_ends_as_out_of_memory(bed: Bed) {
    let mut spec = bed.spec(&["dd", "if=/dev/zero", "of=/dev/null", "bs=400M", "count=1"]);
    spec.limits.memory = bed.memory(32);
    let (record, output) = bed.run(&spec).await;
    assert_eq!(record.reason, ExitReason::OutOfMemory, "{output}");
    assert!(record.oom_kills == 1 || bed.is_sandboxed(), "{record:?}");
    bed.finish().await;
}

pub async fn a_hog_behind_a_shell_is_told_apart_from_one_that_is_survived(bed: Bed) {
    let hog = "dd if=/dev/zero of=/dev/null bs=400M count=1";
    let mut passed_on = bed.script(&format!("{hog}; exit $?"));
    passed_on.limits.memory = bed.memory(32);
    assert_eq!(bed.run(&passed_on).await.0.reason, ExitReason::OutOfMemory);
    let mut survived = bed.script(&format!("{hog}; exit 0"));
    survived.limits.memory = bed.memory(32);
    let record = bed.run(&survived).await.0;
    if bed.is_sandboxed() {
        // The memory of its processes is that of its kernel, which is what is ended.
        assert_eq!(record.reason, ExitReason::OutOfMemory);
    } else {
        assert_eq!((record.reason, record.oom_kills), (ExitReason::Exited { code: 0 }, 1));
    }
    bed.finish().await;
}

pub async fn a_fork_bomb_is_ended_whole(bed: Bed) {
    let bomb = "bomb() { bomb | bomb & }; echo lit; trap '' TERM; while :; do bomb; done";
    let mut spec = bed.script(bomb);
    spec.limits.pids = if bed.is_sandboxed() { 100 } else { 40 };
    let running = bed.start(&spec).await;
    until_line(&spec, "lit").await;
    let record = running.kill().await.expect("it ends");
    let by_itself = |reason: &ExitReason| match reason {
        ExitReason::Stopped | ExitReason::Exited { .. } => true,
        _ => bed.is_sandboxed(),
    };
    assert!(by_itself(&record.reason), "{record:?}");
    bed.finish().await;
}
