//! What is free of the GPUs of a location.
//!
//! Nodes whose GPUs are alike in model, memory and what is free of each are told together, and of each GPU not which
//! it is. So what a need of several on one node finds is known, and so is what is left once something was given.
//! Rejected: per model how much is free on how many GPUs of the whole location, which is less and does not
//! tell whether two of them are on one node.

use longshore_types::{GpuNeed, Placement, Priority};
use serde::{Deserialize, Serialize};

use super::constraints::node_refusal;
use super::{LocationState, NodeKind, WantedApp};
use crate::gpus::{FreeGpu, choose, lack, take};

/// GPUs of a node that are alike.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GpuCount {
    /// What each is, and what is free of it.
    pub gpu: FreeGpu,
    /// How many.
    pub count: u32,
}

/// Nodes with the same GPUs, of which the same is free.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GpuNodes {
    /// What each of them has.
    pub gpus: Vec<GpuCount>,
    /// How many nodes.
    pub n_nodes: u32,
}

/// The GPUs of nodes that are alike otherwise; nothing of nodes without any.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GpuSummary(Vec<GpuNodes>);

impl GpuSummary {
    /// Those of nodes with these.
    pub(super) fn of(nodes: impl Iterator<Item = Vec<FreeGpu>>) -> Self {
        let mut summary = Self::default();
        nodes.filter(|gpus| !gpus.is_empty()).for_each(|gpus| summary.add(gpus, 1));
        summary.0.sort_unstable();
        summary
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn add(&mut self, mut gpus: Vec<FreeGpu>, n_nodes: u32) {
        gpus.sort_unstable();
        let mut counts: Vec<GpuCount> = Vec::new();
        for gpu in gpus {
            match counts.last_mut().filter(|last| last.gpu == gpu) {
                Some(last) => last.count += 1,
                None => counts.push(GpuCount { gpu, count: 1 }),
            }
        }
        match self.0.iter_mut().find(|nodes| nodes.gpus == counts) {
            Some(nodes) => nodes.n_nodes += n_nodes,
            None => self.0.push(GpuNodes { gpus: counts, n_nodes }),
        }
    }

    /// How many instances with this need find a place, as far as `most`.
    pub(super) fn room_for(&self, need: &GpuNeed, most: u32) -> u32 {
        let mut n_found = 0_u32;
        for GpuNodes { gpus, n_nodes } in &self.0 {
            let (mut gpus, mut n_here) = (listed(gpus), 0);
            while n_found.saturating_add(n_nodes.saturating_mul(n_here)) < most {
                let Some(shares) = choose(need, &gpus) else { break };
                take(&mut gpus, &shares);
                n_here += 1;
            }
            n_found = n_found.saturating_add(n_nodes.saturating_mul(n_here));
        }
        n_found.min(most)
    }

    /// Takes room for one instance, where the least is left over.
    pub(super) fn take(&mut self, need: &GpuNeed) {
        let left = |(idx, nodes): (usize, &GpuNodes)| {
            let gpus = listed(&nodes.gpus);
            let shares = choose(need, &gpus)?;
            let given =
                shares.iter().filter_map(|share| Some((share, gpus.get(share.index as usize)?)));
            let left =
                given.map(|(share, gpu)| u128::from(gpu.free.0.saturating_sub(share.memory.0)));
            Some((left.sum::<u128>(), idx, gpus, shares))
        };
        let best =
            self.0.iter().enumerate().filter_map(left).min_by_key(|(left, idx, ..)| (*left, *idx));
        let Some((_, idx, mut gpus, shares)) = best else { return };
        take(&mut gpus, &shares);
        self.0[idx].n_nodes -= 1;
        self.0.retain(|nodes| nodes.n_nodes > 0);
        self.add(gpus, 1);
        self.0.sort_unstable();
    }

    /// Whether something may find a place on these that finds none on `before`.
    pub(super) fn is_more_than(&self, before: &Self) -> bool {
        let all = self.0.iter().flat_map(|nodes| &nodes.gpus).map(|counted| &counted.gpu);
        self != before
            && all.into_iter().any(|gpu| {
                let any = |other: &FreeGpu| other.model == gpu.model && other.free >= gpu.free;
                let whole =
                    |other: &FreeGpu| other.model == gpu.model && other.free == other.memory;
                let is_more = |suits: &dyn Fn(&FreeGpu) -> bool| {
                    let ((sum, most), (sum_before, most_before)) =
                        (self.count(suits), before.count(suits));
                    sum > sum_before || most > most_before
                };
                is_more(&any) || is_more(&whole)
            })
    }

    /// How many GPUs suit, and the most on one node.
    fn count(&self, suits: &dyn Fn(&FreeGpu) -> bool) -> (u64, u32) {
        self.0.iter().fold((0, 0), |(sum, most), GpuNodes { gpus, n_nodes }| {
            let suiting = gpus.iter().filter(|counted| suits(&counted.gpu));
            let here: u32 = suiting.map(|counted| counted.count).sum();
            (sum + u64::from(here) * u64::from(*n_nodes), most.max(here))
        })
    }
}

/// Each by itself.
fn listed(gpus: &[GpuCount]) -> Vec<FreeGpu> {
    let each = gpus.iter().flat_map(|one| std::iter::repeat_n(&one.gpu, one.count as usize));
    each.cloned().collect()
}

impl LocationState {
    /// Whether so many more instances of an app find their GPUs on nodes that it may be on.
    pub(super) fn has_gpus_for(&self, app: &WantedApp, n_more: u32) -> bool {
        let Some(need) = &app.gpus else { return true };
        let room = |gpus: &GpuSummary| gpus.room_for(need, n_more);
        self.open_to(&app.placement).map(|kind| room(&kind.gpus)).fold(0, u32::saturating_add)
            >= n_more
    }

    /// The same without all up to a priority.
    pub(super) fn would_have_gpus_for(
        &self,
        app: &WantedApp,
        up_to: Option<Priority>,
        n_more: u32,
    ) -> bool {
        let Some(need) = &app.gpus else { return true };
        let kinds = self.open_to(&app.placement);
        let rooms = kinds.map(|kind| kind.freed_gpus(up_to).room_for(need, n_more));
        rooms.fold(0, u32::saturating_add) >= n_more
    }

    /// Whether none of its nodes that an app may be on would have the GPUs that it needs if nobody else were there.
    /// Nobody knows before each node was heard.
    pub(super) fn has_no_such(&self, placement: &Placement, gpus: Option<&GpuNeed>) -> bool {
        let Some(need) = gpus.filter(|_| !self.unheard) else { return false };
        let may_be_on = |kind: &&NodeKind| node_refusal(placement, &kind.traits).is_none();
        let nodes = self.kinds.iter().filter(may_be_on).flat_map(|kind| &kind.gpus.0);
        let empty = |nodes: &GpuNodes| {
            let each = listed(&nodes.gpus).into_iter();
            each.map(|gpu| FreeGpu { free: gpu.memory, ..gpu }).collect::<Vec<_>>()
        };
        !nodes.map(empty).any(|gpus| choose(need, &gpus).is_some())
    }

    /// What it lacks of GPUs, when so many were given already that are not taken yet.
    pub(super) fn gpu_lack(&self, placement: &Placement, need: &GpuNeed, n_given: u32) -> String {
        let kinds = self.open_to(placement);
        let nodes = kinds.flat_map(|kind| &kind.gpus.0).map(|nodes| listed(&nodes.gpus));
        let nodes: Vec<_> = nodes.collect();
        match nodes.iter().any(|gpus| choose(need, gpus).is_some()) {
            true => format!("needs {need} free, and has that for {n_given} that it is given"),
            false => lack(need, nodes.iter().map(Vec::as_slice)),
        }
    }
}
