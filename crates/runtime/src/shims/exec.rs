//! Running another process inside a container.

pub(super) mod streams;

use std::collections::BTreeMap;
use std::io;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use longshore_types::InstanceId;
use rustix::pipe::PipeFlags;
use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::time::timeout;

use super::connection::Connection;
use super::start::socket_pair;
use super::{Inner, Shims, load_spec, run_blocking};
use crate::files::FileProblem;
use crate::protocol::{self, ExecMessage, ExecOrder, Start};
use crate::record::ExitRecord;
use crate::signal::SignalNumber;
use crate::spec::TerminalSize;
use crate::user::{ResolveUserError, resolve_user};
pub use streams::ExecInput;
use streams::{Reader, Terminal};

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
    /// Whether it reads what is written to [`ExecStream::take_input`], or nothing. What runs in a
    /// terminal can always be written to.
    pub input: bool,
    /// The terminal that it runs in, which is then its input, its output and its errors.
    pub terminal: Option<TerminalSize>,
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
    /// The container runs by itself.
    #[error("nobody can be attached to it: it runs by itself, and what it writes is in its log")]
    NotAttachable,
    /// The shim ended without a word, and its container with it.
    #[error("the shim of the container ended")]
    Lost,
}

/// One thing that happened to a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEvent {
    /// It wrote to its standard output, or its terminal.
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
    /// The exec process; absent when this is attached to the first one.
    pub(super) child: Option<Child>,
    pub(super) connection: Arc<Connection>,
    /// What came over the connection and is not a whole line yet.
    pub(super) line: Vec<u8>,
    pub(super) stdout: Option<Reader>,
    pub(super) stderr: Option<Reader>,
    pub(super) input: Option<ExecInput>,
    pub(super) terminal: Option<Arc<Terminal>>,
    pub(super) ended: Option<i32>,
    pub(super) finished: bool,
    pub(super) inner: Arc<Inner>,
    pub(super) id: InstanceId,
}

/// By which a running process is signalled, and its terminal changed.
pub struct ExecControl {
    connection: Arc<Connection>,
    terminal: Option<Arc<Terminal>>,
}

impl ExecControl {
    /// Gives the terminal another size. Of a process without one, nothing happens.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn resize(&self, size: TerminalSize) -> io::Result<()> {
        self.terminal.as_ref().map_or(Ok(()), |terminal| terminal.resize(size))
    }

    /// Sends the process and its group a signal. One that has ended gets none.
    ///
    /// # Errors
    ///
    /// When the exec process is gone.
    pub async fn signal(&self, signal: SignalNumber) -> io::Result<()> {
        self.connection.send(&protocol::line(ExecMessage::Signal { signal }), None).await
    }

    /// Lets the container to whose first process this is attached go on without. Any other process
    /// ends with its stream all the same.
    ///
    /// # Errors
    ///
    /// When the shim is gone.
    pub async fn detach(&self) -> io::Result<()> {
        self.connection.send(&protocol::line(ExecMessage::Detach), None).await
    }
}

impl Drop for ExecStream {
    /// The process ends now, also when somebody still holds its input or its control.
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.connection.shut_down();
    }
}

impl Shims {
    /// Runs a process inside a running container, with the same protections as its first. Returns
    /// when its program runs.
    pub async fn exec(
        &self,
        id: &InstanceId,
        request: ExecRequest,
    ) -> Result<ExecStream, ExecError> {
        let in_terminal = request.terminal.is_some();
        let (input, mut stdin) = match request.input && !in_terminal {
            false => (None, None),
            true => {
                let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
                    .map_err(|errno| ExecError::Io(errno.into()))?;
                (Some(writer), Some(reader))
            }
        };
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
            let cwd = request.cwd.unwrap_or(spec.cwd);
            Ok(ExecOrder { args: request.args, env, cwd, user, terminal: request.terminal })
        })
        .await?;
        let (agent_end, exec_end) = socket_pair()?;
        let connection = Connection::new(UnixStream::from_std(agent_end.into())?);
        let output = || if in_terminal { Stdio::null() } else { Stdio::piped() };
        let mut child = self
            .inner
            .command("shim-exec", id)
            .stdin(Stdio::from(exec_end))
            .stdout(output())
            .stderr(output())
            .spawn()?;
        connection.send(&protocol::line(order), stdin.as_ref()).await?;
        // Only the process inside reads from here on, so that a writer learns of its end.
        drop(stdin.take());
        let (mut line, mut passed) = (Vec::new(), Vec::new());
        match connection.receive(&mut line, &mut passed).await? {
            Some(Start::Running { .. }) => {}
            Some(Start::Failed { why }) => return Err(ExecError::Refused { why }),
            Some(Start::Ended { .. }) | None => return Err(ExecError::Died),
        }
        let terminal = passed.pop().map(Terminal::new).transpose()?.map(Arc::new);
        let (stdout, input) = match &terminal {
            Some(terminal) => {
                let output = Reader::Terminal(Arc::clone(terminal));
                (Some(output), Some(ExecInput::terminal(terminal)))
            }
            None => {
                let input = input.map(ExecInput::pipe).transpose()?;
                (child.stdout.take().map(Reader::Stdout), input)
            }
        };
        Ok(ExecStream {
            stderr: child.stderr.take().map(Reader::Stderr),
            child: Some(child),
            connection: Arc::new(connection),
            line,
            stdout,
            input,
            terminal,
            ended: None,
            finished: false,
            inner: Arc::clone(&self.inner),
            id: id.clone(),
        })
    }
}

impl Inner {
    /// Ends what execs left behind whose own process was killed.
    pub(super) fn end_orphans(&self, id: &InstanceId) -> io::Result<()> {
        self.cgroup(id).end_orphans([crate::shim::NAME, crate::exec::NAME])
    }
}

/// Reads a chunk; at the end of the stream it is put away.
async fn read_chunk(stream: &mut Option<Reader>) -> io::Result<Option<Vec<u8>>> {
    let Some(reader) = stream else { return std::future::pending().await };
    let chunk = reader.read().await?;
    if chunk.is_none() {
        *stream = None;
    }
    Ok(chunk)
}

impl ExecStream {
    /// What the process reads; once, and only when it was asked for.
    pub fn take_input(&mut self) -> Option<ExecInput> {
        self.input.take()
    }

    /// A handle for signals and the size of the terminal.
    pub fn control(&self) -> ExecControl {
        let (connection, terminal) = (Arc::clone(&self.connection), self.terminal.clone());
        ExecControl { connection, terminal }
    }

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
        let mut passed = Vec::new();
        loop {
            if let Some(code) = self.ended {
                if let Some(event) = self.rest().await? {
                    return Ok(event);
                }
                if let Some(child) = &mut self.child {
                    child.wait().await?;
                }
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
                message = self.connection.receive(&mut self.line, &mut passed) => match message? {
                    Some(Start::Ended { code }) => self.ended = Some(code),
                    Some(Start::Failed { why }) => return Err(ExecError::Refused { why }),
                    Some(Start::Running { .. }) => {}
                    None => {
                        let Some(child) = &mut self.child else { return Err(ExecError::Lost) };
                        // Its children hang on it until it is gone.
                        child.kill().await?;
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
