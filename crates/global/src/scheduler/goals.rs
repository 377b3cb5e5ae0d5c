//! How near apps are to their users, beside how near they say they should be.

use std::collections::BTreeMap;

use longshore_api::v1::LatencyView;
use longshore_planning::global::reached;
use longshore_types::{LocationName, Placement};

use crate::catalog::{AppKey, Catalog};
use crate::reports::{ByLocation, demand_of, ways};
use crate::views;

/// How near an app is to its users by the instances that take requests; nothing of one that says nothing of that.
pub fn latency(catalog: &Catalog, reports: &ByLocation, key: &AppKey) -> Option<LatencyView> {
    let placement = &catalog.current_release(key)?.manifest.placement;
    placement.goal()?;
    let mut ready: BTreeMap<&LocationName, u32> = BTreeMap::new();
    for (name, received) in reports.iter() {
        let there = received.of_app(key).filter(|one| !one.is_command && views::is_ready(one));
        ready.insert(name, u32::try_from(there.count()).unwrap_or(u32::MAX));
    }
    latency_with(reports, (key, placement), ready.into_iter())
}

/// The same with so many instances at each of these locations.
pub fn latency_with<'a>(
    reports: &ByLocation,
    (key, placement): (&AppKey, &Placement),
    instances: impl Iterator<Item = (&'a LocationName, u32)>,
) -> Option<LatencyView> {
    let goal = placement.goal()?;
    let reached = reached(placement, &demand_of(reports, key), instances, ways(reports));
    let reached = reached.map(|permille| permille / 10);
    Some(LatencyView { within: goal.within, users: goal.users, reached })
}
