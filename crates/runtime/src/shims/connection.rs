//! What an exec or archive process and the agent say to each other.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::net::Shutdown;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::passing;
use crate::protocol::{MAX_LINE, Versioned};

/// The socket to an exec or archive process.
pub(super) struct Connection(UnixStream);

impl Connection {
    pub fn new(socket: UnixStream) -> Self {
        Self(socket)
    }

    /// Ends it now, whoever still holds it.
    pub fn shut_down(&self) -> rustix::io::Result<()> {
        rustix::net::shutdown(&self.0, Shutdown::Both)
    }

    /// Sends a line, and with it a descriptor.
    pub async fn send(&self, mut line: &[u8], passed: Option<&OwnedFd>) -> io::Result<()> {
        let passed: Vec<_> = passed.into_iter().map(|passed| passed.as_fd()).collect();
        let mut passed = passed.as_slice();
        while !line.is_empty() {
            let send = || passing::send(&self.0, line, passed);
            let sent = self.0.async_io(Interest::WRITABLE, send).await?;
            line = &line[sent..];
            passed = &[];
        }
        Ok(())
    }

    /// The next message; absent at the end. `line` keeps what came of the one after it. Cancel safe.
    pub async fn receive<T: DeserializeOwned>(
        &self,
        line: &mut Vec<u8>,
        passed: &mut Vec<OwnedFd>,
    ) -> io::Result<Option<T>> {
        loop {
            if let Some(end) = line.iter().position(|byte| *byte == b'\n') {
                let whole: Vec<u8> = line.drain(..=end).collect();
                return Ok(Some(serde_json::from_slice::<Versioned<T>>(&whole)?.message));
            }
            if line.len() > MAX_LINE {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a line without an end"));
            }
            let mut buffer = [0; 4096];
            let receive = || passing::receive(&self.0, &mut buffer, passed);
            match self.0.async_io(Interest::READABLE, receive).await {
                Ok(0) => return Ok(None),
                Ok(length) => line.extend_from_slice(&buffer[..length]),
                Err(error) if super::is_absence(&error) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
}
