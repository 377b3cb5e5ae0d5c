//! The agent's ends of what a process inside reads and writes.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::process::{ChildStderr, ChildStdout};

use crate::spec::TerminalSize;

const READ_SIZE: usize = 16 * 1024;

/// The master of a terminal.
pub(in crate::shims) struct Terminal(AsyncFd<OwnedFd>);

impl Terminal {
    pub fn new(master: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&master, true)?;
        // SAFETY: it is an `OwnedFd`, the same descriptor until it is dropped.
        Ok(Self(unsafe { AsyncFd::register(master)? }))
    }

    pub fn resize(&self, size: TerminalSize) -> io::Result<()> {
        size.set(self.0.get_ref())
    }

    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            let read =
                |master: &AsyncFd<OwnedFd>| Ok(rustix::io::read(master.get_ref(), &mut *buffer)?);
            match ready.try_io(read) {
                // What the kernel says once nobody has the terminal open any more.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Ok(0),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(outcome) => return outcome,
                Err(_would_block) => {}
            }
        }
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.0.writable().await?;
            let write = |master: &AsyncFd<OwnedFd>| Ok(rustix::io::write(master.get_ref(), bytes)?);
            match ready.try_io(write) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(outcome) => bytes = &bytes[outcome?..],
                Err(_would_block) => {}
            }
        }
        Ok(())
    }
}

/// What a process writes.
pub(in crate::shims) enum Reader {
    Pipe(pipe::Receiver),
    Stdout(ChildStdout),
    Stderr(ChildStderr),
    Terminal(Arc<Terminal>),
}

impl Reader {
    pub fn pipe(reader: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&reader, true)?;
        Ok(Self::Pipe(pipe::Receiver::from_owned_fd(reader)?))
    }

    /// The next bytes; absent at the end. Cancel safe.
    pub async fn read(&mut self) -> io::Result<Option<Vec<u8>>> {
        match self {
            Self::Pipe(pipe) => read(pipe).await,
            Self::Stdout(pipe) => read(pipe).await,
            Self::Stderr(pipe) => read(pipe).await,
            Self::Terminal(terminal) => {
                let mut buffer = vec![0; READ_SIZE];
                let length = terminal.read(&mut buffer).await?;
                Ok(some(buffer, length))
            }
        }
    }
}

async fn read<R: AsyncRead + Unpin>(reader: &mut R) -> io::Result<Option<Vec<u8>>> {
    let mut buffer = vec![0; READ_SIZE];
    let length = reader.read(&mut buffer).await?;
    Ok(some(buffer, length))
}

fn some(mut buffer: Vec<u8>, length: usize) -> Option<Vec<u8>> {
    buffer.truncate(length);
    (length > 0).then_some(buffer)
}

/// What a process reads. Dropping this is the end of its input, unless it has a terminal.
pub struct ExecInput(Writer);

enum Writer {
    Pipe(pipe::Sender),
    Terminal(Arc<Terminal>),
}

impl ExecInput {
    pub(in crate::shims) fn pipe(writer: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&writer, true)?;
        Ok(Self(Writer::Pipe(pipe::Sender::from_owned_fd(writer)?)))
    }

    pub(in crate::shims) fn terminal(terminal: &Arc<Terminal>) -> Self {
        Self(Writer::Terminal(Arc::clone(terminal)))
    }

    /// Writes bytes, as fast as the process reads them.
    ///
    /// # Errors
    ///
    /// When the process reads no more.
    pub async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.0 {
            Writer::Pipe(pipe) => pipe.write_all(bytes).await,
            Writer::Terminal(terminal) => terminal.write_all(bytes).await,
        }
    }
}
