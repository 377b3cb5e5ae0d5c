//! Carries out the plans of the global scheduler: from what is wanted and reported to allotments.
//!
//! A reconciler: it takes no orders, looks at the present state whenever something changed, and
//! writes what differs, conditional on the app not having changed meanwhile. It looks at the apps that the change
//! concerns ([`due`]), and at all of them in turn, a part at a time; what is to be written of several is written at
//! once, so that they wait for the disk together.

mod blocked;
mod change;
mod commit;
mod due;
mod forgetting;
mod found;
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

use longshore_link::now;
use longshore_planning::global::{
    self as planner, LocationState, Share, Shared, Waiting, WantedApp, plan_shares, spread_canaries,
};
use longshore_store::{
    Compare, MAX_OPERATIONS, Relation, Revision, Store, StoreError, Transaction,
};
use longshore_types::{LocationName, Manifest, Placement, Release, ReleaseNumber, Timestamp};
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
use change::{Change, Planned, Then};
use commit::commit;
use due::{Awaits, Due, Seen};
use forgetting::{forgetting, forgetting_secrets, removal};
pub use found::Found;
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
        let now = Instant::now();
        let rollouts = judged.rollouts.next_deadline(now);
        let moves = judged.moves.next_deadline(now);
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

    /// The apps to look at.
    fn due(&mut self, catalog: &Catalog, (reports, news): (&ByLocation, News)) -> Due {
        // What a report says of a rollout has its app looked at; this is for what comes with time.
        let judges = self.judged_at.is_none_or(|at| at.elapsed() >= INTERVAL);
        if judges {
            self.judged_at = Some(Instant::now());
        }
        let waiting = self.queue.waiting().chain(self.rollouts.under_way().filter(|_| judges));
        let waiting = waiting.chain(self.moves.due(Instant::now())).cloned().collect();
        self.seen.due((catalog, reports), (news, all_heard(catalog, reports)), waiting)
    }

    /// What is stored of the apps to look at, in the order in which they are planned; what the locations have been
    /// given by now is counted with that.
    fn find<'a>(
        &mut self,
        (catalog, reports): (&'a Catalog, &ByLocation),
        due: &'a Due,
    ) -> Vec<Found<'a>> {
        let (mut found, mut is_any_gone) = (Vec::new(), true);
        match due {
            Due::All => {
                found.extend(catalog.apps.keys().filter_map(|key| Found::new(catalog, key)));
            }
            Due::Some { keys, written } => {
                found.extend(keys.iter().filter_map(|key| Found::new(catalog, key)));
                is_any_gone = found.len() < keys.len();
                if !self.seen.is_whole() {
                    let summaries = &mut self.summaries;
                    found.iter().for_each(|found| summaries.look_at(catalog, reports, found));
                    let is_gone = |key: &&AppKey| is_any_gone && !catalog.apps.contains_key(*key);
                    let rest = written.iter().chain(keys.iter().filter(is_gone));
                    rest.for_each(|key| summaries.look(catalog, reports, key));
                }
            }
        }
        if self.seen.is_whole() {
            // Should something have been overlooked.
            self.summaries = Summaries::of(catalog, reports);
        }
        if is_any_gone || self.seen.is_whole() {
            self.forget_gone(|key| catalog.apps.contains_key(key));
        }
        sort(&mut found);
        found
    }

    /// Forgets apps that are there no more.
    fn forget_gone(&mut self, exists: impl Fn(&AppKey) -> bool) {
        self.rollouts.forget_gone(&exists);
        self.ended.forget_gone(&exists);
        self.moves.forget_gone(&exists);
        self.queue.forget_gone(&exists);
        self.seen.forget_gone(&exists);
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
    let due = judged.due(&catalog, (&reports, news));
    let found = judged.find((&catalog, &reports), &due);
    let mut rest = if judged.seen.is_whole() { forgetting_secrets(&catalog) } else { vec![] };
    rest.extend(judged.strays.changes(&catalog, &reports, &plane.public));
    let mut changes: Vec<_> = rest.into_iter().map(|change| (change, None)).collect();
    if found.is_empty() && changes.is_empty() {
        return Ok(false);
    }
    // What one app is given in this round is taken from what the others see.
    let mut locations = judged.summaries.states(&catalog, &reports);
    judged.queue.begin_round(&locations);
    for found in &found {
        let seen = (&*catalog, &*reports);
        let given = (&mut *locations, changes.is_empty());
        let planned = change(seen, found, given, judged);
        let is_under_way = judged.rollouts.is_under_way(found.key);
        judged.seen.look_again(found.key, awaits(&reports, found, is_under_way));
        if let Some(Planned { change, then }) = planned {
            let (key, revision) = (found.key, found.stored.revision);
            let unchanged = Compare::mod_revision(app_key_text(key), Relation::Equal, revision);
            changes.push((change.when(unchanged), Some((key.clone(), then))));
        }
    }
    let written = commit(plane, changes).await?;
    if written.refused {
        // What was not written is not seen either.
        judged.seen.forget();
    }
    for (key, revision, to) in written.last {
        judged.seen.wrote(key, revision, to);
    }
    Ok(written.any && !written.refused)
}

/// Sorts apps: first what matters most, of that what was deployed first.
fn sort(apps: &mut [Found<'_>]) {
    apps.sort_by_key(|found| {
        found.release.map(|release| (Reverse(release.manifest.priority), release.created_at))
    });
}

/// What that is to become of an app waits for that locations carry out: while a rollout is under way, that they have
/// heard of it.
fn awaits(reports: &ByLocation, found: &Found<'_>, is_under_way: bool) -> Awaits {
    let is_lowered =
        |stored: &Stored<AllotmentRecord>| stored.record.budget_in_force > stored.record.budget;
    if found.record().removing || found.held.values().any(|stored| is_lowered(stored)) {
        return Awaits::Anything;
    }
    let has_heard = |location: &LocationName, revision: Revision| {
        let received = reports.get(location);
        received.is_some_and(|received| received.report.acknowledged.0 >= revision.0)
    };
    let each = found.held.iter().map(|(location, stored)| ((*location).clone(), stored.revision));
    let unheard = each.filter(|(at, revision)| is_under_way && !has_heard(at, *revision));
    let unheard: Vec<_> = unheard.collect();
    if unheard.is_empty() { Awaits::Nothing } else { Awaits::Heard(unheard) }
}

/// The next change of an app, if one is needed. `locations` are as they will be with what others were given in this
/// round; `is_first` says that none was.
fn change(
    (catalog, reports): (&Catalog, &ByLocation),
    found: &Found<'_>,
    (locations, is_first): (&mut [LocationState], bool),
    judged: &mut Judged,
) -> Option<Planned> {
    let Judged { rollouts, ended, queue, moves, log, keep_releases, .. } = judged;
    let (key, before, seen) = (found.key, found.record(), (catalog, reports));
    if before.removing {
        return removal(seen, found).map(Planned::look);
    }
    let kept = Kept { queue: Some(queue).filter(|_| is_first), moves, log };
    if let Some(planned) = allotments(seen, found, locations, kept) {
        if let (Some(release), Then::Wait(_)) = (found.release, &planned.then) {
            rollouts.begin(key, before, &release.manifest);
        }
        return Some(planned);
    }
    if let Some(record) = rollouts.next_record(found, reports) {
        tracing::info!(app = %key.1, ?record, "judged a rollout");
        let (what, subject) = told(key, before, &record);
        let change = Transaction::new().put(app_key_text(key), encode(&record));
        let change = with_event(change, &Who::PLATFORM, Some(&key.0), what, subject);
        if !is_first_completion(catalog, found, &record) {
            return Some(Planned::look(change));
        }
        rollouts.end(key);
        return Some(Planned { change, then: Then::Wait(Vec::new()) });
    }
    if let Some(record) = ended.next_record(found, reports, Instant::now()) {
        let change = Transaction::new().put(app_key_text(key), encode(&record));
        let subject = format!("{}: it has ended, and so has its client", key.1);
        let change = with_event(change, &Who::PLATFORM, Some(&key.0), "rm", subject);
        return Some(Planned::look(change));
    }
    forgetting(seen, found, *keep_releases).map(Planned::look)
}

/// Whether all that a verdict says is that the first release of an app is complete. From that nothing follows: there
/// is no other to forget or that waits for this one, and none that follows its users.
fn is_first_completion(catalog: &Catalog, found: &Found<'_>, next: &AppRecord) -> bool {
    let before = found.record();
    let completed = AppRecord { good: Some(before.release), ..before.clone() };
    let follows_nobody = |release: &Arc<Release>| release.manifest.placement.goal().is_none();
    *next == completed
        && before.good.is_none()
        && (before.stage, before.beside) == (RolloutStage::Whole, None)
        && found.release.is_some_and(follows_nobody)
        && catalog.releases_of(found.key).nth(1).is_none()
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
    let Some(found) = Found::new(catalog, key) else { return Obstacles::default() };
    let record = found.record();
    let placed: u32 = found.held.values().map(|stored| stored.record.count).sum();
    let may_wait = !record.removing && placed < record.count;
    let Some(wanted) = wanted_now((catalog, reports), &found)
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

/// What removing a location that is lost would do.
pub fn preview_removal(
    catalog: &Catalog,
    reports: &ByLocation,
    location: &LocationName,
) -> Vec<planner::AppMove> {
    let apps = apps_at(catalog, reports, location);
    planner::preview_removal(now(), location, &apps, &locations(catalog, reports))
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
    found: &Found<'_>,
    releases: &Releases,
    (location, before): (&LocationName, Option<&AllotmentRecord>),
) -> ReleaseNumber {
    let number = releases.at(location, before);
    let release = found.release(catalog, number);
    match (release.is_some_and(|release| may_be(release, location, locations)), before) {
        (true, _) => number,
        (false, Some(before)) => before.release,
        (false, None) => found.record().main(),
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
    found: &Found<'_>,
    locations: &mut [LocationState],
    Kept { mut queue, moves, log }: Kept<'_>,
) -> Option<Planned> {
    let Found { key, stored, held, .. } = found;
    let Stored { record, revision } = stored;
    let release = found.release?;
    let mut wanted = wanted_now((catalog, reports), found)?;
    wanted.demand.moving = moves.of(key, stored, &wanted, locations);
    let releases = Releases::of(catalog, reports, (key, record, held), |name| {
        may_be(release, name, locations)
    });
    if !releases.move_any(held)
        && queue.as_mut().is_some_and(|queue| queue.sleeps(key, *revision, &wanted))
    {
        return None;
    }
    let at = now();
    let shared = plan_shares(at, &wanted, locations);
    let Shared { shares, waiting } = &shared;
    let before_command = record.stage == RolloutStage::Command;
    let main = found.release(catalog, record.main()).unwrap_or(release);
    let (canaries, command_at) = tried(record, release, shares, locations);
    let (mut change, mut taken) = (Change::new(reports), Vec::new());
    for (idx, (share, n_canaries)) in shares.iter().zip(canaries).enumerate() {
        let before = held.get(&share.location).map(|stored| &stored.record);
        let canary = CanaryRecord { release: record.release, count: n_canaries };
        let there = (&share.location, before);
        let next = AllotmentRecord {
            release: release_at((catalog, locations), found, &releases, there),
            count: share.count,
            canary: (n_canaries > 0).then_some(canary),
            // One location does it for all.
            command: (command_at == Some(idx)).then_some(record.release),
            held_back: before_command && (record.beside.is_none() || record.count == 0),
            make_room: share.make_room,
            budget: share.budget,
            budget_in_force: share.budget_in_force,
            generation: before.map_or(Default::default(), |before| before.generation),
            left_with: before.and_then(|before| before.left_with),
            decision: share.decision.clone(),
        };
        change.put_if_changed(key, &share.location, before, next);
        let more = share.count.saturating_sub(before.map_or(0, |before| before.count));
        taken.push((&share.location, more));
    }
    // A location that gets nothing keeps an allotment of nothing, so that the budget it may still
    // be going by stays accounted for.
    for (location, stored) in held {
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
    let is_whole = !change.is_part;
    let change = change.told(key).map(|change| moves::with_told(change, &wanted, &shared))?;
    let is_last = is_whole && is_all((at, &wanted), (record, &shared), locations);
    let then = match is_last {
        true => Then::Wait(shared.shares.into_iter().map(|share| share.location).collect()),
        false => Then::Look,
    };
    Some(Planned { change, then })
}

/// Whether what an app is given at first is all that it needs: planned from there, nothing changes.
fn is_all(
    (at, wanted): (Timestamp, &WantedApp),
    (record, given): (&AppRecord, &Shared),
    locations: &[LocationState],
) -> bool {
    let is_first = wanted.shares.is_empty()
        && given.waiting.is_none()
        && (record.stage, record.beside, record.good) == (RolloutStage::Whole, None, None);
    let then = || WantedApp { shares: given.shares.clone(), ..wanted.clone() };
    is_first && plan_shares(at, &then(), locations) == *given
}
