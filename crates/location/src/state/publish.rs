//! What the state looks like to nodes, ingresses and the global plane.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use longshore_api::links::{
    Assignment, Endpoint, InstanceStatus, LocationReport, NodeSummary, ObservedInstance, Route,
    RoutingTable,
};
use longshore_types::{
    ByteCount, Capacity, Gpu, GpuShares, InstanceId, InstancePhase, LocationEpoch, NodeGpu,
    NodeName, ReachAddress, SharedMap, Traits,
};
use tokio::time::Instant;

use super::due::is_whole_due;
use super::statuses::Reported;
use super::sums::Sums;
use super::{AppKey, Moment, Published, State};
use crate::records::InstanceRecord;

/// The routes of the table that was made last, and of which apps they may be out of date.
#[derive(Debug, Default)]
pub struct Routes {
    by_app: BTreeMap<AppKey, Arc<Route>>,
    stale: BTreeSet<AppKey>,
    /// When all were made; nothing when they have to be now.
    whole_at: Option<Instant>,
}

impl Routes {
    /// Something of these apps may have changed.
    pub fn stale(&mut self, apps: impl IntoIterator<Item = AppKey>) {
        self.stale.extend(apps);
    }

    /// Something of any may have.
    pub fn all(&mut self) {
        self.whole_at = None;
    }
}

/// The nodes that are told what they should do, and what each is told beside its instances.
#[derive(Debug, PartialEq, Eq)]
pub struct Roster {
    pub location_epoch: LocationEpoch,
    pub reach: BTreeSet<ReachAddress>,
    /// In the order of their names, each with whether it has to hand over what it has before it is told of more.
    nodes: Vec<(NodeName, bool)>,
}

impl Roster {
    /// All of them.
    pub fn nodes(&self) -> impl Iterator<Item = (&NodeName, bool)> {
        self.nodes.iter().map(|(node, owes)| (node, *owes))
    }

    /// Whether a node that is told anything has to hand over before; nothing of one that is not.
    pub fn owes(&self, node: &NodeName) -> Option<bool> {
        let found = self.nodes.binary_search_by(|(other, _)| other.cmp(node));
        found.ok().map(|idx| self.nodes[idx].1)
    }
}

impl State {
    /// Who is told what. One that was removed and comes back is told that it has nothing, and ends what it has.
    pub fn roster(&self) -> Roster {
        let reported = self.all_nodes();
        let reported =
            reported.map(|(node, reported)| (node, reported.is_some_and(|one| one.owes)));
        let mut nodes: Vec<_> = reported.map(|(node, owes)| (node.clone(), owes)).collect();
        let removed = self.cordons.iter().filter(|(_, cordon)| cordon.removed);
        for (node, _) in removed {
            if let Err(idx) = nodes.binary_search_by(|(other, _)| other.cmp(node)) {
                nodes.insert(idx, (node.clone(), false));
            }
        }
        Roster { location_epoch: self.life.epoch(), reach: self.reach(), nodes }
    }

    /// What a node is told.
    pub fn assignments(&self, node: &NodeName) -> SharedMap<InstanceId, Arc<Assignment>> {
        let mut all = SharedMap::default();
        let is_removed = self.is_removed(node);
        for record in self.instances.on_node(node).filter(|_| !is_removed) {
            all.insert(record.instance.clone(), Arc::new(assignment(record)));
        }
        all
    }

    /// The same, where it was told that before and of these something changed.
    pub fn assignments_after<'a>(
        &self,
        before: &SharedMap<InstanceId, Arc<Assignment>>,
        node: &NodeName,
        changed: impl Iterator<Item = &'a InstanceId>,
    ) -> SharedMap<InstanceId, Arc<Assignment>> {
        if self.is_removed(node) {
            return SharedMap::default();
        }
        let mut all = before.clone();
        for instance in changed {
            match self.instances.get(instance).filter(|record| record.node == *node) {
                Some(record) => all.insert(instance.clone(), Arc::new(assignment(record))),
                None => _ = all.remove(instance),
            }
        }
        // It may have been told nothing while it was removed.
        if all.len() == self.instances.n_on(node) { all } else { self.assignments(node) }
    }

    /// What the nodes are to try to reach: what the global plane says, and what has been given to the location, so
    /// that it can start that anew while it is cut off.
    pub fn reach(&self) -> BTreeSet<ReachAddress> {
        self.reach.iter().chain(self.allotments.reach()).cloned().collect()
    }

    /// Renews the routing table; true when it changed. Remembers from which revision on a draining
    /// instance is out of it and a healthy one is in it.
    pub fn renew_table(&mut self, moment: Moment) -> bool {
        let changed = self.renew_routes(moment);
        if changed {
            let routes = self.routes.by_app.values().cloned().collect();
            let (location_epoch, revision) = (self.life.epoch(), self.table.revision + 1);
            // The nodes are added when it is told.
            let table =
                RoutingTable { location_epoch, revision, routes, ..RoutingTable::default() };
            let before = std::mem::replace(&mut self.table, table);
            self.table_since = moment.instant;
            self.note_included(&before, moment);
        }
        let table = Published { revision: self.table.revision, at: moment.instant };
        for record in self.instances.draining() {
            self.excluded.entry(record.instance.clone()).or_insert(table);
        }
        changed
    }

    /// Makes the routes anew of the apps of which something may have changed; true when one did.
    fn renew_routes(&mut self, moment: Moment) -> bool {
        let mut routes = std::mem::take(&mut self.routes);
        let mut stale = std::mem::take(&mut routes.stale);
        stale.append(&mut self.instances.take_unrouted());
        // Should something have been overlooked.
        if is_whole_due(routes.whole_at, moment) {
            routes.whole_at = Some(moment.instant);
            stale.extend(self.allotments.keys().chain(routes.by_app.keys()).cloned());
        }
        let mut changed = false;
        for key in stale {
            match self.allotments.get(&key).and_then(|allotment| self.route(allotment)) {
                Some(route) if routes.by_app.get(&key).is_some_and(|known| **known == route) => {}
                Some(route) => {
                    routes.by_app.insert(key, Arc::new(route));
                    changed = true;
                }
                None => changed |= routes.by_app.remove(&key).is_some(),
            }
        }
        self.routes = routes;
        changed
    }

    fn note_included(&mut self, before: &RoutingTable, moment: Moment) {
        // An app is routed before it has instances. So the first table has some only where a
        // location was started again, and its ingresses went on routing to those.
        if before.routes.is_empty() {
            return;
        }
        let known = instances(before);
        let now = instances(&self.table);
        self.included.retain(|instance, _| now.contains(instance));
        let table = Published { revision: self.table.revision, at: moment.instant };
        for instance in now.difference(&known) {
            self.statuses.stale([*instance]);
            self.included.insert((*instance).clone(), table);
        }
    }

    pub(super) fn route(&self, allotment: &longshore_api::links::Allotment) -> Option<Route> {
        allotment.release.manifest.port?;
        let key = (allotment.project().clone(), allotment.app().clone());
        let endpoints = self.instances.of_app(&key).filter_map(|record| {
            let manifest = &record.release.manifest;
            if record.draining.is_some() {
                return None;
            }
            let observed = self.observed(record)?;
            let ready = observed.phase == InstancePhase::Healthy;
            let address = observed.address.filter(|_| ready)?;
            Some(Endpoint {
                instance: record.instance.clone(),
                node: record.node.clone(),
                address: SocketAddr::from((address, manifest.port?.get())),
                protocol: manifest.ingress.protocol,
                reach: self.nodes.get(&record.node)?.reach.clone(),
            })
        });
        Some(Route {
            project: allotment.project().clone(),
            app: allotment.app().clone(),
            hosts: allotment.hosts.clone(),
            rules: allotment.release.manifest.ingress.clone(),
            endpoints: endpoints.collect(),
        })
    }

    /// What the global plane is told.
    pub fn report(&mut self, gate: Option<&str>, moment: Moment) -> Reported {
        let instances = self.statuses(moment);
        let none = Sums::default();
        let mut summaries = self.unheard_nodes();
        summaries.extend(self.nodes.values().map(|reported| NodeSummary {
            reported_at: reported.at_wall,
            capacity: reported.report.capacity,
            version: reported.report.version.clone(),
            runtimes: reported.report.runtimes.clone(),
            image_mount: reported.report.image_mount,
            traits: self.traits.of_node(&reported.report.traits),
            reached: reported.report.reached.clone(),
            ..unknown(&reported.report.node)
        }));
        for summary in &mut summaries {
            let node = &summary.node;
            summary.reachable = self.reachable(self.nodes.get(node), moment);
            summary.lost = self.is_lost(node, moment);
            summary.promised = self.instances.promised(node);
            let sums = self.statuses.sums(node).unwrap_or(&none);
            summary.instances = sums.n_instances;
            (summary.leaving, summary.yielding) = (sums.leaving, sums.yielding());
            summary.gpus = self.gpus_of(node, &sums.gpus_leaving);
            summary.cordon = self.cordons.get(node).cloned();
            let drains = summary.cordon.as_ref().is_some_and(|cordon| cordon.drains);
            summary.drained = drains && summary.instances == 0;
        }
        summaries.sort_by(|a, b| a.node.cmp(&b.node));
        let report = LocationReport {
            location: self.name.clone(),
            // The uplink knows these.
            number: 0,
            since: None,
            instances: Vec::new(),
            gone: Vec::new(),
            coordinates: None,
            traits: self.traits.clone(),
            joining: None,
            peering: None,
            round_trip_micros: Default::default(),
            demand: Vec::new(),
            gate: gate.map(str::to_owned),
            epoch: self.epoch,
            acknowledged: self.acknowledged,
            at: moment.wall,
            nodes: summaries,
            shortfalls: self.shortfalls.clone(),
            staying: self.staying.clone(),
            strays: self.strays.iter().cloned().collect(),
            location_epoch: self.life.epoch(),
            node_keys: None,
        };
        Reported { report, instances }
    }

    /// The GPUs that a node says it has, with what of each is promised.
    fn gpus_of(&self, node: &NodeName, leaving: &GpuShares) -> Vec<NodeGpu> {
        let said = self.nodes.get(node).map(|reported| reported.report.gpus.as_slice());
        let promised = self.instances.gpus_promised(node);
        let gpu = |(index, gpu): (u32, &Gpu)| NodeGpu {
            model: gpu.model.clone(),
            memory: gpu.memory,
            promised: promised.map_or(ByteCount(0), |promised| promised.of(index)),
            leaving: leaving.of(index),
        };
        (0..).zip(said.unwrap_or_default()).map(gpu).collect()
    }

    /// Nodes that have instances and were not heard of since this process began.
    fn unheard_nodes(&self) -> Vec<NodeSummary> {
        let unheard = self.instances.nodes().filter(|node| !self.nodes.contains_key(*node));
        let summary = |node: &NodeName| {
            // It was there when it was given the last of them.
            let given = self.instances.on_node(node).map(|record| record.created_at).max();
            NodeSummary { reported_at: given.unwrap_or_default(), ..unknown(node) }
        };
        unheard.map(summary).collect()
    }

    pub(super) fn status(&self, record: &InstanceRecord, moment: Moment) -> InstanceStatus {
        let pending = || ObservedInstance::pending(record.instance.clone(), record.generation);
        let mut observed = self.observed(record).cloned().unwrap_or_else(pending);
        if observed.note.is_none() {
            observed.note = record.draining.clone().or_else(|| self.stray_note(record));
        }
        if observed.note.is_none()
            && record.confirmed.is_some()
            && !self.nodes.contains_key(&record.node)
        {
            observed.note = Some("its node took it over and has not reported since".to_owned());
        }
        if observed.note.is_none()
            && let Some(staying) = self.staying.iter().find(|s| s.instance == record.instance)
        {
            observed.note = Some(format!("its node is drained; {}", staying.why));
        }
        let included = self.included.get(&record.instance);
        InstanceStatus {
            project: record.release.manifest.project.clone(),
            app: record.release.manifest.app.clone(),
            release: self.release_of(record),
            node: record.node.clone(),
            gpus: record.gpus.clone(),
            observed,
            draining: record.draining.is_some(),
            is_command: record.is_command,
            awaits_ingress: included.is_some_and(|table| !self.in_force(*table, moment)),
            created_at: record.created_at,
            decision: record.decision.clone(),
        }
    }
}

fn assignment(record: &InstanceRecord) -> Assignment {
    Assignment {
        instance: record.instance.clone(),
        release: record.release.clone(),
        intent: record.intent,
        generation: record.generation,
        gpus: record.gpus.clone(),
        origin: record.origin(),
    }
}

/// What is known of a node of which only the name is.
fn unknown(node: &NodeName) -> NodeSummary {
    NodeSummary {
        node: node.clone(),
        reachable: false,
        reported_at: Default::default(),
        capacity: Capacity::default(),
        promised: Capacity::default(),
        leaving: Capacity::default(),
        yielding: Vec::new(),
        gpus: Vec::new(),
        reached: Vec::new(),
        version: String::new(),
        runtimes: Vec::new(),
        image_mount: None,
        traits: Traits::default(),
        lost: false,
        instances: 0,
        cordon: None,
        drained: false,
    }
}

/// Which instances a table sends requests to.
fn instances(table: &RoutingTable) -> BTreeSet<&InstanceId> {
    let endpoints = table.routes.iter().flat_map(|route| &route.endpoints);
    endpoints.map(|endpoint| &endpoint.instance).collect()
}
