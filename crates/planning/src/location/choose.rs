//! Which node gets an instance.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use longshore_types::{
    Candidate, Capacity, Decision, GpuShares, InstanceId, Lack, NodeName, ReleaseNumber,
    RoomMaking, Timestamp, runtime, unreached,
};

use super::{
    Action, Goal, NodeState, PlacedInstance, Plan, Shortfall, Snapshot, Standing, Staying,
    WantedApp,
};
use crate::global::{best_of_each, node_refusal};
use crate::gpus::{FreeGpu, choose, free_gpus, lack};
use crate::seeded::Seeded;

/// A node that has the image saves a pull; worth as much as this much free memory, in MiB.
const IMAGE_BONUS: i64 = 4096;
/// One that pulls it already has begun to save that.
const PULLING_BONUS: i64 = IMAGE_BONUS / 2;
/// More free memory than this, in MiB, makes no difference.
const MOST_MEMORY: i64 = 1 << 20;
/// What needs no GPU leaves those nodes free that have some, whatever memory these have.
const GPU_PENALTY: i64 = 1 << 21;
/// Each instance of the same app on a node makes it this much worse, so that apps spread first.
const SPREAD_PENALTY: i64 = 1 << 22;

/// What is left on each node while a plan is made.
pub(super) struct Room<'a> {
    now: Timestamp,
    ids: Seeded,
    pub(super) nodes: Vec<NodeRoom<'a>>,
    /// Those that leave for others by this plan.
    pub(super) victims: BTreeSet<&'a InstanceId>,
}

pub(super) struct NodeRoom<'a> {
    pub(super) node: &'a NodeState,
    /// What is free now, and not kept for anything.
    free: Capacity,
    /// What is promised to those that stay, and kept for others.
    held: Capacity,
    /// What is held of its GPUs now.
    gpus_taken: GpuShares,
    /// What is promised of them to those that stay, and kept for others.
    gpus_held: GpuShares,
    /// What may be made to leave.
    pub(super) yielding: Vec<&'a PlacedInstance>,
    /// How many instances of each app are there and stay, by project and app.
    apps: BTreeMap<(String, String), u32>,
    /// The same of each release.
    releases: BTreeMap<((String, String), ReleaseNumber), u32>,
}

impl<'a> Room<'a> {
    pub(super) fn new(snapshot: &'a Snapshot) -> Self {
        let mut nodes: Vec<_> = snapshot
            .nodes
            .iter()
            .map(|node| NodeRoom {
                node,
                free: node.capacity.minus(node.others),
                held: node.others,
                gpus_taken: node.others_gpus.clone(),
                gpus_held: node.others_gpus.clone(),
                yielding: Vec::new(),
                apps: BTreeMap::new(),
                releases: BTreeMap::new(),
            })
            .collect();
        nodes.sort_by(|a, b| a.node.name.cmp(&b.node.name));
        // Leaving and lost instances still hold what they were promised: they may be running.
        for instance in &snapshot.instances {
            let found = nodes.binary_search_by(|room| room.node.name.cmp(&instance.node));
            if let Ok(idx) = found {
                let room = &mut nodes[idx];
                room.free = room.free.minus(instance.each);
                room.gpus_taken = room.gpus_taken.plus(&instance.gpus);
                if instance.standing != Standing::Leaving {
                    room.held = room.held.plus(instance.each);
                    room.gpus_held = room.gpus_held.plus(&instance.gpus);
                    room.yielding.extend(instance.yields.map(|_| instance));
                    let key = (instance.project.to_string(), instance.app.to_string());
                    *room.releases.entry((key.clone(), instance.release)).or_default() += 1;
                    *room.apps.entry(key).or_default() += 1;
                }
            }
        }
        Self { now: snapshot.now, ids: Seeded(snapshot.seed), nodes, victims: BTreeSet::new() }
    }

    /// Takes note that an instance is to leave.
    pub(super) fn leave(&mut self, instance: &PlacedInstance) {
        let found = self.nodes.binary_search_by(|room| room.node.name.cmp(&instance.node));
        if let Ok(idx) = found {
            self.nodes[idx].leaves(instance);
        }
    }

    /// Whether one of these leaves for another app by this plan.
    pub(super) fn any_leaves_for_others(&self, instances: &[&PlacedInstance]) -> bool {
        instances.iter().any(|one| self.victims.contains(&one.id))
    }

    /// Places `n_instances` of an app, or as many as fit. For up to `make_room` of those that do not others leave.
    pub(super) fn place(
        &mut self,
        (wanted, goal, is_command): (&WantedApp, &Goal, bool),
        (n_instances, make_room): (u32, u32),
        plan: &mut Plan,
    ) {
        let app = (wanted.project.to_string(), wanted.app.to_string());
        for placed in 0..n_instances {
            let decision = self.decide(&app, goal);
            let Some((node, gpus)) = self.take(&decision, &app, goal) else {
                let missing = n_instances - placed;
                let of_those = make_room.saturating_sub(placed).min(missing);
                let n_waiting = self.wait_for_room((wanted, goal), of_those, &decision, plan);
                let room = match n_waiting < of_those {
                    true => RoomMaking::InVain,
                    false => RoomMaking::None,
                };
                plan.shortfalls.extend(shortfall(wanted, (missing - n_waiting, room), decision));
                return;
            };
            let instance = InstanceId::mint(&wanted.app, self.ids.next());
            let (project, app) = (wanted.project.clone(), wanted.app.clone());
            let release = goal.release;
            plan.actions.push(Action::Place {
                instance,
                project,
                app,
                release,
                is_command,
                node,
                gpus,
                replaces: None,
                decision,
            });
        }
    }

    /// Finds room that others leave for so many instances, or as many as it can; how many those are.
    fn wait_for_room(
        &mut self,
        (wanted, goal): (&WantedApp, &Goal),
        n_instances: u32,
        decision: &Decision,
        plan: &mut Plan,
    ) -> u32 {
        let app = (wanted.project.to_string(), wanted.app.to_string());
        let (mut n_waiting, mut why) = (0, String::new());
        while n_waiting < n_instances {
            let Some(made) = self.make_room(&app, goal) else { break };
            if n_waiting == 0 {
                why = made.waits_for();
            }
            plan.actions.extend(made.drain(wanted, goal));
            n_waiting += 1;
        }
        if n_waiting > 0 {
            let decision = Decision { why, ..decision.clone() };
            plan.shortfalls.extend(shortfall(wanted, (n_waiting, RoomMaking::UnderWay), decision));
        }
        n_waiting
    }

    /// Places an instance for each of these, whose nodes are drained, or says why it stays.
    pub(super) fn place_instead(
        &mut self,
        (wanted, goal): (&WantedApp, &Goal),
        moved: &[&PlacedInstance],
        plan: &mut Plan,
    ) {
        let app = (wanted.project.to_string(), wanted.app.to_string());
        for old in moved {
            let mut decision = self.decide(&app, goal);
            let Some((node, gpus)) = self.take(&decision, &app, goal) else {
                let why = no_place(&decision, &old.node);
                plan.staying.push(Staying { instance: old.id.clone(), why, under_way: false });
                continue;
            };
            decision.why = format!(
                "takes the place of {}, whose node {} is drained; {}",
                old.id, old.node, decision.why
            );
            let instance = InstanceId::mint(&wanted.app, self.ids.next());
            let why = format!("waits until {instance} on {node} is healthy");
            plan.staying.push(Staying { instance: old.id.clone(), why, under_way: true });
            plan.actions.push(Action::Place {
                instance,
                project: wanted.project.clone(),
                app: wanted.app.clone(),
                release: goal.release,
                is_command: false,
                node,
                gpus,
                replaces: Some(old.id.clone()),
                decision,
            });
        }
    }

    /// Takes room where a decision says, if it found any.
    pub(super) fn take(
        &mut self,
        decision: &Decision,
        app: &(String, String),
        goal: &Goal,
    ) -> Option<(NodeName, GpuShares)> {
        let chosen = decision.chosen.as_deref()?;
        let found = self.nodes.binary_search_by(|room| room.node.name.as_str().cmp(chosen));
        let room = &mut self.nodes[found.ok()?];
        let gpus = room.take(app.clone(), goal);
        Some((room.node.name.clone(), gpus))
    }

    pub(super) fn decide(&self, app: &(String, String), goal: &Goal) -> Decision {
        let mut judged: Vec<_> =
            self.nodes.iter().map(|room| (room, room.judge(app, goal))).collect();
        // The sort is stable and the nodes are in order of their names, so ties are settled.
        judged.sort_by_key(|(_, judged)| Reverse(judged.as_ref().ok().copied()));
        let is_any_good = judged.first().is_some_and(|(_, best)| best.is_ok());
        if is_any_good {
            // Words are made for these alone: they cost more than all the rest.
            judged = best_of_each(judged.into_iter(), |(_, judged)| judged.is_ok());
        }
        let told = |(room, judged): (&NodeRoom<'_>, Judged)| room.told(judged, app, goal);
        let candidates: Vec<_> = judged.into_iter().map(told).collect();
        let best = candidates.first().filter(|_| is_any_good);
        let why = match (best, self.nodes.len()) {
            (Some(_), 1) => "the only node".to_owned(),
            (Some(best), n_nodes) => format!("best of {n_nodes} nodes: {}", best.why),
            (None, _) => nowhere(&candidates, goal),
        };
        let chosen = best.map(|best| best.name.clone());
        Decision { at: self.now, chosen, why, candidates }
    }
}

/// How good a node is for an instance, or what it lacks, and why it takes none.
type Judged = Result<i64, (Lack, String)>;

/// That so many found no place, if any.
fn shortfall(
    wanted: &WantedApp,
    (missing, room): (u32, RoomMaking),
    decision: Decision,
) -> Option<Shortfall> {
    let (project, app) = (wanted.project.clone(), wanted.app.clone());
    (missing > 0).then_some(Shortfall { project, app, missing, decision, room })
}

/// Why nothing takes the place of what is on a node, with what the others lack.
pub(super) fn no_place(decision: &Decision, node: &NodeName) -> String {
    let others = decision.candidates.iter().filter(|other| other.name != node.as_str());
    let refusals: Vec<_> = others.map(|other| format!("{}: {}", other.name, other.why)).collect();
    match refusals.is_empty() {
        true => "there is no other node".to_owned(),
        false => format!("no other node takes it ({})", refusals.join("; ")),
    }
}

impl NodeRoom<'_> {
    fn take(&mut self, app: (String, String), goal: &Goal) -> GpuShares {
        self.free = self.free.minus(goal.each);
        self.held = self.held.plus(goal.each);
        let gpus = self.gpus_for(goal, &self.gpus_taken).unwrap_or_default();
        self.gpus_taken = self.gpus_taken.plus(&gpus);
        self.gpus_held = self.gpus_held.plus(&gpus);
        self.count(app, goal);
        gpus
    }

    /// What an instance would get of its GPUs while so much of them is held; nothing where they do not suffice.
    fn gpus_for(&self, goal: &Goal, held: &GpuShares) -> Option<GpuShares> {
        match &goal.gpus {
            None => Some(GpuShares::default()),
            Some(need) => choose(need, &self.free_gpus(held)),
        }
    }

    fn free_gpus(&self, held: &GpuShares) -> Vec<FreeGpu> {
        free_gpus(&self.node.gpus, held)
    }

    fn count(&mut self, app: (String, String), goal: &Goal) {
        *self.releases.entry((app.clone(), goal.release)).or_default() += 1;
        *self.apps.entry(app).or_default() += 1;
    }

    /// What is free once all that leaves has left.
    pub(super) fn soon(&self) -> Capacity {
        self.node.capacity.minus(self.held)
    }

    /// Whether an instance would have room then if these left too.
    pub(super) fn soon_holds(&self, goal: &Goal, gone: &[&PlacedInstance]) -> bool {
        let held = gone.iter().fold(self.held, |held, one| held.minus(one.each));
        let gpus = || gone.iter().fold(self.gpus_held.clone(), |held, one| held.minus(&one.gpus));
        self.node.capacity.minus(held).holds(goal.each)
            && (goal.gpus.is_none() || self.gpus_for(goal, &gpus()).is_some())
    }

    /// Keeps room for an instance that is placed once others have left.
    pub(super) fn keep_for(&mut self, app: &(String, String), goal: &Goal) {
        self.held = self.held.plus(goal.each);
        self.free = self.free.least(self.soon());
        let gpus = self.gpus_for(goal, &self.gpus_held).unwrap_or_default();
        self.gpus_held = self.gpus_held.plus(&gpus);
        self.gpus_taken = self.gpus_taken.most(&self.gpus_held);
        self.count(app.clone(), goal);
    }

    /// Takes note that an instance on it is to leave.
    pub(super) fn leaves(&mut self, instance: &PlacedInstance) {
        self.held = self.held.minus(instance.each);
        self.gpus_held = self.gpus_held.minus(&instance.gpus);
        self.yielding.retain(|other| other.id != instance.id);
    }

    /// Why it takes no instance of a goal, and what it lacks.
    fn refusal(&self, app: &(String, String), goal: &Goal) -> Option<(Lack, String)> {
        self.against(app, goal).or_else(|| self.lack_of_gpus(goal)).or_else(|| {
            let lack = self.free.lack_for(goal.each)?;
            Some((lack, format!("refused: {}", self.free.lacks_for(goal.each)?)))
        })
    }

    /// What its GPUs lack. Of all that may lack these are the scarcest, and told first.
    fn lack_of_gpus(&self, goal: &Goal) -> Option<(Lack, String)> {
        let need = goal.gpus.as_ref()?;
        let free = self.free_gpus(&self.gpus_taken);
        let lacks = choose(need, &free).is_none();
        lacks
            .then(|| (Lack::Gpu, format!("refused: {}", lack(need, [free.as_slice()].into_iter()))))
    }

    /// The same, whatever room there is.
    pub(super) fn against(&self, app: &(String, String), goal: &Goal) -> Option<(Lack, String)> {
        if let Some(cordon) = &self.node.cordon {
            return Some((Lack::Cordon, cordon.refusal()));
        }
        let refused = |(lack, why)| Some((lack, format!("refused: {why}")));
        if !self.node.reachable {
            return refused((Lack::Report, "it has not reported lately".to_owned()));
        }
        if let Some(against) = node_refusal(&goal.placement, &self.node.traits) {
            return refused(against);
        }
        if let Some(why) = unreached(&goal.placement.reach, &self.node.reached) {
            return refused((Lack::Reach, why));
        }
        if let Some(why) = runtime::refusal(&self.node.runtimes, goal.runtime, &goal.needs) {
            return refused((Lack::Runtime, why));
        }
        // Of one release: the next one needs room beside it.
        let most = goal.placement.max_per_node?;
        let release = goal.release;
        let same_release = self.releases.get(&(app.clone(), release)).copied().unwrap_or(0);
        if same_release >= most {
            let why =
                format!("it has {same_release} of {release}, and placement.max_per_node = {most}");
            return refused((Lack::Spread, why));
        }
        None
    }

    fn judge(&self, app: &(String, String), goal: &Goal) -> Judged {
        if let Some(refusal) = self.refusal(app, goal) {
            return Err(refusal);
        }
        let left = self.free.minus(goal.each);
        let free_mib = i64::try_from(left.memory.0 >> 20).unwrap_or(i64::MAX / 2);
        let (bonus, _) = self.worth_of_image(goal);
        let penalty = if self.has_needless_gpus(goal) { GPU_PENALTY } else { 0 };
        let spread = i64::from(self.n_of(app)) * SPREAD_PENALTY;
        Ok(free_mib.min(MOST_MEMORY) + bonus - penalty - spread)
    }

    fn n_of(&self, app: &(String, String)) -> u32 {
        self.apps.get(app).copied().unwrap_or(0)
    }

    /// What it is worth how far the image is there, and that in words.
    fn worth_of_image(&self, goal: &Goal) -> (i64, &'static str) {
        match self.node {
            node if node.images.contains(&goal.image) => (IMAGE_BONUS, "has the image"),
            node if node.pulling.contains(&goal.image) => (PULLING_BONUS, "is pulling the image"),
            _ => (0, "must pull the image"),
        }
    }

    /// Whether it has GPUs that are of no use to an instance.
    fn has_needless_gpus(&self, goal: &Goal) -> bool {
        goal.gpus.is_none() && !self.node.gpus.is_empty()
    }

    /// What it was judged to be, in words.
    fn told(&self, judged: Judged, app: &(String, String), goal: &Goal) -> Candidate {
        let name = self.node.name.to_string();
        let score = match judged {
            Ok(score) => score,
            Err((lack, why)) => return Candidate { name, score: None, why, lack: Some(lack) },
        };
        let (left, same_app) = (self.free.minus(goal.each), self.n_of(app));
        let gpus = self.told_of_gpus(goal);
        let (_, image) = self.worth_of_image(goal);
        let why = format!(
            "{gpus}{} of memory and {} of disk stay free, {image}, {same_app} of this app there",
            left.memory, left.disk
        );
        Candidate { name, score: Some(score), why, lack: None }
    }

    /// Which of its GPUs an instance would get.
    fn told_of_gpus(&self, goal: &Goal) -> String {
        if goal.gpus.is_none() {
            let needless = self.has_needless_gpus(goal);
            return if needless { "its GPUs are better left free, " } else { "" }.to_owned();
        }
        let shares = self.gpus_for(goal, &self.gpus_taken).unwrap_or_default();
        let free = self.free_gpus(&self.gpus_taken.plus(&shares));
        let each = shares.iter().filter_map(|share| {
            let gpu = free.get(share.index as usize)?;
            Some(format!("{} of {} stay free on GPU {}, ", gpu.free, gpu.model, share.index))
        });
        each.collect()
    }
}

/// Why no node takes an instance, in one phrase.
fn nowhere(candidates: &[Candidate], goal: &Goal) -> String {
    let all_lack = |lack: Lack| candidates.iter().all(|one| one.lack == Some(lack));
    match () {
        () if candidates.is_empty() => "no node has joined this location".to_owned(),
        () if all_lack(Lack::Cordon) => "every node is cordoned by an operator".to_owned(),
        () if all_lack(Lack::Runtime) => {
            format!("no node can run it with the runtime {}", goal.runtime)
        }
        () if all_lack(Lack::Label) => {
            let labels: Vec<_> = goal.placement.labels.iter().map(ToString::to_string).collect();
            format!("no node has {}", labels.join(", "))
        }
        () if all_lack(Lack::Gpu) => {
            let need = goal.gpus.as_ref().map_or("a GPU".to_owned(), ToString::to_string);
            format!("no node has {need} free")
        }
        () if all_lack(Lack::Spread) => "no node may have one more of this release".to_owned(),
        () => "no node has room".to_owned(),
    }
}
