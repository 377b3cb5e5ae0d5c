//! Carries out the plans of the global scheduler: from what is wanted and reported to allotments.
//!
//! A reconciler: it takes no orders, looks at the present state whenever something changed, and
//! writes what differs, conditional on the app not having changed meanwhile.

mod blocked;
mod log;
mod summaries;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use longshore_api::links::InstanceStatus;
use longshore_link::now;
use longshore_planning::Pinned;
use longshore_planning::global::{
    self as planner, LocationState, Share, Shared, Waiting, WantedApp, plan_shares, spread_canaries,
};
use longshore_store::{
    Compare, MAX_OPERATIONS, MAX_REQUEST_BYTES, Relation, Store, StoreError, Transaction,
};
use longshore_types::{
    InstancePhase, Lack, LocationName, Manifest, Placement, Release, ReleaseNumber, RestartPolicy,
};
use prometheus_client::metrics::histogram::Histogram;

use crate::api::idempotency;
use crate::attached::Ended;
use crate::catalog::{AppKey, Catalog, Stored};
use crate::events::{self, Who, with_event};
use crate::records::{AllotmentRecord, AppRecord, CanaryRecord, Key, RolloutStage, encode};
use crate::reports::{ByLocation, of_app};
use crate::rollouts::Rollouts;
use crate::strays::Strays;
use crate::waves::{self, Releases};
use crate::{GlobalError, Plane, views};
use blocked::Queue;
use log::Log;
pub use summaries::kinds;
use summaries::locations;

/// How often to look without a change: reachability fades without one.
const INTERVAL: Duration = Duration::from_secs(5);
/// How often what is old is looked after.
const SWEEP_INTERVAL: Duration = Duration::from_secs(3600);
/// However near a deadline is.
const LEAST_WAIT: Duration = Duration::from_millis(100);
/// How many records are written or deleted in one transaction, beside that of their app.
const MOST_AT_ONCE: usize = MAX_OPERATIONS - 1;

/// Runs until shutdown.
pub async fn run(
    plane: Arc<Plane>,
    rounds: Histogram,
    data_dir: PathBuf,
) -> Result<(), GlobalError> {
    let mut catalog = plane.catalog.subscribe();
    let mut reports = plane.reports.subscribe();
    let shutdown = plane.service.shutdown();
    let mut judged = Judged::new(Log::open(&data_dir));
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
        let deadline = judged.rollouts.next_deadline(&plane.catalog()).unwrap_or(INTERVAL);
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            Ok(()) = catalog.changed() => {}
            Ok(()) = reports.changed() => {}
            () = tokio::time::sleep(deadline.clamp(LEAST_WAIT, INTERVAL)) => {}
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
    log: Log,
}

impl Judged {
    fn new(log: Log) -> Self {
        let (rollouts, ended, strays) = Default::default();
        Self { rollouts, ended, strays, queue: Queue::default(), log }
    }
}

/// Brings every app's allotments in line, and judges its rollout; true when something was written.
async fn reconcile(plane: &Plane, judged: &mut Judged) -> Result<bool, GlobalError> {
    let Judged { rollouts, ended, strays, queue, log } = judged;
    let catalog = plane.catalog();
    let reports = plane.reports.now();
    rollouts.forget_gone(&catalog);
    ended.forget_gone(&catalog);
    let mut wrote = match forgetting_secrets(&catalog) {
        Some(change) => commit(plane, change).await?,
        None => false,
    };
    for change in strays.changes(&catalog, &reports, &plane.public) {
        wrote |= commit(plane, change).await?;
    }
    // What one app is given in this round is taken from what the others see.
    let mut locations = locations(&catalog, &reports);
    queue.begin_round(&locations, |key| catalog.apps.contains_key(key));
    for (key, app) in &catalog.apps {
        let change = if app.record.removing {
            removal(&catalog, &reports, key)
        } else {
            let verdict = || {
                let record = rollouts.next_record(key, &catalog, &reports, &plane.public)?;
                tracing::info!(app = %key.1, ?record, "judged a rollout");
                let (what, subject) = told(key, &app.record, &record);
                let change = Transaction::new().put(app_key_text(key), encode(&record));
                Some(with_event(change, &Who::PLATFORM, Some(&key.0), what, subject))
            };
            let over = || {
                let record = ended.next_record(key, &catalog, &reports, Instant::now())?;
                let change = Transaction::new().put(app_key_text(key), encode(&record));
                let subject = format!("{}: it has ended, and so has its client", key.1);
                Some(with_event(change, &Who::PLATFORM, Some(&key.0), "rm", subject))
            };
            let queue = Some(&mut *queue).filter(|_| !wrote);
            let kept = Kept { queue, log: &mut *log };
            let change = allotments((&catalog, &reports), key, &mut locations, kept);
            let change = change.or_else(verdict);
            change.or_else(over).or_else(|| forgetting(&catalog, &reports, key, &app.record))
        };
        let Some(change) = change else { continue };
        let unchanged = Compare::mod_revision(app_key_text(key), Relation::Equal, app.revision);
        if !commit(plane, change.when(unchanged)).await? {
            return Ok(false);
        }
        wrote = true;
    }
    Ok(wrote)
}

/// Commits and waits until the catalog shows it; false when the disk has no room for it.
async fn commit(plane: &Plane, change: Transaction) -> Result<bool, GlobalError> {
    let change = plane.lead.iter().cloned().fold(change, Transaction::when);
    match plane.store.commit(change).await {
        Ok(result) => {
            if !result.succeeded {
                still_leads(plane).await?;
            }
            plane.catalog.reached(result.revision).await;
            Ok(true)
        }
        Err(error @ StoreError::DiskFull { .. }) => {
            tracing::warn!("what was planned waits: {error}");
            Ok(false)
        }
        Err(error) => Err(GlobalError::Store(error)),
    }
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

/// The next step in removing an app: take the allotments away, and once every location has
/// acknowledged that and reports no instance any more, forget the app and its releases.
fn removal(catalog: &Catalog, reports: &ByLocation, key: &AppKey) -> Option<Transaction> {
    let held = held(catalog, key);
    if !held.is_empty() {
        let take = |change: Transaction, location: &&LocationName| {
            change.delete(allotment_key_text(location, key))
        };
        // The rest next time.
        return Some(held.keys().take(MOST_AT_ONCE).fold(Transaction::new(), take));
    }
    let gone = catalog.locations.keys().all(|location| {
        let report = reports.get(location).map(|received| &received.report);
        report.is_some_and(|report| report.acknowledged.0 >= catalog.changed_at(location).0)
    });
    // Strays of it too, where nothing of it was ever allotted.
    if !gone || of_app(reports, key).next().is_some() {
        return None;
    }
    // The oldest releases first; the rest goes next time.
    let mut releases: Vec<_> = catalog.releases_of(key).take(MOST_AT_ONCE).collect();
    let last = catalog.releases_of(key).count() == releases.len();
    let mut change = Transaction::new();
    for release in releases.drain(..) {
        change = change.delete(release_key_text(key, release.number));
    }
    if last {
        change = change.delete(app_key_text(key));
    }
    Some(change)
}

/// How many releases of an app are kept, beside those that it needs.
const KEPT_RELEASES: usize = 20;

/// Forgets the oldest releases when there are too many, but none that runs or may be taken back. What a
/// location runs that is not heard of nobody knows, so then none is.
fn forgetting(
    catalog: &Catalog,
    reports: &ByLocation,
    key: &AppKey,
    record: &AppRecord,
) -> Option<Transaction> {
    let surplus = catalog.releases_of(key).count().checked_sub(KEPT_RELEASES + 1)? + 1;
    let held = held(catalog, key);
    if !held.keys().all(|location| waves::is_heard(reports, location)) {
        return None;
    }
    let kept = [Some(record.release), record.beside, record.good, record.failed];
    let allotted = held.values().map(|stored| stored.record.release);
    let running = of_app(reports, key).map(|status| status.release);
    let needed: BTreeSet<_> = kept.into_iter().flatten().chain(allotted).chain(running).collect();
    let oldest = catalog.releases_of(key).take(surplus.min(MOST_AT_ONCE));
    let mut forgotten = oldest.filter(|release| !needed.contains(&release.number)).peekable();
    forgotten.peek()?;
    Some(forgotten.fold(Transaction::new(), |change, release| {
        change.delete(release_key_text(key, release.number))
    }))
}

/// Forgets a version of a secret that is neither the newest nor part of a release that is kept.
fn forgetting_secrets(catalog: &Catalog) -> Option<Transaction> {
    if catalog.secrets.is_empty() {
        return None;
    }
    let releases = catalog.releases.iter().flat_map(|((project, _, _), release)| {
        release.secrets.iter().map(move |(name, version)| (project, name, *version))
    });
    let needed: BTreeSet<_> = releases.collect();
    // They come in the order of their versions.
    let versions = catalog.secrets.keys();
    let newest: BTreeMap<_, _> = versions.map(|key| ((&key.0, &key.1), key.2)).collect();
    let (key, stored) = catalog.secrets.iter().find(|((project, name, version), _)| {
        newest.get(&(project, name)) != Some(version)
            && !needed.contains(&(project, name, *version))
    })?;
    let key = Key::Secret(key.0.clone(), key.1.clone(), key.2).to_string();
    // A deploy that takes it at this moment writes it again.
    let unchanged = Compare::mod_revision(&key, Relation::Equal, stored.revision);
    Some(Transaction::new().when(unchanged).delete(key))
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
    let all = catalog.allotments.iter();
    let of_app = all.filter(|((_, project, name), _)| (project, name) == (&key.0, &key.1));
    of_app.map(|((location, _, _), stored)| (location, stored)).collect()
}

/// The budget by which a location may still go. Once it has acknowledged a lower one it starts nothing
/// beyond that, but what runs there runs until it has ended: a rollout's old instances have requests to end.
fn in_force(
    reports: &ByLocation,
    location: &LocationName,
    key: &AppKey,
    stored: &Stored<AllotmentRecord>,
) -> u32 {
    let AllotmentRecord { budget, budget_in_force, .. } = stored.record;
    let report = reports.get(location).map(|reported| &reported.report);
    match report.filter(|report| report.acknowledged.0 >= stored.revision.0) {
        None => budget_in_force,
        // To count is to look at every instance.
        Some(_) if budget_in_force <= budget => budget,
        Some(report) => {
            let is_it = |one: &&InstanceStatus| (&one.project, &one.app) == (&key.0, &key.1);
            let n_there = report.instances.iter().filter(is_it).count();
            u32::try_from(n_there).unwrap_or(u32::MAX).clamp(budget, budget_in_force)
        }
    }
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
    }
    plan_shares(now(), &wanted, &locations(catalog, reports))
}

/// What of an app finds no place at any location now, and why.
pub fn waiting(catalog: &Catalog, reports: &ByLocation, key: &AppKey) -> Option<Waiting> {
    let held = held(catalog, key);
    let record = &catalog.apps.get(key)?.record;
    let placed: u32 = held.values().map(|stored| stored.record.count).sum();
    if record.removing || placed >= record.count {
        return None;
    }
    let wanted = wanted_now((catalog, reports), (key, &held), record)?;
    plan_shares(now(), &wanted, &locations(catalog, reports)).waiting
}

/// Why something of an app is still where it may not be, if it is.
pub fn staying(catalog: &Catalog, reports: &ByLocation, key: &AppKey) -> Option<String> {
    let held = held(catalog, key);
    let record = &catalog.apps.get(key)?.record;
    let wanted = wanted_now((catalog, reports), (key, &held), record)?;
    if wanted.placement.is_none() {
        return None;
    }
    let (_, why) = planner::staying(&wanted, &wanted.shares, &locations(catalog, reports))?;
    Some(format!("some of it is still where it may not be, and {why}"))
}

/// An app as it should be now. What most of its instances are of says where they may be, the release that is
/// tried beside that where those few may.
fn wanted_now(
    (catalog, reports): (&Catalog, &ByLocation),
    (key, held): (&AppKey, &Held<'_>),
    record: &AppRecord,
) -> Option<WantedApp> {
    let release = catalog.current_release(key)?;
    // A command runs somewhere also when nothing else should.
    let count = match record.stage {
        RolloutStage::Command => record.count.max(1),
        RolloutStage::Canary | RolloutStage::Whole => record.count,
    };
    let mut wanted = wanted_app((catalog, reports), (key, held), (count, &release.manifest));
    let beside = record.beside.and_then(|beside| catalog.release(key, beside));
    if let Some(beside) = beside {
        let tried = std::mem::replace(&mut wanted.placement, beside.manifest.placement.clone());
        wanted.tried = Some(tried);
    }
    Some(wanted)
}

/// An app as the planner sees it.
fn wanted_app(
    (catalog, reports): (&Catalog, &ByLocation),
    (key, held): (&AppKey, &Held<'_>),
    (count, manifest): (u32, &Manifest),
) -> WantedApp {
    // Nobody asks as long as nothing has to leave, and to count is to look at every instance.
    let drains =
        catalog.cordons.iter().any(|((_, node), stored)| node.is_none() && stored.record.0.drains);
    let is_placed = |release: &Arc<Release>| !release.manifest.placement.is_none();
    let placed: u32 = held.values().map(|stored| stored.record.count).sum();
    let counts = drains || placed > count || catalog.releases_of(key).any(is_placed);
    // What may run once at most is not started beside what may still run.
    let replaces = manifest.restart != RestartPolicy::Never && manifest.attached.is_none();
    let lost = |location: &LocationName| {
        replaces
            && !waves::is_heard(reports, location)
            && manifest.replace_lost.is_over(reports.silence(location))
    };
    let ready = |location: &LocationName, stored: &Stored<AllotmentRecord>| {
        let statuses = reports.get(location).map_or(&[][..], |r| &r.report.instances);
        let is_it = |status: &&InstanceStatus| {
            (&status.project, &status.app) == (&key.0, &key.1)
                && status.release == stored.record.release
                && !status.is_command
                && views::is_ready(status)
        };
        u32::try_from(statuses.iter().filter(is_it).count()).unwrap_or(u32::MAX)
    };
    let so_far = held.iter().map(|(location, stored)| Share {
        location: (*location).clone(),
        count: stored.record.count,
        ready: if counts { ready(location, stored) } else { 0 },
        refused: refused(reports, key, (location, stored)),
        lost: lost(location),
        budget: stored.record.budget,
        budget_in_force: in_force(reports, location, key, stored),
        decision: stored.record.decision.clone(),
    });
    WantedApp {
        project: key.0.clone(),
        app: key.1.clone(),
        count,
        max: manifest.max_for(count),
        each: manifest.resources.capacity(),
        placement: manifest.placement.clone(),
        tried: None,
        refusals: refusals(catalog, reports, key),
        pinned: pinned(reports, key, manifest),
        shares: so_far.collect(),
    }
}

/// What of an app a location found no node for, by its word on what it was given last.
fn refused(
    reports: &ByLocation,
    key: &AppKey,
    (location, stored): (&LocationName, &Stored<AllotmentRecord>),
) -> u32 {
    let Some(received) = reports.get(location) else { return 0 };
    let Some(refusal) = received.refusals.get(key) else { return 0 };
    // One that is cut off may have found a node since, and owns what it has.
    let is_old = !received.reachable() || refusal.acknowledged.0 < stored.revision.0;
    if refusal.missing == 0 || is_old {
        return 0;
    }
    // What a rollout has no room for beside what there is runs all the same, in its old release.
    let of_app = |status: &&InstanceStatus| {
        (&status.project, &status.app) == (&key.0, &key.1) && !status.is_command && !status.draining
    };
    let n_there = received.report.instances.iter().filter(of_app).count();
    let n_there = u32::try_from(n_there).unwrap_or(u32::MAX);
    refusal.missing.min(stored.record.count.saturating_sub(n_there))
}

/// The locations that found no node for an app since it last changed, and why.
fn refusals(
    catalog: &Catalog,
    reports: &ByLocation,
    key: &AppKey,
) -> BTreeMap<LocationName, (Lack, String)> {
    let changed = catalog.apps.get(key).map_or(0, |stored| stored.revision.0);
    let each = reports.iter().filter_map(|(location, received)| {
        let refusal = received.refusals.get(key)?;
        let holds = refusal.acknowledged.0 >= changed;
        holds.then(|| (location.clone(), (refusal.lack(), refusal.why.clone())))
    });
    each.collect()
}

/// Why an app is not started at another location.
fn pinned(reports: &ByLocation, key: &AppKey, manifest: &Manifest) -> Option<Pinned> {
    if manifest.attached.is_some() {
        return Some(Pinned::Attached);
    }
    if manifest.restart == RestartPolicy::Always {
        return None;
    }
    let ended = |status: &InstanceStatus| {
        !status.is_command && !status.draining && status.observed.phase == InstancePhase::Exited
    };
    of_app(reports, key).any(ended).then_some(Pinned::Ended)
}

/// The apps of which a location has something, as the planner sees them.
fn apps_at(catalog: &Catalog, reports: &ByLocation, location: &LocationName) -> Vec<WantedApp> {
    let keys = catalog.allotments.iter().filter(|((of, _, _), _)| of == location);
    let wanted = keys.filter_map(|((_, project, app), _)| {
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
    let known = locations.iter().find(|location| location.name == *name);
    placement.is_none() || known.is_some_and(|location| planner::permits(placement, location))
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
    log: &'a mut Log,
}

/// The change that brings the allotments of an app in line with what is wanted, if one is needed.
fn allotments(
    (catalog, reports): (&Catalog, &ByLocation),
    key: &AppKey,
    locations: &mut [LocationState],
    Kept { mut queue, log }: Kept<'_>,
) -> Option<Transaction> {
    let Stored { record, revision } = catalog.apps.get(key)?;
    let release = catalog.current_release(key)?;
    let held = held(catalog, key);
    let wanted = wanted_now((catalog, reports), (key, &held), record)?;
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
        // Where a release may not be, what is there stays as it is until it has left.
        let number = releases.at(&share.location, before);
        let at_it = catalog.release(key, number);
        let stays = before
            .filter(|_| !at_it.is_some_and(|release| may_be(release, &share.location, locations)));
        let next = AllotmentRecord {
            release: stays.map_or(number, |before| before.release),
            count: share.count,
            canary: (n_canaries > 0).then_some(canary),
            // One location does it for all.
            command: (command_at == Some(idx)).then_some(record.release),
            held_back: before_command && (record.beside.is_none() || record.count == 0),
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
    for (name, more) in taken {
        for location in locations.iter_mut().filter(|one| one.name == *name) {
            (0..more).for_each(|_| location.take(&wanted.placement, wanted.each));
        }
    }
    if let (Some(queue), Some(waiting), None) = (queue, waiting, &change.transaction) {
        queue.block(key, *revision, (wanted, waiting));
    }
    change.transaction
}

/// The first of the changes that an app's allotments need, as many as one transaction takes. The rest comes
/// when these are seen. Any of them may be made without the others: budgets grow only into what is in
/// nobody's hands before, so that their sum stays within `max` whichever have grown.
#[derive(Default)]
struct Change {
    transaction: Option<Transaction>,
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
        let full = self.n_puts == MOST_AT_ONCE || self.n_bytes >= Self::MOST_BYTES;
        if full || before == Some(&record) {
            return;
        }
        record.generation = record.generation.next();
        let (key, value) = (allotment_key_text(location, key), encode(&record));
        self.n_puts += 1;
        self.n_bytes += value.len();
        self.transaction = Some(self.transaction.take().unwrap_or_default().put(key, value));
    }
}
