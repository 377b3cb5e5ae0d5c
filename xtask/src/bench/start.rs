//! `bench start`: from the call to the first HTTP 200 of a container whose image is on the machine,
//! with docker and podman in shuffled rounds beside it, and what Longshore takes of the memory.
//!
//! All protections are on and nothing is tuned: each contender is called as its users call it, and
//! reached through a port on 127.0.0.1, asked every millisecond. Longshore is called through its API,
//! and reached through its ingress, which every request in production takes too.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use longshore_e2e::dockerd::Firewall;
use longshore_e2e::image;
use longshore_e2e::process::{Process, memory_field};
use longshore_e2e::{Dockerd, Platform, UpOptions, holds};
use serde_json::json;

use super::contenders::{Bare, Contender, Docker, IMAGE, Longshore, Podman, manifest};
use super::figures::{Samples, Shuffler};
use super::laboratory::{self, Disk};
use super::{print_machine, print_result};
use crate::command::{cargo, run as run_command, target_dir};

/// How much is measured.
#[derive(Args)]
pub struct Options {
    /// 3 rounds instead of 15
    #[arg(long)]
    quick: bool,
    /// Also measure a clean release build, which takes minutes
    #[arg(long)]
    build: bool,
    /// Where the order of the rounds begins
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

const ROUNDS: u16 = 15;
const QUICK_ROUNDS: u16 = 3;
/// How many instances the memory is measured over.
const N_INSTANCES: u32 = 20;
/// The variable that carries what was measured before the namespaces were entered.
const CLEAN_BUILD: &str = "LONGSHORE_CLEAN_BUILD_MINUTES";
/// How long a platform is left alone before its idle memory is read.
const SETTLE: Duration = Duration::from_secs(3);

/// Measures, once more inside of namespaces of its own.
pub fn run(options: &Options) -> Result<()> {
    if !laboratory::is_inside() {
        run_command(&mut cargo(["build", "--release", "--locked"]))?;
        // Out here, for it may have to download.
        let minutes = options.build.then(clean_build_minutes).transpose()?;
        return laboratory::enter(CLEAN_BUILD, minutes);
    }
    let mut figures = BTreeMap::new();
    measure(options, &mut figures)?;
    if let Ok(minutes) = std::env::var(CLEAN_BUILD) {
        figures.insert("clean_build_minutes", minutes.parse()?);
    }
    print_result("start", &figures);
    Ok(())
}

fn measure(options: &Options, figures: &mut BTreeMap<&str, f64>) -> Result<()> {
    let disk = Disk::make(8 << 30)?;
    // What is dropped first is what lies on the disk.
    let outcome = measure_on(&disk.dir, options, figures);
    drop(disk);
    outcome
}

fn measure_on(disk: &Path, options: &Options, figures: &mut BTreeMap<&str, f64>) -> Result<()> {
    eprintln!("preparing: the image, a dockerd and podman with their own state, a platform");
    let image = image::busybox(disk, "image", "hello")?;
    let docker_dir = disk.join("docker");
    fs::create_dir(&docker_dir)?;
    let docker = Docker(Dockerd::start_in(&docker_dir, Firewall::Default)?);
    docker.load(&image)?;
    let podman = Podman::load(&disk.join("podman"), &image)?;
    let platform =
        Platform::start_with(&UpOptions { parent: Some(disk.to_owned()), ..UpOptions::default() })?;
    platform.push(&image, IMAGE)?;
    let idle = idle_memory(&platform)?;

    let longshore = Longshore { platform: &platform, stages: Vec::new() };
    let bare = Bare { pages: disk.join("image-rootfs/www"), child: None };
    let mut race = Race { longshore, docker, podman, bare, samples: Default::default() };
    race.run(options)?;
    race.print(options);
    let [ours, docker, podman, _] = race.samples.each_ref().map(Samples::median);
    drop(race);
    figures.insert("warm_start_ms", ours);
    figures.insert("warm_start_ratio_vs_best_peer", ours / docker.min(podman));

    let overhead = instance_overhead(&platform)?;
    print_memory(idle, overhead);
    figures.insert("agent_idle_rss_mib", idle);
    figures.insert("instance_overhead_mib", overhead);
    platform.finish();
    Ok(())
}

/// The contenders and what was measured of each, in the order longshore, docker, podman, bare.
struct Race<'a> {
    longshore: Longshore<'a>,
    docker: Docker,
    podman: Podman,
    bare: Bare,
    samples: [Samples; 4],
}

impl Race<'_> {
    fn contenders(&mut self) -> [&mut dyn Contender; 4] {
        [&mut self.longshore, &mut self.docker, &mut self.podman, &mut self.bare]
    }

    fn run(&mut self, options: &Options) -> Result<()> {
        let rounds = if options.quick { QUICK_ROUNDS } else { ROUNDS };
        let mut shuffler = Shuffler::new(options.seed);
        // Round 0 warms caches and, for us, brings the image to the node; it does not count.
        for round in 0..=rounds {
            for idx in shuffler.order(self.samples.len()) {
                let contender = &mut self.contenders()[idx];
                let label = contender.label();
                let time = contender.start(round).with_context(|| label.clone())?;
                contender.remove(round).with_context(|| label.clone())?;
                if round > 0 {
                    self.samples[idx].push(time);
                }
            }
            if round == 0 {
                self.longshore.stages.clear();
            }
        }
        Ok(())
    }

    fn print(&mut self, options: &Options) {
        let labels = self.contenders().map(|contender| contender.label());
        print_machine();
        println!("seed {}", options.seed);
        println!("\nfrom the call to the first HTTP 200, image on the machine, in ms");
        println!("{:<34} {:>8} {:>8} {:>8} {:>3}", "", "min", "median", "max", "n");
        for (label, samples) in labels.iter().zip(&self.samples) {
            let [min, median, max] = samples.spread();
            let n = samples.len();
            println!("{label:<34} {min:>8.1} {median:>8.1} {max:>8.1} {n:>3}");
        }
        println!("\nstages of longshore's starts, median in ms");
        for (name, times) in &mut self.longshore.stages {
            times.sort_by(f64::total_cmp);
            println!("  {name:<32} {:>8.1}", times[times.len() / 2]);
        }
    }
}

/// The resident memory of the node role without instances, in MiB.
fn idle_memory(platform: &Platform) -> Result<f64> {
    let node = platform.role("node")?;
    holds(SETTLE, || {
        ensure!(node.is_alive(), "the node ended while it was idle");
        Ok(())
    })?;
    Ok(mib(memory_field(node.pid, "status", "VmRSS:")?))
}

/// What an instance takes beside its own processes, in MiB: the private memory of its shim and what
/// the agent grows by, on average over many.
fn instance_overhead(platform: &Platform) -> Result<f64> {
    let node = platform.role("node")?;
    let before = private_memory(&node)?;
    let mut manifest = manifest("many");
    manifest["count"] = N_INSTANCES.into();
    manifest["resources"] = json!({"memory": "16MiB", "cpu": "0.05", "disk": "64MiB"});
    platform.deploy(&manifest)?;
    let growth = private_memory(&node)? - before;
    let shims = platform.shims()?;
    let n_shims = u32::try_from(shims.len()).unwrap_or(u32::MAX);
    ensure!(n_shims == N_INSTANCES, "{n_shims} shims for {N_INSTANCES} instances");
    let mut all = growth.max(0.0);
    for shim in &shims {
        all += private_memory(shim)?;
    }
    platform.remove("many")?;
    Ok(all / f64::from(N_INSTANCES))
}

/// Memory that no other process shares, in MiB.
fn private_memory(process: &Process) -> Result<f64> {
    let field = |name| memory_field(process.pid, "smaps_rollup", name);
    Ok(mib(field("Private_Clean:")? + field("Private_Dirty:")?))
}

fn mib(kib: u64) -> f64 {
    f64::from(u32::try_from(kib).unwrap_or(u32::MAX)) / 1024.0
}

fn print_memory(idle: f64, overhead: f64) {
    println!("\nmemory in MiB");
    println!("  {:<40} {idle:>8.1}", "node role, idle, resident");
    println!("  {:<40} {overhead:>8.2}", format!("per instance, over {N_INSTANCES}"));
}

/// A release build from nothing, in minutes. Downloads do not count.
fn clean_build_minutes() -> Result<f64> {
    run_command(&mut cargo(["fetch", "--locked"]))?;
    let dir = target_dir().join("clean-build");
    let began = Instant::now();
    let mut build = cargo(["build", "--release", "--locked", "--offline", "--target-dir"]);
    run_command(build.arg(&dir))?;
    let took = began.elapsed();
    fs::remove_dir_all(&dir).context("cannot remove the clean build")?;
    Ok(took.as_secs_f64() / 60.0)
}
