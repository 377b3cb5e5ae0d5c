//! The locations as the planner sees them, from what they report and what was handed to them since.
//!
//! A report is a little old, so it is not believed of what this control plane knows better: what it allotted
//! counts from the moment at which it did. What a location was given and does not show yet is deducted from
//! those of its nodes that could take it.

use std::collections::BTreeMap;

use longshore_api::links::{LocationReport, NodeSummary};
use longshore_planning::global::{self as planner, LocationState, NodeKind, ReportedNode, Without};
use longshore_types::{AppName, Capacity, LocationName, Priority, ProjectName, Release};

use crate::catalog::{AppKey, Catalog};
use crate::records::AllotmentRecord;
use crate::reports::{ByLocation, Received};

/// What a location was given of a release.
struct Given<'a> {
    key: AppKey,
    release: &'a Release,
    count: u32,
}

/// The locations with what is free there: what their open nodes offer less all that was allotted but for
/// what is on others, which also counts what a location has not reported yet.
pub fn locations(catalog: &Catalog, reports: &ByLocation) -> Vec<LocationState> {
    let mut given: BTreeMap<&LocationName, Vec<Given<'_>>> = BTreeMap::new();
    for ((location, project, app), stored) in &catalog.allotments {
        let AllotmentRecord { release, count, canary, .. } = &stored.record;
        let canary = canary.map(|canary| (canary.release, canary.count));
        let key = (project.clone(), app.clone());
        for (number, count) in [(*release, *count)].into_iter().chain(canary) {
            let Some(release) = catalog.release(&key, number) else { continue };
            given.entry(location).or_default().push(Given { key: key.clone(), release, count });
        }
    }
    let states = reports.values().map(|received| {
        let name = &received.report.location;
        state(catalog, received, given.get(name).map_or(&[], Vec::as_slice))
    });
    states.collect()
}

fn state(catalog: &Catalog, received: &Received, given: &[Given<'_>]) -> LocationState {
    let report: &LocationReport = &received.report;
    let is_open = |node: &&NodeSummary| node.reachable && node.cordon.is_none();
    let offered = report.nodes.iter().filter(is_open);
    let offered = offered.fold(Capacity::default(), |sum, node| sum.plus(node.capacity));
    // What never leaves for anything, and what does, by its priority.
    let (mut fixed, mut by_priority) = (Capacity::default(), BTreeMap::new());
    for Given { release, count, .. } in given {
        let sum: &mut Capacity = match release.manifest.yields() {
            Some(priority) => by_priority.entry(priority).or_default(),
            None => &mut fixed,
        };
        *sum = sum.plus(release.manifest.resources.capacity().times(*count));
    }
    let free_without = |up_to: Option<Priority>| {
        let stays = by_priority.iter().filter(|(own, _)| Some(**own) > up_to);
        let allotted = stays.fold(fixed, |sum, (_, more)| sum.plus(*more));
        offered.minus(allotted.minus(on_closed(report, up_to)))
    };
    let without = by_priority.keys();
    let without = without.map(|up_to| Without { up_to: *up_to, free: free_without(Some(*up_to)) });
    let mut state = LocationState {
        name: report.location.clone(),
        reachable: received.reachable(),
        late: received.late(),
        cordon: catalog.cordon(&report.location).cloned(),
        free: free_without(None),
        without: without.collect(),
        coordinates: report.coordinates,
        traits: report.traits.clone(),
        kinds: kinds(report),
        // One that its location knows by name alone.
        unheard: report.nodes.iter().any(|node| node.version.is_empty()),
        round_trips: received.round_trips.as_ref().clone(),
    };
    let mut shown: BTreeMap<(&ProjectName, &AppName), u32> = BTreeMap::new();
    for status in &report.instances {
        *shown.entry((&status.project, &status.app)).or_default() += 1;
    }
    let (free, without) = (state.free, state.without.clone());
    for Given { key, release, count } in given {
        // Of whichever release: one takes the place of the other.
        let shown = shown.entry((&key.0, &key.1)).or_default();
        let n_shown = (*shown).min(*count);
        *shown -= n_shown;
        let manifest = &release.manifest;
        for _ in n_shown..*count {
            state.take(&manifest.placement, manifest.resources.capacity(), manifest.yields());
        }
    }
    // That what was allotted is not free at the location was counted before.
    (state.free, state.without) = (free, without);
    state
}

/// What is promised on nodes that take nothing new, without all up to a priority.
fn on_closed(report: &LocationReport, up_to: Option<Priority>) -> Capacity {
    let closed = report.nodes.iter().filter(|node| node.reachable && node.cordon.is_some());
    closed.fold(Capacity::default(), |sum, node| {
        let gone = node.yielding.iter().filter(|one| Some(one.priority) <= up_to);
        let gone = gone.fold(Capacity::default(), |sum, one| sum.plus(one.promised));
        sum.plus(node.promised.minus(gone))
    })
}

/// The nodes of a location, those that are alike together, with what they say is free.
pub fn kinds(report: &LocationReport) -> Vec<NodeKind> {
    planner::kinds(report.nodes.iter().map(|node| ReportedNode {
        traits: &node.traits,
        open: node.reachable && node.cordon.is_none(),
        capacity: node.capacity,
        promised: node.promised,
        leaving: node.leaving,
        yielding: &node.yielding,
        reached: &node.reached,
    }))
}

#[cfg(test)]
mod tests {
    use longshore_types::{ByteCount, Generation, MilliCpu};

    use super::*;

    /// A node with room for this many instances of 1 GiB, of which some are promised.
    fn node(name: &str, label: &str, (room, promised): (u64, u64)) -> NodeSummary {
        let of = |n: u64| Capacity {
            cpu: MilliCpu(1_000_000),
            memory: ByteCount::gib(n),
            disk: ByteCount::gib(100),
        };
        let document = serde_json::json!({
            "node": name, "reachable": true, "reported_at": 1, "version": "1",
            "capacity": of(room),
            "promised": Capacity { memory: ByteCount::gib(promised), ..Capacity::default() },
            "traits": {"labels": [label]},
        });
        serde_json::from_value(document).unwrap()
    }

    #[test]
    fn what_is_on_its_way_is_not_free() {
        let document = serde_json::json!({
            "location": "ams", "gate": null, "acknowledged": 7, "at": 1, "instances": [],
            "shortfalls": [], "nodes": [],
        });
        let mut report: LocationReport = serde_json::from_value(document).unwrap();
        report.nodes = vec![
            node("n1", "disk=nvme", (4, 0)),
            node("n2", "disk=hdd", (6, 0)),
            node("n3", "disk=hdd", (3, 2)),
        ];
        let manifest = serde_json::json!({
            "app": "web", "image": "web", "placement": {"labels": ["disk=nvme"]},
            "resources": {"memory": "1GiB", "cpu": 0.1, "disk": "4MiB"},
        });
        let release = Release {
            number: longshore_types::ReleaseNumber(1),
            manifest: longshore_types::Manifest::from_document(&manifest).unwrap(),
            image_digest: longshore_types::Digest::from_sha256([7; 32]),
            secrets: BTreeMap::new(),
            created_at: Default::default(),
        };
        let key: AppKey = (Default::default(), "web".parse().unwrap());
        let given = [Given { key, release: &release, count: 3 }];
        let received = Received {
            at_wall: longshore_types::Timestamp(0),
            report: report.into(),
            at: tokio::time::Instant::now(),
            refusals: Default::default(),
            demand: Default::default(),
            round_trips: Default::default(),
        };
        assert_eq!(received.report.acknowledged, Generation(7));
        let state = state(&Catalog::default(), &received, &given);
        let gib = |capacity: Capacity| capacity.memory.0 >> 30;
        assert_eq!(gib(state.free), 10);
        let kinds: Vec<_> = state
            .kinds
            .iter()
            .map(|kind| (kind.n_nodes, gib(kind.free), gib(kind.largest)))
            .collect();
        // Only the one could have them.
        assert_eq!(kinds, [(1, 1, 1), (2, 7, 6)]);
    }
}
