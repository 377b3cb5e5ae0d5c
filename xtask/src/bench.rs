//! `bench`: measurements, each with its peers beside it in one run.
//!
//! The last line is `RESULT ` and one line of JSON, for machines; the table above it is for people.

mod api;
mod charged;
mod contenders;
mod dashboard;
mod density;
mod figures;
mod first_answer;
mod fleet;
mod laboratory;
mod plane;
mod pull;
mod registry;
mod rollout;
mod start;
mod wire;
mod world;

use std::collections::BTreeMap;

use anyhow::Result;
use clap::Subcommand;

use crate::command::{output, program};

/// What can be measured.
#[derive(Subcommand)]
pub enum Bench {
    /// From the call to the first answer of a container whose image is there, beside docker and
    /// podman; and the memory that Longshore takes
    Start(start::Options),
    /// What 200 idle instances take beside their own memory, and how fast all of them start, beside
    /// docker
    Density(density::Options),
    /// Pushes and pulls, of many small blobs and of a large one, beside Debian's docker-registry
    Registry(registry::Options),
    /// From the call to the image being there, beside docker, podman and containerd; pushes, and starts of
    /// what is there
    Pull(pull::Options),
    /// The API with 351 locations and 10,000 instances: lists, and watches by 200 clients
    Api(api::Options),
    /// The dashboard with 351 locations and 10,000 instances: until it is useful, and the bytes sent
    Dashboard(dashboard::Options),
    /// Ten instances replaced under load, and the requests that fail, beside docker-compose
    Rollout(rollout::Options),
    /// What the wire of `longshore world` carries
    Wire(wire::Options),
    /// How many placements a second are on disk, and 351 locations with one control plane or two
    World(world::Options),
    /// The nodes of `bench world`
    #[command(hide = true)]
    WorldAgents(world::agents::Options),
}

/// Measures it.
pub fn run(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Start(options) => start::run(options),
        Bench::Density(options) => density::run(options),
        Bench::Registry(options) => registry::run(options),
        Bench::Pull(options) => pull::run(options),
        Bench::Api(options) => api::run(options),
        Bench::Dashboard(options) => dashboard::run(options),
        Bench::Rollout(options) => rollout::run(options),
        Bench::Wire(options) => wire::run(options),
        Bench::World(options) => world::run(options),
        Bench::WorldAgents(options) => world::agents::run(options),
    }
}

/// Prints what the figures were measured on.
fn print_machine() {
    let kernel = output(&mut program("uname", ["-r"])).unwrap_or_default();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let runc = output(&mut program("runc", ["--version"])).unwrap_or_default();
    println!("\nLinux {}, {cores} cores, load {}", kernel.trim(), load.trim());
    println!("{}", runc.lines().next().unwrap_or("no runc"));
}

/// Prints the last line.
fn print_result(bench: &str, figures: &BTreeMap<&str, f64>) {
    let rounded: BTreeMap<_, _> =
        figures.iter().map(|(name, value)| (*name, (value * 1000.0).round() / 1000.0)).collect();
    // Built by hand for the order of the two keys.
    let figures = serde_json::to_string(&rounded).expect("numbers can be written as JSON");
    println!("RESULT {{\"bench\": {bench:?}, \"figures\": {figures}}}");
}
