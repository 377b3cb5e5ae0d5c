//! What a supervisor hands to the processes it starts, beside the sockets of
//! [`longshore_link::FDS_VARIABLE`]:
//!
//! - the **life-line**: the reading end of a pipe of which the supervisor alone holds the writing
//!   end. However the supervisor ends, kill -9 included, the pipe reads as ended and the process
//!   shuts itself down. (The kernel's parent death signal would do less: it follows the thread that
//!   forked, and is lost when the parent died before it was set.)
//! - the **hold**: a locked file. A lock of `flock` belongs to the open file, which all processes
//!   of one supervisor share, so the next supervisor gets it when the last of them has gone, also
//!   one that was just being started when the supervisor was killed. A lock that each role takes
//!   for itself would leave a moment in which nobody holds it.

use std::collections::BTreeMap;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use longshore_link::FDS_VARIABLE;
use rustix::io::{FdFlags, fcntl_setfd};
use tokio::net::unix::pipe;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

/// The environment variable that names the descriptors: `life-line=descriptor,hold=descriptor`.
const VARIABLE: &str = "LONGSHORE_INHERITED";
const LIFE_LINE: &str = "life-line";
const HOLD: &str = "hold";

/// Both ends of the pipe that tells the children of a supervisor that it is gone.
#[derive(Debug)]
pub struct LifeLine {
    reader: PipeReader,
    _writer: PipeWriter,
}

impl LifeLine {
    /// A pipe that reads as ended when this process is gone.
    pub fn new() -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        Ok(Self { reader, _writer: writer })
    }
}

/// What a child is given.
#[derive(Debug)]
pub struct Bequest<'a> {
    /// The life-line.
    pub life_line: &'a LifeLine,
    /// The locked file.
    pub hold: Option<BorrowedFd<'a>>,
    /// Bound sockets by the name under which the child looks for them.
    pub sockets: Vec<(&'static str, BorrowedFd<'a>)>,
}

impl Bequest<'_> {
    /// Makes `command` start its program with these descriptors open and named.
    pub fn give(&self, command: &mut Command) {
        let named = |name: &str, fd: BorrowedFd<'_>| format!("{name}={}", fd.as_raw_fd());
        let reader = self.life_line.reader.as_fd();
        let mut inherited = vec![named(LIFE_LINE, reader)];
        inherited.extend(self.hold.map(|hold| named(HOLD, hold)));
        let sockets: Vec<_> = self.sockets.iter().map(|(name, fd)| named(name, *fd)).collect();
        command.env(VARIABLE, inherited.join(","));
        command.env(FDS_VARIABLE, sockets.join(","));

        let mut fds = vec![reader.as_raw_fd()];
        fds.extend(self.hold.map(|hold| hold.as_raw_fd()));
        fds.extend(self.sockets.iter().map(|(_, fd)| fd.as_raw_fd()));
        let keep_open = move || {
            for fd in &fds {
                // SAFETY: between fork and exec the child has every descriptor of the parent, which
                // holds these open while it spawns.
                let fd = unsafe { BorrowedFd::borrow_raw(*fd) };
                fcntl_setfd(fd, FdFlags::empty())?;
            }
            Ok(())
        };
        // SAFETY: the closure makes system calls only; it neither allocates nor locks.
        unsafe { command.pre_exec(keep_open) };
    }
}

/// What this process was given by its supervisor, if it has one.
#[derive(Debug)]
pub struct Inheritance {
    life_line: Option<OwnedFd>,
    /// Kept open for as long as the process lives.
    _hold: Option<OwnedFd>,
}

impl Inheritance {
    /// Takes over what the supervisor gave, and sees to it that no process started from here
    /// (a shim lives on for weeks) gets any of it in turn, nor anything else that happened to be
    /// open in the shell that started the supervisor. Call it once, before anything is started.
    pub fn take() -> io::Result<Self> {
        close_all_on_exec()?;
        let inherited = named_descriptors();
        // SAFETY: the supervisor opened it for this process alone and named it once.
        let take = |name| inherited.get(name).map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) });
        Ok(Self { life_line: take(LIFE_LINE), _hold: take(HOLD) })
    }

    /// Cancels `shutdown` when the supervisor is gone. Returns at once without one.
    pub async fn watch(self, shutdown: CancellationToken) -> io::Result<()> {
        let Some(fd) = self.life_line else {
            return Ok(());
        };
        let reader = pipe::Receiver::from_owned_fd(fd)?;
        loop {
            reader.readable().await?;
            // Nothing is ever written: what can be read is the end.
            match reader.try_read(&mut [0]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                _ => break,
            }
        }
        tracing::warn!("the supervisor is gone; shutting down");
        shutdown.cancel();
        Ok(())
    }
}

/// Marks every descriptor but the standard three.
fn close_all_on_exec() -> io::Result<()> {
    const FIRST: libc::c_uint = 3;
    let flags = libc::CLOSE_RANGE_CLOEXEC.cast_signed();
    // SAFETY: nothing is closed, only marked; whoever wants to pass a descriptor on unmarks it.
    match unsafe { libc::close_range(FIRST, libc::c_uint::MAX, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn named_descriptors() -> BTreeMap<String, RawFd> {
    let text = std::env::var(VARIABLE).unwrap_or_default();
    let pair = |entry: &str| {
        let (name, fd) = entry.split_once('=')?;
        Some((name.to_owned(), fd.parse().ok()?))
    };
    text.split(',').filter_map(pair).collect()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::process::Stdio;

    use super::*;

    /// A shell that reads its life-line to the end and says so.
    fn reader_of(life_line: &LifeLine, hold: &File) -> Command {
        let mut command = Command::new("sh");
        let script = "fd=${LONGSHORE_INHERITED%%,*}; cat /proc/$$/fd/${fd#life-line=}; echo ended";
        command.args(["-c", script]).stdout(Stdio::piped());
        let bequest = Bequest { life_line, hold: Some(hold.as_fd()), sockets: Vec::new() };
        bequest.give(&mut command);
        command
    }

    #[tokio::test]
    async fn a_child_sees_its_supervisor_go_and_shares_the_hold() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hold");
        let hold = File::create(&path).unwrap();
        hold.lock().unwrap();
        let life_line = LifeLine::new().unwrap();
        let mut command = reader_of(&life_line, &hold);
        let child = command.spawn().unwrap();
        drop(command);
        drop(hold);

        let other = File::open(&path).unwrap();
        assert!(other.try_lock().is_err(), "the child still has the hold");
        drop(life_line);
        let output = child.wait_with_output().await.unwrap();
        assert!(String::from_utf8_lossy(&output.stdout).ends_with("ended\n"));
        other.try_lock().unwrap();
    }
}
