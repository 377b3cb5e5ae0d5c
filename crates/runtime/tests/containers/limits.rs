//! Limits hold.

use std::fs;
use std::time::Duration;

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
            assert_eq!(bed.shim_file(&spec.id, "cpu", "cpu.cfs_quota_us"), "20000");
            assert_eq!(file("memory", "memory.limit_in_bytes"), memory);
            for controller in ["cpu", "memory", "pids", "devices"] {
                assert_inside(file(controller, "cgroup.procs"));
            }
        }
        CgroupKind::V2 => {
            assert_eq!(file("", "cpu.max"), "25000 100000");
            assert_eq!(bed.shim_file(&spec.id, "", "cpu.max"), "20000 100000");
            assert_eq!(file("", "memory.max"), memory);
            assert_eq!(file("", "memory.swap.max"), "0");
            assert_inside(file("", "cgroup.procs"));
        }
    }
    let mut usage = bed.shims.stats(&spec.id).await.expect("usage");
    // A process by which the runtime got there counts until its parent has heard of its end, which may be a
    // moment after the start.
    for _ in 0..500 {
        if usage.pids == 1 || bed.is_sandboxed() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        usage = bed.shims.stats(&spec.id).await.expect("usage");
    }
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
    assert!(record.oom_kills == 1 || bed.is_sandboxed(), "{record:?}");
    let limit = spec.limits.memory;
    let ExitReason::OutOfMemory { peak: Some(peak), limit: Some(told) } = record.reason else {
        panic!("{record:?}: {output}");
    };
    assert_eq!(told, limit);
    // The page that would have been too much is not counted; what a process takes while it is being
    // killed is, past the limit.
    assert!(peak.0.abs_diff(limit.0) < 1 << 20, "{peak}");
    let end = format!("longshore: out of memory: used {peak} of {limit}\n");
    assert!(output.ends_with(&end), "{output}");
    bed.finish().await;
}

pub async fn a_hog_behind_a_shell_is_told_apart_from_one_that_is_survived(bed: Bed) {
    let hog = "dd if=/dev/zero of=/dev/null bs=400M count=1";
    let mut passed_on = bed.script(&format!("{hog}; exit $?"));
    passed_on.limits.memory = bed.memory(32);
    let reason = bed.run(&passed_on).await.0.reason;
    assert!(matches!(reason, ExitReason::OutOfMemory { .. }), "{reason:?}");
    let mut survived = bed.script(&format!("{hog}; exit 0"));
    survived.limits.memory = bed.memory(32);
    let record = bed.run(&survived).await.0;
    if bed.is_sandboxed() {
        // The memory of its processes is that of its kernel, which is what is ended.
        assert!(matches!(record.reason, ExitReason::OutOfMemory { .. }), "{record:?}");
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

/// Files in memory are memory: no size of theirs can go around the limit.
pub async fn what_is_written_to_dev_shm_is_memory(bed: Bed) {
    let mut spec = bed.script("dd if=/dev/zero of=/dev/shm/x bs=1M count=60; exit $?");
    if bed.is_sandboxed() {
        // Files in memory of a sandbox's kernel are files of the host, below its own limit.
        return bed.finish().await;
    }
    spec.limits.memory = bed.memory(24);
    let reason = bed.run(&spec).await.0.reason;
    assert!(matches!(reason, ExitReason::OutOfMemory { .. }), "{reason:?}");
    // With memory enough, its own size is the bound.
    spec = bed.script("dd if=/dev/zero of=/dev/shm/x bs=1M count=100");
    spec.limits.memory = bed.memory(128);
    let (record, output) = bed.run(&spec).await;
    assert_eq!(record.reason, ExitReason::Exited { code: 1 }, "{output}");
    assert!(output.contains("No space left on device"), "{output}");
    bed.finish().await;
}

/// By the kernel's own count and not by a clock, so that no other load can spoil it: no period gave
/// more than the limit, and each in which the container was held back gave all of it.
pub async fn a_busy_container_gets_its_share_of_the_processor(bed: Bed) {
    const SHARE: f64 = 0.2;
    const PERIODS: u64 = 40;
    let mut spec = bed.script("while :; do :; done");
    spec.limits.cpu = MilliCpu(200);
    let running = bed.start(&spec).await;
    let usage = async || bed.shims.stats(&spec.id).await.expect("usage");
    // The start itself counts as use; what follows is the loop alone.
    let before = usage().await;
    let after = loop {
        let now = usage().await;
        if now.cpu_throttled >= before.cpu_throttled + PERIODS {
            break now;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    running.kill().await.expect("it ends");
    let periods = (after.cpu_periods - before.cpu_periods) as f64;
    let throttled = (after.cpu_throttled - before.cpu_throttled) as f64;
    let used = (after.cpu_time - before.cpu_time).as_secs_f64();
    // Counting begins and ends in the midst of a period.
    let (least, most) = ((throttled - 1.0) * 0.1 * SHARE, (periods + 1.0) * 0.1 * SHARE);
    assert!(used > least * 0.9, "{used} s in {throttled} throttled periods");
    assert!(used < most * 1.1, "{used} s in {periods} periods");
    bed.finish().await;
}

pub async fn open_files_are_limited_and_the_limit_is_seen(bed: Bed) {
    let open = "ulimit -n; ulimit -Hn; i=10; while exec 9</bin; do i=$((i+1)); \
                eval \"exec $i</bin\" || exit 5; done";
    let mut spec = bed.script(open);
    spec.limits.open_files = Some(100);
    let (record, output) = bed.run(&spec).await;
    assert!(output.starts_with("100\n100\n"), "{output}");
    assert_ne!(record.reason, ExitReason::Exited { code: 0 }, "{output}");
    let refused = output.contains("Bad file descriptor") || output.contains("Too many open files");
    assert!(refused, "{output}");
    // Without a wish it is what servers need, and may be raised, as far as this machine's root may.
    let own = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let most = if may_raise(own) { 524_288 } else { own.unwrap_or(u64::MAX).min(524_288) };
    let output = bed.output("ulimit -n; ulimit -Hn; ulimit -n $(ulimit -Hn); ulimit -n").await;
    assert_eq!(output, format!("{}\n{most}\n{most}\n", most.min(65_536)));
    bed.finish().await;
}

/// True when this process may have more open files than its hard limit says.
fn may_raise(hard: Option<u64>) -> bool {
    use rustix::process::{Resource::Nofile, Rlimit, getrlimit, setrlimit};
    let own = getrlimit(Nofile);
    let more = hard.map(|hard| hard.max(524_288));
    let raised = setrlimit(Nofile, Rlimit { maximum: more, ..own }).is_ok();
    raised && hard.is_none_or(|hard| hard < 524_288)
}
