//! What a location has now that it lacked before.
//!
//! What waits is looked at again when a location has more of what it was refused for there, and not at each
//! report: with hundreds of locations something is reported all the time, and nearly all of it is of no use to
//! what waits.

use std::collections::{BTreeMap, BTreeSet};

use longshore_types::{Capacity, Decision, Lack, LocationName};

use super::{LocationState, NodeKind};

/// What each location has more of.
pub type Supplies = BTreeMap<LocationName, BTreeSet<Lack>>;

/// What the nodes of a location have more of than before, by what each could be refused for.
pub fn more_of_nodes(before: &[NodeKind], after: &[NodeKind]) -> BTreeSet<Lack> {
    let mut supply = BTreeSet::new();
    for kind in after.iter().filter(|kind| kind.open) {
        let same = |old: &&NodeKind| {
            old.open && (&old.traits, &old.reached) == (&kind.traits, &kind.reached)
        };
        let same = before.iter().find(same);
        let Some(old) = same else {
            supply.extend([Lack::Label, Lack::Jurisdiction, Lack::Runtime, Lack::Spread]);
            supply.insert(Lack::Reach);
            supply.extend([
                Lack::Cordon,
                Lack::Report,
                Lack::Cpu,
                Lack::Memory,
                Lack::Disk,
                Lack::Gpu,
            ]);
            continue;
        };
        if kind.n_nodes > old.n_nodes {
            supply.extend([Lack::Runtime, Lack::Spread, Lack::Cordon, Lack::Report, Lack::Gpu]);
        }
        supply.extend(more_of(old.free, kind.free));
        supply.extend(more_of(old.largest, kind.largest));
        supply.extend(kind.gpus.is_more_than(&old.gpus).then_some(Lack::Gpu));
        let is_more_of_gpus = |up_to| kind.freed_gpus(up_to).is_more_than(old.freed_gpus(up_to));
        for up_to in kind.freed.iter().map(|freed| freed.up_to) {
            let ((old, old_largest), (new, new_largest)) = (old.freed(up_to), kind.freed(up_to));
            supply.extend(more_of(old, new).chain(more_of(old_largest, new_largest)));
            supply.extend(is_more_of_gpus(up_to).then_some(Lack::Gpu));
        }
    }
    supply
}

fn more_of(before: Capacity, after: Capacity) -> impl Iterator<Item = Lack> {
    let more = [
        (after.cpu > before.cpu, Lack::Cpu),
        (after.memory > before.memory, Lack::Memory),
        (after.disk > before.disk, Lack::Disk),
    ];
    more.into_iter().filter(|(is_more, _)| *is_more).map(|(_, lack)| lack)
}

/// What each location has more of than in the states before.
pub fn supplies(before: &[LocationState], after: &[LocationState]) -> Supplies {
    let each = after.iter().map(|state| {
        let old = before.iter().find(|old| old.name == state.name);
        (state.name.clone(), supply(old, state))
    });
    each.filter(|(_, supply)| !supply.is_empty()).collect()
}

fn supply(before: Option<&LocationState>, after: &LocationState) -> BTreeSet<Lack> {
    let Some(before) = before else { return Lack::ALL.into_iter().collect() };
    let mut supply = more_of_nodes(&before.kinds, &after.kinds);
    supply.extend(more_of(before.free, after.free));
    for up_to in after.without.iter().map(|without| Some(without.up_to)) {
        supply.extend(more_of(before.free_without(up_to), after.free_without(up_to)));
    }
    if after.reachable && !before.reachable {
        supply.insert(Lack::Report);
    }
    if after.cordon.is_none() && before.cordon.is_some() {
        supply.insert(Lack::Cordon);
    }
    if (&after.traits, after.unheard) != (&before.traits, before.unheard) {
        supply.extend([Lack::Deny, Lack::Allow, Lack::Jurisdiction, Lack::Label]);
    }
    supply
}

/// What stands in the way of something that waits: what each location lacks for it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Blocked(BTreeMap<LocationName, Lack>);

impl Blocked {
    /// By the decision that found no place.
    pub fn new(decision: &Decision) -> Self {
        let each = decision.candidates.iter();
        Self(each.filter_map(|one| Some((one.name.parse().ok()?, one.lack?))).collect())
    }

    /// Whether a location that was refused has more of what it lacked, or there is another location.
    pub fn is_woken(&self, supplies: &Supplies) -> bool {
        supplies
            .iter()
            .any(|(location, supply)| self.0.get(location).is_none_or(|lack| supply.contains(lack)))
    }
}
