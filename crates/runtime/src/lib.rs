//! Containers: one shim process per container, made by a runtime behind one trait.
//!
//! Two halves meet here and share nothing in memory. The node agent holds [`Shims`]: it starts
//! shims, adopts those that an earlier agent left, and asks them things over sockets. The binary's
//! `shim` and `shim-exec` commands are [`shim_main`] and [`exec_main`], which run with one thread and
//! make containers by libcontainer; nothing in the agent ever forks without exec. `shim-archive` is
//! [`archive_main`], which joins a container's namespaces to copy its files.
//!
//! A runtime is libcontainer, or a program with the OCI command line: `runc`, `crun`, `runsc`. [`probe`]
//! finds out which there are and what they can do.
//!
//! Protections are not optional: limits, device rules, capabilities, no-new-privileges and the
//! system call filter are put in place and read back, and a start at which one fails is refused.
//!
//! The crate does not know images, networks or health: it takes a mounted root file system and a
//! network namespace. Test as root: `cargo nextest run -p longshore-runtime`.

#![deny(missing_docs)]

mod archive;
mod capabilities;
mod cgroup;
mod devices;
mod driver;
mod exec;
mod failure;
mod files;
pub mod logs;
mod oci;
mod passing;
mod probe;
mod process;
mod protocol;
mod record;
mod rooted;
mod seccomp;
mod shim;
mod shims;
mod signal;
mod spec;
mod user;
mod view;

pub use archive::archive_main;
pub use cgroup::{CgroupKind, CgroupProblem, Usage};
pub use exec::exec_main;
pub use files::FileProblem;
pub use oci::{CAPABILITIES, Capability, MASKED_PATHS, READONLY_PATHS};
pub use probe::{RuntimePrograms, probe};
pub use protocol::Timing;
pub use record::ExitRecord;
pub use shim::shim_main;
pub use shims::{
    AdoptError, Adopted, AdoptedState, ArchiveError, ArchiveReader, ArchiveWriter, AskShimError,
    ExecControl, ExecError, ExecEvent, ExecInput, ExecRequest, ExecStream, RemoveError, Running,
    RuntimeProblem, SettleError, Shims, ShimsConfig, StartContainerError, UnpackRequest,
};
pub use signal::{SignalNumber, SignalProblem};
pub use spec::{
    AwaitedClient, ContainerSpec, LogPolicy, ReadOnlyFile, RuntimeKind, TerminalSize, UserNamespace,
};
pub use user::{ResolveUserError, ResolvedUser, UserOutOfRange, resolve_user};
