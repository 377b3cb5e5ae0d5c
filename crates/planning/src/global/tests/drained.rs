//! Locations that are cordoned and drained.

use super::*;

pub(super) fn cordon(drains: bool) -> Option<Cordon> {
    Some(Cordon { since: Timestamp(7000), by: None, drains, removed: false })
}

pub(super) fn count_at(shares: &[Share], name: &str) -> u32 {
    shares.iter().filter(|share| share.location.as_str() == name).map(|share| share.count).sum()
}

/// What becomes of shares until the next plan: budgets are acknowledged, and what may run is healthy.
pub(super) fn carried_out(shares: Vec<Share>) -> Vec<Share> {
    let carry = |share: Share| Share {
        budget_in_force: share.budget,
        ready: share.count.min(share.budget),
        ..share
    };
    shares.into_iter().map(carry).collect()
}

#[test]
fn a_cordoned_location_keeps_what_it_has_and_gets_nothing_new() {
    let mut locations = [location(1, true, 9000), location(2, true, 1000)];
    let first = plan(5, &app(1, 2, vec![]), &locations);
    assert_eq!(count_at(&first, "loc1"), 1);
    locations[0].cordon = cordon(false);
    let second = plan(6, &app(3, 6, first.clone()), &locations);
    assert_eq!((count_at(&second, "loc1"), count_at(&second, "loc2")), (1, 2));
    let why = "refused: cordoned by an operator since 1970-01-01T00:00:07Z";
    let told = &second[1].decision.candidates;
    assert!(told.iter().any(|one| one.name == "loc1" && one.why == why), "{told:?}");
    // Where nothing else is reachable, nothing new is anywhere.
    locations[1].reachable = false;
    let third = plan(6, &app(3, 6, first), &locations);
    assert_eq!(count_at(&third, "loc1") + count_at(&third, "loc2"), 1);
}

#[test]
fn a_drained_location_loses_what_is_healthy_elsewhere() {
    let mut locations = [location(1, true, 9000), location(2, true, 1000)];
    let all = plan(5, &app(2, 4, vec![]), &locations);
    locations[0].cordon = cordon(true);
    let next = |shares: &[Share]| plan(6, &app(2, 4, shares.to_vec()), &locations);
    let started = next(&carried_out(all.clone()));
    assert_eq!(counts(&started), [("loc1".to_owned(), 2, 2), ("loc2".to_owned(), 2, 1)]);
    let told = staying(&app(2, 4, vec![]), &started, &locations).unwrap();
    assert_eq!(told, (true, "waits until 2 elsewhere are healthy".to_owned()));
    // What was kept back is for one of them; the other waits until what the first place gave up is acknowledged.
    let budgeted = next(&carried_out(started));
    assert_eq!(counts(&budgeted), [("loc1".to_owned(), 1, 2), ("loc2".to_owned(), 2, 2)]);
    let mut half = carried_out(budgeted.clone());
    half[1].ready = 1;
    assert_eq!(count_at(&next(&half), "loc1"), 1);
    let ended = next(&carried_out(budgeted));
    assert_eq!((count_at(&ended, "loc1"), count_at(&ended, "loc2")), (0, 2));
    assert_eq!(staying(&app(2, 4, vec![]), &ended, &locations), None);

    let moves = preview_drain(Timestamp(6), &locations[0].name, &[app(2, 4, all)], &locations);
    assert_eq!(moves[0].to, [(locations[1].name.clone(), 2)]);
    assert_eq!((moves[0].count, moves[0].stays.clone()), (2, None));
}

#[test]
fn what_other_locations_cannot_take_stays_and_is_told() {
    for (max, free, stays, reason) in [
        (4, 150, 1, "no other location takes it (loc2: refused: 100 MiB of memory needed"),
        (4, 50, 2, "no other location takes it (loc2"),
        (2, 1000, 2, "no other can be started beside it: max = 2"),
    ] {
        let mut locations = [location(1, true, 9000), location(2, true, free)];
        let all = carried_out(plan(5, &app(2, max, vec![]), &locations));
        locations[0].cordon = cordon(true);
        let preview = preview_drain(
            Timestamp(6),
            &locations[0].name,
            &[app(2, max, all.clone())],
            &locations,
        );
        let (n_staying, why) = preview[0].stays.clone().unwrap();
        assert!(n_staying == stays && why.starts_with(reason), "{n_staying} {why}");
        let after = plan(6, &app(2, max, all), &locations);
        assert_eq!(count_at(&after, "loc1"), 2, "nothing is healthy elsewhere yet");
    }
    let mut locations = [location(1, true, 9000), location(2, true, 1000)];
    let all = carried_out(plan(5, &app(1, 2, vec![]), &locations));
    locations[0].cordon = cordon(true);
    let pinned = WantedApp { pinned: Some(Pinned::Attached), ..app(1, 2, all) };
    let after = plan(6, &pinned, &locations);
    assert_eq!((count_at(&after, "loc1"), count_at(&after, "loc2")), (1, 0));
    let told = staying(&pinned, &after, &locations).unwrap();
    assert_eq!(told, (true, Pinned::Attached.why().to_owned()));

    let mut alone = [location(1, true, 9000)];
    let all = carried_out(plan(5, &app(2, 4, vec![]), &alone));
    alone[0].cordon = cordon(true);
    let after = plan(6, &app(2, 4, all), &alone);
    let told = staying(&app(2, 4, vec![]), &after, &alone).unwrap();
    assert_eq!((count_at(&after, "loc1"), told.1.as_str()), (2, "there is no other location"));
}

proptest! {
    /// Safety: whatever is drained when, budgets in force stay within `max`, nothing new goes to a closed
    /// location, and what is taken from a drained one is healthy elsewhere. Progress: with room, everything
    /// leaves.
    #[test]
    fn drains_of_locations_are_gentle_and_get_there(
        rooms in prop::collection::vec(0..12_u64, 2..5),
        wishes in prop::collection::vec(
            (any::<prop::sample::Index>(), 0..3_u8, 1..6_u32, 0..6_u32), 1..6),
    ) {
        let place = |(idx, room): (usize, &u64)| location(idx, true, room * 100);
        let mut locations: Vec<_> = rooms.iter().enumerate().map(place).collect();
        let mut shares: Vec<Share> = Vec::new();
        let mut greatest = 0;
        for (which, wish, count, extra) in wishes {
            let idx = which.index(rooms.len());
            locations[idx].cordon = match wish {
                0 => None,
                1 => cordon(false),
                _ => cordon(true),
            };
            greatest = greatest.max(count + extra);
            for round in 0..80 {
                let free = |state: &LocationState, shares: &[Share]| {
                    let room: u64 = state.name.as_str()[3..].parse::<usize>().map(|idx| rooms[idx]).unwrap();
                    let given = u64::from(count_at(shares, state.name.as_str()));
                    capacity(100 * room.saturating_sub(given))
                };
                for state in &mut locations {
                    let Capacity { memory, disk, .. } = free(state, &shares);
                    (state.free.memory, state.free.disk) = (memory, disk);
                }
                let wanted = app(count, count + extra, shares.clone());
                let planned = plan(1, &wanted, &locations);
                let in_force: u32 = planned.iter().map(|share| share.budget_in_force).sum();
                let gone: u32 = shares.iter()
                    .filter(|old| planned.iter().all(|new| new.location != old.location))
                    .map(|old| old.budget_in_force).sum();
                prop_assert!(in_force + gone <= greatest, "{planned:?}");
                let ready: u32 = planned.iter()
                    .filter(|share| locations.iter().all(|state| {
                        state.name != share.location || state.cordon.as_ref().is_none_or(|it| !it.drains)
                    }))
                    .map(|share| share.ready.min(share.count)).sum();
                for state in &locations {
                    let name = state.name.as_str();
                    let (before, after) = (count_at(&shares, name), count_at(&planned, name));
                    prop_assert!(state.cordon.is_none() || after <= before);
                }
                let held =
                    |shares: &[Share]| drain::Standing::new(&wanted, shares, &Places::new(&locations, &wanted.demand)).held;
                let (here, was_here) = (held(&planned), held(&shares));
                prop_assert!(here == was_here || here + ready >= count, "{planned:?}");
                // Some plans come before anything was carried out.
                shares = if round % 2 == 0 { planned } else { carried_out(planned) };
            }
            let open = locations.iter().zip(&rooms).filter(|(state, _)| state.cordon.is_none());
            let room: u64 = open.map(|(_, room)| *room).sum();
            if extra > 0 && room >= u64::from(count) {
                let standing =
                    drain::Standing::new(&app(count, count + extra, vec![]), &shares, &Places::new(&locations, &Demand::default()));
                prop_assert_eq!(standing.held, 0);
                prop_assert_eq!(shares.iter().map(|share| share.count).sum::<u32>(), count);
            }
        }
    }
}
