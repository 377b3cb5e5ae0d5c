//! The one interface behind which an OCI runtime makes and enters containers.
//!
//! There are two: the embedded runtime, and one for all that have the standard OCI command line, whose
//! differences are a table. A driver lives inside a shim or an exec process, never in the agent: the
//! embedded one forks without exec, which only a process with a single thread may do. `create` leaves the container's
//! first process waiting, so that the shim can close the devices before `start` lets it run. Limits,
//! logs, exit status and the end of the processes are the shim's business, the same for every
//! runtime; so there is no `kill` beside `signal`: what a cgroup holds is ended through the cgroup.

mod applied;
mod command_line;
mod dev_tree;
mod embedded;
mod join_users;
mod lookup;
mod particulars;
mod run_files;
mod shown;
mod terminal;
mod workload;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::process::Pid;
use serde_json::Value;

use crate::SignalNumber;
use crate::cgroup::{CgroupProblem, InstanceCgroup};
use crate::spec::{ContainerSpec, TerminalSize};
use crate::user::ResolvedUser;

/// Why a container could not be made or entered.
#[derive(Debug, thiserror::Error)]
pub enum DriverProblem {
    /// The runtime's own files could not be written.
    #[error("preparing {}", path.display())]
    Prepare {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The system call filter could not be compiled.
    #[error("compiling the system call filter")]
    Filter(#[source] seccompiler::BackendError),
    /// A pipe or descriptor could not be made.
    #[error("making a pipe")]
    Pipe(#[source] std::io::Error),
    /// A terminal could not be made, or did not come.
    #[error("making a terminal")]
    Terminal(#[source] std::io::Error),
    /// The runtime refused.
    #[error("{doing} failed")]
    Runtime {
        /// What was being done.
        doing: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The container was made, but its program or a protection could not be put in place.
    #[error("{0}")]
    Workload(String),
}

/// What a process inside a container reads and writes.
pub(crate) struct Streams {
    /// Absent where the input is `/dev/null`.
    pub stdin: Option<OwnedFd>,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// A process to be started in a container.
pub(crate) struct ProcessPlan<'a> {
    pub user: &'a ResolvedUser,
    /// The OCI `process` object for an exec, the whole configuration for a start.
    pub document: &'a Value,
    pub streams: Streams,
    /// Descriptors that the process must not hold even before it runs its program.
    pub withheld: Vec<i32>,
}

/// A terminal to run a process in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TerminalPlan {
    pub size: TerminalSize,
    /// Who it belongs to on the machine, so that the process may open it by its name.
    pub owner: u32,
}

/// A process that a driver made.
pub(crate) struct Entered {
    pub pid: Pid,
    /// The master of its terminal, which was made in the container's own `/dev/pts` where the
    /// container has this machine's kernel.
    pub terminal: Option<OwnedFd>,
}

/// A runtime bound to one container.
pub(crate) trait Driver {
    /// Makes the container and its first process, which waits. It is in a terminal instead of having
    /// the streams of the plan where one is asked for (and the document says so), which belongs to whom the plan says by the time
    /// that this returns.
    fn create(
        &mut self,
        plan: ProcessPlan<'_>,
        terminal: Option<TerminalPlan>,
    ) -> Result<Entered, DriverProblem>;
    /// Lets the first process run its program; returns when it does or could not.
    fn start(&mut self) -> Result<(), DriverProblem>;
    /// Runs another process in the container, in a terminal instead of with the streams of the plan
    /// where one is asked for. What is returned is a child of this process, which leads a session of
    /// its own and ends with the status of the process.
    fn exec(
        &mut self,
        plan: ProcessPlan<'_>,
        terminal: Option<TerminalPlan>,
    ) -> Result<Entered, DriverProblem>;
    /// Sends a signal to the first process.
    fn signal(&self, pidfd: &OwnedFd, signal: SignalNumber) -> std::io::Result<()>;
    /// Sends a signal to the process group of what [`Driver::exec`] began.
    fn signal_exec(&self, pid: Pid, signal: SignalNumber) -> std::io::Result<()> {
        crate::process::signal_group_of(pid, signal)
    }
    /// Ends a process that [`Driver::exec`] began, and what it began itself: its whole session.
    fn end_exec(&self, pid: Pid) -> std::io::Result<()> {
        crate::process::end_session_of(pid)
    }
    /// Forgets the container, whose processes have ended.
    fn delete(&mut self) -> Result<(), DriverProblem>;
}

/// The driver that a spec asks for. `dir` is the instance's run directory; `cgroup` finds its cgroup,
/// which the embedded runtime finds itself.
pub(crate) fn driver(
    spec: &ContainerSpec,
    dir: &Path,
    cgroup: impl FnOnce() -> Result<InstanceCgroup, CgroupProblem>,
) -> Result<Box<dyn Driver>, CgroupProblem> {
    Ok(match particulars::particulars(&spec.runtime) {
        None => Box::new(embedded::Embedded::new(spec, dir)),
        Some(how) => Box::new(command_line::CommandLine::new(how, spec, dir, cgroup()?)),
    })
}
