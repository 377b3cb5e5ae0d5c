//! The process beside each container: `longshore shim`.
//!
//! It makes the container, is the parent of its first process, writes its log, records its end and
//! answers the agent. It has one thread for life, because libcontainer forks without exec, and no
//! async runtime, because there is one shim per instance and a megabyte counts. It outlives the
//! agent: nothing it needs later comes from the agent, and its lock file, not its process id, says
//! that it is alive.
//!
//! When a shim dies, the kernel ends its container, unless the container changed its user, which
//! clears the parent-death signal; then the agent finds the shim's lock free and ends the cgroup.

mod attach;
mod log;
mod serve;
mod streams;

use std::ffi::{CStr, OsString};
use std::fs::{self, File};
use std::io::Write as _;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use longshore_types::{Attached, ExitReason, Timestamp};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags};

use crate::cgroup::{CgroupProblem, CgroupTree, InstanceCgroup};
use crate::devices::{self, DeviceProblem};
use crate::driver::{Driver, DriverProblem, Entered, ProcessPlan, TerminalPlan, driver};
use crate::failure::chain;
use crate::files::FileProblem;
use crate::oci::{self, Bounds, TooManyOpenFiles};
use crate::process::reap;
use crate::protocol::{self, Start, Timing, short_socket_path};
use crate::record::{ExitRecord, now};
use crate::rooted::Root;
use crate::spec::{
    ContainerSpec, Launch, MachineUser, TerminalSize, UserNamespace, load_secret_env,
};
use crate::user::UserOutOfRange;

use log::LogWriter;
use streams::Ends;

/// What a shim is called in the list of processes.
pub(crate) const NAME: &CStr = c"longshore-shim";

/// Why a shim could not start its container.
#[derive(Debug, thiserror::Error)]
enum ShimProblem {
    #[error("the shim was called without its directories")]
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
    #[error("opening the root file system {}", .0.display())]
    RootFileSystem(PathBuf, #[source] std::io::Error),
    #[error("opening the network namespace {}", .0.display())]
    NetworkNamespace(PathBuf, #[source] std::io::Error),
    #[error("opening the user namespace {}", .0.display())]
    UserNamespace(PathBuf, #[source] std::io::Error),
    #[error(
        "{} is closed to the container's users, whose {} lies below: let others pass there \
         (chmod o+x), or choose another run directory",
        .1.display(), .0.display()
    )]
    Closed(PathBuf, PathBuf),
    #[error(transparent)]
    UserOutOfRange(#[from] UserOutOfRange),
    #[error("making the working directory {0:?}")]
    WorkingDirectory(String, #[source] std::io::Error),
    #[error("making the mount point {0} in the image")]
    MountPoint(String, #[source] std::io::Error),
    #[error("setting the limits")]
    Cgroup(#[from] CgroupProblem),
    #[error(transparent)]
    OpenFiles(#[from] TooManyOpenFiles),
    #[error("closing the devices")]
    Devices(#[from] DeviceProblem),
    #[error(transparent)]
    Driver(#[from] DriverProblem),
}

fn io(doing: &'static str) -> impl Fn(std::io::Error) -> ShimProblem {
    move |source| ShimProblem::Io { doing, source }
}

fn errno(doing: &'static str) -> impl Fn(rustix::io::Errno) -> ShimProblem {
    move |source| ShimProblem::Io { doing, source: source.into() }
}

/// Stage times of a start.
struct Stopwatch {
    last: Instant,
    timings: Vec<Timing>,
}

impl Stopwatch {
    fn start() -> Self {
        Self { last: Instant::now(), timings: Vec::new() }
    }

    fn lap(&mut self, stage: &str) {
        let micros = u64::try_from(self.last.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.timings.push(Timing { stage: stage.to_owned(), micros });
        self.last = Instant::now();
    }
}

/// A container that runs, or waits for a client to be attached, and all that its shim holds for it.
struct Container {
    spec: ContainerSpec,
    cgroup: InstanceCgroup,
    driver: Box<dyn Driver>,
    pid: Pid,
    pidfd: OwnedFd,
    started_at: Timestamp,
    /// Whether its program does not run yet.
    is_held: bool,
    ends: Ends,
    log: LogWriter,
}

impl Container {
    /// Closes the devices, and lets the first process run if nobody has to be attached before.
    fn run_unless_held(&mut self, stopwatch: &mut Stopwatch) -> Result<(), ShimProblem> {
        let (kind, devices_dir) = self.cgroup.devices_directory();
        devices::restrict(kind, &devices_dir)?;
        stopwatch.lap("devices");
        if !self.is_held {
            self.let_run()?;
            stopwatch.lap("start");
        }
        Ok(())
    }

    /// Lets the first process run its program.
    fn let_run(&mut self) -> Result<(), ShimProblem> {
        self.driver.start()?;
        self.cgroup.bound_shim()?;
        (self.is_held, self.started_at) = (false, now());
        Ok(())
    }
}

/// What the process inherits from the agent, moved off descriptors 0 and 1.
struct Inherited {
    agent: UnixStream,
    /// Held, never used: it is the lock.
    lock: OwnedFd,
}

/// Runs a shim: `args` are the instance's run directory and its state directory. Called from `main`
/// before any thread exists; descriptor 0 is a socket to the agent, descriptor 1 the lock file.
/// Returns when the container has ended and that is on record.
pub fn shim_main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut args = args.into_iter().map(PathBuf::from);
    let result = match (args.next(), args.next()) {
        (Some(run_dir), Some(state_dir)) => run(&run_dir, &state_dir),
        _ => Err(ShimProblem::Arguments),
    };
    match result {
        Ok(code) => code,
        Err(problem) => {
            // Descriptor 2 is the shim's own error file, and this is its last word.
            let _ = writeln!(std::io::stderr(), "{}", chain(&problem));
            ExitCode::FAILURE
        }
    }
}

fn run(run_dir: &Path, state_dir: &Path) -> Result<ExitCode, ShimProblem> {
    let mut stopwatch = Stopwatch::start();
    let mut inherited = detach()?;
    let launch = Launch::load(state_dir)?;
    let mut launch = launch.ok_or_else(|| ShimProblem::NoSpec(state_dir.into()))?;
    launch.spec.env.extend(load_secret_env(run_dir)?);
    let id = launch.spec.id.clone();
    let cgroup = CgroupTree::probe(&launch.cgroup_root)?.instance(&id);
    stopwatch.lap("shim");
    let withheld = vec![inherited.agent.as_raw_fd(), inherited.lock.as_raw_fd()];
    let started = bind(run_dir).and_then(|listener| {
        let container = start(launch.spec, &cgroup, run_dir, withheld, &mut stopwatch)?;
        Ok((listener, container))
    });
    match started {
        Ok((listener, container)) => {
            let running = Start::Running {
                pid: container.pid.as_raw_nonzero().get(),
                started_at: container.started_at,
                timings: stopwatch.timings,
            };
            // An agent that is gone by now will find us by the socket.
            let _ = inherited.agent.write_all(&protocol::line(running));
            drop(inherited.agent);
            settle();
            serve::serve(container, listener, state_dir)?;
            drop(inherited.lock);
            Ok(ExitCode::SUCCESS)
        }
        Err(problem) => {
            let message = chain(&problem);
            cgroup.kill_payload()?;
            let reason = ExitReason::StartFailed { message: message.clone() };
            ExitRecord::now(&id, reason, None).store(state_dir)?;
            let _ = inherited.agent.write_all(&protocol::line(Start::Failed { why: message }));
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Directories in the root that the runtime mounts on.
const KERNEL_DIRECTORIES: [&str; 3] = ["proc", "sys", "dev"];

/// Makes what the runtime expects to be there, and finds out what is not while the words for it are
/// still ours.
fn prepare_files(spec: &ContainerSpec, user: MachineUser) -> Result<(), ShimProblem> {
    let root = Root::open(&spec.rootfs)
        .map_err(|source| ShimProblem::RootFileSystem(spec.rootfs.clone(), source))?;
    let mount_point = |path: &str| {
        let path = path.to_owned();
        move |source| ShimProblem::MountPoint(path, source)
    };
    // What the kernel shows must be where every program looks for it, and nowhere else.
    for name in KERNEL_DIRECTORIES {
        root.ensure_plain_directory(name, user.root).map_err(mount_point(&format!("/{name}")))?;
    }
    for file in &spec.files {
        let failed = mount_point(&file.destination);
        let made = root
            .ensure_file(&file.destination, user.root)
            .and_then(|()| visible(&root, &file.destination));
        made.map_err(failed)?;
    }
    root.ensure_directory(&spec.cwd, user.root)
        .and_then(|()| visible(&root, &spec.cwd))
        .map_err(|source| ShimProblem::WorkingDirectory(spec.cwd.clone(), source))?;
    if let Some(path) = &spec.netns {
        File::open(path).map_err(|source| ShimProblem::NetworkNamespace(path.clone(), source))?;
    }
    if let Some(UserNamespace { path, .. }) = &spec.users {
        File::open(path).map_err(|source| ShimProblem::UserNamespace(path.clone(), source))?;
        let files = spec.files.iter().map(|file| &file.source);
        for path in files.chain([&spec.rootfs]) {
            check_way(path, user.root)
                .map_err(|closed| ShimProblem::Closed(path.clone(), closed))?;
        }
    }
    Ok(())
}

/// Whether the user and group `id` may go through every directory above `path`. The runtime makes
/// the container with the rights of its root, and would only say that permission was denied.
fn check_way(path: &Path, id: u32) -> Result<(), PathBuf> {
    let closed = path.ancestors().skip(1).find(|dir| {
        dir.metadata().is_ok_and(|metadata| {
            let bits = if metadata.uid() == id {
                0o100
            } else if metadata.gid() == id {
                0o010
            } else {
                0o001
            };
            metadata.mode() & bits == 0
        })
    });
    closed.map_or(Ok(()), |dir| Err(dir.to_owned()))
}

/// Refuses a path whose links lead to where the kernel's own file systems will be mounted.
fn visible(root: &Root, path: &str) -> std::io::Result<()> {
    let place = root.resolve(path)?;
    let is_below = |top: &&str| place.starts_with(top) && place != Path::new(top);
    match ["/proc", "/sys"].iter().any(is_below) {
        false => Ok(()),
        true => {
            let problem = format!("it leads to {}, below what the kernel shows", place.display());
            Err(std::io::Error::other(problem))
        }
    }
}

/// Leaves the agent's session, directory and descriptors behind.
fn detach() -> Result<Inherited, ShimProblem> {
    let failed = "detaching from the agent";
    rustix::process::setsid().map_err(errno(failed))?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    rustix::process::chdir("/").map_err(errno(failed))?;
    rustix::thread::set_name(NAME).map_err(errno(failed))?;
    nix::unistd::setgroups(&[]).map_err(|e| io(failed)(e.into()))?;
    let inherited = inherited_descriptor(0).and_then(|agent| {
        Ok(Inherited { agent: UnixStream::from(agent), lock: inherited_descriptor(1)? })
    });
    inherited.map_err(io("taking over the agent's descriptors"))
}

/// Moves a low descriptor to one that closes on exec and leaves `/dev/null` in its place.
pub(crate) fn inherited_descriptor(number: i32) -> std::io::Result<OwnedFd> {
    // SAFETY: whoever starts this process puts an open descriptor there, and nothing in it has taken
    // ownership of it: it is the process's own standard input or output.
    let mut low = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(number) });
    let moved = rustix::io::fcntl_dupfd_cloexec(&*low, 3)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty())?;
    rustix::io::dup2(&null, &mut low)?;
    Ok(moved)
}

fn bind(run_dir: &Path) -> Result<UnixListener, ShimProblem> {
    let bind = || -> std::io::Result<UnixListener> {
        let dir = File::open(run_dir)?;
        let listener = UnixListener::bind(short_socket_path(&dir, protocol::SOCKET))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    bind().map_err(io("making the shim's socket"))
}

fn start(
    spec: ContainerSpec,
    cgroup: &InstanceCgroup,
    run_dir: &Path,
    withheld: Vec<i32>,
    stopwatch: &mut Stopwatch,
) -> Result<Container, ShimProblem> {
    let user = spec.on_machine(&spec.user)?;
    cgroup.create(&spec.limits)?;
    stopwatch.lap("cgroup");
    cgroup.enter_shim()?;
    stopwatch.lap("enter");
    prepare_files(&spec, user)?;
    let log = LogWriter::open(&spec.log).map_err(io("opening the log"))?;
    let (mut ends, streams) = Ends::make(spec.client.map(|client| client.by), user.uid)?;
    let mut document = oci::config(&spec, &cgroup.oci_path(), Bounds::own(&spec.limits)?);
    let mut driver = driver(&spec, run_dir, || Ok(cgroup.clone()))?;
    stopwatch.lap("prepare");
    let terminal = spec
        .client
        .filter(|client| client.by == Attached::Terminal)
        .map(|_| TerminalPlan { size: TerminalSize::USUAL, owner: user.uid });
    if let Some(terminal) = terminal {
        document["process"] = oci::in_terminal(&document["process"], terminal.size);
    }
    let plan = ProcessPlan { user: &spec.user, document: &document, streams, withheld };
    let Entered { pid, terminal } = driver.create(plan, terminal)?;
    stopwatch.lap("create");
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())
        .map_err(errno("watching the container's first process"))?;
    if let Some(master) = terminal {
        ends.take_terminal(master).map_err(io("taking over the terminal"))?;
    }
    let (started_at, cgroup, is_held) = (now(), cgroup.clone(), spec.client.is_some());
    let mut container =
        Container { spec, cgroup, driver, pid, pidfd, started_at, is_held, ends, log };
    if let Err(problem) = container.run_unless_held(stopwatch) {
        container.cgroup.kill_payload()?;
        reap(pid).map_err(io("reaping the container's first process"))?;
        return Err(problem);
    }
    Ok(container)
}

/// After the start: make this process small and the last that the kernel ends for want of memory.
fn settle() {
    // libcontainer made this process undumpable, which hides its own files in /proc from it.
    // Neither of these is worth ending a container that runs.
    let _ = fs::write("/proc/self/oom_score_adj", "-998");
    // SAFETY: gives free heap pages back to the kernel; no memory in use is touched.
    unsafe { libc::malloc_trim(0) };
}
