//! Each agent of a kernel has a subnet of the pool to itself.
//!
//! The claim is a route: it lives as long as the kernel's view of the network, every other agent
//! sees it in the table that it must read anyway, and its metric says whose it is, so that an agent
//! finds its own again after any crash. Choosing and claiming happen under a lock on the network
//! namespace itself, which has exactly the scope of the addresses and needs no file: agents in
//! other namespaces do not wait, agents in other containers on this one do.
//!
//! The user ids of an agent's instances follow from its subnet (`layout`), so a subnet whose ids
//! another agent's claim has already is not free either.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use longshore_types::IpNet;
use nix::fcntl::Flock;
use serde::{Deserialize, Serialize};

use crate::AgentId;
use crate::layout::{N_ID_BLOCKS, SUBNET_PREFIX_LEN, id_block, link_prefix};
use crate::netlink::{Netlink, NetlinkError, Route};

/// No subnet could be claimed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChooseSubnetError {
    /// The pool is smaller than one subnet.
    #[error(
        "the address pool {pool} is too small: use a network of /{SUBNET_PREFIX_LEN} or larger"
    )]
    PoolTooSmall {
        /// The configured pool.
        pool: IpNet,
    },
    /// Every subnet of the pool is in use by a route of this machine.
    #[error(
        "no /{SUBNET_PREFIX_LEN} of the address pool {pool} is free; the first is taken by \
         the route to {taken_by}: configure a pool that this machine does not use, and run at \
         most {N_ID_BLOCKS} agents on a machine"
    )]
    PoolExhausted {
        /// The configured pool.
        pool: IpNet,
        /// The route that is in the way of the first subnet.
        taken_by: IpNet,
    },
    /// Another process holds the lock under which subnets are chosen.
    #[error("another process has held the lock on this network namespace for too long")]
    Locked,
    /// The lock could not be taken.
    #[error("lock this network namespace")]
    Lock(#[source] io::Error),
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The choice could not be saved.
    #[error("save the chosen subnet in {path}", path = path.display())]
    Save {
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// The choice as it is kept across reboots, so that an agent's addresses stay what they were as
/// long as nobody else took them.
#[derive(Serialize, Deserialize)]
struct Saved {
    subnet: IpNet,
}

const FILE: &str = "network.json";

/// The metric of the agent's claim. Never 0, which would mean "no metric".
pub(crate) fn claim_metric(agent: AgentId) -> u32 {
    0x4c00_0000 | agent.number()
}

/// Finds the subnet that the agent has, or claims one: if it is free the one it had before the
/// reboot, else the first of the pool that no route of this machine and no address in `avoid`
/// lies in.
pub(crate) async fn ensure_claimed(
    netlink: &Netlink,
    agent: AgentId,
    pool: IpNet,
    avoid: &[SocketAddr],
    state_dir: &Path,
) -> Result<IpNet, ChooseSubnetError> {
    let _lock = lock_namespace().await?;
    let routes = foreign_routes(netlink, agent).await?;
    let subnet = match own_claim(netlink, agent).await? {
        Some(subnet) => subnet,
        None => choose(pool, saved(state_dir), &routes, avoid)?,
    };
    save(state_dir, subnet)?;
    netlink.ensure_claim(subnet, claim_metric(agent)).await?;
    Ok(subnet)
}

/// Forgets the choice.
pub(crate) fn ensure_forgotten(state_dir: &Path) -> io::Result<()> {
    match fs::remove_file(state_dir.join(FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn choose(
    pool: IpNet,
    preferred: Option<IpNet>,
    routes: &[Route],
    avoid: &[SocketAddr],
) -> Result<IpNet, ChooseSubnetError> {
    if pool.prefix_len() > SUBNET_PREFIX_LEN {
        return Err(ChooseSubnetError::PoolTooSmall { pool });
    }
    let in_the_way = |subnet: IpNet| {
        let avoided = avoid.iter().filter_map(|resolver| match resolver.ip() {
            IpAddr::V4(address) => IpNet::new(address, 32),
            IpAddr::V6(_) => None,
        });
        let routed = routes.iter().map(|route| route.destination);
        // A default route, or the two halves that VPN clients make of it, takes nothing.
        let in_use = routed.filter(|net| net.prefix_len() > 1).chain(avoided);
        let claims = routes.iter().filter(|route| route.is_claim).map(|route| route.destination);
        let same_ids = claims.filter(|claim| id_block(*claim) == id_block(subnet));
        in_use.filter(|net| net.overlaps(subnet)).chain(same_ids).next()
    };
    let within_pool = |subnet: &IpNet| {
        subnet.prefix_len() == SUBNET_PREFIX_LEN && pool.contains(subnet.address())
    };
    let step = 1u64 << (32 - SUBNET_PREFIX_LEN);
    let all = (0..pool.size() / step).filter_map(|idx| {
        let address = pool.nth(u32::try_from(idx * step).ok()?)?;
        IpNet::new(address, SUBNET_PREFIX_LEN)
    });
    let mut first_obstacle = pool;
    for subnet in preferred.filter(within_pool).into_iter().chain(all) {
        match in_the_way(subnet) {
            None => return Ok(subnet),
            Some(net) if first_obstacle == pool => first_obstacle = net,
            Some(_) => {}
        }
    }
    Err(ChooseSubnetError::PoolExhausted { pool, taken_by: first_obstacle })
}

async fn own_claim(netlink: &Netlink, agent: AgentId) -> Result<Option<IpNet>, NetlinkError> {
    let metric = claim_metric(agent);
    let routes = netlink.routes().await?;
    let claim = routes.into_iter().find(|route| route.is_claim && route.metric == metric);
    Ok(claim.map(|route| route.destination))
}

/// The routes of others: without those over the agent's own links, which are there when only the
/// claim was lost to someone who cleaned the routing table.
async fn foreign_routes(netlink: &Netlink, agent: AgentId) -> Result<Vec<Route>, NetlinkError> {
    let prefix = link_prefix(agent);
    let links = netlink.links().await?;
    let own: Vec<u32> = links
        .into_iter()
        .filter(|(name, _)| name.starts_with(&prefix))
        .map(|(_, index)| index)
        .collect();
    let mut routes = netlink.routes().await?;
    routes.retain(|route| route.link.is_none_or(|link| !own.contains(&link)));
    Ok(routes)
}

fn saved(state_dir: &Path) -> Option<IpNet> {
    // Only a wish: without it the agent gets another subnet, and nothing is lost.
    let text = fs::read_to_string(state_dir.join(FILE)).ok()?;
    serde_json::from_str::<Saved>(&text).ok().map(|saved| saved.subnet)
}

fn save(state_dir: &Path, subnet: IpNet) -> Result<(), ChooseSubnetError> {
    if saved(state_dir) == Some(subnet) {
        return Ok(());
    }
    let path = state_dir.join(FILE);
    let temporary = state_dir.join(format!("{FILE}.new"));
    let text = serde_json::to_vec(&Saved { subnet }).expect("a subnet is valid JSON");
    fs::create_dir_all(state_dir)
        .and_then(|()| fs::write(&temporary, text))
        .and_then(|()| fs::rename(&temporary, &path))
        .map_err(|source| ChooseSubnetError::Save { path, source })
}

/// Choosing takes milliseconds, and a holder that was killed holds nothing.
const LOCK_LIMIT: Duration = Duration::from_secs(30);

async fn lock_namespace() -> Result<Flock<File>, ChooseSubnetError> {
    let netns = File::open("/proc/thread-self/ns/net").map_err(ChooseSubnetError::Lock)?;
    let lock = crate::lock::exclusive(netns, LOCK_LIMIT).await;
    lock.map_err(ChooseSubnetError::Lock)?.ok_or(ChooseSubnetError::Locked)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn route(text: &str) -> Route {
        Route { destination: net(text), metric: 0, link: None, is_claim: false }
    }

    #[test]
    fn the_first_subnet_that_nothing_uses_is_chosen() {
        let pool = net("100.64.0.0/10");
        for (routes, avoid, preferred, expected) in [
            (vec![], vec![], None, "100.64.0.0/22"),
            (vec!["0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1"], vec![], None, "100.64.0.0/22"),
            (vec!["100.64.0.0/22", "100.64.5.7"], vec![], None, "100.64.8.0/22"),
            (vec!["100.64.0.0/20"], vec![], None, "100.64.16.0/22"),
            (vec![], vec!["100.64.1.1:53"], None, "100.64.4.0/22"),
            (vec![], vec!["[::1]:53"], Some("100.127.252.0/22"), "100.127.252.0/22"),
            (vec!["100.100.0.0/16"], vec![], Some("100.100.0.0/22"), "100.64.0.0/22"),
            (vec![], vec![], Some("10.0.0.0/22"), "100.64.0.0/22"),
        ] {
            let routes: Vec<Route> = routes.into_iter().map(route).collect();
            let avoid: Vec<SocketAddr> = avoid.into_iter().map(|a| a.parse().unwrap()).collect();
            let chosen = choose(pool, preferred.map(net), &routes, &avoid).unwrap();
            assert_eq!(chosen, net(expected), "{routes:?} {avoid:?} {preferred:?}");
        }
    }

    #[test]
    fn a_subnet_whose_ids_another_agent_has_is_not_free() {
        let claim = |text: &str| Route { is_claim: true, ..route(text) };
        let other_pool = "10.0.0.0/22";
        let pool = net("100.64.0.0/10");
        let same_ids = (0..64).map(|idx| pool.nth(idx << 10).unwrap());
        let same_ids = same_ids.map(|address| IpNet::new(address, 22).unwrap());
        let same_ids =
            same_ids.into_iter().find(|subnet| id_block(*subnet) == id_block(net(other_pool)));
        let same_ids = same_ids.unwrap();
        let chosen = |routes: &[Route]| choose(pool, Some(same_ids), routes, &[]).unwrap();
        assert_eq!(chosen(&[route(other_pool)]), same_ids);
        assert_ne!(chosen(&[claim(other_pool)]), same_ids);
        let all: Vec<Route> = (0..63).map(|idx| claim(&format!("10.1.{}.0/22", idx * 4))).collect();
        assert!(choose(pool, None, &all, &[]).is_err());
    }

    #[test]
    fn a_pool_without_a_free_subnet_is_refused_with_what_is_in_the_way() {
        let error = choose(net("10.0.0.0/21"), None, &[route("10.0.0.0/8")], &[]).unwrap_err();
        assert!(error.to_string().contains("route to 10.0.0.0/8"), "{error}");
        let error = choose(net("10.0.0.0/24"), None, &[], &[]).unwrap_err();
        assert!(error.to_string().contains("/22 or larger"), "{error}");
    }
}
