//! What each node is to do, for who tells it.
//!
//! Each node is waited for by itself: with hundreds of them, to wake all for what one is told would cost more than to
//! tell it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use longshore_api::links::Assigned;
use longshore_types::NodeName;
use tokio::sync::watch;

/// What a node is to do; nothing as long as it is not known.
type ToNode = Option<Arc<Assigned>>;

/// What each node is to do.
#[derive(Debug, Clone, Default)]
pub struct Assignments(Arc<Mutex<BTreeMap<NodeName, watch::Sender<ToNode>>>>);

impl Assignments {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeName, watch::Sender<ToNode>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a node is to do, if it is known.
    pub fn of(&self, node: &NodeName) -> Option<Arc<Assigned>> {
        self.lock().get(node)?.borrow().clone()
    }

    /// What all are to do that are known.
    pub fn all(&self) -> Vec<Arc<Assigned>> {
        self.lock().values().filter_map(|told| told.borrow().clone()).collect()
    }

    /// The same of a node from now on.
    pub fn follow(&self, node: &NodeName) -> watch::Receiver<ToNode> {
        self.lock().entry(node.clone()).or_default().subscribe()
    }

    /// Goes on to what these nodes are to do by now: `next` gives that of one, given what it was before, when it is
    /// another.
    pub fn renew<'a>(
        &self,
        nodes: impl Iterator<Item = &'a NodeName>,
        next: impl Fn(&NodeName, Option<&Assigned>) -> Option<Assigned>,
    ) {
        let mut by_node = self.lock();
        for node in nodes {
            let before = by_node.get(node).and_then(|told| told.borrow().clone());
            if let Some(next) = next(node, before.as_deref()) {
                let told = by_node.entry(node.clone()).or_default();
                told.send_replace(Some(Arc::new(next)));
            }
        }
    }

    /// Of all that are not known any more, nothing is.
    pub fn forget_others(&self, is_known: impl Fn(&NodeName) -> bool) {
        self.lock().retain(|node, told| {
            if is_known(node) {
                return true;
            }
            told.send_if_modified(|told| told.take().is_some());
            // Who follows it is told once it is known again.
            told.receiver_count() > 0
        });
    }
}

#[cfg(test)]
mod tests {
    use longshore_types::Generation;

    use super::*;

    #[test]
    fn only_who_is_told_something_else_is_woken() {
        let names: Vec<NodeName> = ["n1", "n2"].map(|name| name.parse().unwrap()).into();
        let assignments = Assignments::default();
        // Somebody may ask for a node that is not known yet.
        let mut told: Vec<_> = names.iter().map(|name| assignments.follow(name)).collect();
        let mut woken = || -> Vec<_> {
            told.iter_mut()
                .map(|told| told.has_changed().unwrap().then(|| told.borrow_and_update().clone()))
                .map(|told| told.map(|told| told.map(|told| told.generation.0)))
                .collect()
        };
        let renew = |known: &[NodeName], of: &NodeName, generation| {
            assignments.renew(known.iter(), |node, before| {
                let next = Assigned { generation: Generation(generation), ..Assigned::default() };
                (node == of || before.is_none()).then_some(next)
            });
            assignments.forget_others(|node| known.contains(node));
        };
        assert_eq!(woken(), [None, None]);
        renew(&names, &names[0], 1);
        assert_eq!(woken(), [Some(Some(1)), Some(Some(1))]);
        renew(&names, &names[0], 2);
        assert_eq!(woken(), [Some(Some(2)), None]);
        renew(&names[1..], &names[1], 3);
        assert_eq!(woken(), [Some(None), Some(Some(3))]);
        assert!(assignments.of(&names[0]).is_none());
        // It is known again, and was followed all along.
        renew(&names, &names[0], 4);
        assert_eq!(woken(), [Some(Some(4)), None]);
        assert_eq!(assignments.all().len(), 2);
        drop(told);
        renew(&names[1..], &names[1], 5);
        assert_eq!(assignments.lock().len(), 1, "nobody waits for what nobody knows");
    }
}
