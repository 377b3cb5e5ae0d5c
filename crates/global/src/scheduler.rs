//! Carries out the plans of the global scheduler: from what is wanted and reported to allotments.
//!
//! A reconciler: it takes no orders, looks at the present state whenever something changed, and
//! writes what differs, conditional on the app not having changed meanwhile. It looks at the apps that the change
//! concerns ([`due`]), and at all of them in turn, a part at a time; what is to be written of several is written at
//! once, so that they wait for the disk together.

mod blocked;
mod due;
mod forgetting;
mod goals;
mod log;
mod moves;
mod summaries;
mod wanted;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use longshore_link::now;
use longshore_planning::global::{
    self as planner, LocationState, Share, Shared, Waiting, WantedApp, plan_shares, spread_canaries,
};
use longshore_store::{
    Compare, MAX_OPERATIONS, MAX_REQUEST_BYTES, Relation, Store, StoreError, Transaction,
};
use longshore_types::{LocationName, Manifest, Placement, Release, ReleaseNumber};
use prometheus_client::metrics::histogram::Histogram;
use tokio::time::Instant;

use crate::api::idempotency;
use crate::attached::Ended;
use crate::catalog::{AppKey, Catalog, Stored};
use crate::events::{self, Who, with_event};
use crate::records::{AllotmentRecord, AppRecord, CanaryRecord, Key, RolloutStage, encode};
use crate::reports::{ByLocation, News};
use crate::rollouts::Rollouts;
use crate::strays::Strays;
use crate::waves::Releases;
use crate::{GlobalError, Plane};
use blocked::Queue;
use due::{Due, Seen};
use forgetting::{forgetting, forgetting_secrets, removal};
pub use goals::{latency, latency_with};
use log::Log;
use moves::Moves;
pub use summaries::kinds;
use summaries::{Summaries, locations};
use wanted::{in_force, wanted_app, wanted_now};

/// How often to look without a change: reachability fades without one.
const INTERVAL: Duration = Duration::from_millis(500);
/// How often what is old is looked after.
const SWEEP_INTERVAL: Duration = Duration::from_secs(3600);
/// However near a deadline is.
const LEAST_WAIT: Duration = Duration::from_millis(100);
/// How many changes wait for the disk together.
const COMMITS_AT_ONCE: usize = 256;
/// How many records are written or deleted in one transaction, beside that of their app.
const MOST_AT_ONCE: usize = MAX_OPERATIONS - 1;

/// What a scheduler is told at its start.
pub struct Settings {
    /// Where it notes its decisions.
    pub data_dir: PathBuf,
    /// How long it has to be better elsewhere before an instance moves there.
    pub rebalance_after: Duration,
    /// How many releases of an app are kept beside those that it needs.
    pub keep_releases: NonZeroU32,
}

/// Runs until shutdown.
pub async fn run(
    plane: Arc<Plane>,
    rounds: Histogram,
    settings: Settings,
) -> Result<(), GlobalError> {
    let mut catalog = plane.catalog.subscribe();
    let mut reports = plane.reports.subscribe();
    let shutdown = plane.service.shutdown();
    let mut judged = Judged::new(&settings);
    let mut swept: Option<Instant> = None;
    loop {
        if swept.is_none_or(|at| at.elapsed() >= SWEEP_INTERVAL) {
            swept = Some(Instant::now());
            plane.limits.forget_idle();
            // On a full disk the next sweep has as much more to do.
            if let Err(error) = sweep(plane.store.as_ref()).await {
                tracing::warn!(error = &error as &dyn std::error::Error, "what is old is kept");
            }
        }
        catalog.mark_unchanged();
        reports.mark_unchanged();
        let began = Instant::now();
        let wrote = reconcile(&plane, &mut judged).await?;
        rounds.observe(began.elapsed().as_secs_f64());
        // At the end the catalog no longer follows what is written, and the same would be written for ever.
        if wrote && !shutdown.is_cancelled() {
            continue;
        }
        let rollouts = judged.rollouts.next_deadline(&plane.catalog());
        let moves = judged.moves.next_deadline(Instant::now());
        let deadline = rollouts.into_iter().chain(moves).min().unwrap_or(INTERVAL);
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            Ok(()) = catalog.changed() => {}
            Ok(()) = reports.changed() => {}
            () = tokio::time::sleep(deadline.clamp(LEAST_WAIT, INTERVAL)) => judged.judged_at = None,
        }
    }
}

/// Forgets what is kept for a while only.
async fn sweep(store: &dyn Store) -> Result<(), StoreError> {
    events::forget_old(store).await?;
    idempotency::forget_old(store).await
}

/// What is remembered between two looks.
struct Judged {
    rollouts: Rollouts,
    ended: Ended,
    strays: Strays,
    queue: Queue,
    moves: Moves,
    summaries: Summaries,
    seen: Seen,
    /// When what is judged by time was looked at last; nothing when it has to be now.
    judged_at: Option<Instant>,
    log: Log,
    keep_releases: NonZeroU32,
}

impl Judged {
    fn new(settings: &Settings) -> Self {
        let Settings { data_dir, rebalance_after, keep_releases } = settings;
        let (rollouts, ended, strays, queue) = Default::default();
        let (summaries, seen) = Default::default();
        let (moves, log) = (Moves::new(*rebalance_after), Log::open(data_dir));
        let keep_releases = *keep_releases;
        Self {
            rollouts,
            ended,
            strays,
            queue,
            moves,
            summaries,
            seen,
            judged_at: None,
            log,
            keep_releases,
        }
    }

    /// The apps to look at, in the order in which they are planned, and what the locations have been given by now.
    fn due(&mut self, catalog: &Catalog, (reports, news): (&ByLocation, News)) -> Vec<AppKey> {
        // What a report says of a rollout has its app looked at; this is for what comes with time.
        let judges = self.judged_at.is_none_or(|at| at.elapsed() >= INTERVAL);
        if judges {
            self.judged_at = Some(Instant::now());
        }
        let waiting = self.queue.waiting().chain(self.rollouts.under_way().filter(|_| judges));
        let waiting = waiting.chain(self.moves.due(Instant::now())).cloned().collect();
        match self.seen.due(catalog, (news, all_heard(catalog, reports)), waiting) {
            Due::All => {
                self.summaries = Summaries::of(catalog, reports);
                in_order(catalog, catalog.apps.keys())
            }
            Due::Some(keys) => {
                match self.seen.is_whole() {
                    // Should something have been overlooked.
                    true => self.summaries = Summaries::of(catalog, reports),
                    false => keys.iter().for_each(|key| self.summaries.look(catalog, reports, key)),
                }
                in_order(catalog, keys.iter().filter(|key| catalog.apps.contains_key(key)))
            }
        }
    }
}

/// Whether every location has reported in time, so that what an app is owed does not change as time passes.
fn all_heard(catalog: &Catalog, reports: &ByLocation) -> bool {
    reports.values().all(|received| !received.late())
        && catalog.locations.keys().all(|location| reports.contains_key(location))
}

/// Brings the allotments of apps in line, and judges their rollouts; true when something was written.
async fn reconcile(plane: &Plane, judged: &mut Judged) -> Result<bool, GlobalError> {
    // What is new in the reports is in them, and what was written before that is in the catalog.
    let (reports, news) = plane.reports.take_news();
    let catalog = plane.catalog();
    let keys = judged.due(&catalog, (&reports, news));
    judged.rollouts.forget_gone(&catalog);
    judged.ended.forget_gone(&catalog);
    judged.moves.forget_gone(|key| catalog.apps.contains_key(key));
    let mut changes = if judged.seen.is_whole() { forgetting_secrets(&catalog) } else { vec![] };
    changes.extend(judged.strays.changes(&catalog, &reports, &plane.public));
    // What one app is given in this round is taken from what the others see.
    let mut locations = judged.summaries.states(&catalog, &reports);
    judged.queue.begin_round(&locations, |key| catalog.apps.contains_key(key));
    for key in &keys {
        let Some(app) = catalog.apps.get(key) else { continue };
        let seen = (&*catalog, &*reports);
        let given = (&mut *locations, changes.is_empty());
        let change = change(seen, (key, app), given, judged);
        let is_under_way = judged.rollouts.is_under_way(key);
        let awaits = awaits((&catalog, &reports), key, &app.record, is_under_way);
        judged.seen.look_again(key, awaits);
        if let Some(change) = change {
            let unchanged = Compare::mod_revision(app_key_text(key), Relation::Equal, app.revision);
            changes.push(change.when(unchanged));
        }
    }
    let written = commit(plane, changes).await?;
    if written.refused {
        // What was not written is not seen either.
        judged.seen.forget();
    }
    Ok(written.any && !written.refused)
}

/// Apps, first what matters most, of that what was deployed first.
fn in_order<'a>(catalog: &Catalog, keys: impl Iterator<Item = &'a AppKey>) -> Vec<AppKey> {
    let mut keys: Vec<_> = keys.cloned().collect();
    keys.sort_by_cached_key(|key| {
        let release = catalog.current_release(key);
        release.map(|release| (Reverse(release.manifest.priority), release.created_at))
    });
    keys
}

/// Whether what is to become of an app depends on what locations have carried out: of a rollout that is under way, on
/// which of them have heard of it.
fn awaits(
    (catalog, reports): (&Catalog, &ByLocation),
    key: &AppKey,
    record: &AppRecord,
    is_under_way: bool,
) -> bool {
    let is_lowered =
        |stored: &Stored<AllotmentRecord>| stored.record.budget_in_force > stored.record.budget;
    let has_heard = |location: &LocationName, stored: &Stored<AllotmentRecord>| {
        let received = reports.get(location);
        received.is_some_and(|received| received.report.acknowledged.0 >= stored.revision.0)
    };
    record.removing
        || catalog.held(key).any(|(location, stored)| {
            is_lowered(stored) || is_under_way && !has_heard(location, stored)
        })
}

/// The next change of an app, if one is needed. `locations` are as they will be with what others were given in this
/// round; `is_first` says that none was.
fn change(
    (catalog, reports): (&Catalog, &ByLocation),
    (key, app): (&AppKey, &Stored<AppRecord>),
    (locations, is_first): (&mut [LocationState], bool),
    judged: &mut Judged,
) -> Option<Transaction> {
    let Judged { rollouts, ended, queue, moves, log, keep_releases, .. } = judged;
    if app.record.removing {
        return removal(catalog, reports, key);
    }
    let verdict = || {
        let record = rollouts.next_record(key, catalog, reports)?;
        tracing::info!(app = %key.1, ?record, "judged a rollout");
        let (what, subject) = told(key, &app.record, &record);
        let change = Transaction::new().put(app_key_text(key), encode(&record));
        Some(with_event(change, &Who::PLATFORM, Some(&key.0), what, subject))
    };
    let over = || {
        let record = ended.next_record(key, catalog, reports, Instant::now())?;
        let change = Transaction::new().put(app_key_text(key), encode(&record));
        let subject = format!("{}: it has ended, and so has its client", key.1);
        Some(with_event(change, &Who::PLATFORM, Some(&key.0), "rm", subject))
    };
    let kept = Kept { queue: Some(queue).filter(|_| is_first), moves, log };
    let change = allotments((catalog, reports), key, locations, kept);
    let change = change.or_else(verdict);
    let seen = (catalog, reports);
    change.or_else(over).or_else(|| forgetting(seen, key, &app.record, *keep_releases))
}

/// What became of changes.
struct Written {
    /// Some were tried.
    any: bool,
    /// The disk had no room for some.
    refused: bool,
}

/// Commits all at the same time, and waits until the catalog shows them.
async fn commit(plane: &Plane, changes: Vec<Transaction>) -> Result<Written, GlobalError> {
    let mut written = Written { any: !changes.is_empty(), refused: false };
    let led = changes.into_iter().map(|change| {
        plane.store.commit(plane.lead.iter().cloned().fold(change, Transaction::when))
    });
    let mut done = futures_util::stream::iter(led).buffer_unordered(COMMITS_AT_ONCE);
    let mut newest = None;
    while let Some(outcome) = done.next().await {
        match outcome {
            Ok(result) => {
                if !result.succeeded {
                    still_leads(plane).await?;
                }
                newest = newest.max(Some(result.revision));
            }
            Err(error @ StoreError::DiskFull { .. }) => {
                tracing::warn!("what was planned waits: {error}");
                written.refused = true;
            }
            Err(error) => return Err(GlobalError::Store(error)),
        }
    }
    if let Some(revision) = newest {
        plane.catalog.reached(revision).await;
    }
    Ok(written)
}

/// Fails when another control plane leads by now.
async fn still_leads(plane: &Plane) -> Result<(), GlobalError> {
    let Some(lead) = &plane.lead else { return Ok(()) };
    let look = Transaction::new().when(lead.clone());
    let held = plane.store.commit(look).await.map_err(GlobalError::Store)?;
    if held.succeeded { Ok(()) } else { Err(GlobalError::LeadLost) }
}

/// What became of a rollout, as an event tells it.
fn told(key: &AppKey, before: &AppRecord, after: &AppRecord) -> (&'static str, String) {
    let (app, release) = (&key.1, before.release);
    let why = after.why.as_deref().unwrap_or("it was not complete in time");
    match () {
        () if after.release != release => ("rollback", format!("{app} {}: {why}", after.release)),
        () if after.failed == Some(release) && before.failed != after.failed => {
            ("fail", format!("{app} {release}: {why}"))
        }
        () if before.stage == RolloutStage::Command => {
            ("deploy", format!("{app} {release}: its release command succeeded"))
        }
        () if after.good == Some(release) => ("complete", format!("{app} {release}")),
        () => ("promote", format!("{app} {release}")),
    }
}

fn release_key_text(key: &AppKey, number: ReleaseNumber) -> String {
    Key::Release(key.0.clone(), key.1.clone(), number).to_string()
}

fn app_key_text(key: &AppKey) -> String {
    Key::App(key.0.clone(), key.1.clone()).to_string()
}

fn allotment_key_text(location: &LocationName, key: &AppKey) -> String {
    Key::Allotment(location.clone(), key.0.clone(), key.1.clone()).to_string()
}

/// The allotments of an app by location.
pub type Held<'a> = BTreeMap<&'a LocationName, &'a Stored<AllotmentRecord>>;

/// What the locations were given of an app.
pub fn held<'a>(catalog: &'a Catalog, key: &AppKey) -> Held<'a> {
    catalog.held(key).collect()
}

/// What a deploy would give each location, and what would find no place, when so many instances by this
/// manifest should run.
pub fn shares(
    catalog: &Catalog,
    reports: &ByLocation,
    of_app: (&AppKey, &Held<'_>),
    wanted: (u32, &Manifest),
) -> Shared {
    let current = catalog.current_release(of_app.0);
    let is_current = current.is_some_and(|current| current.manifest == *wanted.1);
    let mut wanted = wanted_app((catalog, reports), of_app, wanted);
    if !is_current {
        // Locations may have what another release needs.
        wanted.refusals.clear();
        wanted.may_make_room.clear();
    }
    plan_shares(now(), &wanted, &locations(catalog, reports))
}

/// What keeps an app from being where and as much as it should be.
#[derive(Debug, Default)]
pub struct Obstacles {
    /// What finds no place at any location now, and why.
    pub waiting: Option<Waiting>,
    /// Why something is still where it may not be, if it is.
    pub staying: Option<String>,
}

/// What keeps an app from being where and as much as it should be.
pub fn obstacles(catalog: &Catalog, reports: &ByLocation, key: &AppKey) -> Obstacles {
    let held = held(catalog, key);
    let Some(record) = catalog.apps.get(key).map(|stored| &stored.record) else {
        return Obstacles::default();
    };
    let placed: u32 = held.values().map(|stored| stored.record.count).sum();
    let may_wait = !record.removing && placed < record.count;
    let Some(wanted) = wanted_now((catalog, reports), (key, &held), record)
        .filter(|wanted| may_wait || !wanted.placement.is_none())
    else {
        return Obstacles::default();
    };
    let locations = locations(catalog, reports);
    let staying = || {
        let (_, why) = planner::staying(&wanted, &wanted.shares, &locations)?;
        Some(format!("some of it is still where it may not be, and {why}"))
    };
    Obstacles {
        waiting: may_wait.then(|| plan_shares(now(), &wanted, &locations).waiting).flatten(),
        staying: (!wanted.placement.is_none()).then(staying).flatten(),
    }
}

/// The apps of which a location has something, as the planner sees them.
fn apps_at(catalog: &Catalog, reports: &ByLocation, location: &LocationName) -> Vec<WantedApp> {
    let wanted = catalog.allotted(location).filter_map(|(project, app, _)| {
        let key = (project.clone(), app.clone());
        let record = &catalog.apps.get(&key)?.record;
        let release = catalog.current_release(&key)?;
        let wanted = (record.count, &release.manifest);
        (!record.removing)
            .then(|| wanted_app((catalog, reports), (&key, &held(catalog, &key)), wanted))
    });
    wanted.collect()
}

/// What draining a location would do.
pub fn preview_drain(
    catalog: &Catalog,
    reports: &ByLocation,
    location: &LocationName,
) -> Vec<planner::AppMove> {
    let apps = apps_at(catalog, reports, location);
    planner::preview_drain(now(), location, &apps, &locations(catalog, reports))
}

/// The apps that have not left a location that is drained: how many instances should still run there,
/// why, and whether that comes to its end by itself.
pub fn staying_at(
    catalog: &Catalog,
    reports: &ByLocation,
    location: &LocationName,
) -> Vec<(AppKey, u32, (bool, String))> {
    if !catalog.cordon(location).is_some_and(|cordon| cordon.drains) {
        return Vec::new();
    }
    let locations = locations(catalog, reports);
    let staying = apps_at(catalog, reports, location).into_iter().filter_map(|app| {
        let share = app.shares.iter().find(|share| share.location == *location)?;
        let why = planner::staying(&app, &app.shares, &locations)?;
        (share.count > 0).then(|| ((app.project.clone(), app.app.clone()), share.count, why))
    });
    staying.collect()
}

/// Whether a release may be at a location. Of one that has not reported only the name is known.
fn may_be(release: &Release, name: &LocationName, locations: &[LocationState]) -> bool {
    let placement: &Placement = &release.manifest.placement;
    let gpus = release.manifest.resources.gpu.as_ref();
    let known = locations.iter().find(|location| location.name == *name);
    placement.is_none() && gpus.is_none()
        || known.is_some_and(|location| planner::permits(placement, gpus, location))
}

/// The release that a location is to run. Where that may not be, what is there stays as it is until it has left; a place
/// that comes to the app was chosen for the new one, where the one before may not be.
fn release_at(
    (catalog, locations): (&Catalog, &[LocationState]),
    (key, record): (&AppKey, &AppRecord),
    releases: &Releases,
    (location, before): (&LocationName, Option<&AllotmentRecord>),
) -> ReleaseNumber {
    let number = releases.at(location, before);
    let release = catalog.release(key, number);
    match (release.is_some_and(|release| may_be(release, location, locations)), before) {
        (true, _) => number,
        (false, Some(before)) => before.release,
        (false, None) => record.main(),
    }
}

/// How many canaries, and which one the command of a release, each of these shares has: none where that
/// release may not be.
fn tried(
    record: &AppRecord,
    release: &Release,
    shares: &[Share],
    locations: &[LocationState],
) -> (Vec<u32>, Option<usize>) {
    let open: Vec<bool> =
        shares.iter().map(|share| may_be(release, &share.location, locations)).collect();
    let running = shares.iter().zip(&open).map(|(share, open)| if *open { share.count } else { 0 });
    let mut running: Vec<u32> = running.collect();
    let first = open.iter().position(|open| *open);
    if let Some(first) = first.filter(|_| running.iter().all(|count| *count == 0)) {
        running[first] = 1;
    }
    let n_canaries = match record.stage {
        RolloutStage::Canary => release.manifest.rollout.canaries(record.count),
        RolloutStage::Command | RolloutStage::Whole => 0,
    };
    let runs_command =
        record.stage == RolloutStage::Command && record.failed != Some(record.release);
    (spread_canaries(&running, n_canaries), first.filter(|_| runs_command))
}

/// What is kept of plans.
struct Kept<'a> {
    /// The apps that wait, in a round in which nothing was written so far.
    queue: Option<&'a mut Queue>,
    moves: &'a mut Moves,
    log: &'a mut Log,
}

/// The change that brings the allotments of an app in line with what is wanted, if one is needed.
fn allotments(
    (catalog, reports): (&Catalog, &ByLocation),
    key: &AppKey,
    locations: &mut [LocationState],
    Kept { mut queue, moves, log }: Kept<'_>,
) -> Option<Transaction> {
    let stored = catalog.apps.get(key)?;
    let Stored { record, revision } = stored;
    let release = catalog.current_release(key)?;
    let held = held(catalog, key);
    let mut wanted = wanted_now((catalog, reports), (key, &held), record)?;
    wanted.demand.moving = moves.of(key, stored, &wanted, locations);
    let releases = Releases::of(catalog, reports, (key, record, &held), |name| {
        may_be(release, name, locations)
    });
    if !releases.move_any(&held)
        && queue.as_mut().is_some_and(|queue| queue.sleeps(key, *revision, &wanted))
    {
        return None;
    }
    let at = now();
    let shared = plan_shares(at, &wanted, locations);
    let Shared { shares, waiting } = &shared;
    let before_command = record.stage == RolloutStage::Command;
    let main = catalog.release(key, record.main()).unwrap_or(release);
    let (canaries, command_at) = tried(record, release, shares, locations);
    let (mut change, mut taken) = (Change::default(), Vec::new());
    for (idx, (share, n_canaries)) in shares.iter().zip(canaries).enumerate() {
        let before = held.get(&share.location).map(|stored| &stored.record);
        let canary = CanaryRecord { release: record.release, count: n_canaries };
        let there = (&share.location, before);
        let next = AllotmentRecord {
            release: release_at((catalog, locations), (key, record), &releases, there),
            count: share.count,
            canary: (n_canaries > 0).then_some(canary),
            // One location does it for all.
            command: (command_at == Some(idx)).then_some(record.release),
            held_back: before_command && (record.beside.is_none() || record.count == 0),
            make_room: share.make_room,
            budget: share.budget,
            budget_in_force: share.budget_in_force,
            generation: before.map_or(Default::default(), |before| before.generation),
            decision: share.decision.clone(),
        };
        change.put_if_changed(key, &share.location, before, next);
        let more = share.count.saturating_sub(before.map_or(0, |before| before.count));
        taken.push((&share.location, more));
    }
    // A location that gets nothing keeps an allotment of nothing, so that the budget it may still
    // be going by stays accounted for.
    for (location, stored) in &held {
        if shares.iter().all(|share| share.location != **location) {
            let before = &stored.record;
            let in_force = in_force(reports, location, key, stored);
            let record = AllotmentRecord {
                release: main.number,
                count: 0,
                canary: None,
                command: None,
                make_room: 0,
                budget: 0,
                budget_in_force: in_force,
                ..before.clone()
            };
            change.put_if_changed(key, location, Some(before), record);
        }
    }
    // A plan that leaves everything as it is decides nothing.
    if change.transaction.is_some() || waiting.is_some() {
        log.note((at, &wanted), locations, &shared);
    }
    let yields = release.manifest.yields();
    for (name, more) in taken {
        for location in locations.iter_mut().filter(|one| one.name == *name) {
            let each = (wanted.each, wanted.gpus.as_ref());
            (0..more).for_each(|_| location.take(&wanted.placement, each, yields));
        }
    }
    if let (Some(queue), Some(waiting), None) = (queue, waiting, &change.transaction) {
        queue.block(key, *revision, (wanted, waiting));
        return None;
    }
    change.told(key).map(|change| moves::with_told(change, &wanted, &shared))
}

/// The first of the changes that an app's allotments need, as many as one transaction takes. The rest comes
/// when these are seen. Any of them may be made without the others: budgets grow only into what is in
/// nobody's hands before, so that their sum stays within `max` whichever have grown.
#[derive(Default)]
struct Change {
    transaction: Option<Transaction>,
    /// Where room is to be made, and why.
    rooms: Vec<String>,
    n_puts: usize,
    n_bytes: usize,
}

impl Change {
    /// How many bytes of values are put at once, which leaves room for keys and conditions.
    const MOST_BYTES: usize = MAX_REQUEST_BYTES / 2;

    fn put_if_changed(
        &mut self,
        key: &AppKey,
        location: &LocationName,
        before: Option<&AllotmentRecord>,
        mut record: AllotmentRecord,
    ) {
        // One more tells of them.
        let full = self.n_puts + 1 >= MOST_AT_ONCE || self.n_bytes >= Self::MOST_BYTES;
        if full || before == Some(&record) {
            return;
        }
        if record.make_room > before.map_or(0, |before| before.make_room) {
            self.rooms.push(format!("{} at {location}: {}", key.1, record.decision.why));
        }
        record.generation = record.generation.next();
        let (key, value) = (allotment_key_text(location, key), encode(&record));
        self.n_puts += 1;
        self.n_bytes += value.len();
        self.transaction = Some(self.transaction.take().unwrap_or_default().put(key, value));
    }

    /// The transaction, with the event that tells for what others leave.
    fn told(self, key: &AppKey) -> Option<Transaction> {
        let rooms = self.rooms.join("; ");
        let with = |change| with_event(change, &Who::PLATFORM, Some(&key.0), "preempt", rooms);
        if self.rooms.is_empty() { self.transaction } else { self.transaction.map(with) }
    }
}
