//! What a location was given and found no node for goes on to another at once.

use longshore_types::{LocationName, Timestamp};

use super::{Places, Share, WantedApp, add_one_or_make_room};

/// Gives other locations what some refused, as far as they take it; but what was only to be nearer to users need not
/// be anywhere, since the one that it was for goes on. The rest stays where it was given: nobody
/// else would have it, and that location starts it as soon as it can.
pub(super) fn move_on(
    now: Timestamp,
    app: &WantedApp,
    shares: &mut Vec<Share>,
    places: &Places<'_>,
) {
    if app.pinned.is_some() {
        return;
    }
    for idx in 0..shares.len() {
        for _ in 0..shares[idx].refused.min(shares[idx].count) {
            // It runs nowhere, so there is nothing to wait for before it leaves.
            let before = (shares[idx].count, shares[idx].make_room);
            shares[idx].count -= 1;
            shares[idx].make_room = before.1.saturating_sub(1);
            if is_moving_there(app, &shares[idx].location) {
                continue;
            }
            if add_one_or_make_room(now, app, shares, places).is_err() {
                (shares[idx].count, shares[idx].make_room) = before;
                return;
            }
        }
    }
}

fn is_moving_there(app: &WantedApp, location: &LocationName) -> bool {
    app.demand.moving.as_ref().is_some_and(|moving| moving.to == *location)
}
