//! The process behind a copy into or out of a container: `longshore shim-archive`.
//!
//! The container's files are what its own mount namespace shows, mounts and all, so they are read and
//! written from in there, by the container's root as its user namespace has it, and with the
//! capabilities that files need. The image needs no program for it. Nothing inside sees the process: it
//! joins no process namespace; what it takes is counted as the container's. It ends with its pipe.
//!
//! Rejected: the agent itself working below the root file system from outside, which would see other
//! mounts than the container, and have the machine's root follow links that the container changes; a
//! program of ours that is put into the container, which could be watched and hindered.

use std::ffi::{CStr, OsString};
use std::fs::File;
use std::io::{BufReader, BufWriter, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use longshore_archive::{
    Owner, PackError, Place, Reach, Rules, Source, Specials, UnpackError, unpack,
};
use nix::sched::{CloneFlags, setns};
use nix::unistd::{Gid, Uid};
use rustix::process::{DumpableBehavior, Pid, PidfdFlags};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::capabilities::bound;
use crate::cgroup::{CgroupProblem, CgroupTree};
use crate::failure::chain;
use crate::files::FileProblem;
use crate::passing;
use crate::protocol::{self, ArchiveFailure, ArchiveMessage, ArchiveOrder, ArchiveWork, Versioned};
use crate::shim::inherited_descriptor;
use crate::spec::Launch;

/// What the process is called in the list of processes.
const NAME: &CStr = c"longshore-cp";
/// How much is written to the pipe at once: as much as it holds.
const AT_ONCE: usize = 64 << 10;

#[derive(Debug, thiserror::Error)]
enum ArchiveProblem {
    #[error("the archive process was called without its directories")]
    Arguments,
    #[error("there is no spec in {}", .0.display())]
    NoSpec(PathBuf),
    #[error("its first process has ended")]
    Ended,
    #[error(transparent)]
    File(#[from] FileProblem),
    #[error("{doing}")]
    Io {
        doing: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("reading the order")]
    Order(#[source] serde_json::Error),
    #[error(transparent)]
    Cgroup(#[from] CgroupProblem),
    #[error(transparent)]
    Pack(#[from] PackError),
    #[error(transparent)]
    Unpack(#[from] UnpackError),
}

impl ArchiveProblem {
    fn failure(&self) -> ArchiveFailure {
        match self {
            Self::Pack(PackError::Missing { .. }) | Self::Unpack(UnpackError::Missing { .. }) => {
                ArchiveFailure::Missing
            }
            Self::Unpack(UnpackError::Tar(_) | UnpackError::Special { .. }) => {
                ArchiveFailure::BadArchive
            }
            _ => ArchiveFailure::Other,
        }
    }
}

fn io<E: Into<std::io::Error>>(doing: &'static str) -> impl Fn(E) -> ArchiveProblem {
    move |source| ArchiveProblem::Io { doing, source: source.into() }
}

/// Reads or writes files of a running container: `args` are the instance's run directory and its state
/// directory. Called from `main` before any thread exists; descriptor 0 is a socket to the agent, 1 the
/// pipe with the archive.
pub fn archive_main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let inherited = inherited_descriptor(0).and_then(|fd| Ok((fd, inherited_descriptor(1)?)));
    let (agent, pipe) = match inherited {
        Ok((agent, pipe)) => (UnixStream::from(agent), pipe),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "taking over the agent's descriptors: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut args = args.into_iter().map(PathBuf::from);
    let result = match (args.next(), args.next()) {
        (Some(_), Some(state_dir)) => run(&agent, pipe, &state_dir),
        _ => Err(ArchiveProblem::Arguments),
    };
    let (message, code) = match result {
        Ok(()) => (ArchiveMessage::Done {}, ExitCode::SUCCESS),
        Err(problem) => {
            let (kind, why) = (problem.failure(), chain(&problem));
            (ArchiveMessage::Failed { kind, why }, ExitCode::FAILURE)
        }
    };
    // An agent that closed the connection does not want to know.
    let _ = (&agent).write_all(&protocol::line(message));
    code
}

fn run(agent: &UnixStream, pipe: OwnedFd, state_dir: &Path) -> Result<(), ArchiveProblem> {
    rustix::thread::set_name(NAME).map_err(io("naming the process"))?;
    rustix::process::setsid().map_err(io("leaving the agent's session"))?;
    nix::unistd::setgroups(&[]).map_err(io("dropping groups"))?;
    hide()?;
    let order = read_order(agent)?;
    let launch =
        Launch::load(state_dir)?.ok_or_else(|| ArchiveProblem::NoSpec(state_dir.into()))?;
    enter(&launch, order.pid)?;
    let begun = || (&*agent).write_all(&protocol::line(ArchiveMessage::Begun {}));
    match order.work {
        ArchiveWork::Pack { path } => {
            let source = Source::find(&Path::new("/").join(path))?;
            begun().map_err(io("telling the agent"))?;
            source.pack(BufWriter::with_capacity(AT_ONCE, File::from(pipe)), Specials::Kept)?;
        }
        ArchiveWork::Unpack { path, as_cp, keep_owners } => {
            begun().map_err(io("telling the agent"))?;
            let path = Path::new("/").join(path);
            let place = if as_cp { Place::At(&path) } else { Place::Into(&path) };
            let owner = if keep_owners { Owner::Kept } else { Owner::Is(0, 0) };
            let input = BufReader::with_capacity(AT_ONCE, File::from(pipe));
            unpack(input, place, Rules { owner, reach: Reach::Root })?;
        }
    }
    Ok(())
}

/// Keeps other processes from looking into this one or tracing it.
fn hide() -> Result<(), ArchiveProblem> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(io("hiding the process"))
}

fn read_order(agent: &UnixStream) -> Result<ArchiveOrder, ArchiveProblem> {
    let (line, _) = passing::receive_line(agent).map_err(io("reading the order"))?;
    let order: Versioned<ArchiveOrder> =
        serde_json::from_slice(&line).map_err(ArchiveProblem::Order)?;
    Ok(order.message)
}

/// Becomes the container's root, seen by nobody in there, with the rights that files need.
fn enter(launch: &Launch, pid: i32) -> Result<(), ArchiveProblem> {
    let cgroup = CgroupTree::probe(&launch.cgroup_root)?.instance(&launch.spec.id);
    let pid = Pid::from_raw(pid).ok_or(ArchiveProblem::Ended)?;
    let first =
        rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(|_| ArchiveProblem::Ended)?;
    // The number may have become another process's before the descriptor was opened; not after.
    if !cgroup.holds(pid).map_err(io("looking for the first process"))? {
        return Err(ArchiveProblem::Ended);
    }
    cgroup.join_payload()?;
    setns(first.as_fd(), CloneFlags::CLONE_NEWNS).map_err(io("joining the mount namespace"))?;
    if launch.spec.users.is_some() {
        setns(first.as_fd(), CloneFlags::CLONE_NEWUSER)
            .map_err(io("joining the user namespace"))?;
        let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
        nix::unistd::setresgid(gid, gid, gid).map_err(io("becoming the root inside"))?;
        nix::unistd::setresuid(uid, uid, uid).map_err(io("becoming the root inside"))?;
    }
    rustix::process::chdir("/").map_err(io("entering the root directory"))?;
    rustix::process::umask(rustix::fs::Mode::empty());
    let needed = CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::FOWNER
        | CapabilitySet::FSETID;
    bound(needed).map_err(io("dropping capabilities"))?;
    let sets = CapabilitySets {
        effective: needed,
        permitted: needed,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets).map_err(io("dropping capabilities"))?;
    rustix::thread::set_no_new_privs(true).map_err(io("dropping capabilities"))?;
    // Another user is shown again, as far as the kernel is concerned.
    hide()
}
