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
    stages.run("lints", 300, || {
        let what = ["clippy", "--workspace", "--all-targets", "--locked"];
        run(cargo(what).args(["--", "--deny", "warnings"]))
    })?;
    if succeeds(&mut cargo(["deny", "--version"])) {
        stages.run("dependencies", 60, || run(&mut cargo(["deny", "check"])))
    } else {
        eprintln!("skipped: dependencies: cargo-deny is not installed (cargo install cargo-deny)");
        Ok(())
    }
}
