//! Apps whose users are known.

use super::drained::{carried_out, cordon, count_at};
use super::*;

fn name(idx: usize) -> LocationName {
    format!("loc{idx}").parse().unwrap()
}

/// Locations with these round trips from each to each of the others, in milliseconds.
fn world(ways: &[&[u64]], free_mib: u64) -> Vec<LocationState> {
    let place = |(idx, ways): (usize, &&[u64])| {
        let others = ways.iter().enumerate().filter(|(to, _)| *to != idx);
        let round_trips = others.map(|(to, way)| (name(to), Duration::from_millis(*way)));
        LocationState { round_trips: round_trips.collect(), ..location(idx, true, free_mib) }
    };
    ways.iter().enumerate().map(place).collect()
}

/// In a row, the one 100 ms from the next.
fn row(len: u64) -> Vec<LocationState> {
    let ways: Vec<Vec<u64>> =
        (0..len).map(|from| (0..len).map(|to| 100 * from.abs_diff(to)).collect()).collect();
    world(&ways.iter().map(Vec::as_slice).collect::<Vec<_>>(), 9000)
}

fn placement(text: &str) -> Placement {
    serde_json::from_str(text).unwrap()
}

const NEAR: &str = r#"{"latency":"50ms"}"#;

fn users(of: &[(usize, u64)]) -> Demand {
    Demand::of(of.iter().map(|(at, requests)| (name(*at), *requests)))
}

fn reached_by(
    app: &WantedApp,
    at: &[(&LocationName, u32)],
    locations: &[LocationState],
) -> Option<u32> {
    let ways = Ways::of(locations.iter().map(|one| (&one.name, one.coordinates, &one.round_trips)));
    reached(&app.placement, &app.demand, at.iter().copied(), ways)
}

fn with(wanted: WantedApp, said: &str, demand: Demand) -> WantedApp {
    WantedApp { placement: placement(said), demand, ..wanted }
}

#[test]
fn a_new_instance_goes_where_most_users_are_within_the_goal_and_says_so() {
    let locations = row(3);
    let wanted = with(app(1, 2, vec![]), NEAR, users(&[(2, 62), (1, 38)]));
    let shares = plan(5, &wanted, &locations);
    assert_eq!(counts(&shares), [("loc2".to_owned(), 1, 2)]);
    let told = &shares[0].decision;
    assert!(told.why.ends_with("62 % of its users are within 50ms of here"), "{told:?}");
    let second = with(app(2, 4, shares), NEAR, wanted.demand);
    let shares = plan(6, &second, &locations);
    assert_eq!((count_at(&shares, "loc1"), count_at(&shares, "loc2")), (1, 1));
    let why = &shares[1].decision.why;
    let both = "38 % of its users are within 50ms of here, 100 % with the others";
    assert!(why.ends_with(both), "{why}");
}

#[test]
fn without_a_goal_what_is_new_is_near_users_and_nothing_moves() {
    let mut locations = row(3);
    // More is free elsewhere.
    locations[0].free.memory = ByteCount::mib(90_000);
    let demand = users(&[(1, 10), (2, 90)]);
    let wanted = with(app(1, 2, vec![]), "{}", demand.clone());
    let shares = plan(5, &wanted, &locations);
    assert_eq!(count_at(&shares, "loc2"), 1);
    assert!(shares[0].decision.why.ends_with(", 10 ms from its users on average"));
    // Each where one is not near yet, and then where most share one.
    let five = plan(6, &with(app(5, 10, vec![]), "{}", users(&[(0, 20), (2, 80)])), &locations);
    assert_eq!((count_at(&five, "loc0"), count_at(&five, "loc2")), (1, 4));
    // Of too many the one ends that is missed least.
    let fewer = carried_out(five);
    let two = plan(7, &with(app(2, 4, fewer), "{}", users(&[(0, 20), (2, 80)])), &locations);
    assert_eq!((count_at(&two, "loc0"), count_at(&two, "loc2")), (1, 1));
    let far = carried_out(plan(5, &app(1, 2, vec![]), &locations[..1]));
    assert_eq!(better(&with(app(1, 2, far), "{}", demand), &locations), None);
}

#[test]
fn where_nothing_was_measured_the_map_says_how_far_it_is() {
    let mut locations = row(3);
    for (state, at) in locations.iter_mut().zip(["52.3,4.8", "51.5,-0.5", "1.4,104.0"]) {
        (state.round_trips, state.coordinates) = (BTreeMap::new(), at.parse().ok());
    }
    let wanted = with(app(1, 2, vec![]), NEAR, users(&[(0, 50), (1, 50)]));
    let names = [name(0), name(1), name(2)];
    let reached = |idx: usize| reached_by(&wanted, &[(&names[idx], 1)], &locations);
    assert_eq!([0, 1, 2].map(reached), [Some(1000), Some(1000), Some(0)]);
    assert!(count_at(&plan(5, &wanted, &locations), "loc2") == 0);
}

#[test]
fn an_instance_moves_to_users_once_another_is_healthy_there() {
    let mut locations = row(3);
    let there = carried_out(plan(5, &app(1, 2, vec![]), &locations[..1]));
    let still = with(app(1, 2, there), NEAR, users(&[(2, 90), (0, 10)]));
    let found = better(&still, &locations).unwrap();
    assert_eq!((found.before, found.after), (100, 900));
    assert_eq!((&found.moving.from, &found.moving.to), (&name(0), &name(2)));
    let moving = Demand { moving: Some(found.moving), ..still.demand.clone() };
    let next = |shares: Vec<Share>, locations: &[LocationState]| {
        plan(6, &with(app(1, 2, shares), NEAR, moving.clone()), locations)
    };
    // Nothing is begun where there is no room, and what has begun goes on.
    let full = world(&[&[0, 100, 200], &[100, 0, 100], &[200, 100, 0]], 50);
    assert_eq!(counts(&next(still.shares.clone(), &full)), counts(&still.shares));
    let begun = next(still.shares.clone(), &locations);
    assert_eq!((count_at(&begun, "loc0"), count_at(&begun, "loc2")), (1, 1));
    let why = &begun[1].decision.why;
    assert!(why.starts_with("nearer to its users than one at loc0: "), "{why}");
    let budgeted = next(carried_out(begun), &full);
    assert_eq!((count_at(&budgeted, "loc0"), count_at(&budgeted, "loc2")), (1, 1));
    // A control plane that was started again undoes it while it is not healthy, and completes it then.
    let mut ill = carried_out(budgeted.clone());
    ill[1].ready = 0;
    assert_eq!(count_at(&next(ill.clone(), &locations), "loc0"), 1);
    let forgotten = plan(7, &with(app(1, 2, ill), NEAR, still.demand.clone()), &locations);
    assert_eq!((count_at(&forgotten, "loc0"), count_at(&forgotten, "loc2")), (1, 0));
    // A location that finds no node for it is not asked again, and the other stays.
    let mut refusing = with(app(1, 2, carried_out(budgeted.clone())), NEAR, moving.clone());
    (refusing.shares[1].ready, refusing.shares[1].refused) = (0, 1);
    refusing.refusals.insert(name(2), (Lack::Runtime, "no runsc".to_owned()));
    let stays = plan(7, &refusing, &locations);
    assert_eq!((count_at(&stays, "loc0"), count_at(&stays, "loc2")), (1, 0));
    let healthy = carried_out(budgeted);
    let forgotten = plan(7, &with(app(1, 2, healthy.clone()), NEAR, still.demand), &locations);
    assert_eq!((count_at(&forgotten, "loc0"), count_at(&forgotten, "loc2")), (0, 1));
    let ended = next(healthy, &locations);
    assert_eq!((count_at(&ended, "loc0"), count_at(&ended, "loc2")), (0, 1));
    // Nothing moves beside anything else that is to be done.
    locations[2].cordon = cordon(false);
    let settled = with(app(1, 2, carried_out(ended)), NEAR, users(&[(0, 9), (1, 91)]));
    assert!(better(&settled, &locations).is_some());
    locations[2].cordon = cordon(true);
    assert_eq!(better(&settled, &locations), None);
}

#[test]
fn no_move_is_made_for_few_users_or_against_what_an_app_says() {
    let locations = row(3);
    let at = |of: &[(usize, u32)]| {
        let share = |(idx, count): &(usize, u32)| {
            let mut share = plan(5, &app(*count, 2 * *count, vec![]), &locations[*idx..=*idx]);
            share.remove(0)
        };
        carried_out(of.iter().map(share).collect())
    };
    let moves = |shares: &[(usize, u32)], said: &str, max: u32, of: &[(usize, u64)]| {
        let count = shares.iter().map(|(_, count)| count).sum();
        let wanted = with(app(count, max, at(shares)), said, users(of));
        better(&wanted, &locations).map(|found| (found.moving.from, found.moving.to))
    };
    let to = |from, to| Some((name(from), name(to)));
    let (near, of) = (r#""latency":"50ms""#, [(0, 500), (2, 500)]);
    let said = |more: &str| format!("{{{near}{more}}}");
    assert_eq!(moves(&[(0, 2)], &said(""), 4, &of), to(0, 2));
    assert_eq!(moves(&[(0, 2)], &said(""), 2, &of), None, "max leaves no room");
    assert_eq!(moves(&[(0, 1)], &said(""), 2, &of), None, "as many are near as would be");
    assert_eq!(moves(&[(0, 2)], &said(""), 4, &[(0, 960), (2, 40)]), None, "the goal is met");
    let most = said(r#","users":"100%""#);
    assert_eq!(moves(&[(0, 2)], &most, 4, &[(0, 960), (2, 40)]), None, "it is for few");
    assert_eq!(moves(&[(0, 2)], &said(r#","deny":["loc2"]"#), 4, &of), None);
    assert_eq!(moves(&[(0, 2)], &said(r#","spread_locations":{"at_most":2}"#), 4, &of), to(0, 2));
    let all_at_2 = [(2, 1000)];
    let two = said(r#","min_locations":2"#);
    assert_eq!(moves(&[(0, 1), (1, 1)], &two, 4, &all_at_2), to(0, 2));
    let soft = said(r#","spread_locations":"soft""#);
    assert_eq!(moves(&[(0, 1), (1, 1)], &soft, 4, &all_at_2), to(0, 2));
    // The one ends that is missed least.
    assert_eq!(moves(&[(0, 1), (1, 1)], &two, 4, &[(0, 300), (2, 700)]), to(1, 2));
}

/// Round trips between locations, and for each wish how users are spread.
type Scene = (Vec<Vec<u64>>, Vec<Vec<u64>>, (u32, u32), usize);

const SAID: [&str; 4] = [
    r#"{"latency":"50ms"}"#,
    r#"{"latency":"80ms","users":"100%","min_locations":2}"#,
    r#"{"latency":"120ms","users":"80%","spread_locations":{"at_most":2}}"#,
    r#"{"latency":"50ms","spread_locations":"soft","deny":["loc1"]}"#,
];

fn scenes() -> impl Strategy<Value = Scene> {
    (2..6_usize).prop_flat_map(|len| {
        let ways = prop::collection::vec(prop::collection::vec(1..300_u64, len), len);
        let demands = prop::collection::vec(prop::collection::vec(0..50_u64, len), 1..4);
        (ways, demands, (2..5_u32, 0..4_u32), 0..SAID.len())
    })
}

/// What keeps an app from being given away: more than its budget, fewer healthy than it should have, too many in
/// one place or at too few.
fn assert_kept(wanted: &WantedApp, before: &[Share], after: &[Share]) {
    let sum = |shares: &[Share], of: fn(&Share) -> u32| shares.iter().map(of).sum::<u32>();
    let gone = before.iter().filter(|old| after.iter().all(|new| new.location != old.location));
    let in_force = sum(after, |share| share.budget_in_force)
        + gone.map(|old| old.budget_in_force).sum::<u32>();
    assert!(in_force <= wanted.max, "{after:?}");
    let healthy = sum(after, |share| share.ready.min(share.count));
    assert!(healthy >= wanted.count.min(sum(before, |share| share.ready)), "{after:?}");
    assert!(sum(after, |share| share.count) <= wanted.count + 1, "{after:?}");
    if let Some(most) = wanted.placement.spread_locations.and_then(|spread| spread.most()) {
        assert!(after.iter().all(|share| share.count <= most), "{after:?}");
    }
    let places = |shares: &[Share]| shares.iter().filter(|share| share.count > 0).count();
    let least = wanted.min_locations() as usize;
    assert!(places(after) >= least.min(places(before)), "{after:?}");
    assert!(after.iter().all(|share| {
        let is_denied =
            wanted.placement.deny.iter().any(|one| one.to_string() == share.location.as_str());
        !is_denied || share.count == 0
    }));
}

/// Plans and carries out until nothing changes any more.
fn settled(wanted: &WantedApp, locations: &[LocationState]) -> Vec<Share> {
    let mut shares = wanted.shares.clone();
    for _ in 0..20 {
        let next = WantedApp { shares: shares.clone(), ..wanted.clone() };
        let planned = carried_out(plan(1, &next, locations));
        if planned == shares {
            return shares;
        }
        shares = planned;
    }
    panic!("it never settles: {shares:?}");
}

proptest! {
    /// However the ways are and users move, moves keep to what the app says and to `max`, each is worth its least, and
    /// once users stay where they are it is over soon.
    #[test]
    fn moves_are_few_and_worth_it_and_end((ways, demands, (count, extra), said) in scenes()) {
        let ways: Vec<&[u64]> = ways.iter().map(Vec::as_slice).collect();
        let locations = world(&ways, 100_000);
        let base = || WantedApp { placement: placement(SAID[said]), ..app(count, count + extra, vec![]) };
        let mut shares = settled(&base(), &locations);
        for demand in demands {
            let demand = Demand::of(demand.iter().enumerate().map(|(at, n)| (name(at), *n)));
            let mut wanted = WantedApp { demand, shares, ..base() };
            let mut n_moves = 0;
            while let Some(found) = better(&wanted, &locations) {
                prop_assert_eq!(Some(found.clone()), better(&wanted, &locations));
                n_moves += 1;
                let goal = wanted.placement.goal().unwrap().users.permille();
                prop_assert!(n_moves <= 1000 / LEAST_GAIN && found.after.min(goal) >= found.before + LEAST_GAIN);
                let before = count_at(&wanted.shares, found.moving.from.as_str());
                let mut moving = wanted.clone();
                moving.demand.moving = Some(found.moving.clone());
                for round in 0.. {
                    prop_assert!(round < 20, "it does not end: {:?}", moving.shares);
                    let planned = plan(1, &moving, &locations);
                    prop_assert_eq!(&planned, &plan(1, &moving, &locations));
                    assert_kept(&moving, &moving.shares, &planned);
                    // Some plans come before anything was carried out.
                    moving.shares = if round % 2 == 0 { carried_out(planned) } else { planned };
                    if count_at(&moving.shares, found.moving.from.as_str()) < before {
                        break;
                    }
                }
                moving.demand.moving = None;
                wanted.shares = settled(&moving, &locations);
                let at: Vec<_> =
                    wanted.shares.iter().map(|share| (&share.location, share.count)).collect();
                prop_assert_eq!(reached_by(&wanted, &at, &locations), Some(found.after));
            }
            shares = wanted.shares;
        }
    }

    /// Where nobody knows who the users are, nothing is as if there were a goal.
    #[test]
    fn without_demand_a_goal_changes_nothing(
        (ways, _, (count, extra), _) in scenes(),
        free in prop::collection::vec(0..2000_u64, 5),
    ) {
        let ways: Vec<&[u64]> = ways.iter().map(Vec::as_slice).collect();
        let mut locations = world(&ways, 0);
        for (state, free) in locations.iter_mut().zip(free) {
            let round_trips = std::mem::take(&mut state.round_trips);
            let idx = state.name.as_str()[3..].parse().unwrap();
            *state = LocationState { round_trips, ..location(idx, true, free) };
        }
        let goal = WantedApp { placement: placement(NEAR), ..app(count, count + extra, vec![]) };
        let none = app(count, count + extra, vec![]);
        let (with, without) = (plan(1, &goal, &locations), plan(1, &none, &locations));
        prop_assert_eq!(&with, &without);
        prop_assert_eq!(better(&WantedApp { shares: carried_out(with), ..goal }, &locations), None);
    }

    /// One more instance never makes it worse, for anybody.
    #[test]
    fn one_more_is_never_worse((ways, demands, (count, _), said) in scenes()) {
        let ways: Vec<&[u64]> = ways.iter().map(Vec::as_slice).collect();
        let locations = world(&ways, 100_000);
        let demand = demands[0].iter().enumerate().map(|(at, n)| (name(at), *n));
        let wanted = WantedApp { placement: placement(SAID[said]), demand: Demand::of(demand), ..app(count, 2 * count, vec![]) };
        let shares = plan(1, &wanted, &locations);
        let places = Places::new(&locations, &wanted.demand);
        let Some(users) = users::Nearness::of(&wanted, &shares, &places) else { return Ok(()) };
        for state in &locations {
            let (now, more) = (users.figure(), users.with(&state.name));
            prop_assert!(more.within >= now.within && more.way <= now.way);
        }
        // What is worked out for one less is what is worked out of what then is.
        for from in shares.iter().filter(|share| share.count > 0).map(|share| &share.location) {
            let less = |share: &Share| Share { count: share.count - u32::from(share.location == *from), ..share.clone() };
            let rest: Vec<_> = shares.iter().map(less).collect();
            let rest = users::Nearness::of(&wanted, &rest, &places).unwrap();
            prop_assert_eq!(users.without(from), rest.figure());
            for to in &locations {
                prop_assert_eq!(users.moved(from, &to.name), rest.with(&to.name));
            }
        }
    }
}
