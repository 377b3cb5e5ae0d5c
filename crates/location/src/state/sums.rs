//! What the instances of each node come to together, kept with each change of one.
//!
//! A report tells it of every node; to look at all instances for that would cost the square of their number.

use std::collections::BTreeMap;

use longshore_types::{Capacity, GpuShares, InstanceId, NodeName, Priority, Yielding};

/// What an instance counts for on its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    pub node: NodeName,
    pub each: Capacity,
    pub gpus: GpuShares,
    pub kind: Kind,
}

/// What becomes of what an instance holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It leaves.
    Leaves,
    /// It may be made to leave for what has a higher priority.
    Yields(Priority),
    /// It stays.
    Stays,
}

/// What the instances of a node come to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sums {
    pub n_instances: u32,
    pub leaving: Capacity,
    pub gpus_leaving: GpuShares,
    by_priority: BTreeMap<Priority, (u32, Capacity, GpuShares)>,
}

impl Sums {
    /// What may be made to leave, the lowest priority first.
    pub fn yielding(&self) -> Vec<Yielding> {
        let of_priority = |(priority, sum): (&Priority, &(u32, Capacity, GpuShares))| {
            let (priority, (instances, promised, gpus)) = (*priority, sum.clone());
            Yielding { priority, instances, promised, gpus }
        };
        self.by_priority.iter().map(of_priority).collect()
    }

    fn add(&mut self, share: &Share) {
        self.n_instances += 1;
        match share.kind {
            Kind::Leaves => {
                self.leaving = self.leaving.plus(share.each);
                self.gpus_leaving = self.gpus_leaving.plus(&share.gpus);
            }
            Kind::Yields(priority) => {
                let sum = self.by_priority.entry(priority).or_default();
                *sum = (sum.0 + 1, sum.1.plus(share.each), sum.2.plus(&share.gpus));
            }
            Kind::Stays => {}
        }
    }

    fn take(&mut self, share: &Share) {
        self.n_instances -= 1;
        match share.kind {
            Kind::Leaves => {
                self.leaving = self.leaving.minus(share.each);
                self.gpus_leaving = self.gpus_leaving.minus(&share.gpus);
            }
            Kind::Yields(priority) => {
                let sum = self.by_priority.entry(priority).or_default();
                *sum = (sum.0 - 1, sum.1.minus(share.each), sum.2.minus(&share.gpus));
                if sum.0 == 0 {
                    self.by_priority.remove(&priority);
                }
            }
            Kind::Stays => {}
        }
    }
}

/// The sums of all nodes, and what each instance counts for in them.
#[derive(Debug, Default)]
pub struct Shares {
    by_instance: BTreeMap<InstanceId, Share>,
    by_node: BTreeMap<NodeName, Sums>,
}

impl Shares {
    /// What those of a node come to, if it has any.
    pub fn of(&self, node: &NodeName) -> Option<&Sums> {
        self.by_node.get(node)
    }

    /// Counts an instance, in the place of what it counted for before.
    pub fn put(&mut self, instance: &InstanceId, share: Share) {
        if self.by_instance.get(instance) != Some(&share) {
            self.remove(instance);
            self.by_node.entry(share.node.clone()).or_default().add(&share);
            self.by_instance.insert(instance.clone(), share);
        }
    }

    /// Does not count an instance any more.
    pub fn remove(&mut self, instance: &InstanceId) {
        let Some(share) = self.by_instance.remove(instance) else { return };
        if let Some(sums) = self.by_node.get_mut(&share.node) {
            sums.take(&share);
            if sums.n_instances == 0 {
                self.by_node.remove(&share.node);
            }
        }
    }
}
