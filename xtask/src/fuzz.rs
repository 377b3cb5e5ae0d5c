//! `fuzz`: searches for inputs that break a parser, for as long as it is told to.
//!
//! The instrumentation is a pass of the stable compiler, switched on by flags; cargo-fuzz, which would
//! set the same ones, wants a nightly toolchain for the sanitizers that code without `unsafe` has
//! little use for. What is found along the way is kept in the target directory, and what breaks a
//! parser as well: it goes into `fuzz/corpus` with its mend.

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use crate::command::{cargo, output, program, run, target_dir};

/// What to search in and for how long.
#[derive(Args)]
pub struct Options {
    /// The parser, or the comparison of readers of tar archives
    target: Target,
    /// How long to search
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Where the random choices begin
    #[arg(long, default_value_t = 1)]
    seed: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Target {
    Tar,
    Manifest,
    Config,
    Toml,
    Index,
    Table,
    Artifact,
    Differential,
}

/// What marks the code, so that libFuzzer sees what an input reaches.
const FLAGS: [&str; 7] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
    "-Cdebuginfo=line-tables-only",
];

/// Searches.
pub fn run_one(options: &Options) -> Result<()> {
    let Options { target, seconds, seed } = options;
    if *target == Target::Differential {
        let mut test =
            cargo(["test", "--locked", "--profile", "fuzz", "--package", "longshore-fuzz"]);
        test.args(["--test", "differential", "--", "--nocapture"]);
        test.env("LONGSHORE_FUZZ_SECONDS", seconds.to_string());
        return run(test.env("LONGSHORE_SEED", seed.to_string()));
    }
    // With a target of its own, the flags do not reach build scripts, which could not be linked.
    let host = output(&mut program("rustc", ["--print", "host-tuple"]))?;
    let host = host.trim();
    let mut build =
        cargo(["build", "--locked", "--profile", "fuzz", "--package", "longshore-fuzz"]);
    build.args(["--bin", "fuzz", "--features", "linked", "--target", host]);
    run(build.env("RUSTFLAGS", FLAGS.join(" ")))?;

    let name = target.to_possible_value().context("every target has a name")?;
    let name = name.get_name();
    let kept = target_dir().join("fuzz-found").join(name);
    let broken = target_dir().join("fuzz-broken");
    for directory in [&kept, &broken] {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let binary = target_dir().join(host).join("fuzz/fuzz");
    let mut search = program(
        binary.to_str().context("the target directory is not UTF-8")?,
        [
            format!("-max_total_time={seconds}"),
            format!("-seed={seed}"),
            format!("-artifact_prefix={}/{name}-", broken.display()),
            "-max_len=16384".to_owned(),
            "-timeout=20".to_owned(),
            "-print_final_stats=1".to_owned(),
            kept.display().to_string(),
            format!("fuzz/corpus/{name}"),
        ],
    );
    run(search.env("LONGSHORE_FUZZ_TARGET", name))
}
