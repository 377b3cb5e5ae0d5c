//! A node as its location sees it: it keeps its assignments on disk, refuses older ones, runs what it is told to
//! run, and reports. A model of the agent in `longshore-node`, for which containers are real and slow.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use longshore_api::links::{
    Assignment, AssignmentSet, Intent, NodeReport, ObservedInstance, ReportChanges, Said, Told,
};
use longshore_types::{
    AppName, ByteCount, Capacity, Generation, Gpu, GpuShares, InstanceId, InstancePhase, MilliCpu,
    NodeName, ReleaseNumber, Timestamp,
};

/// How many instances of 1 GiB a node has room for.
pub const ROOM: u64 = 5;

/// The GPUs of each node, by model and GiB: for as many instances as it has room for.
const GPUS: [(&str, u64); 2] = [("h100", 3), ("l4", 2)];

fn gpus() -> Vec<Gpu> {
    let gpu = |(model, gib): (&str, u64)| Gpu {
        model: model.parse().expect("it is a name"),
        memory: ByteCount::gib(gib),
    };
    GPUS.map(gpu).into()
}

/// A container.
#[derive(Debug, Clone)]
pub struct Container {
    /// What it is of.
    pub app: AppName,
    /// And which release of that.
    pub release: ReleaseNumber,
    generation: Generation,
    phase: InstancePhase,
    /// When it comes to the next phase.
    next_at: u64,
    /// It goes for good once it has ended.
    unwanted: bool,
}

impl Container {
    /// Whether a process may run in it.
    pub fn runs(&self) -> bool {
        self.phase.may_run()
    }

    /// Whether it passes its health check.
    pub fn is_healthy(&self) -> bool {
        self.phase == InstancePhase::Healthy
    }
}

/// A node.
pub struct Node {
    /// Its name.
    pub name: NodeName,
    /// To which location it belongs, by number.
    pub location: usize,
    /// What is on its disk.
    disk: AssignmentSet,
    /// What there is of its containers.
    pub containers: BTreeMap<InstanceId, Container>,
    acknowledged: Option<Generation>,
    /// Its agent does nothing until then; its containers go on.
    pub silent_until: u64,
    /// What is to be reported changed.
    pub has_news: bool,
    /// What of its reports is known.
    pub changes: ReportChanges<ObservedInstance>,
    random: fastrand::Rng,
}

impl Node {
    /// A node that has nothing.
    pub fn new(name: NodeName, location: usize, seed: u64) -> Self {
        Self {
            name,
            location,
            disk: AssignmentSet::default(),
            containers: BTreeMap::new(),
            acknowledged: None,
            silent_until: 0,
            has_news: true,
            changes: ReportChanges::new(Timestamp(0)),
            random: fastrand::Rng::with_seed(seed),
        }
    }

    /// The agent is killed: what it has on disk and what runs is what the next one finds.
    pub fn kill_agent(&mut self, until: u64) {
        self.silent_until = self.silent_until.max(until);
        self.acknowledged = None;
        self.changes = ReportChanges::new(Timestamp(self.silent_until));
    }

    /// The machine loses its power: no container outlives that.
    pub fn power_off(&mut self, until: u64) {
        self.kill_agent(until);
        self.containers.clear();
    }

    /// Takes a set over, or a change of what it has; false when it is one of another. An older one is refused.
    pub fn take_over(&mut self, next: AssignmentSet, now: u64) -> bool {
        let Some(set) = self.disk.followed_by(next) else { return false };
        if set.generation < self.disk.generation {
            return true;
        }
        self.acknowledged = Some(set.generation);
        self.has_news = true;
        self.disk = set;
        self.carry_out(now);
        true
    }

    /// What is wrong with the GPUs that its instances were given, if anything.
    pub fn fault_of_gpus(&self) -> Option<String> {
        let assigned = &self.disk.assignments;
        let all = assigned.iter().fold(GpuShares::default(), |sum, one| sum.plus(&one.gpus));
        let too_much = (0..).zip(gpus()).find(|(index, gpu)| all.of(*index) > gpu.memory);
        let is_odd = |one: &&Arc<Assignment>| {
            let needed = one.release.manifest.resources.gpu.as_ref().map_or(0, |need| need.count);
            one.gpus.len() != needed as usize
        };
        let odd = assigned.iter().find(is_odd);
        too_much.map(|(index, _)| format!("{} of GPU {index} is given", all.of(index))).or_else(
            || odd.map(|one| format!("{} was given the GPUs {:?}", one.instance, one.gpus)),
        )
    }

    /// What is on its disk, again: after a start of the machine there is nothing else.
    fn carry_out(&mut self, now: u64) {
        let named: BTreeSet<_> =
            self.disk.assignments.iter().map(|one| one.instance.clone()).collect();
        for (id, container) in &mut self.containers {
            if !named.contains(id) {
                container.unwanted = true;
                end(container, now + self.random.u64(100..1500));
            }
        }
        for assignment in &self.disk.assignments {
            let takes = self.random.u64(100..1500);
            let container = self
                .containers
                .entry(assignment.instance.clone())
                .or_insert_with(|| new(assignment, now + takes));
            container.generation = assignment.generation;
            container.unwanted = false;
            if assignment.intent == Intent::Stop {
                end(container, now + takes);
            }
        }
    }

    /// Goes on with what it does.
    pub fn go_on(&mut self, now: u64) {
        if now < self.silent_until {
            return;
        }
        if self.acknowledged.is_none() && self.containers.len() < self.disk.assignments.len() {
            self.carry_out(now);
        }
        for container in self.containers.values_mut() {
            if now < container.next_at {
                continue;
            }
            let (next, takes) = match container.phase {
                InstancePhase::Pulling => (InstancePhase::Creating, self.random.u64(50..300)),
                InstancePhase::Creating => (InstancePhase::Starting, self.random.u64(50..800)),
                InstancePhase::Starting => {
                    (InstancePhase::Healthy, self.random.u64(5_000..400_000))
                }
                // It crashes now and then, and is started again.
                InstancePhase::Healthy => (InstancePhase::Backoff, 1000),
                InstancePhase::Backoff => (InstancePhase::Creating, self.random.u64(50..300)),
                InstancePhase::Stopping => (InstancePhase::Exited, u64::MAX - now),
                other => (other, u64::MAX - now),
            };
            (container.phase, container.next_at) = (next, now + takes);
            self.has_news = true;
        }
        let is_gone = |one: &Container| one.unwanted && one.phase == InstancePhase::Exited;
        self.containers.retain(|_, container| !is_gone(container));
    }

    /// What it says.
    pub fn report(&mut self) -> NodeReport {
        self.has_news = false;
        let mut observed = Told::default();
        for (id, container) in &self.containers {
            let pending = ObservedInstance::pending(id.clone(), container.generation);
            let address = Some(Ipv4Addr::new(100, 64, 0, 2));
            let now = ObservedInstance { phase: container.phase, address, ..pending };
            observed.insert(id.clone(), Arc::new(now));
        }
        let Said { number, since, instances, gone } = self.changes.of(&observed);
        NodeReport {
            node: self.name.clone(),
            number,
            since,
            gate: "unix:/nowhere".to_owned(),
            version: "1".to_owned(),
            capacity: Capacity {
                cpu: MilliCpu(64_000),
                memory: ByteCount::gib(ROOM),
                disk: ByteCount::gib(1000),
            },
            acknowledged: self.acknowledged,
            images: Vec::new(),
            pulling: Vec::new(),
            instances,
            gone,
            network: String::new(),
            runtimes: Vec::new(),
            image_mount: None,
            traits: Default::default(),
            gpus: gpus(),
            reached: Vec::new(),
            location_epoch: Default::default(),
            handed_over: None,
        }
    }
}

fn new(assignment: &Assignment, next_at: u64) -> Container {
    Container {
        app: assignment.release.manifest.app.clone(),
        release: assignment.release.number,
        generation: assignment.generation,
        phase: InstancePhase::Pulling,
        next_at,
        unwanted: false,
    }
}

/// Begins to end a container, unless it does so already.
fn end(container: &mut Container, at: u64) {
    match container.phase {
        InstancePhase::Stopping | InstancePhase::Exited => {}
        // Nothing runs yet.
        InstancePhase::Pulling | InstancePhase::Backoff => {
            (container.phase, container.next_at) = (InstancePhase::Exited, u64::MAX);
        }
        _ => (container.phase, container.next_at) = (InstancePhase::Stopping, at),
    }
}
