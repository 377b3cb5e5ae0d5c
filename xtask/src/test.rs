//! `test`: everything that has to pass before a change is taken.
//!
//! One order, from what fails fast to what takes long, save that the release build comes first: it
//! runs in the minimal Debian, and the binary it makes is the one that the demo and the end-to-end
//! tests drive. Unit and end-to-end tests are one run of the test runner, so its last line counts
//! them all.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::command::{cargo, output, program, release_binary, run, succeeds, target_dir};
use crate::counts::Counts;
use crate::metadata;
use crate::minimal_debian::MinimalDebian;
use crate::newer_debian;
use crate::packages;
use crate::stages::Stages;
use crate::verify;
use crate::vm;

/// What to test.
#[derive(Args)]
pub struct Options {
    /// Also what takes long: 200 kills instead of 5, two minutes of fuzzing for each parser
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
    stages.run("newer debian", 30, newer_debian::ensure_fetched)?;
    let debian = stages.run("minimal debian", 60, MinimalDebian::ensure)?;
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
    stages.run("images of real programs", 120, longshore_e2e::programs::make_all)?;
    verify::run_all(&mut stages)?;
    let mut counts = Counts::default();
    stages.run("documentation tests", 60, || {
        let mut command = cargo(["test", "--doc", "--locked", "--no-fail-fast"]);
        for package in packages_with_examples()? {
            command.args(["--package", &package]);
        }
        counts.add(&mut command)
    })?;
    let outcome = stages.run("tests", 720, || run_tests(options, &mut counts));
    let in_machine = vm::run_stages(&mut stages, vm::Binary::Release, "", &mut counts);
    stages.print_summary();
    eprintln!("{counts}");
    outcome.and(in_machine)
}

/// The packages whose documentation has code. To look for it in the others takes rustdoc seconds each.
fn packages_with_examples() -> Result<Vec<String>> {
    let mut found = Vec::new();
    for package in metadata::packages()? {
        let dir = Path::new(&package.manifest_path).with_file_name("src");
        let dir = dir.to_str().context("a package's path is not UTF-8")?;
        let mut grep = program("grep", ["-rqE", "^ *//[/!].*```", dir]);
        if grep.status().context("cannot run grep")?.success() {
            found.push(package.name);
        }
    }
    ensure!(!found.is_empty(), "no package has code in its documentation: this looks wrongly");
    Ok(found)
}

fn run_tests(options: &Options, counts: &mut Counts) -> Result<()> {
    let mut command = if succeeds(&mut cargo(["nextest", "--version"])) {
        cargo(["nextest", "run", "--workspace", "--locked", "--no-fail-fast"])
    } else {
        // Compiling nextest takes longer than all of our tests; its gain is one process per test.
        eprintln!("cargo-nextest is not installed; using cargo test, which runs fewer at once");
        let mut plain = cargo(["test", "--workspace", "--locked", "--no-fail-fast"]);
        plain.args(["--lib", "--bins", "--tests", "--", "--test-threads=2"]);
        plain
    };
    let n_kills = if options.long { N_KILLS_LONG } else { N_KILLS };
    command.env("LONGSHORE_BIN", release_binary()).env("LONGSHORE_KILLS", n_kills.to_string());
    command.env(newer_debian::VARIABLE, newer_debian::dir());
    if options.long {
        command.env("LONGSHORE_FUZZ_SECONDS", FUZZ_SECONDS_LONG.to_string());
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
