//! The process behind an exec: `longshore shim-exec`.
//!
//! Entering a container forks without exec, so it needs a process with one thread, and gets one of
//! its own. It stays as the parent of the process inside: when the agent closes the connection, or
//! dies, it ends that process and its group; when it dies itself, the kernel ends the process.
//! Output does not pass through here: the process inside writes to the agent's pipes.

use std::ffi::{CStr, OsString};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags};

use crate::cgroup::{CgroupProblem, CgroupTree};
use crate::driver::{Driver, DriverProblem, Output, ProcessPlan, driver};
use crate::failure::chain;
use crate::files::FileProblem;
use crate::oci::{self, Bounds, TooManyOpenFiles};
use crate::process::reap;
use crate::protocol::{self, ExecOrder, Start, Versioned};
use crate::record::now;
use crate::shim::inherited_descriptor;
use crate::spec::{Launch, load_secret_env};
use crate::user::UserOutOfRange;

/// What an exec process is called in the list of processes.
pub(crate) const NAME: &CStr = c"longshore-exec";

#[derive(Debug, thiserror::Error)]
enum ExecProblem {
    #[error("the exec process was called without its directories")]
    Arguments,
    #[error("there is no spec in {}", .0.display())]
    NoSpec(PathBuf),
    #[error(transparent)]
    File(#[from] FileProblem),
    #[error("{doing}")]
    Io {
        doing: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("reading the order")]
    Order(#[source] serde_json::Error),
    #[error(transparent)]
    Cgroup(#[from] CgroupProblem),
    #[error(transparent)]
    User(#[from] UserOutOfRange),
    #[error(transparent)]
    OpenFiles(#[from] TooManyOpenFiles),
    #[error(transparent)]
    Driver(#[from] DriverProblem),
}

fn io<E: Into<std::io::Error>>(doing: &'static str) -> impl Fn(E) -> ExecProblem {
    move |source| ExecProblem::Io { doing, source: source.into() }
}

/// Runs one process inside a running container: `args` are the instance's run directory and its
/// state directory. Called from `main` before any thread exists; descriptor 0 is a socket to the
/// agent, 1 and 2 are the output of the process.
pub fn exec_main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let agent = match inherited_descriptor(0) {
        Ok(fd) => UnixStream::from(fd),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "taking over the agent's socket: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut args = args.into_iter().map(PathBuf::from);
    let result = match (args.next(), args.next()) {
        (Some(run_dir), Some(state_dir)) => run(&agent, &run_dir, &state_dir),
        _ => Err(ExecProblem::Arguments),
    };
    let (message, code) = match result {
        Ok(code) => (Start::Ended { code }, ExitCode::SUCCESS),
        Err(problem) => (Start::Failed { why: chain(&problem) }, ExitCode::FAILURE),
    };
    // An agent that closed the connection does not want to know.
    let _ = (&agent).write_all(&protocol::line(message));
    code
}

fn run(agent: &UnixStream, run_dir: &Path, state_dir: &Path) -> Result<i32, ExecProblem> {
    let output = Output {
        stdout: inherited_descriptor(1).map_err(io("taking over the output"))?,
        stderr: inherited_descriptor(2).map_err(io("taking over the output"))?,
    };
    rustix::thread::set_name(NAME).map_err(io("naming the process"))?;
    rustix::process::setsid().map_err(io("leaving the agent's session"))?;
    rustix::process::chdir("/").map_err(io("leaving the agent's directory"))?;
    nix::unistd::setgroups(&[]).map_err(io("dropping groups"))?;
    let mut line = String::new();
    BufReader::new(agent).read_line(&mut line).map_err(io("reading the order"))?;
    let order: Versioned<ExecOrder> = serde_json::from_str(&line).map_err(ExecProblem::Order)?;
    let order = order.message;
    let launch = Launch::load(state_dir)?.ok_or_else(|| ExecProblem::NoSpec(state_dir.into()))?;
    let user = launch.spec.on_machine(&order.user)?;
    for fd in [&output.stdout, &output.stderr] {
        own_output(fd, user.uid).map_err(io("handing over the output"))?;
    }
    let ExecOrder { args, env, cwd, user } = &order;
    let mut all = load_secret_env(run_dir)?;
    all.extend(env.clone());
    let bounds = Bounds::own(&launch.spec.limits)?;
    let document = oci::process(args, &all, cwd, user, bounds);
    let cgroup = || Ok(CgroupTree::probe(&launch.cgroup_root)?.instance(&launch.spec.id));
    let mut driver = driver(&launch.spec, run_dir, cgroup)?;
    let pid = driver.exec(ProcessPlan {
        user: &order.user,
        document: &document,
        output,
        withheld: vec![agent.as_raw_fd()],
    })?;
    let running =
        Start::Running { pid: pid.as_raw_nonzero().get(), started_at: now(), timings: Vec::new() };
    let mut writer = agent;
    // The loop below notices when nobody is there.
    let _ = writer.write_all(&protocol::line(running));
    wait(agent, driver.as_ref(), pid)
}

/// Lets a process that is not root open `/dev/stdout`, when that is a pipe.
fn own_output(fd: &OwnedFd, uid: u32) -> rustix::io::Result<()> {
    let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode);
    if kind == rustix::fs::FileType::Fifo {
        rustix::fs::fchown(fd, Some(rustix::fs::Uid::from_raw(uid)), None)?;
    }
    Ok(())
}

/// Waits until the process ends, and ends it when the agent goes away.
fn wait(agent: &UnixStream, driver: &dyn Driver, pid: Pid) -> Result<i32, ExecProblem> {
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())
        .map_err(io("watching the process"))?;
    loop {
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN), PollFd::new(agent, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(io("waiting for the process")(error)),
        }
        if !fds[0].revents().is_empty() {
            return Ok(reap(pid).map_err(io("reaping the process"))?.code());
        }
        if !fds[1].revents().is_empty() {
            // The agent sends nothing more, so this is its end.
            driver.end_exec(pid).map_err(io("ending the process"))?;
            return Ok(reap(pid).map_err(io("reaping the process"))?.code());
        }
    }
}
