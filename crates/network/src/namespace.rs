//! Network namespaces kept by a bind mount.
//!
//! A thread that entered another namespace must never come back to a pool: whatever ran on it next
//! would act in that namespace. So every entry happens on a thread of its own that then ends. All
//! that it brings back is a netlink socket, which stays in the namespace that it was opened in.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};
use nix::sched::CloneFlags;
use nix::sys::statfs::{NSFS_MAGIC, statfs};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use crate::netlink::Netlink;
use crate::sysctl::{self, SysctlError};

/// A namespace could not be made, entered or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NamespaceError {
    /// A step of making, entering or removing failed.
    #[error("{doing} network namespace {path}", path = path.display())]
    Step {
        /// What was being done.
        doing: &'static str,
        /// The file that the namespace is mounted on.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A user namespace, or the network namespace that belongs to it, could not be made.
    #[error("{doing} user namespace {path}", path = path.display())]
    Users {
        /// What was being done.
        doing: &'static str,
        /// The file that the namespace is to be mounted on.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A setting of the new namespace was refused.
    #[error("configure network namespace {path}", path = path.display())]
    Configure {
        /// The file that the namespace is mounted on.
        path: PathBuf,
        /// Why it failed.
        source: SysctlError,
    },
}

fn failed<E: Into<io::Error>>(doing: &'static str, path: &Path) -> impl Fn(E) -> NamespaceError {
    let path = path.to_owned();
    move |source| NamespaceError::Step { doing, path: path.clone(), source: source.into() }
}

/// Makes a namespace that belongs to the machine's own user namespace and mounts it on `path`,
/// replacing what an interrupted attempt left there.
pub(crate) async fn create(path: &Path) -> Result<(), NamespaceError> {
    ensure_removed(path)?;
    let path = path.to_owned();
    on_own_thread(move || {
        File::create(&path).map_err(failed("create file of", &path))?;
        nix::sched::unshare(CloneFlags::CLONE_NEWNET).map_err(failed("create", &path))?;
        configure().map_err(|source| NamespaceError::Configure { path: path.clone(), source })?;
        let own = Path::new("/proc/thread-self/ns/net");
        nix::mount::mount(Some(own), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(failed("mount", &path))
    })
    .await
    .map_err(failed("start a thread for", Path::new("(new)")))?
}

/// Makes the settings of a namespace that another process made.
pub(crate) async fn configure_existing(path: &Path) -> Result<(), NamespaceError> {
    let path = path.to_owned();
    on_own_thread(move || {
        enter(&path)?;
        configure().map_err(|source| NamespaceError::Configure { path: path.clone(), source })
    })
    .await
    .map_err(failed("start a thread for", Path::new("(existing)")))?
}

fn enter(path: &Path) -> Result<(), NamespaceError> {
    let netns = File::open(path).map_err(failed("open", path))?;
    nix::sched::setns(&netns, CloneFlags::CLONE_NEWNET).map_err(failed("enter", path))
}

/// The settings of a namespace that instances may not change themselves: nobody in a container has
/// CAP_NET_ADMIN. An instance that has no user namespace of its own has no other capability over
/// its network either, since that belongs to the host's; so that it can bind port 80 and send a
/// ping all the same, both are open to all.
fn configure() -> Result<(), SysctlError> {
    sysctl::ensure_no_ipv6("all")?;
    sysctl::ensure_no_ipv6("default")?;
    sysctl::ensure("net/ipv4/ip_unprivileged_port_start", "0")?;
    sysctl::ensure("net/ipv4/ping_group_range", "0\t2147483647")
}

/// Opens a netlink socket inside of the namespace mounted on `path`.
pub(crate) async fn connect(path: &Path, tasks: &TaskTracker) -> Result<Netlink, NamespaceError> {
    let path = path.to_owned();
    let tasks = tasks.clone();
    let runtime = tokio::runtime::Handle::current();
    on_own_thread(move || {
        enter(&path)?;
        let _runtime = runtime.enter();
        Netlink::connect(&tasks).map_err(failed("open a netlink socket in", &path))
    })
    .await
    .map_err(failed("start a thread for", Path::new("(existing)")))?
}

/// True when a namespace is mounted on `path`.
pub(crate) fn is_mounted(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == NSFS_MAGIC)
}

/// Removes the mount and the file, as far as they exist.
pub(crate) fn ensure_removed(path: &Path) -> Result<(), NamespaceError> {
    while is_mounted(path) {
        match nix::mount::umount2(path, MntFlags::MNT_DETACH) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(failed("unmount", path)(errno)),
        }
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("remove file of", path)(error))
        }
        _ => Ok(()),
    }
}

async fn on_own_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (done, result) = oneshot::channel();
    std::thread::Builder::new().name("netns".to_owned()).spawn(move || {
        // Nobody waits any more when the caller was cancelled; the work is done all the same.
        let _ = done.send(work());
    })?;
    result.await.map_err(|_| io::Error::other("the thread panicked"))
}
