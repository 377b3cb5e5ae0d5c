//! `longshore global`

use std::num::NonZeroU32;
use std::path::PathBuf;

use longshore_global::StoreChoice;
use longshore_link::Endpoint;
use longshore_types::HostName;

use super::{MetricsOptions, Threads, listener};
use crate::failure::Failure;

/// Run the global control plane alone: the API and the choice of locations
///
/// `up` starts it with the other roles; this is for running the roles apart.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The directory of its own files, the embedded store among them
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Where the state is: embedded, or etcd as http://HOST:PORT[,http://HOST:PORT ...][/PREFIX]
    #[arg(long, value_name = "STORE", default_value = "embedded")]
    store: StoreChoice,
    /// Where the API listens
    #[arg(long, value_name = "ENDPOINT", default_value = "http://127.0.0.1:4600")]
    api_listen: Endpoint,
    /// Where it listens for locations and the registry
    #[arg(long, value_name = "ENDPOINT")]
    link_listen: Endpoint,
    /// Where the registry is
    #[arg(long, value_name = "ENDPOINT", default_value = "http://127.0.0.1:4601")]
    registry: Endpoint,
    /// The registry as users name it
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:4601")]
    registry_public: String,
    /// The ingress as users reach it
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8080")]
    ingress_public: String,
    /// Below this name every app gets a host name
    #[arg(long, value_name = "NAME", default_value = "localhost")]
    domain: HostName,
    /// The file with the token that may do everything
    #[arg(long, value_name = "FILE")]
    admin_token_file: PathBuf,
    /// The file with the token by which the platform's own parts pull images
    #[arg(long, value_name = "FILE")]
    system_token_file: PathBuf,
    /// The file with the keys that seal secrets; made when it is missing. Keep a copy, apart from those
    /// of the store
    #[arg(long, value_name = "FILE")]
    secret_keys_file: PathBuf,
    /// The file with the root of all certificates; made when it is missing. Whoever has it can be anyone
    #[arg(long, value_name = "FILE")]
    root_file: PathBuf,
    /// How many requests to the API each token may send in a second; five times as many at once
    #[arg(long, value_name = "COUNT", default_value = "100")]
    api_rate: NonZeroU32,
    #[command(flatten)]
    metrics: MetricsOptions,
}

/// Runs the role.
pub fn run(options: Options) -> Result<(), Failure> {
    let api = listener("api", &options.api_listen)?;
    let link = listener("link", &options.link_listen)?;
    let metrics = options.metrics.listener()?;
    let dir = options.data_dir.clone();
    super::run("global", &dir, Threads::Few, |shutdown| {
        let options = longshore_global::Options {
            data_dir: options.data_dir,
            store: options.store,
            api,
            link,
            registry: options.registry,
            registry_public: options.registry_public,
            ingress_public: options.ingress_public,
            domain: options.domain.to_string(),
            admin_token_file: options.admin_token_file,
            system_token_file: options.system_token_file,
            secret_keys_file: options.secret_keys_file,
            root_file: options.root_file,
            api_rate: options.api_rate,
            metrics,
        };
        longshore_global::run(options, shutdown)
    })
}
