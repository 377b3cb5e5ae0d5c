//! `test`: everything that has to pass before a change is taken.
//!
//! One order, from what fails fast to what takes long, save that the release build comes first: it
//! runs in the minimal Debian, and the binary it makes is the one that the demo and the end-to-end
//! tests drive. Unit and end-to-end tests are one run of the test runner, so its last line counts
//! them all.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::command::{cargo, output, program, release_binary, run, succeeds};
use crate::minimal_debian::MinimalDebian;
use crate::newer_debian;
use crate::packages;
use crate::stages::Stages;
use crate::verify;

/// What to test.
#[derive(Args)]
pub struct Options {
    /// Also what takes long: 50 kills instead of 5
    #[arg(long)]
    long: bool,
    /// Where the random choices of the fault tests begin; printed by every run
    #[arg(long)]
    seed: Option<u64>,
}

/// How often the fault tests kill something.
const N_KILLS: u32 = 5;
const N_KILLS_LONG: u32 = 50;

/// Runs all stages and stops at the first that fails.
pub fn run_all(options: &Options) -> Result<()> {
    if output(&mut program("id", ["-u"]))?.trim() != "0" {
        bail!("the tests make namespaces, mounts and cgroups: run them as root");
    }
    let mut stages = Stages::new();
    stages.run("packages", 180, packages::install_missing)?;
    stages.run("newer debian", 60, newer_debian::ensure_fetched)?;
    let debian = stages.run("minimal debian", 120, MinimalDebian::ensure)?;
    stages.run("release build", 720, || {
        // Downloads happen out here: a minimal Debian has no certificates to check a server by.
        run(&mut cargo(["fetch", "--locked"]))?;
        run(&mut debian.command(&["cargo", "build", "--release", "--locked", "--offline"])?)
    })?;
    stages.run("demo in minimal debian", 30, || {
        let binary = release_binary();
        let binary = binary.to_str().context("the target directory is not UTF-8")?;
        run(&mut debian.command(&[binary, "demo", "--once"])?)
    })?;
    verify::run_all(&mut stages)?;
    let mut counts = Counts::default();
    stages.run("documentation tests", 60, || {
        let arguments = ["test", "--doc", "--workspace", "--locked", "--no-fail-fast"];
        counts.add(&mut cargo(arguments))
    })?;
    let outcome = stages.run("tests", 900, || run_tests(options, &mut counts));
    stages.print_summary();
    eprintln!("{counts}");
    outcome
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
    if let Some(seed) = options.seed {
        command.env("LONGSHORE_SEED", seed.to_string());
    }
    counts.add(&mut command)
}

/// How many tests ended how.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { passed, failed, skipped } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

impl Counts {
    /// Runs a test runner, shows what it prints and adds what it counts.
    fn add(&mut self, command: &mut Command) -> Result<()> {
        // Both runners print their counts on different streams; the shell joins them in order.
        let mut joined = Command::new("sh");
        joined.args(["-c", "exec \"$@\" 2>&1", "sh"]).arg(command.get_program());
        joined.args(command.get_args());
        for (name, value) in command.get_envs() {
            joined.env(name, value.unwrap_or_default());
        }
        let mut child = joined.stdout(Stdio::piped()).spawn().context("cannot run the tests")?;
        let output = child.stdout.take().expect("its output is piped");
        for line in BufReader::new(output).lines() {
            let line = line.context("cannot read what the tests print")?;
            eprintln!("{line}");
            self.read(&line);
        }
        let status = child.wait().context("cannot wait for the tests")?;
        if !status.success() {
            bail!("tests failed: {status}");
        }
        Ok(())
    }

    /// Adds a summary line of nextest (`27 tests run: 26 passed (1 slow), 1 failed, 2 skipped`) or
    /// of cargo's own runner (`test result: ok. 3 passed; 0 failed; 1 ignored; ...`).
    fn read(&mut self, line: &str) {
        let summary = line.split_once(" tests run: ").or_else(|| line.split_once(" test run: "));
        let Some((_, counts)) = summary.or_else(|| line.split_once("test result: ")) else {
            return;
        };
        let words: Vec<&str> = counts.split([' ', ',', ';', '(', ')']).collect();
        for pair in words.windows(2) {
            let Ok(number) = pair[0].parse::<u64>() else {
                continue;
            };
            match pair[1] {
                "passed" => self.passed += number,
                "failed" | "timed" => self.failed += number,
                "skipped" | "ignored" => self.skipped += number,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_runners_are_counted() {
        let mut counts = Counts::default();
        for line in [
            "running 3 tests",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 7 filtered out; finished",
            "     Summary [   1.2s] 27 tests run: 24 passed (1 slow), 2 failed, 1 timed out, 2 skipped",
        ] {
            counts.read(line);
        }
        let expected = Counts { passed: 27, failed: 3, skipped: 3 };
        assert_eq!(counts, expected);
        assert_eq!(counts.to_string(), "27 passed, 3 failed, 3 skipped");
    }
}
