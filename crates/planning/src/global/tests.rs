use longshore_types::{ByteCount, MilliCpu};
use proptest::prelude::*;

use super::*;

fn capacity(mib: u64) -> Capacity {
    Capacity { cpu: MilliCpu(100), memory: ByteCount::mib(mib), disk: ByteCount::mib(mib) }
}

fn location(idx: usize, reachable: bool, free_mib: u64) -> LocationState {
    let free = Capacity { cpu: MilliCpu(1_000_000), ..capacity(free_mib) };
    LocationState { name: format!("loc{idx}").parse().unwrap(), reachable, cordon: None, free }
}

fn app(count: u32, max: u32, shares: Vec<Share>) -> WantedApp {
    let (project, app) = (ProjectName::default(), "web".parse().unwrap());
    WantedApp { project, app, count, max, each: capacity(100), pinned: None, shares }
}

fn counts(shares: &[Share]) -> Vec<(String, u32, u32)> {
    shares.iter().map(|s| (s.location.to_string(), s.count, s.budget)).collect()
}

#[test]
fn one_location_gets_everything_and_the_whole_budget() {
    let shares = plan_shares(Timestamp(5), &app(2, 4, vec![]), &[location(1, true, 1000)]);
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
        let shares: Vec<_> = counts.into_iter().map(share_of).collect();
        assert_eq!(spread_canaries(&shares, n_canaries), expected);
    }
}

fn share_of(count: u32) -> Share {
    plan_shares(Timestamp(5), &app(1, 2, vec![]), &[location(1, true, 1000)])
        .pop()
        .map(|share| Share { count, ..share })
        .expect("one location gets it")
}

#[test]
fn a_full_world_lets_the_instance_wait_where_it_is_reachable() {
    let locations = [location(1, false, 1000), location(2, true, 50)];
    let shares = plan_shares(Timestamp(5), &app(1, 2, vec![]), &locations);
    assert_eq!(counts(&shares), [("loc2".to_owned(), 1, 2)]);
    assert!(shares[0].decision.why.contains("no location has room"), "{shares:?}");
}

#[test]
fn a_location_without_disk_is_refused_and_says_so() {
    let mut full = location(1, true, 9000);
    full.free.disk = ByteCount::mib(10);
    let shares = plan_shares(Timestamp(5), &app(3, 6, vec![]), &[full, location(2, true, 1000)]);
    assert_eq!(counts(&shares), [("loc2".to_owned(), 3, 6)]);
    let whys: Vec<_> = shares[0].decision.candidates.iter().map(|c| c.why.as_str()).collect();
    assert!(whys.contains(&"refused: 100 MiB of disk needed, 10 MiB free"), "{whys:?}");
}

#[test]
fn a_lowered_budget_is_not_given_away_before_it_is_acknowledged() {
    let locations = [location(1, true, 1000), location(2, true, 9000)];
    let first = plan_shares(Timestamp(1), &app(4, 8, vec![]), &locations[..1]);
    assert_eq!(first[0].budget, 8);
    let second = plan_shares(Timestamp(2), &app(6, 8, first), &locations);
    let total: u32 = second.iter().map(|share| share.budget_in_force).sum();
    assert!(total <= 8, "{second:?}");
}

mod drained;

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
            let planned = plan_shares(Timestamp(1), &wanted, &locations);
            let in_force: u32 = planned.iter().map(|share| share.budget_in_force).sum();
            prop_assert!(in_force <= greatest, "{planned:?}");
            let total: u32 = planned.iter().map(|share| share.count).sum();
            if locations.iter().any(|location| location.reachable) {
                prop_assert_eq!(total, count);
            }
            prop_assert_eq!(&plan_shares(Timestamp(1), &wanted, &locations), &planned);
            shares = planned;
        }
    }
}
