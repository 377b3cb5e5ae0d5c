//! The routing table in force.
//!
//! A request is counted at its endpoint under the same lock under which the table is read, and a
//! table is replaced under the exclusive lock. So once [`Router::replace`] has returned, no request
//! is routed by an older table. An endpoint that stays keeps its state: requests in flight, idle
//! connections, failures.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use longshore_api::links::RoutingTable;
use longshore_types::{AppName, IngressRules, InstanceId, LocationEpoch};
use tokio::time::Instant;

use crate::balance::{self, Candidate, Times};
use crate::elsewhere::Told;
use crate::metrics::{AppLabels, AppMetrics, Census, Metrics, TableCensus};
use crate::upstream::{InFlight, Site, Upstream, UpstreamKey};

/// Why no endpoint was picked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoPick {
    /// No table was ever given.
    NoTable,
    /// No app has this host name.
    UnknownHost,
    /// The app has no endpoint, or all were tried.
    NoEndpoint(AppName),
}

/// Whether endpoints count that are put aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aside {
    /// When there is no other.
    Too,
    Never,
}

/// The routing table in force, shared by all requests.
#[derive(Debug, Default)]
pub(crate) struct Router {
    times: Times,
    metrics: Metrics,
    table: RwLock<Option<Table>>,
    /// Endpoints that left the table while they had requests in flight.
    departed: Mutex<Vec<Arc<Upstream>>>,
}

#[derive(Debug)]
struct Table {
    location_epoch: LocationEpoch,
    revision: u64,
    apps: Vec<Arc<App>>,
    by_host: HashMap<String, Arc<App>>,
    upstreams: HashMap<UpstreamKey, Arc<Upstream>>,
}

/// An app of the table.
#[derive(Debug)]
pub(crate) struct App {
    name: AppName,
    pub rules: IngressRules,
    pub labels: AppLabels,
    pub metrics: AppMetrics,
    upstreams: Vec<Arc<Upstream>>,
}

impl App {
    /// One whose request goes to another location.
    pub fn elsewhere(name: AppName, labels: AppLabels, metrics: AppMetrics) -> Self {
        Self { name, rules: IngressRules::default(), labels, metrics, upstreams: Vec::new() }
    }

    pub fn name(&self) -> &AppName {
        &self.name
    }

    fn candidates(&self, tried: &BTreeSet<InstanceId>, now: Instant) -> Vec<Candidate> {
        let candidate = |upstream: &Arc<Upstream>| {
            let untried = upstream.instance().is_none_or(|instance| !tried.contains(instance));
            upstream.candidate(&self.rules, untried, now)
        };
        self.upstreams.iter().map(candidate).collect()
    }
}

impl Router {
    /// A router without a table.
    pub fn new(times: Times, metrics: Metrics) -> Self {
        Self { times, metrics, ..Self::default() }
    }

    /// Puts a table in force. Endpoints that are no longer in it get no new request; those in
    /// flight go on to their end.
    pub fn replace(&self, table: &RoutingTable) {
        self.replace_at(table, Instant::now());
    }

    fn replace_at(&self, table: &RoutingTable, now: Instant) {
        let mut in_force = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let before = in_force.take();
        let apps = before.iter().flat_map(|table| &table.apps);
        let known: Vec<_> = apps.map(|app| app.labels.clone()).collect();
        let before = before.map(|table| table.upstreams).unwrap_or_default();
        let table = Table::build(table, &before, &self.metrics, now);
        let stays = |labels: &&AppLabels| table.apps.iter().any(|app| app.labels == **labels);
        known.iter().filter(|one| !stays(one)).for_each(|gone| self.metrics.forget(gone));
        let gone: Vec<_> = before
            .into_iter()
            .filter(|(key, _)| !table.upstreams.contains_key(key))
            .map(|(_, upstream)| upstream)
            .collect();
        *in_force = Some(table);
        drop(in_force);
        self.note_departures(gone);
    }

    fn note_departures(&self, gone: Vec<Arc<Upstream>>) {
        gone.iter().for_each(|upstream| upstream.retire());
        self.departed.lock().unwrap_or_else(PoisonError::into_inner).extend(gone);
    }

    /// Endpoints that left the table and still have requests in flight.
    pub fn departed(&self) -> Vec<Arc<Upstream>> {
        let mut departed = self.departed.lock().unwrap_or_else(PoisonError::into_inner);
        departed.retain(|upstream| upstream.outstanding() > 0);
        departed.clone()
    }

    /// Picks an endpoint of `host` that is not in `tried`, and counts a request there.
    pub fn pick(&self, host: &str, tried: &BTreeSet<InstanceId>) -> Result<InFlight, NoPick> {
        self.pick_at(host, tried, Aside::Too, Instant::now())
    }

    /// The same without those that are put aside because they took no connection just now.
    pub fn pick_sound(&self, host: &str, tried: &BTreeSet<InstanceId>) -> Result<InFlight, NoPick> {
        self.pick_at(host, tried, Aside::Never, Instant::now())
    }

    fn pick_at(
        &self,
        host: &str,
        tried: &BTreeSet<InstanceId>,
        aside: Aside,
        now: Instant,
    ) -> Result<InFlight, NoPick> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let table = table.as_ref().ok_or(NoPick::NoTable)?;
        let app = table.by_host.get(host).ok_or(NoPick::UnknownHost)?;
        let mut candidates = app.candidates(tried, now);
        if aside == Aside::Never {
            candidates.iter_mut().for_each(|one| one.untried &= !one.aside);
        }
        let picked = balance::pick(&candidates, &mut fastrand::Rng::new())
            .map(|idx| &app.upstreams[idx])
            .ok_or_else(|| NoPick::NoEndpoint(app.name.clone()))?;
        picked.note_picked(now);
        Ok(InFlight::begin(picked, app, &self.times))
    }

    /// Ejects endpoints whose requests failed far more often than their siblings' since the last
    /// comparison.
    pub fn compare(&self) {
        for app in self.apps() {
            let windows: Vec<_> = app.upstreams.iter().map(|one| one.take_window()).collect();
            if app.rules.outlier_ejection {
                let outliers = balance::far_above(&windows);
                outliers.into_iter().for_each(|idx| app.upstreams[idx].eject(&app, &self.times));
            }
        }
    }

    /// The app of a host, for what is told of a request that got no instance.
    pub fn app(&self, host: &str) -> Option<Arc<App>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.as_ref()?.by_host.get(host).cloned()
    }

    /// Apps are served elsewhere no more: what was counted of those that are not served here goes.
    pub fn forget_others(&self, apps: &[AppLabels]) {
        let own = self.apps();
        let gone = apps.iter().filter(|gone| own.iter().all(|app| app.labels != **gone));
        gone.for_each(|gone| self.metrics.forget(gone));
    }

    /// How much there is to do, as ingresses of other locations are told.
    pub fn told(&self) -> Told {
        let upstreams = self.upstreams();
        let requests = upstreams.iter().map(|one| one.outstanding()).sum();
        Told { requests, instances: upstreams.len() }
    }

    /// The life of the location that the table is of; the first where there is none.
    pub fn location_epoch(&self) -> LocationEpoch {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.as_ref().map_or(LocationEpoch::FIRST, |table| table.location_epoch)
    }

    /// How the table stands.
    pub fn census(&self) -> TableCensus {
        let now = Instant::now();
        let revision = {
            let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
            table.as_ref().map_or(0, |table| table.revision)
        };
        let apps = self.apps().into_iter().map(|app| {
            let candidates = app.candidates(&BTreeSet::new(), now);
            Census {
                labels: app.labels.clone(),
                endpoints: candidates.len(),
                left_out: balance::left_out(&candidates).len(),
                in_flight: candidates.iter().map(|one| one.outstanding).sum(),
            }
        });
        TableCensus { revision, apps: apps.collect() }
    }

    fn apps(&self) -> Vec<Arc<App>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.iter().flat_map(|table| &table.apps).cloned().collect()
    }

    /// Every endpoint of the table in force.
    pub fn upstreams(&self) -> Vec<Arc<Upstream>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.iter().flat_map(|table| table.upstreams.values()).cloned().collect()
    }
}

impl Table {
    fn build(
        table: &RoutingTable,
        before: &HashMap<UpstreamKey, Arc<Upstream>>,
        metrics: &Metrics,
        now: Instant,
    ) -> Self {
        let mut built = Self {
            location_epoch: table.location_epoch,
            revision: table.revision,
            apps: Vec::new(),
            by_host: HashMap::new(),
            upstreams: HashMap::new(),
        };
        for route in &table.routes {
            let upstreams = route.endpoints.iter().map(|endpoint| {
                let key = UpstreamKey::of(endpoint);
                let upstream = built.upstreams.entry(key).or_insert_with_key(|key| {
                    let kept = before.get(key).cloned();
                    kept.unwrap_or_else(|| {
                        Arc::new(Upstream::new(Site::Instance(endpoint.clone()), now))
                    })
                });
                Arc::clone(upstream)
            });
            let labels = AppLabels::new(&route.project, &route.app);
            let app = Arc::new(App {
                metrics: metrics.of_app(&labels),
                labels,
                name: route.app.clone(),
                rules: route.rules.clone(),
                upstreams: upstreams.collect(),
            });
            built.apps.push(Arc::clone(&app));
            for host in &route.hosts {
                let first = built.by_host.entry(host.as_str().to_owned());
                let first = first.or_insert_with(|| Arc::clone(&app));
                if !Arc::ptr_eq(first, &app) {
                    tracing::warn!(%host, app = %app.name, kept = %first.name, "two apps, one host");
                }
            }
        }
        built
    }
}

/// Compares how often requests failed at the endpoints of each app, interval by interval, for ever.
pub(crate) async fn compare(router: &Router) {
    let mut ticks = tokio::time::interval(router.times.interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        router.compare();
    }
}

#[cfg(test)]
mod tests;
