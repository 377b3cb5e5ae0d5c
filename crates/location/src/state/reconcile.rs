//! From what is to what is wanted: plans carried out in memory, draining instances moved along.

use std::collections::{BTreeMap, BTreeSet};

use longshore_api::links::{Intent, Move, Shortfall, Staying};
use longshore_planning::Pinned;
use longshore_planning::location::{
    self as planner, Action, Goal, NodeState, PlacedInstance, Snapshot, Standing, WantedApp,
};
use longshore_types::{
    AppName, Capacity, Generation, GpuShares, InstanceId, InstancePhase, NodeName, Priority,
    ProjectName, Release,
};

use super::{ACK_WAIT, Changes, Moment, Published, State};
use crate::log::Decided;
use crate::records::InstanceRecord;

impl State {
    /// One round: forget what is gone, stop what is drained, then plan. `seed` gives new ids.
    pub fn reconcile(&mut self, seed: u64, moment: Moment) -> Changes {
        let mut changes = Changes::default();
        self.forget_gone(&mut changes);
        self.forget_removed(&mut changes);
        self.stop_drained(&mut changes, moment);
        let due = self.take_due(moment);
        if due.as_ref().is_some_and(BTreeSet::is_empty) {
            return changes;
        }
        let snapshot = self.snapshot(seed, due.as_ref(), moment);
        let plan = planner::plan(&snapshot);
        changes.only_places = only_places(&plan) && changes == Changes::default();
        self.decided = self.decides(&plan).then(|| Decided { snapshot, plan: plan.clone() });
        for action in plan.actions {
            self.carry_out(action, &mut changes, moment);
        }
        let shortfall = |s: planner::Shortfall| Shortfall {
            project: s.project,
            app: s.app,
            missing: s.missing,
            decision: s.decision,
            room: s.room,
        };
        // Of the others nothing new was found.
        let stays = |project: &ProjectName, app: &AppName| {
            due.as_ref().is_some_and(|due| !due.contains(&(project.clone(), app.clone())))
        };
        self.shortfalls.retain(|one| stays(&one.project, &one.app));
        self.shortfalls.extend(plan.shortfalls.into_iter().map(shortfall));
        self.shortfalls.sort_by(|a, b| (&a.project, &a.app).cmp(&(&b.project, &b.app)));
        let staying = plan.staying.into_iter().filter_map(|staying| {
            let record = self.instances.get(&staying.instance)?;
            Some(Staying {
                node: record.node.clone(),
                instance: staying.instance,
                project: record.release.manifest.project.clone(),
                app: record.release.manifest.app.clone(),
                why: staying.why,
                under_way: staying.under_way,
            })
        });
        let staying: Vec<_> = staying.collect();
        let either = self.staying.iter().chain(&staying).map(|staying| &staying.instance);
        self.statuses.stale(either);
        self.staying.retain(|one| stays(&one.project, &one.app));
        self.staying.extend(staying);
        changes
    }

    /// Whether a plan does something, or finds something missing that was not before.
    fn decides(&self, plan: &planner::Plan) -> bool {
        let missing = |project: &ProjectName, app: &AppName, missing: u32| {
            self.shortfalls
                .iter()
                .any(|one| (&one.project, &one.app, one.missing) == (project, app, missing))
        };
        !plan.actions.is_empty()
            || plan.shortfalls.iter().any(|one| !missing(&one.project, &one.app, one.missing))
    }

    /// What draining a node would do; nothing when there is no such node.
    pub fn preview_drain(&self, node: &NodeName, moment: Moment) -> Option<Vec<Move>> {
        if !self.nodes.contains_key(node) && !self.instances.is_any_on(node) {
            return None;
        }
        let moves = planner::preview_drain(&self.snapshot(0, None, moment), node);
        let moves = moves.into_iter().map(|planner::Move { instance, project, app, to, why }| {
            Move { instance, project, app, to, why }
        });
        Some(moves.collect())
    }

    /// Forgets nodes that an operator removed, and what they had: what still runs there ends when such
    /// a node asks what it should do.
    fn forget_removed(&mut self, changes: &mut Changes) {
        let removed = self.cordons.iter().filter(|(_, cordon)| cordon.removed);
        let removed: BTreeSet<_> = removed.map(|(node, _)| node).collect();
        self.nodes.retain(|node, _| !removed.contains(node));
        let gone = removed.into_iter().flat_map(|node| self.instances.on_node(node));
        let gone: Vec<InstanceId> = gone.map(|record| record.instance.clone()).collect();
        for instance in gone {
            self.forget(instance, changes);
        }
    }

    fn forget(&mut self, instance: InstanceId, changes: &mut Changes) {
        self.instances.remove(&instance);
        self.excluded.remove(&instance);
        changes.delete.insert(instance);
    }

    /// Marks an instance as draining by a user's order; false when there is none.
    pub fn drain(
        &mut self,
        instance: &longshore_types::InstanceId,
        why: &str,
        changes: &mut Changes,
    ) -> bool {
        let Some(record) = self.instances.get(instance) else { return false };
        if record.draining.is_none() {
            self.instances.change(instance, |record| record.draining = Some(why.to_owned()));
            changes.put.insert(instance.clone());
        }
        true
    }

    /// An instance is gone when its node says that it ended under the order to stop.
    fn forget_gone(&mut self, changes: &mut Changes) {
        let gone: Vec<_> = self
            .instances
            .draining()
            .filter(|record| record.intent == Intent::Stop)
            .filter(|record| {
                self.observed(record).is_some_and(|observed| {
                    observed.phase == InstancePhase::Exited
                        && observed.generation >= record.generation
                })
            })
            .map(|record| record.instance.clone())
            .collect();
        for instance in gone {
            self.forget(instance, changes);
        }
    }

    /// Tells the node of a draining instance to stop it once no ingress sends requests there, and those
    /// under way have ended or had their time.
    fn stop_drained(&mut self, changes: &mut Changes, moment: Moment) {
        let waited = moment.instant.saturating_duration_since(self.table_since) >= ACK_WAIT;
        if waited {
            let newest = self.table.revision;
            self.ingresses.retain(|_, ingress| ingress.revision >= newest);
        }
        let is_out = |record: &&InstanceRecord| {
            let goes = record.draining.is_some() && record.intent != Intent::Stop;
            let table = self.excluded.get(&record.instance);
            let is_free = |table: &Published| {
                self.in_force(*table, moment) && !self.is_busy(record, *table, moment)
            };
            goes && table.is_some_and(is_free)
        };
        let drained =
            self.instances.draining().filter(is_out).map(|record| record.instance.clone());
        for instance in drained.collect::<Vec<_>>() {
            self.instances.change(&instance, |record| {
                record.intent = Intent::Stop;
                record.generation = record.generation.next();
            });
            changes.put.insert(instance);
        }
    }

    fn carry_out(&mut self, action: Action, changes: &mut Changes, moment: Moment) {
        match action {
            Action::Drain { instance, why } => {
                self.drain(&instance, &why, changes);
            }
            Action::Place {
                instance,
                project,
                app,
                release,
                is_command,
                node,
                gpus,
                replaces,
                decision,
            } => {
                let Some(allotment) = self.allotments.get(&(project, app)) else { return };
                let beside = match is_command {
                    true => allotment.command.as_ref(),
                    false => allotment.canary.as_ref().map(|canary| &canary.release),
                };
                let release = beside.filter(|beside| beside.number == release);
                let record = InstanceRecord {
                    instance: instance.clone(),
                    release: release.unwrap_or(&allotment.release).clone(),
                    is_command,
                    node,
                    gpus,
                    decision,
                    intent: Intent::Run,
                    generation: Generation(1),
                    draining: None,
                    created_at: moment.wall,
                    replaces,
                    seal: None,
                    confirmed: None,
                };
                let record = self.with_seal(record);
                self.instances.insert(record);
                changes.put.insert(instance);
            }
        }
    }

    /// What a plan of these apps depends on, or one of all.
    fn snapshot(
        &self,
        seed: u64,
        due: Option<&BTreeSet<(ProjectName, AppName)>>,
        moment: Moment,
    ) -> Snapshot {
        let allotments: Vec<_> = match due {
            None => self.allotments.values().collect(),
            Some(due) => due.iter().filter_map(|key| self.allotments.get(key)).collect(),
        };
        let records: Vec<_> = match due {
            None => self.instances.values().collect(),
            Some(due) => due.iter().flat_map(|key| self.instances.of_app(key)).collect(),
        };
        let wanted = allotments.into_iter().map(|allotment| WantedApp {
            project: allotment.project().clone(),
            app: allotment.app().clone(),
            main: goal(&allotment.release, allotment.count),
            canary: allotment.canary.as_ref().map(|canary| goal(&canary.release, canary.count)),
            command: allotment.command.as_ref().map(|release| goal(release, 1)),
            budget: allotment.budget,
            make_room: allotment.make_room,
            rollout: allotment.release.manifest.rollout,
        });
        let instances: Vec<_> = records.iter().map(|record| self.placed(record, moment)).collect();
        let mut listed: BTreeMap<&NodeName, (Capacity, GpuShares)> = BTreeMap::new();
        for instance in &instances {
            let (sum, gpus) = listed.entry(&instance.node).or_default();
            (*sum, *gpus) = (sum.plus(instance.each), gpus.plus(&instance.gpus));
        }
        let others = |node: &NodeName| {
            let Some((all, all_gpus)) = self.instances.held_on(node) else {
                return Default::default();
            };
            match listed.get(node) {
                Some((listed, listed_gpus)) => (all.minus(*listed), all_gpus.minus(listed_gpus)),
                None => (all, all_gpus.clone()),
            }
        };
        // What a node has that has not said it cannot be planned with.
        let known = self.nodes.values().filter(|reported| !reported.owes);
        let known = known.map(|reported| (reported, others(&reported.report.node)));
        let nodes = known.map(|(reported, (others, others_gpus))| NodeState {
            name: reported.report.node.clone(),
            reachable: self.reachable(Some(reported), moment),
            cordon: self.cordons.get(&reported.report.node).cloned(),
            capacity: reported.report.capacity,
            others,
            gpus: reported.report.gpus.clone(),
            others_gpus,
            images: reported.report.images.iter().copied().collect(),
            pulling: reported.report.pulling.iter().copied().collect(),
            runtimes: reported.report.runtimes.clone(),
            traits: self.traits.of_node(&reported.report.traits),
            reached: reported.report.reached.clone(),
        });
        let nodes = nodes.collect();
        Snapshot { now: moment.wall, seed, wanted: wanted.collect(), instances, nodes }
    }

    fn placed(&self, record: &InstanceRecord, moment: Moment) -> PlacedInstance {
        PlacedInstance {
            id: record.instance.clone(),
            project: record.release.manifest.project.clone(),
            app: record.release.manifest.app.clone(),
            release: self.release_of(record),
            is_command: record.is_command,
            node: record.node.clone(),
            each: record.release.manifest.resources.capacity(),
            gpus: record.gpus.clone(),
            standing: self.standing(record, moment),
            replaces: record.replaces.clone(),
            pinned: self.pinned(record),
            yields: self.yields(record),
            created_at: record.created_at,
        }
    }

    /// The priority of an instance that may be made to leave for what has a higher one.
    pub(super) fn yields(&self, record: &InstanceRecord) -> Option<Priority> {
        record.release.manifest.yields().filter(|_| self.pinned(record).is_none())
    }

    /// Why an instance is not started elsewhere.
    fn pinned(&self, record: &InstanceRecord) -> Option<Pinned> {
        if record.release.manifest.attached.is_some() {
            return Some(Pinned::Attached);
        }
        // What ends while it should run has done so for good.
        let observed = self.observed(record).filter(|_| record.intent == Intent::Run);
        let ended = observed.is_some_and(|observed| observed.phase == InstancePhase::Exited);
        (ended && !record.is_command).then_some(Pinned::Ended)
    }

    fn standing(&self, record: &InstanceRecord, moment: Moment) -> Standing {
        if record.draining.is_some() {
            Standing::Leaving
        } else if self.is_lost(&record.node, moment) {
            Standing::Lost
        } else if self.observed(record).is_some_and(|o| o.phase == InstancePhase::Healthy) {
            Standing::Ready
        } else {
            Standing::NotReady
        }
    }
}

/// Whether a plan does nothing but start what has room and takes no other's place: the next one would do nothing before
/// a node says something of that.
fn only_places(plan: &planner::Plan) -> bool {
    let is_start =
        |action: &Action| matches!(action, Action::Place { replaces: None, is_command: false, .. });
    !plan.actions.is_empty()
        && plan.actions.iter().all(is_start)
        && plan.shortfalls.is_empty()
        && plan.staying.is_empty()
}

fn goal(release: &Release, count: u32) -> Goal {
    Goal {
        release: release.number,
        image: release.image_digest,
        count,
        each: release.manifest.resources.capacity(),
        gpus: release.manifest.resources.gpu.clone(),
        runtime: release.manifest.runtime,
        needs: release.manifest.needed_abilities(),
        placement: release.manifest.placement.clone(),
        priority: release.manifest.priority,
        released_at: release.created_at,
    }
}
