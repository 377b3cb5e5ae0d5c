//! The life of a shim after its container runs: one loop over everything that can happen.

use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use longshore_types::ExitReason;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::log::{LogWriter, Partial};
use super::{Container, ShimProblem, errno, io};
use crate::SignalNumber;
use crate::logs::StreamTag;
use crate::process::{Ended, bury_others, reap};
use crate::protocol::{self, Reply, Request, Versioned};
use crate::record::ExitRecord;

/// More connections than one agent and a few curious operators make. Further ones wait in the
/// kernel's queue.
const MAX_CLIENTS: usize = 32;
/// What is read from a stream at once: as much as a pipe holds by default.
const READ_SIZE: usize = 64 * 1024;
/// How long replies to agents that wait may take when their sockets are full.
const FAREWELL: Duration = Duration::from_secs(1);

struct Client {
    socket: UnixStream,
    received: Vec<u8>,
    waits: bool,
    gone: bool,
}

struct Stream {
    tag: StreamTag,
    pipe: Option<OwnedFd>,
    partial: Partial,
}

struct Server {
    container: Container,
    listener: UnixListener,
    clients: Vec<Client>,
    streams: [Stream; 2],
    stopping: bool,
    kill_at: Option<Instant>,
}

/// Serves until the container has ended, its output is in the log, its end is on disk and whoever
/// waited for it has been told.
pub(super) fn serve(
    container: Container,
    listener: UnixListener,
    state_dir: &Path,
) -> Result<(), ShimProblem> {
    let stream = |tag, pipe: &OwnedFd| -> Result<Stream, ShimProblem> {
        let pipe = pipe.try_clone().map_err(io("duplicating a pipe"))?;
        Ok(Stream { tag, pipe: Some(pipe), partial: Partial::default() })
    };
    let streams =
        [stream(StreamTag::Out, &container.stdout)?, stream(StreamTag::Err, &container.stderr)?];
    let mut server = Server {
        container,
        listener,
        clients: Vec::new(),
        streams,
        stopping: false,
        kill_at: None,
    };
    while !server.turn()? {}
    let record = server.finish()?;
    record.store(state_dir)?;
    server.tell(&record);
    Ok(())
}

/// What one call of `poll` found.
struct Ready {
    ended: bool,
    connection: bool,
    streams: [bool; 2],
    clients: Vec<bool>,
}

impl Server {
    /// Waits for the next things to happen and handles them. True when the container has ended.
    fn turn(&mut self) -> Result<bool, ShimProblem> {
        bury_others(self.container.pid);
        let ready = self.wait()?;
        for idx in 0..2 {
            if ready.streams[idx] {
                self.read_stream(idx);
            }
        }
        if ready.ended {
            return Ok(true);
        }
        for idx in 0..ready.clients.len() {
            if ready.clients[idx] {
                self.read_client(idx);
            }
        }
        self.clients.retain(|client| !client.gone);
        if ready.connection {
            self.accept();
        }
        if self.kill_at.is_some_and(|at| at <= Instant::now()) {
            self.kill_at = None;
            self.signal_first(SignalNumber::KILL)?;
        }
        Ok(false)
    }

    fn wait(&self) -> Result<Ready, ShimProblem> {
        let mut fds = vec![PollFd::new(&self.container.pidfd, PollFlags::IN)];
        let accepting = self.clients.len() < MAX_CLIENTS;
        let interest = if accepting { PollFlags::IN } else { PollFlags::empty() };
        fds.push(PollFd::new(&self.listener, interest));
        let pipes: Vec<usize> = (0..2).filter(|idx| self.streams[*idx].pipe.is_some()).collect();
        for pipe in self.streams.iter().filter_map(|stream| stream.pipe.as_ref()) {
            fds.push(PollFd::new(pipe, PollFlags::IN));
        }
        let first_client = fds.len();
        fds.extend(self.clients.iter().map(|c| PollFd::new(&c.socket, PollFlags::IN)));
        let timeout = self.kill_at.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = timeout.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(errno("waiting for events")(error)),
        }
        let happened = |fd: &PollFd<'_>| !fd.revents().is_empty();
        let mut streams = [false; 2];
        for (position, idx) in pipes.into_iter().enumerate() {
            streams[idx] = happened(&fds[2 + position]);
        }
        Ok(Ready {
            ended: happened(&fds[0]),
            connection: accepting && happened(&fds[1]),
            streams,
            clients: fds[first_client..].iter().map(happened).collect(),
        })
    }

    /// Reads what there is, at most one buffer, so that a noisy container does not keep requests
    /// waiting. Returns whether there may be more.
    fn read_stream(&mut self, idx: usize) -> bool {
        let stream = &mut self.streams[idx];
        let Some(pipe) = &stream.pipe else { return false };
        let log: &mut LogWriter = &mut self.container.log;
        // Not kept: an idle shim holds no buffers.
        let mut buffer = vec![0; READ_SIZE];
        match rustix::io::read(pipe, &mut buffer) {
            Ok(0) => {
                log.finish(stream.tag, &mut stream.partial);
                stream.pipe = None;
                false
            }
            Ok(length) => {
                log.take(stream.tag, &mut stream.partial, &buffer[..length]);
                true
            }
            Err(rustix::io::Errno::INTR) => true,
            Err(_) => false,
        }
    }

    fn accept(&mut self) {
        // A connection that is gone again before it was accepted is no news.
        if let Ok((socket, _)) = self.listener.accept()
            && socket.set_nonblocking(true).is_ok()
        {
            let client = Client { socket, received: Vec::new(), waits: false, gone: false };
            self.clients.push(client);
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
            if let Some(reply) = self.answer(idx, &line) {
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
        }
    }

    /// Asks the container to stop. A second stop may shorten the grace, never lengthen it.
    fn stop(&mut self, grace: Duration) -> io::Result<()> {
        let kill_at = Instant::now() + grace;
        self.kill_at = Some(self.kill_at.map_or(kill_at, |at| at.min(kill_at)));
        let first = !self.stopping;
        self.stopping = true;
        if first && !grace.is_zero() {
            self.container.driver.signal(&self.container.pidfd, self.container.spec.stop_signal)?;
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

    /// Collects all that is left of a container whose first process has ended.
    fn finish(&mut self) -> Result<ExitRecord, ShimProblem> {
        let ended = reap(self.container.pid).map_err(io("reaping the container"))?;
        self.container.cgroup.kill_payload()?;
        for idx in 0..2 {
            // All writers are dead, so this ends.
            while self.read_stream(idx) {}
            let Stream { tag, partial, .. } = &mut self.streams[idx];
            self.container.log.finish(*tag, partial);
        }
        let oom_kills = self.container.cgroup.oom_kills().map_err(io("reading the OOM count"))?;
        let out_of_memory = ExitReason::OutOfMemory {
            peak: self.container.cgroup.memory_peak().map_err(io("reading the peak of memory"))?,
            limit: Some(self.container.spec.limits.memory),
        };
        let reason = reason(ended, self.stopping, (oom_kills > 0).then_some(out_of_memory));
        if matches!(reason, ExitReason::OutOfMemory { .. }) {
            self.container.log.note(&reason.to_string());
        }
        let started_at = Some(self.container.started_at);
        let mut record = ExitRecord::now(&self.container.spec.id, reason, started_at);
        record.oom_kills = oom_kills;
        record.lost_lines = self.container.log.n_lost();
        self.container.driver.delete()?;
        Ok(record)
    }

    /// Answers those who wait. They may also read the record, so none is waited for long.
    fn tell(&mut self, record: &ExitRecord) {
        let line = protocol::line(Reply::Exited { record: record.clone() });
        for client in self.clients.iter_mut().filter(|client| client.waits) {
            let patient = client.socket.set_nonblocking(false);
            if patient.and_then(|()| client.socket.set_write_timeout(Some(FAREWELL))).is_ok() {
                client.send(&line);
            }
        }
    }
}

impl Client {
    fn send(&mut self, line: &[u8]) {
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
