//! What locations found no node for.
//!
//! A refusal is remembered with the numbers that came with it: what was refused goes elsewhere, the location
//! has nothing to refuse any more, and would be asked again at once for the same. It is forgotten when the
//! location has more of what it lacked, and when the app has changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use longshore_api::links::{LocationReport, Shortfall};
use longshore_planning::global::{NodeKind, more_of_nodes};
use longshore_types::{Generation, Lack, NodeName, RoomMaking, RuntimeOffer};

use crate::catalog::AppKey;
use crate::scheduler::kinds;

/// The refusals of a location by app.
pub type Refusals = BTreeMap<AppKey, Refusal>;

/// What a location found no node for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// How many instances: none when it was in an earlier report.
    pub missing: u32,
    /// Which set of allotments it carried out.
    pub acknowledged: Generation,
    /// Why, in a phrase.
    pub why: String,
    /// What its nodes lacked.
    lacks: BTreeSet<Lack>,
    /// True when there is no room without all either that could be made to leave.
    in_vain: bool,
    /// What they had then.
    had: Arc<Had>,
}

/// What the nodes of a location have, as far as an instance could be refused for it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Had {
    kinds: Vec<NodeKind>,
    runtimes: Vec<(NodeName, Vec<RuntimeOffer>)>,
}

impl Had {
    fn of(report: &LocationReport) -> Self {
        let runtimes = report.nodes.iter().map(|node| (node.node.clone(), node.runtimes.clone()));
        Self { kinds: kinds(report), runtimes: runtimes.collect() }
    }

    fn supplies(&self, after: &Self) -> BTreeSet<Lack> {
        let mut supply = more_of_nodes(&self.kinds, &after.kinds);
        if self.runtimes != after.runtimes {
            supply.insert(Lack::Runtime);
        }
        supply
    }
}

impl Refusal {
    /// What is said to lack, of all that does.
    pub fn lack(&self) -> Lack {
        // Most of all what a scheduler could know no better.
        let is_other = |lack: &&Lack| !matches!(lack, Lack::Cordon | Lack::Report);
        self.lacks.iter().find(is_other).or(self.lacks.first()).copied().unwrap_or(Lack::Unknown)
    }

    /// Whether there might be room once others were made to leave.
    pub fn may_make_room(&self) -> bool {
        !self.in_vain && self.lacks.iter().any(|lack| lack.is_room())
    }

    fn new(shortfall: &Shortfall, report: &LocationReport, had: &Arc<Had>) -> Self {
        let Shortfall { missing, decision, .. } = shortfall;
        Self {
            missing: *missing,
            acknowledged: report.acknowledged,
            why: decision.summary(),
            in_vain: shortfall.room == RoomMaking::InVain,
            lacks: decision.candidates.iter().filter_map(|one| one.lack).collect(),
            had: Arc::clone(had),
        }
    }

    /// Whether it is so still, where a later report does not repeat it.
    fn holds(&self, now: &Had) -> bool {
        let supplies = self.had.supplies(now);
        match self.lacks.is_empty() {
            true => supplies.is_empty(),
            false => self.lacks.is_disjoint(&supplies),
        }
    }
}

/// Whether two refusals say the same to a planner.
pub fn are_same(one: Option<&Refusal>, other: Option<&Refusal>) -> bool {
    let said = |refusal: &Refusal| {
        (refusal.missing, refusal.why.clone(), refusal.lacks.clone(), refusal.in_vain)
    };
    one.map(said) == other.map(said)
}

/// The refusals after a report, with those before it.
pub fn after(before: Option<&Refusals>, report: &LocationReport) -> Refusals {
    let now = Arc::new(Had::of(report));
    let old = before.into_iter().flatten().filter(|(_, refusal)| refusal.holds(&now));
    let mut after: Refusals = old
        .map(|(key, refusal)| (key.clone(), Refusal { missing: 0, ..refusal.clone() }))
        .collect();
    // What has room that others still have to leave is not refused.
    let refused = report.shortfalls.iter().filter(|one| one.room != RoomMaking::UnderWay);
    for shortfall in refused {
        let key = (shortfall.project.clone(), shortfall.app.clone());
        after.insert(key, Refusal::new(shortfall, report, &now));
    }
    after
}

#[cfg(test)]
mod tests {
    use longshore_types::{ByteCount, Candidate, Capacity, Decision, RuntimeName, Timestamp};

    use super::*;

    fn report(free_mib: u64, shortfalls: Vec<Shortfall>) -> LocationReport {
        let document = serde_json::json!({
            "location": "ams", "gate": null, "acknowledged": 7, "at": 1, "instances": [],
            "shortfalls": [], "nodes": [{
                "node": "n1", "reachable": true, "reported_at": 1, "version": "1",
                "capacity": Capacity { memory: ByteCount::mib(free_mib), ..Capacity::default() },
                "promised": Capacity::default(),
            }],
        });
        let report: LocationReport = serde_json::from_value(document).unwrap();
        LocationReport { shortfalls, ..report }
    }

    fn shortfall(lack: Lack) -> Shortfall {
        let why = "refused: it lacks that".to_owned();
        let candidates =
            vec![Candidate { name: "n1".to_owned(), score: None, why, lack: Some(lack) }];
        let (at, why) = (Timestamp(1), "no node will do".to_owned());
        let decision = Decision { at, chosen: None, why, candidates };
        let (project, app) = (Default::default(), "web".parse().unwrap());
        Shortfall { project, app, missing: 2, decision, room: RoomMaking::None }
    }

    #[test]
    fn a_refusal_holds_until_there_is_more_of_what_lacked() {
        let key = (Default::default(), "web".parse().unwrap());
        let told = after(None, &report(100, vec![shortfall(Lack::Memory)]));
        let refusal = &told[&key];
        assert_eq!(
            (refusal.missing, refusal.acknowledged, refusal.lack()),
            (2, Generation(7), Lack::Memory)
        );
        assert_eq!(refusal.why, "no node will do (n1: refused: it lacks that)");
        // What was refused has gone elsewhere.
        let held = after(Some(&told), &report(100, vec![]));
        assert_eq!(held[&key].missing, 0);
        let less = after(Some(&held), &report(50, vec![]));
        assert!(less.contains_key(&key));
        assert!(after(Some(&less), &report(101, vec![])).is_empty());

        let told = after(None, &report(100, vec![shortfall(Lack::Runtime)]));
        let mut later = report(500, vec![]);
        assert!(after(Some(&told), &later).contains_key(&key), "memory is not what it lacked");
        let runtime = RuntimeName::Runc;
        let lacks = Default::default();
        let offer = RuntimeOffer { runtime, path: None, version: None, unavailable: None, lacks };
        later.nodes[0].runtimes = vec![offer];
        assert!(after(Some(&told), &later).is_empty());
    }
}
