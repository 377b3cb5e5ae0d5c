//! A location: its scheduler, its links to nodes and ingresses, its gate for logs and exec.
//!
//! One task, the [`keeper`], owns the state: it takes over what comes in (allotments, reports,
//! acknowledgements, orders), plans, writes what changed to the location's own store, and only
//! then publishes it to nodes, ingresses and the global plane. A location goes on with what it has
//! when the global plane is away, and after a restart with what it stored.
//!
//! - `keeper`: the one owner of the state. `state`: that state and its transitions, without I/O.
//! - `records`: what is stored. `secrets`: those of its instances. `uplink`: the link to the global plane.
//! - `server`: what nodes, ingresses and the global plane call.

mod keeper;
mod metrics;
mod records;
mod secrets;
mod server;
mod state;
mod uplink;

use std::path::PathBuf;
use std::sync::Arc;

use longshore_link::{Client, Endpoint, Listener, Service, ServiceError};
use longshore_secrets::KeyringError;
use longshore_store::{Measured, OpenStoreError, RecordError, RedbStore, Store, StoreError};
use longshore_telemetry::traces::Tracer;
use longshore_types::{Coordinates, LocationName};
use tokio_util::sync::CancellationToken;

use keeper::Keeper;
use metrics::{Metrics, Told, Watched};
use secrets::Secrets;

pub use metrics::described as described_metrics;

/// What a location needs.
#[derive(Debug)]
pub struct Options {
    /// Its name.
    pub name: LocationName,
    /// Where on Earth it is, for those who look at it on a map.
    pub coordinates: Option<Coordinates>,
    /// Where its store lies.
    pub data_dir: PathBuf,
    /// Where nodes, ingresses and the global plane call.
    pub link: Listener,
    /// Where the global plane is.
    pub global: Endpoint,
    /// Where its metrics are asked for, if anywhere.
    pub metrics: Option<Listener>,
}

/// Why a location ended.
#[derive(Debug, thiserror::Error)]
pub enum LocationError {
    /// The data directory cannot be made.
    #[error("cannot make the data directory {path}")]
    DataDir {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The store cannot be opened.
    #[error("cannot open the location's store")]
    OpenStore(#[from] OpenStoreError),
    /// The keys of the secrets cannot be used.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    /// The store cannot be used.
    #[error("the location's store failed")]
    Store(#[from] StoreError),
    /// A stored record cannot be understood.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The link cannot be named.
    #[error("cannot tell on which address the location listens")]
    Listen(#[source] std::io::Error),
    /// A task of the service failed.
    #[error(transparent)]
    Service(#[from] ServiceError),
}

/// Runs a location until `shutdown`.
pub async fn run(options: Options, shutdown: CancellationToken) -> Result<(), LocationError> {
    let path = options.data_dir.clone();
    std::fs::create_dir_all(&path).map_err(|source| LocationError::DataDir { path, source })?;
    let metrics = Metrics::default();
    let file = options.data_dir.join("store.redb");
    let store = Arc::new(Measured::new(RedbStore::open(&file)?, metrics.store.clone()));
    let gate = options.link.endpoint().map_err(LocationError::Listen)?;

    let service = Service::new(shutdown);
    let global = Client::new(options.global);
    let (name, kept) = (options.name.clone(), Arc::clone(&store) as Arc<dyn Store>);
    let secrets = Secrets::open(global.clone(), name.clone(), kept, &options.data_dir)?;
    let secrets = Arc::new(secrets);
    let watched = Watched {
        rounds: metrics.rounds.clone(),
        tracer: Tracer::start("location", env!("CARGO_PKG_VERSION"), &service),
    };
    let keeper = Keeper::restore(name.clone(), gate, store, service.shutdown(), watched).await?;
    let (keeper, handle) = keeper;
    if let Some(listener) = options.metrics {
        let mut registry = metrics::registry();
        let told = Told { report: handle.report.clone(), routes: handle.routes.clone() };
        metrics.register(&mut registry, file, told);
        longshore_telemetry::metrics::serve(registry, listener, &service);
    }
    service.spawn("keeper", keeper.run());
    let receive = uplink::receive(global.clone(), name, handle.clone(), Arc::clone(&secrets));
    service.spawn_until_shutdown("allotments", receive);
    let place = (options.name, options.coordinates);
    service.spawn_until_shutdown("reports", uplink::report(global, place, handle.clone()));
    let router = server::router(handle, secrets, service.clone());
    service.spawn("link", options.link.serve(router, service.shutdown()));
    Ok(service.run().await?)
}
