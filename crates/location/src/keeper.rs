//! The one owner of a location's state.
//!
//! Everything that happens comes as an [`Event`] through one queue. The keeper takes all that are
//! waiting, reconciles once, stores what changed in one go, and only then publishes: nobody is
//! ever told what a restart would forget. A round costs what changed, not what there is; events gather while it
//! waits for the disk.

mod stored;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use longshore_api::links::{
    AllotmentSet, Assigned, ImageHolds, LocationReport, Move, NodeReport, Reach, ReportTaken,
    RouteAck, RoutingTable,
};
use longshore_link::{Endpoint, Pace, now};
use longshore_store::{Page, Store, StoreError, Transaction, TransactionResult};
use longshore_types::{
    Cordon, Digest, Generation, InstanceId, LocationName, NodeName, Release, Timestamp, Traits,
};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::LocationError;
use crate::assigned::Assignments;
use crate::life::Life;
use crate::metrics::Watched;
use crate::records::{
    ALLOTMENTS, ALLOTMENTS_GENERATION, AllotmentRecord, CORDONS, ConfirmedRecord, CordonsRecord,
    GenerationRecord, STRAYS, StrayRecord, allotment_key, confirmed_key, instance_key, stray_key,
};
use crate::state::{Adopted, Changes, Moment, Reported, Roster, State};
use stored::{StoredInstances, Write, stored_instances, transactions};

/// How many events may wait. Senders wait when it is full: reports come again anyway.
const QUEUE: usize = 256;
/// A report is made of all nodes: between two there is a rest this many times as long as the first took.
const REPORT_REST: u32 = 9;
/// How often to look without an event: nodes fall silent, drained instances wait.
const INTERVAL: Duration = Duration::from_millis(500);

/// How long to wait before a write to a full disk is tried again.
const DISK_FULL_WAIT: Duration = Duration::from_secs(1);

/// Something that happened.
pub enum Event {
    /// The global plane sent the allotments.
    Allotments(AllotmentSet),
    /// A node reported.
    Report(Box<NodeReport>, Reach, oneshot::Sender<Heard>),
    /// An ingress routes by a table.
    Ack(RouteAck),
    /// A user wants an instance to be stopped; answered with whether there is one.
    Stop(InstanceId, oneshot::Sender<bool>),
    /// Somebody wants to know what draining a node would do; answered with nothing when there is no
    /// such node.
    PreviewDrain(NodeName, oneshot::Sender<Option<Vec<Move>>>),
    /// Somebody wants to know what keeps images on a node; answered with nothing until that is known.
    Holds(NodeName, Vec<Digest>, oneshot::Sender<Option<ImageHolds>>),
}

/// What came of a report of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// What the node has taken over is stored.
    Stored(ReportTaken),
    /// It is a change of what is not known.
    Unknown,
    /// The disk has no room for what the node has taken over.
    NoRoom,
}

/// Who waits for what, until a round is over.
#[derive(Default)]
struct Answers {
    /// For whether there is such an instance.
    found: Vec<(oneshot::Sender<bool>, bool)>,
    /// For whether what a node took over is stored, as it said in this report.
    stored: Vec<(oneshot::Sender<Heard>, ReportTaken)>,
}

/// What operators wish of each node.
pub type Cordons = Arc<BTreeMap<NodeName, Cordon>>;

/// What others see of a location.
#[derive(Clone)]
pub struct Handle {
    pub events: mpsc::Sender<Event>,
    /// What each node is told.
    pub assignments: Assignments,
    /// What ingresses are told; nothing until the location has settled.
    pub routes: watch::Receiver<Arc<Option<RoutingTable>>>,
    /// What the global plane is told; nothing until the location has settled.
    pub report: watch::Receiver<Arc<Option<Reported>>>,
    /// What operators wish of the nodes.
    pub cordons: watch::Receiver<Cordons>,
    /// Told when a change of the allotments does not fit what there is.
    pub missed: Arc<Notify>,
}

impl Handle {
    /// What an instance of a node runs.
    pub fn release_of(&self, node: &NodeName, instance: &InstanceId) -> Option<Arc<Release>> {
        let assigned = self.assignments.of(node)?;
        Some(Arc::clone(&assigned.assignments.get(instance)?.release))
    }

    /// The releases with secrets of which there are instances.
    pub fn releases_with_secrets(&self) -> Vec<Arc<Release>> {
        let all = self.assignments.all();
        let all = all.iter().flat_map(|assigned| assigned.assignments.values());
        let with_secrets = all.filter(|assignment| !assignment.release.secrets.is_empty());
        with_secrets.map(|assignment| Arc::clone(&assignment.release)).collect()
    }
}

/// The owner of the state.
pub struct Keeper {
    state: State,
    store: Arc<dyn Store>,
    gate: Option<String>,
    events: mpsc::Receiver<Event>,
    assignments: Assignments,
    /// Who was told what last.
    roster: Option<Roster>,
    routes: watch::Sender<Arc<Option<RoutingTable>>>,
    report: watch::Sender<Arc<Option<Reported>>>,
    cordons: watch::Sender<Cordons>,
    missed: Arc<Notify>,
    /// What was taken over and is stored with what follows from it, before anyone is told of either.
    taken: Vec<Write>,
    /// Keys that nothing needs any more. They go with what is written anyway, for a start needs no room on the disk.
    orphans: Vec<String>,
    /// Spaces out the reports, each of which tells of all nodes.
    reporting: Pace,
    /// A round came during the rest, and what it came to is not in the report yet.
    owes_report: bool,
    /// The generation of the assignment sets: the store's revision, which never goes back.
    generation: Generation,
    /// Ends a wait for room on the disk.
    shutdown: CancellationToken,
    watched: Watched,
}

fn moment() -> Moment {
    Moment { instant: Instant::now(), wall: now() }
}

impl Keeper {
    /// The keeper of what is stored, and the handle by which others reach it.
    pub async fn restore(
        (name, traits, life): (LocationName, Traits, Life),
        gate: Option<Endpoint>,
        store: Arc<dyn Store>,
        shutdown: CancellationToken,
        watched: Watched,
    ) -> Result<(Self, Handle), LocationError> {
        let acknowledged = match store.get(ALLOTMENTS_GENERATION).await? {
            Some(stored) => stored.decode::<GenerationRecord>()?,
            None => GenerationRecord::default(),
        };
        let mut allotments = Vec::new();
        for stored in store.list(ALLOTMENTS, Page::default()).await?.items {
            allotments.push(stored.decode::<AllotmentRecord>()?.0);
        }
        let CordonsRecord(cordons) = match store.get(CORDONS).await? {
            Some(stored) => stored.decode()?,
            None => CordonsRecord::default(),
        };
        let StoredInstances { instances, orphans, revision } = stored_instances(&*store).await?;
        let moment = moment();
        let GenerationRecord { epoch, generation } = acknowledged;
        let stored = AllotmentSet::default();
        let set = AllotmentSet { epoch, generation, allotments, cordons, ..stored };
        let mut state = State::new(name, set, instances, moment);
        state.traits = traits;
        state.live(life);
        for stored in store.list(STRAYS, Page::default()).await?.items {
            state.strays.insert(stored.decode::<StrayRecord>()?.0);
        }
        let (events_sender, events) = mpsc::channel(QUEUE);
        let gate = gate.map(|gate| gate.to_string());
        let assignments = Assignments::default();
        let (routes, routes_seen) = watch::channel(Arc::default());
        let (report, report_seen) = watch::channel(Arc::default());
        let (cordons, cordons_seen) = watch::channel(Arc::default());
        let generation = Generation(revision.0);
        let missed = Arc::new(Notify::new());
        let handle = Handle {
            missed: Arc::clone(&missed),
            events: events_sender,
            assignments: assignments.clone(),
            routes: routes_seen,
            report: report_seen,
            cordons: cordons_seen,
        };
        let mut keeper = Self {
            state,
            store,
            gate,
            events,
            assignments,
            roster: None,
            routes,
            report,
            cordons,
            missed,
            taken: Vec::new(),
            orphans,
            reporting: Pace::new(REPORT_REST),
            owes_report: false,
            generation,
            shutdown,
            watched,
        };
        keeper.publish(moment);
        Ok((keeper, handle))
    }

    /// Runs until shutdown or until the store fails.
    pub async fn run(mut self) -> Result<(), LocationError> {
        let shutdown = self.shutdown.clone();
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                _ = tokio::time::timeout(self.wait(), self.events.recv_many(&mut batch, QUEUE)) => {}
            }
            let began = Instant::now();
            let mut changes = Changes::default();
            let mut answers = Answers::default();
            for event in joined(batch.drain(..)) {
                self.take(event, &mut changes, &mut answers).await?;
            }
            let mut confirmed = std::mem::take(&mut changes.confirmed);
            if self.state.life.awaited().is_some() && self.state.settled(moment()) {
                self.end_wait(&mut changes).await?;
            }
            // A plan can make the next one possible: stop when nothing changes any more. One that only starts instances
            // does not, and theirs are looked at again with whatever happens next.
            let mut only_places = false;
            while !only_places && self.state.settled(moment()) {
                let moment = moment();
                let planned = self.state.reconcile(self.seed(moment), moment);
                if let Some(decided) = self.state.decided.take() {
                    self.watched.log.note(decided);
                }
                only_places = planned.only_places && changes.is_empty();
                changes.put.extend(planned.put);
                changes.delete.extend(planned.delete);
                if changes.is_empty() {
                    break;
                }
                let written = changes.put.clone();
                // What has to be written anyway takes them along.
                changes.confirmed.append(&mut confirmed);
                self.save(std::mem::take(&mut changes)).await?;
                self.publish(moment);
                let written = written.iter().filter_map(|id| self.state.instances.get(id));
                let new = written.filter(|record| record.created_at == moment.wall);
                self.watched.note_scheduled(new);
            }
            self.save(changes).await?;
            let is_kept = self.save_confirmed(confirmed).await?;
            if !only_places {
                self.publish(moment());
            }
            // Whoever asked may have gone away; what was asked is done all the same.
            for (answer, found) in answers.found {
                let _ = answer.send(found);
            }
            for (answer, taken) in answers.stored {
                let _ = answer.send(if is_kept { Heard::Stored(taken) } else { Heard::NoRoom });
            }
            self.watched.rounds.observe(began.elapsed().as_secs_f64());
        }
    }

    /// How long to wait for an event: a report may be due before one comes.
    fn wait(&self) -> Duration {
        match self.owes_report {
            true => self.reporting.left().min(INTERVAL),
            false => INTERVAL,
        }
    }

    /// Where the ids of new instances begin.
    fn seed(&self, moment: Moment) -> u64 {
        seed(&self.state.name, self.generation, moment.wall)
    }

    async fn take(
        &mut self,
        event: Event,
        changes: &mut Changes,
        answers: &mut Answers,
    ) -> Result<(), LocationError> {
        match event {
            Event::Allotments(set) if set.since.is_some() => self.take_change(set).await?,
            Event::Allotments(set) if !self.state.accepts(&set) => {
                let (epoch, generation) = (self.state.epoch, self.state.acknowledged);
                tracing::warn!(
                    %epoch, %generation, their_epoch = %set.epoch, theirs = %set.generation,
                    "refusing an older set of allotments"
                );
            }
            Event::Allotments(set) => self.take_whole(set).await?,
            Event::Report(report, _, answer) if !self.state.knows(&report) => {
                // Whoever said it may have gone away.
                let _ = answer.send(Heard::Unknown);
            }
            Event::Report(report, reach, answer) => {
                let (moment, taken) = (moment(), ReportTaken { number: Some(report.number) });
                self.state.take_handed_over(&report, &reach, moment, changes);
                self.state.take_report(*report, reach, changes, moment);
                answers.stored.push((answer, taken));
            }
            Event::Ack(ack) => self.state.take_ack(ack),
            Event::Stop(instance, answer) => {
                let found = self.state.drain(&instance, "stopped by a user", changes);
                answers.found.push((answer, found));
            }
            Event::PreviewDrain(node, answer) => {
                // Whoever asked may have gone away.
                let _ = answer.send(self.state.preview_drain(&node, moment()));
            }
            Event::Holds(node, images, answer) => {
                let _ = answer.send(self.state.holds(&node, &images, moment()));
            }
        }
        Ok(())
    }

    /// Begins to decide, after a loss of the store, from what nodes have handed over.
    async fn end_wait(&mut self, changes: &mut Changes) -> Result<(), LocationError> {
        self.save(std::mem::take(changes)).await?;
        let (key, record) = self.state.life.end_wait()?;
        self.write(vec![(key, Some(record))]).await?;
        let late = self.state.nodes.values().filter(|node| node.owes);
        let late: Vec<_> = late.map(|node| node.report.node.to_string()).collect();
        let (epoch, instances) = (self.state.life.epoch(), self.state.instances.len());
        tracing::info!(%epoch, instances, ?late, "recovered from what nodes had");
        Ok(())
    }

    async fn take_whole(&mut self, set: AllotmentSet) -> Result<(), LocationError> {
        let before = std::mem::take(&mut self.taken);
        self.write(before).await?;
        let adopted = self.state.adopted(&set);
        if set.epoch > self.state.epoch {
            let (epoch, strays) = (set.epoch, &adopted.strays);
            tracing::warn!(%epoch, ?strays, "the global store was restored or moved");
        }
        self.save_allotments(&set, &adopted).await?;
        self.state.take(adopted);
        Ok(())
    }

    /// Takes over what differs from the set before; when that is not the one that there is, the whole is asked for.
    async fn take_change(&mut self, change: AllotmentSet) -> Result<(), LocationError> {
        if !self.state.continues(&change) {
            let (generation, since) = (self.state.acknowledged, change.since);
            tracing::warn!(%generation, ?since, "asking for all allotments: a change is not one of these");
            self.missed.notify_one();
            return Ok(());
        }
        if !self.state.strays.is_empty() {
            let whole = self.state.whole(change);
            return self.take_whole(whole).await;
        }
        let mut writes = Vec::new();
        for allotment in &change.allotments {
            let record = longshore_store::record::encode(&AllotmentRecord(allotment.clone()))?;
            writes.push((allotment_key(allotment), Some(record)));
        }
        for app in &change.gone {
            let gone = self.state.allotments.get(&(app.project.clone(), app.app.clone()));
            writes.extend(gone.map(|allotment| (allotment_key(allotment), None)));
        }
        if change.cordons != self.state.cordons {
            let record = CordonsRecord(change.cordons.clone());
            writes.push((CORDONS.to_owned(), Some(longshore_store::record::encode(&record)?)));
        }
        let generation = GenerationRecord { epoch: change.epoch, generation: change.generation };
        let generation = longshore_store::record::encode(&generation)?;
        // A generation is never stored without what it is that of.
        match writes.is_empty() && self.taken.is_empty() {
            true => self.save_generation(generation).await?,
            false => {
                writes.push((ALLOTMENTS_GENERATION.to_owned(), Some(generation)));
                self.taken.extend(writes);
            }
        }
        self.state.take_change(change);
        Ok(())
    }

    /// Stores a set of allotments; its generation last, so that a set that was stored only in part
    /// is asked for again.
    async fn save_allotments(
        &mut self,
        set: &AllotmentSet,
        adopted: &Adopted,
    ) -> Result<(), LocationError> {
        let before = &self.state;
        let mut writes = Vec::new();
        for stray in adopted.strays.difference(&before.strays) {
            let record = longshore_store::record::encode(&StrayRecord(stray.clone()))?;
            writes.push((stray_key(stray), Some(record)));
        }
        for (key, allotment) in &adopted.allotments {
            if before.allotments.get(key) != Some(allotment) {
                let record = AllotmentRecord(allotment.clone());
                let record = longshore_store::record::encode(&record)?;
                writes.push((allotment_key(allotment), Some(record)));
            }
        }
        let gone =
            before.allotments.iter().filter(|(key, _)| !adopted.allotments.contains_key(key));
        writes.extend(gone.map(|(_, allotment)| (allotment_key(allotment), None)));
        let strays_gone = before.strays.difference(&adopted.strays);
        writes.extend(strays_gone.map(|stray| (stray_key(stray), None)));
        if set.cordons != before.cordons {
            let record = CordonsRecord(set.cordons.clone());
            writes.push((CORDONS.to_owned(), Some(longshore_store::record::encode(&record)?)));
        }
        // A location that starts again is told what it knows, which must not need room on its disk.
        let is_known = (set.epoch, set.generation) == (before.epoch, before.acknowledged);
        if writes.is_empty() && is_known {
            return Ok(());
        }
        let generation = GenerationRecord { epoch: set.epoch, generation: set.generation };
        let generation = longshore_store::record::encode(&generation)?;
        if writes.is_empty() {
            return self.save_generation(generation).await;
        }
        writes.push((ALLOTMENTS_GENERATION.to_owned(), Some(generation)));
        self.write(writes).await
    }

    /// Stores the generation of a set that says what is stored already. On a full disk it is known in
    /// memory alone: whoever forgets it is told the same again.
    async fn save_generation(&mut self, generation: bytes::Bytes) -> Result<(), LocationError> {
        let change = Transaction::new().put(ALLOTMENTS_GENERATION, generation);
        match self.store.commit(change).await {
            Ok(result) => self.generation = Generation(result.revision.0),
            Err(error @ StoreError::DiskFull { .. }) => {
                tracing::warn!("a generation is not kept: {error}");
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    async fn save(&mut self, changes: Changes) -> Result<(), LocationError> {
        let mut writes = std::mem::take(&mut self.taken);
        for instance in changes.put.difference(&changes.delete) {
            if let Some(record) = self.state.instances.get(instance) {
                let value = longshore_store::record::encode(record)?;
                writes.push((instance_key(instance), Some(value)));
            }
        }
        for instance in &changes.delete {
            writes.push((instance_key(instance), None));
            writes.push((confirmed_key(instance), None));
        }
        // One that is written says it itself.
        writes.extend(self.confirmations(changes.confirmed.difference(&changes.put))?);
        if !writes.is_empty() {
            writes.extend(self.orphans.drain(..).map(|key| (key, None)));
        }
        self.write(writes).await
    }

    /// What has to be written of instances that nodes took over.
    fn confirmations<'a>(
        &self,
        instances: impl Iterator<Item = &'a InstanceId>,
    ) -> Result<Vec<Write>, LocationError> {
        let mut writes = Vec::new();
        for record in instances.filter_map(|id| self.state.instances.get(id)) {
            if let Some(generation) = record.confirmed {
                let value = longshore_store::record::encode(&ConfirmedRecord(generation))?;
                writes.push((confirmed_key(&record.instance), Some(value)));
            }
        }
        Ok(writes)
    }

    /// Stores that nodes took instances over; false when the disk has no room for that. Nobody waits for room, since
    /// they run it all the same: it is noted when they say so again.
    async fn save_confirmed(
        &mut self,
        confirmed: BTreeSet<InstanceId>,
    ) -> Result<bool, LocationError> {
        let writes = self.confirmations(confirmed.iter())?;
        match self.store.commit_in_order(transactions(writes)).await {
            Ok(results) => self.note_revision(&results),
            Err(StoreError::DiskFull { .. }) => {
                confirmed.iter().for_each(|id| self.state.instances.unconfirm(id));
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        }
        Ok(true)
    }

    /// Writes; what comes later in the list is never stored without what comes before.
    async fn write(&mut self, writes: Vec<Write>) -> Result<(), LocationError> {
        let transactions = transactions(writes);
        let results = loop {
            match self.store.commit_in_order(transactions.clone()).await {
                Err(error @ StoreError::DiskFull { .. }) => {
                    // Nobody may be told what a restart would forget, so everything new waits. What
                    // was told goes on: nodes run it, ingresses route to it.
                    tracing::warn!("what was decided waits: {error}");
                    let wait = tokio::time::sleep(DISK_FULL_WAIT);
                    if self.shutdown.run_until_cancelled(wait).await.is_none() {
                        return Err(error.into());
                    }
                }
                other => break other?,
            }
        };
        self.note_revision(&results);
        Ok(())
    }

    fn note_revision(&mut self, results: &[TransactionResult]) {
        if let Some(newest) = results.last() {
            self.generation = Generation(newest.revision.0);
        }
    }

    /// Tells everyone what they have not been told yet.
    fn publish(&mut self, moment: Moment) {
        self.publish_assignments();
        if !self.state.settled(moment) {
            self.owes_report = false;
            return;
        }
        let changed = self.state.renew_table(moment);
        if changed || self.routes.borrow().is_none() {
            self.routes.send_replace(Arc::new(Some(self.state.table.clone())));
        }
        // What is not told now is told when the rest is over.
        self.owes_report = self.reporting.left() > Duration::ZERO;
        if self.owes_report {
            return;
        }
        let began = Instant::now();
        let report = self.state.report(self.gate.as_deref(), moment);
        self.report.send_if_modified(|published| {
            let news = published.as_ref().as_ref().is_none_or(|before| !same_news(before, &report));
            *published = Arc::new(Some(report));
            news
        });
        self.reporting.worked_since(began);
    }

    fn publish_assignments(&mut self) {
        self.cordons.send_if_modified(|published| {
            let changed = **published != self.state.cordons;
            if changed {
                *published = Arc::new(self.state.cordons.clone());
            }
            changed
        });
        let (generation, roster) = (self.generation, self.state.roster());
        let changed = self.state.instances.take_changed_nodes();
        let state = &self.state;
        let next = |node: &NodeName, before: Option<&Assigned>| {
            let hand_over = roster.owes(node)?;
            let changed = changed.get(node);
            let is_same = |one: &Assigned| one.hand_over == hand_over && one.reach == roster.reach;
            if changed.is_none() && before.is_some_and(is_same) {
                return None;
            }
            let (generation, assignments) = match before.filter(|before| !before.hand_over) {
                _ if hand_over => (Generation(0), Default::default()),
                None => (generation, state.assignments(node)),
                Some(before) => {
                    let changed = changed.into_iter().flatten();
                    (generation, state.assignments_after(&before.assignments, node, changed))
                }
            };
            let (location_epoch, reach) = (roster.location_epoch, roster.reach.clone());
            Some(Assigned { location_epoch, generation, assignments, reach, hand_over })
        };
        // As long as all the rest is as it was, nobody is told anything else but those whose instances changed.
        if self.roster.as_ref() == Some(&roster) {
            self.assignments.renew(changed.keys(), next);
        } else {
            self.assignments.renew(roster.nodes().map(|(node, _)| node), next);
            self.assignments.forget_others(|node| roster.owes(node).is_some());
            self.roster = Some(roster);
        }
    }
}

/// The events with changes of the allotments made one that follow each other.
fn joined(events: impl Iterator<Item = Event>) -> Vec<Event> {
    let mut all: Vec<Event> = Vec::new();
    let mut last: Option<AllotmentSet> = None;
    for event in events {
        match (event, last.take()) {
            (Event::Allotments(set), None) => last = Some(set),
            (Event::Allotments(set), Some(before)) => match before.changed(set) {
                Ok(both) => last = Some(both),
                Err(both) => {
                    let (before, set) = *both;
                    all.push(Event::Allotments(before));
                    last = Some(set);
                }
            },
            (other, before) => {
                last = before;
                all.push(other);
            }
        }
    }
    all.extend(last.map(Event::Allotments));
    all
}

/// Two locations that are told of an app in the same millisecond, in stores that have seen as many changes,
/// must not give their instances the same ids: users name an instance by its id alone.
fn seed(location: &LocationName, generation: Generation, now: Timestamp) -> u64 {
    // FNV-1a, which is the same everywhere.
    let place = location.as_str().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    place ^ now.0 ^ (generation.0 << 20)
}

/// True when two reports differ in nothing but the times at which they were made.
fn same_news(before: &Reported, after: &Reported) -> bool {
    if !before.instances.is_same(&after.instances) {
        return false;
    }
    let (mut before, after): (LocationReport, _) = (before.report.clone(), &after.report);
    before.at = after.at;
    for (node, newer) in before.nodes.iter_mut().zip(&after.nodes) {
        node.reported_at = newer.reported_at;
        for (one, newer) in node.reached.iter_mut().zip(&newer.reached) {
            one.at = newer.at;
        }
    }
    before == *after
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_locations_begin_their_ids_elsewhere_at_the_same_moment() {
        let seed = |location: &str, generation, now| {
            seed(&location.parse().unwrap(), Generation(generation), Timestamp(now))
        };
        let now = 1_795_765_603_726;
        assert_ne!(seed("here", 7, now), seed("there", 7, now));
        assert_ne!(seed("here", 7, now), seed("here", 8, now));
        assert_ne!(seed("here", 7, now), seed("here", 7, now + 1));
        assert_eq!(seed("here", 7, now), seed("here", 7, now));
    }
}
