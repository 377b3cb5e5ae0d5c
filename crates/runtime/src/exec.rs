//! The process behind an exec: `longshore shim-exec`.
//!
//! Entering a container forks without exec, so it needs a process with one thread, and gets one of
//! its own. It stays as the parent of the process inside: when the agent closes the connection, or
//! dies, it ends that process with its session; when it dies itself, the kernel ends the process.
//! Input and output do not pass through here: the process inside has the agent's pipes, or a terminal
//! whose master is handed to the agent.

use std::ffi::{CStr, OsString};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags};

use crate::SignalNumber;
use crate::cgroup::{CgroupProblem, CgroupTree};
use crate::driver::{Driver, DriverProblem, Entered, ProcessPlan, Streams, TerminalPlan, driver};
use crate::failure::chain;
use crate::files::FileProblem;
use crate::oci::{self, Bounds, TooManyOpenFiles};
use crate::passing;
use crate::process::reap;
use crate::protocol::{self, ExecMessage, ExecOrder, MAX_LINE, Start, Versioned};
use crate::record::now;
use crate::shim::inherited_descriptor;
use crate::spec::{Launch, load_secret_env};
use crate::user::UserOutOfRange;

/// What an exec process is called in the list of processes.
pub(crate) const NAME: &CStr = c"longshore-exec";
/// How long what runs in a terminal may take to end by itself when its user has left.
const LEFT_GRACE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

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
    let stdout = inherited_descriptor(1).map_err(io("taking over the output"))?;
    let stderr = inherited_descriptor(2).map_err(io("taking over the output"))?;
    rustix::thread::set_name(NAME).map_err(io("naming the process"))?;
    rustix::process::setsid().map_err(io("leaving the agent's session"))?;
    rustix::process::chdir("/").map_err(io("leaving the agent's directory"))?;
    nix::unistd::setgroups(&[]).map_err(io("dropping groups"))?;
    let (order, stdin) = read_order(agent)?;
    let launch = Launch::load(state_dir)?.ok_or_else(|| ExecProblem::NoSpec(state_dir.into()))?;
    let user = launch.spec.on_machine(&order.user)?;
    for fd in stdin.iter().chain([&stdout, &stderr]) {
        own_stream(fd, user.uid).map_err(io("handing over the streams"))?;
    }
    let ExecOrder { args, env, cwd, user: inside, terminal } = &order;
    let mut all = load_secret_env(run_dir)?;
    all.extend(env.clone());
    let bounds = Bounds::own(&launch.spec.limits)?;
    let document = oci::process(args, &all, cwd, inside, bounds);
    let cgroup = || Ok(CgroupTree::probe(&launch.cgroup_root)?.instance(&launch.spec.id));
    let mut driver = driver(&launch.spec, run_dir, cgroup)?;
    let plan = ProcessPlan {
        user: inside,
        document: &document,
        streams: Streams { stdin, stdout, stderr },
        withheld: vec![agent.as_raw_fd()],
    };
    let terminal = terminal.map(|size| TerminalPlan { size, owner: user.uid });
    let entered = driver.exec(plan, terminal)?;
    tell_running(agent, &entered);
    // The terminal stays open here too. Were the agent's the last, the kernel would hang it up at the
    // moment the agent goes: the shell could be seen to have ended by itself, and what it ran in the
    // background would be left.
    wait(agent, driver.as_ref(), entered)
}

/// The order, and the input of the process.
fn read_order(agent: &UnixStream) -> Result<(ExecOrder, Option<OwnedFd>), ExecProblem> {
    let (line, mut passed) = passing::receive_line(agent).map_err(io("reading the order"))?;
    let order: Versioned<ExecOrder> = serde_json::from_slice(&line).map_err(ExecProblem::Order)?;
    Ok((order.message, passed.pop()))
}

fn tell_running(agent: &UnixStream, entered: &Entered) {
    let pid = entered.pid.as_raw_nonzero().get();
    let running = Start::Running { pid, started_at: now(), timings: Vec::new() };
    let terminal: Vec<_> = entered.terminal.iter().map(|terminal| terminal.as_fd()).collect();
    // An agent that is gone is noticed by whoever waits for the end of the process.
    let _ = passing::send(agent, &protocol::line(running), &terminal);
}

/// Lets a process that is not root open `/dev/stdout` and its like, when that is a pipe.
fn own_stream(fd: &OwnedFd, uid: u32) -> rustix::io::Result<()> {
    let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode);
    if kind == rustix::fs::FileType::Fifo {
        rustix::fs::fchown(fd, Some(rustix::fs::Uid::from_raw(uid)), None)?;
    }
    Ok(())
}

/// Waits until the process ends, passes signals on, and ends it when the agent goes away.
fn wait(agent: &UnixStream, driver: &dyn Driver, entered: Entered) -> Result<i32, ExecProblem> {
    let Entered { pid, terminal } = entered;
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())
        .map_err(io("watching the process"))?;
    let mut requests = Requests::default();
    loop {
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN), PollFd::new(agent, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(io("waiting for the process")(error)),
        }
        let ended = !fds[0].revents().is_empty();
        // An agent that is gone is seen first: then nothing of what was run stays.
        if !fds[1].revents().is_empty() {
            match requests.read(agent) {
                Some(signals) => {
                    for signal in signals {
                        // It may have ended by now, which the next look shows.
                        let _ = driver.signal_exec(pid, signal);
                    }
                }
                None => {
                    if let Some(terminal) = terminal {
                        hang_up(driver, pid, &pidfd, terminal);
                    }
                    driver.end_exec(pid).map_err(io("ending the process"))?;
                    break;
                }
            }
        }
        if ended {
            break;
        }
    }
    Ok(reap(pid).map_err(io("reaping the process"))?.code())
}

/// Tells what runs in a terminal that its user has left, and gives it a moment: an editor saves what
/// it has, a shell its history.
fn hang_up(driver: &dyn Driver, pid: Pid, pidfd: &OwnedFd, terminal: OwnedFd) {
    drop(terminal);
    if driver.signal_exec(pid, SignalNumber::HUP).is_ok() {
        // Whatever this says, the process is ended next.
        let _ = poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&LEFT_GRACE));
    }
}

/// What the agent asks for, as far as it has been read.
#[derive(Default)]
struct Requests(Vec<u8>);

impl Requests {
    /// The signals that are asked for; none at all when the agent has gone away, or does not make
    /// sense.
    fn read(&mut self, mut agent: &UnixStream) -> Option<Vec<SignalNumber>> {
        let mut buffer = [0; 4096];
        let length = agent.read(&mut buffer).ok().filter(|length| *length > 0)?;
        self.0.extend_from_slice(&buffer[..length]);
        let whole = self.0.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let lines: Vec<u8> = self.0.drain(..whole).collect();
        let signal = |line: &[u8]| {
            let message: Versioned<ExecMessage> = serde_json::from_slice(line).ok()?;
            match message.message {
                ExecMessage::Signal { signal } => Some(signal),
                // What is run beside the first process ends with its client.
                ExecMessage::Detach => None,
            }
        };
        (self.0.len() <= MAX_LINE)
            .then(|| lines.split(|byte| *byte == b'\n').filter_map(signal).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_come_in_lines_cut_anywhere() {
        let (agent, exec) = UnixStream::pair().unwrap();
        let signal = |number: i32| SignalNumber::try_from(number).unwrap();
        let line = |number| protocol::line(ExecMessage::Signal { signal: signal(number) });
        let text = [line(2), b"what is this?\n".to_vec(), line(15)].concat();
        let mut requests = Requests::default();
        let mut found = Vec::new();
        for part in text.chunks(7) {
            (&agent).write_all(part).unwrap();
            found.extend(requests.read(&exec).unwrap());
        }
        assert_eq!(found, [signal(2), signal(15)]);
        drop(agent);
        assert_eq!(requests.read(&exec), None);
    }
}
