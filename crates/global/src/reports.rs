//! What locations report: kept in memory, the last report of each.

mod refusals;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use longshore_api::links::{InstanceStatus, LocationReport, NodeSummary, Shortfall};
use longshore_planning::global::{Demand, NodeKind, Ways};
use longshore_types::{
    InstanceId, LocationName, NodeGpu, ProjectName, Reached, SharedMap, Timestamp,
};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::catalog::AppKey;
use crate::scheduler::kinds;
pub use refusals::Refusals;

/// A location that did not report for this long counts as unreachable. Locations report at least
/// every five seconds, so three reports in a row must be lost.
const SILENT_AFTER: Duration = Duration::from_secs(16);

/// A location that did not report for this long is late: a report is missing, and what it said last may not be
/// so any more.
const LATE_AFTER: Duration = Duration::from_secs(8);

/// The last report of a location.
#[derive(Debug, Clone)]
pub struct Received {
    /// What it said, but for its instances.
    pub report: Arc<LocationReport>,
    /// Those.
    instances: SharedMap<InstanceId, Arc<InstanceStatus>>,
    /// Those of each app.
    by_app: SharedMap<AppKey, SharedMap<InstanceId, Arc<InstanceStatus>>>,
    /// When it came, by this process's monotonic clock.
    pub at: Instant,
    /// The same, for people.
    pub at_wall: Timestamp,
    /// Its nodes as the planner sees them.
    pub kinds: Arc<Vec<NodeKind>>,
    /// What it found no node for, by app: in this report, or in an earlier one, and has no more of now.
    pub refusals: Arc<Refusals>,
    /// How many requests an hour come in there, by app.
    pub demand: Arc<BTreeMap<AppKey, u64>>,
    /// The round trips to other locations, in whole milliseconds: less is noise.
    pub round_trips: Arc<BTreeMap<LocationName, longshore_types::Duration>>,
}

impl Received {
    /// A report that comes now, a whole one or a change of the one before.
    pub fn new(
        mut report: LocationReport,
        refusals: Arc<Refusals>,
        before: Option<&Self>,
    ) -> (Self, BTreeSet<AppKey>) {
        let (instances, gone) =
            (std::mem::take(&mut report.instances), std::mem::take(&mut report.gone));
        let (at, at_wall) = (Instant::now(), longshore_link::now());
        let (demand, round_trips) = (Arc::new(demand(&report)), Arc::new(round_trips(&report)));
        let (all, by_app) = before.map_or_else(Default::default, |before| {
            (before.instances.clone(), before.by_app.clone())
        });
        let is_whole = report.since.is_none();
        let (kinds, report) = (Arc::new(kinds(&report)), Arc::new(report));
        let mut received = Self {
            report,
            instances: all,
            by_app,
            at,
            at_wall,
            kinds,
            refusals,
            demand,
            round_trips,
        };
        let mut touched = BTreeSet::new();
        if is_whole {
            let there: BTreeSet<_> = instances.iter().map(|one| &one.observed.instance).collect();
            let known = received.instances.keys();
            let gone: Vec<_> = known.filter(|known| !there.contains(known)).cloned().collect();
            gone.iter().for_each(|instance| touched.extend(received.remove(instance)));
        }
        gone.iter().for_each(|instance| touched.extend(received.remove(instance)));
        for status in instances {
            touched.extend(received.put(status));
        }
        (received, touched)
    }

    /// Takes over what is said of an instance; the app of which that is news.
    fn put(&mut self, status: Arc<InstanceStatus>) -> Option<AppKey> {
        let instance = status.observed.instance.clone();
        if self.instances.get(&instance) == Some(&status) {
            return None;
        }
        let key = (status.project.clone(), status.app.clone());
        let before = self.instances.get(&instance);
        if before.is_some_and(|before| (&before.project, &before.app) != (&key.0, &key.1)) {
            self.remove(&instance);
        }
        let mut of_app = self.by_app.get(&key).cloned().unwrap_or_default();
        of_app.insert(instance.clone(), Arc::clone(&status));
        self.by_app.insert(key.clone(), of_app);
        self.instances.insert(instance, status);
        Some(key)
    }

    /// Forgets an instance; its app, if there was one.
    fn remove(&mut self, instance: &InstanceId) -> Option<AppKey> {
        let status = Arc::clone(self.instances.get(instance)?);
        self.instances.remove(instance);
        let key = (status.project.clone(), status.app.clone());
        let mut of_app = self.by_app.get(&key).cloned().unwrap_or_default();
        of_app.remove(instance);
        match of_app.is_empty() {
            true => _ = self.by_app.remove(&key),
            false => self.by_app.insert(key.clone(), of_app),
        }
        Some(key)
    }

    /// What it says of its instances.
    pub fn instances(&self) -> impl Iterator<Item = &InstanceStatus> {
        self.instances.values().map(|status| &**status)
    }

    /// How many there are.
    pub fn n_instances(&self) -> usize {
        self.instances.len()
    }

    /// What it says of the instances of an app.
    pub fn of_app<'a>(
        &'a self,
        key: &AppKey,
    ) -> impl Iterator<Item = &'a InstanceStatus> + use<'a> {
        self.by_app.get(key).into_iter().flat_map(|of_app| of_app.values()).map(|status| &**status)
    }

    /// The apps of which this says anything else than the report before it, beside what it says of their instances.
    fn news(&self, before: &Self) -> BTreeSet<AppKey> {
        let mut news = BTreeSet::new();
        let is_known = |one: &&Shortfall| before.report.shortfalls.contains(one);
        let told = self.report.shortfalls.iter().filter(|one| !is_known(one));
        let is_over = |one: &&Shortfall| !self.report.shortfalls.contains(one);
        let over = before.report.shortfalls.iter().filter(is_over);
        news.extend(told.chain(over).map(|one| (one.project.clone(), one.app.clone())));
        // A refusal ends with what its location lacked, also where nothing is said of the app any more.
        if !Arc::ptr_eq(&before.refusals, &self.refusals) {
            let (old, new) = (&before.refusals, &self.refusals);
            let is_other = |key: &&AppKey| !refusals::are_same(old.get(*key), new.get(*key));
            news.extend(old.keys().chain(new.keys()).filter(is_other).cloned());
        }
        news
    }

    /// The apps of which other users come than before. They are counted all the time, so that has nobody look by itself.
    fn moved_users<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = AppKey> + 'a {
        let (old, new) = (&before.demand, &self.demand);
        let is_other = move |key: &&AppKey| old.get(*key) != new.get(*key);
        old.keys().chain(new.keys()).filter(is_other).cloned()
    }

    /// True when a report is overdue.
    pub fn late(&self) -> bool {
        self.at.elapsed() >= LATE_AFTER
    }

    /// True when the location reported lately.
    pub fn reachable(&self) -> bool {
        self.at.elapsed() < SILENT_AFTER
    }
}

/// The last report of each location.
#[derive(Debug, Clone)]
pub struct ByLocation {
    /// Since when reports are received: silence before that is nobody's.
    began: Instant,
    reports: BTreeMap<LocationName, Received>,
}

impl Default for ByLocation {
    fn default() -> Self {
        Self { began: Instant::now(), reports: BTreeMap::new() }
    }
}

impl ByLocation {
    /// True when a location has reported lately.
    pub fn is_heard(&self, location: &LocationName) -> bool {
        self.get(location).is_some_and(Received::reachable)
    }

    /// For how long a location has not been heard of.
    pub fn silence(&self, location: &LocationName) -> Duration {
        self.get(location).map_or(self.began, |received| received.at).elapsed()
    }
}

impl Deref for ByLocation {
    type Target = BTreeMap<LocationName, Received>;
    fn deref(&self) -> &Self::Target {
        &self.reports
    }
}

impl DerefMut for ByLocation {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.reports
    }
}

/// What is new in reports since somebody last looked.
#[derive(Debug, Clone, Default)]
pub struct News {
    /// The apps of which something else is said.
    pub apps: BTreeSet<AppKey>,
    /// Something else is said, which may concern apps of which nothing is.
    pub any: bool,
    /// That may concern every app.
    pub rest: bool,
}

/// The reports, and what was new in them.
#[derive(Debug, Default)]
struct Kept {
    by_location: Arc<ByLocation>,
    /// For the one who takes it.
    news: News,
}

/// Keeps the reports and tells of changes.
#[derive(Debug)]
pub struct Reports {
    kept: watch::Sender<Kept>,
}

/// Tells of changes.
#[derive(Debug)]
pub struct Subscription(watch::Receiver<Kept>);

impl Subscription {
    /// Waits for news; fails when there will be none.
    pub async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        self.0.changed().await
    }

    /// Takes what there is for seen.
    pub fn mark_unchanged(&mut self) {
        self.0.mark_unchanged();
    }

    /// The reports now, which are seen with that.
    pub fn borrow_and_update(&mut self) -> Arc<ByLocation> {
        Arc::clone(&self.0.borrow_and_update().by_location)
    }
}

impl Default for Reports {
    fn default() -> Self {
        Self { kept: watch::channel(Kept::default()).0 }
    }
}

impl Reports {
    /// Takes a report over, in place of the location's last one; false when it is a change of another one than that.
    /// Subscribers are told only when it says something new.
    pub fn receive(&self, report: LocationReport) -> bool {
        let mut is_known = true;
        self.kept.send_if_modified(|Kept { by_location, news }| {
            let name = report.location.clone();
            let before = by_location.get(&name);
            let builds_on = |since| before.is_some_and(|before| before.report.number == since);
            is_known = report.since.is_none_or(builds_on);
            if !is_known {
                return false;
            }
            let refusals = match before {
                Some(before) if before.refusals.is_empty() && report.shortfalls.is_empty() => {
                    Arc::clone(&before.refusals)
                }
                before => {
                    Arc::new(refusals::after(before.map(|before| &*before.refusals), &report))
                }
            };
            let (received, mut of_apps) = Received::new(report, refusals, before);
            match before {
                Some(before) => of_apps.extend(received.news(before)),
                // All of it is, which is said below.
                None => of_apps.clear(),
            }
            let rest = before.is_none_or(|before| {
                !before.reachable() || rest_differs(&before.report, &received.report)
            });
            let any = rest
                || !of_apps.is_empty()
                || before
                    .is_some_and(|before| carried_out_differs(&before.report, &received.report));
            let moved = before.map(|before| received.moved_users(before));
            news.apps.extend(of_apps);
            news.apps.extend(moved.into_iter().flatten());
            news.any |= any;
            news.rest |= rest;
            Arc::make_mut(by_location).insert(name, received);
            any
        });
        is_known
    }

    /// The reports, and what was new since this was last asked for.
    pub fn take_news(&self) -> (Arc<ByLocation>, News) {
        let mut taken = Default::default();
        self.kept.send_if_modified(|Kept { by_location, news }| {
            taken = (Arc::clone(by_location), std::mem::take(news));
            false
        });
        taken
    }

    /// Forgets what a location said that was removed.
    pub fn forget(&self, location: &LocationName) {
        self.kept.send_if_modified(|Kept { by_location, news }| {
            let was_there = Arc::make_mut(by_location).remove(location).is_some();
            news.any |= was_there;
            news.rest |= was_there;
            was_there
        });
    }

    /// All reports now.
    pub fn now(&self) -> Arc<ByLocation> {
        Arc::clone(&self.kept.borrow().by_location)
    }

    /// Tells of changes.
    pub fn subscribe(&self) -> Subscription {
        Subscription(self.kept.subscribe())
    }

    /// An instance of a project and the report that tells of it.
    pub fn find(
        &self,
        project: &ProjectName,
        id: &InstanceId,
    ) -> Option<(Received, InstanceStatus)> {
        self.now().values().find_map(|received| {
            let status = received.instances.get(id).filter(|status| status.project == *project)?;
            Some((received.clone(), InstanceStatus::clone(status)))
        })
    }
}

/// What the locations say of the instances of an app.
pub fn of_app<'a>(
    reports: &'a ByLocation,
    key: &'a AppKey,
) -> impl Iterator<Item = &'a InstanceStatus> {
    reports.values().flat_map(move |received| received.of_app(key))
}

fn demand(report: &LocationReport) -> BTreeMap<AppKey, u64> {
    let each = report.demand.iter();
    each.map(|one| ((one.project.clone(), one.app.clone()), one.requests_per_hour)).collect()
}

fn round_trips(report: &LocationReport) -> BTreeMap<LocationName, longshore_types::Duration> {
    let whole = |micros: u64| longshore_types::Duration::from_millis(micros.div_ceil(1000));
    report.round_trip_micros.iter().map(|(to, micros)| (to.clone(), whole(*micros))).collect()
}

/// Where the users of an app are, by what all locations say; of one that is not heard of, by what it said last.
pub fn demand_of(reports: &ByLocation, key: &AppKey) -> Demand {
    Demand::of(reports.iter().filter_map(|(name, received)| {
        let requests = received.demand.get(key)?;
        Some((name.clone(), *requests))
    }))
}

/// How far the locations are from each other.
pub fn ways(reports: &ByLocation) -> Ways<'_> {
    Ways::of(
        reports
            .iter()
            .map(|(name, received)| (name, received.report.coordinates, &*received.round_trips)),
    )
}

/// Whether a location is at another point with what it was given, or has more or less room.
fn carried_out_differs(a: &LocationReport, b: &LocationReport) -> bool {
    a.acknowledged != b.acknowledged
        || a.staying != b.staying
        || a.nodes.len() != b.nodes.len()
        || a.nodes.iter().zip(&b.nodes).any(|(a, b)| room_differs(a, b))
}

fn room_differs(a: &NodeSummary, b: &NodeSummary) -> bool {
    (a.capacity, a.promised, a.instances, a.drained)
        != (b.capacity, b.promised, b.instances, b.drained)
        || (a.leaving, &a.yielding, &a.gpus) != (b.leaving, &b.yielding, &b.gpus)
}

/// Whether what two reports say differs that is neither of an app nor follows from that. Times that pass, and times
/// that are measured all the time, are no news.
fn rest_differs(a: &LocationReport, b: &LocationReport) -> bool {
    let LocationReport {
        location,
        number: _,
        since: _,
        gone: _,
        coordinates,
        traits,
        joining,
        peering,
        round_trip_micros: _,
        demand: _,
        gate,
        epoch,
        acknowledged: _,
        at: _,
        nodes,
        instances: _,
        shortfalls: _,
        staying: _,
        strays,
        location_epoch,
        node_keys,
    } = a;
    (location, coordinates, traits, joining) != (&b.location, &b.coordinates, &b.traits, &b.joining)
        || (peering, gate, epoch, strays) != (&b.peering, &b.gate, &b.epoch, &b.strays)
        || (location_epoch, node_keys) != (&b.location_epoch, &b.node_keys)
        || nodes.len() != b.nodes.len()
        || nodes.iter().zip(&b.nodes).any(|(a, b)| node_differs(a, b))
}

fn node_differs(a: &NodeSummary, b: &NodeSummary) -> bool {
    let NodeSummary {
        node,
        reachable,
        reported_at: _,
        capacity: _,
        promised: _,
        leaving: _,
        yielding: _,
        gpus,
        reached,
        version,
        runtimes,
        image_mount,
        traits,
        lost,
        instances: _,
        cordon,
        drained: _,
    } = a;
    // When an address was tried last is no news.
    let outcome = |one: &Reached| (one.address.clone(), one.error.clone());
    // What of them is promised is room.
    let kind = |gpu: &NodeGpu| (gpu.model.clone(), gpu.memory);
    (node, reachable, version) != (&b.node, &b.reachable, &b.version)
        || !gpus.iter().map(kind).eq(b.gpus.iter().map(kind))
        || !reached.iter().map(outcome).eq(b.reached.iter().map(outcome))
        || (runtimes, image_mount) != (&b.runtimes, &b.image_mount)
        || (traits, lost, cordon) != (&b.traits, &b.lost, &b.cordon)
}

#[cfg(test)]
mod tests;
