//! The embedded runtime: youki's libcontainer in this process.
//!
//! What libcontainer 0.7 leaves to its caller, and where it is done: the system call filter, the
//! check that no-new-privileges and the capabilities are in force (it swallows an error of the
//! first), signal dispositions and the error of a failed exec ([`super::workload`]); supplementary
//! groups of the caller, which it keeps when the list is empty (the list never is); limits and
//! device rules (the shim, through the cgroup); joining the container's user namespace in an exec,
//! which it leaves out of the namespaces that it joins ([`super::join_users`]).

use std::fs;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;
use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;
use rustix::process::Pid;

use super::join_users::JoinUsers;
use super::particulars::First;
use super::run_files::{RunFiles, write};
use super::terminal::Console;
use super::workload::Workload;
use super::{Driver, DriverProblem, Entered, ProcessPlan, Streams, TerminalPlan, terminal};
use crate::SignalNumber;
use crate::failure::chain;
use crate::spec::{ContainerSpec, UserNamespace};

pub(super) struct Embedded {
    id: String,
    files: RunFiles,
    users: Option<UserNamespace>,
    created: Option<(Container, OwnedFd)>,
}

fn runtime(doing: &'static str) -> impl FnOnce(LibcontainerError) -> DriverProblem {
    // Its errors print some of their sources and not others, so they become text here.
    move |error| DriverProblem::Runtime { doing, source: chain(&error).into() }
}

impl Embedded {
    pub fn new(spec: &ContainerSpec, dir: &Path) -> Self {
        let users = spec.users.clone();
        Self { id: spec.id.to_string(), files: RunFiles::new(dir), users, created: None }
    }

    fn builder(
        &self,
        streams: Streams,
        workload: Workload,
    ) -> Result<ContainerBuilder, DriverProblem> {
        let stdin = match streams.stdin {
            Some(stdin) => stdin,
            None => {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                rustix::fs::open("/dev/null", flags, Mode::empty())
                    .map_err(|errno| DriverProblem::Pipe(errno.into()))?
            }
        };
        let builder = ContainerBuilder::new(self.id.clone(), SyscallType::Linux)
            .with_root_path(&self.files.state)
            .map_err(runtime("opening the runtime's state"))?;
        Ok(builder
            .with_executor(workload)
            .with_stdin(stdin)
            .with_stdout(streams.stdout)
            .with_stderr(streams.stderr))
    }

    /// The container's first process, of which another process made it.
    fn first_process(&self) -> Result<Pid, DriverProblem> {
        let container = Container::load(self.files.state.join(&self.id))
            .map_err(runtime("reading the runtime's state"))?;
        let pid = container.pid().and_then(|pid| Pid::from_raw(pid.as_raw()));
        pid.ok_or_else(|| DriverProblem::Workload("the container has ended".to_owned()))
    }

    /// A terminal of the container, and all three streams on it. libcontainer could make one too, but
    /// would give it to the machine's root, whom nobody is inside of a user namespace.
    fn terminal(first: Pid, terminal: TerminalPlan) -> Result<(OwnedFd, Streams), DriverProblem> {
        let made = || -> io::Result<(OwnedFd, Streams)> {
            let (master, stdin) = terminal::make(first, terminal)?;
            let (stdout, stderr) = (stdin.try_clone()?, stdin.try_clone()?);
            Ok((master, Streams { stdin: Some(stdin), stdout, stderr }))
        };
        made().map_err(DriverProblem::Terminal)
    }

    /// The workload of a plan, and the pipe by which it reports.
    fn workload(plan: &ProcessPlan<'_>) -> Result<(Workload, OwnedFd, OwnedFd), DriverProblem> {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
            .map_err(|errno| DriverProblem::Pipe(errno.into()))?;
        let workload = Workload::new(plan.user, writer.as_raw_fd(), &plan.withheld)?;
        Ok((workload, reader, writer))
    }
}

/// Waits until the process runs its program, which closes the pipe, or says why it cannot.
fn wait_for_report(reader: OwnedFd) -> Result<(), DriverProblem> {
    let mut report = String::new();
    fs::File::from(reader).read_to_string(&mut report).map_err(DriverProblem::Pipe)?;
    if report.is_empty() { Ok(()) } else { Err(DriverProblem::Workload(report)) }
}

impl Driver for Embedded {
    fn create(
        &mut self,
        plan: ProcessPlan<'_>,
        terminal: Option<TerminalPlan>,
    ) -> Result<Entered, DriverProblem> {
        self.files.make()?;
        write(&self.files.config(), plan.document)?;
        let listen = |terminal| Console::listen(self.files.bundle.join("console"), terminal);
        let console = terminal.map(listen).transpose().map_err(DriverProblem::Terminal)?;
        let (workload, reader, writer) = Self::workload(&plan)?;
        let container = self
            .builder(plan.streams, workload)?
            .with_console_socket(console.as_ref().map(Console::address))
            .as_init(&self.files.bundle)
            .with_systemd(false)
            .with_detach(true)
            .build()
            .map_err(runtime("making the container"))?;
        drop(writer);
        let pid = container.pid().and_then(|pid| Pid::from_raw(pid.as_raw()));
        self.created = Some((container, reader));
        let pid = pid
            .ok_or_else(|| DriverProblem::Workload("the runtime reported no process".to_owned()))?;
        let taken = console.map(|console| console.take(First::Program)).transpose();
        Ok(Entered { pid, terminal: taken.map_err(DriverProblem::Terminal)? })
    }

    fn start(&mut self) -> Result<(), DriverProblem> {
        let (mut container, reader) = self.created.take().ok_or_else(|| {
            DriverProblem::Workload("the container was started before it was made".to_owned())
        })?;
        container.start().map_err(runtime("starting the container"))?;
        wait_for_report(reader)
    }

    fn exec(
        &mut self,
        mut plan: ProcessPlan<'_>,
        terminal: Option<TerminalPlan>,
    ) -> Result<Entered, DriverProblem> {
        self.files.make()?;
        let master = match terminal {
            None => None,
            Some(terminal) => {
                let (master, streams) = Self::terminal(self.first_process()?, terminal)?;
                plan.streams = streams;
                Some(master)
            }
        };
        let path = self.files.bundle.join(format!("exec-{}.json", std::process::id()));
        let (mut workload, reader, writer) = Self::workload(&plan)?;
        if master.is_some() {
            workload.take_terminal();
        }
        let joining = match &self.users {
            None => None,
            Some(users) => Some(JoinUsers::open(users, plan.user)?),
        };
        match &joining {
            None => write(&path, plan.document)?,
            Some(joining) => {
                write(&path, &joining.process_before(plan.document))?;
                workload.join_first(joining.clone());
            }
        }
        let pid = self
            .builder(plan.streams, workload)?
            .as_tenant()
            .with_process(Some(&path))
            .with_detach(true)
            .build();
        drop(writer);
        // It has been read; a leftover would go with the run directory.
        let _ = fs::remove_file(&path);
        let pid = pid.map_err(|error| match wait_for_report_now(&reader) {
            Some(report) => DriverProblem::Workload(report),
            None => runtime("entering the container")(error),
        })?;
        wait_for_report(reader)?;
        let pid = Pid::from_raw(pid.as_raw())
            .ok_or_else(|| DriverProblem::Workload("the runtime reported no process".to_owned()))?;
        Ok(Entered { pid, terminal: master })
    }

    fn signal(&self, pidfd: &OwnedFd, signal: SignalNumber) -> io::Result<()> {
        crate::process::send_signal(pidfd, signal)
    }

    fn delete(&mut self) -> Result<(), DriverProblem> {
        self.created = None;
        self.files.remove()
    }
}

/// What the process reported before it gave up. The runtime has waited for its end already.
fn wait_for_report_now(reader: &OwnedFd) -> Option<String> {
    let mut buffer = [0; 4096];
    let length = rustix::io::read(reader, &mut buffer).ok()?;
    (length > 0).then(|| String::from_utf8_lossy(&buffer[..length]).into_owned())
}
