//! Processes by descriptor, and the state that a shim starts from.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::process::{Pid, WaitOptions, WaitStatus, waitpid};

use crate::SignalNumber;

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

/// Makes this process end together with its parent.
pub(crate) fn end_with_parent() -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    Ok(())
}
