//! What everything of one agent is called, and which address belongs to which slot.
//!
//! A *slot* is a namespace with its link and address. Its number is the host part of its address,
//! so that one number names the link, the hardware addresses and the file of the namespace, and
//! each of these leads back to the others after a crash. Slots are numbered, not called after
//! their instance, because they are made before there is an instance to call them after.
//!
//! The number also names the user and group ids of the slot's user namespace. An id of the machine
//! is six bits for the agent, ten for the slot and sixteen for the id inside, so that whoever sees
//! one in `ps` can tell whose it is, and nothing needs to be remembered.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use longshore_types::{IdRange, InstanceId, IpNet};

use crate::AgentId;

/// The prefix length of an agent's subnet: 1021 instances, and 1024 agents in the default pool.
pub(crate) const SUBNET_PREFIX_LEN: u8 = 22;

/// The host part of the address of an instance.
pub(crate) type Slot = u16;

/// The slots of a subnet: without the network, the gateway and the broadcast address.
pub(crate) const SLOTS: RangeInclusive<Slot> = 2..=1022;

/// The name that the link of an instance has inside of its namespace.
pub(crate) const INSIDE_LINK: &str = "eth0";

/// The prefix of the names of all links of an agent.
pub(crate) fn link_prefix(agent: AgentId) -> String {
    format!("lg{agent}-")
}

/// The name of the host's end of the gateway link.
pub(crate) fn gateway_link(agent: AgentId) -> String {
    format!("{}gw", link_prefix(agent))
}

/// How many agents of one kernel can have ids that no other has.
pub(crate) const N_ID_BLOCKS: u32 = 63;

/// The upper six bits of the ids of the agent that has this subnet: 1 to 63, since the block 0
/// holds the machine's own users. Two agents have the same block only when 63 subnets lie between
/// theirs, which who chooses a subnet sees to. The first subnets of the default pool get the blocks
/// from 10 on, which lie where systemd's list of ids has containers, above what `useradd` hands out
/// as subordinate ids.
pub(crate) fn id_block(subnet: IpNet) -> u32 {
    const SHIFT: u32 = 49;
    let number = u32::from(subnet.address()) >> (32 - SUBNET_PREFIX_LEN);
    (number + SHIFT) % N_ID_BLOCKS + 1
}

#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) agent: AgentId,
    pub(crate) subnet: IpNet,
    run_dir: PathBuf,
}

impl Layout {
    pub(crate) fn new(agent: AgentId, subnet: IpNet, run_dir: &Path) -> Self {
        Self { agent, subnet, run_dir: run_dir.to_owned() }
    }

    pub(crate) fn gateway(&self) -> Ipv4Addr {
        self.subnet.nth(1).expect("the subnet of an agent has 1024 addresses")
    }

    pub(crate) fn address(&self, slot: Slot) -> Ipv4Addr {
        self.subnet.nth(slot.into()).expect("every slot lies in the subnet of the agent")
    }

    /// The slot of an address of the subnet.
    pub(crate) fn slot_of(&self, address: Ipv4Addr) -> Option<Slot> {
        let host_part = u32::from(address).checked_sub(u32::from(self.subnet.address()))?;
        Slot::try_from(host_part).ok().filter(|slot| SLOTS.contains(slot))
    }

    pub(crate) fn link(&self, slot: Slot) -> String {
        format!("{}{slot}", link_prefix(self.agent))
    }

    /// The slot that a link of this agent belongs to.
    pub(crate) fn slot_of_link(&self, name: &str) -> Option<Slot> {
        let slot = name.strip_prefix(&link_prefix(self.agent))?.parse().ok()?;
        SLOTS.contains(&slot).then_some(slot)
    }

    /// The host's hardware address on the link of a slot.
    pub(crate) fn host_mac(&self, slot: Slot) -> [u8; 6] {
        self.mac(0x06, slot)
    }

    /// The hardware address of an instance.
    pub(crate) fn inside_mac(&self, slot: Slot) -> [u8; 6] {
        self.mac(0x02, slot)
    }

    /// A locally administered unicast address. All are chosen, because udev replaces the ones
    /// that the kernel made up, and the permanent neighbour entries would then be wrong.
    fn mac(&self, first: u8, slot: Slot) -> [u8; 6] {
        let [_, a, b, c] = self.agent.number().to_be_bytes();
        let [hi, lo] = slot.to_be_bytes();
        [first, a, b, c, hi, lo]
    }

    /// The ids of the machine that the users and groups of a slot are.
    pub(crate) fn ids(&self, slot: Slot) -> IdRange {
        let first = id_block(self.subnet) << 26 | u32::from(slot) << 16;
        IdRange::new(first).expect("every block and slot begins a range")
    }

    pub(crate) fn users_dir(&self) -> PathBuf {
        self.run_dir.join("users")
    }

    /// The file that the user namespace of a slot is mounted on.
    pub(crate) fn users(&self, slot: Slot) -> PathBuf {
        self.users_dir().join(format!("{SLOT_FILE_PREFIX}{slot}"))
    }

    /// Like [`Layout::instance_netns`], for the user namespace.
    pub(crate) fn instance_users(&self, instance: &InstanceId) -> PathBuf {
        self.users_dir().join(instance.as_str())
    }

    pub(crate) fn netns_dir(&self) -> PathBuf {
        self.run_dir.join("netns")
    }

    /// The file that the namespace of a slot is mounted on.
    pub(crate) fn netns(&self, slot: Slot) -> PathBuf {
        self.netns_dir().join(format!("{SLOT_FILE_PREFIX}{slot}"))
    }

    /// The symbolic link by which others find the namespace of an instance. A slot is given to
    /// another instance one day; this name never is, so that a stale path leads nowhere.
    pub(crate) fn instance_netns(&self, instance: &InstanceId) -> PathBuf {
        self.netns_dir().join(instance.as_str())
    }

    /// The slot that a file in the directory of namespaces belongs to.
    pub(crate) fn slot_of_file(&self, name: &str) -> Option<Slot> {
        let slot = name.strip_prefix(SLOT_FILE_PREFIX)?.parse().ok()?;
        SLOTS.contains(&slot).then_some(slot)
    }

    pub(crate) fn records_dir(&self) -> PathBuf {
        self.run_dir.join("instances")
    }
}

/// An underscore, which no instance id has, keeps the files of slots and instances apart.
const SLOT_FILE_PREFIX: &str = "slot_";

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        let subnet = "100.64.8.0/22".parse().unwrap();
        Layout::new("abc123".parse().unwrap(), subnet, Path::new("/run/x"))
    }

    #[test]
    fn every_name_fits_and_leads_back_to_its_slot() {
        let layout = layout();
        for slot in SLOTS {
            let link = layout.link(slot);
            assert!(link.len() <= 15, "{link} is longer than a link name may be");
            assert_eq!(layout.slot_of_link(&link), Some(slot));
            assert_eq!(layout.slot_of(layout.address(slot)), Some(slot));
            let file = layout.netns(slot);
            let file = file.file_name().unwrap().to_str().unwrap();
            assert_eq!(layout.slot_of_file(file), Some(slot));
        }
    }

    #[test]
    fn ids_are_of_one_slot_and_one_agent() {
        let subnet = |idx: u32| IpNet::new(Ipv4Addr::from(0x6440_0000 + (idx << 10)), 22).unwrap();
        assert_eq!(id_block(subnet(0)), 10);
        let agents = (0..N_ID_BLOCKS)
            .map(|idx| Layout::new("abc123".parse().unwrap(), subnet(idx), Path::new("/run/x")));
        let mut all: Vec<IdRange> =
            agents.flat_map(|layout| SLOTS.map(move |slot| layout.ids(slot))).collect();
        let n_all = all.len();
        all.sort();
        assert!(all.windows(2).all(|pair| pair[0].last() < pair[1].first()));
        assert_eq!(n_all, 63 * 1021);
        assert!(all[0].first() > 65_536_000, "above the first thousand subordinate ranges");
    }

    #[test]
    fn what_is_not_a_slot_is_not_taken_for_one() {
        let layout = layout();
        assert_eq!(layout.gateway(), Ipv4Addr::new(100, 64, 8, 1));
        for link in ["lgabc123-gw", "lgabc123-1", "lgabc123-1023", "lgabc124-5", "eth0"] {
            assert_eq!(layout.slot_of_link(link), None, "{link}");
        }
        for address in ["100.64.8.1", "100.64.7.9", "100.64.12.2", "100.64.11.255"] {
            assert_eq!(layout.slot_of(address.parse().unwrap()), None, "{address}");
        }
        assert_eq!(layout.slot_of_file("web-01234567"), None);
    }
}
