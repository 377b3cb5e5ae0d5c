//! The instances of a location, found by app and by node as well.
//!
//! Hundreds of changes a second each concern one app and one node; to look for theirs among all instances would cost
//! the square of their number.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;

use longshore_types::{
    AppName, Capacity, Generation, GpuShares, InstanceId, NodeName, ProjectName,
};

use crate::records::InstanceRecord;

/// An app and its owner.
pub type AppKey = (ProjectName, AppName);

/// All instances, by id.
#[derive(Debug, Default)]
pub struct Instances {
    by_id: BTreeMap<InstanceId, InstanceRecord>,
    by_app: BTreeMap<AppKey, BTreeSet<InstanceId>>,
    by_node: BTreeMap<NodeName, OnNode>,
    draining: BTreeSet<InstanceId>,
    changed: Changed,
}

/// What changed since each of these was taken.
#[derive(Debug, Default)]
struct Changed {
    /// The nodes whose instances, or what these are told, did, and which of these.
    nodes: BTreeMap<NodeName, BTreeSet<InstanceId>>,
    /// The apps whose instances did.
    apps: BTreeSet<AppKey>,
    /// The instances themselves.
    instances: BTreeSet<InstanceId>,
    /// The apps again, for the routes.
    unrouted: BTreeSet<AppKey>,
}

impl Changed {
    fn note(&mut self, record: &InstanceRecord) {
        let on_node = self.nodes.entry(record.node.clone()).or_default();
        on_node.insert(record.instance.clone());
        self.apps.insert(app_key(record));
        self.unrouted.insert(app_key(record));
        self.instances.insert(record.instance.clone());
    }
}

/// What is on a node.
#[derive(Debug, Default)]
struct OnNode {
    instances: BTreeSet<InstanceId>,
    /// What they were promised together.
    promised: Capacity,
    /// And of which GPUs.
    gpus: GpuShares,
}

/// The app of an instance.
pub fn app_key(record: &InstanceRecord) -> AppKey {
    let manifest = &record.release.manifest;
    (manifest.project.clone(), manifest.app.clone())
}

impl Instances {
    /// Adds one.
    pub fn insert(&mut self, record: InstanceRecord) {
        self.changed.note(&record);
        let instance = record.instance.clone();
        if let Some(before) = self.by_id.insert(instance.clone(), record) {
            self.unlist(&before);
        }
        let Some(record) = self.by_id.get(&instance) else { return };
        self.by_app.entry(app_key(record)).or_default().insert(instance.clone());
        let on_node = self.by_node.entry(record.node.clone()).or_default();
        on_node.promised = on_node.promised.plus(record.release.manifest.resources.capacity());
        on_node.gpus = on_node.gpus.plus(&record.gpus);
        on_node.instances.insert(instance.clone());
        if record.draining.is_some() {
            self.draining.insert(instance);
        }
    }

    /// Takes one away.
    pub fn remove(&mut self, instance: &InstanceId) {
        if let Some(record) = self.by_id.remove(instance) {
            self.changed.note(&record);
            self.unlist(&record);
        }
    }

    /// Changes what becomes of one; false when there is none.
    pub fn change(
        &mut self,
        instance: &InstanceId,
        change: impl FnOnce(&mut InstanceRecord),
    ) -> bool {
        let Some(record) = self.by_id.get_mut(instance) else { return false };
        change(record);
        if record.draining.is_some() {
            self.draining.insert(instance.clone());
        }
        self.changed.note(record);
        true
    }

    /// Notes what its node said it has; true when that is news.
    pub fn confirm(
        &mut self,
        node: &NodeName,
        instance: &InstanceId,
        generation: Generation,
    ) -> bool {
        let Some(record) = self.by_id.get_mut(instance) else { return false };
        let is_its = record.node == *node && record.generation == generation;
        let is_news = is_its && record.confirmed != Some(generation);
        if is_news {
            record.confirmed = Some(generation);
        }
        is_news
    }

    /// Forgets what its node said it has, so that it is news the next time.
    pub fn unconfirm(&mut self, instance: &InstanceId) {
        if let Some(record) = self.by_id.get_mut(instance) {
            record.confirmed = None;
        }
    }

    fn unlist(&mut self, record: &InstanceRecord) {
        let (instance, app) = (&record.instance, app_key(record));
        if let Some(of_app) = self.by_app.get_mut(&app) {
            of_app.remove(instance);
            if of_app.is_empty() {
                self.by_app.remove(&app);
            }
        }
        if let Some(on_node) = self.by_node.get_mut(&record.node) {
            on_node.instances.remove(instance);
            on_node.promised = on_node.promised.minus(record.release.manifest.resources.capacity());
            on_node.gpus = on_node.gpus.minus(&record.gpus);
            if on_node.instances.is_empty() {
                self.by_node.remove(&record.node);
            }
        }
        self.draining.remove(instance);
    }

    /// Those of an app.
    pub fn of_app(&self, app: &AppKey) -> impl Iterator<Item = &InstanceRecord> {
        self.found(self.by_app.get(app))
    }

    /// Those of a node.
    pub fn on_node(&self, node: &NodeName) -> impl Iterator<Item = &InstanceRecord> {
        self.found(self.by_node.get(node).map(|on_node| &on_node.instances))
    }

    fn found<'a>(
        &'a self,
        ids: Option<&'a BTreeSet<InstanceId>>,
    ) -> impl Iterator<Item = &'a InstanceRecord> {
        ids.into_iter().flatten().filter_map(|id| self.by_id.get(id))
    }

    /// What those of a node were promised together.
    pub fn promised(&self, node: &NodeName) -> Capacity {
        self.by_node.get(node).map_or_else(Capacity::default, |on_node| on_node.promised)
    }

    /// What of which GPUs of a node, if any has something there.
    pub fn gpus_promised(&self, node: &NodeName) -> Option<&GpuShares> {
        self.by_node.get(node).map(|on_node| &on_node.gpus)
    }

    /// Both of a node that has any.
    pub fn held_on(&self, node: &NodeName) -> Option<(Capacity, &GpuShares)> {
        self.by_node.get(node).map(|on_node| (on_node.promised, &on_node.gpus))
    }

    /// The nodes that have any, in the order of their names.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeName> {
        self.by_node.keys()
    }

    /// Whether a node has any.
    pub fn is_any_on(&self, node: &NodeName) -> bool {
        self.by_node.contains_key(node)
    }

    /// How many a node has.
    pub fn n_on(&self, node: &NodeName) -> usize {
        self.by_node.get(node).map_or(0, |on_node| on_node.instances.len())
    }

    /// Those that get no more requests.
    pub fn draining(&self) -> impl Iterator<Item = &InstanceRecord> {
        self.found(Some(&self.draining))
    }

    /// The nodes of which something changed since this was last asked for, and of which of their instances.
    pub fn take_changed_nodes(&mut self) -> BTreeMap<NodeName, BTreeSet<InstanceId>> {
        std::mem::take(&mut self.changed.nodes)
    }

    /// The apps whose routes may be others since this was last asked for.
    pub fn take_unrouted(&mut self) -> BTreeSet<AppKey> {
        std::mem::take(&mut self.changed.unrouted)
    }

    /// The instances that changed since this was last asked for.
    pub fn take_changed(&mut self) -> BTreeSet<InstanceId> {
        std::mem::take(&mut self.changed.instances)
    }

    /// The same of apps.
    pub fn take_changed_apps(&mut self) -> BTreeSet<AppKey> {
        std::mem::take(&mut self.changed.apps)
    }
}

impl Deref for Instances {
    type Target = BTreeMap<InstanceId, InstanceRecord>;
    fn deref(&self) -> &Self::Target {
        &self.by_id
    }
}

impl FromIterator<InstanceRecord> for Instances {
    fn from_iter<I: IntoIterator<Item = InstanceRecord>>(records: I) -> Self {
        let mut instances = Self::default();
        records.into_iter().for_each(|record| instances.insert(record));
        instances
    }
}
