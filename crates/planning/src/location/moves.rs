//! How instances leave a node that is drained: each once another one takes its place.
//!
//! Which instance takes the place of which is written down with it, and not worked out from counts: an
//! instance that was unhealthy before the drain began must neither hold it up nor pass for a
//! replacement.

use std::collections::BTreeSet;

use longshore_types::NodeName;

use super::replace::{count, drained};
use super::{Action, NodeState, PlacedInstance, Standing, Staying};

/// The nodes that should be empty.
pub(super) struct Drained<'a>(BTreeSet<&'a NodeName>);

impl<'a> Drained<'a> {
    pub(super) fn new(nodes: &'a [NodeState]) -> Self {
        let is_drained = |node: &&NodeState| node.cordon.as_ref().is_some_and(|c| c.drains);
        Self(nodes.iter().filter(is_drained).map(|node| &node.name).collect())
    }

    /// Whether an instance is on one of them.
    pub(super) fn has(&self, instance: &PlacedInstance) -> bool {
        self.0.contains(&instance.node)
    }

    /// Whether one that is should be elsewhere.
    fn moves(&self, instance: &PlacedInstance) -> bool {
        self.has(instance) && instance.pinned.is_none()
    }
}

/// The instances of one release that run and stay, as far as it has to do with drained nodes.
pub(super) struct Group<'a> {
    /// Those that stay where they are, replacements included.
    settled: Vec<&'a PlacedInstance>,
    /// Those whose node is drained, with what takes their place, if anything does yet.
    moving: Vec<(&'a PlacedInstance, Option<&'a PlacedInstance>)>,
    /// Those of `settled` whose node is drained.
    pinned: Vec<&'a PlacedInstance>,
}

impl<'a> Group<'a> {
    pub(super) fn new(instances: Vec<&'a PlacedInstance>, drained: &Drained<'_>) -> Self {
        let (moving, settled): (Vec<_>, Vec<_>) =
            instances.into_iter().partition(|instance| drained.moves(instance));
        let pinned = settled.iter().copied().filter(|one| drained.has(one)).collect();
        let successor = |old: &PlacedInstance| {
            settled.iter().copied().find(|other| other.replaces.as_ref() == Some(&old.id))
        };
        let moving = moving.into_iter().map(|old| (old, successor(old))).collect();
        Self { settled, moving, pinned }
    }

    /// How many instances these count for: one that moves and what takes its place are one.
    pub(super) fn places(&self) -> u32 {
        let n_pairs = count(self.moving.iter().filter(|(_, successor)| successor.is_some()));
        count(self.settled.iter()) + count(self.moving.iter()) - n_pairs
    }

    /// How many of them serve, pairs counted once.
    pub(super) fn ready(&self) -> u32 {
        let is_ready = |instance: &PlacedInstance| instance.standing == Standing::Ready;
        let settled = count(self.settled.iter().filter(|instance| is_ready(instance)));
        let both = |(old, new): &&(&PlacedInstance, Option<&PlacedInstance>)| {
            is_ready(old) && !new.is_some_and(is_ready)
        };
        settled + count(self.moving.iter().filter(both))
    }

    /// Whether one of them does not serve.
    pub(super) fn any_unready(&self) -> bool {
        let moving = self.moving.iter().map(|(old, _)| old);
        self.settled.iter().chain(moving).any(|instance| instance.standing != Standing::Ready)
    }

    /// Drains what moves and has a successor that is ready, or serves nobody itself; and of more than
    /// should run the worst: those on drained nodes first, and among equals the youngest.
    pub(super) fn leave(&mut self, wanted: u32, drain: &mut Vec<Action>) {
        self.moving.retain(|(old, successor)| {
            let Some(successor) = successor else { return true };
            let stays = old.standing == Standing::Ready && successor.standing != Standing::Ready;
            if !stays {
                let why = format!("its node is drained; {} took its place", successor.id);
                drain.push(drained(old, why));
            }
            stays
        });
        let surplus = self.places().saturating_sub(wanted) as usize;
        let mut alone: Vec<_> = self.settled.iter().filter(|one| !self.is_successor(one)).collect();
        alone.sort_by_key(|one| (one.standing, std::cmp::Reverse(one.created_at)));
        let moving = self.moving.iter().filter(|(_, successor)| successor.is_none());
        let (mut going, rest): (Vec<_>, Vec<_>) =
            alone.into_iter().copied().partition(|one| one.standing != Standing::Ready);
        going.extend(moving.map(|(old, _)| *old));
        going.extend(rest);
        // Pairs last: both go, or neither.
        let pairs = self.moving.iter().filter_map(|(old, new)| Some([*old, (*new)?]));
        let singles = going.into_iter().map(|one| vec![one]);
        let leaving: Vec<_> = singles.chain(pairs.map(Vec::from)).take(surplus).flatten().collect();
        for one in &leaving {
            drain.push(drained(one, format!("{wanted} instances are wanted")));
        }
        let leaves = |one: &PlacedInstance| leaving.iter().any(|other| other.id == one.id);
        self.settled.retain(|one| !leaves(one));
        self.moving.retain(|(old, _)| !leaves(old));
        self.pinned.retain(|one| !leaves(one));
    }

    fn is_successor(&self, instance: &PlacedInstance) -> bool {
        self.moving.iter().any(|(_, new)| new.is_some_and(|new| new.id == instance.id))
    }

    /// Those for which another instance is to be started now: as many as may be under way at once and
    /// as there is room for in the budget. The others are told of in `staying`.
    pub(super) fn moves(
        &self,
        (is_settled, at_once, room): (bool, u32, u32),
        budget: u32,
        staying: &mut Vec<Staying>,
    ) -> Vec<&'a PlacedInstance> {
        for one in &self.pinned {
            let Some(pinned) = one.pinned else { continue };
            let (why, under_way) = (pinned.why().to_owned(), pinned.leaves());
            staying.push(Staying { instance: one.id.clone(), why, under_way });
        }
        let n_under_way = count(self.moving.iter().filter(|(_, new)| new.is_some()));
        let mut n_more = at_once.saturating_sub(n_under_way).min(room);
        let mut moves = Vec::new();
        for (old, successor) in &self.moving {
            let (under_way, why) = match successor {
                Some(new) => (true, format!("waits until {} on {} is healthy", new.id, new.node)),
                None if !is_settled => (true, "waits until all that should run does".to_owned()),
                None if n_more > 0 => {
                    n_more -= 1;
                    moves.push(*old);
                    continue;
                }
                None if room == 0 && n_under_way == 0 => (
                    false,
                    format!(
                        "no other can be started beside it: at most {budget} instances may run here"
                    ),
                ),
                None => (false, "waits until others have moved".to_owned()),
            };
            staying.push(Staying { instance: old.id.clone(), why, under_way });
        }
        moves
    }
}
