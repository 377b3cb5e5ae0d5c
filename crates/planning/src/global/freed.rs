//! What would be free at a location if what matters less left.
//!
//! The global scheduler knows no nodes and no victims. Of each kind of node it knows what would be free without what
//! has at most some priority: together, and the most on one. That tells where something would fit and what it
//! would cost about; who leaves the location finds out.

use std::collections::BTreeSet;

use longshore_types::{
    ByteCount, Capacity, GpuNeed, NodeGpu, Placement, Priority, Reached, Timestamp, Traits,
    Yielding, unreached,
};
use serde::{Deserialize, Serialize};

use super::constraints::node_refusal;
use super::{GpuSummary, LocationState, NodeKind};
use crate::gpus::{FreeGpu, freed_gpus};

/// What nodes that are alike would have free without some of what they have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freed {
    /// Without all up to this priority that may be made to leave; with none, without what leaves already.
    pub up_to: Option<Priority>,
    /// How many instances of just this priority there are; nothing is said of what leaves already.
    pub instances: u32,
    /// What would be free on them together.
    pub together: Capacity,
    /// The most that would be free on one of them, each resource by itself.
    pub largest: Capacity,
    /// What would be free of their GPUs.
    #[serde(default, skip_serializing_if = "GpuSummary::is_empty")]
    pub gpus: GpuSummary,
}

/// What would not be allotted at a location without some of the apps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Without {
    /// Without all up to this priority that may be made to leave.
    pub up_to: Priority,
    /// What would be free.
    pub free: Capacity,
}

/// A node as its location reports of it.
#[derive(Debug, Clone, Copy)]
pub struct ReportedNode<'a> {
    /// What is said of it.
    pub traits: &'a Traits,
    /// Whether it takes something new.
    pub open: bool,
    /// What it has in all.
    pub capacity: Capacity,
    /// What its instances have been promised.
    pub promised: Capacity,
    /// What of that those have that leave.
    pub leaving: Capacity,
    /// What of the rest may be made to leave.
    pub yielding: &'a [Yielding],
    /// Its GPUs.
    pub gpus: &'a [NodeGpu],
    /// What its last tries to reach addresses came to.
    pub reached: &'a [Reached],
}

impl ReportedNode<'_> {
    fn free(&self) -> Capacity {
        self.capacity.minus(self.promised)
    }

    fn freed(&self, up_to: Option<Priority>) -> Capacity {
        let gone = self.yielding.iter().filter(|one| Some(one.priority) <= up_to);
        let gone = gone.fold(self.leaving, |sum, one| sum.plus(one.promised));
        self.capacity.minus(self.promised.minus(gone))
    }

    fn free_gpus(&self) -> Vec<FreeGpu> {
        freed_gpus(self.gpus, |_, _| ByteCount(0))
    }

    fn gpus_freed(&self, up_to: Option<Priority>) -> Vec<FreeGpu> {
        let yielding = || self.yielding.iter().filter(|one| Some(one.priority) <= up_to);
        freed_gpus(self.gpus, |index, gpu| {
            let gone = yielding().map(|one| one.gpus.of(index).0);
            ByteCount(gone.fold(gpu.leaving.0, u64::saturating_add))
        })
    }
}

/// The nodes of a location, those that are alike together.
pub fn kinds<'a>(nodes: impl IntoIterator<Item = ReportedNode<'a>>) -> Vec<NodeKind> {
    let mut alike: Vec<Vec<ReportedNode<'_>>> = Vec::new();
    for node in nodes {
        match alike.iter_mut().find(|kind| is_alike(&kind[0], &node)) {
            Some(kind) => kind.push(node),
            None => alike.push(vec![node]),
        }
    }
    alike.iter().map(|nodes| kind(nodes)).collect()
}

/// Whether what may be on one of them may be on the other.
fn is_alike(one: &ReportedNode<'_>, other: &ReportedNode<'_>) -> bool {
    let same = |(a, b): (&Reached, &Reached)| (&a.address, &a.error) == (&b.address, &b.error);
    (one.traits, one.open) == (other.traits, other.open)
        && one.reached.len() == other.reached.len()
        && one.reached.iter().zip(other.reached).all(same)
}

fn kind(nodes: &[ReportedNode<'_>]) -> NodeKind {
    let sum_and_most = |of: &dyn Fn(&ReportedNode<'_>) -> Capacity| {
        nodes.iter().map(of).fold(Default::default(), |(sum, most), free| {
            (Capacity::plus(sum, free), free.most(most))
        })
    };
    let (free, largest) = sum_and_most(&|node| node.free());
    let any_leaves = nodes.iter().any(|node| node.leaving != Capacity::default());
    let yielding = || nodes.iter().flat_map(|node| node.yielding);
    let mut levels: BTreeSet<_> = yielding().map(|one| Some(one.priority)).collect();
    levels.extend(any_leaves.then_some(None));
    let freed = levels.into_iter().map(|up_to| {
        let (together, largest) = sum_and_most(&|node| node.freed(up_to));
        let of_it = yielding().filter(|one| Some(one.priority) == up_to);
        let gpus = GpuSummary::of(nodes.iter().map(|node| node.gpus_freed(up_to)));
        Freed { up_to, instances: of_it.map(|one| one.instances).sum(), together, largest, gpus }
    });
    NodeKind {
        traits: nodes[0].traits.clone(),
        reached: nodes[0]
            .reached
            .iter()
            .map(|one| Reached { at: Timestamp(0), ..one.clone() })
            .collect(),
        open: nodes[0].open,
        n_nodes: u32::try_from(nodes.len()).unwrap_or(u32::MAX),
        free,
        largest,
        gpus: GpuSummary::of(nodes.iter().map(ReportedNode::free_gpus)),
        freed: freed.collect(),
    }
}

impl NodeKind {
    /// Whether an app may have something new on them.
    pub(super) fn is_open_to(&self, placement: &Placement) -> bool {
        self.open
            && node_refusal(placement, &self.traits).is_none()
            && unreached(&placement.reach, &self.reached).is_none()
    }

    /// What would be free without all up to a priority: together, and the most on one.
    pub(super) fn freed(&self, up_to: Option<Priority>) -> (Capacity, Capacity) {
        let found = self.freed.iter().rfind(|freed| freed.up_to <= up_to);
        found.map_or((self.free, self.largest), |freed| (freed.together, freed.largest))
    }

    /// What would be free of their GPUs without all up to a priority.
    pub(super) fn freed_gpus(&self, up_to: Option<Priority>) -> &GpuSummary {
        let found = self.freed.iter().rfind(|freed| freed.up_to <= up_to);
        found.map_or(&self.gpus, |freed| &freed.gpus)
    }

    /// Takes room for something of this priority; of none when it never leaves for anything.
    pub(super) fn take(
        &mut self,
        (each, gpus): (Capacity, Option<&GpuNeed>),
        yields: Option<Priority>,
    ) {
        let of_gpus = |summary: &mut GpuSummary| {
            if let Some(need) = gpus {
                summary.take(need);
            }
        };
        of_gpus(&mut self.gpus);
        self.free = self.free.minus(each);
        self.largest = self.largest.least(self.free);
        let stays = |freed: &&mut Freed| yields.is_none() || freed.up_to < yields;
        for freed in self.freed.iter_mut().filter(stays) {
            freed.together = freed.together.minus(each);
            freed.largest = freed.largest.least(freed.together);
            of_gpus(&mut freed.gpus);
        }
    }
}

impl LocationState {
    /// What would not be allotted without all up to a priority.
    pub(super) fn free_without(&self, up_to: Option<Priority>) -> Capacity {
        let found = self.without.iter().rfind(|without| Some(without.up_to) <= up_to);
        found.map_or(self.free, |without| without.free)
    }

    /// What would be free for instances of an app without all up to a priority: together, and the most on one node.
    pub(super) fn freed_for(
        &self,
        placement: &Placement,
        up_to: Option<Priority>,
    ) -> (Capacity, Capacity) {
        let kinds = self.open_to(placement).map(|kind| kind.freed(up_to));
        let (together, largest) = kinds.fold(Default::default(), |(sum, most), (free, largest)| {
            (Capacity::plus(sum, free), largest.most(most))
        });
        (self.free_without(up_to).least(together), largest)
    }

    /// Those of its nodes that an app may have something new on.
    pub(super) fn open_to(&self, placement: &Placement) -> impl Iterator<Item = &NodeKind> {
        self.kinds.iter().filter(|kind| kind.is_open_to(placement))
    }
}
