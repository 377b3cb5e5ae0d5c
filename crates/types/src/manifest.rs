//! The manifest of an app, `longshore.toml`, once it has been checked.
//!
//! A document (TOML from a file, JSON from the API) is first read into a [`serde_json::Value`] and
//! then walked by [`Manifest::from_document`], which reports every problem at once and suggests the
//! nearest known key for an unknown one; serde alone would stop at the first.

pub mod document;
mod parse;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Ability, AppName, ByteCount, Capacity, Digest, Duration, EgressRule, GpuNeed, HostName,
    ImageReference, IngressRules, MilliCpu, Placement, Port, Priority, ProjectName, ReleaseNumber,
    ReplaceLost, Rollout, RuntimeName, SecretName, SecretPlace, SecretVersion, Timestamp,
};

pub use parse::ManifestProblem;

/// What a user asks for when deploying an app. Every field is valid by itself and with the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Manifest {
    /// The name of the app.
    pub app: AppName,
    /// The owner of the app.
    pub project: ProjectName,
    /// The image as the user wrote it; a release pins it by digest.
    pub image: ImageReference,
    /// How many instances should run.
    pub count: u32,
    /// The most instances that may ever run, replacements and rollouts included, when the user set
    /// a limit; see [`Manifest::max_for`].
    pub max: Option<u32>,
    /// The port on which the instances answer HTTP, if they do.
    pub port: Option<Port>,
    /// Host names that lead to the app, beside the one that every app gets.
    pub hosts: Vec<HostName>,
    /// What each instance may use.
    pub resources: Resources,
    /// What is run instead of what the image says.
    pub process: ProcessOverrides,
    /// How requests reach the instances.
    #[serde(default)]
    pub ingress: IngressRules,
    /// How health is judged; absent when there is no port and no check was asked for.
    pub health: Option<Health>,
    /// What the instances may reach beyond the public internet.
    pub egress_allow: Vec<EgressRule>,
    /// What happens when an instance ends by itself.
    pub restart: RestartPolicy,
    /// How a new release takes the place of the old one, at each location.
    #[serde(default)]
    pub rollout: Rollout,
    /// Which secrets of the project the instances see, and where.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<SecretPlace, SecretName>,
    /// What is run once before a new release takes over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseCommand>,
    /// What makes the containers.
    #[serde(default)]
    pub runtime: RuntimeName,
    /// Whether each instance has users and groups of its own, so that its root is nobody on the
    /// machine.
    #[serde(default = "by_default")]
    pub user_namespace: bool,
    /// How a client is attached to its one instance, if it is made for one: as `longshore run` makes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attached: Option<Attached>,
    /// How long a location may not be heard of before others start what it had.
    #[serde(default)]
    pub replace_lost: ReplaceLost,
    /// Where the instances may be, and where they would best be.
    #[serde(default, skip_serializing_if = "Placement::is_none")]
    pub placement: Placement,
    /// How much it matters where there is not room for all.
    #[serde(default)]
    pub priority: Priority,
}

/// What connects a client with an instance that is made for it. Its program begins when the client is
/// there, and ends when the client goes without saying that it should go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Attached {
    /// A terminal.
    Terminal,
    /// A pipe each for its input, its output and its errors.
    Pipes,
}

/// A release that was stored before there was a choice has what is now the default.
fn by_default() -> bool {
    true
}

impl Manifest {
    /// What the runtime has to be able to do.
    pub fn needed_abilities(&self) -> Vec<Ability> {
        let users = self.user_namespace.then_some(Ability::UserNamespace);
        Ability::ALWAYS.into_iter().chain(users).collect()
    }

    /// The priority below which an instance leaves for another; nothing for one that never does, because what
    /// it was doing would have to be done again.
    pub fn yields(&self) -> Option<Priority> {
        (self.restart != RestartPolicy::Never).then_some(self.priority)
    }

    /// The manifest of the one instance that runs the release command: as any other, but that it gets
    /// no requests and ends by itself.
    pub fn of_release_command(&self) -> Option<Self> {
        let ReleaseCommand { command, .. } = self.release.as_ref()?;
        let process = ProcessOverrides { command: Some(command.clone()), ..self.process.clone() };
        Some(Self {
            count: 1,
            port: None,
            hosts: Vec::new(),
            health: None,
            restart: RestartPolicy::Never,
            process,
            ..self.clone()
        })
    }

    /// The most instances that may ever run when `count` should: the user's limit, else three times the
    /// count. All may be in one place that nobody hears of, which may have begun to replace each by another, and
    /// as many have to run elsewhere.
    pub fn max_for(&self, count: u32) -> u32 {
        self.max.unwrap_or_else(|| count.saturating_mul(3).max(3))
    }
}

/// An immutable record of what was deployed: a manifest and the digest its image had then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Release {
    /// The number within the app.
    pub number: ReleaseNumber,
    /// What the user asked for. Its `count` and `max` are what was deployed, not what `scale` made
    /// of it since.
    pub manifest: Manifest,
    /// The digest of the image's manifest or index.
    pub image_digest: Digest,
    /// The versions that the secrets of the manifest had then.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<SecretName, SecretVersion>,
    /// When it was made, by the clock of the global plane.
    pub created_at: Timestamp,
}

/// What one instance may use. The limits are enforced by the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Resources {
    /// Processor time.
    pub cpu: MilliCpu,
    /// Memory, page cache of its own files included.
    pub memory: ByteCount,
    /// Processes and threads.
    pub pids: u32,
    /// What it may write to its file system. /dev/shm and other file systems in memory count as
    /// memory instead.
    #[serde(default = "Resources::default_disk")]
    pub disk: ByteCount,
    /// Open files of each process; see [`Resources::open_file_limits`] for the default.
    #[serde(default)]
    pub open_files: Option<u32>,
    /// What it needs of GPUs, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuNeed>,
}

impl Resources {
    /// The most that an instance's log takes, older files included; rotation keeps it to this.
    pub const LOG: ByteCount = ByteCount::mib(40);

    /// What a scheduler sets aside for one instance.
    pub fn capacity(&self) -> Capacity {
        let disk = ByteCount(self.disk.0.saturating_add(Self::LOG.0));
        Capacity { cpu: self.cpu, memory: self.memory, disk }
    }

    /// The soft and the hard limit on open files. One that was asked for is both. Without, programs
    /// get what servers need without asking, and may raise it to the kernel's usual ceiling.
    pub fn open_file_limits(&self) -> (u32, u32) {
        self.open_files.map_or((65_536, 524_288), |limit| (limit, limit))
    }

    fn default_disk() -> ByteCount {
        ByteCount::gib(1)
    }
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            cpu: MilliCpu(1000),
            memory: ByteCount::mib(256),
            pids: 512,
            disk: Self::default_disk(),
            open_files: None,
            gpu: None,
        }
    }
}

/// Overrides of the image's configuration. `None` leaves the image's value.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ProcessOverrides {
    /// Instead of the image's entrypoint; also drops the image's command, as docker does.
    pub entrypoint: Option<Vec<String>>,
    /// Instead of the image's command.
    pub command: Option<Vec<String>>,
    /// `user`, `user:group`, `uid` or `uid:gid`.
    pub user: Option<String>,
    /// The absolute working directory.
    pub workdir: Option<String>,
    /// How long requests that are under way and open connections may go on before it is asked to
    /// stop; no new ones come meanwhile.
    #[serde(default = "ProcessOverrides::default_drain")]
    pub drain: Duration,
    /// The signal that asks it to stop, such as `SIGTERM`.
    pub stop_signal: Option<String>,
    /// How long it may take to stop before it is killed.
    pub stop_grace: Duration,
    /// Environment variables added to the image's, or replacing them.
    pub env: BTreeMap<String, String>,
}

impl ProcessOverrides {
    /// The grace that an app gets when it asks for none, as docker's.
    pub const DEFAULT_STOP_GRACE: Duration = Duration::from_secs(10);

    /// Long enough for nearly all requests, and an end for connections that would stay for ever.
    pub const DEFAULT_DRAIN: Duration = Duration::from_secs(30);

    fn default_drain() -> Duration {
        Self::DEFAULT_DRAIN
    }
}

/// What is run once before a new release takes over, such as a migration of a database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReleaseCommand {
    /// The program and its arguments, as [`ProcessOverrides::command`].
    pub command: Vec<String>,
    /// How long it may take, with the start of its instance, before the release has failed.
    pub timeout: Duration,
}

impl ReleaseCommand {
    /// What a command may take that does not say.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(600);
}

/// How the health of an instance is judged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Health {
    /// What is tried.
    pub kind: HealthKind,
    /// The port that is tried.
    pub port: Port,
    /// The time between tries of a healthy instance. A starting one is tried more often.
    pub interval: Duration,
    /// How long one try may take.
    pub timeout: Duration,
    /// How many failures in a row make a healthy instance unhealthy; twice as many end it.
    pub failures: u32,
    /// How long a started instance may take until its first success, before it is ended.
    pub start_deadline: Duration,
}

impl Health {
    /// A TCP check of `port` with the default times.
    pub fn tcp(port: Port) -> Self {
        Self {
            kind: HealthKind::Tcp,
            port,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            failures: 3,
            start_deadline: Duration::from_secs(60),
        }
    }
}

/// What a health check tries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum HealthKind {
    /// A TCP connection is accepted.
    Tcp,
    /// `GET path` answers with a status from 200 to 399.
    Http {
        /// The path, beginning with `/`.
        path: String,
    },
}

/// What happens when an instance ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// It is started again.
    #[default]
    Always,
    /// It is started again unless it exited with status 0.
    OnFailure,
    /// It stays ended.
    Never,
}
