//! Which nodes give each other parts of images, and that each is given nothing but what is its.
//!
//! A node that pulls is told who else has the image or pulls it. Those it asks do not take its word: they ask here,
//! for each layer, whether it should have that, so nothing is handed out by which somebody could speak for another,
//! and who was removed is given nothing from that moment on. Rejected: tokens, which would need keys that all nodes
//! know or signatures; and to tell each node beforehand what all others may have.

use std::collections::BTreeSet;
use std::sync::Arc;

use longshore_api::links::{ImageNeighbour, ImageNeighbours, Vouched};
use longshore_api::{Problem, ProblemCode};
use longshore_link::Refusal;
use longshore_types::{Digest, NodeName};
use serde::Deserialize;

use crate::gates::Gates;
use crate::images::{Images, Wanted};
use crate::keeper::Handle;
use crate::trust::Trust;

/// The most nodes that are named to one because they have all of an image.
const HAVE_ALL: usize = 4;
/// How many nodes that pull an image share one copy of it. They have to be the same for each of them.
const SHARE: usize = 8;

/// The nodes of a location, to each other.
pub struct Neighbours {
    images: Arc<Images>,
    gates: Arc<Gates>,
    trust: Arc<Trust>,
    handle: Handle,
}

/// What a node was asked for by another.
#[derive(Debug, Deserialize)]
pub struct OfLayer {
    layer: Digest,
}

impl Neighbours {
    /// Those of a location.
    pub fn of(
        images: &Arc<Images>,
        gates: &Arc<Gates>,
        trust: &Arc<Trust>,
        handle: &Handle,
    ) -> Self {
        let (images, gates, trust) = (Arc::clone(images), Arc::clone(gates), Arc::clone(trust));
        Self { images, gates, trust, handle: handle.clone() }
    }

    /// Who else has or pulls an image that a node should have.
    pub async fn of_image(
        &self,
        node: &NodeName,
        wanted: &Wanted,
    ) -> Result<ImageNeighbours, Refusal> {
        self.images.check_manifest(node, wanted).await?;
        let mut joined = self.trust.all_joined();
        // One of this machine has no certificate to show, and the registry at hand.
        if !joined.contains(node) {
            return Ok(ImageNeighbours::default());
        }
        self.keep_reachable(node, &mut joined);
        let image = wanted.digest();
        let (mut have, mut pull) = (Vec::new(), Vec::new());
        for other in joined {
            if other == *node {
                pull.push(None);
                continue;
            }
            let Some((gate, has_all)) = self.gates.dialled(&other, image) else { continue };
            if has_all || self.images.is_assigned(&other, image) {
                let named = ImageNeighbour { node: other, gate: gate.to_string(), has_all };
                if has_all { have.push(named) } else { pull.push(Some(named)) }
            }
        }
        let nodes = choose(have, pull);
        Ok(ImageNeighbours { nodes })
    }

    /// Leaves the node itself and those that report.
    fn keep_reachable(&self, node: &NodeName, joined: &mut BTreeSet<NodeName>) {
        let report = self.handle.report.borrow();
        let nodes = report.as_ref().as_ref().map(|reported| &reported.report.nodes[..]);
        let reachable: BTreeSet<_> = nodes
            .unwrap_or_default()
            .iter()
            .filter(|summary| summary.reachable)
            .map(|summary| &summary.node)
            .collect();
        joined.retain(|other| other == node || reachable.contains(other));
    }

    /// Vouches for a node that asks a neighbour for a layer.
    pub async fn vouch(&self, node: &NodeName, of: &OfLayer) -> Result<Vouched, Refusal> {
        let OfLayer { layer } = of;
        let refuse = || {
            let detail = format!("no assignment of node {node} needs the layer {layer}");
            Refusal(Problem::new(ProblemCode::Forbidden, detail))
        };
        let joined = self.trust.joined(node).ok_or_else(refuse)?;
        if self.is_removed(node) || !self.images.is_layer_of_node(node, layer).await? {
            return Err(refuse());
        }
        Ok(Vouched { key: joined.key.to_string() })
    }

    fn is_removed(&self, node: &NodeName) -> bool {
        let cordons = self.handle.cordons.borrow();
        cordons.get(node).is_some_and(|cordon| cordon.removed)
    }
}

/// A few of those that have all, others for each node that asks; and those that pull together with it, whose place
/// among them is where there is none. Both come in the order of their names.
fn choose(mut have: Vec<ImageNeighbour>, pull: Vec<Option<ImageNeighbour>>) -> Vec<ImageNeighbour> {
    let own = pull.iter().position(Option::is_none).unwrap_or_default();
    let first = own.checked_rem(have.len()).unwrap_or_default();
    have.rotate_left(first);
    have.truncate(HAVE_ALL);
    let together = pull.into_iter().skip(own - own % SHARE).take(SHARE);
    have.into_iter().chain(together.flatten()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str, has_all: bool) -> ImageNeighbour {
        let gate = format!("https://{name}:4605");
        ImageNeighbour { node: name.parse().unwrap(), gate, has_all }
    }

    fn chosen(n_have: usize, n_pull: usize, own: usize) -> Vec<String> {
        let have = (0..n_have).map(|n| named(&format!("h{n}"), true)).collect();
        let pull = (0..n_pull).map(|n| (n != own).then(|| named(&format!("p{n}"), false)));
        choose(have, pull.collect()).into_iter().map(|one| one.node.to_string()).collect()
    }

    #[test]
    fn those_that_share_a_copy_are_the_same_to_each_of_them() {
        for own in 0..20 {
            let mut share = chosen(0, 20, own);
            share.push(format!("p{own}"));
            share.sort();
            let first = own - own % SHARE;
            let mut expected: Vec<_> =
                (first..(first + SHARE).min(20)).map(|n| format!("p{n}")).collect();
            expected.sort();
            assert_eq!(share, expected, "{own}");
        }
    }

    #[test]
    fn who_has_all_is_asked_by_some_and_not_by_all() {
        assert_eq!(chosen(2, 1, 0), ["h0", "h1"]);
        assert_eq!(chosen(6, 3, 0)[..4], ["h0", "h1", "h2", "h3"]);
        assert_eq!(chosen(6, 3, 2), ["h2", "h3", "h4", "h5", "p0", "p1"]);
        assert_eq!(chosen(0, 1, 0), [""; 0]);
    }
}
