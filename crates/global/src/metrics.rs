//! What the global plane tells operators; `docs/metrics.md` says what each means.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use longshore_api::links::NodeSummary;
use longshore_store::StoreMetrics;
use longshore_telemetry::metrics::{Registry, Unit, times};
use longshore_telemetry::requests::{Requests, matched};
use longshore_telemetry::scrape::{Scrape, at_scrape};
use longshore_types::LocationName;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::histogram::Histogram;

use crate::catalog::Catalog;
use crate::reports::{ByLocation, Received};
use crate::{Plane, scheduler};

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
struct InPhase {
    location: String,
    phase: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AppLabels {
    project: String,
    app: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LocationLabels {
    location: String,
}

/// The metrics of the global plane.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Of the store.
    pub store: StoreMetrics,
    /// Of the API.
    pub api: Requests,
    /// How long a look of the scheduler at everything takes.
    pub rounds: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { store: StoreMetrics::default(), api: Requests::new(matched), rounds: times() }
    }
}

/// The control plane that is told of, once it leads.
pub type Leading = Arc<OnceLock<Arc<Plane>>>;

impl Metrics {
    /// Fills a registry with these, and with what is read from the state at each scrape.
    pub fn register(&self, registry: &mut Registry, store: PathBuf, leading: Leading) {
        self.store.register(registry, store);
        let registry = registry.sub_registry_with_prefix("longshore_global");
        self.api.register(registry.sub_registry_with_prefix("api"));
        registry.register_with_unit(
            "round_duration",
            "One look of the scheduler at all apps, with what it stores",
            Unit::Seconds,
            self.rounds.clone(),
        );
        at_scrape(registry, move |scrape| {
            let (leads, look) = match leading.get() {
                Some(plane) => (1.0, (plane.catalog(), plane.reports.now())),
                None => (0.0, Default::default()),
            };
            scrape.gauge(
                "leads",
                "1 where this control plane leads and answers by itself",
                leads,
            )?;
            let (catalog, reports) = look;
            tell_of_catalog(scrape, &catalog)?;
            tell_of_allotments(scrape, &catalog)?;
            tell_of_goals(scrape, &catalog, &reports)?;
            tell_of_instances(scrape, &reports)?;
            tell_of_locations(scrape, &reports)
        });
    }
}

fn tell_of_catalog(scrape: &mut Scrape<'_>, catalog: &Catalog) -> fmt::Result {
    let count = |n: usize| n as f64;
    scrape.gauge("apps", "Apps that are deployed", count(catalog.apps.len()))?;
    scrape.gauge("releases", "Releases that are kept", count(catalog.releases.len()))?;
    let records = || catalog.apps.values().map(|stored| &stored.record);
    let under_way = records().filter(|one| one.good != Some(one.release)).count();
    let help = "Apps whose release was not complete yet";
    scrape.gauge("rollouts_under_way", help, count(under_way))?;
    let failed = records().filter(|one| one.failed.is_some()).count();
    scrape.gauge("rollouts_failed", "Apps whose last rollout failed", count(failed))
}

/// What a location was given of all apps.
#[derive(Default)]
struct Allotted {
    count: u32,
    budget: u32,
    in_force: u32,
}

fn tell_of_allotments(scrape: &mut Scrape<'_>, catalog: &Catalog) -> fmt::Result {
    let mut allotted = BTreeMap::<&LocationName, Allotted>::new();
    for ((location, ..), stored) in &catalog.allotments {
        let Allotted { count, budget, in_force } = allotted.entry(location).or_default();
        *count = count.saturating_add(stored.record.count);
        *budget = budget.saturating_add(stored.record.budget);
        *in_force = in_force.saturating_add(stored.record.budget_in_force);
    }
    let mut of = |name: &str, help: &str, value: fn(&Allotted) -> u32| {
        let labels = |location: &LocationName| LocationLabels { location: location.to_string() };
        let values = allotted.iter().map(|(at, one)| (labels(at), f64::from(value(one))));
        scrape.gauges(name, help, values)
    };
    let help = "Instances that should run at the location";
    of("location_allotted_instances", help, |one| one.count)?;
    let help = "Instances that may ever run at the location";
    of("location_budget_instances", help, |one| one.budget)?;
    let help = "The largest budget that the location may still go by";
    of("location_budget_in_force_instances", help, |one| one.in_force)
}

fn tell_of_goals(scrape: &mut Scrape<'_>, catalog: &Catalog, reports: &ByLocation) -> fmt::Result {
    let views = catalog.apps.keys().filter_map(|key| {
        let labels = AppLabels { project: key.0.to_string(), app: key.1.to_string() };
        Some((labels, scheduler::latency(catalog, reports, key)?))
    });
    let views: Vec<_> = views.collect();
    let goals = views
        .iter()
        .map(|(labels, view)| (labels.clone(), f64::from(view.users.permille()) / 1000.0));
    let help = "The share of its users that an app should have within its round trip";
    scrape.gauges("app_users_goal_ratio", help, goals)?;
    let reached = views
        .iter()
        .filter_map(|(labels, view)| Some((labels.clone(), f64::from(view.reached?) / 100.0)));
    let help = "The share that it has, where it is known who its users are";
    scrape.gauges("app_users_reached_ratio", help, reached)
}

fn tell_of_instances(scrape: &mut Scrape<'_>, reports: &ByLocation) -> fmt::Result {
    let mut phases = BTreeMap::<InPhase, u32>::new();
    for (location, received) in reports.iter() {
        for one in received.instances() {
            let (location, phase) = (location.to_string(), one.observed.phase.as_str());
            *phases.entry(InPhase { location, phase }).or_default() += 1;
        }
    }
    let phases = phases.into_iter().map(|(labels, count)| (labels, f64::from(count)));
    scrape.gauges("location_instances", "Instances that the location reports, by phase", phases)
}

fn tell_of_locations(scrape: &mut Scrape<'_>, reports: &ByLocation) -> fmt::Result {
    let mut of = |name: &str, help: &str, value: fn(&Received) -> f64| {
        let values = reports.iter().map(|(location, received)| {
            (LocationLabels { location: location.to_string() }, value(received))
        });
        scrape.gauges(name, help, values)
    };
    of("location_reachable", "1 when the location reported lately", |one| {
        f64::from(u8::from(one.reachable()))
    })?;
    of("location_instances_without_place", "Instances that find no place there", |one| {
        one.report.shortfalls.iter().map(|short| f64::from(short.missing)).sum()
    })?;
    of("location_cpu_cores", "Cores that its nodes offer", |one| {
        sum(one, |node| node.capacity.cpu.cores())
    })?;
    of("location_cpu_promised_cores", "Those of them that instances have", |one| {
        sum(one, |node| node.promised.cpu.cores())
    })?;
    of("location_memory_bytes", "Memory that its nodes offer", |one| {
        sum(one, |node| node.capacity.memory.0 as f64)
    })?;
    of("location_memory_promised_bytes", "That of it that instances have", |one| {
        sum(one, |node| node.promised.memory.0 as f64)
    })
}

/// Over the nodes that the location can reach.
fn sum(received: &Received, value: fn(&NodeSummary) -> f64) -> f64 {
    received.report.nodes.iter().filter(|node| node.reachable).map(value).sum()
}

/// A registry as the global plane fills it, to hold against the documentation.
pub fn described() -> Registry {
    let mut registry = registry();
    let metrics = Metrics::default();
    metrics.api.invent();
    metrics.register(&mut registry, PathBuf::new(), Leading::default());
    registry
}

/// A registry with what every role tells.
pub fn registry() -> Registry {
    longshore_telemetry::metrics::registry("global", env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
mod tests {
    use longshore_store::Revision;
    use longshore_telemetry::metrics::text;
    use longshore_types::{Decision, Generation, ReleaseNumber, Timestamp};

    use super::*;
    use crate::catalog::Stored;
    use crate::records::AllotmentRecord;

    #[test]
    fn a_budget_that_was_lowered_is_told_for_as_long_as_it_is_in_force() {
        let decision =
            Decision { at: Timestamp(0), chosen: None, why: String::new(), candidates: vec![] };
        let given = |(location, app): (&str, &str), budget, budget_in_force| {
            let (release, generation) = (ReleaseNumber(1), Generation(1));
            let record = AllotmentRecord {
                release,
                count: 1,
                canary: None,
                command: None,
                held_back: false,
                make_room: 0,
                budget,
                budget_in_force,
                generation,
                left_with: None,
                decision: decision.clone(),
            };
            let key = (location.parse().unwrap(), "default".parse().unwrap(), app.parse().unwrap());
            (key, Stored { record, revision: Revision(1) })
        };
        let mut catalog = Catalog::default();
        for (key, stored) in
            [given(("ams", "api"), 1, 3), given(("ams", "web"), 2, 2), given(("sin", "web"), 1, 1)]
        {
            catalog.allotments.insert(key, stored);
        }
        let mut registry = registry();
        at_scrape(&mut registry, move |scrape| tell_of_allotments(scrape, &catalog));
        let text = text(&registry);
        for line in [
            "location_budget_instances{location=\"ams\"} 3.0",
            "location_budget_in_force_instances{location=\"ams\"} 5.0",
            "location_budget_in_force_instances{location=\"sin\"} 1.0",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
