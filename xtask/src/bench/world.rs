//! `bench world`: what the schedulers of a world come to, with nothing real below them but processes, sockets and
//! disks.
//!
//! - `durable`: how many placements a second are on disk on both ends: of instances of new apps, each deployed by
//!   `PUT` over the REST API, with one instance each and with sixteen. One counts when the acknowledgement of the
//!   simulated node that got the instance is committed in the location's store, which the node knows by the answer
//!   to its report.
//! - `spread`: 351 locations that are tasks speaking the real protocol: what each costs, how long a deploy takes to
//!   reach all, and how long until one that is lost is noticed and replaced.
//! - `leader`: three control planes on one etcd with 351 locations; the one that leads is killed, the next one frozen
//!   and woken, and nothing moves.

pub mod agents;
mod disks;
mod durable;
mod leader;
mod spread;

use std::collections::BTreeMap;

use anyhow::Result;
use clap::{Args, ValueEnum};

use super::{print_machine, print_result};
use crate::command::{cargo, run as run_command};

/// How much is measured.
#[derive(Args)]
pub struct Options {
    /// A few seconds of each, without the etcd
    #[arg(long)]
    quick: bool,
    /// Only this part; more than one may be said
    #[arg(long, value_name = "PART")]
    only: Vec<Part>,
    /// How many nodes the location of the durable run has
    #[arg(long, default_value = "200")]
    nodes: u32,
    /// How long the durable run goes on, in seconds [default: 60, 10 where it is quick]
    #[arg(long)]
    seconds: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Durable,
    Etcd,
    Spread,
    Leader,
}

impl Options {
    fn measures(&self, part: Part) -> bool {
        match self.only.as_slice() {
            [] if self.quick => matches!(part, Part::Durable | Part::Spread),
            [] => true,
            only => only.contains(&part),
        }
    }

    fn seconds(&self) -> u64 {
        self.seconds.unwrap_or(if self.quick { 10 } else { 60 })
    }
}

/// Figures by name.
type Figures = BTreeMap<&'static str, f64>;

/// Measures.
pub fn run(options: &Options) -> Result<()> {
    if cfg!(debug_assertions) && std::env::var_os("LONGSHORE_BIN").is_none() {
        // Clients and nodes share the machine with what is measured, so they have to be quick as well.
        let own = std::env::args().skip(1);
        let release = ["run", "--quiet", "--release", "--locked", "--package", "xtask", "--"];
        run_command(&mut cargo(["build", "--release", "--locked", "--package", "longshore"]))?;
        return run_command(cargo(release).args(own));
    }
    let mut figures = Figures::new();
    print_machine();
    if options.measures(Part::Durable) {
        for deploys in [durable::Deploys::OfOne, durable::Deploys::OfMany] {
            let on = durable::On::Embedded;
            figures.extend(durable::run(on, deploys, options.nodes, options.seconds())?);
        }
    }
    if options.measures(Part::Etcd) {
        let (on, deploys) = (durable::On::Etcd, durable::Deploys::OfOne);
        figures.extend(durable::run(on, deploys, options.nodes, options.seconds())?);
    }
    if options.measures(Part::Spread) {
        figures.extend(spread::run(options.quick)?);
    }
    if options.measures(Part::Leader) {
        figures.extend(leader::run()?);
    }
    println!();
    for (name, value) in &figures {
        println!("{name:<36} {value:>12.2}");
    }
    print_result("world", &figures);
    Ok(())
}

/// A number of things as a figure.
fn figure(number: u64) -> Result<f64> {
    Ok(f64::from(u32::try_from(number)?))
}
