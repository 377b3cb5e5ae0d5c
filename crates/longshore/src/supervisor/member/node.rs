//! This machine as a node of a location.

use std::net::SocketAddr;

use longshore_link::{Endpoint, Listener};
use longshore_trust::{JoinAs, JoinToken};
use longshore_types::{LocationName, NodeName};
use serde::{Deserialize, Serialize};

use super::super::child::RolePlan;
use super::super::home::{Contents, Home};
use super::{MachineOptions, Member, Planned};
use crate::failure::{Failure, Kind, OrFail};
use crate::said::SaidOptions;

/// Join a location as one of its nodes, and run until told to end
///
/// The token comes from `longshore join-token` and is good once. From then on this machine is started by
/// `longshore node start`. Only its gate is listened on, and only the location gets an answer there.
#[derive(Debug, Clone, clap::Args)]
pub struct NodeJoinOptions {
    /// The token that `longshore join-token` showed
    token: JoinToken,
    /// What this machine is to be called [default: its host name]
    #[arg(long, value_name = "NAME")]
    name: Option<NodeName>,
    #[command(flatten)]
    start: NodeStartOptions,
}

/// Run this machine as the node that it joined as
///
/// Its instances go on when this ends, and are taken over when it is started again.
#[derive(Debug, Clone, clap::Args)]
pub struct NodeStartOptions {
    /// The host and port at which the location is reached from now on, when that has moved to another machine
    /// [default: where it joined, or what was last given here]
    #[arg(long, value_name = "HOST:PORT")]
    location_at: Option<String>,
    /// Where the location reaches the instances of this node, and nobody else gets an answer
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:4603")]
    gate_listen: SocketAddr,
    /// The host and port by which the location reaches that [default: the address by which this machine
    /// reaches the location]
    #[arg(long, value_name = "HOST:PORT")]
    gate_advertise: Option<String>,
    /// Where Prometheus asks for the metrics of the node [default: nowhere]
    #[arg(long, value_name = "ENDPOINT")]
    metrics_listen: Option<Endpoint>,
    #[command(flatten)]
    said: SaidOptions,
    #[command(flatten)]
    machine: MachineOptions,
}

/// Where this machine joined, and as whom.
#[derive(Debug, Serialize, Deserialize)]
struct Membership {
    node: NodeName,
    /// `host:port` of the location.
    location: String,
}

/// The node, and with what it joins first.
struct Node<'a> {
    options: &'a NodeStartOptions,
    joins: Option<Joining>,
}

/// A token, what for, and what this machine is to be called.
type Joining = (JoinToken, LocationName, Option<NodeName>);

/// Joins and runs the node.
pub fn join(options: NodeJoinOptions) -> Result<(), Failure> {
    let NodeJoinOptions { token, name, start } = options;
    let JoinAs::Node(location) = token.joins.clone() else {
        return Err(super::another(&token, "a node"));
    };
    let joins = Some((token, location, name));
    super::run(&start.machine.home, Node { options: &start, joins })
}

/// Runs the node that this machine joined as.
pub fn start(options: NodeStartOptions) -> Result<(), Failure> {
    super::run(&options.machine.home, Node { options: &options, joins: None })
}

impl Member for Node<'_> {
    const ROLE: &'static str = "node";
    const CONTENTS: Contents = Contents::Node;
    const RUNS_INSTANCES: bool = true;

    fn stops_instances(&self) -> bool {
        self.options.machine.stop_instances
    }

    fn roles(self, home: &Home) -> Result<Planned, Failure> {
        // Before a token is used for nothing.
        let listen = Endpoint::Tls(self.options.gate_listen.to_string());
        let gate = Listener::bind("gate", &listen).or_fail(Kind::Other, "cannot begin")?;
        if let Some((token, location, name)) = self.joins {
            join_as(home, &token, (location, super::named(name)))?;
        }
        let mut membership: Membership = super::membership(home, home.identity_file(), "a node")?;
        if let Some(location) = &self.options.location_at {
            membership.location = location_at(location)?;
            super::keep_membership(home, &membership)?;
        }
        let what = format!("node {} runs for {}", membership.node, membership.location);
        let waves = vec![vec![plan(self.options, home, &membership, gate)?]];
        Ok(Planned { waves, what, tls: None })
    }
}

fn join_as(
    home: &Home,
    token: &JoinToken,
    (location, node): (LocationName, NodeName),
) -> Result<(), Failure> {
    let file = home.identity_file();
    if super::is_member(&file)? {
        let Membership { node, location } = super::membership(home, file, "a node")?;
        return Err(super::joined_already(&format!("node {node} of {location}")));
    }
    super::keep_membership(
        home,
        &Membership { node: node.clone(), location: token.address.clone() },
    )?;
    super::block_on(longshore_node::join(token, (location.clone(), node.clone()), &file))?
        .map_err(|error| super::refused(error, token))?;
    tracing::info!("joined location {location} as node {node}");
    Ok(())
}

/// An address as it was given, when it can be one.
fn location_at(text: &str) -> Result<String, Failure> {
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port != 0);
    let has_port = text.rsplit_once(':').is_some_and(|(_, port)| is_port(port));
    if has_port && format!("https://{text}").parse::<Endpoint>().is_ok() {
        return Ok(text.to_owned());
    }
    Err(Failure::new(Kind::Usage, format!("--location-at {text} is not allowed"))
        .hint("it is a host and a port, such as 192.0.2.7:4602 or ams.example.com:4602"))
}

fn plan(
    options: &NodeStartOptions,
    home: &Home,
    membership: &Membership,
    gate: Listener,
) -> Result<RolePlan, Failure> {
    let endpoint = gate.endpoint().or_fail(Kind::Other, "cannot tell the address of the gate")?;
    let advertised = match &options.gate_advertise {
        Some(advertised) => advertised.clone(),
        None => super::advertised(&endpoint, &membership.location)?,
    };
    let flags = super::agent_flags(&options.machine, home, &membership.node)
        .with("gate-listen", &endpoint)
        .with("gate-advertise", advertised)
        .with("location", Endpoint::Tls(membership.location.clone()))
        .with("identity-file", home.identity_file().display())
        .with_traits(&options.said.traits());
    let flags = match &options.metrics_listen {
        Some(endpoint) => flags.with("metrics-listen", endpoint),
        None => flags,
    };
    let drain = super::node_drain(&options.machine);
    Ok(RolePlan { role: "node", args: flags.into_args(), sockets: vec![("gate", gate)], drain })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_at_a_host_and_a_port() {
        for good in ["192.0.2.7:4602", "ams.example.com:4602", "[2001:db8::7]:4602"] {
            assert_eq!(location_at(good).unwrap(), good);
        }
        for bad in ["", "ams", "ams:", ":4602", "ams:0", "ams:65536", "https://ams:4602", "a b:1"] {
            let failure = location_at(bad).unwrap_err();
            assert!(failure.message.contains(bad) && failure.hint.is_some(), "{failure}");
        }
    }
}
