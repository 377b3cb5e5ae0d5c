//! The locations as the planner sees them, from what they report and what was handed to them since.
//!
//! A report is a little old, so it is not believed of what this control plane knows better: what it allotted
//! counts from the moment at which it did. What a location was given and does not show yet is deducted from
//! those of its nodes that could take it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use longshore_api::links::{LocationReport, NodeSummary};
use longshore_planning::global::{self as planner, LocationState, NodeKind, ReportedNode, Without};
use longshore_types::{Capacity, LocationName, Priority, Release, ReleaseNumber};

use super::Found;
use crate::catalog::{AppKey, Catalog, Stored};
use crate::records::AllotmentRecord;
use crate::reports::{ByLocation, Received};

/// What was allotted to the locations, and what of it they do not show yet: kept from one look to the next, so that
/// only what changed has to be looked at again.
#[derive(Debug, Default)]
pub struct Summaries {
    by_location: BTreeMap<LocationName, Given>,
    /// What each app adds to what was allotted where.
    of_app: BTreeMap<AppKey, Vec<(LocationName, Part)>>,
}

/// What of an app is of one release somewhere: with a priority, when it leaves for what has a higher one.
type Part = (Option<Priority>, Capacity);

/// What a location was given.
#[derive(Debug, Default)]
struct Given {
    /// Of what never leaves for anything.
    fixed: Capacity,
    /// Of what does, in how many parts.
    by_priority: BTreeMap<Priority, (u32, Capacity)>,
    /// How many instances of which releases it does not show, by app.
    unseen: BTreeMap<AppKey, Vec<(Arc<Release>, u32)>>,
}

impl Given {
    fn add(&mut self, (yields, capacity): Part) {
        let Some(priority) = yields else {
            self.fixed = self.fixed.plus(capacity);
            return;
        };
        let (n_parts, sum) = self.by_priority.entry(priority).or_default();
        (*n_parts, *sum) = (*n_parts + 1, sum.plus(capacity));
    }

    fn take_away(&mut self, (yields, capacity): Part) {
        let Some(priority) = yields else {
            self.fixed = self.fixed.minus(capacity);
            return;
        };
        let Some((n_parts, sum)) = self.by_priority.get_mut(&priority) else { return };
        (*n_parts, *sum) = (n_parts.saturating_sub(1), sum.minus(capacity));
        if *n_parts == 0 {
            self.by_priority.remove(&priority);
        }
    }
}

impl Summaries {
    /// Those of everything.
    pub fn of(catalog: &Catalog, reports: &ByLocation) -> Self {
        let mut summaries = Self::default();
        let apps: BTreeSet<_> =
            catalog.allotments.keys().map(|(_, project, app)| (project, app)).collect();
        for (project, app) in apps {
            summaries.look(catalog, reports, &(project.clone(), app.clone()));
        }
        summaries
    }

    /// Looks at an app again.
    pub fn look(&mut self, catalog: &Catalog, reports: &ByLocation, key: &AppKey) {
        let release = |number| catalog.release(key, number);
        self.count(reports, (key, catalog.held(key)), release);
    }

    /// The same of one of which all is found.
    pub fn look_at(&mut self, catalog: &Catalog, reports: &ByLocation, found: &Found<'_>) {
        let held = found.held.iter().map(|(location, stored)| (*location, *stored));
        self.count(reports, (found.key, held), |number| found.release(catalog, number));
    }

    fn count<'a>(
        &mut self,
        reports: &ByLocation,
        (key, held): (
            &AppKey,
            impl Iterator<Item = (&'a LocationName, &'a Stored<AllotmentRecord>)>,
        ),
        found: impl Fn(ReleaseNumber) -> Option<&'a Arc<Release>>,
    ) {
        for (location, part) in self.of_app.remove(key).unwrap_or_default() {
            if let Some(given) = self.by_location.get_mut(&location) {
                given.take_away(part);
                given.unseen.remove(key);
            }
        }
        let mut parts = Vec::new();
        for (location, stored) in held {
            let AllotmentRecord { release, count, canary, .. } = &stored.record;
            let canary = canary.map(|canary| (canary.release, canary.count));
            // Of whichever release: one takes the place of the other.
            let mut shown =
                reports.get(location).map_or(0, |received| received.of_app(key).count());
            let given = self.by_location.entry(location.clone()).or_default();
            let mut unseen = Vec::new();
            for (number, count) in [(*release, *count)].into_iter().chain(canary) {
                let Some(release) = found(number) else { continue };
                let manifest = &release.manifest;
                let part = (manifest.yields(), manifest.resources.capacity().times(count));
                given.add(part);
                parts.push((location.clone(), part));
                let n_shown = shown.min(count as usize);
                shown -= n_shown;
                let n_unseen = count - u32::try_from(n_shown).unwrap_or(count);
                if n_unseen > 0 {
                    unseen.push((Arc::clone(release), n_unseen));
                }
            }
            if !unseen.is_empty() {
                given.unseen.insert(key.clone(), unseen);
            }
        }
        if !parts.is_empty() {
            self.of_app.insert(key.clone(), parts);
        }
    }

    /// The locations with what is free there: what their open nodes offer less all that was allotted but for
    /// what is on others, which also counts what a location has not reported yet.
    pub fn states(&self, catalog: &Catalog, reports: &ByLocation) -> Vec<LocationState> {
        let nothing = Given::default();
        let states = reports.iter().map(|(name, received)| {
            state(catalog, received, self.by_location.get(name).unwrap_or(&nothing))
        });
        states.collect()
    }
}

/// The locations, from everything.
pub fn locations(catalog: &Catalog, reports: &ByLocation) -> Vec<LocationState> {
    Summaries::of(catalog, reports).states(catalog, reports)
}

fn state(catalog: &Catalog, received: &Received, given: &Given) -> LocationState {
    let report: &LocationReport = &received.report;
    let is_open = |node: &&NodeSummary| node.reachable && node.cordon.is_none();
    let offered = report.nodes.iter().filter(is_open);
    let offered = offered.fold(Capacity::default(), |sum, node| sum.plus(node.capacity));
    // What never leaves for anything, and what does, by its priority.
    let Given { fixed, by_priority, unseen } = given;
    let free_without = |up_to: Option<Priority>| {
        let stays = by_priority.iter().filter(|(own, _)| Some(**own) > up_to);
        let allotted = stays.fold(*fixed, |sum, (_, (_, more))| sum.plus(*more));
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
        kinds: received.kinds.as_ref().clone(),
        // One that its location knows by name alone.
        unheard: report.nodes.iter().any(|node| node.version.is_empty()),
        round_trips: received.round_trips.as_ref().clone(),
    };
    let (free, without) = (state.free, state.without.clone());
    for (release, n_unseen) in unseen.values().flatten() {
        let manifest = &release.manifest;
        for _ in 0..*n_unseen {
            let each = (manifest.resources.capacity(), manifest.resources.gpu.as_ref());
            state.take(&manifest.placement, each, manifest.yields());
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
        gpus: &node.gpus,
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
        let mut given = Given::default();
        let capacity = release.manifest.resources.capacity().times(3);
        given.add((release.manifest.yields(), capacity));
        given.unseen.insert(key, vec![(Arc::new(release), 3)]);
        let received = Received::new(report, Default::default(), None).0;
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

    #[test]
    fn what_was_given_and_is_taken_away_leaves_nothing() {
        let of = |n: u64| Capacity { memory: ByteCount::gib(n), ..Capacity::default() };
        let low = Some(Priority::default());
        let mut given = Given::default();
        for part in [(None, of(3)), (low, of(1)), (low, of(2))] {
            given.add(part);
        }
        given.take_away((low, of(1)));
        assert_eq!(given.by_priority[&Priority::default()], (1, of(2)));
        given.take_away((low, of(2)));
        given.take_away((None, of(3)));
        assert!(given.by_priority.is_empty() && given.fixed == Capacity::default());
    }
}
