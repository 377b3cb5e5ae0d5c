use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use longshore_types::{InstanceId, IpNet};

use crate::iptables::FirewallError;
use crate::netlink::NetlinkError;
use crate::nft::NftError;
use crate::record::RecordError;
use crate::slots::SlotError;
use crate::subnet::ChooseSubnetError;
use crate::sysctl::SysctlError;

/// The network could not be opened. Whatever was made stays until the next attempt or
/// [`Network::remove_all`](crate::Network::remove_all).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenNetworkError {
    /// A directory could not be made, listed or locked.
    #[error("prepare directory {path}", path = path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Our own program cannot be read.
    #[error("open the program {path}, which makes user namespaces", path = path.display())]
    Holder {
        /// The program.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Another process has this network open.
    #[error("another process uses the run directory {path}", path = path.display())]
    AlreadyOpen {
        /// The run directory.
        path: PathBuf,
    },
    /// The kernel gave no netlink socket.
    #[error("open a netlink socket")]
    NetlinkSocket(#[source] io::Error),
    /// The host's resolvers are not known.
    #[error("read the host's resolvers from {path}", path = path.display())]
    Resolvers {
        /// The file that names them.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// No subnet could be claimed.
    #[error(transparent)]
    Subnet(#[from] ChooseSubnetError),
    /// The kernel could not be told to forward packets.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// A link, an address or a route.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The packet rules.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// The system's firewall.
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    /// The gateway link, or a leftover of an earlier process.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// The records of instances.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The resolver's address is taken.
    #[error(
        "listen on {address} for DNS; does another resolver listen on port 53 of all addresses?"
    )]
    BindDns {
        /// The address.
        address: SocketAddr,
        /// Why it failed.
        source: io::Error,
    },
}

/// An instance could not be given a network. Nothing of the attempt is left.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// Every address is in use.
    #[error("all addresses of {subnet} are in use")]
    Full {
        /// The subnet.
        subnet: IpNet,
    },
    /// The namespace with its link.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// The egress list.
    #[error(transparent)]
    Egress(#[from] NftError),
    /// The record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// What was left of the instance's network, whose namespace somebody unmounted.
    #[error(transparent)]
    Broken(#[from] DetachError),
    /// The name of the namespace.
    #[error("name the network namespace of {instance}")]
    Name {
        /// The instance.
        instance: InstanceId,
        /// Why it failed.
        source: io::Error,
    },
}

/// The network of an instance could not be removed. What is left goes with the next attempt.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DetachError {
    /// The namespace with its link.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// The egress list.
    #[error(transparent)]
    Egress(#[from] NftError),
    /// The record.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// The network could not be put back to what it should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReconcileError {
    /// The packet rules.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// A link, an address or a route.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The gateway link or the link of an instance.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// The system's firewall.
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    /// Forwarding of packets.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// The host's resolvers are not known.
    #[error("read the host's resolvers")]
    Resolvers(#[source] io::Error),
}

/// The network could not be removed whole. What is left goes with the next attempt.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoveError {
    /// An instance.
    #[error(transparent)]
    Detach(#[from] DetachError),
    /// A slot that was nobody's, or the gateway link.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// The packet rules.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// The system's firewall.
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    /// A link or a route.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A file or directory.
    #[error("remove {path}", path = path.display())]
    File {
        /// The path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}
