//! `bench rollout`: a release of ten instances replaced by another one under 500 requests a second and
//! slow ones beside them, and how many of these fail; the same by docker-compose behind nginx.
//!
//! Ten requests in a hundred thousand that fail are ten users; so it is a count and no rate. The time is
//! from the call until nothing of the old release is left.

mod compose;
mod load;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use longshore_e2e::dockerd::Firewall;
use longshore_e2e::{Dockerd, Platform, UpOptions, image};
use serde_json::{Value, json};

use super::contenders::{Docker, IMAGE, manifest};
use super::laboratory::{self, Disk};
use super::{print_machine, print_result};
use crate::command::{cargo, run as run_command};
use crate::packages;
use compose::Compose;
use load::Load;

/// How much is measured.
#[derive(Args)]
pub struct Options {
    /// One round instead of three
    #[arg(long)]
    quick: bool,
}

/// How many instances there are.
const N_INSTANCES: u16 = 10;
const ROUNDS: u32 = 3;
const APP: &str = "bench";
/// How long the requests go on before and after.
const MARGIN: Duration = Duration::from_secs(1);
/// The images of the peer, which tells releases apart by them.
const PEERS_IMAGES: [&str; 2] = ["default/bench:1", "default/bench:2"];

/// Measures, once more inside of namespaces of its own.
pub fn run(options: &Options) -> Result<()> {
    if !laboratory::is_inside() {
        packages::ensure(&[
            ("docker-compose", "the peer that is measured"),
            ("nginx-light", "what spreads the requests over the peer's containers"),
        ])?;
        run_command(&mut cargo(["build", "--release", "--locked"]))?;
        return laboratory::enter("LONGSHORE_ROLLOUT", None);
    }
    let disk = Disk::make(16 << 30)?;
    // What is dropped first is what lies on the disk.
    let figures = measure(&disk.dir, options);
    drop(disk);
    print_result("rollout", &figures?);
    Ok(())
}

/// What came of the rounds of one contender.
#[derive(Default)]
struct Outcome {
    answered: u64,
    failures: BTreeMap<String, u64>,
    times: Vec<Duration>,
}

impl Outcome {
    fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    fn slowest(&self) -> Duration {
        self.times.iter().max().copied().unwrap_or_default()
    }

    /// One update under load.
    fn round(
        &mut self,
        address: SocketAddr,
        host: &str,
        update: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let load = Load::default();
        let updated = thread::scope(|scope| {
            load.start(scope, address, host);
            thread::sleep(MARGIN);
            let began = Instant::now();
            let updated = update().map(|()| began.elapsed());
            thread::sleep(MARGIN);
            load.stop();
            updated
        });
        self.times.push(updated?);
        self.answered += load.answered();
        for (failure, count) in load.failures() {
            *self.failures.entry(failure).or_default() += count;
        }
        Ok(())
    }
}

fn measure(disk: &Path, options: &Options) -> Result<BTreeMap<&'static str, f64>> {
    eprintln!("preparing: the image, a dockerd with its own state, a platform");
    let image = image::busybox(disk, "image", "hello")?;
    let rounds = if options.quick { 1 } else { ROUNDS };
    let platform =
        Platform::start_with(&UpOptions { parent: Some(disk.to_owned()), ..UpOptions::default() })?;
    platform.push(&image, IMAGE)?;
    let ours = longshore(&platform, rounds)?;
    platform.remove(APP)?;

    let docker_dir = disk.join("docker");
    fs::create_dir(&docker_dir)?;
    let docker = Docker(Dockerd::start_in(&docker_dir, Firewall::Default)?);
    docker.load(&image)?;
    docker.0.docker(&["tag", PEERS_IMAGES[0], PEERS_IMAGES[1]])?;
    let mut peer = Compose::new(docker, disk.join("compose"))?;
    let label = peer.label();
    let theirs = compose(&mut peer, rounds)?;
    drop(peer);

    print_machine();
    print(
        rounds,
        [(&format!("longshore {}", env!("CARGO_PKG_VERSION")), &ours), (&label, &theirs)],
    );
    platform.finish();
    let count = |n: u64| f64::from(u32::try_from(n).unwrap_or(u32::MAX));
    Ok(BTreeMap::from([
        ("rolling_update_failed_requests", count(ours.failed())),
        ("rolling_update_requests", count(ours.answered + ours.failed())),
        ("rolling_update_s", ours.slowest().as_secs_f64()),
        ("peer_failed_requests", count(theirs.failed())),
        ("peer_requests", count(theirs.answered + theirs.failed())),
        ("peer_s", theirs.slowest().as_secs_f64()),
    ]))
}

fn release(number: u32) -> Value {
    let mut manifest = manifest(APP);
    manifest["count"] = N_INSTANCES.into();
    manifest["env"] = json!({"RELEASE": number});
    manifest["resources"] = json!({"memory": "32MiB", "cpu": 0.5, "disk": "64MiB"});
    manifest["health"] = json!({"kind": "http", "path": "/"});
    manifest
}

fn longshore(platform: &Platform, rounds: u32) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    platform.deploy(&release(0))?;
    let host = format!("{APP}.localhost");
    for round in 1..=rounds {
        outcome.round(platform.ingress_address(), &host, || {
            platform.deploy(&release(round)).map(drop)
        })?;
        let all = platform.instances(APP)?;
        let expected = u64::from(round) + 1;
        ensure!(all.iter().all(|one| one.release.0 == expected), "some are of another release");
        eprintln!("longshore, round {round}: {:.1} s", outcome.slowest().as_secs_f64());
    }
    Ok(outcome)
}

fn compose(peer: &mut Compose, rounds: u32) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    peer.start(PEERS_IMAGES[0])?;
    for (round, image) in (1..=rounds).zip(PEERS_IMAGES.iter().cycle().skip(1)) {
        outcome.round(peer.address(), "localhost", || peer.update(image))?;
        eprintln!("docker-compose, round {round}: {:.1} s", outcome.slowest().as_secs_f64());
    }
    peer.end()?;
    Ok(outcome)
}

fn print(rounds: u32, contenders: [(&str, &Outcome); 2]) {
    println!(
        "\n{N_INSTANCES} instances replaced under 500 requests/s and 5 slow clients, {rounds} times"
    );
    println!("{:<44} {:>9} {:>7} {:>11}", "", "requests", "failed", "slowest (s)");
    for (label, outcome) in contenders {
        let (failed, slowest) = (outcome.failed(), outcome.slowest().as_secs_f64());
        let requests = outcome.answered + failed;
        println!("{label:<44} {requests:>9} {failed:>7} {slowest:>11.1}");
        for (failure, count) in &outcome.failures {
            println!("  {count} x {failure}");
        }
    }
}
