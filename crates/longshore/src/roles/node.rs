//! `longshore node`

use std::path::PathBuf;

use longshore_link::Endpoint;
use longshore_network::AgentId;
use longshore_node::Membership;
use longshore_runtime::RuntimePrograms;
use longshore_types::{DeclaredGpus, DiskMarks, IpNet, NodeName, PullRate};

use super::{MetricsOptions, Threads, listener};
use crate::failure::{Failure, Kind, OrFail};
use crate::said::SaidOptions;
use crate::supervisor;

/// Join a location as a node, start what joined, or run the agent of a node alone
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Verb {
    Join(Box<supervisor::NodeJoinOptions>),
    Start(Box<supervisor::NodeStartOptions>),
    Agent(Box<AgentOptions>),
}

/// Run the agent of one node alone: images, containers and their network
///
/// `up`, `node join` and `node start` start it; this is for running the roles apart. Instances go on when
/// the agent ends, and it takes them over when it is started again with the same directories.
#[derive(Debug, Clone, clap::Args)]
struct AgentOptions {
    /// The name of the node
    #[arg(long, value_name = "NAME")]
    name: NodeName,
    /// Six hexadecimal digits that mark all that the agent makes on the machine
    #[arg(long, value_name = "ID")]
    agent: AgentId,
    /// The directory of its images and instances
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// The directory of its sockets and mounts
    #[arg(long, value_name = "DIR")]
    run_dir: PathBuf,
    /// Where it listens for requests to instances, logs and commands
    #[arg(long, value_name = "ENDPOINT")]
    gate_listen: Endpoint,
    /// Where its location listens
    #[arg(long, value_name = "ENDPOINT")]
    location: Endpoint,
    /// Where the registry is [default: images are had from the location]
    #[arg(long, value_name = "ENDPOINT", requires = "registry_token_file")]
    registry: Option<Endpoint>,
    /// The file with the token for the registry
    #[arg(long, value_name = "FILE", requires = "registry")]
    registry_token_file: Option<PathBuf>,
    /// The file with the key and the certificate of a node that joined from another machine
    #[arg(long, value_name = "FILE", requires = "gate_advertise")]
    identity_file: Option<PathBuf>,
    /// The host and port by which its location reaches the gate of such a node
    #[arg(long, value_name = "HOST:PORT")]
    gate_advertise: Option<String>,
    /// The IPv4 network that instances get their addresses from
    #[arg(long, value_name = "NETWORK")]
    instance_pool: IpNet,
    /// How many times over the processor time of the machine is promised
    #[arg(long, value_name = "FACTOR", default_value_t = 4.0)]
    cpu_overcommit: f64,
    /// When images that nothing keeps leave the disk: over the second percentage of it, down to the first
    #[arg(long, value_name = "LOW-HIGH", default_value_t)]
    image_disk: DiskMarks,
    /// How much of the network pulls of images may take together, a second
    #[arg(long, value_name = "SIZE", default_value_t)]
    image_rate: PullRate,
    /// How much of that those may take that no instance waits for, and how much other nodes that are given layers, a
    /// second
    #[arg(long, value_name = "SIZE", default_value_t)]
    prewarm_rate: PullRate,
    /// GPUs that the machine has, for apps that need some, such as h100:80GiB:4; may be given several times
    #[arg(long = "gpu", value_name = "MODEL:MEMORY[:COUNT]")]
    gpus: Vec<DeclaredGpus>,
    #[command(flatten)]
    said: SaidOptions,
    /// The cgroup below which the agent makes its own [default: the root]
    #[arg(long, value_name = "PATH")]
    cgroup_parent: Option<String>,
    /// The program runc [default: the one in the usual places]
    #[arg(long, value_name = "PATH")]
    runc: Option<PathBuf>,
    /// The program crun, likewise
    #[arg(long, value_name = "PATH")]
    crun: Option<PathBuf>,
    /// The program runsc (gVisor), likewise
    #[arg(long, value_name = "PATH")]
    runsc: Option<PathBuf>,
    #[command(flatten)]
    metrics: MetricsOptions,
}

/// Joins, or runs the role.
pub fn run(options: Options) -> Result<(), Failure> {
    match options.verb {
        Verb::Join(options) => supervisor::join_node(*options),
        Verb::Start(options) => supervisor::start_node(*options),
        Verb::Agent(options) => run_agent(*options),
    }
}

fn membership(options: &AgentOptions) -> Membership {
    if let (Some(file), Some(advertised)) = (&options.identity_file, &options.gate_advertise) {
        let (identity_file, advertised) = (file.clone(), advertised.clone());
        return Membership::Joined { identity_file, advertised };
    }
    let registry = options.registry.clone().zip(options.registry_token_file.clone());
    Membership::Local { registry }
}

fn run_agent(options: AgentOptions) -> Result<(), Failure> {
    let membership = membership(&options);
    let gate = listener("gate", &options.gate_listen)?;
    let metrics = options.metrics.listener()?;
    let exe = supervisor::own_program().or_fail(Kind::Other, "cannot find our own program")?;
    let dir = options.data_dir.clone();
    super::run("node", &dir, Threads::Few, |shutdown| {
        let options = longshore_node::Options {
            name: options.name,
            agent: options.agent,
            data_dir: options.data_dir,
            run_dir: options.run_dir,
            gate,
            location: options.location,
            membership,
            exe,
            cgroup_parent: options.cgroup_parent,
            instance_pool: options.instance_pool,
            cpu_overcommit: options.cpu_overcommit,
            image_disk: options.image_disk,
            image_rate: options.image_rate,
            prewarm_rate: options.prewarm_rate,
            traits: options.said.traits(),
            gpus: DeclaredGpus::each(&options.gpus),
            programs: RuntimePrograms {
                runc: options.runc,
                crun: options.crun,
                runsc: options.runsc,
            },
            metrics,
        };
        longshore_node::run(options, shutdown)
    })
}
