//! `verify`: everything that can be judged without running the product.

use anyhow::Result;

use crate::command::{cargo, run, succeeds};
use crate::stages::Stages;
use crate::{layers, tidy};

/// Runs all checks, the quick ones first.
pub fn run_all(stages: &mut Stages) -> Result<()> {
    stages.run("format", 10, || run(&mut cargo(["fmt", "--all", "--check"])))?;
    stages.run("tidy", 5, tidy::run)?;
    stages.run("layers", 5, layers::run)?;
    stages.run("lints", 150, || {
        // The fuzzer needs a feature. In a run of its own, of one package, dependencies would have
        // other features, and sixty of them be compiled again.
        let what = ["clippy", "--workspace", "--all-targets", "--locked"];
        let fuzzer = ["--features", "longshore-fuzz/libfuzzer"];
        run(cargo(what).args(fuzzer).args(["--", "--deny", "warnings"]))
    })?;
    stages.run("dependencies", 20, dependencies)
}

/// Licences, duplicates and sources; and known holes, when their list can be fetched.
fn dependencies() -> Result<()> {
    if !succeeds(&mut cargo(["deny", "--version"])) {
        eprintln!("skipped: cargo-deny is not installed (cargo install cargo-deny --locked)");
        return Ok(());
    }
    run(&mut cargo(["deny", "check", "bans", "licenses", "sources"]))?;
    if !succeeds(&mut cargo(["deny", "fetch", "db"])) {
        eprintln!("skipped: the list of known holes cannot be fetched from here");
        return Ok(());
    }
    run(&mut cargo(["deny", "check", "advisories"]))
}
