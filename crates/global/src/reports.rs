//! What locations report: kept in memory, the last report of each.

mod refusals;

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use longshore_api::links::{InstanceStatus, LocationReport};
use longshore_planning::global::{Demand, Ways};
use longshore_types::{InstanceId, LocationName, ProjectName, Timestamp};
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
}

impl Received {
    /// What it says of the instances of an app.
    pub fn of_app<'a>(
        &'a self,
        (project, app): &'a AppKey,
    ) -> impl Iterator<Item = &'a InstanceStatus> + use<'a> {
        let all = self.report.instances.iter();
        all.filter(move |status| status.project == *project && status.app == *app)
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

/// Keeps the reports and tells of changes.
#[derive(Debug)]
pub struct Reports {
    by_location: watch::Sender<Arc<ByLocation>>,
}

impl Default for Reports {
    fn default() -> Self {
        Self { by_location: watch::channel(Arc::default()).0 }
    }
}

impl Reports {
    /// Takes a report over, in place of the location's last one. Subscribers are told only when
    /// it says something new.
    pub fn receive(&self, report: LocationReport) {
        self.by_location.send_if_modified(|by_location| {
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
            let (at, at_wall) = (Instant::now(), longshore_link::now());
            let (demand, round_trips) = (Arc::new(demand(&report)), Arc::new(round_trips(&report)));
            let report = Arc::new(report);
            let received = Received { report, at, at_wall, refusals, demand, round_trips };
            let news = before.is_none_or(|before| {
                !before.reachable() || !same_but_for_time(&before.report, &received.report)
            });
            Arc::make_mut(by_location).insert(name, received);
            news
        });
    }

    /// Forgets what a location said that was removed.
    pub fn forget(&self, location: &LocationName) {
        self.by_location
            .send_if_modified(|by_location| Arc::make_mut(by_location).remove(location).is_some());
    }

    /// All reports now.
    pub fn now(&self) -> Arc<ByLocation> {
        Arc::clone(&self.by_location.borrow())
    }

    /// Tells of changes.
    pub fn subscribe(&self) -> watch::Receiver<Arc<ByLocation>> {
        self.by_location.subscribe()
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

/// Times that pass, and what is measured and counted all the time, is no news.
fn same_but_for_time(a: &LocationReport, b: &LocationReport) -> bool {
    let timeless = |report: &LocationReport| {
        let mut report = report.clone();
        report.at = Default::default();
        report.round_trip_micros = Default::default();
        report.demand = Vec::new();
        for node in &mut report.nodes {
            node.reported_at = Default::default();
            node.reached.iter_mut().for_each(|one| one.at = Default::default());
        }
        report
    };
    timeless(a) == timeless(b)
}
