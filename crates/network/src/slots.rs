//! Making and removing slots: the kernel's part of an instance's network.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;

use tokio_util::task::TaskTracker;

use crate::layout::{INSIDE_LINK, Layout, SLOTS, Slot};
use crate::namespace::{self, NamespaceError};
use crate::netlink::{Netlink, NetlinkError, VethPair};
use crate::sysctl::{self, SysctlError};
use crate::users::Holder;

/// A namespace with its link could not be made or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SlotError {
    /// The namespace itself.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// A link, an address or a route.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A setting of the host's end of the link.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
}

/// The index of the loopback link, the first of every namespace.
const LOOPBACK_INDEX: u32 = 1;

/// To which user namespace the network of an instance belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// One that is the instance's own.
    Instance,
    /// The machine's: for an instance that does without one of its own. The network namespace of a
    /// user namespace would not do, since the machine's root has every right over that, and an
    /// instance like this may run as the machine's root.
    Machine,
}

/// What slots are made with.
pub(crate) struct SlotMaker {
    pub(crate) layout: Layout,
    pub(crate) holder: Holder,
    pub(crate) netlink: Netlink,
    /// The largest packet that the way out carries, in bytes.
    pub(crate) mtu: u32,
    pub(crate) tasks: TaskTracker,
}

impl SlotMaker {
    /// Makes everything of a slot; what is left of an earlier attempt is replaced.
    pub(crate) async fn make(&self, slot: Slot, owner: Owner) -> Result<(), SlotError> {
        self.netlink.ensure_no_link(&self.layout.link(slot)).await?;
        let netns = self.layout.netns(slot);
        match owner {
            Owner::Instance => {
                let users = self.layout.users(slot);
                self.holder.create(self.layout.ids(slot), &users, &netns).await?;
                namespace::configure_existing(&netns).await?;
            }
            Owner::Machine => namespace::create(&netns).await?,
        }
        self.ensure_plugged(slot).await
    }

    /// To whom the namespace of a slot belongs; none when it is not there.
    pub(crate) fn owner(&self, slot: Slot) -> Option<Owner> {
        let layout = &self.layout;
        namespace::is_mounted(&layout.netns(slot)).then(|| {
            if namespace::is_mounted(&layout.users(slot)) {
                Owner::Instance
            } else {
                Owner::Machine
            }
        })
    }

    /// Connects the namespace of a slot to the host, as far as it is not.
    ///
    /// The veth is routed: both ends know the other's hardware address for good, so that nothing
    /// is broadcast, nothing can be claimed by answering first, and the first packet waits for
    /// nobody.
    pub(crate) async fn ensure_plugged(&self, slot: Slot) -> Result<(), SlotError> {
        let path = self.layout.netns(slot);
        let netns = File::open(&path).map_err(|source| NamespaceError::Step {
            doing: "open",
            path: path.clone(),
            source,
        })?;
        let name = self.layout.link(slot);
        let index = self
            .netlink
            .ensure_veth(&VethPair {
                name: &name,
                mac: self.layout.host_mac(slot),
                peer_name: INSIDE_LINK,
                peer_mac: self.layout.inside_mac(slot),
                peer_netns: Some(netns.as_fd()),
                mtu: self.mtu,
            })
            .await?;
        sysctl::ensure_no_ipv6(&name)?;
        sysctl::ensure(&format!("net/ipv4/conf/{name}/forwarding"), "1")?;
        self.netlink.set_up(index).await?;
        let inside = namespace::connect(&path, &self.tasks).await?;
        self.configure_inside(slot, &inside).await?;
        let address = self.layout.address(slot);
        self.netlink.ensure_neighbour(index, address, self.layout.inside_mac(slot)).await?;
        self.netlink.wait_for_carrier(index).await?;
        self.netlink.ensure_link_route(address, index, self.layout.gateway()).await?;
        Ok(())
    }

    async fn configure_inside(&self, slot: Slot, inside: &Netlink) -> Result<(), NetlinkError> {
        let (address, gateway) = (self.layout.address(slot), self.layout.gateway());
        inside.set_up(LOOPBACK_INDEX).await?;
        let link = inside.existing_link_index(INSIDE_LINK).await?;
        inside.set_up(link).await?;
        inside.ensure_address(link, address).await?;
        inside.ensure_neighbour(link, gateway, self.layout.host_mac(slot)).await?;
        inside.ensure_link_route(gateway, link, address).await?;
        inside.ensure_default_route(gateway).await?;
        inside.wait_for_carrier(link).await
    }

    /// Removes everything of a slot, as far as it exists.
    pub(crate) async fn ensure_removed(&self, slot: Slot) -> Result<(), SlotError> {
        // The link first: deleted by name it is gone at once, with the namespace only some time
        // later.
        self.netlink.ensure_no_link(&self.layout.link(slot)).await?;
        namespace::ensure_removed(&self.layout.netns(slot))?;
        namespace::ensure_removed(&self.layout.users(slot))?;
        Ok(())
    }
}

/// Which slots are in use. Numbers are given out in turn, so that an address stays unused for as
/// long as possible after its instance, and late answers to that reach nobody.
#[derive(Debug)]
pub(crate) struct SlotNumbers {
    used: BTreeSet<Slot>,
    next: Slot,
}

impl SlotNumbers {
    pub(crate) fn new(used: BTreeSet<Slot>) -> Self {
        let next = used.last().map_or(*SLOTS.start(), |last| last + 1);
        Self { used, next }
    }

    pub(crate) fn take(&mut self) -> Option<Slot> {
        let from_next = (self.next..=*SLOTS.end()).chain(*SLOTS.start()..self.next);
        let slot = from_next.into_iter().find(|slot| !self.used.contains(slot))?;
        self.used.insert(slot);
        self.next = slot + 1;
        Some(slot)
    }

    pub(crate) fn give_back(&mut self, slot: Slot) {
        self.used.remove(&slot);
    }
}

/// The gateway link: a veth pair with both ends on the host, the one kind of link that this
/// network needs anyway (kernels for small machines lack dummy links). Its only purpose is to hold
/// the gateway's address.
pub(crate) async fn ensure_gateway(
    netlink: &Netlink,
    layout: &Layout,
    name: &str,
    address: Ipv4Addr,
) -> Result<(), SlotError> {
    let peer_name = format!("{name}p");
    let pair = VethPair {
        name,
        mac: layout.host_mac(0),
        peer_name: &peer_name,
        peer_mac: layout.inside_mac(0),
        peer_netns: None,
        mtu: 1500,
    };
    let index = netlink.ensure_veth(&pair).await?;
    for link in [name, &peer_name] {
        sysctl::ensure_no_ipv6(link)?;
    }
    netlink.set_up(index).await?;
    netlink.ensure_address(index, address).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_round_before_one_comes_back() {
        let mut numbers = SlotNumbers::new(BTreeSet::from([2, 3, 900]));
        assert_eq!(numbers.take(), Some(901));
        numbers.give_back(901);
        assert_eq!(numbers.take(), Some(902));
        let rest: Vec<Slot> = std::iter::from_fn(|| numbers.take()).collect();
        assert_eq!(rest.len(), SLOTS.count() - 4);
        assert_eq!(rest.last(), Some(&901));
        assert_eq!(numbers.take(), None);
        numbers.give_back(3);
        assert_eq!(numbers.take(), Some(3));
    }
}
