//! Whether the addresses answer that apps have to reach from here.
//!
//! Tried from the machine's own network and not from an instance's, which may not exist yet: so an address that
//! `[egress]` closes to an instance answers here all the same. The manifest is refused where that is known.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use longshore_link::now;
use longshore_types::{ReachAddress, Reached};
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
    let connect = TcpStream::connect((address.host(), address.port().get()));
    let error = match tokio::time::timeout(PATIENCE, connect).await {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(format!("no answer within {} s", PATIENCE.as_secs())),
    };
    Reached { address, at: now(), error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_answers_is_told_apart_from_what_does_not() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let closed_port = closed.local_addr().unwrap().port();
        drop(closed);
        let addresses = [
            format!("127.0.0.1:{port}"),
            format!("127.0.0.1:{closed_port}"),
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
}
