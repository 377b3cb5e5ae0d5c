//! Attaching a client to a container's first process.

use std::sync::Arc;

use longshore_types::{Attached, InstanceId};

use super::connection::Connection;
use super::exec::streams::{ExecInput, Reader, Terminal};
use super::{ExecError, ExecStream, Shims, is_absence, load_spec, run_blocking};
use crate::protocol::{self, Request, Start};
use crate::spec::TerminalSize;

impl Shims {
    /// Attaches to the first process of a container that was made for it, which begins to run its
    /// program unless an earlier client left it running. What is returned is used as that of
    /// [`Shims::exec`]: dropping it ends the container, unless [`ExecControl::detach`] was called.
    ///
    /// [`ExecControl::detach`]: super::ExecControl::detach
    pub async fn attach(
        &self,
        id: &InstanceId,
        terminal: Option<TerminalSize>,
        input: bool,
    ) -> Result<ExecStream, ExecError> {
        let not_running = || ExecError::NotRunning(id.clone());
        let (inner, owned) = (Arc::clone(&self.inner), id.clone());
        let spec = run_blocking(move || load_spec(&inner, &owned)).await?;
        let client = spec.ok_or_else(not_running)?.client.ok_or(ExecError::NotAttachable)?;
        let connection = match self.inner.connect(id).await {
            Ok(socket) => Connection::new(socket),
            Err(error) if is_absence(&error) => return Err(not_running()),
            Err(error) => return Err(error.into()),
        };
        connection.send(&protocol::line(Request::Attach { terminal, input }), None).await?;
        let (mut line, mut passed) = (Vec::new(), Vec::new());
        match connection.receive(&mut line, &mut passed).await? {
            Some(Start::Running { .. }) => {}
            Some(Start::Failed { why }) => return Err(ExecError::Refused { why }),
            Some(Start::Ended { .. }) | None => return Err(ExecError::Lost),
        }
        let mut passed = passed.into_iter();
        let terminal = match client.by {
            Attached::Pipes => None,
            Attached::Terminal => passed.next().map(Terminal::new).transpose()?.map(Arc::new),
        };
        let stdout = passed.next().map(Reader::pipe).transpose()?;
        let (stderr, input) = match &terminal {
            Some(terminal) => (None, Some(ExecInput::terminal(terminal))),
            None => (
                passed.next().map(Reader::pipe).transpose()?,
                passed.next().map(ExecInput::pipe).transpose()?,
            ),
        };
        Ok(ExecStream {
            child: None,
            connection: Arc::new(connection),
            line,
            stdout,
            stderr,
            input,
            terminal,
            ended: None,
            finished: false,
            inner: Arc::clone(&self.inner),
            id: id.clone(),
        })
    }
}
