//! Which GPUs of a node an instance gets.
//!
//! Those of which the least stays free that nobody needs, then those of the lowest index: so what is whole stays
//! whole for what needs it. Of several all are of one model, since a program that spreads over GPUs of two kinds
//! waits for the slower. Both planners choose by this, the one for nodes and the other for what it knows of them.

use std::collections::BTreeMap;

use longshore_types::{ByteCount, Gpu, GpuModel, GpuNeed, GpuShare, GpuShares, NodeGpu};
use serde::{Deserialize, Serialize};

/// A GPU with what is free of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FreeGpu {
    /// Which it is.
    pub model: GpuModel,
    /// Its memory.
    pub memory: ByteCount,
    /// What is free of that.
    pub free: ByteCount,
}

impl FreeGpu {
    /// What an instance with this need would be given of it, where it has that.
    fn given(&self, need: &GpuNeed) -> Option<ByteCount> {
        let given = need.memory.unwrap_or(self.memory);
        (need.takes(&self.model) && self.free >= given).then_some(given)
    }
}

/// The GPUs of a node, with what is free of each while so much is held.
pub fn free_gpus(gpus: &[Gpu], held: &GpuShares) -> Vec<FreeGpu> {
    let free = |(index, gpu): (u32, &Gpu)| FreeGpu {
        model: gpu.model.clone(),
        memory: gpu.memory,
        free: ByteCount(gpu.memory.0.saturating_sub(held.of(index).0)),
    };
    (0..).zip(gpus).map(free).collect()
}

/// The same of those that a location reports, without some of what is promised.
pub(crate) fn freed_gpus(
    gpus: &[NodeGpu],
    gone: impl Fn(u32, &NodeGpu) -> ByteCount,
) -> Vec<FreeGpu> {
    let free = |(index, gpu): (u32, &NodeGpu)| {
        let promised = gpu.promised.0.saturating_sub(gone(index, gpu).0);
        let free = ByteCount(gpu.memory.0.saturating_sub(promised));
        FreeGpu { model: gpu.model.clone(), memory: gpu.memory, free }
    };
    (0..).zip(gpus).map(free).collect()
}

/// What is best given of these to an instance that needs so much; nothing where it finds no place.
pub fn choose(need: &GpuNeed, gpus: &[FreeGpu]) -> Option<GpuShares> {
    let mut by_model: BTreeMap<&GpuModel, Vec<(ByteCount, ByteCount, GpuShare)>> = BTreeMap::new();
    for (index, gpu) in (0..).zip(gpus) {
        if let Some(memory) = gpu.given(need) {
            let left = ByteCount(gpu.free.0 - memory.0);
            let share = GpuShare { index, memory };
            by_model.entry(&gpu.model).or_default().push((left, gpu.memory, share));
        }
    }
    let count = need.count as usize;
    let fitting = by_model.into_values().filter(|fitting| fitting.len() >= count);
    let best = fitting.map(|mut fitting| {
        fitting.sort_by_key(|(left, memory, share)| (*left, *memory, share.index));
        fitting.truncate(count);
        fitting
    });
    let cost = |chosen: &Vec<(ByteCount, ByteCount, GpuShare)>| {
        let sum = |of: fn(&(ByteCount, ByteCount, GpuShare)) -> ByteCount| {
            chosen.iter().map(|one| u128::from(of(one).0)).sum::<u128>()
        };
        (sum(|one| one.0), sum(|one| one.1), chosen.first().map(|one| one.2.index))
    };
    best.min_by_key(cost).map(|chosen| chosen.into_iter().map(|(.., share)| share).collect())
}

/// Takes what was chosen.
pub(crate) fn take(gpus: &mut [FreeGpu], shares: &GpuShares) {
    for (index, gpu) in (0..).zip(gpus) {
        gpu.free = ByteCount(gpu.free.0.saturating_sub(shares.of(index).0));
    }
}

/// What nodes with these GPUs lack for such a need, in a phrase; `on_one` are those of each node.
pub(crate) fn lack<'a>(need: &GpuNeed, on_one: impl Iterator<Item = &'a [FreeGpu]>) -> String {
    let (mut any, mut largest, mut most) = (false, None, 0);
    let mut other: Option<&GpuModel> = None;
    for gpus in on_one {
        other = other.or(gpus.iter().map(|gpu| &gpu.model).find(|model| !need.takes(model)));
        let mut by_model: BTreeMap<&GpuModel, usize> = BTreeMap::new();
        for gpu in gpus.iter().filter(|gpu| need.takes(&gpu.model)) {
            any = true;
            largest = largest.max(Some(gpu.free));
            *by_model.entry(&gpu.model).or_default() += usize::from(gpu.given(need).is_some());
        }
        most = most.max(by_model.into_values().max().unwrap_or(0));
    }
    let has = match (any, other, largest, need.memory) {
        (false, None, ..) => "and there is no GPU".to_owned(),
        (false, Some(model), ..) => format!("and there is only {model}"),
        (true, _, Some(largest), Some(_)) if most == 0 => format!("the largest free is {largest}"),
        (true, ..) => match most {
            0 => "none is".to_owned(),
            1 => "one on a node is".to_owned(),
            _ => format!("{most} on a node are"),
        },
    };
    format!("needs {need} free, {has}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpus(all: &[(&str, u64, u64)]) -> Vec<FreeGpu> {
        let gpu = |(model, memory, free): &(&str, u64, u64)| FreeGpu {
            model: model.parse().unwrap(),
            memory: ByteCount::gib(*memory),
            free: ByteCount::gib(*free),
        };
        all.iter().map(gpu).collect()
    }

    fn need(count: u32, gib: u64, models: &[&str]) -> GpuNeed {
        let memory = (gib > 0).then(|| ByteCount::gib(gib));
        GpuNeed {
            count,
            memory,
            models: models.iter().map(|model| model.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn the_least_is_left_over_and_what_is_whole_stays_whole() {
        let node = gpus(&[
            ("h100", 80, 80),
            ("h100", 80, 30),
            ("h100", 80, 25),
            ("l4", 24, 24),
            ("l4", 24, 24),
        ]);
        for (need, expected) in [
            (need(1, 20, &["h100"]), Some("2")),
            (need(1, 26, &["h100"]), Some("1")),
            (need(1, 31, &["h100"]), Some("0")),
            (need(1, 81, &[]), None),
            // Any model will do: the one that fits best.
            (need(1, 24, &[]), Some("3")),
            (need(1, 0, &[]), Some("3")),
            (need(1, 0, &["h100"]), Some("0")),
            (need(2, 0, &["h100"]), None),
            (need(2, 20, &["h100"]), Some("1,2")),
            (need(3, 20, &[]), Some("0,1,2")),
            // Never of two models.
            (need(4, 20, &[]), None),
            (need(2, 0, &[]), Some("3,4")),
            (need(1, 1, &["a100"]), None),
        ] {
            let chosen = choose(&need, &node).map(|shares| shares.to_string());
            assert_eq!(chosen.as_deref(), expected, "{need}");
        }
    }

    #[test]
    fn what_lacks_is_told_with_what_there_is() {
        let told =
            |need: GpuNeed, nodes: &[Vec<FreeGpu>]| lack(&need, nodes.iter().map(Vec::as_slice));
        let used = gpus(&[("h100", 80, 8), ("h100", 80, 0)]);
        assert_eq!(
            told(need(1, 20, &["h100"]), &[used.clone(), vec![]]),
            "needs 1 GPU of h100 with 20 GiB free, the largest free is 8 GiB"
        );
        assert_eq!(
            told(need(1, 0, &[]), &[vec![], used.clone()]),
            "needs 1 whole GPU free, none is"
        );
        assert_eq!(
            told(need(2, 8, &[]), &[used.clone(), used]),
            "needs 2 GPUs with 8 GiB each free, one on a node is"
        );
        let l4 = gpus(&[("l4", 24, 24)]);
        assert_eq!(
            told(need(1, 0, &["h100"]), &[l4]),
            "needs 1 whole GPU of h100 free, and there is only l4"
        );
        assert_eq!(told(need(1, 0, &[]), &[vec![]]), "needs 1 whole GPU free, and there is no GPU");
    }

    #[test]
    fn a_gpu_that_is_gone_holds_up_nobody() {
        let held: GpuShares = [(0, 30), (5, 1)]
            .map(|(index, gib)| GpuShare { index, memory: ByteCount::gib(gib) })
            .into_iter()
            .collect();
        let gpu = Gpu { model: "l4".parse().unwrap(), memory: ByteCount::gib(24) };
        let free = free_gpus(&[gpu.clone(), gpu], &held);
        assert_eq!(free, gpus(&[("l4", 24, 0), ("l4", 24, 24)]));
    }
}
