//! Where others leave for what has room nowhere.

use longshore_types::Yielding;

use super::*;

fn priority(number: u8) -> Priority {
    Priority::new(number).unwrap()
}

/// A location of nodes that each offer so much memory in MiB, of which instances of 100 MiB have some, by their
/// priorities; those of priority 0 leave.
fn full(idx: usize, nodes: &[(u64, &[u8])]) -> LocationState {
    let rich =
        |mib| Capacity { cpu: MilliCpu(1_000_000), disk: ByteCount::gib(100), ..capacity(mib) };
    let traits = Traits::default();
    let yielding: Vec<Vec<Yielding>> = nodes
        .iter()
        .map(|(_, all)| {
            let of = all.iter().filter_map(|number| Priority::new(*number));
            of.map(|priority| Yielding {
                priority,
                instances: 1,
                promised: capacity(100),
                gpus: Default::default(),
            })
            .collect()
        })
        .collect();
    let reported = nodes.iter().zip(&yielding).map(|((mib, all), yielding)| ReportedNode {
        traits: &traits,
        open: true,
        capacity: rich(*mib),
        promised: capacity(100 * all.len() as u64),
        leaving: capacity(100 * all.iter().filter(|number| **number == 0).count() as u64),
        yielding,
        gpus: &[],
        reached: &[],
    });
    let kinds = kinds(reported);
    let offered: u64 = nodes.iter().map(|(mib, _)| mib).sum();
    let mut all: Vec<u8> = nodes.iter().flat_map(|(_, all)| all.iter().copied()).collect();
    all.retain(|number| *number > 0);
    all.sort_unstable();
    let free = |n_stay: usize| rich(offered.saturating_sub(100 * n_stay as u64));
    let without = all
        .iter()
        .enumerate()
        .map(|(idx, number)| Without { up_to: priority(*number), free: free(all.len() - idx - 1) });
    let without = without.collect();
    LocationState { kinds, without, free: free(all.len()), ..location(idx, true, offered) }
}

/// One instance of 100 MiB.
fn important(number: u8) -> WantedApp {
    WantedApp { priority: priority(number), ..app(1, 2, vec![]) }
}

#[test]
fn others_leave_where_the_least_has_to() {
    let by_priority =
        [full(1, &[(100, &[30])]), full(2, &[(100, &[20])]), full(3, &[(100, &[71])])];
    for (number, expected) in [(29, None), (30, Some("loc2")), (80, Some("loc2"))] {
        let Shared { shares, waiting } =
            plan_shares(Timestamp(5), &important(number), &by_priority);
        assert_eq!(shares.first().map(|share| share.location.as_str()), expected, "{number}");
        assert_eq!(waiting.is_some(), expected.is_none());
        assert!(shares.iter().all(|share| (share.count, share.make_room) == (1, 1)));
    }
    let told = &plan(5, &important(80), &by_priority)[0].decision;
    assert_eq!(
        told.why,
        "no location has 100 MiB of memory free; about 1 of priority 20 or lower makes room for it \
         (priority 80)"
    );
    let first = &told.candidates[0];
    assert_eq!(
        (first.name.as_str(), first.why.as_str()),
        ("loc2", "once about 1 of priority 20 or lower has left")
    );
    assert_eq!(told.candidates.len(), 3);

    // The same priority, and fewer of them.
    let large = WantedApp { each: capacity(200), ..important(80) };
    let by_number = [full(1, &[(200, &[20, 20])]), full(2, &[(250, &[20]), (150, &[20])])];
    let shares = plan(5, &large, &by_number);
    assert_eq!(shares[0].location.as_str(), "loc2", "{shares:#?}");
    // Together they would be enough, and on no node.
    let apart = [full(1, &[(100, &[20]), (100, &[20])])];
    assert!(plan(5, &large, &apart).is_empty());
}

#[test]
fn nobody_leaves_where_there_is_room_or_will_be() {
    let room = [full(1, &[(100, &[20])]), full(2, &[(100, &[])])];
    let shares = plan(5, &important(80), &room);
    assert_eq!((shares[0].location.as_str(), shares[0].make_room), ("loc2", 0));
    let soon = [full(1, &[(100, &[20])]), full(2, &[(100, &[0])])];
    let waiting = plan_shares(Timestamp(5), &important(80), &soon).waiting.unwrap();
    let why = &waiting.decision.why;
    assert!(why.ends_with("; loc2 has, once what leaves there has left"), "{why}");
}

#[test]
fn a_location_makes_room_for_what_it_refused_and_is_not_asked_again_in_vain() {
    let locations = [full(1, &[(100, &[20])]), full(2, &[(100, &[30])])];
    let mut shares = plan(5, &important(80), &[full(1, &[(100, &[])])]);
    shares[0].refused = 1;
    let loc1: LocationName = "loc1".parse().unwrap();
    let refusals: BTreeMap<_, _> = [(loc1.clone(), (Lack::Memory, "no room".to_owned()))].into();
    let wanted = WantedApp { shares, refusals, ..important(80) };
    let asked = WantedApp { may_make_room: [loc1].into(), ..wanted.clone() };
    let stays = plan(6, &asked, &locations);
    assert_eq!((stays[0].location.as_str(), stays[0].make_room), ("loc1", 1));
    // It found nobody, so others do at the next location.
    let goes = plan(6, &wanted, &locations);
    assert_eq!((goes[0].location.as_str(), goes[0].make_room), ("loc2", 1));
    assert_eq!(goes.len(), 1);
    // What is to run beside the count is no reason.
    let more = WantedApp { count: 0, ..important(80) };
    assert!(plan(6, &more, &locations).is_empty());
}

#[test]
fn what_may_leave_is_no_supply_before_there_is_more_of_it() {
    let before = [full(1, &[(300, &[90, 90])])];
    // What matters less took what was free: without it there is as much as before.
    let taken = [full(1, &[(300, &[90, 90, 20])])];
    assert!(supplies(&before, &taken).is_empty());
    let replaced = [full(1, &[(300, &[90, 20, 20])])];
    assert!(supplies(&taken, &replaced)[&before[0].name].contains(&Lack::Memory));
}
