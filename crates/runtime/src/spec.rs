//! What the agent asks a shim to run.
//!
//! The agent writes a [`ContainerSpec`] to the instance's directory before it starts the shim; the
//! shim and every later `exec` read it from there. So an agent that was killed finds in that one
//! file what it had asked for, and a shim needs no long command line that `ps` would show.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use longshore_types::{Attached, ByteCount, Duration, IdRange, InstanceId, Resources, SecretValue};
use rustix::termios::{Winsize, tcsetwinsize};
use serde::{Deserialize, Serialize};

use crate::SignalNumber;
use crate::files::{self, FileProblem};
use crate::user::{ResolvedUser, UserOutOfRange};

/// Everything that a container of an instance is made from. All paths are paths of the host unless
/// they say otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// The instance.
    pub id: InstanceId,
    /// The mounted root file system.
    pub rootfs: PathBuf,
    /// The program and its arguments; the program is looked up in the container's `PATH`.
    pub args: Vec<String>,
    /// The environment, complete save for `HOME`, which is added from `user` when absent.
    pub env: BTreeMap<String, String>,
    /// More of it, which is kept in the run directory alone, and only as long as the container is there.
    #[serde(skip)]
    pub secret_env: BTreeMap<String, SecretValue>,
    /// The working directory inside the container; made when it is missing.
    pub cwd: String,
    /// Who the first process runs as.
    pub user: ResolvedUser,
    /// The host name inside the container.
    pub hostname: String,
    /// The network namespace to join; a fresh empty one when absent. It belongs to `users`, where
    /// that is there.
    pub netns: Option<PathBuf>,
    /// The user namespace to join; the machine's own when absent, and then root inside is root
    /// outside. With one, whatever lies above `rootfs` and `files` must let these ids pass.
    #[serde(default)]
    pub users: Option<UserNamespace>,
    /// What the container may use.
    pub limits: Resources,
    /// Files of the host that the container sees, read-only.
    pub files: Vec<ReadOnlyFile>,
    /// The signal by which the container is asked to stop.
    pub stop_signal: SignalNumber,
    /// Where its output goes.
    pub log: LogPolicy,
    /// What runs it.
    pub runtime: RuntimeKind,
    /// For a first process that begins to run its program when a client is attached to it; absent when
    /// it runs by itself.
    #[serde(default)]
    pub client: Option<AwaitedClient>,
}

/// The client that a first process waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwaitedClient {
    /// By what it will be attached.
    pub by: Attached,
    /// How long the process waits, before it is ended.
    pub within: Duration,
}

impl ContainerSpec {
    /// What a user of the container is on the machine.
    ///
    /// # Errors
    ///
    /// When it is nobody there.
    pub(crate) fn on_machine(&self, user: &ResolvedUser) -> Result<MachineUser, UserOutOfRange> {
        let ids = self.users.as_ref().map(|users| users.ids);
        for &id in [user.uid, user.gid].iter().chain(&user.additional_gids) {
            if ids.is_some_and(|ids| ids.on_machine(id).is_none()) {
                return Err(UserOutOfRange(id));
            }
        }
        let shift = |id: u32| ids.and_then(|ids| ids.on_machine(id)).unwrap_or(id);
        Ok(MachineUser { uid: shift(user.uid), root: shift(0) })
    }
}

/// A user of a container as the machine knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MachineUser {
    /// The user.
    pub uid: u32,
    /// The container's root, user and group.
    pub root: u32,
}

/// How many characters a terminal shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

impl TerminalSize {
    /// What a terminal has before somebody says how large theirs is.
    pub(crate) const USUAL: Self = Self { columns: 80, rows: 24 };

    /// Gives the terminal of this descriptor this size; who runs in it is told by the kernel.
    pub(crate) fn set(self, terminal: impl AsFd) -> std::io::Result<()> {
        let size = Winsize { ws_col: self.columns, ws_row: self.rows, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(terminal, size)?)
    }
}

/// The user namespace of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNamespace {
    /// The file that it is mounted on. It belongs to the first id of `ids`.
    pub path: PathBuf,
    /// What its users and groups are on the machine.
    pub ids: IdRange,
}

/// A file of the host shown read-only inside a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadOnlyFile {
    /// The file on the host.
    pub source: PathBuf,
    /// The absolute path inside the container.
    pub destination: String,
}

/// Where output is kept and how much of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPolicy {
    /// The newest file; older ones have `.1`, `.2`... appended.
    pub path: PathBuf,
    /// A file that grows past this is rotated.
    pub max_size: ByteCount,
    /// How many files are kept, the newest included; at least 1.
    pub files: u32,
}

/// The program that makes containers, and where it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuntimeKind {
    /// libcontainer inside the shim; nothing needs to be installed.
    #[default]
    Embedded,
    /// `runc` at this path.
    Runc(PathBuf),
    /// `crun` at this path.
    Crun(PathBuf),
    /// `runsc` at this path: gVisor.
    Runsc(PathBuf),
}

/// The file that the agent leaves for the shim.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Launch {
    /// The version of this record; a shim refuses one that it does not know.
    pub v: u32,
    /// The agent's cgroup, relative to the root of each hierarchy.
    pub cgroup_root: String,
    /// The boot during which the start was asked for: after another boot nothing of it can run.
    pub boot_id: String,
    /// What to run.
    pub spec: ContainerSpec,
}

/// The file of the run directory with the secret part of the environment.
const SECRET_ENV: &str = "secret-env.json";

/// Writes the secret part of an environment, when there is one, for those who make processes of the
/// instance. Its owner alone may read it.
pub(crate) fn store_secret_env(
    run_dir: &Path,
    env: &BTreeMap<String, SecretValue>,
) -> Result<(), FileProblem> {
    if env.is_empty() {
        return Ok(());
    }
    files::write_private_json(&run_dir.join(SECRET_ENV), env)
}

/// Reads it, as variables.
pub(crate) fn load_secret_env(run_dir: &Path) -> Result<BTreeMap<String, String>, FileProblem> {
    let env: Option<BTreeMap<String, SecretValue>> = files::read_json(&run_dir.join(SECRET_ENV))?;
    let variable = |(name, value): (String, SecretValue)| {
        // What is no text was refused when it was deployed.
        value.as_variable().map(|text| (name, text.to_owned()))
    };
    Ok(env.unwrap_or_default().into_iter().filter_map(variable).collect())
}

impl Launch {
    pub const VERSION: u32 = 1;
    const FILE: &str = "spec.json";

    /// Replaces the record in the directory of an instance. Not synced: a start that a power
    /// failure undoes was never more than asked for.
    pub fn store(&self, dir: &Path) -> Result<(), FileProblem> {
        files::replace_json(&dir.join(Self::FILE), self, files::Durability::Cached)
    }

    /// Reads the record of an instance; absent when none was written.
    pub fn load(dir: &Path) -> Result<Option<Self>, FileProblem> {
        let path = dir.join(Self::FILE);
        let launch: Option<Self> = files::read_json(&path)?;
        match launch {
            Some(launch) if launch.v != Self::VERSION => {
                Err(FileProblem::Version { path, found: launch.v, known: Self::VERSION })
            }
            other => Ok(other),
        }
    }
}
