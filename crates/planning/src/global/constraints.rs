//! Where the instances of an app may be, by what its manifest says.

use longshore_types::jurisdiction::is_within;
use longshore_types::{
    Capacity, GpuNeed, Lack, LocationName, Near, Placement, Reached, Spread, Traits, unreached,
};
use serde::{Deserialize, Serialize};

use super::{Among, Freed, GpuSummary, LocationState, Places, Share, WantedApp};

/// Why a place does not take an instance, and what it lacks.
pub(super) type Refusal = (Lack, String);

/// The nodes of a location that are alike, as its reports tell of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeKind {
    /// What is said of them, their location's part included.
    pub traits: Traits,
    /// What their last tries to reach addresses came to; when they were is of no account.
    #[serde(default)]
    pub reached: Vec<Reached>,
    /// Whether they take something new: they report, and nobody cordoned them.
    pub open: bool,
    /// How many.
    pub n_nodes: u32,
    /// What is free on them together.
    pub free: Capacity,
    /// The most that is free on one of them, each resource by itself.
    pub largest: Capacity,
    /// What is free of their GPUs.
    #[serde(default, skip_serializing_if = "GpuSummary::is_empty")]
    pub gpus: GpuSummary,
    /// What would be free without what leaves, and without what may be made to; the lowest priority first.
    #[serde(default)]
    pub freed: Vec<Freed>,
}

/// Whether an app that says this, and needs such GPUs, may have instances at a location at all.
pub fn permits(placement: &Placement, gpus: Option<&GpuNeed>, location: &LocationState) -> bool {
    forbidden(placement, location).is_none() && !location.has_no_such(placement, gpus)
}

/// What an app says against a location.
pub(super) fn forbidden(placement: &Placement, location: &LocationState) -> Option<Refusal> {
    let Placement { allow, deny, jurisdiction, labels, .. } = placement;
    let LocationState { name, traits, .. } = location;
    if let Some(found) = deny.iter().find(|one| one.has(name, &traits.labels)) {
        return Some((Lack::Deny, format!("placement.deny has {found}")));
    }
    if !allow.is_empty() && !allow.iter().any(|one| one.has(name, &traits.labels)) {
        let allow = listed(allow);
        return Some((Lack::Allow, format!("placement.allow has only {allow}")));
    }
    if !is_within(jurisdiction, traits.country) {
        let named = listed(jurisdiction);
        let why = match traits.country {
            None => format!("nobody said in which country it is, and it has to be in {named}"),
            Some(country) => format!("it is in {country}, and placement.jurisdiction is {named}"),
        };
        return Some((Lack::Jurisdiction, why));
    }
    // What its nodes are is known once each of them was heard.
    if location.unheard || labels.is_empty() && jurisdiction.is_empty() {
        return None;
    }
    let fits = |kind: &NodeKind| node_refusal(placement, &kind.traits).is_none();
    if location.kinds.iter().any(fits) {
        return None;
    }
    let (lack, why) = match location.kinds.first() {
        Some(kind) if location.kinds.len() == 1 => node_refusal(placement, &kind.traits)?,
        _ => (Lack::Label, format!("none of its nodes has all of {}", listed(labels))),
    };
    Some((lack, why))
}

/// What an app says against a node with these traits, those of its location included.
pub(crate) fn node_refusal(placement: &Placement, traits: &Traits) -> Option<Refusal> {
    let Placement { jurisdiction, labels, .. } = placement;
    if !is_within(jurisdiction, traits.country) {
        let place = traits.country.map_or("an unknown country".to_owned(), |it| it.to_string());
        let named = listed(jurisdiction);
        let why = format!("it is in {place}, and placement.jurisdiction is {named}");
        return Some((Lack::Jurisdiction, why));
    }
    let missing = labels.iter().find(|label| !traits.labels.contains(label))?;
    let others: Vec<_> = traits.labels.iter().filter(|own| own.key() == missing.key()).collect();
    let why = match others.is_empty() {
        true => format!("no label {missing}"),
        false => format!("no label {missing}, but {}", listed(others)),
    };
    Some((Lack::Label, why))
}

/// What a location does not reach that has to answer where something starts: no node of it that would do for the
/// rest reaches all.
pub(super) fn out_of_reach(placement: &Placement, location: &LocationState) -> Option<Refusal> {
    if placement.reach.is_empty() {
        return None;
    }
    let open = location.kinds.iter().filter(|kind| kind.open);
    let open = open.filter(|kind| node_refusal(placement, &kind.traits).is_none());
    let mut why: Vec<_> = open.map(|kind| unreached(&placement.reach, &kind.reached)).collect();
    // With no open node it is refused for that.
    let first = why.pop()?;
    let all = why.into_iter().try_fold(first?, |_, next| next)?;
    Some((Lack::Reach, all))
}

/// What is free at a location for instances of an app: on all nodes together, and the most on one.
pub(super) fn free_for(placement: &Placement, location: &LocationState) -> (Capacity, Capacity) {
    let kinds = location.open_to(placement);
    let (together, largest) = kinds.fold(Default::default(), |(sum, most), kind| {
        (Capacity::plus(sum, kind.free), kind.largest.most(most))
    });
    (location.free.least(together), largest)
}

/// How far a location is from where an app would be best, when both are known.
pub(super) fn km(
    placement: &Placement,
    location: &LocationState,
    places: &Places<'_>,
) -> Option<u32> {
    let of = |name: &LocationName| places.at(name)?.coordinates;
    let there = match placement.near.as_ref()? {
        Near::Coordinates(place) => Some(*place),
        Near::Location(name) => of(name),
    };
    Some(there?.km_to(location.coordinates?))
}

/// How many of each share have to leave, in the order of the shares: all where an operator or the app wants
/// none, what is too many in one place, and what moves to be nearer to users.
pub(super) fn leaving(app: &WantedApp, shares: &[Share], places: &Places<'_>) -> Vec<u32> {
    // Those are of what is tried beside the app, as long as something is.
    let gpus = app.gpus.as_ref().filter(|_| app.tried.is_none());
    let is_closed = |share: &Share| {
        places.at(&share.location).is_some_and(|location| {
            location.cordon.as_ref().is_some_and(|cordon| cordon.drains)
                || !permits(&app.placement, gpus, location)
        })
    };
    let mut leaving: Vec<u32> =
        shares.iter().map(|share| if is_closed(share) { share.count } else { 0 }).collect();
    let at_most = app.placement.spread_locations.and_then(Spread::most).unwrap_or(u32::MAX);
    let min_locations = app.min_locations();
    // The largest first: each may keep what leaves one for each of the others that there have to be.
    let mut order: Vec<usize> =
        (0..shares.len()).filter(|idx| shares[*idx].count > leaving[*idx]).collect();
    order.sort_by_key(|idx| (std::cmp::Reverse(shares[*idx].count), *idx));
    let (mut n_kept, mut n_places) = (0, 0);
    for idx in order {
        n_places += 1;
        let n_others = min_locations.saturating_sub(n_places);
        let for_places = match min_locations {
            0 | 1 => u32::MAX,
            _ => app.count.saturating_sub(n_kept + n_others).max(1),
        };
        let kept = shares[idx].count.min(at_most).min(for_places);
        n_kept += kept;
        leaving[idx] = shares[idx].count - kept;
    }
    if let Some(moving) = &app.demand.moving
        && let Some(idx) = shares.iter().position(|share| share.location == moving.from)
    {
        leaving[idx] = (leaving[idx] + 1).min(shares[idx].count);
    }
    leaving
}

/// Why one more instance of an app would be too many at a location.
pub(super) fn crowded(
    app: &WantedApp,
    location: &LocationState,
    among: &Among<'_, '_>,
) -> Option<Refusal> {
    let n_here = among.now(&location.name);
    if let Some(most) = app.placement.spread_locations.and_then(Spread::most)
        && n_here >= most
    {
        let why = format!("it has {n_here} of this app, and placement.spread_locations = {most}");
        return Some((Lack::Spread, why));
    }
    (among.only_elsewhere && n_here > 0).then(|| {
        let least = app.min_locations();
        let why = format!("it has {n_here} of this app, which has to be at {least} locations");
        (Lack::Spread, why)
    })
}

/// Whether all that are still to come of an app have to be where it has none, so as to be at as many locations as it
/// says; `leaving` tells how many of each share leave.
pub(super) fn only_elsewhere(
    app: &WantedApp,
    shares: &[Share],
    leaving: impl FnOnce() -> Vec<u32>,
) -> bool {
    let least = app.min_locations();
    if least < 2 {
        return false;
    }
    let staying = shares.iter().zip(leaving()).map(|(share, gone)| share.count - gone);
    let (n_placed, n_places) = staying
        .filter(|count| *count > 0)
        .fold((0, 0), |(sum, places), count| (sum + count, places + 1_u32));
    let n_open = app.count.saturating_sub(n_placed);
    least.saturating_sub(n_places) >= n_open.max(1)
}

/// Several things in a row.
pub(super) fn listed<T: ToString>(all: impl IntoIterator<Item = T>) -> String {
    all.into_iter().map(|one| one.to_string()).collect::<Vec<_>>().join(", ")
}
