//! The routing table in force.
//!
//! A request is counted at its endpoint under the same lock under which the table is read, and a
//! table is replaced under the exclusive lock. So once [`Router::replace`] has returned, no request
//! is routed by an older table. An endpoint that stays keeps its state: requests in flight, idle
//! connections, failures.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use longshore_api::links::RoutingTable;
use longshore_types::{AppName, InstanceId};
use tokio::time::Instant;

use crate::upstream::{InFlight, Upstream, UpstreamKey};

/// How long requests to an endpoint that left the table may delay the acknowledgement of that
/// table. The location stops an instance without an acknowledgement after twice as long.
const DEPARTURE_GRACE: Duration = Duration::from_secs(1);

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
    departed: Mutex<Vec<Departed>>,
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

/// An endpoint that left the table while it had requests in flight.
#[derive(Debug, Clone)]
struct Departed {
    upstream: Arc<Upstream>,
    awaited_until: Instant,
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
        let awaited_until = Instant::now() + DEPARTURE_GRACE;
        let mut departed = self.departed.lock().unwrap_or_else(PoisonError::into_inner);
        departed.retain(|earlier| earlier.upstream.outstanding() > 0);
        for upstream in gone {
            upstream.retire();
            departed.push(Departed { upstream, awaited_until });
        }
    }

    /// Waits until endpoints that left the table have no request in flight, each for a second at
    /// most. With that word an instance is told to stop, and a short request should not meet it.
    pub async fn departed_quiet(&self) {
        let departed = self.departed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for Departed { upstream, awaited_until } in departed {
            // Over time means a long request, which goes on while its instance is being stopped.
            let _ = tokio::time::timeout_at(awaited_until, upstream.quiet()).await;
        }
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
