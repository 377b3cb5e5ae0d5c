//! `longshore location`

use std::path::PathBuf;

use longshore_link::Endpoint;
use longshore_types::{Coordinates, LocationName};

use super::{MetricsOptions, Threads, listener};
use crate::failure::Failure;

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
    /// Where the global control plane listens for locations
    #[arg(long, value_name = "ENDPOINT")]
    global: Endpoint,
    #[command(flatten)]
    metrics: MetricsOptions,
}

/// Runs the role.
pub fn run(options: Options) -> Result<(), Failure> {
    let link = listener("link", &options.listen)?;
    let metrics = options.metrics.listener()?;
    let dir = options.data_dir.clone();
    super::run("location", &dir, Threads::Few, |shutdown| {
        let options = longshore_location::Options {
            name: options.name,
            coordinates: options.coordinates,
            data_dir: options.data_dir,
            link,
            global: options.global,
            metrics,
        };
        longshore_location::run(options, shutdown)
    })
}
