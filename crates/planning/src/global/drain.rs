//! Locations that are drained: what they have goes to others, each instance once another one is healthy
//! there.
//!
//! No step is remembered. How far a location is follows from what each was given and what is healthy
//! there, so a control plane that was started again goes on in the middle. Meanwhile more is given out
//! than should run, but never more than `max`: an app that may have no instance beside those it has
//! stays where it is.

use longshore_types::{AppName, Cordon, LocationName, ProjectName, Timestamp};

use super::{LocationState, Share, WantedApp, WhenFull, add_one, judge, plan_shares};

/// Whether an operator wants a location to be empty.
pub(super) fn is_drained(name: &LocationName, locations: &[LocationState]) -> bool {
    let found = locations.iter().find(|location| location.name == *name);
    found.and_then(|location| location.cordon.as_ref()).is_some_and(|cordon| cordon.drains)
}

/// How many instances drained locations were given.
pub(super) fn held(shares: &[Share], locations: &[LocationState]) -> u32 {
    let drained = shares.iter().filter(|share| is_drained(&share.location, locations));
    drained.map(|share| share.count).sum()
}

/// How many instances the other locations were given, and how many of them are healthy.
fn elsewhere(shares: &[Share], locations: &[LocationState]) -> (u32, u32) {
    let others = shares.iter().filter(|share| !is_drained(&share.location, locations));
    others.fold((0, 0), |(count, ready), share| {
        (count + share.count, ready + share.ready.min(share.count))
    })
}

/// Takes from drained locations what is healthy elsewhere in its place.
pub(super) fn empty(shares: &mut [Share], wanted: u32, locations: &[LocationState]) {
    let (_, ready) = elsewhere(shares, locations);
    let mut surplus = held(shares, locations).saturating_sub(wanted.saturating_sub(ready));
    for share in shares.iter_mut().filter(|share| is_drained(&share.location, locations)) {
        let taken = surplus.min(share.count);
        share.count -= taken;
        surplus -= taken;
    }
}

/// Gives other locations what is still at drained ones, as far as they have room and `max` allows.
pub(super) fn fill(
    now: Timestamp,
    app: &WantedApp,
    shares: &mut Vec<Share>,
    locations: &[LocationState],
) {
    let held = held(shares, locations);
    let (count, _) = elsewhere(shares, locations);
    let most = app.count.min(app.max.saturating_sub(held));
    if held > 0 && app.pinned.is_none() {
        for _ in count..most {
            if !add_one(now, app, shares, locations, WhenFull::LeaveIt) {
                return;
            }
        }
    }
}

/// Why drained locations still have instances of an app with these shares, and whether that comes to
/// its end by itself; nothing when they have none.
pub fn staying(
    app: &WantedApp,
    shares: &[Share],
    locations: &[LocationState],
) -> Option<(bool, String)> {
    let held = held(shares, locations);
    if held == 0 {
        return None;
    }
    if let Some(pinned) = app.pinned {
        return Some((pinned.leaves(), pinned.why().to_owned()));
    }
    let (count, ready) = elsewhere(shares, locations);
    if ready < count {
        let n_missing = count - ready;
        return Some((true, format!("waits until {n_missing} elsewhere are healthy")));
    }
    if count + held >= app.max {
        return Some((false, format!("no other can be started beside it: max = {}", app.max)));
    }
    let others = locations.iter().filter(|other| !is_drained(&other.name, locations));
    let refusals = others.map(|other| judge(app, other, 0)).filter(|other| other.score.is_none());
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
    let here = apps.iter().filter(|app| share(&app.shares, name) > 0);
    here.map(|app| {
        let (after, why) = in_the_end(now, app, &locations);
        let mut to = Vec::new();
        for state in &mut locations {
            let more = share(&after, &state.name).saturating_sub(share(&app.shares, &state.name));
            for _ in 0..more {
                state.free = state.free.minus(app.each);
            }
            if more > 0 {
                to.push((state.name.clone(), more));
            }
        }
        let n_left = share(&after, name);
        AppMove {
            project: app.project.clone(),
            app: app.app.clone(),
            count: share(&app.shares, name),
            to,
            stays: why.filter(|_| n_left > 0).map(|why| (n_left, why)),
        }
    })
    .collect()
}

fn share(shares: &[Share], name: &LocationName) -> u32 {
    let of_location = shares.iter().filter(|share| share.location == *name);
    of_location.map(|share| share.count).sum()
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
        let next = plan_shares(now, &app, &locations);
        // Free is what the shares so far leave.
        for state in &mut locations {
            let more = share(&next, &state.name).saturating_sub(share(&app.shares, &state.name));
            for _ in 0..more {
                state.free = state.free.minus(app.each);
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
