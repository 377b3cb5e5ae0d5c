//! What locations report: kept in memory, the last report of each.

mod refusals;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use longshore_api::links::{InstanceStatus, LocationReport, NodeSummary, Shortfall};
use longshore_planning::global::{Demand, Ways};
use longshore_types::{InstanceId, LocationName, ProjectName, Reached, Timestamp};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::catalog::AppKey;
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
    /// What it said.
    pub report: Arc<LocationReport>,
    /// When it came, by this process's monotonic clock.
    pub at: Instant,
    /// The same, for people.
    pub at_wall: Timestamp,
    /// What it found no node for, by app: in this report, or in an earlier one, and has no more of now.
    pub refusals: Arc<Refusals>,
    /// How many requests an hour come in there, by app.
    pub demand: Arc<BTreeMap<AppKey, u64>>,
    /// The round trips to other locations, in whole milliseconds: less is noise.
    pub round_trips: Arc<BTreeMap<LocationName, longshore_types::Duration>>,
    /// Which of its instances are of which app.
    by_app: Arc<BTreeMap<AppKey, Vec<usize>>>,
}

impl Received {
    /// A report that comes now.
    pub fn new(report: Arc<LocationReport>, refusals: Arc<Refusals>) -> Self {
        let mut by_app: BTreeMap<AppKey, Vec<usize>> = BTreeMap::new();
        for (idx, status) in report.instances.iter().enumerate() {
            let key = (status.project.clone(), status.app.clone());
            by_app.entry(key).or_default().push(idx);
        }
        let (at, at_wall) = (Instant::now(), longshore_link::now());
        let (demand, round_trips) = (Arc::new(demand(&report)), Arc::new(round_trips(&report)));
        Self { report, at, at_wall, refusals, demand, round_trips, by_app: Arc::new(by_app) }
    }

    /// What it says of the instances of an app.
    pub fn of_app<'a>(
        &'a self,
        key: &AppKey,
    ) -> impl Iterator<Item = &'a InstanceStatus> + use<'a> {
        let found = self.by_app.get(key).into_iter().flatten();
        found.filter_map(|idx| self.report.instances.get(*idx))
    }

    /// The apps of which this says anything else than the report before it.
    fn news(&self, before: &Self) -> BTreeSet<AppKey> {
        let is_other = |key: &&AppKey| !self.of_app(key).eq(before.of_app(key));
        let all = before.by_app.keys().chain(self.by_app.keys());
        let mut news: BTreeSet<_> = all.filter(is_other).cloned().collect();
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
    /// Takes a report over, in place of the location's last one. Subscribers are told only when
    /// it says something new.
    pub fn receive(&self, report: LocationReport) {
        self.kept.send_if_modified(|Kept { by_location, news }| {
            let name = report.location.clone();
            let before = by_location.get(&name);
            let refusals = match before {
                Some(before) if before.refusals.is_empty() && report.shortfalls.is_empty() => {
                    Arc::clone(&before.refusals)
                }
                before => {
                    Arc::new(refusals::after(before.map(|before| &*before.refusals), &report))
                }
            };
            let received = Received::new(Arc::new(report), refusals);
            let of_apps = before.map(|before| received.news(before)).unwrap_or_default();
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
            let is_it = |s: &&InstanceStatus| s.project == *project && s.observed.instance == *id;
            let status = received.report.instances.iter().find(is_it)?;
            Some((received.clone(), status.clone()))
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
        || (a.leaving, &a.yielding) != (b.leaving, &b.yielding)
}

/// Whether what two reports say differs that is neither of an app nor follows from that. Times that pass, and times
/// that are measured all the time, are no news.
fn rest_differs(a: &LocationReport, b: &LocationReport) -> bool {
    let LocationReport {
        location,
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
        reached,
        version,
        runtimes,
        traits,
        lost,
        instances: _,
        cordon,
        drained: _,
    } = a;
    // When an address was tried last is no news.
    let outcome = |one: &Reached| (one.address.clone(), one.error.clone());
    (node, reachable, version) != (&b.node, &b.reachable, &b.version)
        || !reached.iter().map(outcome).eq(b.reached.iter().map(outcome))
        || (runtimes, traits, lost, cordon) != (&b.runtimes, &b.traits, &b.lost, &b.cordon)
}

#[cfg(test)]
mod tests;
