//! Locations with GPUs.

use longshore_types::{GpuNeed, GpuShare, GpuShares, NodeGpu, Yielding};

use super::*;

/// A location whose nodes have these GPUs: of each its model, its GiB and how many of those are promised.
fn with_gpus(idx: usize, nodes: &[Vec<(&str, u64, u64)>]) -> LocationState {
    yielding(idx, nodes, &[])
}

/// The same, with what may be made to leave the first of the nodes: of each its priority and the GiB that it holds of
/// its first GPU.
fn yielding(idx: usize, nodes: &[Vec<(&str, u64, u64)>], leave: &[(u8, u64)]) -> LocationState {
    let state = location(idx, true, 100_000);
    let gpu = |(model, gib, promised): &(&str, u64, u64)| NodeGpu {
        model: model.parse().unwrap(),
        memory: ByteCount::gib(*gib),
        promised: ByteCount::gib(*promised),
        leaving: ByteCount(0),
    };
    let gpus: Vec<Vec<NodeGpu>> = nodes.iter().map(|gpus| gpus.iter().map(gpu).collect()).collect();
    let leave = leave.iter().map(|(number, gib)| Yielding {
        priority: Priority::new(*number).unwrap(),
        instances: 1,
        promised: capacity(100),
        gpus: GpuShares::from(vec![GpuShare { index: 0, memory: ByteCount::gib(*gib) }]),
    });
    let (leave, traits) = (leave.collect::<Vec<_>>(), Traits::default());
    let reported = gpus.iter().enumerate().map(|(idx, gpus)| ReportedNode {
        traits: &traits,
        open: true,
        capacity: state.free,
        promised: Capacity::default(),
        leaving: Capacity::default(),
        yielding: if idx == 0 { &leave } else { &[] },
        gpus,
        reached: &[],
    });
    let kinds = kinds(reported);
    LocationState { kinds, ..state }
}

fn needing(count: u32, (n_gpus, gib): (u32, u64), models: &[&str]) -> WantedApp {
    let memory = (gib > 0).then(|| ByteCount::gib(gib));
    let models = models.iter().map(|model| model.parse().unwrap()).collect();
    WantedApp {
        gpus: Some(GpuNeed { count: n_gpus, memory, models }),
        ..app(count, 2 * count, vec![])
    }
}

#[test]
fn an_app_goes_where_its_gpus_are_and_no_more_of_it_than_these_take() {
    let locations = [
        with_gpus(1, &[vec![("l4", 24, 0)], vec![("l4", 24, 0)]]),
        with_gpus(2, &[vec![("h100", 80, 72), ("h100", 80, 0)], vec![("h100", 80, 40)]]),
        location(3, true, 900_000),
    ];
    let app = needing(8, (1, 20), &["h100", "a100"]);
    let Shared { shares, waiting } = plan_shares(Timestamp(5), &app, &locations);
    // Four on the one that is whole, two on the other.
    assert_eq!(counts(&shares), [("loc2".to_owned(), 6, 11)]);
    let why = &shares[0].decision.why;
    assert!(why.ends_with("it has 1 GPU of a100 or h100 with 20 GiB free"), "{why}");
    let Waiting { missing, decision } = waiting.unwrap();
    assert_eq!(missing, 2);
    assert_eq!(decision.why, "no location has 1 GPU of a100 or h100 with 20 GiB free");
    let told: BTreeMap<_, _> =
        decision.candidates.iter().map(|one| (one.name.as_str(), one.why.as_str())).collect();
    let needs = "refused: needs 1 GPU of a100 or h100 with 20 GiB free";
    assert_eq!(told["loc1"], format!("{needs}, and there is only l4"));
    assert_eq!(told["loc2"], format!("{needs}, and has that for 6 that it is given"));
    assert_eq!(told["loc3"], format!("{needs}, and there is no GPU"));
}

#[test]
fn what_needs_gpus_from_now_on_leaves_where_there_are_none_once_another_runs() {
    let (bare, small) = (location(1, true, 9000), with_gpus(2, &[vec![("l4", 16, 0)]]));
    let right = with_gpus(3, &[vec![("l4", 24, 0)]]);
    let before = |name: &LocationName| {
        let mut shares = plan(1, &app(1, 3, vec![]), &[location(9, true, 9000)]);
        (shares[0].location, shares[0].ready) = (name.clone(), 1);
        shares
    };
    for old in [&bare, &small] {
        let locations = [old.clone(), right.clone()];
        let wanted = |shares| WantedApp { max: 3, shares, ..needing(1, (1, 20), &[]) };
        let mut both = plan(2, &wanted(before(&old.name)), &locations);
        assert_eq!((count_at(&both, &old.name), count_at(&both, &right.name)), (1, 1));
        for share in &mut both {
            share.budget_in_force = share.budget;
        }
        assert_eq!(count_at(&plan(3, &wanted(both.clone()), &locations), &old.name), 1);
        both.iter_mut().for_each(|share| share.ready = share.count);
        let moved = plan(4, &wanted(both), &locations);
        assert_eq!((count_at(&moved, &old.name), count_at(&moved, &right.name)), (0, 1));
    }
    // What is tried beside it finds its place there, and what runs stays where it is.
    let locations = [bare.clone(), right.clone()];
    let tried = Some(Placement::default());
    let trying =
        WantedApp { max: 3, tried, shares: before(&bare.name), ..needing(1, (1, 20), &[]) };
    let beside = plan(2, &trying, &locations);
    assert_eq!((count_at(&beside, &bare.name), count_at(&beside, &right.name)), (1, 0));
    assert!(beside.iter().any(|share| share.location == right.name), "{beside:?}");
    // Where nobody has such, and where not every node was heard, it stays.
    let needs = |shares| WantedApp { shares, ..needing(1, (1, 20), &[]) };
    let stays = plan(2, &needs(before(&bare.name)), &[bare.clone(), small.clone()]);
    assert_eq!(count_at(&stays, &bare.name), 1);
    let unheard = LocationState { unheard: true, ..bare };
    let stays = plan(2, &needs(before(&unheard.name)), &[unheard.clone(), right]);
    assert_eq!((stays.len(), count_at(&stays, &unheard.name)), (1, 1));
}

#[test]
fn several_are_on_one_node() {
    let apart = with_gpus(1, &[vec![("l4", 24, 0)], vec![("l4", 24, 0)]]);
    let together = with_gpus(2, &[vec![("l4", 24, 0), ("l4", 24, 4)]]);
    let pair = needing(1, (2, 20), &[]);
    let shares = plan(5, &pair, &[apart.clone(), together]);
    assert_eq!(shares[0].location.as_str(), "loc2");
    let waiting = plan_shares(Timestamp(5), &pair, &[apart]).waiting.unwrap().decision;
    let told = "refused: needs 2 GPUs with 20 GiB each free, one on a node is";
    assert_eq!(waiting.candidates[0].why, told);
    assert_eq!(waiting.candidates[0].lack, Some(Lack::Gpu));
}

#[test]
fn what_is_on_its_way_is_taken_and_what_is_freed_wakes_what_waits() {
    let before = with_gpus(1, &[(); 3].map(|()| vec![("l4", 24, 0)]));
    let app = needing(1, (1, 20), &[]);
    let mut taken = before.clone();
    for left in [2, 1, 0] {
        taken.take(&app.placement, (app.each, app.gpus.as_ref()), None);
        assert_eq!(
            plan(5, &needing(5, (1, 20), &[]), std::slice::from_ref(&taken))
                .first()
                .map_or(0, |one| one.count),
            left
        );
    }
    let waiting = plan_shares(Timestamp(5), &app, std::slice::from_ref(&taken)).waiting.unwrap();
    let blocked = Blocked::new(&waiting.decision);
    let woken = |after: &LocationState| {
        blocked.is_woken(&supplies(std::slice::from_ref(&taken), std::slice::from_ref(after)))
    };
    assert!(!woken(&taken));
    let fuller = with_gpus(1, &[vec![("l4", 24, 22)], vec![("l4", 24, 20)], vec![("l4", 24, 20)]]);
    assert!(!woken(&fuller), "there is less");
    assert!(woken(&with_gpus(
        1,
        &[vec![("l4", 24, 20)], vec![("l4", 24, 19)], vec![("l4", 24, 20)]]
    )));
    assert!(woken(&before));
    // A second of them on one node is more too.
    let apart =
        with_gpus(1, &[vec![("l4", 24, 0), ("l4", 24, 9)], vec![("l4", 24, 0), ("l4", 24, 9)]]);
    let together =
        with_gpus(1, &[vec![("l4", 24, 0), ("l4", 24, 0)], vec![("l4", 24, 9), ("l4", 24, 9)]]);
    let pair = plan_shares(Timestamp(5), &needing(1, (2, 0), &[]), std::slice::from_ref(&apart))
        .waiting
        .unwrap();
    assert!(Blocked::new(&pair.decision).is_woken(&supplies(&[apart], &[together])));
}

#[test]
fn others_leave_gpus_where_that_is_enough() {
    let full = |idx, leave: &[(u8, u64)]| yielding(idx, &[vec![("l4", 24, 24)]], leave);
    let important =
        |number| WantedApp { priority: Priority::new(number).unwrap(), ..needing(1, (1, 20), &[]) };
    let locations = [full(1, &[(30, 24)]), full(2, &[(20, 10), (40, 14)]), full(3, &[(20, 10)])];
    let shares = plan(5, &important(80), &locations);
    assert_eq!((shares[0].location.as_str(), shares[0].make_room), ("loc1", 1));
    assert!(plan(5, &important(39), &locations).is_empty());
    let shares = plan(5, &important(80), &locations[1..]);
    assert_eq!(shares[0].location.as_str(), "loc2");
}

#[test]
fn what_is_said_of_gpus_is_read_back_and_of_none_nothing_is_said() {
    let state =
        yielding(1, &[vec![("h100", 80, 60), ("h100", 80, 60), ("l4", 24, 0)]], &[(20, 60)]);
    let said = serde_json::to_value(&state).unwrap();
    assert_eq!(serde_json::from_value::<LocationState>(said.clone()).unwrap(), state);
    let h100 = serde_json::json!({"model": "h100", "memory": 80_u64 << 30, "free": 20_u64 << 30});
    assert_eq!(
        said["kinds"][0]["gpus"][0]["gpus"][0],
        serde_json::json!({"gpu": h100, "count": 2})
    );
    let none = serde_json::to_value(location(1, true, 9)).unwrap();
    assert!(none["kinds"][0].get("gpus").is_none());
}

type Nodes = Vec<Vec<(&'static str, u64, u64)>>;

fn nodes() -> impl Strategy<Value = Vec<Nodes>> {
    let gpu = (prop::sample::select(vec!["h100", "l4"]), 1..9_u64, 0..9_u64)
        .prop_map(|(model, gib, promised)| (model, gib, promised.min(gib)));
    let node = prop::collection::vec(gpu, 0..4);
    prop::collection::vec(prop::collection::vec(node, 0..4), 1..4)
}

proptest! {
    /// No location is given more than its GPUs take, each by itself; and nothing waits that one would take.
    #[test]
    fn locations_are_given_what_their_gpus_take_and_no_more(
        world in nodes(),
        count in 0..20_u32,
        gib in 0..9_u64,
        models in prop::sample::subsequence(vec!["h100", "l4"], 0..=2),
    ) {
        let locations: Vec<_> =
            world.iter().enumerate().map(|(idx, nodes)| with_gpus(idx, nodes)).collect();
        let app = needing(count, (1, gib), &models);
        let Shared { shares, waiting } = plan_shares(Timestamp(5), &app, &locations);
        prop_assert_eq!(&plan_shares(Timestamp(5), &app, &locations).shares, &shares);
        let takes = |(model, memory, promised): &(&str, u64, u64)| {
            let suits = models.is_empty() || models.contains(model);
            let free = memory - promised;
            let fit = free.checked_div(gib).unwrap_or(u64::from(*promised == 0));
            if suits { u32::try_from(fit).unwrap() } else { 0 }
        };
        let mut most = 0;
        for (idx, nodes) in world.iter().enumerate() {
            let here: u32 = nodes.iter().flatten().map(takes).sum();
            let given = count_at(&shares, &format!("loc{idx}").parse().unwrap());
            prop_assert!(given <= here, "{given} of {here} at loc{idx}");
            most += here;
        }
        prop_assert_eq!(waiting.map_or(0, |waiting| waiting.missing), count.saturating_sub(most));
    }

    /// What is taken one after the other is as much as there is room for, and less each time.
    #[test]
    fn what_is_taken_is_what_there_is_room_for(world in nodes(), n_gpus in 1..3_u32, gib in 0..5_u64) {
        let mut state = with_gpus(0, &world[0]);
        let app = needing(1, (n_gpus, gib), &[]);
        let need = app.gpus.as_ref().unwrap();
        // Of a need of several what is best for one need not be best for all.
        let mut n_taken = 0;
        while state.has_gpus_for(&app, 1) {
            let before = state.clone();
            state.take(&app.placement, (app.each, Some(need)), None);
            let less = state.kinds.iter().zip(&before.kinds);
            prop_assert!(less.clone().all(|(after, before)| !after.gpus.is_more_than(&before.gpus)));
            prop_assert!(before.kinds.iter().zip(&state.kinds).any(|(before, after)| before.gpus.is_more_than(&after.gpus)));
            n_taken += 1;
            prop_assert!(n_taken < 1000);
        }
        if n_gpus == 1 {
            prop_assert!(with_gpus(0, &world[0]).has_gpus_for(&app, n_taken));
        }
        prop_assert!(!with_gpus(0, &world[0]).has_gpus_for(&app, n_taken + 1) || n_gpus > 1);
    }
}
