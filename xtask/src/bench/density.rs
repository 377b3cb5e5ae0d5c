//! `bench density`: many idle instances on one machine, image there. What they take beside their own
//! memory, and how long it takes until all of them serve when one call asks for all, beside as many
//! of docker.
//!
//! Longshore's time ends when the API says that all are healthy, which takes an answer on the port of
//! each. Docker's ends when the last of its calls has returned, which is sooner than its last answer;
//! it publishes no ports, and has the best of several numbers of calls at once. All protections are
//! on, and neither is tuned otherwise.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use longshore_e2e::dockerd::Firewall;
use longshore_e2e::{Dockerd, Platform, UpOptions, image};
use serde_json::json;

use super::charged::Enclosure;
use super::contenders::{Contender, Docker, IMAGE, manifest};
use super::figures::Samples;
use super::laboratory::{self, Disk};
use super::{print_machine, print_result};
use crate::command::{cargo, run as run_command};

/// How much is measured.
#[derive(Args)]
pub struct Options {
    /// 40 instances and one round instead of 200 and three
    #[arg(long)]
    quick: bool,
}

const N_INSTANCES: u32 = 200;
const N_QUICK: u32 = 40;
/// How many calls docker gets at once, one number a round.
const DOCKER_AT_ONCE: [u32; 3] = [8, 16, 4];
const APP: &str = "many";
/// Something is broken after this long.
const PATIENCE: Duration = Duration::from_secs(300);
/// Between two looks at how many are healthy.
const PAUSE: Duration = Duration::from_millis(10);
/// How long a platform with all its instances is left alone before its memory is read: reports and
/// checks of a start are over by then.
const SETTLE: Duration = Duration::from_secs(5);
/// Idle instances need no processor time, and a quota so small that all fit would slow their start,
/// which docker's have without any.
const OVERCOMMIT: &str = "cpu_overcommit = 100\n";

/// Measures, once more inside of namespaces of its own.
pub fn run(options: &Options) -> Result<()> {
    if !laboratory::is_inside() {
        // Another binary is for those who try something out.
        if std::env::var_os("LONGSHORE_BIN").is_none() {
            run_command(&mut cargo(["build", "--release", "--locked"]))?;
        }
        return laboratory::enter("LONGSHORE_DENSITY", None);
    }
    // Each instance is promised its log beside its disk.
    let disk = Disk::make(32 << 30)?;
    // What is dropped first is what lies on the disk.
    let figures = measure(&disk.dir, options);
    drop(disk);
    print_result("density", &figures?);
    Ok(())
}

fn measure(disk: &Path, options: &Options) -> Result<BTreeMap<&'static str, f64>> {
    let n_instances = if options.quick { N_QUICK } else { N_INSTANCES };
    let rounds = if options.quick { &DOCKER_AT_ONCE[..1] } else { &DOCKER_AT_ONCE[..] };
    eprintln!("preparing: the image, a dockerd with its own state, a platform");
    let image = image::busybox(disk, "image", "hello")?;
    let docker_dir = disk.join("docker");
    fs::create_dir(&docker_dir)?;
    let docker = Docker(Dockerd::start_in(&docker_dir, Firewall::Default)?);
    docker.load(&image)?;
    let enclosure = Enclosure::new()?;
    let config = enclosure.config() + OVERCOMMIT;
    let platform = Platform::start_with(&UpOptions {
        parent: Some(disk.to_owned()),
        config,
        ..UpOptions::default()
    })?;
    enclosure.take(&platform)?;
    platform.push(&image, IMAGE)?;
    // Brings the image to the node and warms both sides.
    start_ours(&platform, 2)?;
    start_docker(&docker, 2, 2)?;

    let (mut ours, mut docks) = (Samples::default(), Vec::new());
    let mut overhead = 0.0_f64;
    for (round, at_once) in rounds.iter().enumerate() {
        let before = enclosure.total()?;
        let time = deploy(&platform, n_instances)?;
        eprintln!("round {round}: longshore {:.2} s", time.as_secs_f64());
        ours.push(time);
        overhead = overhead.max(overhead_each(&enclosure, before, n_instances)?);
        platform.remove(APP)?;
        let time = start_docker(&docker, n_instances, *at_once)?;
        eprintln!("round {round}: docker, {at_once} at once, {:.2} s", time.as_secs_f64());
        docks.push((time, at_once));
    }
    let (best, at_once) = docks.into_iter().min().context("there are rounds")?;
    print_machine();
    println!(
        "\n{n_instances} containers, image on the machine, from the call to all running, in s"
    );
    let [min, median, max] = ours.spread().map(|millis| millis / 1000.0);
    let label = "longshore, one deploy, all healthy";
    println!("  {label:<48} {min:>7.2} {median:>7.2} {max:>7.2}  (min, median, max)");
    let label = format!("{}, {at_once} at once, all returned", docker.label());
    println!("  {label:<48} {:>7.2}  (best)", best.as_secs_f64());
    println!("\nmemory charged to the platform beside its containers, in MiB");
    println!("  {:<48} {overhead:>7.2}  (worst round)", "per instance");
    platform.finish();
    let ratio = median / best.as_secs_f64();
    Ok(BTreeMap::from([("instance_overhead_mib", overhead), ("start_200_ratio", ratio)]))
}

/// Deploys that many and waits until all are healthy.
fn deploy(platform: &Platform, n_instances: u32) -> Result<Duration> {
    let mut manifest = manifest(APP);
    manifest["count"] = n_instances.into();
    manifest["resources"] = json!({"memory": "16MiB", "cpu": "0.5", "disk": "16MiB"});
    let began = Instant::now();
    platform.deploy_only(&manifest)?;
    while platform.app(APP)?.ready < n_instances {
        if began.elapsed() > PATIENCE {
            let tail = platform.log_tail();
            bail!("{:?} after {PATIENCE:?}; the platform says:\n{tail}", platform.app(APP)?);
        }
        std::thread::sleep(PAUSE);
    }
    let took = began.elapsed();
    let response = platform.get(&format!("{APP}.localhost"), "/")?;
    ensure!(response.status == 200, "all are healthy and one answers {}", response.status);
    Ok(took)
}

fn start_ours(platform: &Platform, n_instances: u32) -> Result<Duration> {
    let time = deploy(platform, n_instances)?;
    platform.remove(APP)?;
    Ok(time)
}

/// What the platform grew by for each instance, in MiB, without what the containers themselves take.
fn overhead_each(enclosure: &Enclosure, before: u64, n_instances: u32) -> Result<f64> {
    std::thread::sleep(SETTLE);
    let beside = enclosure.total()?.saturating_sub(enclosure.containers()?);
    let growth = u32::try_from(beside.saturating_sub(before) >> 10).unwrap_or(u32::MAX);
    Ok(f64::from(growth) / 1024.0 / f64::from(n_instances))
}

/// Starts that many of docker's, a number of calls at once, and removes them.
fn start_docker(docker: &Docker, n_containers: u32, at_once: u32) -> Result<Duration> {
    let next = AtomicU32::new(0);
    let work = || -> Result<()> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= n_containers {
                return Ok(());
            }
            docker.0.docker(&["run", "-d", "--name", &format!("{APP}-{number}"), IMAGE])?;
        }
    };
    let began = Instant::now();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("it does not panic"))
    })?;
    let took = began.elapsed();
    let names: Vec<String> = (0..n_containers).map(|number| format!("{APP}-{number}")).collect();
    let mut remove = vec!["rm", "-f"];
    remove.extend(names.iter().map(String::as_str));
    docker.0.docker(&remove)?;
    Ok(took)
}
