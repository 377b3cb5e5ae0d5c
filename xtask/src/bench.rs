//! `bench`: measurements, each with its peers beside it in one run.
//!
//! The last line is `RESULT ` and one line of JSON, for machines; the table above it is for people.

mod contenders;
mod figures;
mod first_answer;
mod laboratory;
mod start;

use std::collections::BTreeMap;

use anyhow::Result;
use clap::Subcommand;

/// What can be measured.
#[derive(Subcommand)]
pub enum Bench {
    /// From the call to the first answer of a container whose image is there, beside docker and
    /// podman; and the memory that Longshore takes
    Start(start::Options),
}

/// Measures it.
pub fn run(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Start(options) => start::run(options),
    }
}

/// Prints the last line.
fn print_result(bench: &str, figures: &BTreeMap<&str, f64>) {
    let rounded: BTreeMap<_, _> =
        figures.iter().map(|(name, value)| (*name, (value * 1000.0).round() / 1000.0)).collect();
    // Built by hand for the order of the two keys.
    let figures = serde_json::to_string(&rounded).expect("numbers can be written as JSON");
    println!("RESULT {{\"bench\": {bench:?}, \"figures\": {figures}}}");
}
