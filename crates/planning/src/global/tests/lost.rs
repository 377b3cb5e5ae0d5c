use super::*;

/// What was planned, as the locations took it over.
fn heard(shares: Vec<Share>) -> Vec<Share> {
    let over = |share: Share| Share {
        ready: share.count,
        budget_in_force: if share.lost { share.budget_in_force } else { share.budget },
        ..share
    };
    shares.into_iter().map(over).collect()
}

fn lose(shares: &mut [Share], locations: &mut [LocationState], name: &str, lost: bool) {
    for share in shares.iter_mut().filter(|share| share.location.as_str() == name) {
        share.lost = lost;
    }
    for location in locations.iter_mut().filter(|location| location.name.as_str() == name) {
        location.reachable = !lost;
    }
}

fn n_at(shares: &[Share], name: &str) -> u32 {
    let at = shares.iter().filter(|share| share.location.as_str() == name);
    at.map(|share| share.count).sum()
}

#[test]
fn what_a_lost_location_had_runs_elsewhere_until_it_is_back_with_what_is_healthy() {
    let mut locations: Vec<_> = (1..=3).map(|idx| location(idx, true, 2000)).collect();
    let mut shares = heard(plan(1, &app(3, 6, vec![]), &locations));
    let names = ["loc1", "loc2", "loc3"];
    shares = names
        .iter()
        .map(|name| Share {
            location: name.parse().unwrap(),
            count: 1,
            ready: 1,
            budget: 2,
            budget_in_force: 2,
            ..shares[0].clone()
        })
        .collect();
    lose(&mut shares, &mut locations, "loc3", true);
    shares = heard(plan(2, &app(3, 6, shares), &locations));
    assert_eq!(n_at(&shares, "loc3"), 1, "it stays given");
    assert_eq!(n_at(&shares, "loc1") + n_at(&shares, "loc2"), 3);
    assert!(shares.iter().any(|share| share.decision.why.ends_with("that is not heard of")));
    let again = heard(plan(3, &app(3, 6, shares.clone()), &locations));
    assert_eq!(again, shares, "it is done once");
    // Back and healthy it goes on, and the one in its place goes.
    lose(&mut shares, &mut locations, "loc3", false);
    let back = plan(4, &app(3, 6, shares.clone()), &locations);
    assert_eq!(names.map(|name| n_at(&back, name)), [1, 1, 1]);
    // Back without what it had, it is let go.
    for share in shares.iter_mut().filter(|share| share.location.as_str() == "loc3") {
        share.ready = 0;
    }
    let back = plan(4, &app(3, 6, shares), &locations);
    assert_eq!((n_at(&back, "loc3"), back.iter().map(|s| s.count).sum::<u32>()), (0, 3));
}

#[test]
fn nothing_is_replaced_beyond_what_max_leaves() {
    let mut locations = vec![location(1, true, 2000), location(2, true, 2000)];
    let share = |name: &str, count, budget| Share {
        location: name.parse().unwrap(),
        count,
        ready: count,
        refused: 0,
        make_room: 0,
        lost: false,
        budget,
        budget_in_force: budget,
        decision: Decision {
            at: Timestamp(0),
            chosen: None,
            why: String::new(),
            candidates: vec![],
        },
    };
    let mut shares = vec![share("loc1", 1, 1), share("loc2", 1, 1)];
    lose(&mut shares, &mut locations, "loc2", true);
    let planned = plan(1, &app(2, 2, shares.clone()), &locations);
    assert_eq!((n_at(&planned, "loc1"), n_at(&planned, "loc2")), (1, 1));
    let planned = plan(1, &app(2, 3, shares), &locations);
    assert_eq!((n_at(&planned, "loc1"), n_at(&planned, "loc2")), (2, 1));
}

#[test]
fn an_app_in_one_place_runs_elsewhere_when_that_is_lost() {
    for count in [1, 2, 5, 40] {
        let mut locations = vec![location(1, true, 9900), location(2, true, 4100)];
        let mut shares = heard(plan(1, &app(count, 3 * count, vec![]), &locations));
        assert_eq!(counts(&shares), [("loc1".to_owned(), count, 2 * count)]);
        lose(&mut shares, &mut locations, "loc1", true);
        let planned = plan(2, &app(count, 3 * count, shares), &locations);
        assert_eq!(n_at(&planned, "loc2"), count);
        let second = planned.iter().find(|share| share.location.as_str() == "loc2").unwrap();
        assert_eq!(second.budget, count, "the other may have begun to replace each of its own");
    }
    // Of less there is a part for others, once one can be started beside what there is.
    for (count, max, budget) in [(1, 2, 2), (2, 4, 3), (4, 8, 6), (4, 5, 5), (4, 6, 5)] {
        let locations = [location(1, true, 9000), location(2, true, 8000)];
        let shares = plan(1, &app(count, max, vec![]), &locations);
        assert_eq!(counts(&shares), [("loc1".to_owned(), count, budget)], "of {max}");
    }
}

proptest! {
    #[test]
    fn budgets_never_exceed_max_whoever_is_lost_and_back(
        count in 1_u32..8,
        spare in 0_u32..8,
        turns in prop::collection::vec((0_usize..4, any::<bool>(), any::<bool>()), 1..20)
    ) {
        let max = count + spare;
        let mut locations: Vec<_> = (0..4).map(|idx| location(idx, true, 5000)).collect();
        let mut shares: Vec<Share> = Vec::new();
        for (at, (idx, lost, takes_over)) in turns.into_iter().enumerate() {
            lose(&mut shares, &mut locations, &format!("loc{idx}"), lost);
            let wanted = app(count, max, shares.clone());
            let next = plan(at as u64, &wanted, &locations);
            prop_assert_eq!(&next, &plan(at as u64, &wanted, &locations));
            let gone = shares.iter().filter(|old| next.iter().all(|s| s.location != old.location));
            let in_force = |shares: &mut dyn Iterator<Item = &Share>| -> u32 {
                shares.map(|share| share.budget_in_force).sum()
            };
            let left = in_force(&mut gone.clone());
            prop_assert!(in_force(&mut next.iter()) + left <= max, "{:?}", next);
            // What is lost keeps what it was given.
            for old in shares.iter().filter(|old| old.lost) {
                prop_assert_eq!(n_at(&next, old.location.as_str()), old.count);
            }
            let kept = gone.map(|old| Share { count: 0, budget: 0, ..old.clone() }).collect::<Vec<_>>();
            shares = if takes_over { heard(next) } else { next };
            // A location that answers lets go of what is not its own any more.
            shares.extend(kept.into_iter().filter(|old| !takes_over || old.lost));
        }
    }
}

#[test]
fn a_removal_starts_elsewhere_what_nobody_has_taken_over() {
    let (lost, name) = (location(2, false, 2000), "loc2".parse().unwrap());
    let mut shares =
        heard(plan(1, &app(3, 9, vec![]), &[location(1, true, 2000), location(2, true, 2000)]));
    lose(&mut shares, &mut [], "loc2", true);
    let count = n_at(&shares, "loc2");
    assert!(count > 0);
    let apps = [app(3, 9, shares.clone())];
    let starts = |free_mib| {
        let locations = [location(1, true, free_mib), lost.clone()];
        let moves = preview_removal(Timestamp(2), &name, &apps, &locations);
        let [one] = &moves[..] else { panic!("{moves:?}") };
        assert_eq!(one.count, count);
        (one.to.clone(), one.stays.as_ref().map(|(n, _)| *n))
    };
    assert_eq!(starts(2000), (vec![("loc1".parse().unwrap(), count)], None));
    assert_eq!(starts(50), (vec![], Some(count)), "it waits for room");
    // What others have already has to start nowhere, and of what was never there nothing is told.
    let taken = heard(plan(3, &apps[0], &[location(1, true, 2000), lost.clone()]));
    let locations = [location(1, true, 2000), lost];
    let moves = preview_removal(Timestamp(4), &name, &[app(3, 9, taken)], &locations);
    assert!(moves.iter().all(|one| one.to.is_empty() && one.stays.is_none()), "{moves:?}");
    let elsewhere = "loc9".parse().unwrap();
    assert!(preview_removal(Timestamp(4), &elsewhere, &apps, &locations).is_empty());
}
