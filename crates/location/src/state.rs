//! The state of a location and its transitions. No I/O: time is given, effects are returned.

mod adopt;
mod due;
mod given;
mod hand_over;
mod holds;
mod instances;
mod publish;
mod reconcile;
mod statuses;
mod sums;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use longshore_api::links::{
    AllotmentSet, AppRef, NodeReport, ObservedInstance, Reach, RouteAck, RoutingTable, Shortfall,
    Staying,
};
use longshore_types::{
    Cordon, Epoch, Generation, InstanceId, LocationName, NodeName, ReachAddress, Traits,
};
use tokio::time::Instant;

use crate::life::{Awaited, Life};
use crate::log::Decided;
use crate::records::InstanceRecord;
pub use adopt::Adopted;
use due::Due;
use given::Given;
use instances::{AppKey, Instances, app_key};
pub use publish::Roster;
use publish::Routes;
pub use statuses::Reported;
use statuses::Statuses;

/// A node that did not report for this long gets nothing new. Nodes report at least every five
/// seconds, so three reports in a row must be lost.
pub const SILENT_AFTER: Duration = Duration::from_secs(16);
/// The instances of a node that did not report for this long are replaced elsewhere.
pub const LOST_AFTER: Duration = Duration::from_secs(60);
/// How long an ingress may take to acknowledge a table before instances are stopped, or count as
/// reachable, without its word: by then it is dead or cut off, and its requests fail whatever is done.
pub const ACK_WAIT: Duration = Duration::from_secs(2);

/// How long a location that was just started waits for its nodes to report. Until then nothing is
/// planned, routed or reported: what is not known yet would look as if it were not there.
pub const SETTLE: Duration = Duration::from_secs(10);
/// The same for one that lost its store, and knows of its nodes' instances from them alone.
pub const RECOVER: Duration = Duration::from_secs(15);

/// A point in time, on the monotonic clock, with the wall clock's reading for records.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// For spans.
    pub instant: Instant,
    /// For people.
    pub wall: longshore_types::Timestamp,
}

/// Everything a location knows.
#[derive(Debug)]
pub struct State {
    pub name: LocationName,
    /// What its operator says of it.
    pub traits: Traits,
    /// Which life of the location this is.
    pub life: Life,
    /// When this process began: silence before that is not a node's fault.
    pub began: Instant,
    /// The allotments by app, as stored.
    pub allotments: Given,
    /// What operators wish of the nodes, as stored.
    pub cordons: BTreeMap<NodeName, Cordon>,
    /// What nodes are to try to reach for apps that may come, as last heard.
    pub reach: BTreeSet<ReachAddress>,
    /// Of which life of the global store the set is that is stored.
    pub epoch: Epoch,
    /// The generation of that set.
    pub acknowledged: Generation,
    /// Those of the apps that a restored global store does not allot here, and did not say to let go.
    pub strays: BTreeSet<AppRef>,
    /// The instances, as stored.
    pub instances: Instances,
    /// What the next plan has to look at.
    due: Due,
    /// What the global plane is told of them.
    statuses: Statuses,
    /// What ingresses are told.
    routes: Routes,
    /// The last report of each node.
    pub nodes: BTreeMap<NodeName, ReportedNode>,
    /// What found no place in the last plan.
    pub shortfalls: Vec<Shortfall>,
    /// What has not left drained nodes, by the last plan.
    pub staying: Vec<Staying>,
    /// The last plan that decided something, with what it was made from, until it is logged.
    pub decided: Option<Decided>,
    /// The table that was last published.
    pub table: RoutingTable,
    /// When that was.
    pub table_since: Instant,
    /// Which revision each ingress routes by. One that does not keep up is forgotten.
    pub ingresses: BTreeMap<String, KnownIngress>,
    /// For each draining instance the first table without it.
    pub excluded: BTreeMap<InstanceId, Published>,
    /// For each instance that entered the table the first one with it.
    pub included: BTreeMap<InstanceId, Published>,
}

/// A table that ingresses were told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// Its revision.
    pub revision: u64,
    /// When they were.
    pub at: Instant,
}

/// What an ingress last said.
#[derive(Debug, Default)]
pub struct KnownIngress {
    /// The revision of the table that it routes by.
    pub revision: u64,
    /// Instances outside of that which it still has requests or connections with.
    pub busy: BTreeSet<InstanceId>,
}

/// The last report of a node.
#[derive(Debug, Clone)]
pub struct ReportedNode {
    /// What it said last, less what it said of its instances.
    pub report: NodeReport,
    /// When it came.
    pub at: Instant,
    /// The same, for people.
    pub at_wall: longshore_types::Timestamp,
    /// How ingresses reach its instances.
    pub reach: Reach,
    /// Its instances by id.
    pub observed: BTreeMap<InstanceId, Arc<ObservedInstance>>,
    /// True while it has not handed over what an earlier life of the location gave it.
    pub owes: bool,
}

/// What has to be stored before a change may be published.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Instances that were made or changed.
    pub put: BTreeSet<InstanceId>,
    /// Instances that are gone.
    pub delete: BTreeSet<InstanceId>,
    /// Instances that their nodes took over, which holds also where that cannot be stored.
    pub confirmed: BTreeSet<InstanceId>,
    /// Instances were started and nothing else was done, so nothing else has become possible with that.
    pub only_places: bool,
}

impl Changes {
    /// True when there is nothing that has to be stored.
    pub fn is_empty(&self) -> bool {
        self.put.is_empty() && self.delete.is_empty()
    }
}

impl State {
    /// The state of a location that stored this.
    pub fn new(
        name: LocationName,
        AllotmentSet { epoch, generation: acknowledged, allotments, cordons, reach, .. }: AllotmentSet,
        instances: impl IntoIterator<Item = InstanceRecord>,
        moment: Moment,
    ) -> Self {
        Self {
            name,
            traits: Traits::default(),
            life: Life::default(),
            began: moment.instant,
            allotments: allotments.into_iter().collect(),
            cordons,
            reach,
            epoch,
            acknowledged,
            strays: BTreeSet::new(),
            instances: instances.into_iter().collect(),
            due: Due::default(),
            statuses: Statuses::default(),
            routes: Routes::default(),
            nodes: BTreeMap::new(),
            shortfalls: Vec::new(),
            staying: Vec::new(),
            decided: None,
            // Revisions must grow across restarts: ingresses refuse an older table.
            table: RoutingTable { revision: moment.wall.0, ..RoutingTable::default() },
            table_since: moment.instant,
            ingresses: BTreeMap::new(),
            excluded: BTreeMap::new(),
            included: BTreeMap::new(),
        }
    }

    /// False for a set that is older than what there is.
    pub fn accepts(&self, set: &AllotmentSet) -> bool {
        (set.epoch, set.generation) >= (self.epoch, self.acknowledged)
    }

    /// True when a report says all by itself, or what differs from the last one of its node. What a node hands over
    /// it says with all that it has.
    pub fn knows(&self, report: &NodeReport) -> bool {
        let before = self.nodes.get(&report.node).map(|known| known.report.number);
        report.since.is_none_or(|since| before == Some(since) && report.handed_over.is_none())
    }

    /// Takes over what a node says that is known; of one that was removed, nothing. What it says for the first time
    /// that it was given is to be stored.
    pub fn take_report(
        &mut self,
        mut report: NodeReport,
        reach: Reach,
        changes: &mut Changes,
        moment: Moment,
    ) {
        if self.is_removed(&report.node) {
            return;
        }
        let before = self.nodes.get_mut(&report.node);
        let mut observed =
            before.map(|known| std::mem::take(&mut known.observed)).unwrap_or_default();
        let instances = std::mem::take(&mut report.instances);
        let mut gone = std::mem::take(&mut report.gone);
        if report.since.is_none() {
            let there: BTreeSet<_> = instances.iter().map(|one| &one.instance).collect();
            gone = observed.keys().filter(|known| !there.contains(known)).cloned().collect();
        }
        for instance in gone.iter().filter(|instance| observed.remove(instance).is_some()) {
            self.statuses.stale([instance]);
            let app = self.instances.get(instance).map(app_key);
            self.routes.stale(app.clone());
            self.due.extend(app);
        }
        for now in instances {
            let instance = &now.instance;
            // What it was not given nobody asks for, and changes would add up without end.
            if self.instances.get(instance).is_none_or(|record| record.node != report.node) {
                observed.remove(instance);
                continue;
            }
            if self.instances.confirm(&report.node, instance, now.generation) {
                changes.confirmed.insert(instance.clone());
            }
            let was = observed.insert(instance.clone(), Arc::clone(&now));
            if was.as_ref() != Some(&now) {
                self.statuses.stale([instance]);
                self.routes.stale(self.instances.get(instance).map(app_key));
            }
            if was.is_none_or(|was| (was.phase, was.generation) != (now.phase, now.generation)) {
                self.due.extend(self.instances.get(instance).map(app_key));
            }
        }
        let same_way = self.nodes.get(&report.node).is_some_and(|known| known.reach == reach);
        if !same_way {
            let here = || self.instances.on_node(&report.node);
            self.statuses.stale(here().map(|record| &record.instance));
            self.routes.stale(here().map(app_key));
        }
        let (at, at_wall, owes) = (moment.instant, moment.wall, self.owes(&report));
        let reported = ReportedNode { at, at_wall, observed, reach, owes, report };
        self.nodes.insert(reported.report.node.clone(), reported);
    }

    /// Takes over which table an ingress routes by.
    pub fn take_ack(&mut self, ack: RouteAck) {
        let known = self.ingresses.entry(ack.ingress).or_default();
        if ack.revision >= known.revision {
            *known = KnownIngress { revision: ack.revision, busy: ack.busy.into_iter().collect() };
        }
    }

    /// True once every ingress routes by a table at least as new, or had the time for it.
    pub fn in_force(&self, table: Published, moment: Moment) -> bool {
        let all_know = !self.ingresses.is_empty()
            && self.ingresses.values().all(|ingress| ingress.revision >= table.revision);
        all_know || moment.instant.saturating_duration_since(table.at) >= ACK_WAIT
    }

    /// True while an ingress has requests or connections with an instance that left the routes with
    /// this table, and these may still go on.
    pub fn is_busy(&self, record: &InstanceRecord, left: Published, moment: Moment) -> bool {
        let drain = record.release.manifest.process.drain.0;
        moment.instant.saturating_duration_since(left.at) < drain
            && self.ingresses.values().any(|ingress| ingress.busy.contains(&record.instance))
    }

    /// What the node of an instance says of it, when it has said something of its present
    /// generation or of an earlier one.
    pub fn observed(&self, record: &InstanceRecord) -> Option<&ObservedInstance> {
        self.nodes.get(&record.node)?.observed.get(&record.instance).map(|observed| &**observed)
    }

    /// True once every node that has instances reported, or the time for that is over; after a loss of the store
    /// once each has handed over what it has, and what should be has come from the global plane too.
    pub fn settled(&self, moment: Moment) -> bool {
        let waited = moment.instant.saturating_duration_since(self.began);
        let Some(Awaited { nodes, all_known }) = self.life.awaited() else {
            return waited >= SETTLE
                || self.instances.nodes().all(|node| self.nodes.contains_key(node));
        };
        let all_came = *all_known && nodes.iter().all(|node| self.has_handed_over(node));
        self.acknowledged > Generation(0) && (all_came || waited >= RECOVER)
    }

    /// Whether an operator removed a node.
    fn is_removed(&self, node: &NodeName) -> bool {
        self.cordons.get(node).is_some_and(|cordon| cordon.removed)
    }

    /// True when what was on a node is replaced elsewhere.
    fn is_lost(&self, node: &NodeName, moment: Moment) -> bool {
        self.silent_for(node, moment) >= LOST_AFTER
    }

    fn silent_for(&self, node: &NodeName, moment: Moment) -> Duration {
        self.silence(self.nodes.get(node), moment)
    }

    fn silence(&self, of: Option<&ReportedNode>, moment: Moment) -> Duration {
        let heard = of.map_or(self.began, |reported| reported.at);
        moment.instant.saturating_duration_since(heard)
    }

    fn reachable(&self, of: Option<&ReportedNode>, moment: Moment) -> bool {
        of.is_some() && self.silence(of, moment) < SILENT_AFTER
    }

    /// The nodes that reported or have instances, in the order of their names, each with what it reported: found on
    /// one way through both, since there may be hundreds and every round asks.
    fn all_nodes(&self) -> impl Iterator<Item = (&NodeName, Option<&ReportedNode>)> {
        let mut reported = self.nodes.iter().peekable();
        let mut given = self.instances.nodes().peekable();
        std::iter::from_fn(move || {
            let order = match (reported.peek(), given.peek()) {
                (Some((name, _)), Some(other)) => (*name).cmp(other),
                (Some(_), None) => Ordering::Less,
                (None, _) => Ordering::Greater,
            };
            let other = if order.is_ge() { given.next() } else { None };
            match order.is_le() {
                true => reported.next().map(|(name, reported)| (name, Some(reported))),
                false => other.map(|name| (name, None)),
            }
        })
    }
}

#[cfg(test)]
mod tests;
