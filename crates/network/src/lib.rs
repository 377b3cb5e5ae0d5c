//! The network of a node's instances, and their user namespaces, which the network hangs on.
//!
//! Every instance has a network namespace of its own, joined to the host by a routed veth pair: no
//! bridge, no broadcast domain that instances share, nothing between two of them but the host's
//! routing and our packet rules. By default an instance reaches the public internet and the DNS
//! resolver on its gateway's address, and nothing else; `[egress] allow` adds to that. From
//! outside nobody reaches an instance but the host itself, which is how the node gate does.
//!
//! The namespace belongs to a user namespace of the instance's own, unless it does without: that
//! must exist first, and is made ahead of need with the rest. The ids in it follow from the address.
//!
//! Everything that is made in the kernel carries the agent's id, so that many agents live on one
//! kernel; the kernel is also where the truth is kept: [`Network::open`] after a kill at any moment
//! adopts what is whole and removes what is not.
//!
//! Must not know: containers, images, apps, who decides where instances run. Main types:
//! [`Network`], [`NetworkConfig`], [`Attachment`], [`AgentId`]. Test as root (every test makes a
//! host of its own out of namespaces): `cargo nextest run -p longshore-network`. Needs the program
//! `nft` (Debian: nftables); its tests also `ip`, `iptables` and `sysctl` (iproute2, iptables, procps).

#![deny(missing_docs)]

mod agent_id;
mod dns;
mod iptables;
mod layout;
mod lock;
mod namespace;
mod netlink;
mod network;
mod nft;
mod program;
mod record;
mod ruleset;
mod slots;
mod subnet;
mod sysctl;
mod users;

pub use agent_id::AgentId;
pub use iptables::FirewallError;
pub use namespace::NamespaceError;
pub use netlink::NetlinkError;
pub use network::{
    AttachError, Attachment, DetachError, InstanceUsers, Network, NetworkConfig, OpenNetworkError,
    ReconcileError, RemoveError, Traffic,
};
pub use nft::NftError;
pub use record::RecordError;
pub use slots::SlotError;
pub use subnet::ChooseSubnetError;
pub use sysctl::SysctlError;
pub use users::{HOLD_NAMESPACES_VERB, hold_namespaces_main};
