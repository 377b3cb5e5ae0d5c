//! `test`: everything that has to pass before a change is taken.
//!
//! One order, from what fails fast to what takes long. The release build runs in the minimal Debian,
//! and the binary it makes is the one that the demo and the end-to-end tests drive. What mostly waits
//! for the network and the disk is made beside the stages that compile ([`Beside`]). Unit and
//! end-to-end tests are one run of the test runner, so its last line counts them all.

use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::command::{cargo, output, program, release_binary, run, succeeds, target_dir};
use crate::counts::Counts;
use crate::minimal_debian::MinimalDebian;
use crate::newer_debian;
use crate::packages;
use crate::prepare::{Beside, Part};
use crate::stages::Stages;
use crate::verify;
use crate::vm;

/// What to test.
#[derive(Args)]
pub struct Options {
    /// Also what takes long: 200 kills and faults instead of 5, 2000 seeds of the simulation, two minutes of
    /// fuzzing for each parser
    #[arg(long)]
    long: bool,
    /// Where the random choices of the fault tests begin; printed by every run
    #[arg(long)]
    seed: Option<u64>,
    /// Only the tests in a virtual machine with Debian 12's own kernel and cgroup v2
    #[arg(long)]
    vm: bool,
}

/// How often the fault tests kill something.
const N_KILLS: u32 = 5;
const N_KILLS_LONG: u32 = 200;

/// How many seeds of the simulation there are in a long run.
const N_SEEDS_LONG: u32 = 2000;

/// How long each target is fuzzed in a long run.
const FUZZ_SECONDS_LONG: u32 = 120;

/// Runs all stages and stops at the first that fails.
pub fn run_all(options: &Options) -> Result<()> {
    if output(&mut program("id", ["-u"]))?.trim() != "0" {
        bail!("the tests make namespaces, mounts and cgroups: run them as root");
    }
    let mut stages = Stages::new();
    stages.run("packages", 150, packages::install_missing)?;
    if options.vm {
        let mut counts = Counts::default();
        let outcome = vm::run_stages(&mut stages, vm::Binary::Dev, "", &mut counts);
        stages.print_summary();
        eprintln!("{counts}");
        return outcome;
    }
    let for_build = Beside::start(&[Part::NewerDebian, Part::MinimalDebian])?;
    verify::run_all(&mut stages)?;
    stages.run("rest of minimal debian", 20, || for_build.wait())?;
    // The disk first, which has one thread all along.
    let for_tests = Beside::start(&[Part::MachineDisk, Part::Programs])?;
    let debian = MinimalDebian::ensure()?;
    stages.run("release build", 540, || {
        // Downloads happen out here: a minimal Debian has no certificates to check a server by.
        run(&mut cargo(["fetch", "--locked"]))?;
        run(&mut debian.command(&["cargo", "build", "--release", "--locked", "--offline"])?)
    })?;
    stages.run("demo in minimal debian", 30, || {
        let binary = release_binary();
        let binary = binary.to_str().context("the target directory is not UTF-8")?;
        run(&mut debian.command(&[binary, "demo", "--once"])?)
    })?;
    let mut counts = Counts::default();
    // Of the whole workspace, as the tests are built: of some packages alone, dependencies would have
    // other features and be compiled again.
    stages.run("documentation tests", 110, || {
        counts.add(&mut cargo(["test", "--doc", "--workspace", "--locked", "--no-fail-fast"]))
    })?;
    stages.run("build of the tests", 120, || run(test_runner().arg("--no-run")))?;
    stages.run("rest of images and disk", 20, || for_tests.wait())?;
    let outcome = stages.run("tests", 600, || run_tests(options, &mut counts));
    let in_machine = vm::run_stages(&mut stages, vm::Binary::Release, "", &mut counts);
    stages.print_summary();
    eprintln!("{counts}");
    outcome.and(in_machine)
}

fn has_nextest() -> bool {
    succeeds(&mut cargo(["nextest", "--version"]))
}

/// What builds and runs unit and end-to-end tests.
fn test_runner() -> Command {
    if has_nextest() {
        return cargo(["nextest", "run", "--workspace", "--locked"]);
    }
    // Compiling nextest takes longer than all of our tests; its gain is one process per test.
    eprintln!("cargo-nextest is not installed; using cargo test, which runs fewer at once");
    let mut plain = cargo(["test", "--workspace", "--locked"]);
    plain.args(["--lib", "--bins", "--tests"]);
    plain
}

fn run_tests(options: &Options, counts: &mut Counts) -> Result<()> {
    let mut command = test_runner();
    // The runner refuses it where nothing is run.
    command.arg("--no-fail-fast");
    if has_nextest() {
        // Tests wait half of their time, end-to-end tests more; their group lets three at once of
        // these through whatever this says.
        let n_cores = std::thread::available_parallelism().map_or(2, usize::from);
        command.arg(format!("--test-threads={}", 2 * n_cores));
    } else {
        command.args(["--", "--test-threads=2"]);
    }
    let n_kills = if options.long { N_KILLS_LONG } else { N_KILLS };
    command.env("LONGSHORE_BIN", release_binary()).env("LONGSHORE_KILLS", n_kills.to_string());
    command.env(newer_debian::VARIABLE, newer_debian::dir());
    if options.long {
        command.env("LONGSHORE_FUZZ_SECONDS", FUZZ_SECONDS_LONG.to_string());
        command.env("LONGSHORE_SEEDS", N_SEEDS_LONG.to_string());
    }
    if let Some(seed) = options.seed {
        command.env("LONGSHORE_SEED", seed.to_string());
    }
    // A test that finds only when it runs that the machine lacks something says so in this file.
    let file = target_dir().join("skipped-tests");
    std::fs::write(&file, "").context("cannot write the list of skipped tests")?;
    let outcome = counts.add(command.env("LONGSHORE_SKIPPED", &file));
    let skipped = std::fs::read_to_string(&file).context("cannot read what was skipped")?;
    counts.skipped_inside(&skipped);
    outcome
}
