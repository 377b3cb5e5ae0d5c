//! The node agent: turns the assignments of its location into running containers.
//!
//! Each instance has one task, its [`instance::Actor`], that alone acts on it: pulls its image,
//! mounts its file system, attaches its network, starts its container through a shim, watches its
//! health, restarts it by its policy, and removes all of it in the end. The agent itself only takes
//! assignments over, writes them to disk, and reports what the actors observe.
//!
//! The agent may die at any moment: shims and containers live on, and the next agent adopts them
//! ([`agent::Agent::restore`]) before it says a word to its location.
//!
//! - `agent`: assignments to actors. `instance`: the life of one instance.
//! - `disk`: what an agent must remember. `board`: what it observes. `space`: the room on the disk. `stock`: the
//!   images that are there, and which go. `prewarm`: those that come before they are needed.
//! - `uplink`: the link to the location. `gate`: logs and exec. `joined`: certificates of a node on another
//!   machine. `source`: its images. `neighbours`: parts of them of other nodes. `rate`: how much of the network they
//!   take.

mod agent;
mod board;
mod disk;
mod gate;
mod instance;
mod joined;
mod machine;
mod metrics;
mod neighbours;
mod prewarm;
mod rate;
mod reach;
mod source;
mod space;
mod stock;
mod timeline;
mod uplink;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use longshore_disk::{LayerError, WritableLayers};
use longshore_image::limits::Limits;
use longshore_image::source::Source;
use longshore_image::store::{ImageStore, OpenStoreError};
use longshore_link::{Client, Endpoint, JoinError, Listener, Service, ServiceError};
use longshore_network::{AgentId, Network, NetworkConfig, OpenNetworkError};
use longshore_runtime::{AdoptError, RuntimeProblem, RuntimePrograms, Shims, ShimsConfig, probe};
use longshore_telemetry::traces::Tracer;
use longshore_types::{DiskMarks, Gpu, IpNet, NodeName, PullRate, Traits};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use agent::Agent;
use joined::Joined;
pub use joined::join;
use neighbours::Near;
use rate::{Rate, Throttled};
use source::LocationSource;

/// How often it is looked for beginnings of layers that nobody came back for.
const SWEEP: Duration = Duration::from_secs(3600);

/// How long the agent may take to end. When its instances end with it, each has its grace first;
/// what outlasts this is ended by the next start. Its supervisor waits a little longer.
const DRAIN: Duration = Duration::from_secs(85);

pub use metrics::described as described_metrics;

/// What a node agent needs.
#[derive(Debug)]
pub struct Options {
    /// The node's name.
    pub name: NodeName,
    /// Marks everything that this agent makes on the machine.
    pub agent: AgentId,
    /// Where images, instances and their logs lie.
    pub data_dir: PathBuf,
    /// Where sockets and mounts are; emptied by a reboot.
    pub run_dir: PathBuf,
    /// Where the location asks for logs and exec.
    pub gate: Listener,
    /// Where the location is.
    pub location: Endpoint,
    /// How it belongs to its location.
    pub membership: Membership,
    /// The program whose `shim` commands are run.
    pub exe: PathBuf,
    /// The cgroup below which this agent makes its own; the root when absent.
    pub cgroup_parent: Option<String>,
    /// Where instance addresses are taken from.
    pub instance_pool: IpNet,
    /// How many instances may share a core: the node offers this many times its cores.
    pub cpu_overcommit: f64,
    /// When images that nothing keeps leave the disk.
    pub image_disk: DiskMarks,
    /// How much of the network all pulls may take together.
    pub image_rate: PullRate,
    /// How much of that those may take that no instance waits for, and how much other nodes that are given layers.
    pub prewarm_rate: PullRate,
    /// What is said of it: its country, its labels.
    pub traits: Traits,
    /// The GPUs that its operator declares.
    pub gpus: Vec<Gpu>,
    /// Where the programs of the runtimes are.
    pub programs: RuntimePrograms,
    /// Where its metrics are asked for, if anywhere.
    pub metrics: Option<Listener>,
}

/// How a node belongs to its location.
#[derive(Debug)]
pub enum Membership {
    /// It is on the same machine: it calls a socket that no other can.
    Local {
        /// Where images are pulled from, and what holds the text of the token for that; from the location
        /// when absent.
        registry: Option<(Endpoint, PathBuf)>,
    },
    /// It joined from another machine: it shows a certificate, and has images from the location.
    Joined {
        /// Holds its key and certificate.
        identity_file: PathBuf,
        /// The `host:port` by which its gate is reached.
        advertised: String,
    },
}

/// A file of this name in the run directory tells an agent that ends to end all instances with it.
pub const STOP_INSTANCES_FILE: &str = "stop-instances";

/// Why a node agent ended.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A directory or file of the agent cannot be used.
    #[error("cannot {doing} {path}")]
    Disk {
        /// What was tried.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The machine cannot be read.
    #[error("cannot read what the machine has from {path}")]
    Machine {
        /// Which file.
        path: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The image store cannot be opened.
    #[error("cannot open the image store")]
    Images(#[from] OpenStoreError),
    /// What instances write cannot be limited.
    #[error(
        "cannot limit what instances write; let this machine have loop devices, or put the data \
         directory on an ext4 or XFS with project quotas"
    )]
    Layers(#[from] LayerError),
    /// The network cannot be set up.
    #[error("cannot set up the network")]
    Network(#[from] OpenNetworkError),
    /// Containers cannot be run here.
    #[error("cannot run containers here")]
    Runtime(#[from] RuntimeProblem),
    /// What an earlier agent left cannot be found.
    #[error("cannot find what an earlier agent left")]
    Adopt(#[from] AdoptError),
    /// It is no node of its location.
    #[error("cannot speak as this node")]
    Joined(#[from] JoinError),
    /// The registry cannot be used as a source of images.
    #[error("cannot use the registry {0}")]
    Registry(String),
    /// A task of the service failed.
    #[error(transparent)]
    Service(#[from] ServiceError),
}

/// What the tasks of an agent share.
struct Node {
    name: NodeName,
    location: Client,
    images: ImageStore,
    stock: stock::Stock,
    prewarm: prewarm::Prewarm,
    giving: gate::Giving,
    source: Arc<Throttled>,
    network: Network,
    shims: Shims,
    programs: RuntimePrograms,
    disk: disk::Disk,
    layers: WritableLayers,
    board: board::Board,
    /// The ingresses of the location to which a node of another machine keeps connections open.
    ingresses: tokio::sync::watch::Sender<Vec<String>>,
    /// Which addresses answer from here.
    reach: reach::Reach,
    metrics: metrics::Metrics,
    tracer: Tracer,
    /// Who may start a container now.
    starts: Semaphore,
    /// Its tasks, and those of single requests.
    service: Service,
}

/// How many containers are started at the same time on each core. A start is mostly work, and a
/// little waiting for the kernel; all at once, each would take as long as all of them, and what the
/// machine serves meanwhile would stand still.
const STARTS_PER_CORE: usize = 2;

/// Runs a node agent until `shutdown`. Instances go on without it, unless the file
/// [`STOP_INSTANCES_FILE`] is in the run directory by then.
pub async fn run(options: Options, shutdown: CancellationToken) -> Result<(), NodeError> {
    let network_name = machine::network_name()?;
    let disk = disk::Disk::open(&options.data_dir, &options.run_dir)?;
    // Programs are asked what they can do while the rest is prepared.
    let (programs, cache_dir) = (options.programs.clone(), options.run_dir.clone());
    let runtimes = tokio::task::spawn_blocking(move || probe(&programs, &cache_dir));
    let layers = WritableLayers::probe(disk.instances())?;
    tracing::info!(means = ?layers.means(), "what instances write is limited");
    let images = ImageStore::open(&options.data_dir.join("images"), Limits::default())?;
    tracing::info!(kernel = %images.kernel_path(), "how images get to the kernel");
    let network = Network::open(NetworkConfig {
        agent: options.agent,
        run_dir: options.run_dir.join("network"),
        state_dir: options.data_dir.join("network"),
        pool: options.instance_pool,
        holder: options.exe.clone(),
        upstream_dns: None,
    })
    .await?;
    let shims = Shims::new(ShimsConfig {
        executable: options.exe,
        run_dir: options.run_dir.join("shims"),
        state_dir: options.data_dir.join("shims"),
        cgroup_root: cgroup_root(options.cgroup_parent, options.agent),
    })?;
    let Belonging { location, source, gate, joined } =
        belong(options.membership, &options.name, options.location, &options.gate)?;

    let service = Service::new(shutdown).with_drain(DRAIN);
    let node = Arc::new(Node {
        name: options.name,
        location: location.clone(),
        images,
        stock: stock::Stock::new(options.image_disk),
        prewarm: prewarm::Prewarm::new(options.prewarm_rate),
        giving: gate::Giving::new(options.prewarm_rate),
        source: Arc::new(Throttled::new(source, Arc::new(Rate::new(options.image_rate)))),
        network,
        shims,
        programs: options.programs,
        disk,
        layers,
        board: board::Board::default(),
        ingresses: tokio::sync::watch::Sender::default(),
        reach: reach::Reach::default(),
        metrics: metrics::Metrics::default(),
        tracer: Tracer::start("node", env!("CARGO_PKG_VERSION"), &service),
        starts: Semaphore::new(STARTS_PER_CORE * machine::cores()?),
        service: service.clone(),
    });
    let agent = Agent::restore(Arc::clone(&node)).await?;
    // A panic in it would be a bug; without its answers only the embedded runtime is offered.
    let runtimes = runtimes.await.unwrap_or_default();
    let capacity = machine::capacity(options.cpu_overcommit, space::offered(&node)?)?;
    let (capacity, offered) = tokio::sync::watch::channel(capacity);
    metrics::serve(&node, options.metrics, offered.clone(), &service);
    let (network, traits, gpus) = (network_name, options.traits, options.gpus);
    let identity = uplink::Identity { gate, capacity: offered, gpus, network, runtimes, traits };
    let reports = uplink::report(Arc::clone(&node), location.clone(), identity, agent.carried());
    service.spawn_until_shutdown("reports", reports);
    service.spawn_until_shutdown("reach", reach::keep(Arc::clone(&node)));
    service.spawn_until_shutdown("disk", space::keep(Arc::clone(&node), capacity));
    look_after_images(&node, &service);
    service.spawn_until_shutdown("network", uplink::keep_network(Arc::clone(&node)));
    let router = gate::router(Arc::clone(&node));
    match joined {
        None => service.spawn("gate", options.gate.serve(router, service.shutdown())),
        Some(joined) => {
            let router = joined.guard(router);
            joined.dial_out(&router, node.ingresses.subscribe(), &service);
            let served = options.gate.serve_with(joined.credentials(), router, service.shutdown());
            service.spawn("gate", served);
            service.spawn_until_shutdown("certificate", joined.keep());
        }
    }
    let stop_file = options.run_dir.join(STOP_INSTANCES_FILE);
    service.spawn("assignments", agent.run(location, stop_file.clone()));
    let outcome = service.run().await;
    if stop_file.exists() {
        remove_shared(node, &stop_file).await;
    }
    Ok(outcome?)
}

/// The cgroup that an agent makes its own.
fn cgroup_root(parent: Option<String>, agent: AgentId) -> String {
    format!("{}/longshore-{agent}", parent.unwrap_or_default())
}

/// Removes what the instances shared, once none is left, and then the file that said so.
async fn remove_shared(node: Arc<Node>, stop_file: &Path) {
    match Arc::into_inner(node) {
        None => tracing::warn!("a task still runs; leaving the network for the next start"),
        Some(node) => {
            node.shims.remove_empty_root();
            if let Err(error) = node.network.remove_all().await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "cannot remove the network");
            }
        }
    }
    // Left behind it would only end the instances of a next start, of which there are none.
    let _ = std::fs::remove_file(stop_file);
}

/// What follows from how a node belongs to its location.
struct Belonging {
    location: Client,
    source: Arc<dyn Source>,
    /// Where its gate is reached.
    gate: String,
    joined: Option<Arc<Joined>>,
}

fn belong(
    membership: Membership,
    name: &NodeName,
    location: Endpoint,
    gate: &Listener,
) -> Result<Belonging, NodeError> {
    match membership {
        Membership::Local { registry } => {
            let gate = gate.endpoint().map_err(|source| NodeError::Disk {
                doing: "tell the address of",
                path: PathBuf::from("the gate"),
                source,
            })?;
            let location = Client::new(location);
            Ok(Belonging {
                source: match registry {
                    Some((registry, token_file)) => registry_source(&registry, token_file)?,
                    None => Arc::new(LocationSource::new(location.clone(), name.clone(), None)),
                },
                location,
                gate: gate.to_string(),
                joined: None,
            })
        }
        Membership::Joined { identity_file, advertised } => {
            let joined = Arc::new(Joined::open(name.clone(), identity_file, location)?);
            let location = joined.client();
            let near = Some(Near::new(Arc::clone(&joined)));
            let source = Arc::new(LocationSource::new(location.clone(), name.clone(), near));
            let gate = Endpoint::Tls(advertised).to_string();
            Ok(Belonging { location, source, gate, joined: Some(joined) })
        }
    }
}

fn registry_source(registry: &Endpoint, token: PathBuf) -> Result<Arc<dyn Source>, NodeError> {
    let text = std::fs::read_to_string(&token);
    let doing = "read the token in";
    let text = text.map_err(|source| NodeError::Disk { doing, path: token, source })?;
    let token = Some(text.trim().to_owned());
    let client = longshore_image::client::RegistryClient::new(&registry.to_string(), token);
    match client {
        Ok(client) => Ok(Arc::new(client)),
        Err(error) => Err(NodeError::Registry(format!("{registry}: {error}"))),
    }
}

/// Starts what goes on for ever with the images on the disk.
fn look_after_images(node: &Arc<Node>, service: &Service) {
    service.spawn_until_shutdown("beginnings", remove_old_beginnings(Arc::clone(node)));
    service.spawn_until_shutdown("images", stock::keep(Arc::clone(node)));
    service.spawn_until_shutdown("wishes", prewarm::follow(Arc::clone(node)));
    service.spawn_until_shutdown("prewarm", prewarm::keep(Arc::clone(node)));
}

/// Removes what came of layers that nobody came back for, now and then.
async fn remove_old_beginnings(node: Arc<Node>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let swept = Arc::clone(&node);
        match tokio::task::spawn_blocking(move || swept.images.remove_old_beginnings()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "cannot remove what came of layers");
            }
            Err(error) => tracing::error!(%error, "sweeping did not end"),
        }
    }
}
