//! What the global plane is told of each instance, made anew where something of it may have changed, and what the
//! instances of each node come to by that.
//!
//! With thousands of instances to make all of it for each report would hold up everything else. What is overlooked
//! here is found when all are looked at, now and then.

use std::collections::BTreeSet;

use longshore_api::links::{InstanceStatus, LocationReport, Told};
use longshore_types::{InstanceId, NodeName};
use tokio::time::Instant;

use super::due::is_whole_due;
use super::sums::{Kind, Share, Shares, Sums};
use super::{Moment, State};
use crate::records::InstanceRecord;

/// What the global plane is told: how much of it goes on the wire its link knows.
#[derive(Debug, Clone)]
pub struct Reported {
    /// All but the instances.
    pub report: LocationReport,
    /// The instances.
    pub instances: Told<InstanceStatus>,
}

/// What was told last, and of what it may be out of date.
#[derive(Debug, Default)]
pub struct Statuses {
    told: Told<InstanceStatus>,
    shares: Shares,
    stale: BTreeSet<InstanceId>,
    /// When all were looked at last; nothing when they have to be now.
    whole_at: Option<Instant>,
}

impl Statuses {
    /// Something of these may have changed.
    pub fn stale<'a>(&mut self, instances: impl IntoIterator<Item = &'a InstanceId>) {
        self.stale.extend(instances.into_iter().cloned());
    }

    /// Something of any may have.
    pub fn all(&mut self) {
        self.whole_at = None;
    }

    /// What the instances of a node come to, as they were told last.
    pub fn sums(&self, node: &NodeName) -> Option<&Sums> {
        self.shares.of(node)
    }

    fn put(&mut self, status: InstanceStatus, share: Share) {
        let instance = status.observed.instance.clone();
        // It ends with an acknowledgement, or with time.
        if status.awaits_ingress {
            self.stale.insert(instance.clone());
        }
        self.shares.put(&instance, share);
        if self.told.get(&instance).is_none_or(|told| **told != status) {
            self.told.insert(instance, status.into());
        }
    }

    fn remove(&mut self, instance: &InstanceId) {
        self.told.remove(instance);
        self.shares.remove(instance);
    }
}

impl State {
    /// What is told of the instances now.
    pub(super) fn statuses(&mut self, moment: Moment) -> Told<InstanceStatus> {
        let mut statuses = std::mem::take(&mut self.statuses);
        let mut due = std::mem::take(&mut statuses.stale);
        due.append(&mut self.instances.take_changed());
        // What is a stray says so, and ends to be one by itself.
        if is_whole_due(statuses.whole_at, moment) || !self.strays.is_empty() {
            statuses.whole_at = Some(moment.instant);
            let is_gone = |instance: &&InstanceId| !self.instances.contains_key(*instance);
            let gone: Vec<_> = statuses.told.keys().filter(is_gone).cloned().collect();
            gone.iter().for_each(|instance| statuses.remove(instance));
            for record in self.instances.values() {
                statuses.put(self.status(record, moment), self.share(record));
            }
        } else {
            for instance in &due {
                match self.instances.get(instance) {
                    Some(record) => statuses.put(self.status(record, moment), self.share(record)),
                    None => statuses.remove(instance),
                }
            }
        }
        let told = statuses.told.clone();
        self.statuses = statuses;
        told
    }

    /// What an instance counts for on its node.
    pub(super) fn share(&self, record: &InstanceRecord) -> Share {
        Share {
            node: record.node.clone(),
            each: record.release.manifest.resources.capacity(),
            gpus: record.gpus.clone(),
            kind: match (&record.draining, self.yields(record)) {
                (Some(_), _) => Kind::Leaves,
                (None, Some(priority)) => Kind::Yields(priority),
                (None, None) => Kind::Stays,
            },
        }
    }
}
