//! Which locations run how many instances of an app.
//!
//! The planner sees locations as a whole, never nodes. It keeps what is placed where it is, adds
//! where most is free, takes away where most runs, and never hands out budgets whose sum exceeds
//! the app's `max`.
//!
//! A location that an operator cordoned gets nothing new. One that is drained also loses what it has, as
//! far as others are healthy elsewhere for it ([`drain`]); so does one that the app does not want any more,
//! or not as much of ([`constraints`]). What no location takes waits, and is told of with every refusal, unless
//! something that matters less can leave for it ([`room`]).
//!
//! Of the locations that will do, those near the users of an app are better ([`users`]), where it is known who they
//! are; and an app that says how near it should be follows them ([`rebalance`]).

mod constraints;
mod drain;
mod freed;
mod gpus;
mod lost;
mod places;
mod rebalance;
mod refused;
mod room;
mod supply;
mod users;
mod waiting;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use longshore_types::{
    AppName, Candidate, Capacity, Coordinates, Cordon, Decision, Duration, GpuNeed, Lack,
    LocationName, Placement, Priority, ProjectName, Timestamp, Traits,
};
use serde::{Deserialize, Serialize};

use crate::Pinned;

pub(crate) use constraints::node_refusal;
pub use constraints::{NodeKind, permits};
pub use drain::{AppMove, preview_drain, preview_removal, staying};
pub use freed::{Freed, ReportedNode, Without, kinds};
pub use gpus::{GpuCount, GpuNodes, GpuSummary};
use places::{Among, Places};
pub use rebalance::{Better, LEAST_GAIN, Moving, better};
pub use supply::{Blocked, Supplies, more_of_nodes, supplies};
pub use users::{Demand, Ways, reached};

/// An app that should run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// And what of GPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpus: Option<GpuNeed>,
    /// Where its instances may be.
    pub placement: Placement,
    /// Where those of a release may be that is tried beside it, when there is one.
    pub tried: Option<Placement>,
    /// The locations that found no node for it, and lack the same still.
    pub refusals: BTreeMap<LocationName, (Lack, String)>,
    /// Those of them where it was for want of room, and where nobody was looked for yet who could leave for it.
    #[serde(default)]
    pub may_make_room: BTreeSet<LocationName>,
    /// How much it matters beside others.
    #[serde(default)]
    pub priority: Priority,
    /// Why it is not started elsewhere when a location is drained.
    pub pinned: Option<Pinned>,
    /// Where its users are.
    #[serde(default)]
    pub demand: Demand,
    /// What it has been given so far.
    pub shares: Vec<Share>,
}

impl WantedApp {
    /// At how many locations it has to be: never more than there are instances.
    fn min_locations(&self) -> u32 {
        self.placement.min_locations.unwrap_or(0).min(self.count)
    }
}

/// What a location has been given of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// The location.
    pub location: LocationName,
    /// How many should run there.
    pub count: u32,
    /// How many of those are healthy.
    pub ready: u32,
    /// How many of those the location found no node for.
    pub refused: u32,
    /// For how many of those that have no room yet others may be made to leave.
    #[serde(default)]
    pub make_room: u32,
    /// True when the location was not heard of for as long as the app waits before others take its place.
    pub lost: bool,
    /// The most that may run there.
    pub budget: u32,
    /// The largest budget that the location may still be going by: a lowered one counts only once
    /// the location has acknowledged it.
    pub budget_in_force: u32,
    /// Why it was given this.
    pub decision: Decision,
}

/// A location as the global scheduler sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocationState {
    /// The location.
    pub name: LocationName,
    /// True when it reported lately.
    pub reachable: bool,
    /// True when a report of it is overdue: what it said may not be so any more.
    pub late: bool,
    /// What an operator wishes of it.
    pub cordon: Option<Cordon>,
    /// What is free there, what is already on its way there deducted.
    pub free: Capacity,
    /// What would be without what may be made to leave, the lowest priority first.
    #[serde(default)]
    pub without: Vec<Without>,
    /// Where on Earth it is, when that is known.
    pub coordinates: Option<Coordinates>,
    /// What its operator says of it.
    pub traits: Traits,
    /// Its nodes, those that are alike together.
    pub kinds: Vec<NodeKind>,
    /// True while it has not heard some of its nodes, so that what they are is not known.
    pub unheard: bool,
    /// The round trips from there to other locations, as far as they were measured.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub round_trips: BTreeMap<LocationName, Duration>,
}

impl LocationState {
    /// Takes room for one more instance of an app that says this, from those of the nodes that may have it and
    /// have most. With a priority it leaves when something higher needs its room.
    pub fn take(
        &mut self,
        placement: &Placement,
        (each, gpus): (Capacity, Option<&GpuNeed>),
        yields: Option<Priority>,
    ) {
        self.free = self.free.minus(each);
        let stays = |without: &&mut Without| yields.is_none_or(|own| without.up_to < own);
        for without in self.without.iter_mut().filter(stays) {
            without.free = without.free.minus(each);
        }
        let fits = |kind: &&mut NodeKind| kind.is_open_to(placement);
        let has_gpus = |kind: &NodeKind| gpus.is_none_or(|need| kind.gpus.room_for(need, 1) > 0);
        let kinds = self.kinds.iter_mut().filter(fits);
        let kind = kinds.max_by_key(|kind| (has_gpus(kind), kind.free.memory));
        if let Some(kind) = kind {
            kind.take((each, gpus), yields);
        }
    }
}

/// What becomes of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shared {
    /// What each location is given, those that are given nothing left out.
    pub shares: Vec<Share>,
    /// What found no place.
    pub waiting: Option<Waiting>,
}

/// Instances that no location takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// How many.
    pub missing: u32,
    /// Why, with every location.
    pub decision: Decision,
}

/// Plans the shares of one app among locations in the order of their names. What no location takes waits. While
/// something has to leave a location, or one is lost, more may be shared out than should run, and never more than
/// `max`.
pub fn plan_shares(now: Timestamp, app: &WantedApp, locations: &[LocationState]) -> Shared {
    let mut shares = app.shares.clone();
    let places = &Places::new(locations, &app.demand);
    let app = &*rebalance::possible(app, places);
    drain::empty(&mut shares, app, places);
    let app = &*rebalance::unless_done(app, &shares);
    let placed: u32 = shares.iter().map(|share| share.count).sum();
    let leaving = constraints::leaving(app, &shares, places);
    // What is elsewhere for what still has to leave, or is lost, is no surplus.
    let lost = lost::of(&shares, &leaving);
    let kept: Vec<u32> = leaving.iter().zip(&lost).map(|(leaving, lost)| leaving + lost).collect();
    let settled = placed - kept.iter().sum::<u32>();
    take_away(&mut shares, app, (&kept, settled.saturating_sub(app.count)), places);
    let mut waiting = None;
    for missing in (1..=app.count.saturating_sub(placed)).rev() {
        if let Err(decision) = add_one_or_make_room(now, app, &mut shares, places) {
            waiting = Some(Waiting { missing, decision });
            break;
        }
    }
    lost::replace(now, app, &mut shares, places);
    refused::move_on(now, app, &mut shares, places);
    rebalance::begin(now, app, &mut shares, places);
    let app = &*rebalance::if_begun(app, &shares, places);
    drain::fill(now, app, &mut shares, places);
    shares.retain(|share| share.count > 0);
    for share in &mut shares {
        share.make_room = share.make_room.min(share.count);
    }
    keep_for_tried(now, app, &mut shares, places);
    share_budgets(app, &mut shares);
    Shared { shares, waiting }
}

/// Finds a location for what is tried beside an app when none of those that have some of it will do: one
/// with a share of nothing, and perhaps a budget.
fn keep_for_tried(now: Timestamp, app: &WantedApp, shares: &mut Vec<Share>, places: &Places<'_>) {
    let Some(tried) = &app.tried else { return };
    let permits = |name: &LocationName| {
        places.at(name).is_some_and(|location| permits(tried, app.gpus.as_ref(), location))
    };
    if shares.iter().any(|share| permits(&share.location)) {
        return;
    }
    let kept = app.shares.iter().find(|share| share.budget > 0 && permits(&share.location));
    if let Some(kept) = kept {
        shares.push(Share { count: 0, ..kept.clone() });
        return;
    }
    let placement = tried.clone();
    let tried = WantedApp { placement, tried: None, shares: Vec::new(), count: 1, ..app.clone() };
    let mut found = Vec::new();
    if add_one(now, &tried, &mut found, places).is_ok() {
        shares.extend(found.into_iter().map(|share| Share { count: 0, ..share }));
    }
}

/// How many of `n_canaries` each place tries, in proportion to what runs there.
pub fn spread_canaries(running: &[u32], n_canaries: u32) -> Vec<u32> {
    let mut spread = vec![0_u32; running.len()];
    for _ in 0..n_canaries {
        // The highest average so far gets the next one; the first among equals.
        let averages = running.iter().zip(&spread).map(|(count, n)| (*count, n + 1)).enumerate();
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

/// Takes instances away one by one, first where not all are healthy, then where users miss it least, then where most
/// run, from unreachable locations last: those cannot be told. How apps keep apart that say so comes before their
/// users. So many of each share as `kept` says are left alone.
fn take_away(
    shares: &mut [Share],
    app: &WantedApp,
    (kept, surplus): (&[u32], u32),
    places: &Places<'_>,
) {
    let reachable = |name: &LocationName| places.at(name).is_some_and(|place| place.reachable);
    let keeps_apart = app.placement.spread_locations.is_some();
    for _ in 0..surplus {
        let losses = rebalance::losses(app, shares, places);
        let each = shares.iter_mut().zip(kept).zip(losses);
        let open = each.filter(|((share, kept), _)| share.count > **kept);
        let most = open.max_by_key(|((share, kept), loss)| {
            let (is_ill, n_here) = (share.count > share.ready, share.count - **kept);
            let crowd = if keeps_apart { n_here } else { 0 };
            (reachable(&share.location), is_ill, crowd, Reverse(*loss), n_here)
        });
        if let Some(((share, _), _)) = most {
            share.count -= 1;
        }
    }
}

/// Adds an instance where it is best, and says which share that is; a decision with every refusal when it is
/// nowhere.
fn add_one(
    now: Timestamp,
    app: &WantedApp,
    shares: &mut Vec<Share>,
    places: &Places<'_>,
) -> Result<usize, Decision> {
    let among = Among::of(app, shares, places);
    let locations = places.all();
    let mut candidates: Vec<(Candidate, &LocationState)> =
        locations.iter().map(|location| (judge(app, location, &among), location)).collect();
    candidates.sort_by(|(a, _), (b, _)| b.score.cmp(&a.score).then_with(|| a.name.cmp(&b.name)));
    let chosen = candidates.first().filter(|(best, _)| best.score.is_some());
    let Some((best, location)) = chosen else {
        let candidates: Vec<_> = candidates.into_iter().map(|(candidate, _)| candidate).collect();
        let why = waiting::summary(app, &candidates);
        return Err(Decision { at: now, chosen: None, why, candidates });
    };
    let why = match locations.len() {
        1 => "the only location".to_owned(),
        n_locations => format!("best of {n_locations} locations: {}", best.why),
    };
    let chosen = Some(best.name.clone());
    let name = &location.name;
    let candidates = candidates.into_iter().map(|(candidate, _)| candidate);
    let decision = Decision { at: now, chosen, why, candidates: worth_keeping(candidates) };
    Ok(give(shares, name, decision))
}

/// The same, and where it is nowhere something that matters less leaves for it.
fn add_one_or_make_room(
    now: Timestamp,
    app: &WantedApp,
    shares: &mut Vec<Share>,
    places: &Places<'_>,
) -> Result<usize, Decision> {
    let added = add_one(now, app, shares, places);
    added.or_else(|refused| room::make_room(now, app, shares, places, refused))
}

/// Gives a location one more instance, and says which share that is.
fn give(shares: &mut Vec<Share>, name: &LocationName, decision: Decision) -> usize {
    if let Some(idx) = shares.iter().position(|share| share.location == *name) {
        shares[idx].count += 1;
        shares[idx].decision = decision;
        return idx;
    }
    shares.push(Share {
        location: name.clone(),
        count: 1,
        ready: 0,
        refused: 0,
        make_room: 0,
        lost: false,
        budget: 0,
        budget_in_force: 0,
        decision,
    });
    shares.len() - 1
}

/// How many locations or nodes a decision names of those that would have done, and of those that would not.
const KEPT_OF_EACH: usize = 8;

/// The best of each kind: with hundreds of locations a decision that named all would be longer than
/// everything else that is kept of an app.
fn worth_keeping(candidates: impl Iterator<Item = Candidate>) -> Vec<Candidate> {
    best_of_each(candidates, |candidate| candidate.score.is_some())
}

/// The same of what has yet to be put in words.
pub(crate) fn best_of_each<T>(
    candidates: impl Iterator<Item = T>,
    would_do: impl Fn(&T) -> bool,
) -> Vec<T> {
    let (mut n_good, mut n_refused) = (0, 0);
    let is_kept = |candidate: &T| {
        let seen = if would_do(candidate) { &mut n_good } else { &mut n_refused };
        *seen += 1;
        *seen <= KEPT_OF_EACH
    };
    candidates.filter(is_kept).collect()
}

/// A kilometre, or a tenth of a millisecond to users, weighs more than any memory, a user within the goal more than any
/// way, an instance of the same app more than all users, and an old report more than any number of instances.
const KM_PENALTY: i64 = 1 << 20;
const SPREAD_PENALTY: i64 = 1 << 46;
const LATE_PENALTY: i64 = 1 << 61;

/// Why a location takes no instance of an app, whatever room it has; `known` is what it said last itself.
fn against(
    app: &WantedApp,
    location: &LocationState,
    among: &Among<'_, '_>,
    known: Option<&constraints::Refusal>,
) -> Option<constraints::Refusal> {
    if let Some(cordon) = &location.cordon {
        return Some((Lack::Cordon, cordon.refusal()));
    }
    if !location.reachable {
        return Some((Lack::Report, "refused: it has not reported lately".to_owned()));
    }
    let against = constraints::forbidden(&app.placement, location)
        .or_else(|| constraints::out_of_reach(&app.placement, location))
        .or_else(|| known.cloned())
        .or_else(|| constraints::crowded(app, location, among));
    against.map(|(lack, why)| (lack, format!("refused: {why}")))
}

/// Judges a location for one more instance of an app, among others and for its users, where these are known.
fn judge(app: &WantedApp, location: &LocationState, among: &Among<'_, '_>) -> Candidate {
    let name = location.name.to_string();
    let refused = |lack, why| Candidate { name: name.clone(), score: None, why, lack: Some(lack) };
    let known = app.refusals.get(&location.name);
    if let Some((lack, why)) = against(app, location, among, known) {
        return refused(lack, why);
    }
    let n_given = among.now(&location.name).saturating_sub(among.before(&location.name));
    // Of what lacks the scarcest is told.
    if let Some(need) = app.gpus.as_ref().filter(|_| !location.has_gpus_for(app, n_given + 1)) {
        let lack = location.gpu_lack(&app.placement, need, n_given);
        return refused(Lack::Gpu, format!("refused: {lack}"));
    }
    let (mut free, largest) = constraints::free_for(&app.placement, location);
    for _ in 0..n_given {
        free = free.minus(app.each);
    }
    if let (Some(lack), Some(why)) = (free.lack_for(app.each), free.lacks_for(app.each)) {
        return refused(lack, format!("refused: {why}"));
    }
    if let (Some(lack), Some(why)) = (largest.lack_for(app.each), largest.lacks_for(app.each)) {
        return refused(lack, format!("refused: {why} on any one node"));
    }
    let (score, why) = score(app, location, free.minus(app.each), among);
    Candidate { name, score: Some(score), why, lack: None }
}

/// How many instances a location has by these shares.
pub fn count_at(shares: &[Share], name: &LocationName) -> u32 {
    shares.iter().filter(|share| share.location == *name).map(|share| share.count).sum()
}

/// How good a location is for one more instance, that leaves so much free there.
fn score(
    app: &WantedApp,
    location: &LocationState,
    left: Capacity,
    among: &Among<'_, '_>,
) -> (i64, String) {
    let n_here = among.now(&location.name);
    // More memory than this makes no difference beside a kilometre.
    let free_mib = i64::try_from(left.memory.0 >> 20).unwrap_or(i64::MAX).min(KM_PENALTY - 1);
    let mut score = free_mib;
    let mut why = format!("{} of memory and {} of disk stay free", left.memory, left.disk);
    if let Some(need) = &app.gpus {
        why.push_str(&format!(", it has {need} free"));
    }
    if let Some(near) = &app.placement.near {
        let km = constraints::km(&app.placement, location, among.places);
        // What is somewhere unknown comes after the antipodes.
        score -= km.map_or(1 << 15, i64::from) * KM_PENALTY;
        why.push_str(&match km {
            Some(km) => format!(", {km} km from {near}"),
            None => format!(", nobody knows how far from {near}"),
        });
    }
    if let Some(users) = &among.users {
        let (worth, words) = users.judge(&location.name);
        score += worth;
        why.push_str(&words);
    }
    if app.placement.spread_locations.is_some() {
        score -= i64::from(n_here) * SPREAD_PENALTY;
        why.push_str(&format!(", {n_here} of this app there"));
    }
    if location.late {
        score -= LATE_PENALTY;
        why.push_str(", by a report that is old");
    }
    (score, why)
}

/// What locations may still be going by that have no share any more.
fn in_force_elsewhere(app: &WantedApp, shares: &[Share]) -> u32 {
    let is_gone = |old: &&Share| shares.iter().all(|share| share.location != old.location);
    app.shares.iter().filter(is_gone).map(|old| old.budget_in_force).sum()
}

/// Gives every location its count and shares what `max` leaves above that, without ever handing out
/// more than `max` in all, budgets that may still be in force elsewhere included.
fn share_budgets(app: &WantedApp, shares: &mut [Share]) {
    let in_force_elsewhere = in_force_elsewhere(app, shares);
    let counts: u32 = shares.iter().map(|share| share.count).sum();
    let mut spare = app.max.saturating_sub(in_force_elsewhere).saturating_sub(counts);
    // One that is lost has enough in what it may still be going by.
    let mut open =
        u32::try_from(shares.iter().filter(|share| !share.lost).count()).unwrap_or(u32::MAX);
    // What is tried beside an app needs all of it, and not for long. How many locations there are does not count: who
    // has just begun to lead has not heard of them all.
    if app.pinned.is_none() && app.tried.is_none() {
        spare -= kept_back(shares, spare, open);
    }
    for share in shares.iter_mut() {
        if share.lost {
            share.budget = share.count;
            continue;
        }
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

/// What is not handed out of what `max` leaves, so that there is something for others when a location is lost: as
/// much as the largest share, but at most half, and never what a location needs to start one beside what it has.
/// Without it an app in one place would have its whole `max` there, and nothing could run in the place of it.
fn kept_back(shares: &[Share], spare: u32, n_open: u32) -> u32 {
    let largest = shares.iter().map(|share| share.count).max().unwrap_or(0);
    largest.min(spare / 2).min(spare.saturating_sub(n_open))
}

#[cfg(test)]
mod tests;
