//! The life of a shim after its container runs: one loop over everything that can happen.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use longshore_types::ExitReason;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Container, ShimProblem, errno, io};
use crate::SignalNumber;
use crate::process::{Ended, bury_others, reap};
use crate::protocol::{self, Reply, Request, Start, Versioned};
use crate::record::ExitRecord;

/// More connections than one agent and a few curious operators make. Further ones wait in the
/// kernel's queue.
const MAX_CLIENTS: usize = 32;
/// How long replies to agents that wait may take when their sockets are full.
const FAREWELL: Duration = Duration::from_secs(1);

pub(super) struct Client {
    pub socket: UnixStream,
    received: Vec<u8>,
    waits: bool,
    pub is_attached: bool,
    pub gone: bool,
}

pub(super) struct Server {
    pub container: Container,
    listener: UnixListener,
    pub clients: Vec<Client>,
    pub stopping: bool,
    pub kill_at: Option<Instant>,
    /// Until when a container that waits for its client does.
    pub held_until: Option<Instant>,
    /// Why it was given up.
    pub failed: Option<String>,
}

/// Serves until the container has ended, its output is in the log, its end is on disk and whoever
/// waited for it has been told.
pub(super) fn serve(
    container: Container,
    listener: UnixListener,
    state_dir: &Path,
) -> Result<(), ShimProblem> {
    let waits = container.spec.client.filter(|_| container.is_held);
    let held_until = waits.map(|client| Instant::now() + client.within.0);
    let mut server = Server {
        container,
        listener,
        clients: Vec::new(),
        stopping: false,
        kill_at: None,
        held_until,
        failed: None,
    };
    while !server.turn()? {}
    let (record, code) = server.finish()?;
    record.store(state_dir)?;
    server.tell(&record, code);
    Ok(())
}

/// Where something happened.
enum Source {
    /// The first process ended.
    End,
    /// Somebody connects.
    Connection,
    Stream(usize),
    Client(usize),
}

impl Server {
    /// Waits for the next things to happen and handles them. True when the container has ended.
    fn turn(&mut self) -> Result<bool, ShimProblem> {
        bury_others(self.container.pid);
        let happened = self.wait()?;
        let mut ended = false;
        for source in &happened {
            match source {
                Source::Stream(idx) => {
                    let Container { ends, log, .. } = &mut self.container;
                    ends.output[*idx].advance(log);
                }
                Source::End => ended = true,
                Source::Connection | Source::Client(_) => {}
            }
        }
        if ended {
            return Ok(true);
        }
        for source in happened {
            match source {
                Source::Client(idx) => self.read_client(idx),
                Source::Connection => self.accept(),
                Source::End | Source::Stream(_) => {}
            }
        }
        if self.clients.iter().any(|client| client.gone && client.is_attached) {
            self.left();
        }
        self.clients.retain(|client| !client.gone);
        self.meet_deadlines()?;
        Ok(false)
    }

    fn meet_deadlines(&mut self) -> Result<(), ShimProblem> {
        let now = Instant::now();
        if self.kill_at.is_some_and(|at| at <= now) {
            self.kill_at = None;
            self.signal_first(SignalNumber::KILL)?;
        }
        if self.held_until.is_some_and(|at| at <= now) {
            self.held_until = None;
            let within = self
                .container
                .spec
                .client
                .map_or_else(String::new, |client| format!(" within {}", client.within));
            self.give_up(format!("no client came{within}"));
        }
        Ok(())
    }

    fn wait(&self) -> Result<Vec<Source>, ShimProblem> {
        let mut fds = vec![PollFd::new(&self.container.pidfd, PollFlags::IN)];
        let mut sources = vec![Source::End];
        for (idx, stream) in self.container.ends.output.iter().enumerate() {
            if let Some(fd) = stream.awaited() {
                fds.push(fd);
                sources.push(Source::Stream(idx));
            }
        }
        for (idx, client) in self.clients.iter().enumerate() {
            fds.push(PollFd::new(&client.socket, PollFlags::IN));
            sources.push(Source::Client(idx));
        }
        if self.clients.len() < MAX_CLIENTS {
            fds.push(PollFd::new(&self.listener, PollFlags::IN));
            sources.push(Source::Connection);
        }
        let left = self.next_deadline().map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(errno("waiting for events")(error)),
        }
        let all = sources.into_iter().zip(&fds);
        Ok(all.filter(|(_, fd)| !fd.revents().is_empty()).map(|(source, _)| source).collect())
    }

    fn accept(&mut self) {
        // A connection that is gone again before it was accepted is no news.
        if let Ok((socket, _)) = self.listener.accept()
            && socket.set_nonblocking(true).is_ok()
        {
            self.clients.push(Client {
                socket,
                received: Vec::new(),
                waits: false,
                is_attached: false,
                gone: false,
            });
        }
    }

    fn read_client(&mut self, idx: usize) {
        let mut buffer = [0; 4096];
        let client = &mut self.clients[idx];
        match client.socket.read(&mut buffer) {
            Ok(0) => client.gone = true,
            Ok(length) => client.received.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => client.gone = true,
        }
        if client.received.len() > protocol::MAX_LINE {
            client.gone = true;
            return;
        }
        while let Some(end) = self.clients[idx].received.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.clients[idx].received.drain(..=end).collect();
            if self.clients[idx].is_attached {
                self.obey(idx, &line);
            } else if let Some(reply) = self.answer(idx, &line) {
                self.clients[idx].send(&protocol::line(reply));
            }
        }
    }

    fn answer(&mut self, idx: usize, line: &[u8]) -> Option<Reply> {
        let refused = |why: String| Some(Reply::Refused { why });
        let request = match serde_json::from_slice::<Versioned<Request>>(line) {
            Ok(request) if request.v == protocol::VERSION => request.message,
            Ok(request) => {
                return refused(format!("version {} is not known to this shim", request.v));
            }
            Err(error) => return refused(format!("not a request of this shim: {error}")),
        };
        let done = |result: io::Result<()>| match result {
            Ok(()) => Some(Reply::Done),
            Err(error) => refused(error.to_string()),
        };
        match request {
            Request::State => Some(Reply::State {
                pid: self.container.pid.as_raw_nonzero().get(),
                started_at: self.container.started_at,
                stopping: self.stopping,
            }),
            Request::Signal { signal } => {
                done(self.container.driver.signal(&self.container.pidfd, signal))
            }
            Request::Stop { grace_ms } => done(self.stop(Duration::from_millis(grace_ms))),
            Request::Kill => done(self.stop(Duration::ZERO)),
            Request::Wait => {
                self.clients[idx].waits = true;
                None
            }
            Request::Attach { terminal, input } => {
                self.attach(idx, terminal, input);
                None
            }
        }
    }

    fn stop(&mut self, grace: Duration) -> io::Result<()> {
        self.stop_by(self.container.spec.stop_signal, grace)
    }

    /// Asks the container to stop. A second stop may shorten the grace, never lengthen it.
    pub(super) fn stop_by(&mut self, signal: SignalNumber, grace: Duration) -> io::Result<()> {
        // There is no program yet that could be asked.
        let grace = if self.container.is_held { Duration::ZERO } else { grace };
        let kill_at = Instant::now() + grace;
        self.kill_at = Some(self.kill_at.map_or(kill_at, |at| at.min(kill_at)));
        let first = !self.stopping;
        self.stopping = true;
        if first && !grace.is_zero() {
            self.container.driver.signal(&self.container.pidfd, signal)?;
        }
        Ok(())
    }

    /// Ends the first process, and with it the kernel ends the container's whole process namespace.
    /// What else is in the cgroup goes when that end is noticed.
    fn signal_first(&self, signal: SignalNumber) -> Result<(), ShimProblem> {
        match self.container.driver.signal(&self.container.pidfd, signal) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                Err(io("ending the container")(error))
            }
            _ => Ok(()),
        }
    }

    /// Collects all that is left of a container whose first process has ended; with what it ended.
    fn finish(&mut self) -> Result<(ExitRecord, i32), ShimProblem> {
        let ended = reap(self.container.pid).map_err(io("reaping the container"))?;
        self.container.cgroup.kill_payload()?;
        let Container { ends, log, .. } = &mut self.container;
        for stream in &mut ends.output {
            stream.finish(log);
        }
        let oom_kills = self.container.cgroup.oom_kills().map_err(io("reading the OOM count"))?;
        let out_of_memory = ExitReason::OutOfMemory {
            peak: self.container.cgroup.memory_peak().map_err(io("reading the peak of memory"))?,
            limit: Some(self.container.spec.limits.memory),
        };
        let reason = match self.failed.take() {
            Some(message) => ExitReason::StartFailed { message },
            None => reason(ended, self.stopping, (oom_kills > 0).then_some(out_of_memory)),
        };
        if matches!(reason, ExitReason::OutOfMemory { .. }) {
            self.container.log.note(&reason.to_string());
        }
        let started_at = Some(self.container.started_at);
        let mut record = ExitRecord::now(&self.container.spec.id, reason, started_at);
        record.oom_kills = oom_kills;
        record.lost_lines = self.container.log.n_lost();
        self.container.driver.delete()?;
        Ok((record, ended.code()))
    }

    /// Answers those who wait, and who is attached. They may also read the record, so none is waited for
    /// long. Who is attached comes first: an agent that waited may end this shim once it is told.
    fn tell(&mut self, record: &ExitRecord, code: i32) {
        self.clients.sort_by_key(|client| !client.is_attached);
        for client in self.clients.iter_mut().filter(|client| client.waits || client.is_attached) {
            let line = match client.is_attached {
                true => protocol::line(Start::Ended { code }),
                false => protocol::line(Reply::Exited { record: record.clone() }),
            };
            let patient = client.socket.set_nonblocking(false);
            if patient.and_then(|()| client.socket.set_write_timeout(Some(FAREWELL))).is_ok() {
                client.send(&line);
            }
        }
    }
}

impl Client {
    pub(super) fn send(&mut self, line: &[u8]) {
        // A client that does not read its answers does not deserve them.
        if self.socket.write_all(line).is_err() {
            self.gone = true;
        }
    }
}

/// Running out of memory counts as the reason when the kernel's SIGKILL can be told from the end of
/// the first process: it was hit itself, or it is a shell that passed on that its child was.
fn reason(ended: Ended, stopping: bool, out_of_memory: Option<ExitReason>) -> ExitReason {
    const KILLED: i32 = 128 + libc::SIGKILL;
    match (ended, out_of_memory) {
        _ if stopping => ExitReason::Stopped,
        (ended, Some(reason)) if ended.code() == KILLED => reason,
        (Ended::Exited(code), _) => ExitReason::Exited { code },
        (Ended::Signalled(signal), _) => ExitReason::Signalled { signal },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons() {
        let oom = || ExitReason::OutOfMemory { peak: None, limit: None };
        for (ended, stopping, oom_kills, expected) in [
            (Ended::Exited(0), false, 0, ExitReason::Exited { code: 0 }),
            (Ended::Exited(3), false, 2, ExitReason::Exited { code: 3 }),
            (Ended::Exited(137), false, 1, oom()),
            (Ended::Signalled(9), false, 1, oom()),
            (Ended::Signalled(9), false, 0, ExitReason::Signalled { signal: 9 }),
            (Ended::Signalled(9), true, 0, ExitReason::Stopped),
            (Ended::Exited(0), true, 0, ExitReason::Stopped),
        ] {
            assert_eq!(reason(ended, stopping, (oom_kills > 0).then(oom)), expected, "{ended:?}");
        }
    }
}
