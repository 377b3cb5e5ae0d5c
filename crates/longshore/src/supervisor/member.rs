//! `longshore node join` and `longshore node start`: this machine as a node of a location elsewhere.

use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use longshore_link::{CallError, Endpoint, Listener};
use longshore_node::JoinError;
use longshore_trust::{JoinRole, JoinToken};
use longshore_types::{IpNet, NodeName};
use serde::{Deserialize, Serialize};

use super::child::RolePlan;
use super::home::{Contents, Home};
use super::plan::Flags;
use super::preflight::Facts;
use super::settings::node_name;
use super::{Roles, refusal};
use crate::connection::DEFAULT_DATA_DIR;
use crate::failure::{Failure, Kind, OrFail};
use crate::inheritance::Inheritance;
use crate::logging::{self, LogFormat};
use crate::state_file;

/// How long the node may take to end without its instances, and with them.
const DRAIN: Duration = Duration::from_secs(20);
const DRAIN_INSTANCES: Duration = Duration::from_secs(90);

/// Join a location as one of its nodes, and run until told to end
///
/// The token comes from `longshore join-token` and is good once. From then on this machine is started by
/// `longshore node start`. Only its gate is listened on, and only the location gets an answer there.
#[derive(Debug, Clone, clap::Args)]
pub struct JoinOptions {
    /// The token that `longshore join-token` showed
    token: JoinToken,
    /// What this machine is to be called [default: its host name]
    #[arg(long, value_name = "NAME")]
    name: Option<NodeName>,
    #[command(flatten)]
    start: StartOptions,
}

/// Run this machine as the node that it joined as
///
/// Its instances go on when this ends, and are taken over when it is started again.
#[derive(Debug, Clone, clap::Args)]
pub struct StartOptions {
    /// The directory that everything is kept in
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DATA_DIR)]
    data_dir: PathBuf,
    /// The directory for sockets
    #[arg(long, value_name = "DIR", default_value = "/run/longshore")]
    run_dir: PathBuf,
    /// Where the location reaches the instances of this node, and nobody else gets an answer
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:4603")]
    gate_listen: SocketAddr,
    /// The host and port by which the location reaches that [default: the address by which this machine
    /// reaches the location]
    #[arg(long, value_name = "HOST:PORT")]
    gate_advertise: Option<String>,
    /// The IPv4 network that instances get their addresses from
    #[arg(long, value_name = "NETWORK", default_value = longshore_network::NetworkConfig::DEFAULT_POOL)]
    instance_pool: IpNet,
    /// How many times over the processor time of the machine is promised
    #[arg(long, value_name = "FACTOR", default_value = "4")]
    cpu_overcommit: String,
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
    /// Where Prometheus asks for the metrics of the node [default: nowhere]
    #[arg(long, value_name = "ENDPOINT")]
    metrics_listen: Option<Endpoint>,
    /// End the instances with the node
    #[arg(long)]
    stop_instances: bool,
    /// What is logged, such as debug or info,longshore_node=debug
    #[arg(long, env = "LONGSHORE_LOG", value_name = "FILTER", default_value = "info")]
    log: String,
    /// How a line of the log looks
    #[arg(long, value_name = "FORMAT", default_value = "text", value_parser = ["text", "json"])]
    log_format: String,
}

/// Where this machine joined, and as whom.
#[derive(Debug, Serialize, Deserialize)]
struct Membership {
    node: NodeName,
    /// `host:port` of the location.
    location: String,
}

/// Joins, unless this machine has, and runs the node.
pub fn join(options: JoinOptions) -> Result<(), Failure> {
    let JoinOptions { token, name, start } = options;
    run(start, |home| {
        if home.identity_file().exists() {
            let Membership { node, location } = membership(home)?;
            let message = format!("this machine has joined already, as node {node} of {location}");
            return Err(Failure::new(Kind::Other, message).hint(
                "longshore node start runs it; to join anew, remove its data directory first",
            ));
        }
        let JoinRole::Node = token.role;
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let node = name.unwrap_or_else(|| node_name(&host));
        let membership = Membership { node: node.clone(), location: token.address.clone() };
        let doing = "cannot keep where this machine joins";
        let text = serde_json::to_vec_pretty(&membership).or_fail(Kind::Other, doing)?;
        state_file::replace(&home.membership_file(), &text).or_fail(Kind::Other, doing)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.or_fail(Kind::Other, "cannot begin")?;
        let file = home.identity_file();
        let joining = longshore_node::join(&token, node.clone(), &file);
        runtime.block_on(joining).map_err(|error| refused(error, &token))?;
        tracing::info!("joined location {} as node {node}", token.location);
        Ok(())
    })
}

/// What went wrong, as a person who joins should know it.
fn refused(error: JoinError, token: &JoinToken) -> Failure {
    match error {
        JoinError::Call(CallError::Refused(problem)) => Failure::from(problem),
        JoinError::Call(error @ CallError::Unreachable { .. }) => {
            let hint = format!(
                "the token says that location {} listens there: can this machine reach it?",
                token.location
            );
            Failure::from(error).hint(hint)
        }
        error => Failure::new(Kind::Other, longshore_link::chain(&error)),
    }
}

/// Runs the node that this machine joined as.
pub fn start(options: StartOptions) -> Result<(), Failure> {
    run(options, |_| Ok(()))
}

fn run(
    options: StartOptions,
    prepare: impl FnOnce(&Home) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let inheritance = Inheritance::take().or_fail(Kind::Other, "cannot begin")?;
    let log_format: LogFormat = options.log_format.parse().unwrap_or_default();
    logging::begin("node", &options.log, log_format);
    if options.data_dir.join("global").exists() {
        let message = format!("a whole platform lives in {}", options.data_dir.display());
        return Err(Failure::new(Kind::Other, message)
            .hint("give the node another directory with --data-dir"));
    }
    let obstacles = Facts::observe(&options.data_dir, &options.run_dir).obstacles();
    if !obstacles.is_empty() {
        return Err(refusal(&obstacles));
    }
    let listen = Endpoint::Tls(options.gate_listen.to_string());
    let gate = Listener::bind("gate", &listen);
    let gate = gate.or_fail(Kind::Other, "cannot begin")?;
    let home = Home::take(&options.data_dir, &options.run_dir, Contents::Node)?;
    prepare(&home)?;
    let membership = membership(&home)?;
    let doing = format!("cannot use {}", home.run_dir().display());
    home.prepare_run_dir().or_fail(Kind::Other, doing)?;
    let plan = plan(&options, &home, &membership, gate)?;
    let variables = vec![
        (logging::VARIABLE, options.log.clone()),
        (logging::FORMAT_VARIABLE, options.log_format.clone()),
    ];
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .or_fail(Kind::Other, "cannot begin")?;
    runtime.block_on(async {
        let roles = Roles::start(vec![vec![plan]], home, variables, options.stop_instances)?;
        let Membership { node, location } = membership;
        let announce = async |_: &Roles| tracing::info!("node {node} runs for {location}");
        roles.run(inheritance, announce).await
    })
}

fn membership(home: &Home) -> Result<Membership, Failure> {
    let path = home.membership_file();
    let not_joined = || {
        let message =
            format!("this machine has joined no location: there is no {}", path.display());
        Failure::new(Kind::Invalid, message)
            .hint("longshore join-token, where the platform is, shows the command that joins")
    };
    if !home.identity_file().exists() {
        return Err(not_joined());
    }
    let text = std::fs::read(&path).map_err(|_| not_joined())?;
    serde_json::from_slice(&text).or_fail(Kind::Other, format!("cannot read {}", path.display()))
}

fn plan(
    options: &StartOptions,
    home: &Home,
    membership: &Membership,
    gate: Listener,
) -> Result<RolePlan, Failure> {
    let endpoint = gate.endpoint().or_fail(Kind::Other, "cannot tell the address of the gate")?;
    let advertised = match &options.gate_advertise {
        Some(advertised) => advertised.clone(),
        None => advertised(&endpoint, &membership.location)?,
    };
    let flags = Flags::of_agent()
        .with("name", &membership.node)
        .with("agent", home.agent())
        .with("data-dir", home.role_dir("node").display())
        .with("run-dir", home.run_dir().display())
        .with("gate-listen", &endpoint)
        .with("gate-advertise", advertised)
        .with("location", Endpoint::Tls(membership.location.clone()))
        .with("identity-file", home.identity_file().display())
        .with("instance-pool", options.instance_pool)
        .with("cpu-overcommit", &options.cpu_overcommit);
    let path = |path: &Option<PathBuf>| path.as_deref().map(|path| path.display().to_string());
    let given = [
        ("cgroup-parent", options.cgroup_parent.clone()),
        ("runc", path(&options.runc)),
        ("crun", path(&options.crun)),
        ("runsc", path(&options.runsc)),
        ("metrics-listen", options.metrics_listen.as_ref().map(ToString::to_string)),
    ];
    let given = given.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let flags = given.fold(flags, |flags, (name, value)| flags.with(name, value));
    let drain = if options.stop_instances { DRAIN_INSTANCES } else { DRAIN };
    Ok(RolePlan { role: "node", args: flags.into_args(), sockets: vec![("gate", gate)], drain })
}

/// The address by which this machine reaches the location, with the port of the gate.
fn advertised(gate: &Endpoint, location: &str) -> Result<String, Failure> {
    let listens: Option<SocketAddr> = gate.authority().parse().ok();
    let port = listens.map_or(0, |address| address.port());
    if let Some(address) = listens.filter(|address| !address.ip().is_unspecified()) {
        return Ok(address.to_string());
    }
    // Connecting a socket of datagrams sends nothing; it only chooses the way.
    let way = UdpSocket::bind("0.0.0.0:0")
        .and_then(|socket| socket.connect(location).map(|()| socket))
        .or_else(|_| UdpSocket::bind("[::]:0").and_then(|s| s.connect(location).map(|()| s)))
        .and_then(|socket| socket.local_addr());
    let way = way.or_fail(Kind::Other, format!("there is no way to {location}"))?;
    Ok(SocketAddr::new(way.ip(), port).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_is_reached_where_it_listens_or_by_the_way_to_the_location() {
        let gate = |text: &str| Endpoint::Tls(text.to_owned());
        assert_eq!(advertised(&gate("192.0.2.7:4603"), "127.0.0.1:1").unwrap(), "192.0.2.7:4603");
        assert_eq!(advertised(&gate("0.0.0.0:4603"), "127.0.0.1:1").unwrap(), "127.0.0.1:4603");
    }
}
