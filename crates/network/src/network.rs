//! The network of one node agent, as the agent uses it.

mod attach;
mod error;
mod open;
mod restore;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use longshore_types::{EgressRule, IdRange, InstanceId, IpNet};
use nix::fcntl::Flock;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::AgentId;
use crate::dns::Upstreams;
use crate::layout::Slot;
use crate::lock::InstanceLocks;
use crate::nft::Nft;
use crate::record::Records;
use crate::slots::{Owner, SlotMaker, SlotNumbers};

pub use error::{AttachError, DetachError, OpenNetworkError, ReconcileError, RemoveError};

/// What a network is opened with.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// Tells this agent's links, tables and routes from those of others on the same kernel.
    pub agent: AgentId,
    /// A directory of this agent alone that does not survive a reboot (a tmpfs): namespaces are
    /// mounted here, and beside them is written which instance has which.
    pub run_dir: PathBuf,
    /// A directory of this agent alone that survives a reboot: keeps the chosen subnet.
    pub state_dir: PathBuf,
    /// The private network of which each agent takes a /22.
    pub pool: IpNet,
    /// The program whose command [`HOLD_NAMESPACES_VERB`](crate::HOLD_NAMESPACES_VERB) is
    /// [`hold_namespaces_main`](crate::hold_namespaces_main).
    pub holder: PathBuf,
    /// The resolvers to which questions are forwarded; those of the host's `/etc/resolv.conf` when
    /// absent.
    pub upstream_dns: Option<Vec<SocketAddr>>,
}

impl NetworkConfig {
    /// The network that agents share when nothing else is configured: the one that is set aside
    /// for use between a carrier and its customers, and so rarely used inside of a site.
    pub const DEFAULT_POOL: &str = "100.64.0.0/10";

    /// A configuration with the default pool and the host's resolvers.
    pub fn new(agent: AgentId, run_dir: PathBuf, state_dir: PathBuf, holder: PathBuf) -> Self {
        let pool = Self::DEFAULT_POOL.parse().expect("the default pool is a network");
        Self { agent, run_dir, state_dir, pool, holder, upstream_dns: None }
    }
}

/// The network of one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The path of its namespace, for `setns` or an OCI configuration. Of this instance alone: it
    /// never leads to the namespace of another.
    pub netns: PathBuf,
    /// Its address, which means something on this node only.
    pub address: Ipv4Addr,
    /// Its default route and DNS resolver.
    pub gateway: Ipv4Addr,
    /// The user namespace that the network belongs to; absent when that is the machine's own.
    pub users: Option<InstanceUsers>,
}

/// The user namespace of one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceUsers {
    /// Where it is mounted. Of this instance alone: it never leads to the namespace of another.
    pub path: PathBuf,
    /// What its users and groups are on the machine. No other instance has any of these, of this
    /// agent or another in this network namespace.
    pub ids: IdRange,
}

impl Attachment {
    /// The content of its `/etc/resolv.conf`.
    pub fn resolv_conf(&self) -> String {
        format!("nameserver {}\n", self.gateway)
    }

    /// The content of its `/etc/hosts`.
    pub fn hosts(&self, host_name: &str) -> String {
        format!("127.0.0.1\tlocalhost\n{}\t{host_name}\n", self.address)
    }
}

/// The network of a node agent: namespaces, links, packet rules and the resolver of its instances.
///
/// Dropping it stops the resolver and nothing else: instances keep their network, and the next
/// [`Network::open`] with the same directories adopts it.
pub struct Network {
    shared: Arc<Shared>,
}

struct Shared {
    maker: SlotMaker,
    nft: Nft,
    records: Records,
    upstreams: Arc<Upstreams>,
    state_dir: PathBuf,
    instances: Mutex<Instances>,
    locks: InstanceLocks,
    /// The packet rules as last written; held while they are changed.
    rules: tokio::sync::Mutex<RulesWritten>,
    /// Making namespaces is mostly waiting for one lock of the kernel: more at once only makes all
    /// of them later.
    making: Semaphore,
    stop: CancellationToken,
    /// Attaching, detaching and making ahead of need.
    work: TaskTracker,
    /// Refuses a second agent on the same run directory.
    run_dir_lock: Arc<Flock<File>>,
}

/// Who has which slot. Never held across a wait.
struct Instances {
    attached: BTreeMap<InstanceId, Attached>,
    numbers: SlotNumbers,
    /// Slots that are made and nobody's.
    ready: VecDeque<Slot>,
    /// How many slots are being made for `ready`.
    n_underway: usize,
}

#[derive(Debug, Clone)]
struct Attached {
    slot: Slot,
    owner: Owner,
    egress: Vec<EgressRule>,
}

/// What is known about our table in the kernel.
#[derive(Debug, PartialEq, Eq)]
enum RulesWritten {
    /// It was listed like this after it had been written.
    As(String),
    /// It was changed since.
    Changed,
}

impl Network {
    /// The address that instances use as default route and resolver, and from which the host's own
    /// connections reach them.
    pub fn gateway(&self) -> Ipv4Addr {
        self.shared.maker.layout.gateway()
    }

    /// The addresses of this agent's instances.
    pub fn subnet(&self) -> IpNet {
        self.shared.maker.layout.subnet
    }

    /// The instances that are attached, those adopted from an earlier process among them.
    pub fn instances(&self) -> BTreeSet<InstanceId> {
        self.shared.instances().attached.keys().cloned().collect()
    }

    /// The network of an instance, when it is attached.
    pub fn attachment(&self, instance: &InstanceId) -> Option<Attachment> {
        let Attached { slot, owner, .. } =
            self.shared.instances().attached.get(instance).cloned()?;
        Some(self.shared.attachment(instance, slot, owner))
    }
}

/// What passed the link of an instance, in bytes, since its network was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// To the instance.
    pub received: u64,
    /// From the instance.
    pub sent: u64,
}

impl Network {
    /// What passed the link of an instance; absent when it is not attached.
    pub fn traffic(&self, instance: &InstanceId) -> Option<Traffic> {
        let slot = self.shared.instances().attached.get(instance)?.slot;
        let link = self.shared.maker.layout.link(slot);
        let read = |name: &str| -> Option<u64> {
            let path = format!("/sys/class/net/{link}/statistics/{name}");
            // A link that somebody deleted comes back by itself; until then there is no count.
            std::fs::read_to_string(path).ok()?.trim().parse().ok()
        };
        // The host's end receives what the instance sends.
        Some(Traffic { received: read("tx_bytes")?, sent: read("rx_bytes")? })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

impl Shared {
    fn instances(&self) -> MutexGuard<'_, Instances> {
        // Every change of the table is one call, so that a panic elsewhere leaves it consistent.
        self.instances.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attachment(&self, instance: &InstanceId, slot: Slot, owner: Owner) -> Attachment {
        let layout = &self.maker.layout;
        let users =
            || InstanceUsers { path: layout.instance_users(instance), ids: layout.ids(slot) };
        Attachment {
            netns: layout.instance_netns(instance),
            address: layout.address(slot),
            gateway: layout.gateway(),
            users: (owner == Owner::Instance).then(users),
        }
    }
}
