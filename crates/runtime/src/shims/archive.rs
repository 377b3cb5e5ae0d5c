//! Copies into and out of a container.

use std::io;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::Arc;

use longshore_types::InstanceId;
use rustix::pipe::PipeFlags;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::process::Child;

use super::connection::Connection;
use super::start::socket_pair;
use super::{AskShimError, Inner, Shims, load_spec, run_blocking};
use crate::files::FileProblem;
use crate::protocol::{
    self, ArchiveFailure, ArchiveMessage, ArchiveOrder, ArchiveWork, Reply, Request,
};
use crate::spec::RuntimeKind;

/// How much is read at once: as much as a pipe holds.
const AT_ONCE: usize = 64 << 10;

/// Why a copy did not happen, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The container does not run.
    #[error("instance {0} is not running")]
    NotRunning(InstanceId),
    /// Its runtime shows its files to nobody.
    #[error(
        "what runs in runsc keeps its files inside of its sandbox; `exec` with tar can read them"
    )]
    Sandboxed,
    /// Its spec could not be read.
    #[error(transparent)]
    Spec(#[from] FileProblem),
    /// The archive process could not be spawned or talked to.
    #[error("running the archive process")]
    Io(#[from] io::Error),
    /// There is nothing at the path.
    #[error("{why}")]
    Missing {
        /// What is missing.
        why: String,
    },
    /// What was sent is no archive, or one that must not be unpacked.
    #[error("{why}")]
    BadArchive {
        /// Every cause, outermost first.
        why: String,
    },
    /// It failed for another reason, such as a full disk.
    #[error("{why}")]
    Failed {
        /// Every cause, outermost first.
        why: String,
    },
    /// The archive process was killed, perhaps with its container.
    #[error("the archive process ended before the copy did")]
    Died,
}

/// Where in a container an archive is unpacked, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnpackRequest {
    /// The path inside.
    pub path: String,
    /// Whether the archive holds one tree and the path is the destination of `cp`; otherwise it is a
    /// directory, into which everything goes.
    pub as_cp: bool,
    /// Whether files belong to whom the archive says, by number; otherwise to the container's root.
    pub keep_owners: bool,
}

/// An archive of a container's files, as it is read. Dropping this ends the reading.
pub struct ArchiveReader {
    process: Process,
    pipe: pipe::Receiver,
    buffer: Vec<u8>,
}

/// An archive that is unpacked in a container. Dropping this ends it: a file that is not whole is
/// removed, what was unpacked before stays.
pub struct ArchiveWriter {
    process: Process,
    pipe: pipe::Sender,
}

/// The archive process. It ends when its pipe does, so nobody has to end it.
struct Process {
    child: Child,
    connection: Connection,
    line: Vec<u8>,
}

impl Process {
    async fn message(&mut self) -> Result<ArchiveMessage, ArchiveError> {
        let message = self.connection.receive(&mut self.line, &mut Vec::new()).await?;
        match message {
            Some(ArchiveMessage::Failed { kind, why }) => Err(match kind {
                ArchiveFailure::Missing => ArchiveError::Missing { why },
                ArchiveFailure::BadArchive => ArchiveError::BadArchive { why },
                ArchiveFailure::Other => ArchiveError::Failed { why },
            }),
            Some(message) => Ok(message),
            None => Err(ArchiveError::Died),
        }
    }

    /// Waits for the word that all went well.
    async fn done(&mut self) -> Result<(), ArchiveError> {
        while !matches!(self.message().await?, ArchiveMessage::Done {}) {}
        self.child.wait().await?;
        Ok(())
    }
}

impl Shims {
    /// Reads what is at a path of a running container, as an archive. Returns when it has been found.
    ///
    /// # Errors
    ///
    /// When the container does not run, or there is nothing.
    pub async fn pack(&self, id: &InstanceId, path: &str) -> Result<ArchiveReader, ArchiveError> {
        let (reader, writer) = pipe_pair()?;
        let work = ArchiveWork::Pack { path: path.to_owned() };
        let process = self.inner.archive(id, work, writer).await?;
        let pipe = pipe::Receiver::from_owned_fd(reader)?;
        Ok(ArchiveReader { process, pipe, buffer: vec![0; AT_ONCE] })
    }

    /// Begins to unpack an archive in a running container.
    ///
    /// # Errors
    ///
    /// When the container does not run.
    pub async fn unpack(
        &self,
        id: &InstanceId,
        request: UnpackRequest,
    ) -> Result<ArchiveWriter, ArchiveError> {
        let (reader, writer) = pipe_pair()?;
        let UnpackRequest { path, as_cp, keep_owners } = request;
        let work = ArchiveWork::Unpack { path, as_cp, keep_owners };
        let process = self.inner.archive(id, work, reader).await?;
        Ok(ArchiveWriter { process, pipe: pipe::Sender::from_owned_fd(writer)? })
    }
}

fn pipe_pair() -> Result<(OwnedFd, OwnedFd), ArchiveError> {
    // Both ends are left blocking: tokio makes its own what it must be, the process needs it.
    rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|errno| ArchiveError::Io(errno.into()))
}

impl Inner {
    async fn archive(
        self: &Arc<Self>,
        id: &InstanceId,
        work: ArchiveWork,
        pipe: OwnedFd,
    ) -> Result<Process, ArchiveError> {
        let not_running = || ArchiveError::NotRunning(id.clone());
        let (inner, owned) = (Arc::clone(self), id.clone());
        let spec =
            run_blocking(move || load_spec(&inner, &owned)).await?.ok_or_else(not_running)?;
        if matches!(spec.runtime, RuntimeKind::Runsc(_)) {
            return Err(ArchiveError::Sandboxed);
        }
        let pid = match self.ask(id, Request::State).await {
            Ok(Reply::State { pid, .. }) => pid,
            Ok(_) | Err(AskShimError::NotRunning(_)) => return Err(not_running()),
            Err(AskShimError::Io { source, .. }) => return Err(source.into()),
            Err(error) => return Err(ArchiveError::Failed { why: error.to_string() }),
        };
        let (agent_end, archive_end) = socket_pair()?;
        let connection = Connection::new(UnixStream::from_std(agent_end.into())?);
        let child = self
            .command("shim-archive", id)
            .stdin(Stdio::from(archive_end))
            .stdout(Stdio::from(pipe))
            .stderr(Stdio::null())
            .spawn()?;
        connection.send(&protocol::line(ArchiveOrder { pid, work }), None).await?;
        let mut process = Process { child, connection, line: Vec::new() };
        process.message().await?;
        Ok(process)
    }
}

impl ArchiveReader {
    /// The next bytes; none after the whole archive. Not cancel safe: drop this after that.
    ///
    /// # Errors
    ///
    /// When the rest cannot be read; what was read is no archive then.
    pub async fn next(&mut self) -> Result<Option<&[u8]>, ArchiveError> {
        match self.pipe.read(&mut self.buffer).await? {
            0 => self.process.done().await.map(|()| None),
            length => Ok(Some(&self.buffer[..length])),
        }
    }
}

impl ArchiveWriter {
    /// Passes bytes on. False when no more are wanted, which [`ArchiveWriter::finish`] explains.
    ///
    /// # Errors
    ///
    /// When the pipe fails in another way.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<bool> {
        match self.pipe.write_all(bytes).await {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Says that this was all, and waits until everything is unpacked.
    ///
    /// # Errors
    ///
    /// When something could not be.
    pub async fn finish(self) -> Result<(), ArchiveError> {
        let Self { mut process, pipe } = self;
        drop(pipe);
        process.done().await
    }
}
