//! Opening: claim a subnet, adopt what an earlier process left, remove what it left half made.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use longshore_types::InstanceId;
use nix::fcntl::Flock;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{
    Attached, Instances, Network, NetworkConfig, OpenNetworkError, ReconcileError, RulesWritten,
    Shared,
};
use crate::dns::{Forwarder, Upstreams};
use crate::layout::{Layout, Slot};
use crate::lock::{self, InstanceLocks};
use crate::netlink::{Netlink, NetlinkError};
use crate::nft::Nft;
use crate::record::{Record, Records, ensure_no_file};
use crate::slots::{SlotMaker, SlotNumbers};
use crate::users::Holder;
use crate::{subnet, sysctl};

/// The MTU when there is no way out yet.
const DEFAULT_MTU: u32 = 1500;

/// An agent that was just killed holds nothing; one that is ending needs a moment.
const RUN_DIR_LOCK_LIMIT: Duration = Duration::from_secs(5);

const N_MADE_AT_ONCE: usize = 2;

impl Network {
    /// Opens the network of an agent: makes what is missing of it, adopts the instances that an
    /// earlier process attached, removes what that left half made, and starts the resolver.
    ///
    /// # Errors
    ///
    /// When another process has it open, when `nft` is missing, when no subnet is free, when the
    /// kernel refuses. A repeated call goes on where the failed one stopped.
    pub async fn open(config: NetworkConfig) -> Result<Self, OpenNetworkError> {
        let nft = Nft::find()?;
        let run_dir_lock = lock_run_dir(&config.run_dir).await?;
        let upstreams = Upstreams::open(config.upstream_dns)
            .map_err(|(path, source)| OpenNetworkError::Resolvers { path, source })?;
        let tasks = TaskTracker::new();
        let netlink = Netlink::connect(&tasks).map_err(OpenNetworkError::NetlinkSocket)?;
        let subnet = subnet::ensure_claimed(
            &netlink,
            config.agent,
            config.pool,
            &upstreams.all(),
            &config.state_dir,
        )
        .await?;
        let layout = Layout::new(config.agent, subnet, &config.run_dir);
        let mtu = uplink_mtu(&netlink).await?.unwrap_or(DEFAULT_MTU);
        let holder = Holder::new(&config.holder)
            .map_err(|source| OpenNetworkError::Holder { path: config.holder, source })?;
        let maker = SlotMaker { layout, holder, netlink, mtu, tasks };

        // A container joins its network as its own root, who must get there.
        ensure_dir(&maker.layout.netns_dir(), 0o711)?;
        ensure_dir(&maker.layout.users_dir(), 0o700)?;
        let (records, recorded) = Records::open(maker.layout.records_dir())?;
        let attached = adopt(&maker, &records, recorded)?;
        remove_leftovers(&maker, &attached).await?;
        let used: BTreeSet<Slot> = attached.values().map(|attached| attached.slot).collect();

        let shared = Arc::new(Shared {
            maker,
            nft,
            records,
            upstreams: Arc::new(upstreams),
            state_dir: config.state_dir,
            instances: Mutex::new(Instances {
                attached,
                numbers: SlotNumbers::new(used),
                ready: Default::default(),
                n_underway: 0,
            }),
            locks: InstanceLocks::default(),
            rules: tokio::sync::Mutex::new(RulesWritten::Changed),
            making: Semaphore::new(N_MADE_AT_ONCE),
            stop: CancellationToken::new(),
            work: TaskTracker::new(),
            run_dir_lock: Arc::new(run_dir_lock),
        });
        let network = Self { shared };
        network.start().await?;
        Ok(network)
    }

    async fn start(&self) -> Result<(), OpenNetworkError> {
        let shared = &self.shared;
        // For the default too, from which every later link takes its own setting.
        sysctl::ensure("net/ipv4/ip_forward", "1")?;
        shared.restore().await?;
        let layout = &shared.maker.layout;
        let forwarder = Forwarder {
            gateway: layout.gateway(),
            clients: layout.subnet,
            upstreams: Arc::clone(&shared.upstreams),
            lock: Arc::clone(&shared.run_dir_lock),
        };
        forwarder
            .start(&shared.maker.tasks, &shared.stop)
            .await
            .map_err(|(address, source)| OpenNetworkError::BindDns { address, source })?;
        Shared::refill(shared);
        Ok(())
    }
}

impl From<ReconcileError> for OpenNetworkError {
    fn from(error: ReconcileError) -> Self {
        match error {
            ReconcileError::Nft(error) => error.into(),
            ReconcileError::Netlink(error) => error.into(),
            ReconcileError::Slot(error) => error.into(),
            ReconcileError::Firewall(error) => error.into(),
            ReconcileError::Sysctl(error) => error.into(),
            ReconcileError::Resolvers(source) => {
                Self::Resolvers { path: Upstreams::FILE.into(), source }
            }
        }
    }
}

fn ensure_dir(path: &Path, mode: u32) -> Result<(), OpenNetworkError> {
    fs::create_dir_all(path)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .map_err(|source| OpenNetworkError::Directory { path: path.to_owned(), source })
}

async fn lock_run_dir(run_dir: &Path) -> Result<Flock<File>, OpenNetworkError> {
    ensure_dir(run_dir, 0o711)?;
    let path = run_dir.to_owned();
    let locked = async {
        // Nobody else may open it, and so hold the lock.
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        let file = options.open(run_dir.join("network.lock"))?;
        lock::exclusive(file, RUN_DIR_LOCK_LIMIT).await
    };
    match locked.await {
        Ok(Some(lock)) => Ok(lock),
        Ok(None) => Err(OpenNetworkError::AlreadyOpen { path }),
        Err(source) => Err(OpenNetworkError::Directory { path, source }),
    }
}

/// The MTU of the link that the default route leads over.
async fn uplink_mtu(netlink: &Netlink) -> Result<Option<u32>, NetlinkError> {
    let routes = netlink.routes().await?;
    let defaults = routes.iter().filter(|route| route.destination.prefix_len() == 0);
    match defaults.min_by_key(|route| route.metric).and_then(|route| route.link) {
        Some(link) => netlink.mtu(link).await,
        None => Ok(None),
    }
}

/// The recorded instances whose namespace is still there. The others are forgotten: after a reboot
/// that is all of them.
fn adopt(
    maker: &SlotMaker,
    records: &Records,
    recorded: BTreeMap<InstanceId, Record>,
) -> Result<BTreeMap<InstanceId, Attached>, OpenNetworkError> {
    let mut attached = BTreeMap::new();
    for (instance, Record { address, egress }) in recorded {
        let slot = maker.layout.slot_of(address);
        match slot.and_then(|slot| Some((slot, maker.owner(slot)?))) {
            Some((slot, owner)) => {
                attached.insert(instance, Attached { slot, owner, egress });
            }
            None => records.remove(&instance)?,
        }
    }
    Ok(attached)
}

/// Removes the links and namespaces that no adopted instance has: slots that were ready, and those
/// of an attach or detach that was cut off.
async fn remove_leftovers(
    maker: &SlotMaker,
    attached: &BTreeMap<InstanceId, Attached>,
) -> Result<(), OpenNetworkError> {
    let layout = &maker.layout;
    let links = maker.netlink.links().await?;
    let mut leftover: BTreeSet<Slot> =
        links.iter().filter_map(|(name, _)| layout.slot_of_link(name)).collect();
    for dir in [layout.netns_dir(), layout.users_dir()] {
        let listed = fs::read_dir(&dir).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
        let entries = listed.map_err(|source| OpenNetworkError::Directory { path: dir, source })?;
        for entry in entries {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if let Some(slot) = layout.slot_of_file(&name) {
                leftover.insert(slot);
            } else if !name.parse().is_ok_and(|instance| attached.contains_key(&instance)) {
                ensure_no_file(&entry.path())?;
            }
        }
    }
    for slot in attached.values().map(|attached| attached.slot) {
        leftover.remove(&slot);
    }
    for slot in leftover {
        maker.ensure_removed(slot).await?;
    }
    Ok(())
}
