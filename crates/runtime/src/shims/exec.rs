//! Running another process inside a container.

use std::collections::BTreeMap;
use std::io;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use longshore_types::InstanceId;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStderr, ChildStdout};
use tokio::time::timeout;

use super::start::socket_pair;
use super::{Inner, Shims, load_spec, run_blocking};
use crate::files::FileProblem;
use crate::protocol::{self, ExecOrder, Start, Versioned};
use crate::record::ExitRecord;
use crate::user::{ResolveUserError, resolve_user};

const READ_SIZE: usize = 16 * 1024;
/// How long output that is already in the pipe may take to be seen after the process ended. A
/// process that it left behind may hold the pipe open for ever.
const REST_WITHIN: Duration = Duration::from_millis(50);

/// What to run.
#[derive(Debug, Clone, Default)]
pub struct ExecRequest {
    /// The program and its arguments.
    pub args: Vec<String>,
    /// Added to the container's environment.
    pub env: BTreeMap<String, String>,
    /// The working directory; the container's when absent.
    pub cwd: Option<String>,
    /// `user[:group]`; the container's when absent.
    pub user: Option<String>,
}

/// Why a process could not be run in a container.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The container does not run.
    #[error("instance {0} is not running")]
    NotRunning(InstanceId),
    /// Its spec could not be read.
    #[error(transparent)]
    Spec(#[from] FileProblem),
    /// There is no such user.
    #[error(transparent)]
    User(#[from] ResolveUserError),
    /// The exec process could not be spawned or talked to.
    #[error("running the exec process")]
    Io(#[from] io::Error),
    /// The process could not be run.
    #[error("{why}")]
    Refused {
        /// Every cause, outermost first.
        why: String,
    },
    /// The exec process ended without a word: it was killed, perhaps with its container.
    #[error("the exec process ended before the process inside did")]
    Died,
}

/// One thing that happened to a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEvent {
    /// It wrote to its standard output.
    Stdout(Vec<u8>),
    /// It wrote to its standard error.
    Stderr(Vec<u8>),
    /// It ended: its exit status, or 128 and the signal. Nothing follows.
    Exited {
        /// The status.
        code: i32,
    },
}

/// A process that runs in a container. Dropping this ends it.
pub struct ExecStream {
    child: Child,
    control: Lines<BufReader<UnixStream>>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    ended: Option<i32>,
    finished: bool,
    inner: Arc<Inner>,
    id: InstanceId,
}

impl Shims {
    /// Runs a process inside a running container, with the same protections as its first. Returns
    /// when its program runs.
    pub async fn exec(
        &self,
        id: &InstanceId,
        request: ExecRequest,
    ) -> Result<ExecStream, ExecError> {
        let (inner, owned) = (Arc::clone(&self.inner), id.clone());
        let order = run_blocking(move || -> Result<ExecOrder, ExecError> {
            let not_running = || ExecError::NotRunning(owned.clone());
            let ended = ExitRecord::load(&inner.state_dir(&owned))?.is_some();
            if ended || !inner.shim_lives(&owned)? {
                return Err(not_running());
            }
            let spec = load_spec(&inner, &owned)?.ok_or_else(not_running)?;
            let user = match &request.user {
                Some(text) => resolve_user(&spec.rootfs, text)?,
                None => spec.user,
            };
            let mut env = spec.env;
            env.extend(request.env);
            Ok(ExecOrder { args: request.args, env, cwd: request.cwd.unwrap_or(spec.cwd), user })
        })
        .await?;
        let (agent_end, exec_end) = socket_pair()?;
        let mut control = UnixStream::from_std(agent_end.into())?;
        let mut child = self
            .inner
            .command("shim-exec", id)
            .stdin(Stdio::from(exec_end))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        control.write_all(&protocol::line(order)).await?;
        let mut control = BufReader::new(control).lines();
        match next_message(&mut control).await? {
            Some(Start::Running { .. }) => {}
            Some(Start::Failed { why }) => return Err(ExecError::Refused { why }),
            Some(Start::Ended { .. }) | None => return Err(ExecError::Died),
        }
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (inner, id) = (Arc::clone(&self.inner), id.clone());
        Ok(ExecStream { child, control, stdout, stderr, ended: None, finished: false, inner, id })
    }
}

impl Inner {
    /// Ends what execs left behind whose own process was killed.
    pub(super) fn end_orphans(&self, id: &InstanceId) -> io::Result<()> {
        self.cgroup(id).end_orphans([crate::shim::NAME, crate::exec::NAME])
    }
}

async fn next_message(control: &mut Lines<BufReader<UnixStream>>) -> io::Result<Option<Start>> {
    match control.next_line().await {
        Ok(Some(line)) => Ok(Some(serde_json::from_str::<Versioned<Start>>(&line)?.message)),
        Ok(None) => Ok(None),
        Err(error) if super::is_absence(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads a chunk; at the end of the stream it is put away.
async fn read_chunk<R: tokio::io::AsyncRead + Unpin>(
    stream: &mut Option<R>,
) -> io::Result<Option<Vec<u8>>> {
    let Some(reader) = stream else { return std::future::pending().await };
    let mut buffer = vec![0; READ_SIZE];
    let length = reader.read(&mut buffer).await?;
    if length == 0 {
        *stream = None;
        return Ok(None);
    }
    buffer.truncate(length);
    Ok(Some(buffer))
}

impl ExecStream {
    /// The next event; absent after the last. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<ExecEvent, ExecError>> {
        if self.finished {
            return None;
        }
        let event = self.event().await;
        self.finished = matches!(event, Ok(ExecEvent::Exited { .. }) | Err(_));
        Some(event)
    }

    async fn event(&mut self) -> Result<ExecEvent, ExecError> {
        loop {
            if let Some(code) = self.ended {
                if let Some(event) = self.rest().await? {
                    return Ok(event);
                }
                self.child.wait().await?;
                return Ok(ExecEvent::Exited { code });
            }
            tokio::select! {
                chunk = read_chunk(&mut self.stdout) => {
                    if let Some(bytes) = chunk? {
                        return Ok(ExecEvent::Stdout(bytes));
                    }
                }
                chunk = read_chunk(&mut self.stderr) => {
                    if let Some(bytes) = chunk? {
                        return Ok(ExecEvent::Stderr(bytes));
                    }
                }
                message = next_message(&mut self.control) => match message? {
                    Some(Start::Ended { code }) => self.ended = Some(code),
                    Some(Start::Failed { why }) => return Err(ExecError::Refused { why }),
                    Some(Start::Running { .. }) => {}
                    None => {
                        // Its children hang on it until it is gone.
                        self.child.kill().await?;
                        let (inner, id) = (Arc::clone(&self.inner), self.id.clone());
                        run_blocking(move || inner.end_orphans(&id)).await?;
                        return Err(ExecError::Died);
                    }
                },
            }
        }
    }

    /// Output that the ended process left in the pipes.
    async fn rest(&mut self) -> io::Result<Option<ExecEvent>> {
        while self.stdout.is_some() {
            match timeout(REST_WITHIN, read_chunk(&mut self.stdout)).await {
                Ok(Ok(Some(bytes))) => return Ok(Some(ExecEvent::Stdout(bytes))),
                Ok(Ok(None)) => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => self.stdout = None,
            }
        }
        while self.stderr.is_some() {
            match timeout(REST_WITHIN, read_chunk(&mut self.stderr)).await {
                Ok(Ok(Some(bytes))) => return Ok(Some(ExecEvent::Stderr(bytes))),
                Ok(Ok(None)) => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => self.stderr = None,
            }
        }
        Ok(None)
    }
}
