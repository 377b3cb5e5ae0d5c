//! `longshore location`

use std::path::PathBuf;

use longshore_link::{Endpoint, Endpoints};
use longshore_location::{ImageOrigin, Joining, JoiningOptions, Membership};
use longshore_types::{Coordinates, LocationName, MirrorSize, NodeName};

use super::{MetricsOptions, Threads, listener};
use crate::failure::{Failure, Kind};
use crate::said::SaidOptions;
use crate::supervisor;

/// Join as a location, start what joined, or run the scheduler of one alone
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Verb {
    Join(Box<supervisor::LocationJoinOptions>),
    Start(Box<supervisor::LocationStartOptions>),
    Run(Box<SchedulerOptions>),
}

/// Run the scheduler of one location alone: the choice of nodes
///
/// `up`, `location join` and `location start` start it; this is for running the roles apart.
#[derive(Debug, Clone, clap::Args)]
struct SchedulerOptions {
    /// The name of the location
    #[arg(long, value_name = "NAME")]
    name: LocationName,
    /// Where on Earth it is, in degrees, for maps: 52.37,4.90; south and west are negative
    #[arg(long, value_name = "LATITUDE,LONGITUDE", allow_hyphen_values = true)]
    coordinates: Option<Coordinates>,
    #[command(flatten)]
    said: SaidOptions,
    /// The directory of its store
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// The only node of this machine: should the store be lost, the location waits for it before it decides
    /// anything [default: not known, and so it waits for 15 s]
    #[arg(long, value_name = "NAME")]
    own_node: Option<NodeName>,
    /// Where it listens for nodes, ingresses and the global control plane
    #[arg(long, value_name = "ENDPOINT")]
    listen: Endpoint,
    /// Where the global control plane listens for locations; several, of which one leads, as
    /// ENDPOINT,ENDPOINT
    #[arg(long, value_name = "ENDPOINTS")]
    global: Endpoints,
    /// Where nodes of other machines join and call, as https://HOST:PORT [default: nowhere]
    #[arg(long, value_name = "ENDPOINT", requires = "nodes_advertise")]
    nodes_listen: Option<Endpoint>,
    /// The host and port by which they reach that
    #[arg(long, value_name = "HOST:PORT")]
    nodes_advertise: Option<String>,
    /// The host and port by which nodes of other machines reach an ingress of this location, to keep connections
    /// open to it [default: what --peers-advertise says]
    #[arg(long, value_name = "HOST:PORT", requires = "nodes_listen")]
    ingress_advertise: Option<String>,
    /// The host and port by which ingresses of other locations pass requests on to one of this location's
    /// [default: none of them does]
    #[arg(long, value_name = "HOST:PORT")]
    peers_advertise: Option<String>,
    /// Where the registry is, from which they have images through this location [default: where the global
    /// control plane says]
    #[arg(long, value_name = "ENDPOINT", requires = "registry_token_file")]
    registry: Option<Endpoint>,
    /// The file with the token for that
    #[arg(long, value_name = "FILE")]
    registry_token_file: Option<PathBuf>,
    /// How much of the disk images may take that are kept for the nodes of this location: a size, a percentage of
    /// the disk, or 0 for none; nothing is kept of a --registry, which is on this machine
    #[arg(long, value_name = "SIZE", default_value_t)]
    image_mirror: MirrorSize,
    #[command(flatten)]
    metrics: MetricsOptions,
}

/// Joins, or runs the role.
pub fn run(options: Options) -> Result<(), Failure> {
    match options.verb {
        Verb::Join(options) => supervisor::join_location(*options),
        Verb::Start(options) => supervisor::start_location(*options),
        Verb::Run(options) => run_scheduler(*options),
    }
}

fn run_scheduler(options: SchedulerOptions) -> Result<(), Failure> {
    // One on this machine is called by a socket; one elsewhere shows who it is.
    let membership = match &options.global.first {
        Endpoint::Tls(_) => Membership::Joined,
        Endpoint::Unix(_) | Endpoint::Tcp(_) => Membership::Local,
    };
    let link = listener("link", &options.listen)?;
    let metrics = options.metrics.listener()?;
    let joining = joining(&options)?;
    let images = images(&options);
    let mirror = match images {
        // It would lie on the same disk twice.
        ImageOrigin::Registry { .. } => MirrorSize::NONE,
        ImageOrigin::Elsewhere => options.image_mirror,
    };
    let dir = options.data_dir.clone();
    super::run("location", &dir, Threads::Few, |shutdown| {
        let options = longshore_location::Options {
            name: options.name,
            coordinates: options.coordinates,
            traits: options.said.traits(),
            data_dir: options.data_dir,
            link,
            global: options.global,
            membership,
            own_node: options.own_node,
            joining,
            images,
            mirror,
            peers_advertised: options.peers_advertise,
            metrics,
        };
        longshore_location::run(options, shutdown)
    })
}

/// How nodes of other machines join, where they may.
fn joining(options: &SchedulerOptions) -> Result<Option<JoiningOptions>, Failure> {
    let (Some(listen), Some(advertised)) = (&options.nodes_listen, &options.nodes_advertise) else {
        return Ok(None);
    };
    if !matches!(listen, Endpoint::Tls(_)) {
        let message = format!("--nodes-listen {listen} is not allowed");
        return Err(Failure::new(Kind::Usage, message)
            .hint("what others reach speaks TLS: https://HOST:PORT"));
    }
    let listener = listener("nodes", listen)?;
    let joining = Joining { listener, advertised: advertised.clone() };
    let ingress = options.ingress_advertise.clone().or_else(|| options.peers_advertise.clone());
    Ok(Some(JoiningOptions { joining, ingress }))
}

/// From where nodes have images that do not reach the registry themselves.
fn images(options: &SchedulerOptions) -> ImageOrigin {
    match (&options.registry, &options.registry_token_file) {
        (Some(registry), Some(token_file)) => {
            ImageOrigin::Registry { registry: registry.clone(), token_file: token_file.clone() }
        }
        _ => ImageOrigin::Elsewhere,
    }
}
