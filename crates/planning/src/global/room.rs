//! Where others leave for what has room nowhere.
//!
//! The location is that where the least has to leave: what has the lowest priority, then the fewest, as far as a
//! summary tells. It is told for how many instances it may make room, and chooses who leaves. What left stays
//! allotted there and is refused, so it goes elsewhere as anything that is refused, and perhaps makes room there
//! in its turn; where it finds none it waits.
//!
//! Each that leaves stands [`Priority::GAP`] below what it leaves for, so this comes to an end. Nobody leaves as long
//! as a location has the room, or will have it once what leaves there anyway has left; nor for what comes beside
//! the count of an app, nor for what moves without having to. A location that found nobody who could leave is not
//! asked again until it has more.
//!
//! Rejected: to let each location make room as it thinks best, which ends work in one place while another
//! stands empty; to take the victim's allotment away, which would make the global scheduler choose victims that
//! it does not know.

use std::cmp::Reverse;

use longshore_types::{Candidate, Capacity, Decision, Priority, Timestamp};

use super::{Among, LocationState, Places, Share, WantedApp, against, give, score, worth_keeping};

/// What it costs to make room at a location: the less the better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Cost {
    /// The highest priority of what has to leave; of none where the location knows better what leaves anyway.
    up_to: Option<Priority>,
    /// About how many have to.
    victims: u64,
}

/// What a location has for something that fits nowhere.
enum Offer {
    /// Nothing, whoever leaves.
    Nothing,
    /// Room, once what leaves there anyway has left.
    Soon,
    /// Room, once others have left for it.
    For(Cost),
}

/// Gives one more instance that fits nowhere, for the reasons in `refused`, to the location where the least has to
/// leave for it, and says which share that is; `refused`, when it is to wait.
pub(super) fn make_room(
    now: Timestamp,
    app: &WantedApp,
    shares: &mut Vec<Share>,
    places: &Places<'_>,
    mut refused: Decision,
) -> Result<usize, Decision> {
    let Some(limit) = app.priority.displaces() else { return Err(refused) };
    let mut offers = Vec::new();
    let among = Among::without_users(app, shares, places);
    for location in places.all() {
        match offer(app, location, &among, limit) {
            Offer::Nothing => {}
            Offer::Soon => {
                let name = &location.name;
                refused.why.push_str(&format!("; {name} has, once what leaves there has left"));
                return Err(refused);
            }
            Offer::For(cost) => offers.push((cost, location)),
        }
    }
    let best = offers.into_iter().min_by_key(|(cost, location)| {
        let (score, _) = score(app, location, Capacity::default(), &among);
        (*cost, Reverse(score), &location.name)
    });
    let Some((cost, location)) = best else { return Err(refused) };
    let whom = match cost {
        Cost { up_to: None, .. } => "what leaves there anyway".to_owned(),
        Cost { up_to: Some(up_to), victims } => {
            format!("about {victims} of priority {up_to} or lower")
        }
    };
    let name = location.name.to_string();
    let why = format!("once {whom} has left");
    let chosen = Candidate { name: name.clone(), score: None, why, lack: None };
    let mut others = refused.candidates;
    others.retain(|other| other.name != name);
    let decision = Decision {
        at: now,
        chosen: Some(name),
        why: format!("{}; {whom} makes room for it (priority {})", refused.why, app.priority),
        candidates: worth_keeping([chosen].into_iter().chain(others)),
    };
    let idx = give(shares, &location.name, decision);
    shares[idx].make_room += 1;
    Ok(idx)
}

fn offer(
    app: &WantedApp,
    location: &LocationState,
    among: &Among<'_, '_>,
    limit: Priority,
) -> Offer {
    let refusal = app.refusals.get(&location.name);
    let is_asked = refusal.is_none() || app.may_make_room.contains(&location.name);
    if !is_asked || against(app, location, among, None).is_some() {
        return Offer::Nothing;
    }
    let (before, now) = (among.before(&location.name), among.now(&location.name));
    // What it was given before counts as taken, also what it had no room for.
    let (more, fewer) = (now.saturating_sub(before), before.saturating_sub(now));
    let fits = |up_to| {
        let (free, largest) = location.freed_for(&app.placement, up_to);
        let free = free.plus(app.each.times(fewer)).minus(app.each.times(more));
        // The nodes are known to have what was given before, and not what they refused.
        let n_more = (more + 1).saturating_sub(fewer);
        free.holds(app.each)
            && largest.holds(app.each)
            && location.would_have_gpus_for(app, up_to, n_more)
    };
    if fits(None) {
        // One that was asked already and found no node sees more than what it reports.
        let as_it_leaves = Offer::For(Cost { up_to: None, victims: 0 });
        return if refusal.is_some() { as_it_leaves } else { Offer::Soon };
    }
    let of_kinds = location.open_to(&app.placement).flat_map(|kind| &kind.freed);
    let of_kinds = of_kinds.filter_map(|freed| freed.up_to);
    let of_apps = location.without.iter().map(|without| without.up_to);
    let mut levels: Vec<_> = of_kinds.chain(of_apps).filter(|level| *level <= limit).collect();
    levels.sort_unstable();
    let found = levels.into_iter().map(Some).find(|level| fits(*level));
    found.map_or(Offer::Nothing, |up_to| {
        Offer::For(Cost { up_to, victims: estimate(app, location, up_to) })
    })
}

/// About how many of at most this priority have to leave a location, by what one of them has on average.
fn estimate(app: &WantedApp, location: &LocationState, up_to: Option<Priority>) -> u64 {
    let (before, largest) = location.freed_for(&app.placement, None);
    let (after, _) = location.freed_for(&app.placement, up_to);
    let all = location.open_to(&app.placement).flat_map(|kind| &kind.freed);
    let n_all: u64 = all.filter(|one| one.up_to <= up_to).map(|one| u64::from(one.instances)).sum();
    let amounts = |of: Capacity| [u64::from(of.cpu.0), of.memory.0, of.disk.0];
    let (missing, gained) = (app.each.minus(before.least(largest)), after.minus(before));
    let each = amounts(missing).into_iter().zip(amounts(gained));
    let victims = each.map(|(missing, gained)| missing.div_ceil((gained / n_all.max(1)).max(1)));
    victims.max().unwrap_or(0).clamp(1, n_all.max(1))
}
