//! This machine as a location: its scheduler, its ingress, and its first node.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use longshore_link::{Endpoint, Listener};
use longshore_store::RedbStore;
use longshore_trust::{JoinAs, JoinToken};
use longshore_types::{Coordinates, LocationName, MirrorSize, NodeName};
use serde::{Deserialize, Serialize};

use super::super::child::RolePlan;
use super::super::home::{Contents, Home};
use super::super::plan::Flags;
use super::super::tls::IngressTls;
use super::{DRAIN, MachineOptions, Member, Planned};
use crate::failure::{Failure, Kind, OrFail};
use crate::said::SaidOptions;

/// Join the platform as a new location with this machine as its first node, and run until told to end
///
/// The token comes from `longshore join-token --role location` and is good once. From then on this machine is
/// started by `longshore location start`. More machines join it as nodes.
///
/// With a token that was made with --recover it takes the place of the location that there is: have that one's
/// nodes look for it here first (`longshore node start --location-at`), for what does not hand over what it runs
/// within 15 s is taken for lost, and started anew.
#[derive(Debug, Clone, clap::Args)]
pub struct LocationJoinOptions {
    /// The token that `longshore join-token` showed
    token: JoinToken,
    /// What this machine is to be called as a node [default: its host name]
    #[arg(long, value_name = "NAME")]
    node: Option<NodeName>,
    #[command(flatten)]
    start: LocationStartOptions,
}

/// Run this machine as the location that it joined as
///
/// Cut off from the control plane it goes on. Instances go on when this ends, and are taken over when it is
/// started again.
#[derive(Debug, Clone, clap::Args)]
pub struct LocationStartOptions {
    /// Where on Earth it is, in degrees, for maps: 52.37,4.90; south and west are negative
    #[arg(long, value_name = "LATITUDE,LONGITUDE", allow_hyphen_values = true)]
    coordinates: Option<Coordinates>,
    #[command(flatten)]
    said: SaidOptions,
    /// Where the control plane and nodes of other machines call, with certificates on both sides
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:4602")]
    nodes_listen: SocketAddr,
    /// The host and port by which they reach that [default: the address by which this machine reaches the
    /// control plane]
    #[arg(long, value_name = "HOST:PORT")]
    nodes_advertise: Option<String>,
    /// Where ingresses of other locations pass requests on to, with certificates on both sides
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:4606")]
    peers_listen: SocketAddr,
    /// The host and port by which they reach that [default: the address by which this machine reaches the
    /// control plane]
    #[arg(long, value_name = "HOST:PORT")]
    peers_advertise: Option<String>,
    /// Where requests to apps come in
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    ingress_listen: SocketAddr,
    /// Take them by TLS too: the directory of the certificates, pairs of NAME.pem and NAME.key or directories
    /// with fullchain.pem and privkey.pem; each is shown to who asks for one of its names
    #[arg(long, value_name = "DIR")]
    ingress_tls: Option<PathBuf>,
    /// Where those come in
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "127.0.0.1:8443",
        requires = "ingress_tls"
    )]
    ingress_tls_listen: SocketAddr,
    /// Send who comes in the clear for a host with a certificate there
    #[arg(long, requires = "ingress_tls")]
    ingress_redirect: bool,
    /// How much of the disk images may take that are kept here for all nodes of the location, so that each comes
    /// once and is there while the control plane is away: a size, a percentage of the disk, or 0 for none
    #[arg(long, value_name = "SIZE", default_value_t)]
    image_mirror: MirrorSize,
    #[command(flatten)]
    machine: MachineOptions,
}

/// Where this machine joined, and as whom.
#[derive(Debug, Serialize, Deserialize)]
struct Membership {
    location: LocationName,
    node: NodeName,
    /// `host:port` of the control plane.
    global: String,
}

/// The location, and with what it joins first.
struct Location<'a> {
    options: &'a LocationStartOptions,
    joins: Option<Joining>,
}

/// A token, what for, and what this machine is to be called.
type Joining = (JoinToken, LocationName, Option<NodeName>);

/// Joins and runs the location.
pub fn join(options: LocationJoinOptions) -> Result<(), Failure> {
    let LocationJoinOptions { token, node, start } = options;
    let JoinAs::Location(location) = token.joins.clone() else {
        return Err(super::another(&token, "a location"));
    };
    let joins = Some((token, location, node));
    super::run(&start.machine.home, Location { options: &start, joins })
}

/// Runs the location that this machine joined as.
pub fn start(options: LocationStartOptions) -> Result<(), Failure> {
    super::run(&options.machine.home, Location { options: &options, joins: None })
}

impl Member for Location<'_> {
    const ROLE: &'static str = "location";
    const CONTENTS: Contents = Contents::Location;
    const RUNS_INSTANCES: bool = true;

    fn stops_instances(&self) -> bool {
        self.options.machine.stop_instances
    }

    fn roles(self, home: &Home) -> Result<Planned, Failure> {
        // Before a token is used for nothing.
        if let Some(problem) = self.options.tls().problem() {
            return Err(Failure::of_flags([problem]));
        }
        let sockets = Sockets::bind(self.options, home)?;
        if let Some((token, location, node)) = self.joins {
            join_as(home, &token, (location, super::named(node)))?;
        }
        let proof = home.authority_file();
        let membership: Membership = super::membership(home, proof, "a location")?;
        let what = format!("location {} runs for {}", membership.location, membership.global);
        let waves = plan(self.options, home, &membership, sockets)?;
        Ok(Planned { waves, what, tls: None })
    }
}

fn join_as(
    home: &Home,
    token: &JoinToken,
    (joins, node): (LocationName, NodeName),
) -> Result<(), Failure> {
    let proof = home.authority_file();
    if super::is_member(&proof)? {
        let Membership { location, global, .. } = super::membership(home, proof, "a location")?;
        // The same machine may be what it was before, without what it knew.
        if !token.recovers || joins != location {
            return Err(super::joined_already(&format!("location {location} of {global}")));
        }
    }
    super::keep_membership(
        home,
        &Membership { location: joins.clone(), node, global: token.address.clone() },
    )?;
    let dir = home.role_dir("location");
    super::block_on(longshore_location::join(token, joins.clone(), &dir))?
        .map_err(|error| super::refused(error, token))?;
    tracing::info!("joined as location {joins}");
    if token.recovers {
        set_store_aside(&home.role_dir("location"))?;
    }
    Ok(())
}

/// Puts a store of an earlier life where nobody takes it for the location's, should this machine have been that
/// before.
fn set_store_aside(dir: &Path) -> Result<(), Failure> {
    let store = dir.join("store.redb");
    let aside = store.with_extension(format!("before-{}", longshore_link::now().0));
    // The journal first: a store that is left without its journal is refused, a journal without its store is not.
    for (from, to) in RedbStore::files(&store).iter().zip(RedbStore::files(&aside)).rev() {
        match std::fs::rename(from, &to) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Ok(()) => tracing::info!(path = %to.display(), "a store of an earlier life is there"),
            outcome => {
                outcome.or_fail(Kind::Other, format!("cannot move {} away", from.display()))?
            }
        }
    }
    Ok(())
}

/// The sockets of its roles.
struct Sockets {
    nodes: Listener,
    peers: Listener,
    ingress: Listener,
    ingress_tls: Option<Listener>,
    link: Listener,
    gate: Listener,
}

impl Sockets {
    fn bind(options: &LocationStartOptions, home: &Home) -> Result<Self, Failure> {
        let bind = |name: &str, endpoint: Endpoint| {
            Listener::bind(name, &endpoint).or_fail(Kind::Other, "cannot begin")
        };
        let secure = options.ingress_tls.as_ref().map(|_| options.ingress_tls_listen.to_string());
        let secure = secure.map(|at| bind("ingress-tls", Endpoint::Tls(at))).transpose()?;
        let own = |name: &str| Endpoint::Unix(home.links_dir().join(name));
        Ok(Self {
            nodes: bind("nodes", Endpoint::Tls(options.nodes_listen.to_string()))?,
            peers: bind("peers", Endpoint::Tls(options.peers_listen.to_string()))?,
            ingress: bind("ingress", Endpoint::Tcp(options.ingress_listen.to_string()))?,
            ingress_tls: secure,
            link: bind("location", own("location.sock"))?,
            gate: bind("gate", own("gate.sock"))?,
        })
    }
}

impl LocationStartOptions {
    fn tls(&self) -> IngressTls {
        let (dir, listen) = (self.ingress_tls.clone(), self.ingress_tls_listen);
        IngressTls { dir, listen, redirects: self.ingress_redirect }
    }
}

fn plan(
    options: &LocationStartOptions,
    home: &Home,
    membership: &Membership,
    sockets: Sockets,
) -> Result<Vec<Vec<RolePlan>>, Failure> {
    let Sockets { nodes, peers, ingress, ingress_tls, link, gate } = sockets;
    let at = |socket: &Listener| socket.endpoint().or_fail(Kind::Other, "cannot tell an address");
    let advertised = |given: &Option<String>, socket: &Listener| match given {
        Some(advertised) => Ok(advertised.clone()),
        None => super::advertised(&at(socket)?, &membership.global),
    };
    let link_at = at(&link)?;
    let location = Flags::below("run")
        .with("name", &membership.location)
        .with("own-node", &membership.node)
        .with("data-dir", home.role_dir("location").display())
        .with("listen", &link_at)
        .with("global", Endpoint::Tls(membership.global.clone()))
        .with("nodes-listen", at(&nodes)?)
        .with("nodes-advertise", advertised(&options.nodes_advertise, &nodes)?)
        .with("peers-advertise", advertised(&options.peers_advertise, &peers)?)
        .with("image-mirror", options.image_mirror);
    let location = match options.coordinates {
        Some(place) => location.with("coordinates", place),
        None => location,
    };
    let location = location.with_traits(&options.said.traits());
    let routing = Flags::new()
        .with("data-dir", home.role_dir("ingress").display())
        .with("listen", at(&ingress)?)
        .with("peers-listen", at(&peers)?)
        .with("location", &link_at);
    let mut of_ingress = vec![("ingress", ingress), ("peers", peers)];
    let routing = match ingress_tls {
        Some(listener) => {
            let routing = routing.with_ingress_tls(&options.tls(), &listener);
            of_ingress.push(("ingress-tls", listener));
            routing
        }
        None => routing,
    };
    let node = super::agent_flags(&options.machine, home, &membership.node)
        .with("gate-listen", at(&gate)?)
        .with("location", &link_at);
    let role = |role, flags: Flags, sockets, drain| {
        vec![RolePlan { role, args: flags.into_args(), sockets, drain }]
    };
    Ok(vec![
        role("ingress", routing, of_ingress, DRAIN),
        role("location", location, vec![("link", link), ("nodes", nodes)], DRAIN),
        role("node", node, vec![("gate", gate)], super::node_drain(&options.machine)),
    ])
}
