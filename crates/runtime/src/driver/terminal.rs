//! The terminal of a process in a container: ours to make, or got from a runtime's command.
//!
//! A terminal belongs into the container's own `/dev/pts`, or the process could not open it by its
//! name and programs that want to (`tmux`, `ssh`, `script`) would fail. The embedded runtime's is
//! opened there from outside. runc and crun make one inside and hand the master over a socket; so
//! does runsc, from the machine's `/dev/pts`, for the container sees a kernel of its own.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags, Uid, major, minor};
use rustix::process::Pid;
use rustix::pty::OpenptFlags;

use super::TerminalPlan;
use super::particulars::First;
use crate::passing;
use crate::protocol::short_socket_path;
use crate::rooted::Root;

/// What `statfs` says of `/dev/pts`.
const DEVPTS_MAGIC: u64 = 0x1cd1;
/// The device that makes terminals.
const PTMX: (u32, u32) = (5, 2);
/// How long a master that was sent may take to be seen.
const HANDED_WITHIN: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// Makes a terminal in the `/dev/pts` of a process: its master, and itself.
pub(super) fn make(process: Pid, plan: TerminalPlan) -> io::Result<(OwnedFd, OwnedFd)> {
    let root = Root::open(Path::new(&format!("/proc/{}/root", process.as_raw_nonzero())))?;
    // A look that opens nothing first: the container says what lies there.
    let place = root.open_place("dev/pts/ptmx")?;
    let stat = rustix::fs::fstat(&place)?;
    let is_ptmx = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && (major(stat.st_rdev), minor(stat.st_rdev)) == PTMX
        && u64::try_from(rustix::fs::fstatfs(&place)?.f_type) == Ok(DEVPTS_MAGIC);
    if !is_ptmx {
        return Err(io::Error::other("the container's /dev/pts/ptmx makes no terminals"));
    }
    let place = format!("/proc/self/fd/{}", place.as_raw_fd());
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = rustix::fs::open(place, flags, Mode::empty())?;
    rustix::pty::unlockpt(&master)?;
    let terminal = peer(&master)?;
    plan.size.set(&master)?;
    own(&terminal, plan)?;
    Ok((master, terminal))
}

/// The terminal of a master, opened without becoming anybody's controlling one.
fn peer(master: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    Ok(rustix::pty::ioctl_tiocgptpeer(master, flags)?)
}

fn own(terminal: &OwnedFd, plan: TerminalPlan) -> io::Result<()> {
    Ok(rustix::fs::fchown(terminal, Some(Uid::from_raw(plan.owner)), None)?)
}

/// Where a runtime's command hands over the master of the terminal that it made.
pub(super) struct Console {
    listener: UnixListener,
    path: PathBuf,
    /// Held, so that its number leads to the socket.
    dir: fs::File,
    plan: TerminalPlan,
}

impl Console {
    pub fn listen(path: PathBuf, plan: TerminalPlan) -> io::Result<Self> {
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let dir = fs::File::open(path.parent().ok_or_else(missing)?)?;
        let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(missing)?;
        let listener = UnixListener::bind(short_socket_path(&dir, name))?;
        Ok(Self { listener, path, dir, plan })
    }

    /// The path as another program finds it, short enough for a socket's.
    pub fn address(&self) -> PathBuf {
        let dir = format!("/proc/{}/fd/{}", std::process::id(), self.dir.as_raw_fd());
        Path::new(&dir).join(self.path.file_name().unwrap_or_default())
    }

    /// The master, which was sent by the time that the command ended well. A terminal of this kernel is
    /// given to whom the plan says: crun 1.8 gives it to the user of the container's first
    /// process, whoever joins, and to whom it does not belong it cannot be opened by its name. There
    /// the program may run already.
    pub fn take(&self, first: First) -> io::Result<OwnedFd> {
        let wait = |fd: &dyn std::os::fd::AsFd| -> io::Result<()> {
            match poll(
                &mut [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)],
                Some(&HANDED_WITHIN),
            )? {
                0 => Err(io::Error::new(io::ErrorKind::TimedOut, "the runtime sent no terminal")),
                _ => Ok(()),
            }
        };
        wait(&self.listener)?;
        let (connection, _) = self.listener.accept()?;
        wait(&connection)?;
        connection.set_read_timeout(Some(Duration::from_secs(5)))?;
        // The bytes are its name, which means nothing here.
        let (mut name, mut passed) = ([0; 256], Vec::new());
        passing::receive(&connection, &mut name, &mut passed)?;
        let master =
            passed.pop().ok_or_else(|| io::Error::other("the runtime sent no terminal"))?;
        self.plan.size.set(&master)?;
        if first == First::Program {
            own(&peer(&master)?, self.plan)?;
        }
        Ok(master)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // A leftover would go with the run directory.
        let _ = fs::remove_file(&self.path);
    }
}
