//! Starting a container: a shim is spawned and tells how it went.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use longshore_types::InstanceId;
use rustix::fs::FlockOperation;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::executable::path_in_child;
use super::{Inner, RemoveError, Running, Shims, make_directory, run_blocking};
use crate::files::{self, FileProblem};
use crate::protocol::{self, Start, Timing, Versioned};
use crate::record::ExitRecord;
use crate::spec::{ContainerSpec, Launch, store_secret_env};

/// How long a shim may take to make a container. Far beyond what it ever takes, so that only one
/// that hangs meets it.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// What a shim prints when it fails unexpectedly; kept beside the spec.
const ERROR_FILE: &str = "shim.err";
/// How much of that is quoted.
const MAX_QUOTED: usize = 2000;

/// Why a container could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartContainerError {
    /// It runs already.
    #[error("instance {0} is running already")]
    AlreadyRunning(InstanceId),
    /// What an earlier start left could not be removed.
    #[error("removing what an earlier start of {id} left")]
    Leftovers {
        /// The instance.
        id: InstanceId,
        /// Why.
        #[source]
        source: RemoveError,
    },
    /// A directory or file could not be made.
    #[error("preparing {}", path.display())]
    Prepare {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The spec could not be written.
    #[error(transparent)]
    Spec(#[from] FileProblem),
    /// The shim could not be spawned.
    #[error("spawning the shim of {id}")]
    Spawn {
        /// The instance.
        id: InstanceId,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The shim told why the container cannot run.
    #[error("{why}")]
    Refused {
        /// Every cause, outermost first.
        why: String,
    },
    /// The shim ended without a word.
    #[error("the shim of {id} ended while it made the container: {said}")]
    ShimDied {
        /// The instance.
        id: InstanceId,
        /// What it printed last.
        said: String,
    },
    /// The shim hung.
    #[error("the shim of {0} did not make the container in 60 seconds")]
    Deadline(InstanceId),
}

/// What a spawn needs.
struct Prepared {
    agent_end: OwnedFd,
    shim_end: OwnedFd,
    lock: File,
    errors: File,
}

impl Shims {
    /// Makes and starts a container; returns when its program runs. An earlier container of the same
    /// instance must have ended; what it left is removed, its log is kept and appended to. When the
    /// future is dropped the container may run all the same: `remove` ends it, `adopt` finds it.
    pub async fn start(&self, spec: &ContainerSpec) -> Result<Running, StartContainerError> {
        let begun = Instant::now();
        let id = spec.id.clone();
        let (inner, owned) = (Arc::clone(&self.inner), spec.clone());
        let prepared = run_blocking(move || inner.prepare(&owned)).await?;
        let n_micros =
            |since: Instant| u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
        let mut timings = vec![Timing { stage: "agent".to_owned(), micros: n_micros(begun) }];
        let spawned = Instant::now();
        let spawn_failed = |source| StartContainerError::Spawn { id: id.clone(), source };
        let (mut child, socket) = self.inner.spawn(&id, prepared).map_err(spawn_failed)?;
        match timeout(START_DEADLINE, first_line(socket)).await {
            Ok(Ok(Some(Start::Running { pid, started_at, timings: inside }))) => {
                let within: u64 = inside.iter().map(|timing| timing.micros).sum();
                let micros = n_micros(spawned).saturating_sub(within);
                timings.push(Timing { stage: "spawn".to_owned(), micros });
                timings.extend(inside);
                Ok(Running { inner: Arc::clone(&self.inner), id, pid, started_at, timings })
            }
            Ok(Ok(Some(Start::Failed { why }))) => {
                reap(&mut child).await.map_err(spawn_failed)?;
                Err(StartContainerError::Refused { why })
            }
            Ok(Ok(_)) => {
                reap(&mut child).await.map_err(spawn_failed)?;
                let said = last_words(&self.inner.state_dir(&id));
                Err(StartContainerError::ShimDied { id, said })
            }
            Ok(Err(source)) => Err(spawn_failed(source)),
            Err(_) => {
                child.kill().await.map_err(spawn_failed)?;
                Err(StartContainerError::Deadline(id))
            }
        }
    }
}

async fn reap(child: &mut Child) -> io::Result<()> {
    child.wait().await.map(drop)
}

/// The first thing that a shim or exec process says; absent when it ends without.
pub(super) async fn first_line(socket: UnixStream) -> io::Result<Option<Start>> {
    let mut line = Vec::new();
    if BufReader::new(socket).read_until(b'\n', &mut line).await? == 0 {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice::<Versioned<Start>>(&line)?.message))
}

fn last_words(state_dir: &Path) -> String {
    match std::fs::read_to_string(state_dir.join(ERROR_FILE)) {
        Ok(text) if !text.trim().is_empty() => {
            let from = text.ceil_char_boundary(text.len().saturating_sub(MAX_QUOTED));
            text[from..].trim().to_owned()
        }
        _ => "it printed nothing".to_owned(),
    }
}

/// A connected pair: ours for tokio, the child's to inherit.
pub(super) fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let pair = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    rustix::io::ioctl_fionbio(&pair.0, true)?;
    Ok(pair)
}

impl Inner {
    fn prepare(&self, spec: &ContainerSpec) -> Result<Prepared, StartContainerError> {
        let id = &spec.id;
        let (run_dir, state_dir) = (self.run_dir(id), self.state_dir(id));
        let prepare = |path: &Path| {
            let path = path.to_owned();
            move |source| StartContainerError::Prepare { path, source }
        };
        // A shim that has recorded the end is about to go; removing its leftovers waits for that.
        let ended = ExitRecord::load(&state_dir)?.is_some();
        if !ended && self.shim_lives(id).map_err(prepare(&run_dir))? {
            return Err(StartContainerError::AlreadyRunning(id.clone()));
        }
        if run_dir.exists() || self.cgroup(id).exists() {
            self.remove(id)
                .map_err(|source| StartContainerError::Leftovers { id: id.clone(), source })?;
        }
        let log_dir = spec.log.path.parent().unwrap_or(Path::new("/"));
        for dir in [state_dir.as_path(), log_dir, run_dir.as_path()] {
            make_directory(dir).map_err(prepare(dir))?;
        }
        let record = state_dir.join(ExitRecord::FILE);
        files::remove_if_present(&record).map_err(prepare(&record))?;
        let lock_path = run_dir.join(protocol::LOCK);
        let lock = File::create(&lock_path).map_err(prepare(&lock_path))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|errno| prepare(&lock_path)(errno.into()))?;
        let launch = Launch {
            v: Launch::VERSION,
            cgroup_root: self.config.cgroup_root.clone(),
            boot_id: self.boot_id.clone(),
            spec: spec.clone(),
        };
        launch.store(&state_dir)?;
        store_secret_env(&run_dir, &spec.secret_env)?;
        let error_path = state_dir.join(ERROR_FILE);
        let errors = OpenOptions::new().create(true).write(true).truncate(true).open(&error_path);
        let errors = errors.map_err(prepare(&error_path))?;
        let (agent_end, shim_end) = socket_pair().map_err(prepare(&run_dir))?;
        Ok(Prepared { agent_end, shim_end, lock, errors })
    }

    fn spawn(&self, id: &InstanceId, prepared: Prepared) -> io::Result<(Child, UnixStream)> {
        let Prepared { agent_end, shim_end, lock, errors } = prepared;
        let socket = UnixStream::from_std(agent_end.into())?;
        let child = self
            .command("shim", id)
            .stdin(Stdio::from(shim_end))
            .stdout(Stdio::from(lock))
            .stderr(Stdio::from(errors))
            .spawn()?;
        // Dropping the child later leaves it running; tokio reaps it when it ends.
        Ok((child, socket))
    }

    /// Our own program with a command and the directories of an instance.
    pub(super) fn command(&self, verb: &str, id: &InstanceId) -> Command {
        let mut command = Command::new(path_in_child(&self.executable));
        command
            .arg0("longshore")
            .arg(verb)
            .arg(self.run_dir(id))
            .arg(self.state_dir(id))
            .env_clear();
        command
    }
}
