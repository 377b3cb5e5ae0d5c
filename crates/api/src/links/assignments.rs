//! What a node is told of its assignments: all of them once, then what differs.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Assignment, AssignmentSet};

/// How a node asks for its assignments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AssignmentsQuery {
    /// Whether it understands changes.
    #[serde(default)]
    pub changes: bool,
}

impl AssignmentSet {
    /// What differs from the set that was told before, whose assignments are in the order of their ids like those of
    /// this; the whole where one of the two says nothing of what the node should have, or is of another life.
    pub fn since(&self, before: &Self) -> Self {
        if self.hand_over || before.hand_over || self.location_epoch != before.location_epoch {
            return self.clone();
        }
        let (mut assignments, mut gone) = (Vec::new(), Vec::new());
        let mut past = before.assignments.iter().peekable();
        for assignment in &self.assignments {
            while let Some(past) = past.next_if(|past| past.instance < assignment.instance) {
                gone.push(past.instance.clone());
            }
            let known = past.next_if(|known| known.instance == assignment.instance);
            // Those that did not change are the same ones, which is seen without reading them.
            if known != Some(assignment) {
                assignments.push(Arc::clone(assignment));
            }
        }
        gone.extend(past.map(|past| past.instance.clone()));
        Self {
            location_epoch: self.location_epoch,
            generation: self.generation,
            since: Some(before.generation),
            assignments,
            gone,
            ingresses: self.ingresses.clone(),
            reach: self.reach.clone(),
            hand_over: false,
        }
    }

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
    use longshore_types::{
        Digest, Generation, LocationEpoch, Manifest, Release, ReleaseNumber, Timestamp,
    };

    use super::super::Intent;
    use super::*;

    /// A set of instances by the last digits of their ids, each with the generation of its assignment.
    fn set(generation: u64, instances: &[(&str, u64)]) -> AssignmentSet {
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
        let assignments = instances.iter().map(|one| Arc::new(assignment(one))).collect();
        let generation = Generation(generation);
        AssignmentSet { generation, assignments, ..AssignmentSet::default() }
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
                assert_eq!(before.followed_by(change), Some(now));
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
        assert_eq!(set(1, &[]).followed_by(change.clone()), None, "one in between is missing");
        assert_eq!(now.followed_by(change.clone()), None, "it came twice");
        assert_eq!(change.followed_by(change.clone()), None, "the whole was never told");
        let of_before = AssignmentSet { location_epoch: LocationEpoch(7), ..before.clone() };
        assert_eq!(of_before.followed_by(change), None, "it is of another life");
        // What says nothing of what the node should have is built on by nothing, and builds on nothing.
        let asks = AssignmentSet { hand_over: true, ..AssignmentSet::default() };
        assert_eq!((now.since(&asks).since, asks.since(&before).since), (None, None));
        assert_eq!(now.since(&of_before), now);
        assert_eq!(asks.followed_by(set(3, &[]).since(&set(0, &[]))), None);
        assert_eq!(asks.followed_by(now.clone()), Some(now));
    }
}
