//! A location: its scheduler, its links to nodes and ingresses, its gate for logs and exec.
//!
//! One task, the [`keeper`], owns the state: it takes over what comes in (allotments, reports,
//! acknowledgements, orders), plans, writes what changed to the location's own store, and only
//! then publishes it to nodes, ingresses and the global plane. A location goes on with what it has
//! when the global plane is away, and after a restart with what it stored.
//!
//! - `keeper`: the one owner of the state. `log`: what it decided. `state`: that state and its transitions, without I/O.
//! - `life`: which store is the location's, and what happens when it is lost.
//! - `records`: what is stored. `secrets`: those of its instances. `uplink`: the link to the global plane.
//! - `server`: what nodes, ingresses and the global plane call. `trust`: who may, over a network.
//! - `simulation`: a location without sockets, driven from outside.
//! - `prewarm`: which images nodes should have beforehand. `neighbours`: who of them gives others parts of images.
//! - `demand`: how many requests come in here. `elsewhere`: what other locations serve. `joined`: a location on another machine than the global plane's.
//! - `images`: those of nodes on other machines. `registry`: where they come from. `mirror`: what is kept of them here.

mod assigned;
mod demand;
mod elsewhere;
mod gates;
mod images;
mod joined;
mod keeper;
mod life;
mod log;
mod metrics;
mod mirror;
mod neighbours;
mod prewarm;
mod records;
mod registry;
mod secrets;
mod server;
pub mod simulation;
mod state;
mod trust;
mod uplink;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use longshore_link::{
    Client, Endpoint, Endpoints, Followed, JoinError, Listener, Service, ServiceError,
};
use longshore_secrets::KeyringError;
use longshore_store::{Measured, OpenStoreError, RecordError, RedbStore, Store, StoreError};
use longshore_types::{Coordinates, LocationName, MirrorSize, NodeName, Traits};
use tokio_util::sync::CancellationToken;

use demand::Demand;
use elsewhere::Others;
use gates::Gates;
use images::Images;
use joined::Joined;
pub use joined::join;
use keeper::{Handle, Keeper};
use metrics::{Metrics, Told, Watched};
use mirror::Mirror;
use neighbours::Neighbours;
use prewarm::Prewarm;
use registry::Registry;
use secrets::Secrets;
use server::Server;
pub use trust::Joining;
use trust::Trust;

pub use metrics::described as described_metrics;

/// What a location needs.
#[derive(Debug)]
pub struct Options {
    /// Its name.
    pub name: LocationName,
    /// Where on Earth it is, for those who look at it on a map.
    pub coordinates: Option<Coordinates>,
    /// What is said of it: its country, its labels.
    pub traits: Traits,
    /// Where its store lies.
    pub data_dir: PathBuf,
    /// Where nodes, ingresses and the global plane call.
    pub link: Listener,
    /// Where the global plane is.
    pub global: Endpoints,
    /// How it belongs to that.
    pub membership: Membership,
    /// The only node that is on this machine, where that is known: a location that lost its store waits for it.
    pub own_node: Option<NodeName>,
    /// How nodes of other machines join, where they may.
    pub joining: Option<JoiningOptions>,
    /// From where images are had, for nodes that do not reach the registry themselves.
    pub images: ImageOrigin,
    /// How much of its disk it may take to keep them for its nodes.
    pub mirror: MirrorSize,
    /// The `host:port` at which its ingresses take requests from other locations, where they do.
    pub peers_advertised: Option<String>,
    /// Where its metrics are asked for, if anywhere.
    pub metrics: Option<Listener>,
}

impl Options {
    /// Whether it calls anyone on another machine, or is called from one, and so shows who it is.
    fn has_outside(&self) -> bool {
        let pulls = matches!(self.images, ImageOrigin::Elsewhere);
        self.joining.is_some() || self.peers_advertised.is_some() || pulls
    }
}

/// How nodes of other machines join.
#[derive(Debug)]
pub struct JoiningOptions {
    /// Where they call.
    pub joining: Joining,
    /// The `host:port` by which they reach an ingress of the location, to keep connections open to that; where it is
    /// absent, requests for those that cannot be dialled go through the location.
    pub ingress: Option<String>,
}

/// From where a location has images.
#[derive(Debug)]
pub enum ImageOrigin {
    /// From the registry on the same machine.
    Registry {
        /// Where it is.
        registry: Endpoint,
        /// Holds the text of the token for it.
        token_file: PathBuf,
    },
    /// From the registry that the global plane names.
    Elsewhere,
}

/// How a location belongs to the global plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Membership {
    /// It is on the same machine: each calls sockets that no other can.
    Local,
    /// It joined from another machine, by [`join`]: both show certificates.
    Joined,
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
    #[error(
        "cannot open the location's store; once it is moved away, the location recovers without it"
    )]
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
    /// The token for the registry cannot be read.
    #[error("cannot read the token file {path}")]
    TokenFile {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It cannot speak as the location that it should be.
    #[error("cannot speak as this location")]
    Joined(#[from] JoinError),
    /// The store is of a life of the location before the present one.
    #[error("the location was recovered since: {0}")]
    Recovered(String),
    /// There is nowhere for its nodes to join.
    #[error("a location that joined listens for nodes: give it --nodes-listen")]
    NoNodes,
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
    let service = Service::new(shutdown);
    let joined = match options.membership {
        Membership::Local => None,
        Membership::Joined => Some(Joined::open(&options.name, &options.data_dir)?),
    };
    let (global, bare, gate) = links(joined.as_ref(), &options)?;
    let (is_elsewhere, has_outside) = (joined.is_some(), options.has_outside());
    let (name, kept) = (options.name.clone(), Arc::clone(&store) as Arc<dyn Store>);
    let counter = life::Counter { global: global.clone(), location: name.clone() };
    let begun = life::begin(&service, &kept, counter, options.own_node.as_ref()).await?;
    let Some((life, recovered)) = begun else { return Ok(()) };
    let secrets =
        Secrets::open(global.clone(), name.clone(), Arc::clone(&kept), &options.data_dir)?;
    let others = Arc::new(Others::open(Arc::clone(&kept)).await?);
    let demand = Arc::new(Demand::since(Instant::now()));
    let stored = Arc::clone(&kept);
    let trust =
        Trust::open(name.clone(), (global.clone(), bare), stored, &options.data_dir, joined)
            .await?;
    let trust = Arc::new(trust);
    let secrets = Arc::new(secrets);
    let watched = Watched::new(&metrics, &options.data_dir, &service);
    let named = (name.clone(), options.traits, life);
    let keeper = Keeper::restore(named, gate, store, service.shutdown(), watched).await?;
    let (keeper, handle) = keeper;
    serve_metrics(&metrics, options.metrics, file, &handle, &service);
    service.spawn("keeper", keeper.run());
    let place = uplink::Place {
        peers_advertised: options.peers_advertised,
        trust: Arc::clone(&trust),
        others: Arc::clone(&others),
        recovered,
        demand: Arc::clone(&demand),
        location: options.name.clone(),
        coordinates: options.coordinates,
        joining: options.joining.as_ref().map(|options| options.joining.advertised.clone()),
    };
    speak_with_global(&service, &global, place, &handle, &secrets);
    let ingress = options.joining.as_ref().and_then(|options| options.ingress.clone());
    let joining = options.joining.map(|JoiningOptions { joining, .. }| joining);
    let registry = registry(options.images, &global, &trust, kept).await?;
    let mirror = options.data_dir.join("mirror");
    let mirror = open_mirror(&mirror, options.mirror, &registry, &metrics, &service);
    let prewarm = Arc::new(Prewarm::new(options.name.clone(), handle.report.clone()));
    service.spawn_until_shutdown("prewarm", Arc::clone(&prewarm).follow(global.clone()));
    let images = Images::of((registry, mirror), handle.clone(), prewarm, &service);
    let forget = Arc::clone(&trust).forget_removed(handle.cordons.clone());
    service.spawn_until_shutdown("removals", forget);
    let gates = Arc::new(Gates::new(Arc::clone(&trust), service.clone()));
    let router = server::router(Server {
        neighbours: Neighbours::of(&images, &gates, &trust, &handle),
        location: options.name.clone(),
        handle,
        secrets,
        trust: Arc::clone(&trust),
        others,
        demand,
        images,
        gates: Arc::clone(&gates),
        ingresses: ingress.into_iter().collect(),
        service: service.clone(),
    });
    if is_elsewhere {
        let called = uplink::be_called(global, options.name, router.clone(), service.shutdown());
        service.spawn("calls", called);
    }
    if has_outside {
        let kept = trust.keep(joining, router.clone(), service.clone());
        service.spawn_until_shutdown("trust", kept);
        service.spawn_until_shutdown("gates", gates.look());
    }
    service.spawn("link", options.link.serve(router, service.shutdown()));
    Ok(service.run().await?)
}

/// Serves the metrics of a location, where anyone may ask for them.
fn serve_metrics(
    metrics: &Metrics,
    listener: Option<Listener>,
    store: PathBuf,
    handle: &Handle,
    service: &Service,
) {
    let Some(listener) = listener else { return };
    let mut registry = metrics::registry();
    let told = Told { report: handle.report.clone(), routes: handle.routes.clone() };
    metrics.register(&mut registry, store, told);
    longshore_telemetry::metrics::serve(registry, listener, service);
}

/// The global plane as this location, the same shown nothing where that is another machine, and where it is
/// dialled on this one.
fn links(
    joined: Option<&Joined>,
    options: &Options,
) -> Result<(Followed, Option<Followed>, Option<Endpoint>), LocationError> {
    let global = options.global.clone();
    match joined {
        Some(_) if options.joining.is_none() => Err(LocationError::NoNodes),
        Some(joined) => Ok((joined.global(global.clone())?, Some(joined.bare(global)?), None)),
        None => {
            let gate = options.link.endpoint().map_err(LocationError::Listen)?;
            Ok((Followed::new(global), None, Some(gate)))
        }
    }
}

/// Starts what goes on for ever between this location and the global plane.
fn speak_with_global(
    service: &Service,
    global: &Followed,
    place: uplink::Place,
    handle: &Handle,
    secrets: &Arc<Secrets>,
) {
    let location = place.location.clone();
    let receive =
        uplink::receive(global.clone(), location.clone(), handle.clone(), Arc::clone(secrets));
    service.spawn_until_shutdown("allotments", receive);
    let hear = Arc::clone(&place.others).follow(global.clone(), location);
    service.spawn_until_shutdown("elsewhere", hear);
    let reports = uplink::report(global.clone(), place, handle.clone());
    service.spawn_until_shutdown("reports", reports);
}

async fn registry(
    origin: ImageOrigin,
    global: &Followed,
    trust: &Arc<Trust>,
    store: Arc<dyn Store>,
) -> Result<Arc<Registry>, LocationError> {
    let registry = match origin {
        ImageOrigin::Registry { registry, token_file: path } => {
            let token = std::fs::read_to_string(&path);
            let token = token.map_err(|source| LocationError::TokenFile { path, source })?;
            Registry::Here(Client::new(registry).with_token(token.trim()))
        }
        ImageOrigin::Elsewhere => {
            Registry::elsewhere(global.clone(), Arc::clone(trust), store).await?
        }
    };
    Ok(Arc::new(registry))
}

/// What is kept of images. A disk that refuses it keeps nobody from having them.
fn open_mirror(
    dir: &Path,
    size: MirrorSize,
    registry: &Arc<Registry>,
    metrics: &Metrics,
    service: &Service,
) -> Option<Arc<Mirror>> {
    let opened = Mirror::open(dir, size, registry, metrics.mirror.clone(), service);
    opened.unwrap_or_else(|error| {
        let error = &error as &dyn std::error::Error;
        tracing::warn!(error, "no images are kept for the nodes of this location");
        None
    })
}
