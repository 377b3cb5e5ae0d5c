//! What a location has that was not heard of for too long runs elsewhere meanwhile.
//!
//! Nobody knows what the location does, so what it was given stays given and counts: others get no more than what
//! `max` leaves beside it. When it is heard of again there is more than should run, and what is too much is taken
//! away, first what is not healthy.

use longshore_types::Timestamp;

use super::{Places, Share, WantedApp, add_one_or_make_room, in_force_elsewhere};

/// How many of each share are lost, those left out that have to leave anyway.
pub(super) fn of(shares: &[Share], leaving: &[u32]) -> Vec<u32> {
    let lost =
        |(share, leaving): (&Share, &u32)| if share.lost { share.count - leaving } else { 0 };
    shares.iter().zip(leaving).map(lost).collect()
}

/// Gives other locations as many as are missing without those that are lost, as far as they take them.
pub(super) fn replace(
    now: Timestamp,
    app: &WantedApp,
    shares: &mut Vec<Share>,
    places: &Places<'_>,
) {
    if app.pinned.is_some() || !shares.iter().any(|share| share.lost) {
        return;
    }
    let heard: u32 = shares.iter().filter(|share| !share.lost).map(|share| share.count).sum();
    for _ in 0..app.count.saturating_sub(heard).min(app.max.saturating_sub(held(app, shares))) {
        let Ok(idx) = add_one_or_make_room(now, app, shares, places) else { return };
        shares[idx].decision.why.push_str("; for a location that is not heard of");
    }
}

/// The most that may run by what is given: where nobody answers, all that the location may still be going by.
fn held(app: &WantedApp, shares: &[Share]) -> u32 {
    let of = |share: &Share| {
        if share.lost { share.count.max(share.budget_in_force) } else { share.count }
    };
    shares.iter().map(of).sum::<u32>() + in_force_elsewhere(app, shares)
}
