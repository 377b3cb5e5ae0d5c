//! The routing table in force.
//!
//! A request is counted at its endpoint under the same lock under which the table is read, and a
//! table is replaced under the exclusive lock. So once [`Router::replace`] has returned, no request
//! is routed by an older table. An endpoint that stays keeps its state: requests in flight, idle
//! connections, failures.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use longshore_api::links::RoutingTable;
use longshore_types::{AppName, InstanceId};
use tokio::time::Instant;

use crate::upstream::{InFlight, Upstream, UpstreamKey};

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

/// The routing table in force, shared by all requests.
#[derive(Debug, Default)]
pub(crate) struct Router {
    table: RwLock<Option<Table>>,
    /// Endpoints that left the table while they had requests in flight.
    departed: Mutex<Vec<Arc<Upstream>>>,
}

#[derive(Debug)]
struct Table {
    by_host: HashMap<String, Arc<App>>,
    upstreams: HashMap<UpstreamKey, Arc<Upstream>>,
}

#[derive(Debug)]
struct App {
    name: AppName,
    upstreams: Vec<Arc<Upstream>>,
}

impl Router {
    /// Puts a table in force. Endpoints that are no longer in it get no new request; those in
    /// flight go on to their end.
    pub fn replace(&self, table: &RoutingTable) {
        let mut in_force = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let before = in_force.take().map(|table| table.upstreams).unwrap_or_default();
        let table = Table::build(table, &before);
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

    /// Picks the endpoint with the fewest requests in flight among those of `host` that are not in
    /// `tried`, by chance among equals, and counts a request there. Endpoints that were put aside
    /// are taken only when there is no other.
    pub fn pick(&self, host: &str, tried: &BTreeSet<InstanceId>) -> Result<InFlight, NoPick> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let table = table.as_ref().ok_or(NoPick::NoTable)?;
        let app = table.by_host.get(host).ok_or(NoPick::UnknownHost)?;
        let now = Instant::now();
        let untried = || app.upstreams.iter().filter(|u| !tried.contains(&u.endpoint().instance));
        let picked = least_outstanding(untried().filter(|upstream| !upstream.is_aside(now)))
            .or_else(|| least_outstanding(untried()))
            .ok_or_else(|| NoPick::NoEndpoint(app.name.clone()))?;
        picked.note_picked(now);
        Ok(InFlight::begin(picked))
    }

    /// Every endpoint of the table in force.
    pub fn upstreams(&self) -> Vec<Arc<Upstream>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.iter().flat_map(|table| table.upstreams.values()).cloned().collect()
    }
}

impl Table {
    fn build(table: &RoutingTable, before: &HashMap<UpstreamKey, Arc<Upstream>>) -> Self {
        let mut built = Self { by_host: HashMap::new(), upstreams: HashMap::new() };
        for route in &table.routes {
            let upstreams = route.endpoints.iter().map(|endpoint| {
                let key = UpstreamKey::of(endpoint);
                let upstream = built.upstreams.entry(key).or_insert_with_key(|key| {
                    let kept = before.get(key).cloned();
                    kept.unwrap_or_else(|| Arc::new(Upstream::new(endpoint.clone())))
                });
                Arc::clone(upstream)
            });
            let app = Arc::new(App { name: route.app.clone(), upstreams: upstreams.collect() });
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

fn least_outstanding<'a>(
    upstreams: impl Iterator<Item = &'a Arc<Upstream>>,
) -> Option<&'a Arc<Upstream>> {
    let mut best: Option<(&Arc<Upstream>, usize)> = None;
    let mut equals = 0;
    for upstream in upstreams {
        let outstanding = upstream.outstanding();
        match best {
            Some((_, fewest)) if outstanding > fewest => {}
            Some((_, fewest)) if outstanding == fewest => {
                equals += 1;
                // The n-th of n equals replaces the pick with chance 1/n: all are equally likely.
                if fastrand::u32(0..equals) == 0 {
                    best = Some((upstream, fewest));
                }
            }
            _ => {
                equals = 1;
                best = Some((upstream, outstanding));
            }
        }
    }
    best.map(|(upstream, _)| upstream)
}

#[cfg(test)]
mod tests;
