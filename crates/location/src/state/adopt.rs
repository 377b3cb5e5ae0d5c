//! From one set of allotments to the next, also of another life of the global store.
//!
//! Within one life an app that a set leaves out must go. A store that was restored, though, leaves out what
//! came after its backup, and the operator who restored that of yesterday did not mean to end what was
//! deployed today. So in the first set of a new life nothing is left out: what runs goes on as a *stray*,
//! until a set allots it again or says to let it go. Rejected: to tell the control plane the release and let
//! it write that into its store, which would bring back what was removed on purpose.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use longshore_api::links::{Allotment, AllotmentSet, AppRef, Intent};
use longshore_types::{
    AppName, Cordon, Epoch, Generation, NodeName, ProjectName, ReachAddress, Release, ReleaseNumber,
};

use super::State;
use super::instances::app_key;
use crate::records::InstanceRecord;

/// What a location has been given once it took a set over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adopted {
    epoch: Epoch,
    generation: Generation,
    /// By app, the strays among them.
    pub allotments: BTreeMap<(ProjectName, AppName), Allotment>,
    /// The strays.
    pub strays: BTreeSet<AppRef>,
    /// What operators wish of the nodes.
    pub cordons: BTreeMap<NodeName, Cordon>,
    reach: BTreeSet<ReachAddress>,
}

fn app_ref((project, app): &(ProjectName, AppName)) -> AppRef {
    AppRef { project: project.clone(), app: app.clone() }
}

impl State {
    /// What there would be with a set that is accepted.
    pub fn adopted(&self, set: &AllotmentSet) -> Adopted {
        let is_new_life = set.epoch > self.epoch;
        let by_app = |a: &Allotment| ((a.project().clone(), a.app().clone()), a.clone());
        let mut allotments: BTreeMap<_, _> = set.allotments.iter().map(by_app).collect();
        let mut strays = BTreeSet::new();
        for (key, own) in self.allotments.iter() {
            let app = app_ref(key);
            if allotments.contains_key(key) || set.let_go.contains(&app) {
                continue;
            }
            if self.strays.contains(&app) || is_new_life && self.has_instances(key) {
                allotments.insert(key.clone(), own.clone());
                strays.insert(app);
            }
        }
        let (epoch, generation, cordons) = (set.epoch, set.generation, set.cordons.clone());
        let reach = set.reach.clone();
        Adopted { epoch, generation, allotments, strays, cordons, reach }
    }

    /// Takes over what was stored.
    pub fn take(&mut self, adopted: Adopted) {
        let Adopted { epoch, generation, allotments, strays, cordons, reach } = adopted;
        (self.epoch, self.acknowledged) = (epoch, generation);
        self.allotments = allotments.into_values().collect();
        (self.strays, self.cordons) = (strays, cordons);
        self.reach = reach;
        self.due.all();
        self.statuses.all();
        self.routes.all();
    }

    /// Whether a change builds on what there is.
    pub fn continues(&self, change: &AllotmentSet) -> bool {
        (change.epoch, change.since) == (self.epoch, Some(self.acknowledged))
    }

    /// The whole set that there would be with a change.
    pub fn whole(&self, change: AllotmentSet) -> AllotmentSet {
        // Strays are in no set.
        let is_allotted = |key: &&(ProjectName, AppName)| !self.strays.contains(&app_ref(key));
        let allotted = self.allotments.iter().filter(|(key, _)| is_allotted(key));
        let set = AllotmentSet {
            epoch: self.epoch,
            generation: self.acknowledged,
            allotments: allotted.map(|(_, allotment)| allotment.clone()).collect(),
            ..AllotmentSet::default()
        };
        // It was looked at before whether it is one of this.
        set.changed(change).unwrap_or_else(|both| both.0)
    }

    /// Takes over a change that was stored, where nothing is a stray.
    pub fn take_change(&mut self, change: AllotmentSet) {
        let AllotmentSet { generation, allotments, gone, cordons, reach, .. } = change;
        (self.acknowledged, self.reach) = (generation, reach);
        for AppRef { project, app } in gone {
            let key = (project, app);
            self.allotments.remove(&key);
            self.routes.stale([key.clone()]);
            self.due.extend([key]);
        }
        for allotment in allotments {
            let key = (allotment.project().clone(), allotment.app().clone());
            self.allotments.insert(allotment);
            let of_app = self.instances.of_app(&key).map(|record| &record.instance);
            self.statuses.stale(of_app);
            self.routes.stale([key.clone()]);
            self.due.extend([key]);
        }
        if self.cordons != cordons {
            self.cordons = cordons;
            self.due.all();
        }
    }

    fn has_instances(&self, key: &(ProjectName, AppName)) -> bool {
        self.instances.of_app(key).any(|record| record.intent != Intent::Stop)
    }

    /// Why an instance is there, where nobody else would say so.
    pub(super) fn stray_note(&self, record: &InstanceRecord) -> Option<String> {
        let app = app_ref(&app_key(record));
        self.strays.contains(&app).then(|| {
            format!(
                "the control plane was restored and does not place {} here: a deploy takes it over, \
                 `longshore rm {}` ends it",
                app.app, app.app
            )
        })
    }

    /// The release that an instance is of, for those who know releases by their numbers. A restored store
    /// may give a number again; an instance of what had it before is of none that is known.
    pub(super) fn release_of(&self, record: &InstanceRecord) -> ReleaseNumber {
        let own = &record.release;
        let allotment = self.allotments.get(&app_key(record));
        let is_other = |known: &Arc<Release>| {
            known.number == own.number && !Arc::ptr_eq(known, own) && !is_same(known, own)
        };
        let is_foreign = allotment.is_some_and(|allotment| {
            let canary = allotment.canary.as_ref().map(|canary| &canary.release);
            let command = allotment.command.as_ref();
            match record.is_command {
                true => command.is_some_and(is_other),
                false => [Some(&allotment.release), canary].into_iter().flatten().any(is_other),
            }
        });
        if is_foreign { ReleaseNumber(0) } else { own.number }
    }
}

/// Whether two releases are the same thing, whenever they were made.
fn is_same(one: &Release, other: &Release) -> bool {
    one.manifest == other.manifest
        && one.image_digest == other.image_digest
        && one.secrets == other.secrets
}
