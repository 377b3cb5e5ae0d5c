//! The ingress: where requests from users come in and are passed to healthy instances.
//!
//! It routes by the whole [`RoutingTable`](longshore_api::links::RoutingTable) that its location
//! last gave it, and by nothing else: it probes nobody and decides nothing about health. The table
//! is kept on disk, so an ingress that is started while its location is away serves at once.
//!
//! - `router`: the table in force.
//! - `balance`: which endpoint gets a request, decided without effects: fewest requests first, slow
//!   start, outlier ejection.
//! - `upstream`: one endpoint as seen from here: requests in flight, idle connections, failures.
//! - `gate`: how an instance is dialled, through its node. `elsewhere`: other locations, for requests for which there
//!   is no instance here. `relay`: passing bytes between two others, of which one cannot be dialled.
//! - `demand`: how many requests of users came in, as the location is told.
//! - `proxy`: one request from its head to the last byte of its answer.
//! - `server`: connections from users, in the clear and by TLS, their limits, shutdown. `secure`: what TLS takes.
//! - `location_link` and `state_file`: where the table comes from and where it is kept.
//!
//! It must not know of releases, nodes' health or the store. Built on hyper without a framework:
//! a proxy must see bodies, trailers, upgrades and unsent requests as they are, which clients and
//! routers made for applications hide.
//! Test: `cargo nextest run -p longshore-ingress`.

#![deny(missing_docs)]

mod balance;
mod demand;
mod elsewhere;
mod fault;
mod gate;
mod limits;
mod location_link;
mod metrics;
mod proxy;
mod relay;
mod router;
mod secure;
mod server;
mod state_file;
mod upstream;

use std::path::PathBuf;
use std::sync::Arc;

use longshore_api::links::RoutingTable;
use longshore_link::{Client, Endpoint, Listener, PublicTls, Service, ServiceError};
use longshore_telemetry::metrics::Registry;
use tokio_util::sync::CancellationToken;

use elsewhere::Others;
use gate::{Gates, NodeGate};
use limits::Limits;
use location_link::LocationLink;
use metrics::Metrics;
use proxy::Proxy;
use router::Router;
use secure::Redirect;
use state_file::StateFile;

/// What an ingress needs.
#[derive(Debug)]
pub struct IngressOptions {
    /// Where requests from users come in in the clear.
    pub listener: Listener,
    /// Where they come in by TLS, if they do.
    pub secure: Option<SecureOptions>,
    /// Where requests from ingresses of other locations come in, with certificates on both sides; nowhere where they
    /// cannot.
    pub peers: Option<Listener>,
    /// Where its location is.
    pub location: Endpoint,
    /// Where the last routing table is kept. Made when missing.
    pub state_dir: PathBuf,
    /// Where its metrics are asked for, if anywhere.
    pub metrics: Option<Listener>,
}

/// Where requests from users come in by TLS.
#[derive(Debug)]
pub struct SecureOptions {
    /// The socket.
    pub listener: Listener,
    /// Which certificate is shown to whom.
    pub tls: PublicTls,
    /// The port to which requests in the clear are sent, of hosts that there is a certificate for; they are
    /// answered where they come in when absent.
    pub redirect: Option<u16>,
}

/// Why an ingress ended.
#[derive(Debug, thiserror::Error)]
pub enum IngressError {
    /// The state directory cannot be made.
    #[error("cannot make the state directory {path}")]
    StateDir {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The listener cannot be used.
    #[error("cannot accept connections")]
    Accept(#[source] std::io::Error),
    /// A part of the ingress failed.
    #[error("a task of the ingress failed")]
    Task(#[source] ServiceError),
}

/// Runs an ingress until `shutdown`, then lets requests in flight end, within 15 seconds.
///
/// Raises the process's soft limit of open files to the hard one.
pub async fn run(options: IngressOptions, shutdown: CancellationToken) -> Result<(), IngressError> {
    let limits = Limits::within(limits::raise_open_files());
    let gates = Arc::new(Gates::new(Client::new(options.location.clone())));
    let gate = Arc::clone(&gates) as Arc<dyn NodeGate>;
    run_with(options, limits, (gate, gates), shutdown).await
}

/// A registry as an ingress fills it, to hold against the documentation.
pub fn described_metrics() -> Registry {
    let mut registry = registry();
    let metrics = Metrics::default();
    metrics.invent();
    metrics.register(&mut registry, Arc::default(), Arc::default());
    metrics::describe_certificates(&mut registry);
    registry
}

fn registry() -> Registry {
    longshore_telemetry::metrics::registry("ingress", env!("CARGO_PKG_VERSION"))
}

async fn run_with(
    options: IngressOptions,
    limits: Limits,
    (gate, own): (Arc<dyn NodeGate>, Arc<Gates>),
    shutdown: CancellationToken,
) -> Result<(), IngressError> {
    let IngressOptions { listener, secure, peers, location, state_dir, metrics: metrics_listener } =
        options;
    let unusable = |source| IngressError::StateDir { path: state_dir.clone(), source };
    let state_file: StateFile<RoutingTable> =
        StateFile::open(&state_dir, state_file::ROUTES).map_err(unusable)?;
    let others_file = StateFile::open(&state_dir, state_file::ELSEWHERE).map_err(unusable)?;
    let metrics = Metrics::default();
    let router = Arc::new(Router::new(limits.outliers.clone(), metrics.clone()));
    let stored = state_file.load();
    if let Some(table) = &stored {
        tracing::info!(revision = table.revision, "routing by the stored table at first");
        router.replace(table);
        own.opened().know(&table.nodes);
    }

    let others = Arc::new(Others::new(limits.outliers.clone(), metrics.clone()));
    if let Some(stored) = others_file.load() {
        others.take(stored);
    }

    // A task that fails ends this ingress, not whatever else its caller runs.
    let service = Service::new(shutdown.child_token());
    let location = Client::new(location);
    let follows = (Arc::clone(&router), Arc::clone(&own));
    let link = LocationLink::new(location.clone(), follows, state_file, stored);
    link.start(&service);
    let tables = (Arc::clone(&others), Arc::clone(&router));
    service.spawn_until_shutdown(
        "follow others",
        elsewhere::follow(location.clone(), tables, others_file),
    );
    let keeping = Arc::clone(&own);
    service.spawn_until_shutdown("certificate", async move {
        match keeping.keep_certificate().await {}
    });
    let (sweeping, sweeping_others) = (Arc::clone(&router), Arc::clone(&others));
    service.spawn_until_shutdown("sweep idle connections", async move {
        upstream::sweep(&sweeping, &sweeping_others).await;
    });
    let comparing = Arc::clone(&router);
    service.spawn_until_shutdown("compare endpoints", async move {
        router::compare(&comparing).await;
    });

    if let Some(listener) = metrics_listener {
        let mut registry = registry();
        metrics.register(&mut registry, Arc::clone(&router), Arc::clone(&others));
        if let Some(secure) = &secure {
            metrics::register_certificates(&mut registry, Arc::clone(secure.tls.certificates()));
        }
        longshore_telemetry::metrics::serve(registry, listener, &service);
    }
    let door = peers.map(|listener| (listener, Arc::clone(&own), Arc::clone(&others)));
    let redirect = secure.as_ref().and_then(Redirect::of);
    let of_apps = |tls: &PublicTls| secure::of_apps(tls, &router, &others);
    let shown = secure.as_ref().map(|secure| of_apps(&secure.tls));
    let own = (gate, own, redirect);
    let proxy = Proxy::new((router, Arc::clone(&others)), own, limits.clone(), metrics);
    let telling = demand::tell(proxy.metrics().demand().clone(), location.clone());
    service.spawn_until_shutdown("tell demand", telling);
    let probing = elsewhere::probe(Arc::clone(&proxy), others, location);
    service.spawn_until_shutdown("probe others", probing);
    if let Some(secure) = &secure {
        service.spawn_until_shutdown("users' certificates", secure.tls.clone().keep_fresh());
    }
    let secure = secure.map(|secure| secure.listener).zip(shown);
    let entrances = server::Entrances { users: listener, secure, others: door };
    let served = server::serve(entrances, Arc::clone(&proxy), limits, service.shutdown()).await;
    service.shutdown().cancel();
    let ended = service.run().await;
    served.map_err(IngressError::Accept)?;
    ended.map_err(IngressError::Task)
}

#[cfg(test)]
mod tests;
