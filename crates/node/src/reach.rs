//! Whether the addresses answer that apps have to reach from here.
//!
//! Tried from the machine's own network and not from an instance's, which may not exist yet. So nobody may learn from
//! a try what instances could not: what is the machine's own is never tried, and an address of a private network
//! only when the manifest names it itself, which is refused unless `[egress]` opens it. A name may stand
//! for public addresses alone. No byte is sent or read.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use longshore_link::now;
use longshore_types::{IpNet, ReachAddress, Reached};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::Node;

/// How often each is tried.
const INTERVAL: Duration = Duration::from_secs(30);
/// How long one may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// How many are tried at the same time.
const AT_ONCE: usize = 16;

/// The addresses to try, and what the last tries came to.
#[derive(Debug)]
pub struct Reach {
    wanted: watch::Sender<BTreeSet<ReachAddress>>,
    tries: watch::Sender<Vec<Reached>>,
}

impl Default for Reach {
    fn default() -> Self {
        Self { wanted: watch::channel(BTreeSet::new()).0, tries: watch::channel(Vec::new()).0 }
    }
}

impl Reach {
    /// Tries these from now on, and no others.
    pub fn want(&self, addresses: BTreeSet<ReachAddress>) {
        self.wanted.send_if_modified(|before| {
            let news = *before != addresses;
            *before = addresses;
            news
        });
    }

    /// What the last tries came to.
    pub fn tries(&self) -> watch::Receiver<Vec<Reached>> {
        self.tries.subscribe()
    }
}

/// Tries what is wanted, again and again.
pub async fn keep(node: Arc<Node>) {
    let mut wanted = node.reach.wanted.subscribe();
    loop {
        let addresses = wanted.borrow_and_update().clone();
        let tries = try_all(addresses).await;
        node.reach.tries.send_if_modified(|before| {
            let news = *before != tries;
            *before = tries;
            news
        });
        // The sender lives as long as the agent; without news the time is over.
        let _ = tokio::time::timeout(INTERVAL, wanted.changed()).await;
    }
}

async fn try_all(addresses: BTreeSet<ReachAddress>) -> Vec<Reached> {
    let tries = stream::iter(addresses.into_iter().map(try_one));
    tries.buffered(AT_ONCE).collect().await
}

async fn try_one(address: ReachAddress) -> Reached {
    let error = match tokio::time::timeout(PATIENCE, connect(&address)).await {
        Ok(outcome) => outcome.err(),
        Err(_) => Some(format!("no answer within {} s", PATIENCE.as_secs())),
    };
    Reached { address, at: now(), error }
}

async fn connect(address: &ReachAddress) -> Result<(), String> {
    let (host, port) = (address.host(), address.port().get());
    let named = host.parse::<Ipv4Addr>().ok();
    let found = tokio::net::lookup_host((host, port)).await.map_err(|error| error.to_string())?;
    let mut last = "it has no IPv4 address".to_owned();
    for found in found {
        // Instances have no IPv6.
        let SocketAddr::V4(found) = found else { continue };
        if let Some(why) = closed(*found.ip(), named) {
            return Err(why);
        }
        match TcpStream::connect(found).await {
            Ok(_) => return Ok(()),
            Err(error) => last = error.to_string(),
        }
    }
    Err(last)
}

/// Why an address is not tried, which is what was `named` or what a name stands for.
fn closed(address: Ipv4Addr, named: Option<Ipv4Addr>) -> Option<String> {
    if address.is_loopback() || address.is_link_local() || address.is_unspecified() {
        return Some(format!("{address} is of each machine by itself"));
    }
    let is_private = !IpNet::is_public(address) && named != Some(address);
    is_private.then(|| {
        format!("it stands for {address}, of a private network, which has to be named itself")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_answers_is_told_apart_from_what_does_not() {
        // An address of this machine that is not its own alone, which a test needs no network for.
        let Some(own) = own_address() else {
            eprintln!("skipped: this machine has no address on a network");
            return;
        };
        let listener = std::net::TcpListener::bind((own, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let closed = std::net::TcpListener::bind((own, 0)).unwrap();
        let closed_port = closed.local_addr().unwrap().port();
        drop(closed);
        let addresses = [
            format!("{own}:{port}"),
            format!("{own}:{closed_port}"),
            "no-such-host.invalid:80".to_owned(),
        ];
        let wanted = addresses.iter().map(|text| text.parse().unwrap()).collect();
        let tries = try_all(wanted).await;
        let error = |text: &str| {
            let found = tries.iter().find(|one| one.address.to_string() == text).unwrap();
            found.error.clone()
        };
        assert_eq!(error(&addresses[0]), None);
        assert!(error(&addresses[1]).unwrap().contains("refused"));
        assert!(error(&addresses[2]).is_some());
        assert_eq!(tries.len(), 3);
    }

    /// By which address this machine would speak to others; no packet is sent.
    fn own_address() -> Option<Ipv4Addr> {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
        socket.connect("203.0.113.1:9").ok()?;
        match socket.local_addr().ok()?.ip() {
            std::net::IpAddr::V4(address) if !address.is_loopback() => Some(address),
            _ => None,
        }
    }

    #[tokio::test]
    async fn nobody_learns_of_ports_that_instances_do_not_reach() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        for host in ["127.0.0.1", "localhost", "0.0.0.0"] {
            let tried = try_one(format!("{host}:{port}").parse().unwrap()).await;
            assert!(tried.error.unwrap().contains("of each machine by itself"), "{host}");
        }
        let (private, shared) = (Ipv4Addr::new(10, 0, 0, 5), Ipv4Addr::new(100, 64, 0, 1));
        let test = Ipv4Addr::new(198, 18, 0, 5);
        for address in [private, shared, test] {
            assert!(closed(address, None).is_some(), "a name stands for {address}");
            assert_eq!(closed(address, Some(address)), None);
        }
        assert!(closed(Ipv4Addr::new(169, 254, 169, 254), None).is_some());
        assert_eq!(closed(Ipv4Addr::new(203, 0, 113, 5), None), None);
    }
}
