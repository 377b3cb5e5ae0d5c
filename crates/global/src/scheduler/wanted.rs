//! An app as the planner sees it: what should run of it, and what each location has of it by its own word.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use longshore_api::links::InstanceStatus;
use longshore_planning::Pinned;
use longshore_planning::global::{Share, WantedApp};
use longshore_types::{InstancePhase, Lack, LocationName, Manifest, Release, RestartPolicy};

use super::{Found, Held};
use crate::catalog::{AppKey, Catalog, Stored};
use crate::records::{AllotmentRecord, LeftWith, RolloutStage};
use crate::reports::{ByLocation, Received, demand_of, of_app};
use crate::views;

/// The budget by which a location may still go. Once it has acknowledged a lower one it starts nothing
/// beyond that, but what runs there runs until it has ended: a rollout's old instances have requests to end.
pub(super) fn in_force(
    reports: &ByLocation,
    location: &LocationName,
    key: &AppKey,
    stored: &Stored<AllotmentRecord>,
) -> u32 {
    let AllotmentRecord { budget, budget_in_force, .. } = stored.record;
    let acknowledged = |received: &&Received| received.report.acknowledged.0 >= stored.revision.0;
    match reports.get(location).filter(acknowledged) {
        None => budget_in_force,
        // To count is to look at every instance.
        Some(_) if budget_in_force <= budget => budget,
        Some(received) => {
            let n_there = received.of_app(key).count();
            u32::try_from(n_there).unwrap_or(u32::MAX).clamp(budget, budget_in_force)
        }
    }
}

/// With what a location is left that is not heard of, when something is changed that it does not learn of: by what it
/// said last, which the control plane that leads may never have heard.
pub(super) fn left_with(
    said: Option<&Received>,
    key: &AppKey,
    before: &AllotmentRecord,
) -> Option<LeftWith> {
    let ran = said.and_then(|said| {
        let release = said.of_app(key).map(|status| status.release).max()?;
        Some(LeftWith { release, since: Some(said.at_wall) })
    });
    let told = (before.count > 0).then_some(LeftWith { release: before.release, since: None });
    ran.or(before.left_with).or(told)
}

/// An app as it should be now. What most of its instances are of says where they may be, the release that is
/// tried beside that where those few may.
pub(super) fn wanted_now(
    (catalog, reports): (&Catalog, &ByLocation),
    found: &Found<'_>,
) -> Option<WantedApp> {
    let (Found { key, held, .. }, record) = (found, found.record());
    let release = found.release?;
    // A command runs somewhere also when nothing else should.
    let count = match record.stage {
        RolloutStage::Command => record.count.max(1),
        RolloutStage::Canary | RolloutStage::Whole => record.count,
    };
    let mut wanted = wanted_app((catalog, reports), (key, held), (count, &release.manifest));
    let beside = record.beside.and_then(|beside| found.release(catalog, beside));
    if let Some(beside) = beside {
        let tried = std::mem::replace(&mut wanted.placement, beside.manifest.placement.clone());
        wanted.tried = Some(tried);
    }
    Some(wanted)
}

/// An app as the planner sees it.
pub(super) fn wanted_app(
    (catalog, reports): (&Catalog, &ByLocation),
    (key, held): (&AppKey, &Held<'_>),
    (count, manifest): (u32, &Manifest),
) -> WantedApp {
    // Nobody asks as long as nothing has to leave, and to count is to look at every instance.
    let drains =
        catalog.cordons.iter().any(|((_, node), stored)| node.is_none() && stored.record.0.drains);
    let is_placed = |release: &Arc<Release>| {
        let manifest = &release.manifest;
        !manifest.placement.is_none() || manifest.resources.gpu.is_some()
    };
    let placed: u32 = held.values().map(|stored| stored.record.count).sum();
    let counts = drains || placed > count || catalog.releases_of(key).any(is_placed);
    // What may run once at most is not started beside what may still run.
    let replaces = manifest.restart != RestartPolicy::Never && manifest.attached.is_none();
    let lost = |location: &LocationName| {
        replaces
            && !reports.is_heard(location)
            && manifest.replace_lost.is_over(reports.silence(location))
    };
    let ready = |location: &LocationName, stored: &Stored<AllotmentRecord>| {
        let statuses = reports.get(location).into_iter().flat_map(|received| received.of_app(key));
        let is_it = |status: &&InstanceStatus| {
            status.release == stored.record.release && !status.is_command && views::is_ready(status)
        };
        u32::try_from(statuses.filter(is_it).count()).unwrap_or(u32::MAX)
    };
    let so_far = held.iter().map(|(location, stored)| Share {
        location: (*location).clone(),
        count: stored.record.count,
        ready: if counts { ready(location, stored) } else { 0 },
        refused: refused(reports, key, (location, stored)),
        // To count is to look at every instance.
        make_room: match stored.record.make_room {
            0 => 0,
            most => without_room(reports, key, (location, stored)).min(most),
        },
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
        gpus: manifest.resources.gpu.clone(),
        placement: manifest.placement.clone(),
        tried: None,
        refusals: refusals(catalog, reports, key),
        may_make_room: may_make_room(reports, key),
        priority: manifest.priority,
        pinned: pinned(reports, key, manifest),
        demand: demand_of(reports, key),
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
    refusal.missing.min(without_room(reports, key, (location, stored)))
}

/// How many of those that should run at a location are not there.
fn without_room(
    reports: &ByLocation,
    key: &AppKey,
    (location, stored): (&LocationName, &Stored<AllotmentRecord>),
) -> u32 {
    let stays = |status: &&InstanceStatus| !status.is_command && !status.draining;
    let there = reports.get(location).into_iter().flat_map(|received| received.of_app(key));
    let n_there = u32::try_from(there.filter(stays).count()).unwrap_or(u32::MAX);
    stored.record.count.saturating_sub(n_there)
}

/// Those that found none for want of room, and did not look for others yet that could leave.
fn may_make_room(reports: &ByLocation, key: &AppKey) -> BTreeSet<LocationName> {
    let may = |received: &Received| {
        received.refusals.get(key).is_some_and(|refusal| refusal.may_make_room())
    };
    let each = reports.iter().filter(|(_, received)| may(received));
    each.map(|(location, _)| location.clone()).collect()
}

/// The locations that found no node for an app since it last changed, and why.
fn refusals(
    catalog: &Catalog,
    reports: &ByLocation,
    key: &AppKey,
) -> BTreeMap<LocationName, (Lack, String)> {
    let each = reports.iter().filter_map(|(location, received)| {
        let refusal = received.refusals.get(key)?;
        let changed = catalog.apps.get(key).map_or(0, |stored| stored.revision.0);
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
