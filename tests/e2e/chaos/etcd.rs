//! A control plane with its state in an etcd of three members, of which the leading one dies or stands still, and
//! another control plane that waits: in the end what should be is, what was acknowledged is not lost, and at no time
//! were there more instances than the app's `max`.
//!
//! On one machine, for what matters is between two control planes and etcd; a world has one of them, and its faults are
//! there with an etcd, too.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use longshore_api::v1::InstanceView;
use longshore_e2e::process::{Process, signal};
use longshore_e2e::{Platform, eventually, eventually_within};
use longshore_store::conformance::EtcdServer;
use longshore_types::InstancePhase;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{PATIENCE, seed};
use crate::control_plane::ControlPlane;
use crate::faults::n_kills;
use crate::scene::{OnEtcd, but, web};

const SEED: u64 = 11;
/// The most instances that there may ever be.
const MAX: usize = 4;

/// What is done, for so many milliseconds where it can be undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The member that leads dies, as with its machine, and comes back with what it has.
    KillLeader(u64),
    /// It stands still, and then goes on as if nothing had been.
    PauseLeader(u64),
    /// The control plane of the platform dies.
    KillGlobal,
    /// It stands still for so long that the other one leads, and wakes up.
    PauseGlobal(u64),
}

/// All that is done: it follows from the seed. The first is what this is about.
fn schedule(seed: u64, n_faults: u32) -> Vec<Fault> {
    let mut random = fastrand::Rng::with_seed(seed);
    let fault = |number| match (number, random.u32(..6)) {
        (0, _) | (_, 0 | 1) => Fault::KillLeader(random.u64(200..5000)),
        (_, 2 | 3) => Fault::PauseLeader(random.u64(200..6000)),
        (_, 4) => Fault::KillGlobal,
        _ => Fault::PauseGlobal(random.u64(11_000..16_000)),
    };
    (0..n_faults).map(fault).collect()
}

/// The number of the member that leads.
fn leader(members: &[EtcdServer]) -> Result<usize> {
    eventually("a member leads", || {
        Ok(members.iter().position(|member| member.leads().unwrap_or(false)))
    })
}

fn pause(pid: i32, millis: u64) -> Result<()> {
    signal(pid, Signal::STOP)?;
    thread::sleep(Duration::from_millis(millis));
    signal(pid, Signal::CONT)
}

fn inflict(platform: &Platform, etcd: &mut [EtcdServer], fault: Fault) -> Result<()> {
    match fault {
        Fault::KillLeader(away) => {
            let member = &mut etcd[leader(etcd)?];
            member.kill();
            thread::sleep(Duration::from_millis(away));
            Ok(member.start()?)
        }
        Fault::PauseLeader(lasts) => {
            let pid = etcd[leader(etcd)?].pid().context("the member that leads runs")?;
            pause(pid.cast_signed(), lasts)
        }
        Fault::KillGlobal => running(platform)?.kill(),
        Fault::PauseGlobal(lasts) => pause(running(platform)?.pid, lasts),
    }
}

/// The control plane of the platform, which may be about to be there again.
fn running(platform: &Platform) -> Result<Process> {
    eventually("the control plane runs", || platform.role("global").map(Some))
}

fn release(mark: u64) -> Value {
    let count = 1 + mark % 2;
    but(web("web", 0), &json!({"count": count, "max": MAX, "env": {"MARK": mark.to_string()}}))
}

/// Deploys one release after the other until it is over. `acknowledged` is the last that was.
fn deploy_on(
    platform: &Platform,
    next: &AtomicU64,
    acknowledged: &AtomicU64,
    is_over: &AtomicBool,
) {
    while !is_over.load(Ordering::Relaxed) {
        let mark = next.fetch_add(1, Ordering::Relaxed);
        if platform.deploy_only(&release(mark)).is_ok() {
            acknowledged.store(mark, Ordering::Relaxed);
        }
        thread::sleep(Duration::from_millis(500));
    }
}

/// The containers that run: shims with a program.
fn n_running(platform: &Platform) -> Result<usize> {
    let (shims, all) = (platform.shims()?, Process::all()?);
    let runs = |shim: &&Process| all.iter().any(|one| one.parent == shim.pid);
    Ok(shims.iter().filter(runs).count())
}

/// Waits until what should be is all that there is.
fn whole(platform: &Platform, acknowledged: u64) -> Result<()> {
    eventually_within(PATIENCE, "the platform is whole", || {
        let app = platform.app("web")?;
        let releases = platform.releases("web")?;
        let current = releases.iter().find(|release| release.number == app.release);
        let current = current.context("the release is there")?;
        let mark: u64 = current.manifest.process.env.get("MARK").context("no mark")?.parse()?;
        ensure!(mark >= acknowledged, "release {mark} after {acknowledged} was acknowledged");
        let instances = platform.instances("web")?;
        let is_right = |one: &InstanceView| {
            one.release == app.release && one.observed.phase == InstancePhase::Healthy
        };
        let is_settled = instances.len() == app.count as usize
            && app.ready == app.count
            && instances.iter().all(is_right);
        ensure!(is_settled, "{app:?}\n{instances:#?}");
        let n_running = n_running(platform)?;
        ensure!(n_running == instances.len(), "{n_running} run");
        Ok(Some(()))
    })
}

#[test]
fn a_platform_on_three_members_of_etcd_is_whole_after_every_fault() {
    let seed = seed(SEED);
    let OnEtcd { platform, mut etcd, dir: _dir } = OnEtcd::start(3);
    let store = format!("{}/longshore", EtcdServer::address(&etcd));
    let link = platform.dir().join("second.sock");
    let second = ControlPlane::start(&platform, "second", &store, &link).unwrap();
    platform.deploy(&release(0)).unwrap();
    let (next, acknowledged) = (AtomicU64::new(1), AtomicU64::new(0));
    // Each takes its time; fewer than elsewhere are enough.
    for (round, fault) in schedule(seed, n_kills().div_ceil(8)).into_iter().enumerate() {
        println!("fault {}: {fault:?}", round + 1);
        let is_over = AtomicBool::new(false);
        let most = thread::scope(|scope| {
            scope.spawn(|| deploy_on(&platform, &next, &acknowledged, &is_over));
            let watching = scope.spawn(|| {
                let mut most = 0;
                while !is_over.load(Ordering::Relaxed) {
                    most = most.max(n_running(&platform).expect("processes can be listed"));
                    thread::sleep(Duration::from_millis(50));
                }
                most
            });
            let inflicted = inflict(&platform, &mut etcd, fault).and_then(|()| {
                let before = acknowledged.load(Ordering::Relaxed);
                eventually_within(PATIENCE, "a deploy is taken again", || {
                    Ok((acknowledged.load(Ordering::Relaxed) > before).then_some(()))
                })
            });
            is_over.store(true, Ordering::Relaxed);
            inflicted.unwrap_or_else(|error| panic!("{fault:?}: {error:#}"));
            watching.join().unwrap()
        });
        assert!(most <= MAX, "{most} at once");
        let last = acknowledged.load(Ordering::Relaxed);
        whole(&platform, last).unwrap_or_else(|error| panic!("{fault:?}: {error:#}"));
    }
    drop(second);
    platform.finish();
}

#[test]
fn the_seed_says_what_is_done_to_etcd() {
    assert_eq!(schedule(7, 40), schedule(7, 40));
    assert_ne!(schedule(7, 40), schedule(8, 40));
    assert!(matches!(schedule(9, 1)[..], [Fault::KillLeader(_)]));
}
