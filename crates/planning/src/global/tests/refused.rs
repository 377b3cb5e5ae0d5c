//! Locations that found no node for what they were given, and what wakes that which waits.

use super::*;

fn refusing(wanted: WantedApp, name: &str, lack: Lack) -> WantedApp {
    let refusals = [(name.parse().unwrap(), (lack, "it said so".to_owned()))].into();
    WantedApp { refusals, ..wanted }
}

#[test]
fn what_a_location_refuses_goes_on_at_once_and_not_back() {
    let locations = [location(1, true, 9000), location(2, true, 250), location(3, true, 50)];
    let mut shares = plan(5, &app(4, 8, vec![]), &locations);
    assert_eq!(counts(&shares), [("loc1".to_owned(), 4, 6)]);
    // Three of four have no runtime there; the second location takes two.
    shares[0].refused = 3;
    let wanted = refusing(app(4, 8, shares), "loc1", Lack::Runtime);
    let moved = plan(6, &wanted, &locations);
    let each: Vec<_> = moved.iter().map(|share| (share.location.as_str(), share.count)).collect();
    assert_eq!(each, [("loc1", 2), ("loc2", 2)]);
    let told = &moved[1].decision.candidates;
    let first = told.iter().find(|one| one.name == "loc1").unwrap();
    assert_eq!((first.lack, first.why.as_str()), (Some(Lack::Runtime), "refused: it said so"));
    // More of it has no other place: what there is stays as it is.
    let mut shares = moved;
    shares[0].refused = 1;
    let wanted = refusing(app(4, 8, shares), "loc1", Lack::Runtime);
    let mut full = locations;
    full[1].free = capacity(50);
    let stays = plan(7, &wanted, &full);
    assert_eq!(stays.iter().map(|share| share.count).collect::<Vec<_>>(), [2, 2]);
}

#[test]
fn an_old_report_is_trusted_last() {
    let mut locations = [location(1, true, 9000), location(2, true, 1000)];
    locations[0].late = true;
    let shares = plan(5, &app(11, 22, vec![]), &locations);
    let each: Vec<_> = shares.iter().map(|share| (share.location.as_str(), share.count)).collect();
    assert_eq!(each, [("loc2", 10), ("loc1", 1)]);
    assert!(shares[1].decision.why.ends_with("by a report that is old"), "{shares:?}");
}

#[test]
fn what_waits_is_woken_by_what_it_lacks_and_by_nothing_else() {
    let before = [location(1, true, 50), location(2, false, 1000)];
    let waiting = plan_shares(Timestamp(5), &app(1, 2, vec![]), &before).waiting.unwrap();
    let blocked = Blocked::new(&waiting.decision);
    let is_woken = |change: fn(&mut Vec<LocationState>)| {
        let mut after = before.to_vec();
        change(&mut after);
        blocked.is_woken(&supplies(&before, &after))
    };
    assert!(!is_woken(|_| {}));
    assert!(!is_woken(|after| after[0].free.memory = ByteCount::mib(10)));
    assert!(!is_woken(|after| after[0].free.disk = ByteCount::mib(1000)));
    assert!(!is_woken(|after| after[0].reachable = false));
    assert!(!is_woken(|after| after[1].free.memory = ByteCount::mib(2000)));
    assert!(!is_woken(|after| after[0].traits.country = "NL".parse().ok()));
    assert!(is_woken(|after| after[0].free.memory = ByteCount::mib(60)));
    assert!(is_woken(|after| after[0].kinds[0].largest.memory = ByteCount::mib(60)));
    assert!(is_woken(|after| after[1].reachable = true));
    assert!(is_woken(|after| after.push(location(3, true, 1))));
}
