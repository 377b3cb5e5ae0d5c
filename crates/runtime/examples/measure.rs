//! Measures starts and idle shims:
//! `cargo run --release -p longshore-runtime --example measure -- <runtime-test-shim> [count]`.
//! Needs root and busybox-static.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Instant;
use std::{env, fs};

use longshore_runtime::{
    ContainerSpec, LogPolicy, ResolvedUser, RuntimeKind, Shims, ShimsConfig, SignalNumber,
};
use longshore_types::{ByteCount, InstanceId, Resources};

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values[values.len() / 2]
}

/// Kilobytes of private memory that a process has written to, and of its proportional share.
fn memory_of(pid: &str) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    (field("Private_Dirty:"), field("Pss:"))
}

/// A container that does nothing.
fn spec(id: InstanceId, rootfs: &Path, log: PathBuf) -> ContainerSpec {
    ContainerSpec {
        rootfs: rootfs.to_owned(),
        args: vec!["sleep".to_owned(), "1000".to_owned()],
        env: BTreeMap::new(),
        secret_env: BTreeMap::new(),
        cwd: "/".to_owned(),
        user: ResolvedUser::root(),
        hostname: "box".to_owned(),
        netns: None,
        users: None,
        limits: Resources::default(),
        files: Vec::new(),
        stop_signal: SignalNumber::TERM,
        log: LogPolicy { path: log, max_size: ByteCount::mib(1), files: 2 },
        runtime: RuntimeKind::Embedded,
        client: None,
        id,
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = env::args().skip(1);
    let executable = args.next().ok_or("give the path of runtime-test-shim")?;
    let count: u32 = args.next().map_or(Ok(20), |text| text.parse())?;
    let dir = tempfile::tempdir()?;
    let rootfs = dir.path().join("rootfs");
    for name in ["bin", "proc", "sys", "dev"] {
        fs::create_dir_all(rootfs.join(name))?;
    }
    fs::copy("/bin/busybox", rootfs.join("bin/busybox"))?;
    symlink("busybox", rootfs.join("bin/sleep"))?;
    let shims = Shims::new(ShimsConfig {
        executable: executable.into(),
        run_dir: dir.path().join("run"),
        state_dir: dir.path().join("state"),
        cgroup_root: format!("/longshore-measure-{}", std::process::id()),
    })?;
    let mut stages: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let mut order: Vec<String> = Vec::new();
    let (mut totals, mut running) = (Vec::new(), Vec::new());
    for number in 0..count {
        let id: InstanceId = format!("web-{number:08}").parse()?;
        let log = shims.state_dir(&id).join("log");
        let spec = spec(id, &rootfs, log);
        let begun = Instant::now();
        let started = shims.start(&spec).await?;
        totals.push(u64::try_from(begun.elapsed().as_micros())?);
        for timing in started.timings() {
            if !order.contains(&timing.stage) {
                order.push(timing.stage.clone());
            }
            stages.entry(timing.stage.clone()).or_default().push(timing.micros);
        }
        running.push(started);
    }
    // Printed at the end: a closed pipe must not leave containers behind.
    let mut report = format!("start: median {} us of {count}\n", median(totals));
    for stage in order {
        let micros = median(stages.remove(&stage).unwrap_or_default());
        report.push_str(&format!("  {stage:8} {micros:6} us\n"));
    }
    let mut memory = (Vec::new(), Vec::new());
    for started in &running {
        let stat = fs::read_to_string(format!("/proc/{}/stat", started.pid()))?;
        let shim = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)).unwrap_or("0");
        let (dirty, share) = memory_of(shim);
        memory.0.push(dirty);
        memory.1.push(share);
    }
    let (dirty, share) = (median(memory.0), median(memory.1));
    report.push_str(&format!("shim: median {dirty} KiB private dirty, {share} KiB proportional\n"));
    let mut ends = (Vec::new(), Vec::new());
    for started in running {
        let begun = Instant::now();
        started.kill().await?;
        ends.0.push(u64::try_from(begun.elapsed().as_micros())?);
        let killed = Instant::now();
        shims.remove(started.id()).await?;
        ends.1.push(u64::try_from(killed.elapsed().as_micros())?);
    }
    shims.remove_empty_root();
    println!("{report}kill: median {} us, remove: {} us", median(ends.0), median(ends.1));
    Ok(())
}
