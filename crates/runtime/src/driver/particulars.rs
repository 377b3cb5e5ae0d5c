//! In what the command lines of OCI runtimes differ, as far as we have to know.

use crate::spec::RuntimeKind;

/// Who puts the container's processes into the container's cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placement {
    /// The runtime, told by `cgroupsPath`.
    Runtime,
    /// We: the command itself runs there, and what it starts with it. For runtimes that would set up
    /// the cgroup in their own way, and can be told to leave cgroups alone.
    Command,
}

/// What the process is that a runtime names as the container's first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum First {
    /// The program of the container, a process of this kernel.
    Program,
    /// A kernel of the container's own, whose processes are not ours. It ends with the status of the
    /// program.
    Sandbox,
}

/// When the system call filter of the first process is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filter {
    /// When the container has been made.
    Made,
    /// Just before the program runs, when `start` may have returned already.
    Started,
}

/// A runtime that is driven by its command line.
#[derive(Debug)]
pub(super) struct Particulars {
    /// Before the verb, beside `--root` and `--log`.
    pub options: &'static [&'static str],
    pub placement: Placement,
    pub first: First,
    pub filter: Filter,
    /// It finds the places below `/dev` by their paths, and gets them made. See [`super::dev_tree`].
    pub given_dev: bool,
    /// An empty directory lies over this while `start` runs. See [`RUNSC`].
    pub hidden: Option<&'static str>,
}

/// Sets everything up in `create`; its process then only waits to run the program.
const RUNC: Particulars = Particulars {
    options: &["--log-format=json"],
    placement: Placement::Runtime,
    first: First::Program,
    filter: Filter::Made,
    given_dev: true,
    hidden: None,
};

/// Installs the system call filter after `start`, just before the program runs. Left alone it
/// removes the cgroup when the container ends, before its counters are read.
const CRUN: Particulars = Particulars {
    options: &["--log-format=json", "--cgroup-manager=disabled"],
    placement: Placement::Command,
    first: First::Program,
    filter: Filter::Started,
    given_dev: false,
    hidden: None,
};

/// Its processes (the kernel, the server of its files) are to be limited together, so they are all
/// started inside the cgroup. Files are written through to the root file system, so that what is
/// said of an instance's disk holds. It copies the addresses and routes of the network namespace, and
/// takes the addresses away from it. Versions up to 2024 take a namespace for the host's when
/// `/proc/sys/net/core/rmem_default` is there, which since Linux 6.16 it is in every one; newer
/// versions look at a file beside it. We know whose namespace it is, so `start` sees neither.
const RUNSC: Particulars = Particulars {
    options: &[
        "--log-format=json",
        "--platform=systrap",
        "--network=sandbox",
        "--overlay2=none",
        "--ignore-cgroups",
        "--oci-seccomp",
    ],
    placement: Placement::Command,
    first: First::Sandbox,
    filter: Filter::Started,
    given_dev: false,
    hidden: Some("/proc/sys/net"),
};

/// The particulars of a runtime that has a command line.
pub(super) fn particulars(kind: &RuntimeKind) -> Option<(&'static Particulars, &std::path::Path)> {
    match kind {
        RuntimeKind::Embedded => None,
        RuntimeKind::Runc(program) => Some((&RUNC, program)),
        RuntimeKind::Crun(program) => Some((&CRUN, program)),
        RuntimeKind::Runsc(program) => Some((&RUNSC, program)),
    }
}
