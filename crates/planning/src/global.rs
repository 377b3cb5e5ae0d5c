//! Which locations run how many instances of an app.
//!
//! The planner sees locations as a whole, never nodes. It keeps what is placed where it is, adds
//! where most is free, takes away where most runs, and never hands out budgets whose sum exceeds
//! the app's `max`.
//!
//! A location that an operator cordoned gets nothing new. One that is drained also loses what it has, as
//! far as others are healthy elsewhere for it ([`drain`]).

mod drain;

use longshore_types::{
    AppName, Candidate, Capacity, Cordon, Decision, LocationName, ProjectName, Timestamp,
};

use crate::Pinned;

pub use drain::{AppMove, preview_drain, staying};

/// An app that should run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedApp {
    /// Its owner.
    pub project: ProjectName,
    /// Its name.
    pub app: AppName,
    /// How many instances should run in the world.
    pub count: u32,
    /// The most that may ever run in the world.
    pub max: u32,
    /// What one instance needs.
    pub each: Capacity,
    /// Why it is not started elsewhere when a location is drained.
    pub pinned: Option<Pinned>,
    /// What it has been given so far.
    pub shares: Vec<Share>,
}

/// What a location has been given of an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// The location.
    pub location: LocationName,
    /// How many should run there.
    pub count: u32,
    /// How many of those are healthy.
    pub ready: u32,
    /// The most that may run there.
    pub budget: u32,
    /// The largest budget that the location may still be going by: a lowered one counts only once
    /// the location has acknowledged it.
    pub budget_in_force: u32,
    /// Why it was given this.
    pub decision: Decision,
}

/// A location as the global scheduler sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocationState {
    /// The location.
    pub name: LocationName,
    /// True when it reported lately.
    pub reachable: bool,
    /// What an operator wishes of it.
    pub cordon: Option<Cordon>,
    /// What is free there, what is already on its way there deducted.
    pub free: Capacity,
}

/// Plans the shares of one app, the locations it no longer needs left out. When nothing can take
/// an instance, the best open location gets it all the same and lets it wait there; with no location that
/// is reachable and not cordoned the shares stay as they are. While a location is drained, more may be
/// shared out than should run.
pub fn plan_shares(now: Timestamp, app: &WantedApp, locations: &[LocationState]) -> Vec<Share> {
    let mut shares = app.shares.clone();
    drain::empty(&mut shares, app.count, locations);
    let placed: u32 = shares.iter().map(|share| share.count).sum();
    let settled = placed - drain::held(&shares, locations);
    // What is elsewhere for what still is at a drained location is no surplus.
    take_away(&mut shares, settled.saturating_sub(app.count), locations);
    for _ in placed..app.count {
        add_one(now, app, &mut shares, locations, WhenFull::WaitThere);
    }
    drain::fill(now, app, &mut shares, locations);
    shares.retain(|share| share.count > 0);
    share_budgets(app, &mut shares);
    shares
}

/// How many of `n_canaries` each location tries, in the order of `shares`: in proportion to what runs there.
pub fn spread_canaries(shares: &[Share], n_canaries: u32) -> Vec<u32> {
    let mut spread = vec![0_u32; shares.len()];
    for _ in 0..n_canaries {
        // The highest average so far gets the next one; the first among equals.
        let averages =
            shares.iter().zip(&spread).map(|(share, n)| (share.count, n + 1)).enumerate();
        let next = averages.filter(|(_, (count, _))| *count > 0).reduce(|best, other| {
            let ((_, (count, n)), (_, (other_count, other_n))) = (best, other);
            let is_higher =
                u64::from(other_count) * u64::from(n) > u64::from(count) * u64::from(other_n);
            if is_higher { other } else { best }
        });
        if let Some((idx, _)) = next {
            spread[idx] += 1;
        }
    }
    spread
}

/// Takes instances away one by one where most run, from unreachable locations last: those cannot
/// be told. What drained locations have is left to them.
fn take_away(shares: &mut [Share], surplus: u32, locations: &[LocationState]) {
    let reachable = |name: &LocationName| {
        locations.iter().any(|location| location.name == *name && location.reachable)
    };
    for _ in 0..surplus {
        let most = shares
            .iter_mut()
            .filter(|share| share.count > 0 && !drain::is_drained(&share.location, locations))
            .max_by_key(|share| (reachable(&share.location), share.count));
        if let Some(share) = most {
            share.count -= 1;
        }
    }
}

/// What becomes of an instance for which no location has room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WhenFull {
    /// A full location is better than none: it waits there for room.
    WaitThere,
    /// It is where it is.
    LeaveIt,
}

/// Adds an instance where it is best; false when that is nowhere.
fn add_one(
    now: Timestamp,
    app: &WantedApp,
    shares: &mut Vec<Share>,
    locations: &[LocationState],
    when_full: WhenFull,
) -> bool {
    let added = |name: &LocationName| -> u32 {
        let before = app.shares.iter().find(|share| share.location == *name);
        let after = shares.iter().find(|share| share.location == *name);
        after.map_or(0, |s| s.count).saturating_sub(before.map_or(0, |s| s.count))
    };
    let mut candidates: Vec<Candidate> =
        locations.iter().map(|location| judge(app, location, added(&location.name))).collect();
    candidates.sort_by(|a, b| b.score.cmp(&a.score).then_with(|| a.name.cmp(&b.name)));
    let chosen = candidates.iter().find(|candidate| candidate.score.is_some()).or_else(|| {
        let open = |name: &str| {
            let is_it = |l: &LocationState| l.name.as_str() == name;
            locations.iter().any(|l| l.reachable && l.cordon.is_none() && is_it(l))
        };
        let mut open = candidates.iter().filter(|candidate| open(&candidate.name));
        (when_full == WhenFull::WaitThere).then(|| open.next()).flatten()
    });
    let Some(chosen) = chosen else { return false };
    let why = match (chosen.score, locations.len()) {
        (None, _) => format!("no location has room; waits here: {}", chosen.why),
        (Some(_), 1) => "the only location".to_owned(),
        (Some(_), _) => format!("best of {} locations: {}", locations.len(), chosen.why),
    };
    let name = chosen.name.clone();
    let candidates = worth_keeping(candidates, &name);
    let decision = Decision { at: now, chosen: Some(name.clone()), why, candidates };
    match shares.iter_mut().find(|share| share.location.as_str() == name) {
        Some(share) => {
            share.count += 1;
            share.decision = decision;
        }
        None => {
            let location = locations.iter().find(|location| location.name.as_str() == name);
            let Some(location) = location else { return false };
            shares.push(Share {
                location: location.name.clone(),
                count: 1,
                ready: 0,
                budget: 0,
                budget_in_force: 0,
                decision,
            });
        }
    }
    true
}

/// How many locations a decision names of those that would have done, and of those that would not.
const KEPT_OF_EACH: usize = 8;

/// The best of each kind, and the chosen one: with hundreds of locations a decision that named all would
/// be longer than everything else that is kept of an app.
fn worth_keeping(candidates: Vec<Candidate>, chosen: &str) -> Vec<Candidate> {
    let (mut n_good, mut n_refused) = (0, 0);
    let mut is_kept = |candidate: &Candidate| {
        let seen = if candidate.score.is_some() { &mut n_good } else { &mut n_refused };
        *seen += 1;
        *seen <= KEPT_OF_EACH || candidate.name == chosen
    };
    candidates.into_iter().filter(|candidate| is_kept(candidate)).collect()
}

/// Scores by the share of memory that would stay free: instances spread, and full places refuse.
fn judge(app: &WantedApp, location: &LocationState, added: u32) -> Candidate {
    let name = location.name.to_string();
    if let Some(cordon) = &location.cordon {
        return Candidate { name, score: None, why: cordon.refusal() };
    }
    if !location.reachable {
        let why = "refused: it has not reported lately".to_owned();
        return Candidate { name, score: None, why };
    }
    let mut free = location.free;
    for _ in 0..added {
        free = free.minus(app.each);
    }
    if let Some(lack) = free.lacks_for(app.each) {
        let why = format!("refused: {lack}");
        return Candidate { name, score: None, why };
    }
    let left = free.minus(app.each);
    let score = i64::try_from(left.memory.0 >> 20).unwrap_or(i64::MAX);
    let why = format!("{} of memory and {} of disk stay free", left.memory, left.disk);
    Candidate { name, score: Some(score), why }
}

/// Gives every location its count and shares what `max` leaves above that, without ever handing out
/// more than `max` in all, budgets that may still be in force elsewhere included.
fn share_budgets(app: &WantedApp, shares: &mut [Share]) {
    let in_force_elsewhere: u32 = app
        .shares
        .iter()
        .filter(|old| shares.iter().all(|share| share.location != old.location))
        .map(|old| old.budget_in_force)
        .sum();
    let counts: u32 = shares.iter().map(|share| share.count).sum();
    let mut spare = app.max.saturating_sub(in_force_elsewhere).saturating_sub(counts);
    let mut open = u32::try_from(shares.len()).unwrap_or(u32::MAX);
    for share in shares.iter_mut() {
        let extra = spare.div_ceil(open.max(1));
        spare -= extra;
        open -= 1;
        share.budget = share.count + extra;
    }
    // A budget may grow only into what no other location still has.
    let in_force: u32 = shares.iter().map(|share| share.budget_in_force).sum::<u32>();
    let mut room = app.max.saturating_sub(in_force_elsewhere).saturating_sub(in_force);
    for share in shares.iter_mut() {
        let growth = share.budget.saturating_sub(share.budget_in_force).min(room);
        room -= growth;
        share.budget = share.budget.min(share.budget_in_force + growth);
        share.budget_in_force = share.budget_in_force.max(share.budget);
    }
}

#[cfg(test)]
mod tests;
