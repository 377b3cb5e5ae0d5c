//! What a node is told of its assignments: all of them once, then what differs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use longshore_types::{Generation, InstanceId, LocationEpoch, ReachAddress, SharedMap};
use serde::{Deserialize, Serialize};

use super::report::changed;
use super::{Assignment, AssignmentSet};

/// How a node asks for its assignments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AssignmentsQuery {
    /// Whether it understands changes.
    #[serde(default)]
    pub changes: bool,
}

/// What a node should have, as its location keeps it. Copies share what they have in common, so that what differs from
/// what the node was told is found without a look at the rest.
#[derive(Debug, Clone, Default)]
pub struct Assigned {
    /// Of which life of the location it is.
    pub location_epoch: LocationEpoch,
    /// Raised at each change.
    pub generation: Generation,
    /// By instance.
    pub assignments: SharedMap<InstanceId, Arc<Assignment>>,
    /// What the node is to try to reach.
    pub reach: BTreeSet<ReachAddress>,
    /// True when this says nothing of what the node should have, and asks for what it has.
    pub hand_over: bool,
}

impl Assigned {
    /// All of it, as a node is told.
    pub fn whole(&self) -> AssignmentSet {
        let assignments = self.assignments.values().cloned().collect();
        self.told(None, (assignments, Vec::new()))
    }

    /// What differs from what was told before; the whole where one of the two says nothing of what the node should have,
    /// or is of another life.
    pub fn since(&self, before: &Self) -> AssignmentSet {
        if self.hand_over || before.hand_over || self.location_epoch != before.location_epoch {
            return self.whole();
        }
        self.told(Some(before.generation), changed(&before.assignments, &self.assignments))
    }

    fn told(
        &self,
        since: Option<Generation>,
        (assignments, gone): (Vec<Arc<Assignment>>, Vec<InstanceId>),
    ) -> AssignmentSet {
        AssignmentSet {
            location_epoch: self.location_epoch,
            generation: self.generation,
            since,
            assignments,
            gone,
            // Said as the node is told.
            ingresses: Vec::new(),
            reach: self.reach.clone(),
            hand_over: self.hand_over,
        }
    }
}

impl AssignmentSet {
    /// The set that there is by what is told after this one; nothing when that is a change of another.
    pub fn followed_by(&self, next: Self) -> Option<Self> {
        let Some(since) = next.since else { return Some(next) };
        let is_of_this = !self.hand_over && self.since.is_none();
        if !is_of_this || (next.location_epoch, since) != (self.location_epoch, self.generation) {
            return None;
        }
        let of = |one: &Arc<Assignment>| (one.instance.clone(), Arc::clone(one));
        let mut all: BTreeMap<_, _> = self.assignments.iter().map(of).collect();
        for instance in &next.gone {
            all.remove(instance);
        }
        all.extend(next.assignments.iter().map(of));
        let assignments = all.into_values().collect();
        Some(Self { since: None, gone: Vec::new(), assignments, ..next })
    }
}

#[cfg(test)]
mod tests {
    use longshore_types::{Digest, Manifest, Release, ReleaseNumber, Timestamp};

    use super::super::Intent;
    use super::*;

    /// Instances by the last digits of their ids, each with the generation of its assignment.
    fn set(generation: u64, instances: &[(&str, u64)]) -> Assigned {
        let document = serde_json::json!({"app": "web", "image": "web:1"});
        let release = Arc::new(Release {
            number: ReleaseNumber(1),
            manifest: Manifest::from_document(&document).unwrap(),
            image_digest: Digest::from_sha256([7; 32]),
            secrets: BTreeMap::new(),
            created_at: Timestamp(1),
        });
        let assignment = |(id, generation): &(&str, u64)| Assignment {
            instance: format!("web-0000000{id}").parse().unwrap(),
            release: Arc::clone(&release),
            intent: Intent::Run,
            generation: Generation(*generation),
            gpus: Default::default(),
            origin: Default::default(),
        };
        let mut assignments = SharedMap::default();
        for one in instances.iter().map(assignment) {
            assignments.insert(one.instance.clone(), Arc::new(one));
        }
        Assigned { generation: Generation(generation), assignments, ..Assigned::default() }
    }

    #[test]
    fn what_was_told_with_what_differs_is_the_whole() {
        let all = [
            set(1, &[]),
            set(2, &[("b", 1), ("d", 1)]),
            set(3, &[("a", 1), ("b", 2), ("d", 1)]),
            set(3, &[("a", 1), ("b", 2), ("d", 1)]),
            set(5, &[("c", 1)]),
            set(6, &[]),
        ];
        for before in &all {
            for now in &all {
                let mut now = now.clone();
                now.reach.insert("db:5432".parse().unwrap());
                let change = now.since(before);
                assert_eq!(change.since, Some(before.generation));
                assert_eq!(before.whole().followed_by(change), Some(now.whole()));
            }
        }
        let change = all[2].since(&all[1]);
        let told: Vec<_> = change.assignments.iter().map(|one| one.instance.as_str()).collect();
        assert_eq!(told, ["web-0000000a", "web-0000000b"]);
        assert_eq!(change.gone, []);
        assert_eq!(all[4].since(&all[1]).gone.len(), 2);
    }

    #[test]
    fn a_change_of_another_set_is_none_of_this() {
        let [before, now] = [set(2, &[("a", 1)]), set(3, &[("b", 1)])];
        let change = now.since(&before);
        let older = set(1, &[]).whole();
        assert_eq!(older.followed_by(change.clone()), None, "one in between is missing");
        assert_eq!(now.whole().followed_by(change.clone()), None, "it came twice");
        assert_eq!(change.followed_by(change.clone()), None, "the whole was never told");
        let of_before = Assigned { location_epoch: LocationEpoch(7), ..before.clone() };
        assert_eq!(of_before.whole().followed_by(change), None, "it is of another life");
        // What says nothing of what the node should have is built on by nothing, and builds on nothing.
        let asks = Assigned { hand_over: true, ..Assigned::default() };
        assert_eq!((now.since(&asks).since, asks.since(&before).since), (None, None));
        assert_eq!(now.since(&of_before), now.whole());
        assert_eq!(asks.whole().followed_by(set(3, &[]).since(&set(0, &[]))), None);
        assert_eq!(asks.whole().followed_by(now.whole()), Some(now.whole()));
    }
}
