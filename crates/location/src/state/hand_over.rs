//! What nodes hand over to a location that lost its store.
//!
//! A node knows what it was given, and its location no more. What it hands over is taken as it is, whenever it
//! comes: by its id and its generation, so that nothing is started, ended or told anew for it. But a node that somebody
//! took over could hand over what it never had, and get the secrets of that; so a location seals what it gives, and
//! from another machine takes nothing without its seal. Rejected: to ask the global plane what ran where, which
//! knows that from reports, in memory, until its own next start.

use longshore_api::links::{Assignment, Intent, NodeReport, Origin, Reach};
use longshore_types::{Decision, InstanceId, NodeName, Release};

use super::{Changes, Moment, State};
use crate::life::Life;
use crate::records::InstanceRecord;

impl State {
    /// Goes on in a life, and seals what was assigned before there were seals.
    pub fn live(&mut self, life: Life) {
        self.table.location_epoch = life.epoch();
        self.life = life;
        let Some(seal) = &self.life.seal else { return };
        let bare = self.instances.values().filter(|record| record.seal.is_none());
        let bare: Vec<_> = bare.map(|record| record.instance.clone()).collect();
        for instance in bare {
            self.instances.change(&instance, |record| {
                record.seal = Some(seal.mark(&sealed(&self.name, record)));
            });
        }
    }

    /// The same assignment with its seal.
    pub(super) fn with_seal(&self, record: InstanceRecord) -> InstanceRecord {
        let mark = |seal: &longshore_trust::Seal| seal.mark(&sealed(&self.name, &record));
        InstanceRecord { seal: self.life.seal.as_ref().map(mark), ..record }
    }

    /// True when a node carries out what an earlier life of this location gave it, of which nothing is known.
    pub(super) fn owes(&self, report: &NodeReport) -> bool {
        let epoch = self.life.epoch();
        let hands_over = report.handed_over.as_ref().is_some_and(|handed| handed.to == epoch);
        self.is_of_before(report) && !hands_over
    }

    fn is_of_before(&self, report: &NodeReport) -> bool {
        self.life.is_recovered() && report.location_epoch < self.life.epoch()
    }

    /// Takes over what a node hands over, before its report is.
    pub fn take_handed_over(
        &mut self,
        report: &NodeReport,
        reach: &Reach,
        moment: Moment,
        changes: &mut Changes,
    ) {
        let handed = report.handed_over.as_ref().filter(|handed| handed.to == self.life.epoch());
        let Some(handed) = handed.filter(|_| self.is_of_before(report)) else { return };
        if self.is_removed(&report.node) {
            return;
        }
        for assignment in &handed.assignments {
            // It may be said again until the node has heard that it was taken.
            if self.instances.contains_key(&assignment.instance) {
                continue;
            }
            let record = record_of(assignment, &report.node, moment);
            let mark = assignment.origin.seal.as_deref();
            if *reach != Reach::Here && !self.is_sealed(&record, mark) {
                let (node, instance) = (&report.node, &assignment.instance);
                tracing::warn!(%node, %instance, "a node hands over what it was not given");
                continue;
            }
            let record = self.with_seal(record);
            changes.put.insert(record.instance.clone());
            self.instances.insert(record);
        }
    }

    fn is_sealed(&self, record: &InstanceRecord, mark: Option<&str>) -> bool {
        let seal = self.life.seal.as_ref();
        seal.zip(mark).is_some_and(|(seal, mark)| seal.is_mark(&sealed(&self.name, record), mark))
    }

    /// Whether a node is there and has handed over what it had.
    pub(super) fn has_handed_over(&self, node: &NodeName) -> bool {
        self.is_removed(node) || self.nodes.get(node).is_some_and(|known| !known.owes)
    }
}

impl InstanceRecord {
    /// What its node keeps for the location.
    pub(super) fn origin(&self) -> Origin {
        Origin {
            is_command: self.is_command,
            created_at: self.created_at,
            replaces: self.replaces.clone(),
            seal: self.seal.clone(),
        }
    }
}

fn record_of(assignment: &Assignment, node: &NodeName, moment: Moment) -> InstanceRecord {
    let Assignment { instance, release, intent, generation, gpus, origin } = assignment.clone();
    let stopped = "it was being stopped when the location lost its store";
    let why = format!("{node} had it when the location lost its store, and handed it over");
    let (at, chosen) = (moment.wall, Some(node.to_string()));
    InstanceRecord {
        instance,
        release,
        is_command: origin.is_command,
        node: node.clone(),
        gpus,
        decision: Decision { at, chosen, why, candidates: Vec::new() },
        intent,
        generation,
        draining: (intent == Intent::Stop).then(|| stopped.to_owned()),
        created_at: origin.created_at,
        replaces: origin.replaces,
        seal: origin.seal,
        confirmed: None,
    }
}

/// What a seal is of: who has what, by which secrets and images are given. Each release of Longshore must write
/// it as the one before, whatever a manifest has by then.
fn sealed(location: &longshore_types::LocationName, record: &InstanceRecord) -> String {
    let InstanceRecord { instance, release, is_command, node, .. } = record;
    let Release { number, manifest, image_digest, secrets, .. } = &**release;
    let place: (_, _, &InstanceId) = (location, node, instance);
    let what = (&manifest.project, &manifest.app, number, is_command);
    let image = (manifest.image.repository.to_string(), image_digest);
    serde_json::to_string(&(place, what, image, secrets)).expect("names and numbers are JSON")
}
