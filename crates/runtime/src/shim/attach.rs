//! The client that is attached to the first process.
//!
//! The program of such a container begins when its client is there, so that nothing that it writes is
//! missed, and does not outlive it: a client that goes without a word takes it along, as a terminal
//! that is closed does. The log gets the same as the client.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use longshore_types::Attached;

use super::serve::Server;
use crate::SignalNumber;
use crate::failure::chain;
use crate::passing;
use crate::protocol::{self, ExecMessage, Start, Versioned};
use crate::spec::TerminalSize;

/// How long a program may take to end by itself when its client has left: an editor saves what it
/// has, a shell its history.
const LEFT_GRACE: Duration = Duration::from_secs(3);

impl Server {
    /// Attaches a client, and lets the program run if it waited for one. The client is told, with its
    /// ends of the streams, or told why not.
    pub(super) fn attach(&mut self, idx: usize, size: Option<TerminalSize>, input: bool) {
        let told = match self.may_attach(size).and_then(|()| self.connect(idx, size, input)) {
            Ok(passed) => {
                let running = Start::Running {
                    pid: self.container.pid.as_raw_nonzero().get(),
                    started_at: self.container.started_at,
                    timings: Vec::new(),
                };
                let line = protocol::line(running);
                let fds: Vec<BorrowedFd<'_>> = passed.iter().map(|fd| fd.as_fd()).collect();
                // The line is far shorter than what a socket takes at once.
                passing::send(&self.clients[idx].socket, &line, &fds)
                    .is_ok_and(|sent| sent == line.len())
            }
            Err(why) => {
                self.clients[idx].send(&protocol::line(Start::Failed { why }));
                return;
            }
        };
        self.clients[idx].gone = !told;
    }

    fn may_attach(&self, size: Option<TerminalSize>) -> Result<(), String> {
        let client = self.container.spec.client;
        let why = if client.is_none() {
            "nobody can be attached to it: its program runs by itself, with a log"
        } else if self.stopping {
            "it is being stopped"
        } else if self.clients.iter().any(|client| client.is_attached && !client.gone) {
            "somebody else is attached to it"
        } else if size.is_some() && client.is_some_and(|client| client.by == Attached::Pipes) {
            "it has no terminal"
        } else {
            return Ok(());
        };
        Err(why.to_owned())
    }

    /// The client's ends of the streams.
    fn connect(
        &mut self,
        idx: usize,
        size: Option<TerminalSize>,
        input: bool,
    ) -> Result<Vec<OwnedFd>, String> {
        let made = self.client_ends(size, input);
        let passed = made.map_err(|error| format!("making the client's streams: {error}"))?;
        self.clients[idx].is_attached = true;
        self.held_until = None;
        if self.container.is_held
            && let Err(problem) = self.container.let_run()
        {
            let why = chain(&problem);
            self.give_up(why.clone());
            return Err(why);
        }
        Ok(passed)
    }

    fn client_ends(&mut self, size: Option<TerminalSize>, input: bool) -> io::Result<Vec<OwnedFd>> {
        let ends = &mut self.container.ends;
        let mut passed = Vec::new();
        if let Some(master) = &ends.terminal {
            size.map_or(Ok(()), |size| size.set(master))?;
            passed.push(master.try_clone()?);
        }
        for stream in &mut ends.output {
            passed.push(stream.copied()?);
        }
        // What nobody is going to write ends here.
        passed.extend(ends.input.take().filter(|_| input));
        Ok(passed)
    }

    /// Ends a container that cannot run, or that nobody came for.
    pub(super) fn give_up(&mut self, why: String) {
        self.failed = Some(why);
        // A process that this misses is ended by its cgroup, at the latest when the agent removes it.
        let _ = self.container.cgroup.kill_payload();
    }

    /// Does what an attached client says.
    pub(super) fn obey(&mut self, idx: usize, line: &[u8]) {
        match serde_json::from_slice::<Versioned<ExecMessage>>(line).map(|line| line.message) {
            Ok(ExecMessage::Signal { signal }) => {
                let Self { container, .. } = self;
                // It may have ended by now, which the next look shows.
                let _ = container.driver.signal(&container.pidfd, signal);
            }
            Ok(ExecMessage::Detach) => {
                self.clients[idx].is_attached = false;
                self.clients[idx].gone = true;
                self.stop_copying();
            }
            // From an agent that knows more than this shim.
            Err(_) => {}
        }
    }

    /// The attached client has gone without a word: what it ran is asked to end, and ended soon.
    pub(super) fn left(&mut self) {
        self.stop_copying();
        if self.stopping {
            return;
        }
        // A terminal that is closed says so by another signal.
        let signal = match self.container.ends.terminal {
            Some(_) => SignalNumber::HUP,
            None => self.container.spec.stop_signal,
        };
        // The same if it cannot be asked: the grace ends in any case.
        let _ = self.stop_by(signal, LEFT_GRACE);
    }

    fn stop_copying(&mut self) {
        for stream in &mut self.container.ends.output {
            stream.not_copied();
        }
    }

    /// When there is something to do even if nothing happens.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        [self.kill_at, self.held_until].into_iter().flatten().min()
    }
}
