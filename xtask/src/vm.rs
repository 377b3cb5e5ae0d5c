//! A second kernel: Debian 12's own, with cgroup v2 and nothing else, in a virtual machine.
//!
//! The machine that builds has one kernel and one layout of cgroups; most machines that Longshore
//! will run on have another. So the tests that meet the kernel run once more in QEMU, under the
//! kernel and the systemd of Debian 12 ([`disk`]). The test executables are those that were built
//! for this machine, carried in on a second disk ([`carried`]); which of them, and what is left out
//! and why, is one list ([`chosen`]). Each test is a process with a time limit, and says over a
//! serial line how it ended ([`report`]).
//!
//! QEMU translates the instructions (TCG) also where there is KVM: an emulated processor is there on
//! every machine, and is the same on all. It is 10 to 20 times slower than a real one, so no test
//! that runs here may depend on time, and no time is measured.
//!
//! Rejected: an initramfs or a small init of our own, because systemd is what the product has to get
//! along with, and boots in 10 s; building in the machine, which would take hours.

mod carried;
mod chosen;
mod disk;
mod machine;
mod report;

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Subcommand;

use crate::counts::Counts;
use crate::packages;
use crate::stages::Stages;

use carried::Carried;
pub use disk::Disk;
use machine::Machine;
use report::Report;

/// What takes longer hangs. Far above the budget of the stage: a busy machine is no reason to fail.
const TIME_LIMIT: Duration = Duration::from_secs(25 * 60);

/// What to do with the machine.
#[derive(Subcommand)]
pub enum Vm {
    /// Run the tests that run there, or only those whose name contains a text
    Test {
        /// Part of `PACKAGE MODULE::TEST`, such as `limits::`
        filter: Option<String>,
    },
    /// A root shell there, with the test executables at their usual paths; `exit` ends it
    Shell,
}

/// Which binary the end-to-end tests drive there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binary {
    /// What is shipped; it was built before.
    Release,
    /// The one that is built with the tests.
    Dev,
}

/// Runs one of the commands.
pub fn run(what: &Vm) -> Result<()> {
    let mut stages = Stages::new();
    match what {
        Vm::Test { filter } => {
            let mut counts = Counts::default();
            let filter = filter.as_deref().unwrap_or_default();
            packages::install_missing()?;
            let outcome = run_stages(&mut stages, Binary::Dev, filter, &mut counts);
            eprintln!("{counts}");
            outcome
        }
        Vm::Shell => {
            packages::install_missing()?;
            let disk = Disk::ensure()?;
            let carried = Carried::pack(Binary::Dev, "")?;
            Machine { disk: &disk, carried: &carried }.shell()
        }
    }
}

/// Runs the stages of `test` that concern the machine.
pub fn run_stages(
    stages: &mut Stages,
    binary: Binary,
    filter: &str,
    counts: &mut Counts,
) -> Result<()> {
    let disk = stages.run("disk of the machine", 5, Disk::ensure)?;
    let carried = stages.run("what the machine runs", 40, || Carried::pack(binary, filter))?;
    stages.run("tests in the machine", 390, || {
        let mut report = Report::new(carried.tests());
        let outcome = Machine { disk: &disk, carried: &carried }.run(TIME_LIMIT, &mut report);
        report.add_to(counts);
        counts.skipped += carried.skipped().len() as u64;
        outcome?;
        match report.unpassed().as_slice() {
            [] => Ok(()),
            tests => bail!("in the virtual machine failed:\n  {}", tests.join("\n  ")),
        }
    })
}
