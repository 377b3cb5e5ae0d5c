//! What has to leave a location goes to others, each instance once another one is healthy there: all of a
//! location that is drained, or that the app does not want any more, and what is too many in one place.
//!
//! No step is remembered. How far a location is follows from what each was given and what is healthy
//! there, so a control plane that was started again goes on in the middle. Meanwhile more is given out
//! than should run, but never more than `max`: an app that may have no instance beside those it has
//! stays where it is.

use longshore_types::{AppName, Cordon, LocationName, ProjectName, Timestamp};

use super::constraints::leaving;
use super::{
    Among, LocationState, Places, Share, WantedApp, add_one, count_at, judge, plan_shares,
};

/// How many instances have to leave, how many stay, and how many of those are healthy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standing {
    pub held: u32,
    pub count: u32,
    pub ready: u32,
}

impl Standing {
    pub(super) fn new(app: &WantedApp, shares: &[Share], places: &Places<'_>) -> Self {
        let none = Self { held: 0, count: 0, ready: 0 };
        let leaving = leaving(app, shares, places);
        shares.iter().zip(leaving).fold(none, |sum, (share, gone)| {
            let count = share.count - gone;
            Self {
                held: sum.held + gone,
                count: sum.count + count,
                ready: sum.ready + share.ready.min(count),
            }
        })
    }
}

/// Takes from what has to leave what is healthy elsewhere in its place.
pub(super) fn empty(shares: &mut [Share], app: &WantedApp, places: &Places<'_>) {
    let leaving = leaving(app, shares, places);
    let Standing { held, ready, .. } = Standing::new(app, shares, places);
    let mut surplus = held.saturating_sub(app.count.saturating_sub(ready));
    for (share, gone) in shares.iter_mut().zip(leaving) {
        let taken = surplus.min(gone);
        share.count -= taken;
        surplus -= taken;
    }
}

/// Gives other locations what still has to leave, as far as they have room and `max` allows.
pub(super) fn fill(now: Timestamp, app: &WantedApp, shares: &mut Vec<Share>, places: &Places<'_>) {
    let Standing { held, count, .. } = Standing::new(app, shares, places);
    let most = app.count.min(app.max.saturating_sub(held));
    if held > 0 && app.pinned.is_none() {
        for _ in count..most {
            // It is where it is.
            if add_one(now, app, shares, places).is_err() {
                return;
            }
        }
    }
}

/// Why locations, in the order of their names, still have instances of an app with these shares that have to leave,
/// and whether that comes to its end by itself; nothing when none has.
pub fn staying(
    app: &WantedApp,
    shares: &[Share],
    locations: &[LocationState],
) -> Option<(bool, String)> {
    let places = &Places::new(locations, &app.demand);
    let Standing { held, count, ready } = Standing::new(app, shares, places);
    if held == 0 {
        return None;
    }
    if let Some(pinned) = app.pinned {
        return Some((pinned.leaves(), pinned.why().to_owned()));
    }
    if ready < count {
        let n_missing = count - ready;
        return Some((true, format!("waits until {n_missing} elsewhere are healthy")));
    }
    if count + held >= app.max {
        return Some((false, format!("no other can be started beside it: max = {}", app.max)));
    }
    let is_drained = |other: &&LocationState| other.cordon.as_ref().is_some_and(|it| it.drains);
    let others = locations.iter().filter(|other| !is_drained(other));
    let among = Among::without_users(app, shares, places);
    let refusals = others.map(|other| judge(app, other, &among));
    let refusals = refusals.filter(|other| other.score.is_none());
    let refusals: Vec<_> = refusals
        .take(super::KEPT_OF_EACH)
        .map(|other| format!("{}: {}", other.name, other.why))
        .collect();
    let why = match refusals.is_empty() {
        true => "there is no other location".to_owned(),
        false => format!("no other location takes it ({})", refusals.join("; ")),
    };
    Some((false, why))
}

/// What would become of the instances of an app at a location that is drained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppMove {
    /// The owner of the app.
    pub project: ProjectName,
    /// The app.
    pub app: AppName,
    /// How many should run there now.
    pub count: u32,
    /// How many more would run where.
    pub to: Vec<(LocationName, u32)>,
    /// How many would stay, and why.
    pub stays: Option<(u32, String)>,
}

/// What draining a location would do to each of these apps, if all that is started becomes healthy and
/// every budget is acknowledged.
pub fn preview_drain(
    now: Timestamp,
    name: &LocationName,
    apps: &[WantedApp],
    locations: &[LocationState],
) -> Vec<AppMove> {
    let mut locations = locations.to_vec();
    for location in locations.iter_mut().filter(|location| location.name == *name) {
        location.cordon = Some(Cordon { since: now, by: None, drains: true, removed: false });
    }
    let here = apps.iter().filter(|app| count_at(&app.shares, name) > 0);
    here.map(|app| {
        let (after, why) = in_the_end(now, app, &locations);
        let to = grown(&app.shares, &after, app, &mut locations);
        let n_left = count_at(&after, name);
        AppMove {
            project: app.project.clone(),
            app: app.app.clone(),
            count: count_at(&app.shares, name),
            to,
            stays: why.filter(|_| n_left > 0).map(|why| (n_left, why)),
        }
    })
    .collect()
}

/// What forgetting a location that is lost would do to each of these apps, if all that is started becomes healthy: what
/// it had and nobody has in its place yet, and what it may still run counts no more against `max`.
pub fn preview_removal(
    now: Timestamp,
    name: &LocationName,
    apps: &[WantedApp],
    locations: &[LocationState],
) -> Vec<AppMove> {
    let others = locations.iter().filter(|location| location.name != *name);
    let mut others: Vec<_> = others.cloned().collect();
    let here = apps.iter().filter(|app| app.shares.iter().any(|share| share.location == *name));
    let moves = here.map(|app| {
        let mut without = app.clone();
        without.shares.retain(|share| share.location != *name);
        let (after, _) = in_the_end(now, &without, &others);
        let to = grown(&app.shares, &after, app, &mut others);
        without.shares = after;
        let waiting = plan_shares(now, &without, &others).waiting;
        AppMove {
            project: app.project.clone(),
            app: app.app.clone(),
            count: count_at(&app.shares, name),
            to,
            stays: waiting.map(|waiting| (waiting.missing, waiting.decision.why)),
        }
    });
    // Of what only may have run there nobody has to know, unless something else follows.
    moves.filter(|one| one.count > 0 || !one.to.is_empty()).collect()
}

/// How many more run where afterwards, which is free there no more.
fn grown(
    before: &[Share],
    after: &[Share],
    app: &WantedApp,
    locations: &mut [LocationState],
) -> Vec<(LocationName, u32)> {
    let mut to = Vec::new();
    for state in locations {
        let more = count_at(after, &state.name).saturating_sub(count_at(before, &state.name));
        for _ in 0..more {
            state.take(&app.placement, (app.each, app.gpus.as_ref()), Some(app.priority));
        }
        if more > 0 {
            to.push((state.name.clone(), more));
        }
    }
    to
}

/// Where the steps for an app lead, and why something stays after the last.
fn in_the_end(
    now: Timestamp,
    app: &WantedApp,
    locations: &[LocationState],
) -> (Vec<Share>, Option<String>) {
    let mut app = app.clone();
    let mut locations = locations.to_vec();
    // Each step moves one instance at least.
    for _ in 0..=2 * app.count {
        for share in &mut app.shares {
            (share.ready, share.budget_in_force) = (share.count, share.budget);
        }
        let next = plan_shares(now, &app, &locations).shares;
        // Free is what the shares so far leave.
        for state in &mut locations {
            let more =
                count_at(&next, &state.name).saturating_sub(count_at(&app.shares, &state.name));
            for _ in 0..more {
                state.take(&app.placement, (app.each, app.gpus.as_ref()), Some(app.priority));
            }
        }
        let is_last = next
            .iter()
            .map(|s| (&s.location, s.count))
            .eq(app.shares.iter().map(|s| (&s.location, s.count)));
        app.shares = next;
        if is_last {
            break;
        }
    }
    let why = staying(&app, &app.shares, &locations);
    (app.shares, why.map(|(_, why)| why))
}
