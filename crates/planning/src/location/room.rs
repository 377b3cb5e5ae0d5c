//! Who leaves for what matters more.
//!
//! An instance that no node has room for gets one where room comes by itself, because something leaves there
//! already; else one where as little as possible has to: what has the lowest priority, then the fewest, then the
//! youngest. What leaves is drained like anything else, and the room is kept until the instance is there: what
//! is placed later has only what is left of it. So a plan that is made anew in the meantime asks nobody more to
//! leave.
//!
//! Whether others may be made to leave at all the global scheduler says, since it alone knows of room elsewhere.
//! Rejected: to place the instance at once beside those that still leave, which promises a node more than it has.

use std::cmp::Reverse;

use longshore_types::{NodeName, Priority};

use super::choose::{NodeRoom, Room};
use super::{Action, Goal, PlacedInstance, WantedApp};

/// Where room is made for one instance.
pub(super) struct MadeRoom<'a> {
    /// The node.
    pub node: NodeName,
    /// Those that have to leave for it now; none where enough leaves already.
    pub victims: Vec<&'a PlacedInstance>,
}

impl MadeRoom<'_> {
    /// What the instance waits for.
    pub(super) fn waits_for(&self) -> String {
        let node = &self.node;
        let each = self.victims.iter().map(|victim| match victim.yields {
            Some(priority) => format!("{} (priority {priority})", victim.id),
            None => victim.id.to_string(),
        });
        match self.victims.as_slice() {
            [] => format!("waits on {node} until what leaves there has left"),
            [_] => format!("waits on {node} until {} has left", each.collect::<String>()),
            _ => {
                let all = each.collect::<Vec<_>>().join(", ");
                format!("waits on {node} until these have left: {all}")
            }
        }
    }

    /// Drains those that have to leave.
    pub(super) fn drain(&self, wanted: &WantedApp, goal: &Goal) -> impl Iterator<Item = Action> {
        let why = format!("makes room for {} (priority {})", wanted.app, goal.priority);
        let ids = self.victims.iter().map(|victim| victim.id.clone()).collect::<Vec<_>>();
        ids.into_iter().map(move |instance| Action::Drain { instance, why: why.clone() })
    }
}

impl<'a> Room<'a> {
    /// Finds and keeps room for one instance that no node has room for now; nothing when there is none even
    /// without all that may be made to leave.
    pub(super) fn make_room(
        &mut self,
        app: &(String, String),
        goal: &Goal,
    ) -> Option<MadeRoom<'a>> {
        let open =
            || self.nodes.iter().enumerate().filter(|(_, node)| node.against(app, goal).is_none());
        let by_itself = open()
            .filter(|(_, node)| node.soon_holds(goal, &[]))
            .max_by_key(|(idx, node)| (node.soon().memory, Reverse(*idx)));
        let (idx, victims) = match by_itself {
            Some((idx, _)) => (idx, Vec::new()),
            None => {
                let limit = goal.priority.displaces()?;
                let choices =
                    open().filter_map(|(idx, node)| Some((idx, victims(node, goal, limit)?)));
                choices.min_by_key(|(idx, victims)| (cost(victims), *idx))?
            }
        };
        let node = self.nodes.get_mut(idx)?;
        for victim in &victims {
            node.leaves(victim);
        }
        node.keep_for(app, goal);
        let node = node.node.name.clone();
        self.victims.extend(victims.iter().map(|victim| &victim.id));
        Some(MadeRoom { node, victims })
    }
}

/// How much it costs when these leave: the less the better.
fn cost(victims: &[&PlacedInstance]) -> (Option<Priority>, usize, Reverse<u64>) {
    let highest = victims.iter().filter_map(|victim| victim.yields).max();
    let oldest = victims.iter().map(|victim| victim.created_at.0).min().unwrap_or(0);
    (highest, victims.len(), Reverse(oldest))
}

/// Those that have to leave a node so that an instance fits there, of at most this priority; nothing when it
/// would not fit without all of them.
fn victims<'a>(
    node: &NodeRoom<'a>,
    goal: &Goal,
    limit: Priority,
) -> Option<Vec<&'a PlacedInstance>> {
    let mut all: Vec<_> = node
        .yielding
        .iter()
        .copied()
        .filter(|one| one.yields.is_some_and(|own| own <= limit))
        .collect();
    // The lowest first, of those what serves nobody, then the youngest.
    all.sort_by_key(|one| (one.yields, one.standing, Reverse(one.created_at), &one.id));
    let without = |gone: &[&PlacedInstance]| node.soon_holds(goal, gone);
    // As low as possible, whatever their number.
    let highest = (1..=all.len()).find(|n| without(&all[..*n]))?;
    let level = all[highest - 1].yields;
    all.retain(|one| one.yields <= level);
    // One alone that is enough has to be of the highest of these priorities, or that would not be it.
    if let Some(one) = all.iter().find(|one| without(&[one])) {
        return Some(vec![one]);
    }
    let mut chosen = all[..highest].to_vec();
    // What is not needed after all stays, first what matters most.
    for idx in (0..chosen.len()).rev() {
        let mut fewer = chosen.clone();
        fewer.remove(idx);
        if without(&fewer) {
            chosen = fewer;
        }
    }
    Some(chosen)
}
