//! Which images should be on which nodes before anything starts from them.
//!
//! What is wished is kept by the global plane and told as a whole; while that is away, what it told last holds.
//! Nothing of it is stored here: a location that has just begun and has not been told says nothing of it, neither
//! that an image should come nor that one may go.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, stream};
use longshore_api::links::{NodeSummary, PrewarmOrder, PrewarmOrders, PrewarmSet, PrewarmWish};
use longshore_link::{CallError, Followed};
use longshore_types::{Digest, HoldReason, ImageHold, LocationName, NodeName};
use tokio::sync::watch;

use crate::state::Reported;

/// How soon the global plane is asked again for what is wished, when it fell silent.
const HEAR_AGAIN: Duration = Duration::from_secs(1);

/// What was told last; nothing before anything was.
#[derive(Debug)]
pub struct Prewarm {
    location: LocationName,
    told: watch::Sender<Option<Arc<PrewarmSet>>>,
    report: watch::Receiver<Arc<Option<Reported>>>,
}

impl Prewarm {
    /// That of a location, which knows its nodes by its own reports.
    pub fn new(location: LocationName, report: watch::Receiver<Arc<Option<Reported>>>) -> Self {
        Self { location, told: watch::Sender::default(), report }
    }

    /// Hears what is wished, and at once when that changes. Never ends.
    pub async fn follow(self: Arc<Self>, global: Followed) {
        let path = format!("/link/locations/{}/prewarm", self.location);
        loop {
            match global.watch::<PrewarmSet>(&path).await {
                Ok(mut sets) => {
                    while let Some(Ok(set)) = sets.next().await {
                        self.take(set);
                    }
                }
                // One of the release before has no wishes.
                Err(CallError::Status { status: 404, .. }) => self.take(PrewarmSet::default()),
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::debug!(error, "it is not told which images are wished");
                }
            }
            tokio::time::sleep(HEAR_AGAIN).await;
        }
    }

    fn take(&self, set: PrewarmSet) {
        self.told.send_if_modified(|told| {
            let is_older = told.as_ref().is_some_and(|told| told.epoch > set.epoch);
            if is_older || told.as_deref() == Some(&set) {
                return false;
            }
            *told = Some(Arc::new(set));
            true
        });
    }

    /// What a node is told; nothing while nothing was told, or the node is not known.
    pub fn orders(&self, node: &NodeName) -> Option<PrewarmOrders> {
        let told = self.told.borrow().clone()?;
        if told.wishes.is_empty() {
            return Some(PrewarmOrders::default());
        }
        self.with_node(node, |summary| {
            let wishes = told.wishes.iter();
            let wishes = wishes.filter(|wish| wish.is_for(&self.location, &summary.traits.labels));
            let order = |wish: &PrewarmWish| PrewarmOrder {
                repository: wish.repository.clone(),
                digest: wish.digest,
            };
            let mut images: Vec<_> = wishes.map(order).collect();
            // Several may wish the same.
            images.sort();
            images.dedup();
            PrewarmOrders { images }
        })
    }

    fn with_node<T>(&self, node: &NodeName, with: impl FnOnce(&NodeSummary) -> T) -> Option<T> {
        let report = self.report.borrow();
        let nodes = &report.as_ref().as_ref()?.report.nodes;
        nodes.iter().find(|summary| summary.node == *node).map(with)
    }

    /// What a node is told, again at each change.
    pub fn orders_of(self: Arc<Self>, node: NodeName) -> impl Stream<Item = PrewarmOrders> + Send {
        let changes = (self.told.subscribe(), self.report.clone());
        let state = (self, node, changes, None);
        stream::unfold(state, |(prewarm, node, mut changes, mut last)| async move {
            loop {
                // Before they are read: what changes after that is seen again.
                changes.0.mark_unchanged();
                changes.1.mark_unchanged();
                let now = prewarm.orders(&node);
                if now.is_some() && now != last {
                    last.clone_from(&now);
                    return Some((now?, (prewarm, node, changes, last)));
                }
                let changed = tokio::select! {
                    changed = changes.0.changed() => changed,
                    changed = changes.1.changed() => changed,
                };
                // An error means that the location ends.
                changed.ok()?;
            }
        })
    }

    /// The wishes that keep an image on a node; nothing while it is not known what is wished.
    pub fn holds(&self, node: &NodeName, image: &Digest) -> Option<Vec<ImageHold>> {
        let told = self.told.borrow().clone()?;
        let wishes = told.wishes.iter().filter(|wish| wish.digest == *image);
        let is_for = |wish: &&PrewarmWish| {
            let labels =
                |summary: &NodeSummary| wish.is_for(&self.location, &summary.traits.labels);
            // Of a node that is not known yet, all that may be its.
            self.with_node(node, labels).unwrap_or(true)
        };
        let reason = |wish: &PrewarmWish| match wish.pinned {
            true => HoldReason::Pin,
            false => HoldReason::Prewarm,
        };
        let hold = |wish: &PrewarmWish| ImageHold { reason: reason(wish), by: wish.named.clone() };
        Some(wishes.filter(is_for).map(hold).collect())
    }
}

#[cfg(test)]
mod tests {
    use longshore_types::Epoch;
    use serde_json::json;

    use super::*;

    fn digest(n: u8) -> Digest {
        Digest::from_sha256([n; 32])
    }

    fn wish(n: u8, named: &str, places: &[&str]) -> PrewarmWish {
        PrewarmWish {
            project: "default".parse().unwrap(),
            repository: "default/web".parse().unwrap(),
            digest: digest(n),
            named: named.to_owned(),
            places: places.iter().map(|place| place.parse().unwrap()).collect(),
            pinned: false,
        }
    }

    fn set(epoch: u64, wishes: &[PrewarmWish]) -> PrewarmSet {
        PrewarmSet { epoch: Epoch(epoch), wishes: wishes.to_vec() }
    }

    /// A location with two nodes, of which one has a label.
    fn prewarm() -> Prewarm {
        let node = |name: &str, labels: &[&str]| {
            let none = json!({"cpu": 0, "memory": 0, "disk": 0});
            json!({
                "node": name, "reachable": true, "reported_at": 0, "capacity": none,
                "promised": none, "version": "1", "traits": {"labels": labels},
            })
        };
        let report = json!({
            "location": "ams", "acknowledged": 1, "at": 0, "instances": [], "shortfalls": [],
            "nodes": [node("n1", &[]), node("n2", &["disk=nvme"])],
        });
        let report = serde_json::from_value(report).unwrap();
        let report = Reported { report, instances: Default::default() };
        Prewarm::new("ams".parse().unwrap(), watch::channel(Arc::new(Some(report))).1)
    }

    fn ordered(prewarm: &Prewarm, node: &str) -> Option<Vec<Digest>> {
        let orders = prewarm.orders(&node.parse().unwrap())?;
        Some(orders.images.into_iter().map(|order| order.digest).collect())
    }

    #[test]
    fn a_node_is_told_of_what_is_wished_there_and_keeps_it() {
        let prewarm = prewarm();
        let (first, second): (NodeName, NodeName) = ("n1".parse().unwrap(), "n2".parse().unwrap());
        assert_eq!(ordered(&prewarm, "n1"), None, "nothing was told yet");
        assert_eq!(prewarm.holds(&first, &digest(1)), None);
        prewarm.take(set(
            1,
            &[
                wish(1, "web r1", &[]),
                wish(1, "default/web:1", &["ams"]),
                wish(2, "fast", &["disk=nvme"]),
                wish(3, "there", &["sin"]),
            ],
        ));
        assert_eq!(ordered(&prewarm, "n1"), Some(vec![digest(1)]));
        assert_eq!(ordered(&prewarm, "n2"), Some(vec![digest(1), digest(2)]));
        assert_eq!(ordered(&prewarm, "n3"), None, "it did not report yet");
        let by = |node, n| -> Vec<String> {
            let holds = prewarm.holds(node, &digest(n)).unwrap();
            assert!(holds.iter().all(|hold| hold.reason == HoldReason::Prewarm));
            holds.into_iter().map(|hold| hold.by).collect()
        };
        assert_eq!(by(&first, 1), ["web r1", "default/web:1"]);
        assert_eq!((by(&first, 2), by(&second, 2)), (vec![], vec!["fast".to_owned()]));
    }

    #[test]
    fn what_is_pinned_is_kept_for_that_and_comes_like_any_other() {
        let prewarm = prewarm();
        let pin = PrewarmWish { pinned: true, ..wish(1, "pinned", &["disk=nvme"]) };
        prewarm.take(set(1, &[wish(1, "web r1", &[]), pin]));
        let reasons = |node: &str| -> Vec<_> {
            let holds = prewarm.holds(&node.parse().unwrap(), &digest(1)).unwrap();
            holds.into_iter().map(|hold| (hold.reason, hold.by)).collect()
        };
        let wished = (HoldReason::Prewarm, "web r1".to_owned());
        assert_eq!(reasons("n2"), [wished.clone(), (HoldReason::Pin, "pinned".to_owned())]);
        assert_eq!(reasons("n1"), [wished], "the pin is for another node");
        assert_eq!(ordered(&prewarm, "n2"), Some(vec![digest(1)]));
        // A wish of the release before says nothing of pins, and one that is none looks the same to it.
        let json = serde_json::to_value(wish(1, "web r1", &[])).unwrap();
        assert!(json.get("pinned").is_none());
        assert!(!serde_json::from_value::<PrewarmWish>(json).unwrap().pinned);
    }

    #[test]
    fn what_is_told_of_an_earlier_store_is_not_listened_to() {
        let prewarm = prewarm();
        prewarm.take(set(2, &[wish(1, "new", &[])]));
        prewarm.take(set(1, &[]));
        assert_eq!(ordered(&prewarm, "n1"), Some(vec![digest(1)]));
        prewarm.take(set(2, &[]));
        assert_eq!(ordered(&prewarm, "n1"), Some(vec![]), "the wish was taken back");
    }

    #[tokio::test]
    async fn a_node_hears_of_changes_of_its_own_alone() {
        let prewarm = Arc::new(prewarm());
        let mut orders = Box::pin(Arc::clone(&prewarm).orders_of("n1".parse().unwrap()));
        prewarm.take(set(1, &[wish(2, "fast", &["disk=nvme"])]));
        assert_eq!(orders.next().await.unwrap().images, []);
        prewarm.take(set(1, &[wish(3, "fast", &["disk=nvme"])]));
        prewarm.take(set(1, &[wish(1, "all", &[])]));
        assert_eq!(orders.next().await.unwrap().images[0].digest, digest(1));
    }
}
