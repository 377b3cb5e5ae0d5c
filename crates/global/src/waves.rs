//! What each location of an app has of the release that should run, for `longshore_planning::waves`.

use std::collections::BTreeSet;

use longshore_api::links::InstanceStatus;
use longshore_planning::waves::{Part, next_wave};
use longshore_types::{LocationName, ReleaseNumber};

use crate::catalog::{AppKey, Catalog, Stored};
use crate::records::{AllotmentRecord, AppRecord, RolloutStage};
use crate::reports::{ByLocation, Received};
use crate::scheduler::Held;
use crate::views;

/// What each location has of the present release of an app, or of its canaries while it is only tried.
pub fn parts(reports: &ByLocation, key: &AppKey, record: &AppRecord, held: &Held<'_>) -> Vec<Part> {
    held.iter().map(|(location, stored)| part(reports, key, record, (location, stored))).collect()
}

fn part(
    reports: &ByLocation,
    key: &AppKey,
    app: &AppRecord,
    (location, stored): (&LocationName, &Stored<AllotmentRecord>),
) -> Part {
    let record = &stored.record;
    let canaries = record.canary.filter(|canary| canary.release == app.release);
    let is_tried = app.stage == RolloutStage::Canary;
    let count = if is_tried { canaries.map_or(0, |canary| canary.count) } else { record.count };
    let told = is_tried || count == 0 || canaries.is_some() || record.release == app.release;
    let received = reports.get(location);
    let has_heard =
        received.is_some_and(|received| received.report.acknowledged.0 >= stored.revision.0);
    let statuses = || received.into_iter().flat_map(|received| received.of_app(key));
    let is_it = |status: &InstanceStatus| status.release == app.release && !status.is_command;
    let ready = statuses().filter(|status| is_it(status) && views::is_ready(status)).count();
    let enough = told && has_heard && ready >= count as usize;
    // Beside canaries the others are meant to stay.
    let left = |status: &InstanceStatus| !is_tried && (!is_it(status) || status.draining);
    Part {
        location: location.clone(),
        count,
        reachable: received.is_some_and(Received::reachable),
        told,
        served: enough && !statuses().any(|status| left(status) && !status.draining),
        complete: enough && !statuses().any(left),
    }
}

/// Which release each location of an app is to run.
#[derive(Debug)]
pub enum Releases {
    /// All the same.
    Same(ReleaseNumber),
    /// Those that were told of the new one that, others what they have, or the last complete one.
    Waves {
        /// Who was told, or is now.
        told: BTreeSet<LocationName>,
        /// The new one.
        new: ReleaseNumber,
        /// The last complete one.
        good: ReleaseNumber,
    },
}

impl Releases {
    /// Decides; only where the new one may be is it brought.
    pub fn of(
        catalog: &Catalog,
        reports: &ByLocation,
        (key, record, held): (&AppKey, &AppRecord, &Held<'_>),
        may_be: impl Fn(&LocationName) -> bool,
    ) -> Self {
        match good_until_served(catalog, key, record) {
            None => Self::Same(record.main()),
            Some(good) => {
                let mut parts = parts(reports, key, record, held);
                parts.retain(|part| may_be(&part.location));
                let told = parts.iter().filter(|part| part.told).map(|part| part.location.clone());
                let told = told.chain(next_wave(&parts)).collect();
                Self::Waves { told, new: record.release, good }
            }
        }
    }

    /// True when a location is to run another than what it has.
    pub fn move_any(&self, held: &Held<'_>) -> bool {
        held.iter().any(|(location, stored)| {
            let record = &stored.record;
            record.count > 0 && self.at(location, Some(record)) != record.release
        })
    }

    /// That of a location, given what it has now.
    pub fn at(&self, location: &LocationName, before: Option<&AllotmentRecord>) -> ReleaseNumber {
        match self {
            Self::Same(release) => *release,
            Self::Waves { told, new, .. } if told.contains(location) => *new,
            // It may be nowhere where it was, so where it comes to is the first wave.
            Self::Waves { told, new, .. } if told.is_empty() && before.is_none() => *new,
            Self::Waves { good, .. } => before.map_or(*good, |before| before.release),
        }
    }
}

/// The release that others keep running while a new one comes in waves. An earlier one, back again, comes to
/// all at the same time: whoever takes one back is in a hurry, and it ran before.
fn good_until_served(catalog: &Catalog, key: &AppKey, record: &AppRecord) -> Option<ReleaseNumber> {
    let good = record.good.filter(|good| *good < record.release)?;
    let waves = catalog.current_release(key)?.manifest.rollout.waves;
    (waves && record.stage == RolloutStage::Whole).then_some(good)
}
