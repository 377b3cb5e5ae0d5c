//! User namespaces, each with a network namespace that belongs to it.
//!
//! Only a process with one thread may enter a new user namespace, and one that did cannot come back.
//! So a process of its own does it, [`hold_namespaces_main`]: it makes both namespaces and waits;
//! the agent, which alone has the right, says which ids are whose in there, mounts both namespaces
//! on files, and lets the process end. It ends as well when the agent dies, because its input does.
//!
//! The network namespace must belong to the user namespace, or the container could neither join it
//! nor mount its `/sys`. The user namespace itself belongs to its own root's id, so that what the
//! kernel counts for each user (inotify watches, pending signals) is counted for each instance, and
//! not for the machine's root in one sum.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::{ExitCode, Stdio};

use longshore_types::IdRange;
use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use nix::unistd::{Gid, Uid};
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};

use crate::namespace::{self, NamespaceError};

/// The command of our program that [`hold_namespaces_main`] answers to.
pub const HOLD_NAMESPACES_VERB: &str = "shim-namespaces";

/// Makes user namespaces by starting our own program.
pub(crate) struct Holder {
    /// Kept open, so that replacing the program under a running agent changes nothing.
    program: File,
}

impl Holder {
    pub(crate) fn new(program: &Path) -> io::Result<Self> {
        File::open(program).map(|program| Self { program })
    }

    /// Makes a user namespace whose ids are `ids`, mounted on `users`, and a network namespace of
    /// it, mounted on `net`. What an interrupted attempt left there is replaced.
    pub(crate) async fn create(
        &self,
        ids: IdRange,
        users: &Path,
        net: &Path,
    ) -> Result<(), NamespaceError> {
        namespace::ensure_removed(users)?;
        namespace::ensure_removed(net)?;
        let failed = |doing: &'static str| {
            let path = users.to_owned();
            move |source| NamespaceError::Users { doing, path: path.clone(), source }
        };
        let mut child = self.start(ids).map_err(failed("start the process that makes"))?;
        let pid = ready(&mut child).await.map_err(failed("make"))?;
        // A map is one write, or the kernel refuses it.
        let map = format!("0 {} {}", ids.first(), IdRange::LEN);
        for file in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{pid}/{file}"), &map).map_err(failed("set the ids of"))?;
        }
        for (kind, path) in [("user", users), ("net", net)] {
            File::create(path).map_err(failed("create a file for"))?;
            let source = format!("/proc/{pid}/ns/{kind}");
            nix::mount::mount(Some(&*source), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .map_err(|errno| failed("mount")(errno.into()))?;
        }
        drop(child.stdin.take());
        child.wait().await.map_err(failed("end the process that made"))?;
        Ok(())
    }

    fn start(&self, ids: IdRange) -> io::Result<Child> {
        // The child has a copy of the descriptor until it runs the program.
        Command::new(format!("/proc/self/fd/{}", self.program.as_raw_fd()))
            .arg0("longshore")
            .args([HOLD_NAMESPACES_VERB, &ids.first().to_string()])
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
    }
}

/// Waits until the namespaces are there, or gives the process's own words on why they are not.
async fn ready(child: &mut Child) -> io::Result<u32> {
    let missing = || io::Error::other("the process has no output");
    let mut first = Vec::new();
    child.stdout.as_mut().ok_or_else(missing)?.take(1).read_to_end(&mut first).await?;
    match (first.is_empty(), child.id()) {
        (false, Some(pid)) => Ok(pid),
        _ => {
            let mut said = String::new();
            child.stderr.as_mut().ok_or_else(missing)?.read_to_string(&mut said).await?;
            Err(io::Error::other(said.trim().to_owned()))
        }
    }
}

/// The process behind `longshore shim-namespaces FIRST`: makes a user namespace that belongs to the
/// id FIRST, with a network namespace of it, and waits for the end of its input. Called from `main`
/// before any thread exists.
pub fn hold_namespaces_main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let first = args.into_iter().next().and_then(|first| first.to_str()?.parse().ok());
    let Some(ids) = first.and_then(IdRange::new) else {
        // The agent reads these words; without it there is nobody to tell.
        let _ = writeln!(io::stderr(), "the first id of a range was expected");
        return ExitCode::FAILURE;
    };
    match hold(ids) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn hold(ids: IdRange) -> io::Result<()> {
    become_owner(ids.first())?;
    let flags = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET;
    nix::sched::unshare(flags).map_err(|errno| match errno {
        nix::Error::ENOSPC => {
            io::Error::other("no more are allowed; raise user.max_user_namespaces with sysctl")
        }
        nix::Error::EINVAL => io::Error::other("the kernel has none (CONFIG_USER_NS)"),
        errno => errno.into(),
    })?;
    io::stdout().write_all(b"\n")?;
    io::stdout().flush()?;
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Takes the id that the namespace shall belong to, and keeps the capabilities, since some machines
/// let only root make user namespaces.
fn become_owner(id: u32) -> io::Result<()> {
    // SAFETY: sets a flag of this thread; no memory is passed.
    let result = unsafe { libc::prctl(libc::PR_SET_SECUREBITS, libc::SECBIT_NO_SETUID_FIXUP) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    nix::unistd::setgroups(&[])?;
    nix::unistd::setresgid(gid, gid, gid)?;
    nix::unistd::setresuid(uid, uid, uid)?;
    Ok(())
}
