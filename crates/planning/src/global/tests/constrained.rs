//! Apps that may not be anywhere.

use longshore_types::{Reached, Spread};
use proptest::sample::subsequence;

use super::*;

fn labels(all: &[&str]) -> std::collections::BTreeSet<longshore_types::Label> {
    all.iter().map(|label| label.parse().unwrap()).collect()
}

/// A location in a country (nobody knows where when empty), with labels of its own and of its one node.
fn place(idx: usize, country: &str, of_location: &[&str], of_node: &[&str]) -> LocationState {
    let traits = Traits { country: country.parse().ok(), labels: labels(of_location) };
    let node = Traits { country: None, labels: labels(of_node) };
    let mut state = location(idx, true, 1000);
    state.kinds[0].traits = traits.of_node(&node);
    LocationState { traits, ..state }
}

fn placement(text: &str) -> Placement {
    let mut document: serde_json::Value = serde_json::from_str(text).unwrap();
    let document =
        serde_json::json!({"app": "a", "image": "a", "count": 9, "placement": document.take()});
    longshore_types::Manifest::from_document(&document).unwrap().placement
}

fn constrained(count: u32, max: u32, text: &str, shares: Vec<Share>) -> WantedApp {
    WantedApp { placement: placement(text), ..app(count, max, shares) }
}

/// What becomes of shares until the next plan: budgets are acknowledged, and what may run is healthy.
fn carried_out(shares: Vec<Share>) -> Vec<Share> {
    let carry = |share: Share| {
        let (budget_in_force, ready) = (share.budget, share.count.min(share.budget));
        Share { budget_in_force, ready, ..share }
    };
    shares.into_iter().map(carry).collect()
}

fn in_the_end(app: &WantedApp, locations: &[LocationState]) -> Vec<(String, u32)> {
    let mut app = app.clone();
    for _ in 0..40 {
        app.shares = carried_out(plan(5, &app, locations));
    }
    let each = app.shares.iter().map(|share| (share.location.to_string(), share.count));
    each.collect()
}

fn world() -> [LocationState; 4] {
    [
        place(1, "NL", &["tier=edge"], &["disk=nvme"]),
        place(2, "US", &["tier=core"], &["disk=hdd"]),
        place(3, "NO", &["tier=core"], &[]),
        place(4, "", &["tier=edge"], &[]),
    ]
}

#[test]
fn each_constraint_leaves_the_locations_that_it_should_and_says_why_not_the_others() {
    for (text, open, reason) in [
        ("{}", &[1, 2, 3, 4][..], ""),
        (
            r#"{"allow": ["loc2", "tier=edge"]}"#,
            &[1, 2, 4],
            "placement.allow has only loc2, tier=edge",
        ),
        (r#"{"deny": ["loc2", "tier=edge"]}"#, &[3], "placement.deny has tier=edge"),
        (r#"{"allow": ["tier=edge"], "deny": ["loc1"]}"#, &[4], "placement.deny has loc1"),
        (r#"{"jurisdiction": ["eu"]}"#, &[1], "it is in US, and placement.jurisdiction is eu"),
        (r#"{"jurisdiction": ["eea", "us"]}"#, &[1, 2, 3], "nobody said in which country it is"),
        (r#"{"labels": ["disk=nvme"]}"#, &[1], "no label disk=nvme, but disk=hdd"),
        (r#"{"labels": ["disk=nvme", "tier=edge"]}"#, &[1], "no label disk=nvme"),
        (
            r#"{"labels": ["tier=core"], "jurisdiction": ["no"]}"#,
            &[3],
            "placement.jurisdiction is NO",
        ),
    ] {
        let open: Vec<_> = open.iter().map(|idx| format!("loc{idx}")).collect();
        let spread = format!(r#"{{"spread_locations": "soft", {}"#, text.trim_start_matches('{'));
        let text = if text == "{}" { r#"{"spread_locations": "soft"}"# } else { &spread };
        let planned = plan(5, &constrained(8, 16, text, vec![]), &world());
        let given: Vec<_> = planned.iter().map(|share| share.location.to_string()).collect();
        assert_eq!(given, open, "{text}");
        let refused = &planned[0].decision.candidates;
        let told = refused.iter().any(|one| one.score.is_none() && one.why.contains(reason));
        assert!(told || reason.is_empty(), "{text}: {refused:#?}");
    }
}

#[test]
fn what_no_location_satisfies_waits_and_names_the_constraint() {
    let full = [place(1, "NL", &[], &[]), place(2, "US", &[], &[])].map(|state| {
        let free = capacity(if state.name.as_str() == "loc1" { 50 } else { 1000 });
        LocationState { free, ..state }
    });
    for (locations, text, why) in [
        (&world()[1..], r#"{"jurisdiction": ["eu"]}"#, "no location is in eu"),
        (&world()[..], r#"{"labels": ["gpu=a100"]}"#, "no location has nodes with gpu=a100"),
        (&world()[..], r#"{"allow": ["loc9"]}"#, "no location is loc9"),
        (&full[..], r#"{"jurisdiction": ["eu"]}"#, "no location in eu has 100 MiB of memory free"),
        (
            &world()[..],
            r#"{"jurisdiction": ["us"], "deny": ["tier=core"]}"#,
            "all 4 locations are refused: 2 by placement.deny, 2 by placement.jurisdiction",
        ),
    ] {
        let planned = plan_shares(Timestamp(5), &constrained(2, 4, text, vec![]), locations);
        let waiting = planned.waiting.unwrap();
        assert_eq!((planned.shares, waiting.missing), (vec![], 2), "{text}");
        assert_eq!(waiting.decision.why, why);
        let candidates = &waiting.decision.candidates;
        assert_eq!(candidates.len(), locations.len());
        assert!(candidates.iter().all(|one| one.lack.is_some_and(|it| !it.remedy().is_empty())));
    }
}

#[test]
fn a_changed_constraint_moves_what_may_stay_no_longer_and_starts_the_new_first() {
    let locations = world();
    let us = r#"{"jurisdiction": ["us"]}"#;
    let before = carried_out(plan(5, &constrained(2, 4, us, vec![]), &locations));
    assert_eq!(counts(&before), [("loc2".to_owned(), 2, 3)]);
    let eu = |shares| constrained(2, 4, r#"{"jurisdiction": ["eu"]}"#, shares);
    let started = plan(6, &eu(before), &locations);
    assert_eq!(counts(&started), [("loc2".to_owned(), 2, 2), ("loc1".to_owned(), 2, 1)]);
    // What was kept back is for one of them; the other waits until what the first place gave up is acknowledged.
    let budgeted = plan(7, &eu(carried_out(started)), &locations);
    assert_eq!(counts(&budgeted), [("loc2".to_owned(), 1, 2), ("loc1".to_owned(), 2, 2)]);
    let mut half = carried_out(budgeted);
    half[1].ready = 1;
    let half = plan(8, &eu(half), &locations);
    assert_eq!(half.iter().map(|share| share.count).collect::<Vec<_>>(), [1, 2]);
    let ended = plan(9, &eu(carried_out(half)), &locations);
    assert_eq!(counts(&ended)[0].0, "loc1");
    // Where it could not go, it stays, and says why.
    let nowhere = constrained(2, 4, r#"{"jurisdiction": ["jp"]}"#, carried_out(ended));
    let stays = plan(10, &nowhere, &locations);
    assert_eq!(stays.iter().map(|share| share.count).sum::<u32>(), 2);
    let (_, why) = staying(&nowhere, &stays, &locations).unwrap();
    assert!(why.contains("loc1: refused: it is in NL, and placement.jurisdiction is JP"), "{why}");
}

#[test]
fn instances_keep_apart_as_far_as_is_asked() {
    let mut locations = world();
    let large = Capacity { cpu: MilliCpu(1_000_000), ..capacity(5000) };
    (locations[0].free, locations[0].kinds[0].free) = (large, large);
    locations[0].kinds[0].largest = large;
    let all = |expected: &[u32]| {
        let each = expected.iter().enumerate().filter(|(_, count)| **count > 0);
        each.map(|(idx, count)| (format!("loc{}", idx + 1), *count)).collect::<Vec<_>>()
    };
    let sorted = |count, text: &str| {
        let mut found = in_the_end(&constrained(count, 2 * count, text, vec![]), &locations);
        found.sort();
        found
    };
    assert_eq!(sorted(4, "{}"), all(&[4, 0, 0, 0]));
    assert_eq!(sorted(4, r#"{"spread_locations": "soft"}"#), all(&[1, 1, 1, 1]));
    assert_eq!(sorted(6, r#"{"spread_locations": 3}"#), all(&[2, 2, 1, 1]));
    assert_eq!(sorted(4, r#"{"min_locations": 3}"#).len(), 3);
    let most = constrained(9, 18, r#"{"spread_locations": 2}"#, vec![]);
    let planned = plan_shares(Timestamp(5), &most, &locations);
    assert_eq!(planned.waiting.unwrap().decision.why, "no location may have one more of this app");
    // What was together before is taken apart.
    let together = carried_out(plan(5, &app(4, 8, vec![]), &locations));
    assert_eq!(counts(&together), [("loc1".to_owned(), 4, 6)]);
    for (text, expected) in [
        (r#"{"spread_locations": 2}"#, [2, 1, 1].as_slice()),
        (r#"{"min_locations": 2}"#, [3, 1].as_slice()),
        (r#"{"min_locations": 4}"#, [1, 1, 1, 1].as_slice()),
    ] {
        let found = in_the_end(&constrained(4, 8, text, together.clone()), &locations);
        let mut found: Vec<_> = found.into_iter().map(|(_, count)| count).collect();
        found.sort_by(|a, b| b.cmp(a));
        assert_eq!(found, expected, "{text}");
    }
}

#[test]
fn near_is_the_nearest_with_room() {
    let mut locations = world();
    for (state, text) in locations.iter_mut().zip(["52.37,4.9", "40.7,-74", "59.9,10.75"]) {
        state.coordinates = text.parse().ok();
    }
    let near = |text: &str, count| {
        let text = format!(r#"{{"near": "{text}"}}"#);
        plan(5, &constrained(count, 2 * count, &text, vec![]), &locations)
    };
    assert_eq!(counts(&near("59,11", 1))[0].0, "loc3");
    let of_twelve = near("loc2", 12);
    assert_eq!(of_twelve.iter().map(|share| share.count).collect::<Vec<_>>(), [10, 2]);
    let why = &of_twelve[0].decision.why;
    assert!(why.contains("0 km from loc2"), "{why}");
    let unknown = &near("loc1", 1)[0].decision.candidates[3];
    assert!(unknown.why.ends_with("nobody knows how far from loc1"), "{unknown:?}");
}

#[test]
fn what_is_tried_has_a_location_where_it_may_be_and_keeps_it() {
    let locations = world();
    let us =
        carried_out(plan(5, &constrained(2, 4, r#"{"jurisdiction": ["us"]}"#, vec![]), &locations));
    let tried = Some(placement(r#"{"jurisdiction": ["eea"]}"#));
    let with = |shares| WantedApp {
        tried: tried.clone(),
        ..constrained(2, 4, r#"{"jurisdiction": ["us"]}"#, shares)
    };
    let first = carried_out(plan(6, &with(us), &locations));
    let found: Vec<_> = first.iter().map(|share| (share.location.as_str(), share.count)).collect();
    assert_eq!(found, [("loc2", 2), ("loc1", 0)]);
    // It has a budget once the other has acknowledged less.
    let first = carried_out(plan(7, &with(first), &locations));
    let mut fuller = locations.clone();
    fuller[0].free = capacity(0);
    let second = carried_out(plan(7, &with(first), &fuller));
    assert_eq!((second[1].location.as_str(), second[1].count, second[1].budget), ("loc1", 0, 1));
    let ends = plan(8, &WantedApp { tried: None, ..with(second) }, &fuller);
    assert_eq!(ends.len(), 1);
}

const COUNTRIES: [&str; 4] = ["NL", "US", "NO", ""];
const LABELS: [&str; 3] = ["a=1", "b=1", "b=2"];
const JURISDICTIONS: [&str; 4] = ["eu", "eea", "us", "jp"];

fn placements() -> impl Strategy<Value = Placement> {
    let matches = || subsequence(vec!["loc0", "loc1", "loc2", "a=1", "b=2"], 0..3);
    (
        (matches(), matches()),
        (subsequence(JURISDICTIONS.to_vec(), 0..3), subsequence(LABELS.to_vec(), 0..2)),
        (prop::option::of(0..4_u32), prop::option::of(1..4_u32), any::<bool>()),
    )
        .prop_map(|((allow, deny), (jurisdiction, labels), (spread, least, reaches))| {
            Placement {
                allow: allow.iter().map(|text| text.parse().unwrap()).collect(),
                deny: deny.iter().map(|text| text.parse().unwrap()).collect(),
                jurisdiction: jurisdiction.iter().map(|text| text.parse().unwrap()).collect(),
                labels: labels.iter().map(|text| text.parse().unwrap()).collect(),
                spread_locations: spread.map(|most| match most {
                    0 => Spread::Soft,
                    most => Spread::AtMost(most),
                }),
                min_locations: least,
                reach: reaches.then(|| ADDRESS.parse().unwrap()).into_iter().collect(),
                ..Placement::default()
            }
        })
}

const ADDRESS: &str = "db:5432";

/// What came of the tries to reach the address from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tried {
    Never,
    InVain,
    Answered,
}

impl Tried {
    fn reached(self) -> Vec<Reached> {
        let error = (self == Self::InVain).then(|| "no answer".to_owned());
        let tried = Reached { address: ADDRESS.parse().unwrap(), at: Timestamp(7), error };
        if self == Self::Never { vec![] } else { vec![tried] }
    }
}

type Site = (usize, Vec<&'static str>, Vec<&'static str>, u64, Tried);

fn sites() -> impl Strategy<Value = Vec<Site>> {
    let labels = || subsequence(LABELS.to_vec(), 0..3);
    let tried =
        prop::sample::select(vec![Tried::Answered, Tried::Answered, Tried::InVain, Tried::Never]);
    prop::collection::vec((0..COUNTRIES.len(), labels(), labels(), 0..8_u64, tried), 1..5)
}

/// With what is free there when it has that many instances.
fn site(
    idx: usize,
    (country, of_location, of_node, room, tried): &Site,
    n_there: u32,
) -> LocationState {
    let mut state = place(idx, COUNTRIES[*country], of_location, of_node);
    let mib = 100 * room.saturating_sub(u64::from(n_there));
    let free = Capacity { cpu: MilliCpu(1_000_000), ..capacity(mib) };
    state.free = free;
    (state.kinds[0].free, state.kinds[0].largest) = (free, free);
    state.kinds[0].reached = tried.reached();
    state
}

proptest! {
    /// Safety: whatever the world and however an app changes its mind, nothing new goes against a constraint
    /// or over what is free, budgets stay within `max`, what has to leave does not before as much is healthy
    /// elsewhere, and the same gives the same. Progress: in the end nothing waits for which there is a place,
    /// and nothing is where it may not be while another would take it. Movement: then nothing moves any more.
    #[test]
    fn constraints_hold_and_what_can_be_placed_is(
        sites in sites(),
        wishes in prop::collection::vec((placements(), 1..7_u32, 1..7_u32), 1..4),
    ) {
        let mut shares: Vec<Share> = Vec::new();
        let count_at = |shares: &[Share], state: &LocationState| {
            shares.iter().find(|share| share.location == state.name).map_or(0, |share| share.count)
        };
        let mut greatest = 0;
        for (placement, count, extra) in wishes {
            greatest = greatest.max(count + extra);
            let mut last = None;
            for _ in 0..60 {
                let name = |idx: usize| format!("loc{idx}");
                let there = |idx: usize| {
                    let found = shares.iter().find(|share| share.location.as_str() == name(idx));
                    found.map_or(0, |share| share.count)
                };
                let locations: Vec<_> =
                    sites.iter().enumerate().map(|(idx, one)| site(idx, one, there(idx))).collect();
                let wanted = WantedApp { placement: placement.clone(), ..app(count, count + extra, shares.clone()) };
                let planned = plan_shares(Timestamp(1), &wanted, &locations);
                prop_assert_eq!(&plan_shares(Timestamp(1), &wanted, &locations), &planned);
                let most = placement.spread_locations.and_then(Spread::most).unwrap_or(u32::MAX);
                for (state, (_, _, _, room, tried)) in locations.iter().zip(&sites) {
                    let (before, after) = (count_at(&shares, state), count_at(&planned.shares, state));
                    if after > before {
                        prop_assert!(permits(&placement, None, state), "{state:?} {planned:#?}");
                        prop_assert!(u64::from(after) <= *room && after <= most, "{planned:#?}");
                        let answers = placement.reach.is_empty() || *tried == Tried::Answered;
                        prop_assert!(answers, "{state:?} {planned:#?}");
                    }
                }
                let in_force: u32 = planned.shares.iter().map(|share| share.budget_in_force).sum();
                let gone: u32 = shares.iter()
                    .filter(|old| planned.shares.iter().all(|new| new.location != old.location))
                    .map(|old| old.budget_in_force).sum();
                prop_assert!(in_force + gone <= greatest, "{planned:#?}");
                let running: u32 = planned.shares.iter().map(|share| share.count.min(share.ready)).sum();
                let ran: u32 = shares.iter().map(|share| share.count.min(share.ready)).sum();
                prop_assert!(running >= ran.min(count), "{planned:#?}");
                shares = carried_out(planned.shares);
                last = Some((planned.waiting, locations));
            }
            let (waiting, locations) = last.unwrap();
            let wanted = WantedApp { placement: placement.clone(), ..app(count, count + extra, shares.clone()) };
            prop_assert_eq!(&carried_out(plan(1, &wanted, &locations)), &shares, "moves for ever");
            if let Some(waiting) = waiting {
                prop_assert!(waiting.decision.candidates.iter().all(|one| one.score.is_none()));
            }
            let places = Places::new(&locations, &wanted.demand);
            let standing = drain::Standing::new(&wanted, &shares, &places);
            if standing.held > 0 {
                let among = Among::without_users(&wanted, &shares, &places);
                let open = |state: &LocationState| judge(&wanted, state, &among).score;
                prop_assert!(locations.iter().all(|state| open(state).is_none()), "{shares:#?}");
            }
        }
    }

    /// Nothing that could be placed sleeps: when the world changes so that an app which waits would be given
    /// more, the change supplies what it waits for.
    #[test]
    fn whatever_lets_something_be_placed_wakes_it(
        (before, after) in (sites(), sites()),
        closed in prop::collection::vec((any::<bool>(), any::<bool>()), 4..5),
        (placement, count) in (placements(), 1..7_u32),
    ) {
        let world = |sites: &[Site], is_closed: &dyn Fn(usize) -> bool| -> Vec<LocationState> {
            let each = sites.iter().enumerate().map(|(idx, one)| {
                let cordon = Cordon { since: Timestamp(1), by: None, drains: false, removed: false };
                let cordon = is_closed(idx).then_some(cordon);
                LocationState { cordon, ..site(idx, one, 0) }
            });
            each.collect()
        };
        let before = world(&before, &|idx| closed[idx].0);
        let after = world(&after, &|idx| closed[idx].1);
        // Nothing is placed yet, so that what it has itself changes nothing.
        let wanted = WantedApp { placement, ..app(count, 2 * count, vec![]) };
        let first = plan_shares(Timestamp(1), &wanted, &before);
        prop_assume!(first.shares.is_empty());
        let blocked = Blocked::new(&first.waiting.unwrap().decision);
        if !plan_shares(Timestamp(1), &wanted, &after).shares.is_empty() {
            prop_assert!(blocked.is_woken(&supplies(&before, &after)));
        }
    }
}
