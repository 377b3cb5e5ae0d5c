//! Connections that nodes of other machines keep open to this ingress, by which those are reached whose gates cannot be
//! dialled. So what goes to them does not go through the location, whose death breaks nothing.
//!
//! Which nodes may open some the location says with each table, by their keys; so a node that is removed is nobody here
//! either. It says the same to the node of where this ingress is.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Duration;

use longshore_link::{Reverse, Reverses};
use longshore_trust::{Fingerprint, Name, Peer};
use longshore_types::{LocationName, NodeName};
use tokio::time::Instant;

/// A node that opened a connection within this time opens another one when all are taken.
const LATELY: Duration = Duration::from_secs(5);

/// What nodes opened.
#[derive(Debug, Default)]
pub(crate) struct Opened {
    known: RwLock<BTreeMap<NodeName, Fingerprint>>,
    reverses: Reverses,
    /// When a node opened the last one.
    last: Mutex<BTreeMap<NodeName, Instant>>,
}

impl Opened {
    /// Takes over which nodes may open connections, by the SHA-256 of their keys.
    pub fn know(&self, nodes: &BTreeMap<NodeName, String>) {
        // What is no key is nobody's.
        let key = |(node, key): (&NodeName, &String)| Some((node.clone(), key.parse().ok()?));
        let known: BTreeMap<_, _> = nodes.iter().filter_map(key).collect();
        let is_known = |name: &Name| match name {
            Name::Node(_, node) => known.contains_key(node),
            _ => false,
        };
        self.reverses.retain(is_known);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.retain(|node, _| known.contains_key(node));
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = known;
    }

    /// The node of this location that a peer is, when it may open connections, and where those are kept.
    pub fn recognize(&self, peer: &Peer, own: &LocationName) -> Option<(NodeName, Reverse)> {
        let Peer::Known { name: name @ Name::Node(location, node), key, .. } = peer else {
            return None;
        };
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let is_it = location == own && known.get(node) == Some(key);
        is_it.then(|| (node.clone(), self.reverses.of(name, *key)))
    }

    /// A node opened a connection.
    pub fn note(&self, node: &NodeName) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.insert(node.clone(), Instant::now());
    }

    /// What a node has opened, when it has one open or will have in a moment.
    pub fn by(&self, node: &NodeName, own: &LocationName) -> Option<Reverse> {
        let key = *self.known.read().unwrap_or_else(PoisonError::into_inner).get(node)?;
        let reverse = self.reverses.of(&Name::Node(own.clone(), node.clone()), key);
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let lately = last.get(node).is_some_and(|last| last.elapsed() < LATELY);
        (reverse.is_open() || lately).then_some(reverse)
    }
}
