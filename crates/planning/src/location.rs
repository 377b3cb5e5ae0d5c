//! Which node runs an instance, and which instance goes next.
//!
//! [`plan`] is run again and again on what is observed; each plan is a small step that is right by
//! itself. A new release replaces the old one within the bounds of its [`Rollout`]: so many
//! instances more than wanted are started (when the budget allows), and old ones are drained once
//! enough others are ready. Canaries of a release that is tried come on top of what should run.
//!
//! What matters more is placed first, and of that what was deployed first. Where the global scheduler found room
//! nowhere for something, it lets a location make others leave that matter less ([`room`]).
//!
//! A node that an operator cordoned gets nothing new. One that is drained also loses what it has, each
//! instance once another one elsewhere that takes its place is ready; what finds no other place stays.

mod choose;
mod moves;
mod preview;
mod replace;
mod room;

pub use preview::{Move, preview_drain};

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use longshore_types::{
    Ability, AppName, Capacity, Cordon, Decision, Digest, Gpu, GpuNeed, GpuShares, InstanceId,
    NodeName, Placement, Priority, ProjectName, Reached, ReleaseNumber, Rollout, RoomMaking,
    RuntimeName, RuntimeOffer, Timestamp, Traits,
};
use serde::{Deserialize, Serialize};

use crate::Pinned;

/// Everything a location's plan depends on. It may be one of some apps: then it has all of these, and what the
/// instances of others hold of each node. Where others may be made to leave for one of them it is one of all: who
/// leaves is found among all, and what is kept for it is kept from all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The clock value.
    pub now: Timestamp,
    /// For the ids of new instances.
    pub seed: u64,
    /// What should run, one entry per app.
    pub wanted: Vec<WantedApp>,
    /// What there is.
    pub instances: Vec<PlacedInstance>,
    /// Where it could be.
    pub nodes: Vec<NodeState>,
}

/// An app that should run here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedApp {
    /// Its owner.
    pub project: ProjectName,
    /// Its name.
    pub app: AppName,
    /// What takes the place of all else.
    pub main: Goal,
    /// What is tried beside it.
    pub canary: Option<Goal>,
    /// What is run once beside it.
    pub command: Option<Goal>,
    /// The most that may ever run.
    pub budget: u32,
    /// For how many of those that should run and have no room others may be made to leave.
    #[serde(default)]
    pub make_room: u32,
    /// How a new release takes the place of the old one.
    pub rollout: Rollout,
}

/// Instances of one release that should run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goal {
    /// The release.
    pub release: ReleaseNumber,
    /// The image of that release.
    pub image: Digest,
    /// How many instances should run.
    pub count: u32,
    /// What one instance needs.
    pub each: Capacity,
    /// And what of GPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpus: Option<GpuNeed>,
    /// What makes its containers.
    pub runtime: RuntimeName,
    /// What that must be able to do.
    pub needs: Vec<Ability>,
    /// On which nodes they may be, and how many on one.
    pub placement: Placement,
    /// How much they matter beside others.
    #[serde(default)]
    pub priority: Priority,
    /// When the release was made.
    #[serde(default)]
    pub released_at: Timestamp,
}

/// An instance that was assigned to a node and is not gone yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacedInstance {
    /// Its id.
    pub id: InstanceId,
    /// The owner of its app.
    pub project: ProjectName,
    /// Its app.
    pub app: AppName,
    /// Its release.
    pub release: ReleaseNumber,
    /// True when it runs the command of the release instead of the release.
    pub is_command: bool,
    /// Its node.
    pub node: NodeName,
    /// What it was promised.
    pub each: Capacity,
    /// And of which GPUs.
    #[serde(default, skip_serializing_if = "GpuShares::is_empty")]
    pub gpus: GpuShares,
    /// How far it is.
    pub standing: Standing,
    /// The instance on a drained node whose place it takes.
    pub replaces: Option<InstanceId>,
    /// Why it is not started elsewhere when its node is drained.
    pub pinned: Option<Pinned>,
    /// Its priority, when it may be made to leave for what has a higher one.
    #[serde(default)]
    pub yields: Option<Priority>,
    /// When it was assigned.
    pub created_at: Timestamp,
}

/// How far an instance is, as far as plans care.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Standing {
    /// Its node was not heard of for so long that it counts as lost. It may still run.
    Lost,
    /// It is on its way, or unhealthy, or between two restarts.
    NotReady,
    /// It serves.
    Ready,
    /// It is being drained or stopped.
    Leaving,
}

/// A node as its location sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeState {
    /// The node.
    pub name: NodeName,
    /// True when it reported lately.
    pub reachable: bool,
    /// What an operator wishes of it.
    pub cordon: Option<Cordon>,
    /// What it offers in all.
    pub capacity: Capacity,
    /// What instances of it hold that are left out of the snapshot.
    #[serde(default)]
    pub others: Capacity,
    /// Its GPUs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<Gpu>,
    /// What those that are left out hold of them.
    #[serde(default, skip_serializing_if = "GpuShares::is_empty")]
    pub others_gpus: GpuShares,
    /// The images that are complete on it.
    pub images: BTreeSet<Digest>,
    /// Those that are on their way to it.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub pulling: BTreeSet<Digest>,
    /// What makes containers there, and what each can do.
    pub runtimes: Vec<RuntimeOffer>,
    /// What is said of it, and of its location.
    pub traits: Traits,
    /// What its last tries to reach addresses came to.
    #[serde(default)]
    pub reached: Vec<Reached>,
}

/// One step towards what is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Assign a new instance to a node.
    Place {
        /// The id of the new instance.
        instance: InstanceId,
        /// The owner of the app.
        project: ProjectName,
        /// The app.
        app: AppName,
        /// The release.
        release: ReleaseNumber,
        /// True for the command of the release.
        is_command: bool,
        /// The node.
        node: NodeName,
        /// What it gets of which GPUs there.
        #[serde(default, skip_serializing_if = "GpuShares::is_empty")]
        gpus: GpuShares,
        /// The instance on a drained node whose place it takes.
        replaces: Option<InstanceId>,
        /// Why this node.
        decision: Decision,
    },
    /// Send no more requests to an instance and then stop it.
    Drain {
        /// The instance.
        instance: InstanceId,
        /// Why.
        why: String,
    },
}

/// A part of what is wanted that found no place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shortfall {
    /// The owner of the app.
    pub project: ProjectName,
    /// The app.
    pub app: AppName,
    /// How many instances found no place.
    pub missing: u32,
    /// Why, with every node that was considered.
    pub decision: Decision,
    /// Whether others leave for them.
    #[serde(default)]
    pub room: RoomMaking,
}

/// An instance that is still on a node that is drained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staying {
    /// The instance.
    pub instance: InstanceId,
    /// What it waits for, or what stands in its way.
    pub why: String,
    /// True when that comes by itself.
    pub under_way: bool,
}

/// The steps to take now, and what cannot be done.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Plan {
    /// The steps, in order.
    pub actions: Vec<Action>,
    /// What found no place.
    pub shortfalls: Vec<Shortfall>,
    /// What has not left its drained node.
    pub staying: Vec<Staying>,
}

/// Plans the next steps of a location.
pub fn plan(snapshot: &Snapshot) -> Plan {
    let mut plan = Plan::default();
    let mut room = choose::Room::new(snapshot);
    let drained = moves::Drained::new(&snapshot.nodes);
    let mut by_app: BTreeMap<(&ProjectName, &AppName), Vec<&PlacedInstance>> = BTreeMap::new();
    for instance in &snapshot.instances {
        by_app.entry((&instance.project, &instance.app)).or_default().push(instance);
    }
    let mut in_order: Vec<&WantedApp> = snapshot.wanted.iter().collect();
    in_order.sort_by_key(|wanted| (Reverse(wanted.main.priority), wanted.main.released_at));
    let mut unwanted = by_app.clone();
    for wanted in &in_order {
        unwanted.remove(&(&wanted.project, &wanted.app));
    }
    let unwanted = unwanted.into_values().flatten();
    let unwanted: Vec<_> = unwanted.filter(|one| one.standing != Standing::Leaving).collect();
    unwanted.iter().for_each(|instance| room.leave(instance));
    for wanted in in_order {
        let instances = by_app.remove(&(&wanted.project, &wanted.app)).unwrap_or_default();
        // What leaves for others is seen to leave by the next plan, which comes at once.
        if !room.any_leaves_for_others(&instances) {
            plan_app(wanted, &instances, &drained, &mut room, &mut plan);
        }
    }
    for instance in unwanted {
        let why = "the app was removed from here".to_owned();
        plan.actions.push(Action::Drain { instance: instance.id.clone(), why });
    }
    plan
}

/// Plans the next steps of one app, of which these are the instances.
fn plan_app<'a>(
    wanted: &WantedApp,
    instances: &[&'a PlacedInstance],
    drained: &moves::Drained<'_>,
    room: &mut choose::Room<'a>,
    plan: &mut Plan,
) {
    let step = replace::step(wanted, instances, drained);
    let leaves = |one: &PlacedInstance| {
        step.drain
            .iter()
            .any(|it| matches!(it, Action::Drain { instance, .. } if *instance == one.id))
    };
    instances.iter().filter(|one| leaves(one)).for_each(|one| room.leave(one));
    plan.actions.extend(step.drain);
    plan.staying.extend(step.staying);
    room.place((wanted, &wanted.main, false), (step.start, step.make_room), plan);
    room.place_instead((wanted, &wanted.main), &step.moves, plan);
    if let Some(canary) = &wanted.canary {
        room.place((wanted, canary, false), (step.start_canaries, 0), plan);
        room.place_instead((wanted, canary), &step.canary_moves, plan);
    }
    if let Some(command) = wanted.command.as_ref().filter(|_| step.start_command) {
        room.place((wanted, command, true), (1, wanted.make_room), plan);
    }
}

#[cfg(test)]
mod tests;
