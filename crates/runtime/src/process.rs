//! Processes by descriptor, and the state that a shim starts from.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::{Child, ExitStatus};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, getpgid, getsid, kill_process, pidfd_open,
    waitpid,
};

use crate::SignalNumber;

/// Where the machine's programs are looked for, and what they may look for.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Exited(i32),
    Signalled(i32),
}

impl Ended {
    /// The status as a shell reports it.
    pub fn code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Signalled(signal) => 128 + signal,
        }
    }
}

/// Sends a signal to exactly the process of the descriptor, never to a later one with its number.
pub(crate) fn send_signal(pidfd: &OwnedFd, signal: SignalNumber) -> io::Result<()> {
    // `rustix` takes no real-time signals here.
    // SAFETY: the descriptor is open, and a null information pointer is allowed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal.get(),
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Waits for the end of a child.
pub(crate) fn reap(pid: Pid) -> io::Result<Ended> {
    loop {
        match waitpid(Some(pid), WaitOptions::empty()) {
            Ok(Some((_, status))) => {
                if let Some(ended) = ended(status) {
                    return Ok(ended);
                }
            }
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Reaps children that have ended, save the one whose end is waited for. A reaper of its descendants gets
/// those that a runtime leaves behind.
pub(crate) fn bury_others(kept: Pid) {
    use nix::sys::wait::{Id, WaitPidFlag, waitid};
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    while let Ok(status) = waitid(Id::All, look)
        && let Some(pid) = status.pid().and_then(|pid| Pid::from_raw(pid.as_raw()))
        && pid != kept
    {
        // It has ended, so this does not wait.
        if reap(pid).is_err() {
            return;
        }
    }
}

fn ended(status: WaitStatus) -> Option<Ended> {
    status
        .exit_status()
        .map(Ended::Exited)
        .or_else(|| status.terminating_signal().map(Ended::Signalled))
}

/// Waits for a command to end, or ends it: one that hangs must not keep its caller.
pub(crate) fn wait_within(child: &mut Child, deadline: Duration) -> io::Result<ExitStatus> {
    if ends_within(child, deadline)? {
        return child.wait();
    }
    child.kill()?;
    child.wait()?;
    let problem = format!("no answer in {} s", deadline.as_secs());
    Err(io::Error::new(io::ErrorKind::TimedOut, problem))
}

fn ends_within(child: &Child, deadline: Duration) -> io::Result<bool> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let timeout = Timespec {
        tv_sec: i64::try_from(deadline.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(deadline.subsec_nanos()),
    };
    loop {
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            n_ended => return Ok(n_ended? > 0),
        }
    }
}

/// Sends a signal to the process group of a child, which may have ended already.
pub(crate) fn signal_group_of(pid: Pid, signal: SignalNumber) -> io::Result<()> {
    // `rustix` takes no real-time signals here.
    // SAFETY: sends a signal, touches no memory; a child that is not reaped keeps its number.
    let sent = unsafe { libc::kill(-group_of(pid)?.as_raw_nonzero().get(), signal.get()) };
    match io::Error::last_os_error() {
        error if sent != 0 && error.raw_os_error() != Some(libc::ESRCH) => Err(error),
        _ => Ok(()),
    }
}

/// The group of a child; its own number is as good once it has ended.
fn group_of(pid: Pid) -> io::Result<Pid> {
    match getpgid(Some(pid)) {
        Ok(group) => Ok(group),
        Err(rustix::io::Errno::SRCH) => Ok(pid),
        Err(errno) => Err(errno.into()),
    }
}

/// How often a session is looked through for processes that came while it was ended.
const SESSION_ROUNDS: usize = 100;

/// Ends the session of a child that is not reaped yet: a shell in a terminal puts each of its
/// pipelines into a group of its own, so the group of the shell is not all.
pub(crate) fn end_session_of(pid: Pid) -> io::Result<()> {
    signal_group_of(pid, SignalNumber::KILL)?;
    let session = getsid(Some(pid)).unwrap_or(pid);
    for _ in 0..SESSION_ROUNDS {
        let members = members_of(session)?;
        if members.is_empty() {
            return Ok(());
        }
        for member in members {
            match kill_process(member, Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// The processes of a session that have not ended.
fn members_of(session: Pid) -> io::Result<Vec<Pid>> {
    let is_member = |pid: &Pid| {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
        let stat = stat.unwrap_or_default();
        // The name may hold anything, so what follows its last parenthesis counts: the state, the
        // parent, the group, the session.
        let mut fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
        let lives = fields.next().is_some_and(|state| !matches!(state, "" | "Z" | "X"));
        let number = session.as_raw_nonzero().get().to_string();
        lives && fields.nth(2) == Some(number.as_str())
    };
    let mut members = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let pid = name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        members.extend(pid.filter(is_member));
    }
    Ok(members)
}

/// Makes this process end together with its parent.
pub(crate) fn end_with_parent() -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_command_that_hangs_is_ended() {
        let mut hangs = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        let error = wait_within(&mut hangs, Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let mut ends = Command::new("/bin/false").spawn().unwrap();
        let status = wait_within(&mut ends, Duration::from_secs(5)).unwrap();
        assert_eq!(status.code(), Some(1));
    }
}
