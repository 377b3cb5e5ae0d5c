//! What a location tells operators; `docs/metrics.md` says what each means.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use longshore_api::links::{NodeSummary, RoutingTable};
use longshore_link::Service;
use longshore_store::StoreMetrics;
use longshore_telemetry::metrics::{Registry, Unit, times};
use longshore_telemetry::scrape::{Scrape, at_scrape};
use longshore_telemetry::traces::{Span, Start, Tracer};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::watch;

use crate::log::Log;
use crate::records::InstanceRecord;
use crate::state::Reported;

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
struct AppAndPhase {
    project: String,
    app: String,
    phase: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AppLabels {
    project: String,
    app: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NodeLabels {
    node: String,
}

/// The metrics of a location.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Of the store.
    pub store: StoreMetrics,
    /// How long a round of the keeper takes.
    pub rounds: Histogram,
    /// Of what is kept of images.
    pub mirror: MirrorMetrics,
}

impl Default for Metrics {
    fn default() -> Self {
        let (store, mirror) = Default::default();
        Self { store, rounds: times(), mirror }
    }
}

/// How a node got a blob.
#[derive(Debug, Clone, Copy)]
pub enum Outcome {
    /// It was here whole.
    Here,
    /// What was not here of it came for the mirror.
    Coming,
    /// It came past that.
    Passed,
}

impl Outcome {
    const ALL: [Self; 3] = [Self::Here, Self::Coming, Self::Passed];

    fn as_str(self) -> &'static str {
        match self {
            Self::Here => "here",
            Self::Coming => "coming",
            Self::Passed => "passed",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Asked {
    outcome: &'static str,
}

/// Those of what a location keeps of images.
#[derive(Debug, Clone)]
pub struct MirrorMetrics {
    requests: Family<Asked, Counter>,
    /// Bytes that nodes were given of it.
    pub given: Counter,
    /// Bytes that came for it.
    pub fetched: Counter,
    /// Bytes of blobs that are here.
    pub kept: Gauge,
}

impl Default for MirrorMetrics {
    fn default() -> Self {
        let requests = Family::<Asked, Counter>::default();
        // They are told from the beginning, so that the first of each is a change.
        Outcome::ALL.iter().for_each(|how| {
            drop(requests.get_or_create(&Asked { outcome: how.as_str() }));
        });
        let (given, fetched, kept) = Default::default();
        Self { requests, given, fetched, kept }
    }
}

impl MirrorMetrics {
    /// A node asked for a blob, or a part of one.
    pub fn asked(&self, how: Outcome) {
        self.requests.get_or_create(&Asked { outcome: how.as_str() }).inc();
    }

    fn register(&self, registry: &mut Registry) {
        let help = "Requests of nodes for blobs, by where those were: here, coming, passed";
        registry.register("mirror_requests", help, self.requests.clone());
        let help = "Bytes of blobs that nodes were given of the mirror";
        registry.register_with_unit("mirror_given", help, Unit::Bytes, self.given.clone());
        let help = "Bytes of blobs that came from the registry for the mirror";
        registry.register_with_unit("mirror_fetched", help, Unit::Bytes, self.fetched.clone());
        let help = "Bytes of the blobs that the mirror has whole";
        registry.register_with_unit("mirror_kept", help, Unit::Bytes, self.kept.clone());
    }
}

/// What the keeper tells operators of its rounds.
pub struct Watched {
    /// How long each took.
    pub rounds: Histogram,
    /// What it began.
    pub tracer: Tracer,
    /// What it decided.
    pub log: Log,
}

impl Watched {
    /// Of a location that begins.
    pub fn new(metrics: &Metrics, data_dir: &Path, service: &Service) -> Self {
        Self {
            rounds: metrics.rounds.clone(),
            tracer: Tracer::start("location", env!("CARGO_PKG_VERSION"), service),
            log: Log::open(data_dir),
        }
    }

    /// Instances that were decided on have been stored and told to their nodes.
    pub fn note_scheduled<'a>(&self, records: impl Iterator<Item = &'a InstanceRecord>) {
        for record in records {
            let start = Start::new(record.instance.as_str(), 0);
            let attributes = vec![
                ("longshore.instance", record.instance.to_string()),
                ("longshore.node", record.node.to_string()),
            ];
            let (parent, failure) = (start.root(), None);
            let began = UNIX_EPOCH + Duration::from_millis(record.created_at.0);
            let ended = SystemTime::now();
            let name = "schedule";
            self.tracer.tell(Span { start, name, parent, began, ended, attributes, failure });
        }
    }
}

/// What others are told, and operators too.
pub struct Told {
    pub report: watch::Receiver<Arc<Option<Reported>>>,
    pub routes: watch::Receiver<Arc<Option<RoutingTable>>>,
}

impl Metrics {
    /// Fills a registry with these, and with what is read from the last report at each scrape.
    pub fn register(&self, registry: &mut Registry, store: PathBuf, told: Told) {
        self.store.register(registry, store);
        let registry = registry.sub_registry_with_prefix("longshore_location");
        registry.register_with_unit(
            "round_duration",
            "From events to all that follows from them: planned, stored and published",
            Unit::Seconds,
            self.rounds.clone(),
        );
        self.mirror.register(registry);
        at_scrape(registry, move |scrape| {
            let revision = told.routes.borrow().as_ref().as_ref().map_or(0, |table| table.revision);
            let help = "The revision of the routing table that ingresses are told";
            scrape.gauge("routes_revision", help, revision as f64)?;
            let report = Arc::clone(&told.report.borrow());
            tell_of_instances(scrape, report.as_ref().as_ref())?;
            let nodes = report.as_ref().as_ref().map_or(&[][..], |told| &told.report.nodes);
            tell_of_nodes(scrape, nodes)
        });
    }
}

fn tell_of_instances(scrape: &mut Scrape<'_>, told: Option<&Reported>) -> fmt::Result {
    let mut counts = BTreeMap::<AppAndPhase, u32>::new();
    for one in told.into_iter().flat_map(|told| told.instances.values()) {
        let (project, app) = (one.project.to_string(), one.app.to_string());
        let phase = one.observed.phase.as_str();
        *counts.entry(AppAndPhase { project, app, phase }).or_default() += 1;
    }
    let counts = counts.into_iter().map(|(labels, count)| (labels, f64::from(count)));
    scrape.gauges("instances", "Instances by app and phase", counts)?;
    let shortfalls = told.into_iter().flat_map(|told| &told.report.shortfalls).map(|one| {
        let (project, app) = (one.project.to_string(), one.app.to_string());
        (AppLabels { project, app }, f64::from(one.missing))
    });
    scrape.gauges("instances_without_place", "Instances that find no place", shortfalls)
}

fn tell_of_nodes(scrape: &mut Scrape<'_>, nodes: &[NodeSummary]) -> fmt::Result {
    let mut of_nodes = |name: &str, help: &str, value: fn(&NodeSummary) -> f64| {
        let labels = |one: &NodeSummary| NodeLabels { node: one.node.to_string() };
        scrape.gauges(name, help, nodes.iter().map(|one| (labels(one), value(one))))
    };
    of_nodes("node_reachable", "1 when the node reported lately", |one| {
        f64::from(u8::from(one.reachable))
    })?;
    of_nodes("node_cordoned", "1 when an operator wants nothing new on the node", |one| {
        f64::from(u8::from(one.cordon.is_some()))
    })?;
    of_nodes("node_cpu_cores", "Cores that the node offers", |one| one.capacity.cpu.cores())?;
    of_nodes("node_cpu_promised_cores", "Those of them that instances have", |one| {
        one.promised.cpu.cores()
    })?;
    of_nodes("node_memory_bytes", "Memory that the node offers", |one| {
        one.capacity.memory.0 as f64
    })?;
    of_nodes("node_memory_promised_bytes", "That of it that instances have", |one| {
        one.promised.memory.0 as f64
    })?;
    of_nodes("node_disk_bytes", "Disk that the node offers", |one| one.capacity.disk.0 as f64)?;
    of_nodes("node_disk_promised_bytes", "That of it that instances have", |one| {
        one.promised.disk.0 as f64
    })
}

/// A registry as a location fills it, to hold against the documentation.
pub fn described() -> Registry {
    let mut registry = registry();
    let (report, routes) = (watch::channel(Arc::default()).1, watch::channel(Arc::default()).1);
    Metrics::default().register(&mut registry, PathBuf::new(), Told { report, routes });
    registry
}

/// A registry with what every role tells.
pub fn registry() -> Registry {
    longshore_telemetry::metrics::registry("location", env!("CARGO_PKG_VERSION"))
}
