//! When users have moved, instances follow: one of an app at a time, and seldom.
//!
//! An app moves for its users only when it says how near it should be ([`LatencyGoal`](longshore_types::LatencyGoal)),
//! only for at least [`LEAST_GAIN`] of them, and only when nothing else is to be done about it. Whoever calls this
//! waits until that was so for some minutes ([`better`] is asked again and again), and then says with the app which
//! instance moves from where to where. From then on it is as with a location that is drained: another one starts, and
//! once it is healthy the one it is for ends.
//!
//! Each move brings more users within the goal than there were, by a least amount and never beyond the goal. So while
//! users stay where they are, an app moves a bounded number of times and then no more, whatever the way it took.
//!
//! That something moves is not stored. A control plane that was started again in the middle finds one instance too
//! many, and takes away what is not healthy, else what users miss least: the move is undone or it is complete.
//! Rejected: a share that remembers where it came from, which every other planner would have to heed.

use std::borrow::Cow;
use std::cmp::Reverse;

use longshore_types::{Decision, LocationName, Timestamp};
use serde::{Deserialize, Serialize};

use super::drain::Standing;
use super::users::Nearness;
use super::{Among, LocationState, Places, Share, WantedApp, constraints, count_at, give, judge};

/// Of a thousand users, how many have to gain by a move.
pub const LEAST_GAIN: u32 = 50;

/// An instance that goes from one location to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moving {
    /// Where one less will be.
    pub from: LocationName,
    /// Where another one is healthy before.
    pub to: LocationName,
}

/// A move that would bring users nearer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Better {
    /// From where to where.
    pub moving: Moving,
    /// Of a thousand users, how many are within the goal now.
    pub before: u32,
    /// And how many would be.
    pub after: u32,
}

/// The move that brings most users of an app within its goal, if one is worth it and may be made.
pub fn better(app: &WantedApp, locations: &[LocationState]) -> Option<Better> {
    let goal = app.placement.goal()?;
    let places = &Places::new(locations, &app.demand);
    if !is_calm(app, places) {
        return None;
    }
    let now = Nearness::of(app, &app.shares, places)?;
    let before = now.worth(now.figure());
    if goal.users.permille() < before + LEAST_GAIN {
        return None;
    }
    let mut best: Option<(u32, Reverse<u32>, Moving)> = None;
    for share in app.shares.iter().filter(|share| share.count > 0) {
        for location in locations.iter().filter(|one| one.name != share.location) {
            let figure = now.moved(&share.location, &location.name);
            let (after, way) = (now.worth(figure), Reverse(figure.way));
            let is_better =
                best.as_ref().is_none_or(|(most, least, _)| (after, way) > (*most, *least));
            if after < before + LEAST_GAIN || !is_better {
                continue;
            }
            let moving = Moving { from: share.location.clone(), to: location.name.clone() };
            if takes(app, &moving, location, places) {
                best = Some((after, way, moving));
            }
        }
    }
    let (_, _, moving) = best?;
    let after = now.moved(&moving.from, &moving.to).within;
    Some(Better { moving, before: now.figure().within, after })
}

/// Whether an app is as it should be in every other way, and may have one instance more for a while.
fn is_calm(app: &WantedApp, places: &Places<'_>) -> bool {
    let is_well = |share: &Share| {
        let at = places.at(&share.location);
        share.ready >= share.count
            && share.refused == 0
            && !share.lost
            && (share.count == 0 || at.is_some_and(|at| at.reachable))
    };
    let placed: u32 = app.shares.iter().map(|share| share.count).sum();
    let leaving = constraints::leaving(app, &app.shares, places);
    placed == app.count
        && app.max > app.count
        && app.pinned.is_none()
        && app.tried.is_none()
        && app.demand.moving.is_none()
        && app.shares.iter().all(is_well)
        && leaving.iter().all(|gone| *gone == 0)
}

/// Whether a location takes an instance from another. It has none yet, or nobody would gain by it: so as many
/// locations have some as before, and an app that keeps apart stays so.
fn takes(app: &WantedApp, moving: &Moving, to: &LocationState, places: &Places<'_>) -> bool {
    let mut moved = app.clone();
    moved.demand.moving = Some(moving.clone());
    let among = Among::without_users(&moved, &app.shares, places);
    !to.late && judge(&moved, to, &among).score.is_some()
}

/// The app as it is planned: without its move when that cannot be begun any more.
pub(super) fn possible<'a>(app: &'a WantedApp, places: &Places<'_>) -> Cow<'a, WantedApp> {
    let Some(moving) = &app.demand.moving else { return Cow::Borrowed(app) };
    let may_begin = || places.at(&moving.to).is_some_and(|to| takes(app, moving, to, places));
    let has_one = count_at(&app.shares, &moving.from) > 0;
    match has_one && (!is_to_begin(app, &app.shares, places) || may_begin()) {
        true => Cow::Borrowed(app),
        false => Cow::Owned(without_move(app)),
    }
}

/// The app as it is planned once its move is complete: what left has left once.
pub(super) fn unless_done<'a>(app: &'a WantedApp, shares: &[Share]) -> Cow<'a, WantedApp> {
    let is_done =
        |moving: &Moving| count_at(shares, &moving.from) < count_at(&app.shares, &moving.from);
    match app.demand.moving.as_ref().is_some_and(is_done) {
        true => Cow::Owned(without_move(app)),
        false => Cow::Borrowed(app),
    }
}

/// The app as it is planned when its move could not be begun, or was refused: nobody else has what it is for.
pub(super) fn if_begun<'a>(
    app: &'a WantedApp,
    shares: &[Share],
    places: &Places<'_>,
) -> Cow<'a, WantedApp> {
    match app.demand.moving.is_some() && is_to_begin(app, shares, places) {
        true => Cow::Owned(without_move(app)),
        false => Cow::Borrowed(app),
    }
}

fn without_move(app: &WantedApp) -> WantedApp {
    let mut app = app.clone();
    app.demand.moving = None;
    app
}

/// Whether the one in whose place another ends is missing.
fn is_to_begin(app: &WantedApp, shares: &[Share], places: &Places<'_>) -> bool {
    let Standing { held, count, .. } = Standing::new(app, shares, places);
    held > 0 && count < app.count.min(app.max.saturating_sub(held))
}

/// Gives the location to which an instance moves its own.
pub(super) fn begin(now: Timestamp, app: &WantedApp, shares: &mut Vec<Share>, places: &Places<'_>) {
    let Some(Moving { from, to }) = &app.demand.moving else { return };
    let Some(location) = places.at(to) else { return };
    if !is_to_begin(app, shares, places) {
        return;
    }
    let candidate = judge(app, location, &Among::of(app, shares, places));
    if candidate.score.is_some() {
        let chosen = Some(to.to_string());
        let why = format!("nearer to its users than one at {from}: {}", candidate.why);
        give(shares, to, Decision { at: now, chosen, why, candidates: vec![candidate] });
    }
}

/// How much users lose with one less at each of these shares, in their order; nothing where nobody knows who the
/// users are.
pub(super) fn losses(app: &WantedApp, shares: &[Share], places: &Places<'_>) -> Vec<(u32, u32)> {
    let Some(users) = Nearness::of(app, shares, places) else { return vec![(0, 0); shares.len()] };
    let loss = |(share, gone): (&Share, u32)| {
        // Of what is lost nobody has anything, and what leaves anyway is what is taken first.
        let rest = match share.lost || gone > 0 || share.count == 0 {
            true => users.figure(),
            false => users.without(&share.location),
        };
        // What is left of the goal, and how far it is then.
        (1000 - users.worth(rest), rest.way)
    };
    shares.iter().zip(constraints::leaving(app, shares, places)).map(loss).collect()
}
