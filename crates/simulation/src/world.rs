//! The loop: time goes on by a step, what arrives is handed over, everyone does what there is to do, and what must
//! be so is looked at.

use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use longshore_api::links::{InstanceStatus, ReportChanges};
use longshore_global::simulation::Simulated as Global;
use longshore_location::simulation::{Reported, Simulated as Location};
use longshore_types::LocationName;
use tokio::sync::watch;

use crate::checks::Checks;
use crate::faults;
use crate::links::{Outbox, Uplink, Watch};
use crate::net::Net;
use crate::node::Node;
use crate::process;
use crate::role::Role;
use crate::store::{Memory, Strayed, Way};
use crate::trace::Trace;
use crate::users::Users;

/// How many control planes share the store.
pub const N_GLOBALS: usize = 2;
/// How many locations there are.
pub const N_LOCATIONS: usize = 3;
/// How many nodes each has.
const NODES_EACH: usize = 2;
/// How many nodes there are.
pub const N_NODES: usize = N_LOCATIONS * NODES_EACH;
/// The most instances of an app.
pub const MAX: u64 = 6;

/// By so much the clock goes on at a time, in milliseconds.
const STEP: u64 = 20;
/// Where the clocks begin: some time in 2026.
const BEGIN: u64 = 1_780_000_000_000;
/// For how long things go wrong.
const TROUBLE: u64 = 150_000;
/// How long all may take to be whole again once nothing goes wrong: what was lost counts as that after a minute,
/// and a rollout that got nowhere is given up after its deadline.
const PATIENCE: u64 = 1_200_000;

/// A control plane.
pub(crate) struct GlobalRole {
    pub role: Role<Global>,
    /// Until when it does not reach the store.
    pub cut_until: u64,
    pub cut: watch::Sender<bool>,
}

type Reports = watch::Receiver<Arc<Option<Reported>>>;

/// A location.
pub(crate) struct LocationRole {
    pub name: LocationName,
    pub role: Role<Location>,
    store: Memory,
    /// Which control plane it goes to.
    pub target: usize,
    pub watch: Watch,
    pub uplink: Uplink,
    /// What it would say, of which of its lives, and what of that is known.
    pub reports: Option<(u64, Reports, ReportChanges<InstanceStatus>)>,
}

/// A node and its connections.
pub(crate) struct NodeRole {
    pub node: Node,
    pub watch: Watch,
    pub uplink: Uplink,
}

/// All of it.
pub struct World {
    seed: u64,
    pub(crate) now: u64,
    pub(crate) random: fastrand::Rng,
    pub(crate) store: Memory,
    pub(crate) globals: Vec<GlobalRole>,
    pub(crate) locations: Vec<LocationRole>,
    pub(crate) nodes: Vec<NodeRole>,
    pub(crate) net: Net,
    pub(crate) weather_until: u64,
    pub(crate) outbox: Outbox,
    pub(crate) users: Users,
    checks: Checks,
    strayed: Strayed,
    trace: Trace,
}

/// What was not as it must be.
#[derive(Debug)]
pub struct Failure {
    /// What.
    pub what: String,
    /// What happened before.
    pub trace: String,
}

/// What a run that went well leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// The hash of its trace, and how many lines that has.
    pub trace: (u64, u64),
    /// How many changes were acknowledged to users.
    pub n_acknowledged: u64,
}

/// Runs a seed.
///
/// # Errors
///
/// When something was not as it must be.
///
/// # Panics
///
/// When a directory for what the roles keep beside their stores cannot be made.
pub fn run(seed: u64) -> Result<Outcome, Box<Failure>> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime can be made");
    // Keys and the like are synced, which costs nothing where there is no disk.
    let in_memory = Path::new("/dev/shm");
    let dir =
        if in_memory.is_dir() { tempfile::tempdir_in(in_memory) } else { tempfile::tempdir() };
    let dir = dir.expect("a directory can be made");
    let outcome = runtime.block_on(async {
        let mut world = World::new(seed);
        world.live(dir.path()).await.map_err(|what| {
            let trace = world.trace.newest();
            Box::new(Failure { what: format!("seed {seed}: {what}"), trace })
        })
    });
    longshore_link::simulate(None);
    outcome
}

impl World {
    fn new(seed: u64) -> Self {
        let global = |number: usize| GlobalRole {
            role: Role::new(format!("global {number}")),
            cut_until: 0,
            cut: watch::Sender::new(false),
        };
        let location = |name: &str| LocationRole {
            name: name.parse().expect("it is a name"),
            role: Role::new(format!("location {name}")),
            store: Memory::default(),
            target: 0,
            watch: Watch::default(),
            uplink: Uplink::default(),
            reports: None,
        };
        let locations: Vec<_> = ["ams", "nyc", "sin"].into_iter().map(location).collect();
        let node = |number: usize| {
            let home = Self::location_of(number);
            let name = format!("{}-{}", locations[home].name, number % NODES_EACH + 1);
            let name = name.parse().expect("it is a name");
            let node = Node::new(name, home, seed ^ (number as u64 + 1000));
            NodeRole { node, watch: Watch::default(), uplink: Uplink::default() }
        };
        let nodes = (0..N_NODES).map(node).collect();
        Self {
            seed,
            now: BEGIN,
            random: fastrand::Rng::with_seed(seed),
            store: Memory::default(),
            globals: (0..N_GLOBALS).map(global).collect(),
            locations,
            nodes,
            net: Net::new(seed),
            weather_until: 0,
            outbox: Outbox::default(),
            users: Users::default(),
            checks: Checks::new(MAX),
            strayed: Strayed::default(),
            trace: Trace::default(),
        }
    }

    /// To which location a node belongs.
    pub fn location_of(node: usize) -> usize {
        node / NODES_EACH
    }

    pub(crate) fn note(&mut self, line: &str) {
        self.trace.add(self.now - BEGIN, line);
    }

    async fn live(&mut self, dir: &Path) -> Result<Outcome, String> {
        let trouble_ends = BEGIN + TROUBLE;
        let (mut next_fault, mut next_wish) = (BEGIN + 8_000, BEGIN + 3_000);
        while self.now < trouble_ends {
            self.step(dir).await?;
            if self.now >= next_wish {
                self.ask();
                next_wish = self.now + self.random.u64(200..6_000);
            }
            if self.now >= next_fault {
                let leads = self.globals.iter().position(|one| one.role.handle().is_some());
                let fault = faults::next(&mut self.random, leads.unwrap_or_default());
                self.inflict(&fault);
                next_fault = self.now + self.random.u64(300..7_000);
            }
        }
        self.heal();
        self.become_whole(dir).await?;
        let (trace, n_acknowledged) = (self.trace.hash(), self.users.n_acknowledged);
        Ok(Outcome { trace, n_acknowledged })
    }

    /// Waits until all is as it should be.
    async fn become_whole(&mut self, dir: &Path) -> Result<(), String> {
        let deadline = self.now + PATIENCE;
        let mut next_look = self.now + 10_000;
        loop {
            self.step(dir).await?;
            if self.now < next_look {
                continue;
            }
            // Whoever leads by now takes what operators closed back, until it is.
            self.open_all();
            next_look = self.now + 2_000;
            let difference = self.difference();
            let Some(difference) = difference else { break };
            if self.now >= deadline {
                return Err(format!("after all faults ended: {difference}"));
            }
        }
        match self.users.lost(&self.checks.apps) {
            Some(lost) => Err(format!("lost: {lost}")),
            None => Ok(()),
        }
    }

    fn difference(&self) -> Option<String> {
        if self.users.wait() {
            return Some("a request is not answered".to_owned());
        }
        self.checks.difference(self.nodes.iter().map(|one| &one.node))
    }

    async fn step(&mut self, dir: &Path) -> Result<(), String> {
        self.now += STEP;
        tokio::time::advance(Duration::from_millis(STEP)).await;
        self.recover();
        self.store.expire();
        self.start_roles(dir);
        self.deliver();
        let globals = self.globals.iter_mut().filter_map(|one| one.role.process.as_mut());
        let locations = self.locations.iter_mut().filter_map(|one| one.role.process.as_mut());
        process::run(globals.chain(locations), self.now);
        if let Some(line) = self.strayed.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            return Err(line);
        }
        self.hear_answers();
        self.speak();
        for line in self.checks.read(&self.store)? {
            self.trace.add(self.now - BEGIN, &line);
        }
        let names: Vec<_> = self.locations.iter().map(|one| one.name.as_str()).collect();
        self.checks.look(self.nodes.iter().map(|one| &one.node), &names)
    }

    /// Starts what does not run, as a supervisor does.
    fn start_roles(&mut self, dir: &Path) {
        let now = self.now;
        let mut lines = Vec::new();
        for (number, global) in self.globals.iter_mut().enumerate() {
            if let Some(why) = global.role.ended() {
                lines.push(format!("{} ended: {why}", global.role.name));
                global.role.kill(now + 500);
            }
            if global.role.process.is_some() || global.role.starts_at > now {
                continue;
            }
            let id = format!("g{number}");
            let dir = dir.join(&id);
            let seed = self.seed ^ (global.role.n_lives << 8) ^ number as u64;
            let way = Way::new(self.store.clone(), seed, global.cut.subscribe());
            let way = way.of(id.clone(), Arc::clone(&self.strayed));
            global.role.start(|service| async move {
                std::fs::create_dir_all(&dir).expect("a directory can be made");
                Global::begin(Arc::new(way), &id, &dir, &service).await
            });
        }
        for (number, location) in self.locations.iter_mut().enumerate() {
            if let Some(why) = location.role.ended() {
                lines.push(format!("{} ended: {why}", location.role.name));
                location.role.kill(now + 500);
            }
            if location.role.process.is_some() || location.role.starts_at > now {
                continue;
            }
            let (name, dir) = (location.name.clone(), dir.join(location.name.as_str()));
            let seed = self.seed ^ (location.role.n_lives << 8) ^ (number as u64 + 100);
            let way = Way::new(location.store.clone(), seed, watch::Sender::new(false).subscribe());
            location.role.start(|service| async move {
                std::fs::create_dir_all(&dir).expect("a directory can be made");
                Location::begin(name, Arc::new(way), &dir, &service).await.map(Some)
            });
        }
        for line in lines {
            self.note(&line);
        }
    }
}
