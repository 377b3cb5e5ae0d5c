//! `longshore registry`

mod elsewhere;
mod table;

use std::path::PathBuf;
use std::sync::Arc;

use longshore_link::{Endpoint, Endpoints, Followed, Listener, Service, ServiceError};
use longshore_registry::{OpenRegistryError, Registry, RegistryOptions};
use tokio_util::sync::CancellationToken;

use super::{MetricsOptions, Threads, listener};
use crate::failure::Failure;
use table::{FollowTableError, FollowedTable};

/// Run the registry of images alone
///
/// `up` starts it with the other roles; this is for running the roles apart. It keeps the tokens
/// that it last knew, so it serves on while the global control plane is away.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The directory of its images
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Where it listens
    #[arg(long, value_name = "ENDPOINT", default_value = "http://127.0.0.1:4601")]
    listen: Endpoint,
    /// Where the global control plane listens, which knows the tokens; several, of which one leads, as
    /// ENDPOINT,ENDPOINT
    #[arg(long, value_name = "ENDPOINTS")]
    global: Endpoints,
    /// Where locations of other machines have images, as https://HOST:PORT [default: nowhere]
    #[arg(long, value_name = "ENDPOINT")]
    locations_listen: Option<Endpoint>,
    #[command(flatten)]
    metrics: MetricsOptions,
}

/// Runs the role.
pub fn run(options: Options) -> Result<(), Failure> {
    let listener = listener("registry", &options.listen)?;
    let metrics = options.metrics.listener()?;
    let locations = super::locations_listener(options.locations_listen.as_ref())?;
    let dir = options.data_dir.clone();
    super::run("registry", &dir, Threads::PerCore, |shutdown| {
        serve(options, (listener, locations, metrics), shutdown)
    })
}

/// Why the registry ended.
#[derive(Debug, thiserror::Error)]
enum RegistryRoleError {
    #[error(transparent)]
    Open(#[from] OpenRegistryError),
    #[error(transparent)]
    Table(#[from] FollowTableError),
    #[error(transparent)]
    Service(#[from] ServiceError),
}

async fn serve(
    options: Options,
    (listener, locations, metrics_listener): (Listener, Option<Listener>, Option<Listener>),
    shutdown: CancellationToken,
) -> Result<(), RegistryRoleError> {
    let table = FollowedTable::open(options.data_dir.join("tokens.json"))?;
    let authorizer = Arc::new(table.tokens());
    let images = options.data_dir.join("images");
    let pins = table.pins();
    let registry = RegistryOptions { pins, ..RegistryOptions::new(images, authorizer) };
    let registry = Arc::new(Registry::open(registry)?);

    let service = Service::new(shutdown);
    let global = Followed::new(options.global);
    service.spawn_until_shutdown("table", table.follow(global.clone()));
    let maintained = Arc::clone(&registry);
    service.spawn_until_shutdown("maintenance", async move { maintained.maintain().await });
    let metrics = longshore_registry::Metrics::default();
    if let Some(listener) = metrics_listener {
        let mut told = longshore_registry::metrics_registry();
        metrics.register(&mut told);
        longshore_telemetry::metrics::serve(told, listener, &service);
    }
    let router = metrics.measure(longshore_registry::router(registry));
    if let Some(locations) = locations {
        let file = options.data_dir.join("identity.json");
        let served = elsewhere::serve(locations, router.clone(), global, file, service.clone());
        service.spawn_until_shutdown("certificate", served);
    }
    service.spawn("listener", listener.serve(router, service.shutdown()));
    Ok(service.run().await?)
}
