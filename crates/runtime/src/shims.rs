//! The agent's side: starting, adopting and asking shims.
//!
//! Nothing about a container is kept in the agent's memory that is not also on disk, so a killed
//! agent loses nothing. Whether a shim lives is told by a lock on a file that it inherited already
//! locked: unlike a process id it cannot be taken over by another process, and unlike a socket it
//! leaves no moment, from the agent's spawn on, in which a living shim looks dead.

mod adopt;
mod archive;
mod attach;
mod connection;
mod exec;
mod executable;
mod start;

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use longshore_types::{ExitReason, InstanceId, Timestamp};
use rustix::fs::FlockOperation;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::task::spawn_blocking;

use crate::SignalNumber;
use crate::cgroup::{CgroupKind, CgroupProblem, CgroupTree, InstanceCgroup, Usage};
use crate::files::{self, FileProblem};
use crate::protocol::{self, Reply, Request, Timing, Versioned, short_socket_path};
use crate::record::ExitRecord;
use crate::spec::{ContainerSpec, Launch};
use crate::view;

pub use adopt::{AdoptError, Adopted, AdoptedState};
pub use archive::{ArchiveError, ArchiveReader, ArchiveWriter, UnpackRequest};
pub use exec::{ExecControl, ExecError, ExecEvent, ExecInput, ExecRequest, ExecStream};
pub use start::StartContainerError;

/// How long a shim may take to end once it was killed.
const SHIM_END_DEADLINE: Duration = Duration::from_secs(20);
/// The pause between looks at a shim that is about to end.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Where an agent keeps its shims.
#[derive(Debug, Clone)]
pub struct ShimsConfig {
    /// The `longshore` program, which is run as `longshore shim` and `longshore shim-exec`.
    pub executable: PathBuf,
    /// Sockets and other things that end with the machine; best on a tmpfs.
    pub run_dir: PathBuf,
    /// One directory per instance with its spec and exit record.
    pub state_dir: PathBuf,
    /// The agent's cgroup, relative to the root of each hierarchy, such as `/longshore-<agent id>`.
    pub cgroup_root: String,
}

/// Why this machine cannot run containers.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeProblem {
    /// Not root.
    #[error("containers can only be run by root: start the node agent as root")]
    NotRoot,
    /// A directory could not be made.
    #[error("making the directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The program could not be protected against being overwritten from inside a container.
    #[error(
        "making a read-only view of {} (needs Linux 5.12 or newer)",
        path.display()
    )]
    Executable {
        /// The program.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Limits cannot be set.
    #[error("preparing cgroups")]
    Cgroup(#[from] CgroupProblem),
    /// The boot id could not be read.
    #[error("reading /proc/sys/kernel/random/boot_id")]
    BootId(#[source] io::Error),
}

/// Why a shim did not answer, or not as hoped.
#[derive(Debug, thiserror::Error)]
pub enum AskShimError {
    /// There is no shim any more.
    #[error("instance {0} is not running")]
    NotRunning(InstanceId),
    /// It refused.
    #[error("the shim of {id} refused: {why}")]
    Refused {
        /// The instance.
        id: InstanceId,
        /// Its words.
        why: String,
    },
    /// The connection broke.
    #[error("talking to the shim of {id}")]
    Io {
        /// The instance.
        id: InstanceId,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its end could not be established.
    #[error("finding out how {id} ended")]
    Settle {
        /// The instance.
        id: InstanceId,
        /// Why.
        #[source]
        source: SettleError,
    },
}

/// Why the end of a container without a shim could not be recorded.
#[derive(Debug, thiserror::Error)]
pub enum SettleError {
    /// A record could not be read or written.
    #[error(transparent)]
    File(#[from] FileProblem),
    /// What was left of it could not be ended.
    #[error(transparent)]
    Cgroup(#[from] CgroupProblem),
    /// The state of its lock could not be read.
    #[error("looking at the shim's lock")]
    Lock(#[source] io::Error),
    /// It was never asked for.
    #[error("there is no instance {0}")]
    Unknown(InstanceId),
    /// What was left of it could not be removed.
    #[error(transparent)]
    Remove(Box<RemoveError>),
}

/// Why an instance could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// Its processes or cgroup could not be removed.
    #[error(transparent)]
    Cgroup(#[from] CgroupProblem),
    /// Its shim lives on.
    #[error("the shim of {0} did not end")]
    ShimLives(InstanceId),
    /// Its run directory could not be removed.
    #[error("removing {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// All containers of one agent. Cheap to clone.
#[derive(Clone)]
pub struct Shims {
    inner: Arc<Inner>,
}

struct Inner {
    config: ShimsConfig,
    cgroups: CgroupTree,
    /// A read-only view of the program; see [`executable`].
    executable: OwnedFd,
    boot_id: String,
}

/// A container that was started or adopted. Cheap to clone; dropping it changes nothing.
#[derive(Clone)]
pub struct Running {
    inner: Arc<Inner>,
    id: InstanceId,
    pid: i32,
    started_at: Timestamp,
    timings: Vec<Timing>,
}

fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

impl Shims {
    /// Finds out whether this machine can run containers, and prepares the agent's directories and
    /// cgroup. Blocks for some file operations.
    pub fn new(config: ShimsConfig) -> Result<Self, RuntimeProblem> {
        if !rustix::process::geteuid().is_root() {
            return Err(RuntimeProblem::NotRoot);
        }
        for path in [&config.run_dir, &config.state_dir] {
            make_directory(path)
                .map_err(|source| RuntimeProblem::Directory { path: path.clone(), source })?;
        }
        let cgroups = CgroupTree::probe(&config.cgroup_root)?;
        cgroups.ensure_root()?;
        let executable = view::read_only(&config.executable, 0).map_err(|source| {
            RuntimeProblem::Executable { path: config.executable.clone(), source }
        })?;
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map_err(RuntimeProblem::BootId)?;
        let boot_id = boot_id.trim().to_owned();
        Ok(Self { inner: Arc::new(Inner { config, cgroups, executable, boot_id }) })
    }

    /// Which kind of cgroup hierarchy limits are set in.
    pub fn cgroup_kind(&self) -> CgroupKind {
        self.inner.cgroups.kind()
    }

    /// Where the spec and the exit record of an instance are.
    pub fn state_dir(&self, id: &InstanceId) -> PathBuf {
        self.inner.state_dir(id)
    }

    /// Ends whatever is left of an instance and removes its cgroup and run directory. Does nothing
    /// when there is nothing. The state directory stays: it is the caller's.
    pub async fn remove(&self, id: &InstanceId) -> Result<(), RemoveError> {
        let (inner, id) = (Arc::clone(&self.inner), id.clone());
        run_blocking(move || inner.remove(&id)).await
    }

    /// What an instance's container uses now.
    pub async fn stats(&self, id: &InstanceId) -> io::Result<Usage> {
        let cgroup = self.inner.cgroup(id);
        run_blocking(move || cgroup.usage()).await
    }

    /// The same for callers that may block for as long as the kernel takes to count.
    pub fn usage(&self, id: &InstanceId) -> io::Result<Usage> {
        self.inner.cgroup(id).usage()
    }

    /// Removes the agent's own cgroup if no instance is left in it: for an agent that goes for good.
    pub fn remove_empty_root(&self) {
        self.inner.cgroups.remove_root_if_empty();
    }
}

/// Runs file work off the async workers. A panic in it goes on here; it is cancelled by a runtime that
/// ends alone, and with it ends whoever waits.
async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => std::future::pending().await,
        },
    }
}

impl Inner {
    fn run_dir(&self, id: &InstanceId) -> PathBuf {
        self.config.run_dir.join(id.as_str())
    }

    fn state_dir(&self, id: &InstanceId) -> PathBuf {
        self.config.state_dir.join(id.as_str())
    }

    fn cgroup(&self, id: &InstanceId) -> InstanceCgroup {
        self.cgroups.instance(id)
    }

    /// True while the shim of an instance lives, from the moment it is spawned.
    fn shim_lives(&self, id: &InstanceId) -> io::Result<bool> {
        let file = match File::open(self.run_dir(id).join(protocol::LOCK)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
            Err(errno) => Err(errno.into()),
        }
    }

    /// How an instance ended, if it has. When its shim is gone without a record, what the shim left
    /// is ended and the record written in its place.
    fn settle(&self, id: &InstanceId) -> Result<Option<ExitRecord>, SettleError> {
        let state_dir = self.state_dir(id);
        if let Some(record) = ExitRecord::load(&state_dir)? {
            return Ok(Some(record));
        }
        if self.shim_lives(id).map_err(SettleError::Lock)? {
            return Ok(None);
        }
        // It may have written the record as its last act, just now.
        if let Some(record) = ExitRecord::load(&state_dir)? {
            return Ok(Some(record));
        }
        let launch = Launch::load(&state_dir)?.ok_or_else(|| SettleError::Unknown(id.clone()))?;
        let reason = if launch.boot_id == self.boot_id {
            let cgroup = self.cgroup(id);
            // A command of a runtime that the shim was waiting for may be about to start something
            // in the other one.
            cgroup.kill_shim()?;
            cgroup.kill_payload()?;
            ExitReason::ShimDied
        } else {
            ExitReason::NodeRestarted
        };
        let record = ExitRecord::now(id, reason, None);
        record.store(&state_dir)?;
        Ok(Some(record))
    }

    fn remove(&self, id: &InstanceId) -> Result<(), RemoveError> {
        let (cgroup, run_dir) = (self.cgroup(id), self.run_dir(id));
        let failed = |source| RemoveError::Directory { path: run_dir.clone(), source };
        let deadline = Instant::now() + SHIM_END_DEADLINE;
        // A shim that was spawned a moment ago is not in its cgroup yet.
        loop {
            cgroup.kill_shim()?;
            cgroup.kill_payload()?;
            if !self.shim_lives(id).map_err(failed)? {
                break;
            }
            if Instant::now() > deadline {
                return Err(RemoveError::ShimLives(id.clone()));
            }
            thread::sleep(LOOK_EVERY);
        }
        cgroup.remove()?;
        files::remove_if_present(&run_dir).map_err(failed)
    }

    /// Connects to the shim of an instance.
    async fn connect(&self, id: &InstanceId) -> io::Result<UnixStream> {
        let dir = File::open(self.run_dir(id))?;
        UnixStream::connect(short_socket_path(&dir, protocol::SOCKET)).await
    }

    /// Asks a shim one thing. The answer may take as long as the container runs.
    async fn ask(&self, id: &InstanceId, request: Request) -> Result<Reply, AskShimError> {
        let not_running = || AskShimError::NotRunning(id.clone());
        let failed = |source| AskShimError::Io { id: id.clone(), source };
        let mut socket = match self.connect(id).await {
            Ok(socket) => BufReader::new(socket),
            Err(error) if is_absence(&error) => return Err(not_running()),
            Err(source) => return Err(failed(source)),
        };
        let mut line = Vec::new();
        let exchange = async {
            socket.write_all(&protocol::line(request)).await?;
            socket.read_until(b'\n', &mut line).await
        };
        match exchange.await {
            Ok(0) => return Err(not_running()),
            Ok(_) => {}
            Err(error) if is_absence(&error) => return Err(not_running()),
            Err(source) => return Err(failed(source)),
        }
        match serde_json::from_slice::<Versioned<Reply>>(&line) {
            Ok(Versioned { message: Reply::Refused { why }, .. }) => {
                Err(AskShimError::Refused { id: id.clone(), why })
            }
            Ok(reply) => Ok(reply.message),
            Err(error) => Err(failed(error.into())),
        }
    }
}

/// True for what a socket says whose owner is gone.
fn is_absence(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound};
    matches!(error.kind(), NotFound | ConnectionRefused | ConnectionReset | BrokenPipe)
}

impl Running {
    /// The instance.
    pub fn id(&self) -> &InstanceId {
        &self.id
    }

    /// The container's first process, as the host numbers it.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// When its program began to run.
    pub fn started_at(&self) -> Timestamp {
        self.started_at
    }

    /// How long each stage of its start took; empty when it was adopted.
    pub fn timings(&self) -> &[Timing] {
        &self.timings
    }

    /// Waits until it has ended and that is on disk. Cancel safe; any number may wait. When its shim
    /// dies, what is left of the container is ended first and the reason is `shim died`.
    pub async fn wait(&self) -> Result<ExitRecord, AskShimError> {
        loop {
            match self.inner.ask(&self.id, Request::Wait).await {
                Ok(Reply::Exited { record }) => return Ok(record),
                Ok(_) | Err(AskShimError::NotRunning(_)) => {}
                Err(error) => return Err(error),
            }
            let (inner, id) = (Arc::clone(&self.inner), self.id.clone());
            let settled = run_blocking(move || inner.settle(&id)).await;
            let settle_failed = |source| AskShimError::Settle { id: self.id.clone(), source };
            if let Some(record) = settled.map_err(settle_failed)? {
                return Ok(record);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Asks it to stop, ends it after the grace, and waits for that.
    pub async fn stop(&self, grace: Duration) -> Result<ExitRecord, AskShimError> {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        self.ask_if_running(Request::Stop { grace_ms }).await?;
        self.wait().await
    }

    /// Ends it now, and waits for that.
    pub async fn kill(&self) -> Result<ExitRecord, AskShimError> {
        self.ask_if_running(Request::Kill).await?;
        self.wait().await
    }

    /// Sends its first process a signal. The kernel drops a signal that this process does not
    /// handle, SIGKILL and SIGSTOP excepted, since it is the first of its process namespace.
    pub async fn signal(&self, signal: SignalNumber) -> Result<(), AskShimError> {
        self.inner.ask(&self.id, Request::Signal { signal }).await.map(drop)
    }

    async fn ask_if_running(&self, request: Request) -> Result<(), AskShimError> {
        match self.inner.ask(&self.id, request).await {
            Ok(_) | Err(AskShimError::NotRunning(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Reads the spec of an instance for those that only look.
fn load_spec(inner: &Inner, id: &InstanceId) -> Result<Option<ContainerSpec>, FileProblem> {
    Ok(Launch::load(&inner.state_dir(id))?.map(|launch| launch.spec))
}
