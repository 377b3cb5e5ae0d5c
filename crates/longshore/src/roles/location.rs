//! `longshore location`

use std::path::PathBuf;

use longshore_link::{Endpoint, Endpoints};
use longshore_location::{Joining, JoiningOptions};
use longshore_types::{Coordinates, LocationName};

use super::{MetricsOptions, Threads, listener};
use crate::failure::{Failure, Kind};

/// Run the scheduler of one location alone: the choice of nodes
///
/// `up` starts it with the other roles; this is for running the roles apart.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The name of the location
    #[arg(long, value_name = "NAME")]
    name: LocationName,
    /// Where on Earth it is, in degrees, for maps: 52.37,4.90; south and west are negative
    #[arg(long, value_name = "LATITUDE,LONGITUDE", allow_hyphen_values = true)]
    coordinates: Option<Coordinates>,
    /// The directory of its store
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Where it listens for nodes, ingresses and the global control plane
    #[arg(long, value_name = "ENDPOINT")]
    listen: Endpoint,
    /// Where the global control plane listens for locations; several, of which one leads, as
    /// ENDPOINT,ENDPOINT
    #[arg(long, value_name = "ENDPOINTS")]
    global: Endpoints,
    /// Where nodes of other machines join and call, as https://HOST:PORT [default: nowhere]
    #[arg(long, value_name = "ENDPOINT", requires_all = ["nodes_advertise", "registry"])]
    nodes_listen: Option<Endpoint>,
    /// The host and port by which they reach that
    #[arg(long, value_name = "HOST:PORT")]
    nodes_advertise: Option<String>,
    /// Where the registry is, from which they have images through this location
    #[arg(long, value_name = "ENDPOINT", requires = "registry_token_file")]
    registry: Option<Endpoint>,
    /// The file with the token for that
    #[arg(long, value_name = "FILE")]
    registry_token_file: Option<PathBuf>,
    #[command(flatten)]
    metrics: MetricsOptions,
}

/// Runs the role.
pub fn run(options: Options) -> Result<(), Failure> {
    let link = listener("link", &options.listen)?;
    let metrics = options.metrics.listener()?;
    let joining = joining(&options)?;
    let dir = options.data_dir.clone();
    super::run("location", &dir, Threads::Few, |shutdown| {
        let options = longshore_location::Options {
            name: options.name,
            coordinates: options.coordinates,
            data_dir: options.data_dir,
            link,
            global: options.global,
            joining,
            metrics,
        };
        longshore_location::run(options, shutdown)
    })
}

/// How nodes of other machines join, where they may.
fn joining(options: &Options) -> Result<Option<JoiningOptions>, Failure> {
    let (Some(listen), Some(advertised), Some(registry), Some(registry_token_file)) = (
        &options.nodes_listen,
        &options.nodes_advertise,
        &options.registry,
        &options.registry_token_file,
    ) else {
        return Ok(None);
    };
    if !matches!(listen, Endpoint::Tls(_)) {
        let message = format!("--nodes-listen {listen} is not allowed");
        return Err(Failure::new(Kind::Usage, message)
            .hint("what others reach speaks TLS: https://HOST:PORT"));
    }
    let listener = listener("nodes", listen)?;
    let joining = Joining { listener, advertised: advertised.clone() };
    let (registry, registry_token_file) = (registry.clone(), registry_token_file.clone());
    Ok(Some(JoiningOptions { joining, registry, registry_token_file }))
}
