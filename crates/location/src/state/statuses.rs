//! What the global plane is told of each instance, made anew where something of it may have changed.
//!
//! With thousands of instances to make all of it for each report would hold up everything else. What is overlooked
//! here is found when all are looked at, now and then.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use longshore_api::links::InstanceStatus;
use longshore_types::InstanceId;
use tokio::time::Instant;

use super::due::is_whole_due;
use super::{Moment, State};

/// What was told last, and of what it may be out of date.
#[derive(Debug, Default)]
pub struct Statuses {
    told: BTreeMap<InstanceId, Arc<InstanceStatus>>,
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

    fn put(&mut self, status: InstanceStatus) {
        let instance = status.observed.instance.clone();
        // It ends with an acknowledgement, or with time.
        if status.awaits_ingress {
            self.stale.insert(instance.clone());
        }
        if self.told.get(&instance).is_none_or(|told| **told != status) {
            self.told.insert(instance, Arc::new(status));
        }
    }
}

impl State {
    /// What is told of the instances now, in the order of their ids.
    pub(super) fn statuses(&mut self, moment: Moment) -> Vec<Arc<InstanceStatus>> {
        let mut statuses = std::mem::take(&mut self.statuses);
        let mut due = std::mem::take(&mut statuses.stale);
        due.append(&mut self.instances.take_changed());
        // What is a stray says so, and ends to be one by itself.
        if is_whole_due(statuses.whole_at, moment) || !self.strays.is_empty() {
            statuses.whole_at = Some(moment.instant);
            statuses.told.retain(|instance, _| self.instances.contains_key(instance));
            self.instances.values().for_each(|record| statuses.put(self.status(record, moment)));
        } else {
            for instance in &due {
                match self.instances.get(instance) {
                    Some(record) => statuses.put(self.status(record, moment)),
                    None => _ = statuses.told.remove(instance),
                }
            }
        }
        let told = statuses.told.values().cloned().collect();
        self.statuses = statuses;
        told
    }
}
