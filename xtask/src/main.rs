//! `cargo xtask`: what the project does with itself. CI runs these commands and nothing else, so a
//! failure there can be repeated here with the same words.
//!
//! Logic lives in Rust rather than in shell scripts or a justfile: it is type-checked, tested, and
//! needs no further program on a fresh machine. What it is built of the tests are built of too.

mod bench;
mod command;
mod counts;
mod fuzz;
mod fuzz_api;
mod layers;
mod metadata;
mod minimal_debian;
mod newer_debian;
mod outline;
mod packages;
mod prepare;
mod stages;
mod test;
mod tidy;
mod verify;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Tests, checks and measurements of Longshore")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what the tests need, check everything and run every test
    Test(test::Options),
    /// Measure, with the peers' figures beside ours
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Install and fetch the programs that the tests use, and nothing else
    Packages,
    /// Make what the tests use and no compiler makes: a Debian, images, a disk
    Prepare(prepare::Options),
    /// The virtual machine with another kernel: its tests, or a shell in it
    #[command(subcommand)]
    Vm(vm::Vm),
    /// Search for inputs that break a parser
    Fuzz(fuzz::Options),
    /// Search for requests to the API that are answered as its document does not say
    FuzzApi(fuzz_api::Options),
    /// Make the land of the dashboard's map anew from Natural Earth's
    Outline(outline::Options),
    /// Formatting, lints, licences, tidiness and layers; no tests
    Verify,
    /// Fail when a crate depends on one of its own layer or above
    CheckLayers,
    /// Fail on files that are too long, notes without an issue and paths of one machine
    Tidy,
}

fn main() -> ExitCode {
    match run(Arguments::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        // Without the backtrace that Debug would add: these errors are read by people.
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> anyhow::Result<()> {
    std::env::set_current_dir(command::repository_root())?;
    match verb {
        Verb::Test(options) => test::run_all(&options),
        Verb::Bench(bench) => bench::run(&bench),
        Verb::Packages => {
            packages::install_missing()?;
            newer_debian::ensure_fetched()
        }
        Verb::Prepare(options) => prepare::run(&options),
        Verb::Vm(vm) => vm::run(&vm),
        Verb::Fuzz(options) => fuzz::run_one(&options),
        Verb::FuzzApi(options) => fuzz_api::run_all(&options),
        Verb::Outline(options) => outline::run(&options),
        Verb::Verify => verify::run_all(&mut stages::Stages::new()),
        Verb::CheckLayers => layers::run(),
        Verb::Tidy => tidy::run(),
    }
}
