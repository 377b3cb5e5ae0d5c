//! `longshore ingress`

use std::path::PathBuf;

use longshore_link::Endpoint;

use super::{MetricsOptions, Threads, listener};
use crate::failure::{Failure, Kind};

/// Run an ingress alone: requests from users to instances
///
/// `up` starts it with the other roles; this is for running the roles apart.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The directory of the routes it last knew
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Where requests come in
    #[arg(long, value_name = "ENDPOINT", default_value = "http://127.0.0.1:8080")]
    listen: Endpoint,
    /// Where ingresses of other locations pass requests on to, as https://HOST:PORT [default: nowhere]
    #[arg(long, value_name = "ENDPOINT")]
    peers_listen: Option<Endpoint>,
    /// Where its location listens
    #[arg(long, value_name = "ENDPOINT")]
    location: Endpoint,
    #[command(flatten)]
    metrics: MetricsOptions,
}

/// Runs the role.
pub fn run(options: Options) -> Result<(), Failure> {
    let listener = listener("ingress", &options.listen)?;
    let metrics = options.metrics.listener()?;
    let peers = options.peers_listen.as_ref().map(|endpoint| match endpoint {
        Endpoint::Tls(_) => super::listener("peers", endpoint),
        other => Err(Failure::new(Kind::Usage, format!("--peers-listen {other} is not allowed"))
            .hint("what others reach speaks TLS: https://HOST:PORT")),
    });
    let peers = peers.transpose()?;
    let dir = options.data_dir.clone();
    super::run("ingress", &dir, Threads::PerCore, |shutdown| {
        let options = longshore_ingress::IngressOptions {
            listener,
            peers,
            location: options.location,
            state_dir: options.data_dir,
            metrics,
        };
        longshore_ingress::run(options, shutdown)
    })
}
