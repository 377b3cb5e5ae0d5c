//! The global control plane: the API, the releases, the global scheduler.
//!
//! What users ask for is in the store; what locations report is in memory. One task mirrors the
//! store into a [`catalog::Catalog`]; the planner and every read work on that, so a location or a
//! client never waits on the store.
//!
//! - `api`: the public REST API.
//! - `ui`: the dashboard.
//! - `links`: what locations and the registry call. `joining`: what lets machines join. `registry`: where the registry
//!   is, and which one counts. `lives`: which life of a location does. `elsewhere`: what
//!   is served where, for ingresses that pass requests on.
//! - `records`: what is stored, and under which keys.
//! - `events`: what was changed by whom. `feeds`: what changes, for those who watch. `catalog`: the mirror of the store, of shared maps. `reports`: what locations say.
//! - `leader`: which of several control planes plans. `front`: what the others answer.
//! - `simulation`: all of it but its sockets, driven from outside.
//! - `scheduler`: carries out `longshore_planning::global`; `rollouts`: `longshore_planning::rollout`. `strays`: what a restored store does not know.
//!
//! It must not know of nodes beyond what locations report, nor of containers.

mod api;
mod attached;
mod catalog;
mod elsewhere;
mod events;
mod feeds;
mod front;
mod hash;
mod images;
mod joining;
mod leader;
mod links;
mod lives;
mod metrics;
mod prewarms;
mod records;
mod registry;
mod reports;
mod rollouts;
mod scheduler;
pub mod simulation;
mod strays;
mod tokens;
mod traces;
mod ui;
mod views;
mod waves;

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, OnceLock};

use longshore_link::{Client, Endpoint, Listener, PublicTls, Reverses, Service, ServiceError};
use longshore_secrets::{Keyring, KeyringError};
use longshore_store::{
    Compare, EtcdAddress, EtcdStore, EtcdTls, Measured, OpenStoreError, RecordError, RedbStore,
    Store, StoreError, restore,
};
use longshore_telemetry::traces::Tracer;
use longshore_trust::{AuthorityError, Credentials, Name, RootAuthority, client_config};
use longshore_types::{Epoch, LocationName};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use api::idempotency::UnderWay;
use api::limits::Limits;
use catalog::{Catalog, Mirror};
use elsewhere::Served;
use events::EventLog;
use feeds::Feeds;
use front::{Front, Led};
use images::ImageResolver;
use leader::{Lead, LeaderRecord};
use metrics::Metrics;
use reports::Reports;
use traces::Starts;

/// What the global control plane needs.
#[derive(Debug)]
pub struct Options {
    /// Where it keeps what is its own, the embedded store too.
    pub data_dir: PathBuf,
    /// Where the state is.
    pub store: StoreChoice,
    /// How an etcd is spoken to whose members are at `https`.
    pub store_tls: Option<EtcdTls>,
    /// Where other control planes on the same store reach the API.
    pub api_advertise: Endpoint,
    /// Where those are at `https`, a file of the certificates of who vouches for them; whom this machine trusts
    /// when absent.
    pub api_ca: Option<PathBuf>,
    /// Where locations and registries that called another control plane reach this one.
    pub link_advertise: Endpoint,
    /// Where the registry is.
    pub registry: RegistryChoice,
    /// The ingress's host and port as users on this machine reach it.
    pub ingress_public: String,
    /// Apps get `<app>.<domain>`, those of other projects than `default` `<app>.<project>.<domain>`.
    pub domain: String,
    /// Holds the text of the token that may do everything.
    pub admin_token_file: PathBuf,
    /// Holds the text of the token by which the platform's own roles pull images.
    pub system_token_file: PathBuf,
    /// Holds the keys that seal secrets; made when it is missing. Not beside the store: whoever gets
    /// hold of a copy of that should not have these.
    pub secret_keys_file: PathBuf,
    /// Holds the root of all certificates of the world; made when it is missing. Whoever gets hold of it
    /// can be anyone.
    pub root_file: PathBuf,
    /// Where locations of other machines reach what they need, where they may join.
    pub joining: Option<JoiningOptions>,
    /// How many requests to the API each token may send in a second; five times as many at once.
    pub api_rate: NonZeroU32,
    /// How long it has to be better elsewhere for the users of an app before an instance moves there.
    pub rebalance_after: longshore_types::Duration,
    /// How many releases of an app are kept, with their images, beside those that it needs.
    pub keep_releases: NonZeroU32,
}

/// Which registry the platform has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegistryChoice {
    /// One that is trusted as this control plane is.
    At {
        /// Where it answers.
        endpoint: Endpoint,
        /// Its host and port as users write it in image names, and how they speak to it.
        public: PublicRegistry,
    },
    /// One that joins from another machine, and says itself where it is.
    Joined,
}

/// Whom the registry gives images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Serves {
    /// Locations of other machines; those of its own have a token that pulls everything.
    OtherMachines,
    /// Every location, each what it was allotted.
    Everyone,
}

impl RegistryChoice {
    fn serves(&self) -> Serves {
        match self {
            Self::At { .. } => Serves::OtherMachines,
            Self::Joined => Serves::Everyone,
        }
    }
}

/// The registry as users see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicRegistry {
    /// `host:port`, as it stands in image names.
    pub authority: String,
    /// Whether it is spoken to by TLS.
    pub is_secure: bool,
}

impl FromStr for PublicRegistry {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (authority, is_secure) = match text.strip_prefix("https://") {
            Some(authority) => (authority, true),
            None => (text, false),
        };
        // What could be called is what could be written in the name of an image.
        match Endpoint::Tls(authority.to_owned()).to_string().parse::<Endpoint>() {
            Ok(_) => Ok(Self { authority: authority.to_owned(), is_secure }),
            Err(_) => Err("a registry is HOST:PORT, or https://HOST:PORT by TLS".to_owned()),
        }
    }
}

/// Where locations of other machines reach what they need, each as `host:port`.
#[derive(Debug, Clone)]
pub struct JoiningOptions {
    /// This control plane.
    pub advertised: String,
    /// The registry, unless one joins.
    pub registry_advertised: Option<String>,
}

/// Where the global control plane is called.
#[derive(Debug)]
pub struct Listeners {
    /// By users.
    pub api: Listener,
    /// With what users are spoken to there by TLS, if they are.
    pub api_tls: Option<PublicTls>,
    /// By users of this machine, whatever becomes of the certificates.
    pub api_here: Option<Listener>,
    /// By locations and the registry of this machine.
    pub link: Listener,
    /// By locations of other machines, where they may join.
    pub locations: Option<Listener>,
    /// By who wants its metrics, if anyone may.
    pub metrics: Option<Listener>,
}

/// The name of the embedded store in the data directory.
pub const STORE_FILE: &str = "store.redb";

/// Which store holds the state of the control plane.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum StoreChoice {
    /// A file in its data directory.
    #[default]
    Embedded,
    /// An etcd cluster, which outlives this machine and may be shared with other control planes, one
    /// of which leads.
    Etcd(EtcdAddress),
}

impl FromStr for StoreChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "embedded" => Ok(Self::Embedded),
            _ => text.parse().map(Self::Etcd).map_err(|_| Self::ALLOWED.to_owned()),
        }
    }
}

impl StoreChoice {
    /// The etcd, when it is one.
    pub fn etcd(&self) -> Option<&EtcdAddress> {
        match self {
            Self::Embedded => None,
            Self::Etcd(address) => Some(address),
        }
    }

    /// What a text of one may be.
    pub const ALLOWED: &str = "embedded, or the members of an etcd: http[s]://HOST:PORT[,http[s]://HOST:PORT ...][/PREFIX]";
}

impl fmt::Display for StoreChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded => f.write_str("embedded"),
            Self::Etcd(address) => address.fmt(f),
        }
    }
}

/// Why the control plane ended.
#[derive(Debug, thiserror::Error)]
pub enum GlobalError {
    /// The data directory cannot be made.
    #[error("cannot make the data directory {path}")]
    DataDir {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A token file cannot be read.
    #[error("cannot read the token file {path}")]
    TokenFile {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The keys of the secrets cannot be used.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    /// The root of the certificates cannot be used.
    #[error("cannot use the root of the certificates")]
    Root(#[from] AuthorityError),
    /// The certificate of this control plane cannot be used.
    #[error("cannot use the certificate of the control plane")]
    Certificate(#[from] longshore_trust::TlsError),
    /// There is nowhere for the registry to join.
    #[error("a registry joins where locations do: give --locations-listen")]
    NowhereToJoin,
    /// The store cannot be opened.
    #[error("cannot open the global store")]
    OpenStore(#[from] OpenStoreError),
    /// The store cannot be used.
    #[error("the global store failed")]
    Store(#[source] StoreError),
    /// A restore into the store did not end.
    #[error(
        "a restore into the global store did not end: `longshore store restore` begins it anew"
    )]
    HalfRestored,
    /// Another control plane leads.
    #[error("another control plane leads by now")]
    LeadLost,
    /// A stored record cannot be understood.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A task of the service failed.
    #[error(transparent)]
    Service(#[from] ServiceError),
}

pub use api::{Access, accesses};
pub use metrics::described as described_metrics;

/// Everything that the handlers and tasks share.
struct Plane {
    store: Arc<dyn Store>,
    /// What holds as long as this control plane leads, where others may.
    lead: Option<Compare>,
    /// What other control planes show that pass requests on.
    passing_key: Option<String>,
    catalog: Mirror,
    reports: Reports,
    /// What is served where; nothing until enough is known.
    served: watch::Sender<Arc<Option<Served>>>,
    /// Locations that heard of a later life of the store, and of which.
    superseded: Mutex<BTreeMap<LocationName, Epoch>>,
    starts: Starts,
    images: ImageResolver,
    keyring: Keyring,
    /// Signs for locations.
    root: Arc<RootAuthority>,
    /// Over which locations of other machines are called.
    reverses: Reverses,
    joining: Option<JoiningOptions>,
    registry: RegistryChoice,
    /// Held while the key of the secrets is changed.
    rotating: tokio::sync::Mutex<()>,
    public: PublicNames,
    limits: Limits,
    under_way: UnderWay,
    feeds: Feeds,
    /// The newest events, for those who follow them.
    told: EventLog,
    /// Owns the tasks.
    service: Service,
}

/// How users reach the parts of the platform.
struct PublicNames {
    ingress: String,
    domain: String,
}

impl Plane {
    fn catalog(&self) -> Arc<Catalog> {
        self.catalog.now()
    }
}

/// Runs the control plane until `shutdown`.
pub async fn run(
    options: Options,
    listeners: Listeners,
    shutdown: CancellationToken,
) -> Result<(), GlobalError> {
    let path = options.data_dir.clone();
    std::fs::create_dir_all(&path).map_err(|source| GlobalError::DataDir { path, source })?;
    let service = Service::new(shutdown);
    let begun = begin(options, listeners, &service).await;
    if begun.is_err() {
        service.shutdown().cancel();
    }
    let ended = service.run().await;
    begun?;
    Ok(ended?)
}

/// Begins to serve, and returns once this control plane leads or is to end.
async fn begin(
    options: Options,
    listeners: Listeners,
    service: &Service,
) -> Result<(), GlobalError> {
    let metrics = Metrics::default();
    let file = options.data_dir.join(STORE_FILE);
    let store = open_store(&options, &file, &metrics).await?;
    let leading = Arc::new(OnceLock::new());
    if let Some(listener) = listeners.metrics {
        let mut registry = metrics::registry();
        metrics.register(&mut registry, file, Arc::clone(&leading));
        longshore_telemetry::metrics::serve(registry, listener, service);
    }
    let trusted = Trusted::begin(&options, listeners.locations.is_some(), service)?;
    let credentials = trusted.credentials.clone();
    if let Some(tls) = listeners.api_tls.clone() {
        service.spawn_until_shutdown("api certificate", tls.keep_fresh());
    }
    let serve = |api: axum::Router, link: axum::Router| {
        if let (Some(listener), Some(credentials)) = (listeners.locations, credentials) {
            let served = listener.serve_with(credentials, link.clone(), service.shutdown());
            service.spawn("locations", served);
        }
        service.spawn("links", listeners.link.serve(link, service.shutdown()));
        if let Some(listener) = listeners.api_here {
            service.spawn("api here", listener.serve(api.clone(), service.shutdown()));
        }
        let served = listeners.api.serve_users(listeners.api_tls, api, service.shutdown());
        service.spawn("api", served);
    };
    if options.store == StoreChoice::Embedded {
        let (images, of) = (images_of(&options, &trusted)?, (&metrics, &*leading));
        let plane = lead(&options, (store, None), of, (trusted, images), service).await?;
        let Led { api, link } = routers(&metrics, plane);
        serve(api, link);
        return Ok(());
    }
    let path = options.data_dir.clone();
    let id = leader::own_id(&path).map_err(|source| GlobalError::DataDir { path, source })?;
    let own = LeaderRecord {
        id,
        api: options.api_advertise.to_string(),
        link: options.link_advertise.to_string(),
        locations: options.joining.as_ref().map(|joining| joining.advertised.clone()),
        passing_key: uuid::Uuid::new_v4().simple().to_string(),
    };
    let known = watch::Sender::default();
    let front = Front::new((known.subscribe(), options.api_ca.clone()), service.clone());
    serve(Arc::clone(&front).api(), Arc::clone(&front).link());
    let taken = Lead::take(store.as_ref(), &own, &known, &service.shutdown()).await;
    let Some(taken) = taken else { return Ok(()) };
    tracing::info!("leads from now on");
    let led = Some((taken.condition(), own.passing_key));
    service.spawn("lead", taken.keep(Arc::clone(&store), service.shutdown()));
    let (images, of) = (images_of(&options, &trusted)?, (&metrics, &*leading));
    let plane = lead(&options, (store, led), of, (trusted, images), service).await?;
    front.lead(routers(&metrics, plane));
    Ok(())
}

/// What the one that leads answers.
fn routers(metrics: &Metrics, plane: Arc<Plane>) -> Led {
    let link = links::router(Arc::clone(&plane));
    Led { api: metrics.api.clone().measure(api::router(plane)), link }
}

/// Starts what only the one that leads does. `shared` is what holds while it leads, and what the others
/// show, where there may be others.
async fn lead(
    options: &Options,
    (store, shared): (Arc<dyn Store>, Option<(Compare, String)>),
    (metrics, leading): (&Metrics, &OnceLock<Arc<Plane>>),
    (trusted, images): (Trusted, ImageResolver),
    service: &Service,
) -> Result<Arc<Plane>, GlobalError> {
    if restore::is_half_restored(store.as_ref()).await.map_err(GlobalError::Store)? {
        return Err(GlobalError::HalfRestored);
    }
    let admin_token = read_token(&options.admin_token_file)?;
    let system_token = read_token(&options.system_token_file)?;
    tokens::ensure_built_in(store.as_ref(), &admin_token, &system_token).await?;
    let told = EventLog::default();
    let catalog = Mirror::start(Arc::clone(&store), told.clone(), service).await?;
    let (lead, passing_key) = shared.unzip();
    let plane = Arc::new(Plane {
        store,
        lead,
        passing_key,
        catalog,
        reports: Reports::default(),
        served: watch::Sender::default(),
        superseded: Mutex::default(),
        starts: Starts::new(Tracer::start("global", env!("CARGO_PKG_VERSION"), service)),
        images,
        keyring: Keyring::open(&options.secret_keys_file)?,
        root: trusted.root,
        reverses: Reverses::default(),
        joining: options.joining.clone(),
        registry: options.registry.clone(),
        rotating: tokio::sync::Mutex::default(),
        public: PublicNames {
            ingress: options.ingress_public.clone(),
            domain: options.domain.clone(),
        },
        limits: Limits::new(options.api_rate),
        under_way: UnderWay::default(),
        feeds: Feeds::default(),
        told,
        service: service.clone(),
    });
    // Nobody else sets it.
    let _ = leading.set(Arc::clone(&plane));
    let (rounds, data_dir) = (metrics.rounds.clone(), options.data_dir.clone());
    let settings = scheduler::Settings {
        data_dir,
        rebalance_after: options.rebalance_after.0,
        keep_releases: options.keep_releases,
    };
    service.spawn("scheduler", scheduler::run(Arc::clone(&plane), rounds, settings));
    service.spawn_until_shutdown("elsewhere", elsewhere::keep(Arc::clone(&plane)));
    service.spawn_until_shutdown("prewarms", prewarms::keep(Arc::clone(&plane)));
    Ok(plane)
}

/// Says which digests images have, by the registry.
fn images_of(options: &Options, trusted: &Trusted) -> Result<ImageResolver, GlobalError> {
    match &options.registry {
        RegistryChoice::At { endpoint, public } => {
            let token = read_token(&options.system_token_file)?;
            let registry = Client::new(endpoint.clone()).with_token(token);
            Ok(ImageResolver::new(registry, public.authority.clone()))
        }
        RegistryChoice::Joined => {
            let credentials = trusted.credentials.as_ref().ok_or(GlobalError::NowhereToJoin)?;
            Ok(ImageResolver::joined(client_config(credentials)?, Arc::clone(&trusted.root)))
        }
    }
}

/// The root, and what is shown to locations of other machines.
struct Trusted {
    root: Arc<RootAuthority>,
    credentials: Option<Credentials>,
}

impl Trusted {
    fn begin(options: &Options, shows: bool, service: &Service) -> Result<Self, GlobalError> {
        let now = longshore_link::now();
        let root = Arc::new(RootAuthority::open(&options.root_file, now)?);
        if !shows {
            return Ok(Self { root, credentials: None });
        }
        let credentials = Credentials::new(&root.identify(&Name::Global, now)?)?;
        let keep = joining::keep_certificate(Arc::clone(&root), credentials.clone());
        service.spawn_until_shutdown("certificate", keep);
        Ok(Self { root, credentials: Some(credentials) })
    }
}

/// The store that was chosen, with its commits measured.
async fn open_store(
    options: &Options,
    file: &Path,
    metrics: &Metrics,
) -> Result<Arc<dyn Store>, GlobalError> {
    let measures = metrics.store.clone();
    Ok(match &options.store {
        StoreChoice::Embedded => Arc::new(Measured::new(RedbStore::open(file)?, measures)),
        StoreChoice::Etcd(address) => {
            let store = EtcdStore::connect(address, options.store_tls.as_ref()).await;
            let store = store.map_err(GlobalError::Store)?;
            Arc::new(Measured::new(store, measures))
        }
    })
}

fn read_token(path: &Path) -> Result<String, GlobalError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(source) => Err(GlobalError::TokenFile { path: path.to_owned(), source }),
    }
}
