//! A world in which anything may die, be cut off, be slow or stand still, while releases are deployed
//! one after the other: in the end what should be is, each location answers users, what was acknowledged
//! is not lost, and at no time were there more instances, or larger budgets in force, than the app's `max`,
//! or more at a location than its own.
//!
//! Once with the state of the control plane in a file, and once in an etcd of three members, of which that dies
//! which leads. The seed decides all that is done and when (`LONGSHORE_SEED`; the same in every short run), and
//! `LONGSHORE_KILLS` how often something is.

mod etcd;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use longshore_api::v1::{AppView, InstanceView, ReleaseView};
use longshore_e2e::process::{Process, signal};
use longshore_e2e::small_disk::SmallDisk;
use longshore_e2e::world::{Budget, StateIn, World};
use longshore_e2e::{eventually, eventually_within, image};
use longshore_types::InstancePhase;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::faults::n_kills;
use crate::scene::{but, web};

const PLACES: [&str; 3] = ["ams", "nyc", "sin"];
const SEED: u64 = 50;
/// The same where there is an etcd, whose member is back soon.
const ETCD_SEED: u64 = 8;
/// The most instances that there may ever be.
const MAX: u64 = 6;
/// How long all may take to be whole again: a silent connection is given up after half a minute, and a
/// rollout over half the Earth takes its time.
const PATIENCE: Duration = Duration::from_secs(180);
/// In long runs, now and then, something is gone for long enough that it counts as lost.
const LOST: u64 = 75_000;

/// What is done to the world.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fault {
    Kill {
        machine: String,
        role: &'static str,
    },
    KillSupervisor {
        machine: String,
    },
    /// It stands still, and then goes on as if nothing had been.
    Pause {
        machine: String,
        role: &'static str,
    },
    CutPair {
        a: &'static str,
        b: &'static str,
    },
    CutOff {
        place: &'static str,
    },
    /// The second machine of the place is cut off from the first, where the scheduler of both is.
    CutNode {
        place: &'static str,
    },
    Slow {
        a: &'static str,
        b: &'static str,
    },
    /// The disk is full on which every machine keeps everything.
    FullDisk,
    /// The member of the etcd that leads dies, and comes back with what it has.
    KillEtcdLeader,
}

/// The size of that disk, and what a full one still has, in MiB: no store writes any more, and little else can be.
const DISK: u64 = 3072;
const FULL: u64 = 4;

/// One of the faults of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Step {
    fault: Fault,
    /// After the first deploy of its round, in milliseconds.
    after: u64,
    /// For how long what can be undone holds.
    lasts: u64,
}

/// All that is done in a run of so many faults: it follows from the seed. Where there is an etcd, its loss is the first.
fn schedule(seed: u64, state: StateIn, n_faults: u32) -> Vec<Step> {
    let mut random = fastrand::Rng::with_seed(seed);
    let is_long = n_faults > 30;
    let step = |number| {
        let fault = match state {
            StateIn::Etcd if number == 0 || random.u32(..6) == 0 => Fault::KillEtcdLeader,
            StateIn::File | StateIn::Etcd => fault(&mut random),
        };
        let after = random.u64(..1500);
        let is_lost = random.u64(..10) == 0;
        let lasts = random.u64(500..8000);
        Step { fault, after, lasts: if is_long && is_lost { LOST } else { lasts } }
    };
    (0..n_faults).map(step).collect()
}

fn fault(random: &mut fastrand::Rng) -> Fault {
    let place = |random: &mut fastrand::Rng| PLACES[random.usize(..PLACES.len())];
    let pair = |random: &mut fastrand::Rng| {
        let a = random.usize(..PLACES.len());
        let b = (a + random.usize(1..PLACES.len())) % PLACES.len();
        (PLACES[a], PLACES[b])
    };
    let victim = |random: &mut fastrand::Rng| {
        let place = place(random);
        let is_first = random.bool();
        let roles: &[&'static str] = match (place, is_first) {
            (_, false) => &["node"],
            ("ams", true) => &["global", "registry", "ingress", "location", "node"],
            (_, true) => &["ingress", "location", "node"],
        };
        let machine = if is_first { place.to_owned() } else { format!("{place}-2") };
        (machine, roles[random.usize(..roles.len())])
    };
    match random.u32(..10) {
        0..=2 => {
            let (machine, role) = victim(random);
            Fault::Kill { machine, role }
        }
        3 => Fault::KillSupervisor { machine: victim(random).0 },
        4 => {
            let (machine, role) = victim(random);
            Fault::Pause { machine, role }
        }
        5 => {
            let (a, b) = pair(random);
            Fault::CutPair { a, b }
        }
        6 => Fault::CutOff { place: place(random) },
        7 => Fault::FullDisk,
        8 => Fault::CutNode { place: place(random) },
        _ => {
            let (a, b) = pair(random);
            Fault::Slow { a, b }
        }
    }
}

/// Does a fault for as long as it lasts.
fn inflict(world: &World, disk: &SmallDisk, step: &Step) -> Result<()> {
    let lasts = Duration::from_millis(step.lasts);
    match &step.fault {
        Fault::Kill { machine, role } => running(world, machine, role)?.kill(),
        Fault::KillSupervisor { machine } => world.supervisor(machine)?.kill(),
        Fault::Pause { machine, role } => {
            let process = running(world, machine, role)?;
            signal(process.pid, Signal::STOP)?;
            thread::sleep(lasts);
            signal(process.pid, Signal::CONT)
        }
        Fault::FullDisk => {
            disk.leave(FULL)?;
            thread::sleep(lasts);
            disk.empty()
        }
        Fault::KillEtcdLeader => world.kill_etcd_leader(lasts),
        Fault::CutPair { a, b } => while_told(world, &["cut", a, b], lasts),
        Fault::CutOff { place } => while_told(world, &["cut", place], lasts),
        Fault::CutNode { place } => {
            while_told(world, &["cut", &format!("{place}-2"), place], lasts)
        }
        Fault::Slow { a, b } => {
            let words = ["slow", a, b, "--delay", "300ms", "--loss", "5", "--rate", "2000"];
            while_told(world, &words, lasts)
        }
    }
}

/// The process of a role, which may be about to be there again.
fn running(world: &World, machine: &str, role: &str) -> Result<Process> {
    eventually("the role runs", || world.role(machine, role).map(Some))
}

fn while_told(world: &World, words: &[&str], lasts: Duration) -> Result<()> {
    world.tell(words)?;
    thread::sleep(lasts);
    world.tell(&["heal"]).map(drop)
}

/// The release with this mark.
fn release(mark: u64) -> Value {
    let count = 2 + mark % 2;
    but(web("web", 0), &json!({"count": count, "max": MAX, "env": {"MARK": mark.to_string()}}))
}

/// Deploys one release after the other until it is over. `acknowledged` is the last that was.
fn deploy_on(world: &World, next: &AtomicU64, acknowledged: &AtomicU64, is_over: &AtomicBool) {
    while !is_over.load(Ordering::Relaxed) {
        let mark = next.fetch_add(1, Ordering::Relaxed);
        if world.deploy_only(&release(mark)).is_ok() {
            acknowledged.store(mark, Ordering::Relaxed);
        }
        thread::sleep(Duration::from_millis(700));
    }
}

/// Looks at what runs until it is over, and gives how often budgets were known, and what there was too much of.
fn watch(world: &World, is_over: &AtomicBool) -> (u32, Vec<String>) {
    let (mut n_known, mut found) = (0, Vec::new());
    while !is_over.load(Ordering::Relaxed) {
        let before = world.containers().expect("processes can be listed");
        // Who cannot be asked now hands out nothing either.
        let budgets = world.budgets().unwrap_or_default();
        let after = world.containers().expect("processes can be listed");
        // What is there before and after is there together, when the budgets were as told.
        let together = before.intersection(&after).cloned().collect();
        n_known += u32::from(!budgets.is_empty());
        found.extend(excesses(&together, &budgets));
        thread::sleep(Duration::from_millis(100));
    }
    (n_known, found)
}

/// What there is too much of at one moment: containers, each with its machine, and budgets, where these are known.
fn excesses(
    containers: &BTreeSet<(String, String)>,
    budgets: &BTreeMap<String, Budget>,
) -> Vec<String> {
    let count = |n: usize| u64::try_from(n).expect("few run");
    let mut found = Vec::new();
    let ids: BTreeSet<_> = containers.iter().map(|(_, id)| id).collect();
    if count(ids.len()) > MAX {
        found.push(format!("{} at once: {containers:?}", ids.len()));
    }
    if budgets.values().map(|budget| budget.in_force).sum::<u64>() > MAX {
        found.push(format!("budgets of {budgets:?}"));
    }
    for place in PLACES.iter().filter(|_| !budgets.is_empty()) {
        let n_there = n_at(place, containers);
        let most = budgets.get(*place).map_or(0, |budget| budget.in_force);
        if n_there > most {
            found.push(format!("{n_there} at {place}, with {budgets:?}: {containers:?}"));
        }
    }
    found
}

/// How many of these containers run at a location. Its machines are called after it.
fn n_at(location: &str, containers: &BTreeSet<(String, String)>) -> u64 {
    let there = containers.iter().filter(|(machine, _)| machine.starts_with(location));
    u64::try_from(there.count()).expect("few run")
}

/// Waits until all are heard of, and what should be is all that there is.
fn whole(world: &World, acknowledged: u64) -> Result<()> {
    eventually_within(PATIENCE, "the world is whole", || {
        let locations = world.locations()?;
        let n_nodes: u32 = locations.iter().map(|location| location.n_reachable).sum();
        let are_heard = locations.iter().all(|location| location.reachable);
        ensure!(are_heard && n_nodes == 6, "{n_nodes} of 6 nodes: {locations:#?}");
        let app: AppView = world.call("/v1/projects/default/apps/web")?;
        let mark = mark_of(world, &app)?;
        ensure!(mark >= acknowledged, "release {mark} after {acknowledged} was acknowledged");
        let instances = world.instances("web")?;
        let is_right = |one: &InstanceView| {
            one.release == app.release && one.observed.phase == InstancePhase::Healthy
        };
        let is_settled = u32::try_from(instances.len())? == app.count
            && app.ready == app.count
            && instances.iter().all(is_right);
        ensure!(is_settled, "{app:?}\n{instances:#?}");
        let expected: BTreeSet<_> = instances.iter().map(|one| one.id().to_string()).collect();
        let containers = world.containers()?;
        let actual: BTreeSet<_> = containers.iter().map(|(_, id)| id.clone()).collect();
        ensure!(actual == expected, "{actual:?} runs instead of {expected:?}");
        for (location, Budget { given, .. }) in world.budgets()? {
            let n_there = n_at(&location, &containers);
            ensure!(n_there <= given, "{n_there} at {location}, which may have {given}");
        }
        // One of them may have no instance of its own.
        for place in PLACES {
            let answer = world.get(place, "web.localhost", "/")?;
            ensure!(answer.status == 200, "{place}: {} {}", answer.status, answer.text());
        }
        Ok(Some(()))
    })
}

fn mark_of(world: &World, app: &AppView) -> Result<u64> {
    let releases: Vec<ReleaseView> = world.call("/v1/projects/default/apps/web/releases")?;
    let release = releases.iter().find(|release| release.number == app.release);
    let release = release.with_context(|| format!("{} is not there", app.release))?;
    Ok(release.manifest.process.env.get("MARK").context("no mark")?.parse()?)
}

/// Where the random choices begin; printed, so that they can be repeated.
fn seed(usual: u64) -> u64 {
    let seed = std::env::var("LONGSHORE_SEED").ok();
    let seed = seed.map_or(usual, |text| text.parse().expect("LONGSHORE_SEED is a number"));
    println!("repeat with LONGSHORE_SEED={seed}");
    seed
}

#[test]
fn a_world_is_whole_after_every_fault() {
    run(StateIn::File, SEED, n_kills());
}

#[test]
fn a_world_with_its_state_in_etcd_is_whole_after_every_fault() {
    // The etcd apart, it is the same world.
    run(StateIn::Etcd, ETCD_SEED, n_kills().div_ceil(5));
}

fn run(state: StateIn, usual_seed: u64, n_faults: u32) {
    let seed = seed(usual_seed);
    let disk = SmallDisk::new(DISK).unwrap();
    let flags = ["--places", "ams,nyc,sin", "--nodes", "2"];
    let world = World::start_below(&disk.path(), state, &flags).unwrap();
    let layout = image::busybox(world.dir(), "image", "one").unwrap();
    world.push(&layout, "default/web:1").unwrap();
    let (next, acknowledged) = (AtomicU64::new(1), AtomicU64::new(0));
    world.deploy(&release(0)).unwrap();
    let is_over = AtomicBool::new(false);
    let (n_known, excesses) = thread::scope(|scope| {
        let watching = scope.spawn(|| watch(&world, &is_over));
        let steps = schedule(seed, state, n_faults);
        let outcome = steps.iter().enumerate().try_for_each(|(round, step)| {
            println!("fault {}: {step:?}", round + 1);
            one_round((&world, &disk), step, &next, &acknowledged)
                .with_context(|| format!("fault {}, {step:?}", round + 1))
        });
        is_over.store(true, Ordering::Relaxed);
        outcome.unwrap_or_else(|error| panic!("{error:#}"));
        watching.join().unwrap()
    });
    assert!(n_known > n_faults, "budgets were known {n_known} times");
    assert!(excesses.is_empty(), "more than there may be:\n{}", excesses.join("\n"));
    assert!(acknowledged.into_inner() > 0, "nothing was ever deployed");
    let gone = world.remote().call_raw("DELETE", "/v1/projects/default/apps/web", None).unwrap();
    assert_eq!(gone.status, 204);
    world.finish();
}

fn one_round(
    (world, disk): (&World, &SmallDisk),
    step: &Step,
    next: &AtomicU64,
    acknowledged: &AtomicU64,
) -> Result<()> {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| deploy_on(world, next, acknowledged, &is_over));
        thread::sleep(Duration::from_millis(step.after));
        let inflicted = inflict(world, disk, step);
        is_over.store(true, Ordering::Relaxed);
        inflicted
    })?;
    whole(world, acknowledged.load(Ordering::Relaxed))
}

#[test]
fn the_seed_says_what_is_done_and_when() {
    let file = |seed, n| schedule(seed, StateIn::File, n);
    assert_eq!(file(7, 40), file(7, 40));
    assert_ne!(file(7, 40), file(8, 40));
    // Whoever repeats the beginning of a run repeats its faults.
    let faults = |n| file(7, n).into_iter().map(|step| step.fault).collect::<Vec<_>>();
    assert_eq!(faults(5), faults(200)[..5]);
    let all = file(1, 200);
    let is_lost = |step: &&Step| step.lasts == LOST;
    assert!(all.iter().filter(is_lost).count() > 5, "some are gone for long in a long run");
    assert!(file(SEED, 5).iter().all(|step| step.lasts < LOST), "and none in a short one");
    let is_node_cut = |step: &Step| matches!(step.fault, Fault::CutNode { .. });
    assert!(file(SEED, 5).iter().any(is_node_cut), "a node is cut off in a short one too");
    let etcd = schedule(7, StateIn::Etcd, 40);
    let kills = etcd.iter().filter(|step| step.fault == Fault::KillEtcdLeader);
    assert!((3..20).contains(&kills.count()) && etcd[0].fault == Fault::KillEtcdLeader);
    assert!(all.iter().all(|step| step.fault != Fault::KillEtcdLeader), "there is none");
}

#[test]
fn what_is_too_much_is_seen() {
    let running = |names: &[(&str, &str)]| {
        let pairs = names.iter().map(|(machine, id)| ((*machine).to_owned(), (*id).to_owned()));
        pairs.collect::<BTreeSet<_>>()
    };
    let may = |budgets: [(u64, u64); 3]| {
        let each = PLACES.iter().zip(budgets);
        let each = each
            .map(|(place, (given, in_force))| ((*place).to_owned(), Budget { given, in_force }));
        each.collect::<BTreeMap<_, _>>()
    };
    let three = running(&[("ams", "a"), ("ams-2", "b"), ("sin-2", "c")]);
    assert_eq!(excesses(&three, &may([(1, 2), (1, 1), (3, 3)])), [""; 0]);
    assert!(excesses(&three, &may([(2, 2), (1, 1), (1, 4)]))[0].starts_with("budgets of"));
    assert!(excesses(&three, &may([(1, 1), (1, 1), (1, 1)]))[0].starts_with("2 at ams"));
    assert!(excesses(&three, &may([(2, 2), (1, 1), (0, 0)]))[0].starts_with("1 at sin"));
    // Of a control plane that does not answer nothing is known.
    assert_eq!(excesses(&three, &BTreeMap::new()), [""; 0]);
    let ids = ["a", "b", "c", "d", "e", "f", "g"].map(|id| ("nyc", id));
    assert!(excesses(&running(&ids), &BTreeMap::new())[0].starts_with("7 at once"));
}
