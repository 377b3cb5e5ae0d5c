//! Kill anything at any moment, and it stands: containers go on serving and are adopted, and no
//! deploy that was acknowledged is lost.
//!
//! `LONGSHORE_KILLS` says how often (5 unless told), `LONGSHORE_SEED` repeats a run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use longshore_api::v1::ReleaseView;
use longshore_e2e::image::BUSYBOX_PORT;
use longshore_e2e::platform::{Instances, Remote};
use longshore_e2e::process::Process;
use longshore_e2e::{Platform, Traffic, eventually, holds};
use longshore_types::ExitReason;
use serde_json::{Value, json};

use crate::scene::{Lives, but, lives, page, script, traffic, web, with_web};

const ROLES: [&str; 5] = ["global", "location", "node", "registry", "ingress"];

/// What is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Victim {
    Role(&'static str),
    Supervisor,
    Everything,
}

/// Random numbers of a run that can be repeated.
pub(crate) struct Random(fastrand::Rng);

impl Random {
    pub(crate) fn from_environment() -> Self {
        let seed = match std::env::var("LONGSHORE_SEED") {
            Ok(text) => text.parse().expect("LONGSHORE_SEED is a number"),
            Err(_) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH);
                now.expect("it is after 1970").subsec_nanos().into()
            }
        };
        println!("repeat with LONGSHORE_SEED={seed}");
        Self(fastrand::Rng::with_seed(seed))
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0.u64(..limit)
    }

    pub(crate) fn victim(&mut self) -> Victim {
        match usize::try_from(self.below(7)).expect("it is below 7") {
            5 => Victim::Supervisor,
            6 => Victim::Everything,
            idx => Victim::Role(ROLES[idx]),
        }
    }
}

pub(crate) fn n_kills() -> u32 {
    let text = std::env::var("LONGSHORE_KILLS");
    text.map_or(5, |text| text.parse().expect("LONGSHORE_KILLS is a number"))
}

pub(crate) fn kill(platform: &mut Platform, victim: Victim) -> Result<()> {
    match victim {
        Victim::Role(role) => platform.role(role)?.kill(),
        Victim::Supervisor => platform.kill_supervisor(),
        Victim::Everything => {
            let roles: Vec<Process> =
                ROLES.iter().filter_map(|role| platform.role(role).ok()).collect();
            platform.kill_supervisor()?;
            // A role that has noticed already is gone, which is as well.
            for role in roles.iter().filter(|role| role.is_alive()) {
                let _ = role.kill();
            }
            Ok(())
        }
    }
}

/// Deploys the app `churn` over and over, each time with another count and a mark, and remembers
/// the last mark that was acknowledged.
struct Deployer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Deployer {
    fn start(remote: Remote) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stop_seen = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut acknowledged = 0;
            for mark in 1.. {
                if stop_seen.load(Ordering::Relaxed) {
                    break;
                }
                let body = json!({ "manifest": churn(mark) });
                let path = "/v1/projects/default/apps/churn";
                let answer = remote.call_raw("PUT", path, Some(body));
                if answer.is_ok_and(|answer| answer.status == 200 || answer.status == 201) {
                    acknowledged = mark;
                }
                std::thread::sleep(Duration::from_millis(150));
            }
            acknowledged
        });
        Self { stop, thread }
    }

    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the deployer does not panic")
    }
}

fn churn(mark: u64) -> Value {
    let changes = json!({"count": mark % 3, "env": {"MARK": mark.to_string()}});
    but(script("churn", "exec sleep 1000"), &changes)
}

#[test]
fn random_kills_under_traffic_lose_nothing() {
    let mut random = Random::from_environment();
    let mut platform = with_web();
    platform.deploy(&web("web", 2)).unwrap();
    let before = platform.instances("web").unwrap();
    let expected = lives(&before);
    // Straight to the containers: whatever is killed, these go on.
    let direct: Vec<Traffic> = before
        .iter()
        .map(|instance| {
            let address = instance.observed.address.unwrap();
            Traffic::start((address, BUSYBOX_PORT).into(), "web")
        })
        .collect();

    for round in 1..=n_kills() {
        let victim = random.victim();
        println!("kill {round}: {victim:?}");
        let through = traffic(&platform, "web");
        let deployer = Deployer::start(platform.remote());
        // The moment of the kill is random on purpose: nothing is waited for here.
        std::thread::sleep(Duration::from_millis(random.below(1000)));
        kill(&mut platform, victim).unwrap();
        if matches!(victim, Victim::Supervisor | Victim::Everything) {
            platform.up(Instances::Keep).unwrap();
        }
        let acknowledged = deployer.stop();
        after_kill(&platform, victim, &expected, acknowledged)
            .unwrap_or_else(|error| panic!("kill {round}, {victim:?}: {error:#}"));
        let failures = through.stop();
        // A request that the ingress was working on breaks with it; no other one may.
        let may_break =
            !matches!(victim, Victim::Role("global" | "location" | "node" | "registry"));
        assert!(may_break || failures.is_empty(), "{victim:?}: {failures:?}");
    }

    for traffic in direct {
        traffic.goes_on().unwrap();
        assert_eq!(traffic.stop(), Vec::<String>::new());
    }
    platform.remove("churn").unwrap();
    assert_eq!(lives(&platform.instances("web").unwrap()), expected);
    platform.finish();
}

fn after_kill(
    platform: &Platform,
    victim: Victim,
    expected: &Lives,
    acknowledged: u64,
) -> Result<()> {
    eventually("the app is served and its instances are adopted", || {
        let response = platform.get("web.localhost", "/")?;
        ensure!(response.status == 200, "{}: {}", response.status, response.text());
        let now = lives(&platform.instances("web")?);
        ensure!(now == *expected, "{now:?} instead of {expected:?}");
        Ok(Some(()))
    })?;
    if let Victim::Role(role) = victim {
        eventually("the role runs again", || platform.role(role).map(Some))?;
    }
    let releases: Vec<ReleaseView> = eventually("releases are listed", || {
        platform.call("GET", "/v1/projects/default/apps/churn/releases", None).map(Some)
    })?;
    let mark = acknowledged.to_string();
    let kept =
        releases.iter().any(|release| release.manifest.process.env.get("MARK") == Some(&mark));
    ensure!(acknowledged == 0 || kept, "the acknowledged deploy {mark} is not in {releases:?}");
    platform.wait_until_settled("churn")?;
    Ok(())
}

#[test]
fn killing_a_shim_restarts_exactly_its_container() {
    let platform = with_web();
    platform.deploy(&web("web", 2)).unwrap();
    let before = platform.instances("web").unwrap();
    let victim = before[0].id().clone();
    let shims = platform.shims().unwrap();
    assert_eq!(shims.len(), 2, "{shims:?}");
    let shim = shims.iter().find(|shim| shim.mentions(victim.as_str())).unwrap();
    let all = Process::all().unwrap();
    let container: Vec<_> = all.iter().filter(|process| process.parent == shim.pid).collect();
    assert!(!container.is_empty());

    shim.kill().unwrap();
    let again = platform
        .wait_for_instance("web", "was started again", |instance| {
            *instance.id() == victim && instance.observed.restarts == 1
        })
        .unwrap();
    assert_eq!(again.observed.last_exit, Some(ExitReason::ShimDied));
    assert!(container.iter().all(|process| !process.is_alive()), "{container:?}");
    platform.wait_until_settled("web").unwrap();
    let after = lives(&platform.instances("web").unwrap());
    let other = before[1].id();
    assert_eq!(after[other], lives(&before)[other]);
    assert_eq!(page(&platform, "web"), "one");
    platform.finish();
}

#[test]
fn instances_outlive_a_clean_shutdown_and_are_adopted() {
    let mut platform = with_web();
    platform.deploy(&web("web", 2)).unwrap();
    let before = platform.instances("web").unwrap();
    let address = before[0].observed.address.unwrap();
    let direct = Traffic::start((address, BUSYBOX_PORT).into(), "web");
    assert!(platform.down().unwrap().success());
    let seen = direct.answered();
    eventually(
        "it serves while nothing runs",
        || Ok((direct.answered() > seen + 10).then_some(())),
    )
    .unwrap();
    platform.up(Instances::Keep).unwrap();
    platform.wait_until_settled("web").unwrap();
    assert_eq!(lives(&platform.instances("web").unwrap()), lives(&before));
    assert_eq!(direct.stop(), Vec::<String>::new());
    platform.finish();
}

#[test]
fn a_dead_node_takes_no_instance_with_it_while_its_location_waits() {
    let platform = with_web();
    platform.deploy(&web("web", 1)).unwrap();
    let before = lives(&platform.instances("web").unwrap());
    // Killed as soon as it is back, for a while: nothing may be placed anew meanwhile.
    holds(Duration::from_secs(3), || {
        if let Ok(node) = platform.role("node") {
            // It may have ended by itself between the look and the kill.
            let _ = node.kill();
        }
        ensure!(platform.get("web.localhost", "/")?.status == 200);
        Ok(())
    })
    .unwrap();
    eventually(
        "it is adopted",
        || Ok((lives(&platform.instances("web")?) == before).then_some(())),
    )
    .unwrap();
    platform.finish();
}
