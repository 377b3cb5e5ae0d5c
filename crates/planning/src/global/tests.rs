use longshore_types::{ByteCount, MilliCpu};
use proptest::prelude::*;

use super::*;

fn capacity(mib: u64) -> Capacity {
    Capacity { cpu: MilliCpu(100), memory: ByteCount::mib(mib), disk: ByteCount::mib(mib) }
}

fn location(idx: usize, reachable: bool, free_mib: u64) -> LocationState {
    let free = Capacity { cpu: MilliCpu(1_000_000), ..capacity(free_mib) };
    LocationState {
        name: format!("loc{idx}").parse().unwrap(),
        reachable,
        late: false,
        cordon: None,
        free,
        without: vec![],
        coordinates: None,
        traits: Traits::default(),
        kinds: vec![NodeKind {
            traits: Traits::default(),
            reached: vec![],
            open: true,
            n_nodes: 1,
            free,
            largest: free,
            gpus: GpuSummary::default(),
            freed: vec![],
        }],
        unheard: false,
        round_trips: BTreeMap::new(),
    }
}

fn plan(now: u64, app: &WantedApp, locations: &[LocationState]) -> Vec<Share> {
    plan_shares(Timestamp(now), app, locations).shares
}

fn app(count: u32, max: u32, shares: Vec<Share>) -> WantedApp {
    let (project, app) = (ProjectName::default(), "web".parse().unwrap());
    let (placement, tried) = (Placement::default(), None);
    let each = capacity(100);
    WantedApp {
        project,
        app,
        count,
        max,
        each,
        gpus: None,
        placement,
        tried,
        refusals: BTreeMap::new(),
        may_make_room: BTreeSet::new(),
        priority: Priority::default(),
        pinned: None,
        demand: Demand::default(),
        shares,
    }
}

fn counts(shares: &[Share]) -> Vec<(String, u32, u32)> {
    shares.iter().map(|s| (s.location.to_string(), s.count, s.budget)).collect()
}

#[test]
fn one_location_gets_everything_and_as_much_again_by_default() {
    let shares = plan(5, &app(2, 6, vec![]), &[location(1, true, 1000)]);
    assert_eq!(counts(&shares), [("loc1".to_owned(), 2, 4)]);
    assert_eq!(shares[0].decision.why, "the only location");
}

#[test]
fn canaries_are_spread_in_proportion_to_what_runs() {
    for (counts, n_canaries, expected) in [
        (vec![4, 2, 1], 0, vec![0, 0, 0]),
        (vec![4, 2, 1], 1, vec![1, 0, 0]),
        (vec![4, 2, 1], 7, vec![4, 2, 1]),
        (vec![1, 1, 1], 2, vec![1, 1, 0]),
        (vec![0, 3], 2, vec![0, 2]),
        (vec![0], 1, vec![0]),
        (vec![], 1, vec![]),
    ] {
        assert_eq!(spread_canaries(&counts, n_canaries), expected);
    }
}

#[test]
fn what_no_location_has_room_for_waits_and_says_what_is_missing_where() {
    let locations = [location(1, false, 1000), location(2, true, 250)];
    let Shared { shares, waiting } = plan_shares(Timestamp(5), &app(8, 16, vec![]), &locations);
    assert_eq!(counts(&shares), [("loc2".to_owned(), 2, 14)]);
    let Waiting { missing, decision } = waiting.unwrap();
    assert_eq!((missing, decision.chosen), (6, None));
    assert_eq!(decision.why, "no location has 100 MiB of memory free");
    let told: Vec<_> = decision.candidates.iter().map(|one| (one.lack, one.why.as_str())).collect();
    let memory =
        "refused: 100 MiB of memory needed, 50 MiB free; 100 MiB of disk needed, 50 MiB free";
    let silent = "refused: it has not reported lately";
    assert_eq!(told, [(Some(Lack::Report), silent), (Some(Lack::Memory), memory)]);

    let nowhere = plan_shares(Timestamp(5), &app(1, 2, vec![]), &[]).waiting.unwrap();
    assert_eq!(nowhere.decision.why, "no location has reported");
    // With room there is nothing to wait for.
    let with_room = plan_shares(Timestamp(6), &app(8, 16, shares), &[location(2, true, 9000)]);
    assert_eq!((with_room.shares[0].count, with_room.waiting), (8, None));
}

#[test]
fn a_location_without_disk_is_refused_and_says_so() {
    let mut full = location(1, true, 9000);
    full.free.disk = ByteCount::mib(10);
    let shares = plan(5, &app(3, 6, vec![]), &[full, location(2, true, 1000)]);
    assert_eq!(counts(&shares), [("loc2".to_owned(), 3, 5)]);
    let whys: Vec<_> = shares[0].decision.candidates.iter().map(|c| c.why.as_str()).collect();
    assert!(whys.contains(&"refused: 100 MiB of disk needed, 10 MiB free"), "{whys:?}");
}

#[test]
fn a_lowered_budget_is_not_given_away_before_it_is_acknowledged() {
    let locations = [location(1, true, 1000), location(2, true, 9000)];
    let first = plan(1, &app(4, 8, vec![]), &locations[..1]);
    assert_eq!(first[0].budget, 6);
    let second = plan(2, &app(6, 8, first), &locations);
    let total: u32 = second.iter().map(|share| share.budget_in_force).sum();
    assert!(total <= 8, "{second:?}");
}

mod constrained;
mod demanded;
mod drained;
mod gpus;
mod lost;
mod reach;
mod refused;
mod room;

/// For each location whether it is reachable and what is free; for each wish its count and what
/// `max` allows beyond it.
type World = (Vec<(bool, u64)>, Vec<(u32, u32)>);

fn worlds() -> impl Strategy<Value = World> {
    (
        prop::collection::vec((any::<bool>(), 0..2000_u64), 0..6),
        prop::collection::vec((0..20_u32, 0..20_u32), 1..6),
    )
}

proptest! {
    /// Safety: whatever the wishes and the world, budgets in force never sum above the greatest
    /// `max` so far, and each share's count lies within its own budget or waits for one.
    #[test]
    fn budgets_never_exceed_max((world, wishes) in worlds()) {
        let locations: Vec<_> =
            world.iter().enumerate().map(|(idx, (up, free))| location(idx, *up, *free)).collect();
        let mut shares = Vec::new();
        let mut greatest = 0;
        for (count, extra) in wishes {
            let wanted = app(count, count + extra, shares.clone());
            greatest = greatest.max(wanted.max);
            let planned = plan(1, &wanted, &locations);
            let in_force: u32 = planned.iter().map(|share| share.budget_in_force).sum();
            prop_assert!(in_force <= greatest, "{planned:?}");
            let total: u32 = planned.iter().map(|share| share.count).sum();
            let Shared { shares: again, waiting } = plan_shares(Timestamp(1), &wanted, &locations);
            prop_assert_eq!(total + waiting.map_or(0, |waiting| waiting.missing), count);
            prop_assert_eq!(&again, &planned);
            shares = planned;
        }
    }
}
