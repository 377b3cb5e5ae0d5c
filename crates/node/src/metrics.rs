//! What a node tells operators; `docs/metrics.md` says what each means.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use longshore_api::links::StartPath;
use longshore_image::PullReport;
use longshore_link::{Listener, Service};
use longshore_telemetry::metrics::{Registry, Unit, long_times};
use longshore_telemetry::scrape::{Scrape, at_scrape};
use longshore_types::{ByteCount, Capacity, ExitReason};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::watch;

use crate::Node;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByPath {
    path: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InStage {
    stage: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InPhase {
    phase: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Pulled {
    outcome: &'static str,
}

const PATHS: [&str; 3] = ["pulled", "cached", "adopted"];
const STAGES: [&str; 6] = ["pull", "unpack", "network", "mount", "create", "ready"];
const REASONS: [&str; 9] = [
    "completed",
    "exited",
    "signalled",
    "out_of_memory",
    "stopped",
    "unhealthy",
    "shim_died",
    "node_restarted",
    "start_failed",
];

/// The metrics of a node.
#[derive(Debug, Clone)]
pub struct Metrics {
    starts: Family<ByPath, Histogram, fn() -> Histogram>,
    stages: Family<InStage, Histogram, fn() -> Histogram>,
    ends: Family<Ended, Counter>,
    restarts: Counter,
    pulls: Family<Pulled, Counter>,
    pulled: Counter,
    of_neighbours: Counter,
    given: Counter,
    pull_durations: Histogram,
    collected: Counter,
    collected_bytes: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let long = long_times as fn() -> Histogram;
        let starts = Family::<ByPath, _, _>::new_with_constructor(long);
        let stages = Family::<InStage, _, _>::new_with_constructor(long);
        let ends = Family::<Ended, Counter>::default();
        let pulls = Family::<Pulled, Counter>::default();
        // They are told from the beginning, so that the first of each is a change.
        PATHS.iter().for_each(|path| drop(starts.get_or_create(&ByPath { path })));
        STAGES.iter().for_each(|stage| drop(stages.get_or_create(&InStage { stage })));
        REASONS.iter().for_each(|reason| drop(ends.get_or_create(&Ended { reason })));
        ["done", "failed"]
            .iter()
            .for_each(|outcome| drop(pulls.get_or_create(&Pulled { outcome })));
        Self {
            starts,
            stages,
            ends,
            restarts: Counter::default(),
            pulls,
            pulled: Counter::default(),
            of_neighbours: Counter::default(),
            given: Counter::default(),
            pull_durations: long_times(),
            collected: Counter::default(),
            collected_bytes: Counter::default(),
        }
    }
}

impl Metrics {
    /// Fills a registry with these, and with what is read from the node at each scrape.
    pub fn register(
        &self,
        registry: &mut Registry,
        node: Weak<Node>,
        capacity: watch::Receiver<Capacity>,
    ) {
        let registry = registry.sub_registry_with_prefix("longshore_node");
        let help = "From the beginning of a start to the first passed health check, waits between \
                    stages not counted, by how the image came";
        registry.register_with_unit("start_duration", help, Unit::Seconds, self.starts.clone());
        let help = "One stage of a start";
        registry.register_with_unit(
            "start_stage_duration",
            help,
            Unit::Seconds,
            self.stages.clone(),
        );
        registry.register("instance_ends", "Ends of containers, by reason", self.ends.clone());
        let help = "Containers that are started again after they ended";
        registry.register("restarts", help, self.restarts.clone());
        let help = "Pulls of images by how they ended: done, failed";
        registry.register("pulls", help, self.pulls.clone());
        let help = "Bytes of layers that pulls fetched";
        registry.register_with_unit("pulled", help, Unit::Bytes, self.pulled.clone());
        let help = "Bytes of layers' contents that pulls had of other nodes";
        let of_neighbours = self.of_neighbours.clone();
        registry.register_with_unit("pulled_of_neighbours", help, Unit::Bytes, of_neighbours);
        let help = "Bytes of layers' contents that were given to other nodes";
        registry.register_with_unit("given_to_neighbours", help, Unit::Bytes, self.given.clone());
        let help = "Pulls of images that succeeded";
        registry.register_with_unit(
            "pull_duration",
            help,
            Unit::Seconds,
            self.pull_durations.clone(),
        );
        let help = "Images that left the disk because room was needed";
        registry.register("images_collected", help, self.collected.clone());
        let help = "Bytes that gave back";
        registry.register_with_unit(
            "images_collected",
            help,
            Unit::Bytes,
            self.collected_bytes.clone(),
        );
        at_scrape(registry, move |scrape| {
            tell_of_capacity(scrape, *capacity.borrow())?;
            tell_of_instances(scrape, node.upgrade().as_deref())
        });
    }

    /// A stage of a start took so long.
    pub fn note_stage(&self, name: &str, took: Duration) {
        if let Some(stage) = STAGES.into_iter().find(|known| *known == name) {
            self.stages.get_or_create(&InStage { stage }).observe(took.as_secs_f64());
        }
    }

    /// An instance is ready, after stages of so long together.
    pub fn note_start(&self, path: Option<StartPath>, took: Duration) {
        let path = match path {
            Some(StartPath::Pulled) => "pulled",
            Some(StartPath::Cached) => "cached",
            None => "adopted",
        };
        self.starts.get_or_create(&ByPath { path }).observe(took.as_secs_f64());
    }

    /// A container ended, or could not be started.
    pub fn note_end(&self, reason: &ExitReason) {
        let reason = match reason {
            ExitReason::Exited { code: 0 } => "completed",
            ExitReason::Exited { .. } => "exited",
            ExitReason::Signalled { .. } => "signalled",
            ExitReason::OutOfMemory { .. } => "out_of_memory",
            ExitReason::Stopped => "stopped",
            ExitReason::Unhealthy => "unhealthy",
            ExitReason::ShimDied => "shim_died",
            ExitReason::NodeRestarted => "node_restarted",
            ExitReason::StartFailed { .. } => "start_failed",
        };
        self.ends.get_or_create(&Ended { reason }).inc();
    }

    /// A container will be started again.
    pub fn note_restart(&self) {
        self.restarts.inc();
    }

    /// A pull ended.
    pub fn note_pull(&self, report: Option<&PullReport>, took: Duration) {
        let outcome = if report.is_some() { "done" } else { "failed" };
        self.pulls.get_or_create(&Pulled { outcome }).inc();
        if let Some(report) = report {
            self.pulled.inc_by(report.bytes_fetched.0);
            self.of_neighbours.inc_by(report.bytes_of_neighbours.0);
            self.pull_durations.observe(took.as_secs_f64());
        }
    }
}

impl Metrics {
    /// Another node was given so many bytes.
    pub fn note_given(&self, bytes: u64) {
        self.given.inc_by(bytes);
    }

    /// Images left the disk.
    pub fn note_collected(&self, images: usize, frees: ByteCount) {
        self.collected.inc_by(images as u64);
        self.collected_bytes.inc_by(frees.0);
    }
}

/// Serves the metrics of a node, where anyone may ask for them.
pub fn serve(
    node: &Arc<Node>,
    listener: Option<Listener>,
    capacity: watch::Receiver<Capacity>,
    service: &Service,
) {
    let Some(listener) = listener else { return };
    let mut registry = registry();
    // Its collectors must not keep the node from ending.
    node.metrics.register(&mut registry, Arc::downgrade(node), capacity);
    longshore_telemetry::metrics::serve(registry, listener, service);
}

fn tell_of_capacity(scrape: &mut Scrape<'_>, capacity: Capacity) -> fmt::Result {
    scrape.gauge("cpu_cores", "Cores that the node offers", capacity.cpu.cores())?;
    scrape.gauge("memory_bytes", "Memory that the node offers", capacity.memory.0 as f64)?;
    scrape.gauge("disk_bytes", "Disk that the node offers", capacity.disk.0 as f64)
}

fn tell_of_instances(scrape: &mut Scrape<'_>, node: Option<&Node>) -> fmt::Result {
    let board = node.map(|node| node.board.now()).unwrap_or_default();
    let mut phases = BTreeMap::<&'static str, u32>::new();
    board.values().for_each(|one| *phases.entry(one.phase.as_str()).or_default() += 1);
    let phases = phases.into_iter().map(|(phase, count)| (InPhase { phase }, f64::from(count)));
    scrape.gauges("instances", "Instances by phase", phases)?;
    let images = node.map_or(0, |node| node.images.list_images().len());
    scrape.gauge("images", "Images that are complete", images as f64)?;
    let running = board.values().filter(|one| one.phase.may_run());
    let used = running.filter_map(|one| node?.shims.usage(&one.instance).ok());
    let (mut memory, mut cpu) = (0, Duration::ZERO);
    used.for_each(|one| {
        memory += one.memory.0;
        cpu += one.cpu_time;
    });
    let help = "Memory that instances use, without page cache that can be dropped";
    scrape.gauge("instances_memory_bytes", help, memory as f64)?;
    let help = "Processor time that the containers of now have used since they began";
    scrape.gauge("instances_cpu_seconds", help, cpu.as_secs_f64())
}

/// A registry as a node fills it, to hold against the documentation.
pub fn described() -> Registry {
    let mut registry = registry();
    let capacity = watch::channel(Capacity::default()).1;
    Metrics::default().register(&mut registry, Weak::new(), capacity);
    registry
}

/// A registry with what every role tells.
pub fn registry() -> Registry {
    longshore_telemetry::metrics::registry("node", env!("CARGO_PKG_VERSION"))
}
