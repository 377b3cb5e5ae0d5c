//! `prepare`: what the tests use and no compiler makes, and how a long command has it made beside its
//! other stages.
//!
//! Downloading and unpacking Debian mostly waits for the network, the disk and one package manager
//! with one thread; compiling takes all cores for minutes. One after the other, each leaves the
//! machine half idle. So [`Beside`] has this very program make things in a process of its own, whose
//! output goes to a file and is shown in one piece once it is waited for. That process ends with
//! everything it started as soon as nobody can wait for it any more: it reads from a pipe whose other
//! end closes with its parent, whatever ended that.
//!
//! Rejected: a thread, whose programs would print between the lines of the compiler and outlive a
//! run that failed.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use rustix::process::{Pid, Signal, kill_current_process_group, kill_process_group};

use crate::command::target_dir;
use crate::minimal_debian::MinimalDebian;
use crate::newer_debian;
use crate::stages::Stages;
use crate::vm;

/// What to prepare.
#[derive(Args)]
pub struct Options {
    /// In this order
    #[arg(required = true)]
    parts: Vec<Part>,
    /// End with everything that was started when the standard input does
    #[arg(long, hide = true)]
    until_input_ends: bool,
}

/// Something that is kept once it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Programs that only a newer Debian has
    NewerDebian,
    /// The Debian in which the release is built
    MinimalDebian,
    /// The images of real programs
    Programs,
    /// The disk of the virtual machine
    MachineDisk,
}

impl Part {
    fn make(self, stages: &mut Stages) -> Result<()> {
        match self {
            Self::NewerDebian => stages.run("newer debian", 30, newer_debian::ensure_fetched),
            Self::MinimalDebian => {
                stages.run("minimal debian", 90, MinimalDebian::ensure)?;
                Ok(())
            }
            Self::Programs => {
                stages.run("images of real programs", 240, longshore_e2e::programs::make_all)
            }
            Self::MachineDisk => {
                stages.run("disk of the machine", 120, vm::Disk::ensure)?;
                Ok(())
            }
        }
    }
}

/// Makes what is not there yet.
pub fn run(options: &Options) -> Result<()> {
    if options.until_input_ends {
        std::thread::spawn(|| {
            // Nothing is sent. An error is an end as well.
            let _ = std::io::stdin().read(&mut [0]);
            let _ = kill_current_process_group(Signal::KILL);
        });
    }
    let mut stages = Stages::new();
    options.parts.iter().try_for_each(|part| part.make(&mut stages))
}

/// Parts that are being made beside whatever else is done.
pub struct Beside {
    parts: String,
    log: PathBuf,
    /// The leader of its process group, until it was waited for.
    child: Option<Child>,
}

impl Beside {
    /// Begins to make these.
    pub fn start(parts: &[Part]) -> Result<Self> {
        let names: Vec<String> = parts
            .iter()
            .filter_map(|part| Some(part.to_possible_value()?.get_name().to_owned()))
            .collect();
        // This program, also when its file was replaced meanwhile.
        let mut command = Command::new("/proc/self/exe");
        command.args(["prepare", "--until-input-ends"]).args(&names);
        Self::spawn(names.join("+"), &mut command)
    }

    fn spawn(parts: String, command: &mut Command) -> Result<Self> {
        let log = target_dir().join(format!("prepare-{parts}.log"));
        let output =
            File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
        let errors = output.try_clone().context("cannot share the log")?;
        command.stdin(Stdio::piped()).stdout(output).stderr(errors).process_group(0);
        let child = command.spawn().with_context(|| format!("cannot begin to prepare {parts}"))?;
        eprintln!("beside what follows: {parts}; see {}", log.display());
        Ok(Self { parts, log, child: Some(child) })
    }

    /// Waits for them, shows what was printed, and fails when they could not be made.
    pub fn wait(mut self) -> Result<()> {
        let mut child = self.child.take().context("it is waited for once")?;
        // `wait` of a child would close the pipe to it, at which it ends.
        let pipe = child.stdin.take();
        let status = child.wait().with_context(|| format!("cannot wait for {}", self.parts))?;
        drop(pipe);
        let printed = std::fs::read(&self.log)
            .with_context(|| format!("cannot read {}", self.log.display()))?;
        eprint!("{}", String::from_utf8_lossy(&printed));
        ensure!(status.success(), "{} could not be prepared: {status}", self.parts);
        Ok(())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        // Of a run that failed elsewhere; what was half made is removed by the next one. It may have
        // ended by itself.
        if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(name: &str, script: &str) -> Beside {
        let parts = format!("test-{name}-{}", std::process::id());
        std::fs::create_dir_all(target_dir()).unwrap();
        Beside::spawn(parts, Command::new("sh").args(["-c", script])).unwrap()
    }

    /// Whether a process of this group is left, but for those that nobody has waited for yet.
    fn is_alive(group: u32) -> bool {
        let stats = std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| std::fs::read_to_string(entry.ok()?.path().join("stat")).ok());
        stats.into_iter().any(|stat| {
            // After the name in parentheses: the state, the parent, the group.
            let fields: Vec<&str> =
                stat.rsplit_once(')').map_or(Vec::new(), |(_, rest)| rest.split(' ').collect());
            fields.get(3).is_some_and(|found| *found == group.to_string()) && fields[1] != "Z"
        })
    }

    #[test]
    fn what_fails_beside_a_stage_fails_the_run() {
        let fine = shell("fine", "echo done");
        let log = fine.log.clone();
        fine.wait().unwrap();
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "done\n");
        std::fs::remove_file(log).unwrap();

        let bad = shell("bad", "echo no mirror >&2; exit 3");
        let log = bad.log.clone();
        let error = bad.wait().unwrap_err().to_string();
        assert!(error.contains("could not be prepared: exit status: 3"), "{error}");
        std::fs::remove_file(log).unwrap();
    }

    #[test]
    fn what_is_made_beside_a_run_that_failed_ends_with_all_it_started() {
        let beside = shell("left", "sleep 600 & sleep 600");
        let group = beside.child.as_ref().unwrap().id();
        let log = beside.log.clone();
        assert!(is_alive(group));
        drop(beside);
        let gone = || Ok((!is_alive(group)).then_some(()));
        longshore_e2e::wait::eventually("its processes end", gone).unwrap();
        std::fs::remove_file(log).unwrap();
    }
}
