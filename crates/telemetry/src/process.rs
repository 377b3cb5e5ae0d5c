//! What the kernel knows of this process, by the names that every exporter of Prometheus uses.

use std::fmt;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::Registry;

use crate::scrape::at_scrape;

/// Registers them.
pub(crate) fn register(registry: &mut Registry) {
    registry.register_collector(Box::new(ProcessorTime));
    at_scrape(registry, |scrape| {
        let Some(now) = Now::read() else { return Ok(()) };
        let gauges = [
            ("process_resident_memory_bytes", "Memory in use", now.resident),
            ("process_virtual_memory_bytes", "Addresses in use", now.virtual_memory),
            ("process_threads", "Threads", now.threads),
            ("process_open_fds", "Open file descriptors", now.open_files),
            ("process_max_fds", "The limit on open file descriptors", now.max_files),
            ("process_start_time_seconds", "When it started, by the epoch of Unix", now.started),
        ];
        gauges.into_iter().try_for_each(|(name, help, value)| scrape.gauge(name, help, value))
    });
}

#[derive(Debug)]
struct ProcessorTime;

impl Collector for ProcessorTime {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let Some(now) = Now::read() else { return Ok(()) };
        let (name, help) = ("process_cpu_seconds", "Processor time, user and system");
        let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(now.cpu).encode(metric)
    }
}

/// The process now; floating, as Prometheus has all values.
struct Now {
    cpu: f64,
    resident: f64,
    virtual_memory: f64,
    threads: f64,
    open_files: f64,
    max_files: f64,
    started: f64,
}

impl Now {
    fn read() -> Option<Self> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // The name of the program is in brackets and may have any byte within them.
        let (_, fields) = stat.rsplit_once(')')?;
        let fields: Vec<f64> =
            fields.split_whitespace().map(|f| f.parse().unwrap_or(0.0)).collect();
        // By proc(5), from the state, which is the third field there and the first here.
        let field = |number: usize| fields.get(number - 3).copied();
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        Some(Self {
            cpu: (field(14)? + field(15)?) / ticks,
            resident: field(24)? * rustix::param::page_size() as f64,
            virtual_memory: field(23)?,
            threads: field(20)?,
            open_files: fs::read_dir("/proc/self/fd").ok()?.count() as f64,
            max_files: files.map_or(f64::INFINITY, |files| files as f64),
            started: boot_time()? + field(22)? / ticks,
        })
    }
}

fn boot_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}
