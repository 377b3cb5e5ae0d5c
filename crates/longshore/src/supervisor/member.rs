//! This machine as a part of a world whose control plane is elsewhere: `longshore node join`, `longshore location
//! join` and `longshore registry join` let it in, `start` runs it from then on. What is supervised is as with `up`, with fewer
//! roles.

mod location;
mod node;
mod registry;

use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use longshore_link::{CallError, Endpoint, JoinError, chain};
use longshore_trust::{Identity, JoinAs, JoinToken};
use longshore_types::{DeclaredGpus, DiskMarks, IpNet, NodeName, PullRate};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::child::RolePlan;
use super::home::{Contents, Home};
use super::plan::Flags;
use super::settings::node_name;
use super::tls::{UsersTls, keep_made};
use super::{Roles, check_machine};
use crate::connection::DEFAULT_DATA_DIR;
use crate::failure::{Failure, Kind, OrFail};
use crate::inheritance::Inheritance;
use crate::logging::{self, LogFormat};
use crate::state_file;

pub use location::{LocationJoinOptions, LocationStartOptions};
pub use location::{join as join_location, start as start_location};
pub use node::{NodeJoinOptions, NodeStartOptions};
pub use node::{join as join_node, start as start_node};
pub use registry::{RegistryJoinOptions, RegistryStartOptions};
pub use registry::{join as join_registry, start as start_registry};

/// How long a role may take to end, and how long the node with its instances.
const DRAIN: Duration = Duration::from_secs(20);
const DRAIN_INSTANCES: Duration = Duration::from_secs(90);

/// Where all is kept on this machine, and what is told of it, whatever it is a part of.
#[derive(Debug, Clone, clap::Args)]
struct HomeOptions {
    /// The directory that everything is kept in
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DATA_DIR)]
    data_dir: PathBuf,
    /// The directory for sockets
    #[arg(long, value_name = "DIR", default_value = "/run/longshore")]
    run_dir: PathBuf,
    /// What is logged, such as debug or info,longshore_node=debug
    #[arg(long, env = "LONGSHORE_LOG", value_name = "FILTER", default_value = "info")]
    log: String,
    /// How a line of the log looks
    #[arg(long, value_name = "FORMAT", default_value = "text", value_parser = ["text", "json"])]
    log_format: String,
}

/// What is said of this machine where it runs instances.
#[derive(Debug, Clone, clap::Args)]
struct MachineOptions {
    #[command(flatten)]
    home: HomeOptions,
    /// The IPv4 network that instances get their addresses from
    #[arg(long, value_name = "NETWORK", default_value = longshore_network::NetworkConfig::DEFAULT_POOL)]
    instance_pool: IpNet,
    /// How many times over the processor time of the machine is promised
    #[arg(long, value_name = "FACTOR", default_value = "4")]
    cpu_overcommit: String,
    /// When images that nothing keeps leave the disk: over the second percentage of it, down to the first
    #[arg(long, value_name = "LOW-HIGH", default_value_t)]
    image_disk: DiskMarks,
    /// How much of the network pulls of images may take together, a second
    #[arg(long, value_name = "SIZE", default_value_t)]
    image_rate: PullRate,
    /// How much of that those may take that no instance waits for, and how much other nodes that are given layers, a
    /// second
    #[arg(long, value_name = "SIZE", default_value_t)]
    prewarm_rate: PullRate,
    /// GPUs that this machine has, for apps that need some, such as h100:80GiB:4; may be given several times
    #[arg(long = "gpu", value_name = "MODEL:MEMORY[:COUNT]")]
    gpus: Vec<DeclaredGpus>,
    /// The cgroup below which instances get theirs
    #[arg(long, value_name = "PATH")]
    cgroup_parent: Option<String>,
    /// The program runc [default: the one in the usual places]
    #[arg(long, value_name = "PATH")]
    runc: Option<PathBuf>,
    /// The program crun, likewise
    #[arg(long, value_name = "PATH")]
    crun: Option<PathBuf>,
    /// The program runsc (gVisor), likewise
    #[arg(long, value_name = "PATH")]
    runsc: Option<PathBuf>,
    /// End the instances with this
    #[arg(long)]
    stop_instances: bool,
}

/// What differs between what a machine may be a part of.
trait Member {
    /// As what it logs.
    const ROLE: &'static str;
    /// What is in its data directory.
    const CONTENTS: Contents;
    /// Whether it needs what those do.
    const RUNS_INSTANCES: bool;

    /// Whether the instances end with it.
    fn stops_instances(&self) -> bool {
        false
    }

    /// Joins, where that is asked for, and gives what is to run.
    fn roles(self, home: &Home) -> Result<Planned, Failure>;
}

/// What is to run.
struct Planned {
    /// The roles; those that come first end first.
    waves: Vec<Vec<RolePlan>>,
    /// What they are, in a word.
    what: String,
    /// By which certificate users are spoken to, where one was made.
    tls: Option<UsersTls>,
}

/// Runs the roles of a member until told to end.
fn run<M: Member>(options: &HomeOptions, member: M) -> Result<(), Failure> {
    let HomeOptions { data_dir, run_dir, log, log_format } = options;
    let inheritance = Inheritance::take().or_fail(Kind::Other, "cannot begin")?;
    logging::begin(M::ROLE, log, log_format.parse::<LogFormat>().unwrap_or_default());
    if let Some(other) = M::CONTENTS.excluded(data_dir) {
        let message = format!("{} is the data directory of {other}", data_dir.display());
        return Err(Failure::new(Kind::Other, message).hint("give another one with --data-dir"));
    }
    if M::RUNS_INSTANCES {
        check_machine(data_dir, run_dir)?;
    }
    let home = Home::take(data_dir, run_dir, M::CONTENTS)?;
    let doing = format!("cannot use {}", home.run_dir().display());
    home.prepare_run_dir().or_fail(Kind::Other, doing)?;
    let stop_instances = member.stops_instances();
    let Planned { waves, what, tls } = member.roles(&home)?;
    let variables =
        vec![(logging::VARIABLE, log.clone()), (logging::FORMAT_VARIABLE, log_format.clone())];
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .or_fail(Kind::Other, "cannot begin")?;
    runtime.block_on(async {
        let roles = Roles::start(waves, home, variables, stop_instances)?;
        let announced = async |roles: &Roles| {
            tracing::info!("{what}");
            if let Some(tls) = tls.filter(|tls| tls.made) {
                keep_made(&tls, &roles.surroundings.home).await;
            }
        };
        roles.run(inheritance, announced).await
    })
}

/// Waits for what joins.
fn block_on<T>(joining: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Ok(runtime.or_fail(Kind::Other, "cannot begin")?.block_on(joining))
}

/// Keeps where this machine joins, and as whom.
fn keep_membership(home: &Home, membership: &impl Serialize) -> Result<(), Failure> {
    let doing = "cannot keep where this machine joins";
    let text = serde_json::to_vec_pretty(membership).or_fail(Kind::Other, doing)?;
    state_file::replace(&home.membership_file(), &text).or_fail(Kind::Other, doing)
}

/// What was kept when it joined; `proof` is the file that it has since.
fn membership<T: DeserializeOwned>(home: &Home, proof: PathBuf, what: &str) -> Result<T, Failure> {
    if !proof.exists() {
        let message = format!("this machine has not joined: there is no {}", proof.display());
        return Err(Failure::new(Kind::Invalid, message).hint(format!(
            "longshore join-token, where the platform is, shows the command that joins it as {what}"
        )));
    }
    let path = home.membership_file();
    let doing = format!("cannot read {}", path.display());
    let text = std::fs::read(&path).or_fail(Kind::Other, doing.clone())?;
    serde_json::from_slice(&text).or_fail(Kind::Other, doing)
}

/// Whether this machine has joined, and what it has by that is good still. What was away for too long joins
/// anew, with all that it keeps.
fn is_member(proof: &Path) -> Result<bool, Failure> {
    let doing = || format!("cannot read {}", proof.display());
    let identity = Identity::load(proof).or_fail(Kind::Other, doing())?;
    Ok(identity.is_some_and(|identity| !identity.has_expired(longshore_link::now())))
}

fn joined_already(what: &str) -> Failure {
    let message = format!("this machine has joined already, as {what}");
    Failure::new(Kind::Other, message)
        .hint("`start` runs it; to join anew, remove its data directory")
}

/// A token that is not for what joins.
fn another(token: &JoinToken, what: &str) -> Failure {
    let role = token.joins.role();
    let message = format!("this token is for a {role}, not for {what}");
    Failure::new(Kind::Usage, message).hint(format!("longshore {role} join takes it"))
}

/// What went wrong, as a person who joins should know it.
fn refused(error: JoinError, token: &JoinToken) -> Failure {
    match error {
        JoinError::Call(CallError::Refused(problem)) => Failure::from(problem),
        JoinError::Call(error @ CallError::Unreachable { .. }) => {
            let hint = match &token.joins {
                JoinAs::Node(location) => format!(
                    "the token says that location {location} listens there: can this machine reach it?"
                ),
                JoinAs::Location(_) | JoinAs::Registry => format!(
                    "the token says that the control plane listens at {}: can this machine reach it?",
                    token.address
                ),
            };
            Failure::from(error).hint(hint)
        }
        error => Failure::new(Kind::Other, chain(&error)),
    }
}

/// The name of this machine, unless one is given.
fn named(name: Option<NodeName>) -> NodeName {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    name.unwrap_or_else(|| node_name(&host))
}

/// The flags of an agent on this machine, as far as they follow from it.
fn agent_flags(machine: &MachineOptions, home: &Home, node: &NodeName) -> Flags {
    let path = |path: &Option<PathBuf>| path.as_deref().map(|path| path.display().to_string());
    let given = [
        ("cgroup-parent", machine.cgroup_parent.clone()),
        ("runc", path(&machine.runc)),
        ("crun", path(&machine.crun)),
        ("runsc", path(&machine.runsc)),
    ];
    let flags = Flags::below("agent")
        .with("name", node)
        .with("agent", home.agent())
        .with("data-dir", home.role_dir("node").display())
        .with("run-dir", home.run_dir().display())
        .with("instance-pool", machine.instance_pool)
        .with("cpu-overcommit", &machine.cpu_overcommit)
        .with("image-disk", machine.image_disk)
        .with("image-rate", machine.image_rate)
        .with("prewarm-rate", machine.prewarm_rate)
        .with_each("gpu", &machine.gpus);
    let given = given.into_iter().filter_map(|(name, value)| Some((name, value?)));
    given.fold(flags, |flags, (name, value)| flags.with(name, value))
}

fn node_drain(machine: &MachineOptions) -> Duration {
    if machine.stop_instances { DRAIN_INSTANCES } else { DRAIN }
}

/// The address by which this machine is reached from `peer`, for what listens at `endpoint`: its own, or that
/// of the way there.
fn advertised(endpoint: &Endpoint, peer: &str) -> Result<String, Failure> {
    let listens: Option<SocketAddr> = endpoint.authority().parse().ok();
    let port = listens.map_or(0, |address| address.port());
    if let Some(address) = listens.filter(|address| !address.ip().is_unspecified()) {
        return Ok(address.to_string());
    }
    // Connecting a socket of datagrams sends nothing; it only chooses the way.
    let way = |from: &str| {
        let socket = UdpSocket::bind(from)?;
        socket.connect(peer)?;
        socket.local_addr()
    };
    let way = way("0.0.0.0:0").or_else(|_| way("[::]:0"));
    let way = way.or_fail(Kind::Other, format!("there is no way to {peer}"))?;
    Ok(SocketAddr::new(way.ip(), port).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_expired_is_no_membership() {
        use longshore_trust::{Name, RootAuthority};
        let dir = tempfile::tempdir().unwrap();
        let (root, proof) = (dir.path().join("root.json"), dir.path().join("identity.json"));
        assert!(!is_member(&proof).unwrap());
        let now = longshore_link::now();
        let root = RootAuthority::open(&root, now).unwrap();
        root.identify(&Name::Global, now).unwrap().save(&proof).unwrap();
        assert!(is_member(&proof).unwrap());
        let long_ago = longshore_types::Timestamp(now.0 - 2 * 86_400_000);
        root.identify(&Name::Global, long_ago).unwrap().save(&proof).unwrap();
        assert!(!is_member(&proof).unwrap());
        std::fs::write(&proof, "{").unwrap();
        assert!(is_member(&proof).is_err());
    }

    #[test]
    fn a_machine_is_reached_where_it_listens_or_by_the_way_to_its_peer() {
        let at = |text: &str| Endpoint::Tls(text.to_owned());
        assert_eq!(advertised(&at("192.0.2.7:4603"), "127.0.0.1:1").unwrap(), "192.0.2.7:4603");
        assert_eq!(advertised(&at("0.0.0.0:4603"), "127.0.0.1:1").unwrap(), "127.0.0.1:4603");
    }
}
