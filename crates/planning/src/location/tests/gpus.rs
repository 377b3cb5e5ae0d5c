//! GPUs, and who gets what of which.

use std::collections::BTreeMap;

use longshore_types::{GpuModel, GpuNeed, GpuShare};

use super::*;

/// A node with room for many, and these GPUs by model and GiB.
fn with_gpus(name: &str, gpus: &[(&str, u64)]) -> NodeState {
    let gpu = |(model, gib): &(&str, u64)| Gpu {
        model: model.parse().unwrap(),
        memory: ByteCount::gib(*gib),
    };
    NodeState { gpus: gpus.iter().map(gpu).collect(), ..node(name, 100) }
}

/// So many GPUs with so many GiB each, the whole of each where that is 0.
fn need(count: u32, gib: u64, models: &[&str]) -> GpuNeed {
    let memory = (gib > 0).then(|| ByteCount::gib(gib));
    GpuNeed { count, memory, models: models.iter().map(|model| model.parse().unwrap()).collect() }
}

fn app(name: &str, count: u32, gpus: Option<GpuNeed>) -> WantedApp {
    let app = name.parse().unwrap();
    WantedApp { app, main: Goal { gpus, ..goal(1, count) }, ..wanted(1, count, 2 * count) }
}

/// What each instance of an app has of which GPUs of which node.
fn held(world: &World, app: &str) -> Vec<String> {
    let of_app = world.snapshot.instances.iter().filter(|one| one.app.as_str() == app);
    let mut held: Vec<_> = of_app.map(|one| format!("{} {}", one.node, one.gpus)).collect();
    held.sort();
    held
}

#[test]
fn instances_share_a_gpu_by_memory_and_what_is_whole_is_kept_for_what_needs_it() {
    let mut world =
        World::new(vec![with_gpus("n1", &[("h100", 80), ("h100", 80)]), node("n2", 100)]);
    world.snapshot.wanted = vec![app("small", 3, Some(need(1, 20, &["h100"])))];
    let plan = world.apply();
    assert_eq!(held(&world, "small"), ["n1 0", "n1 0", "n1 0"]);
    let Action::Place { decision, .. } = &plan.actions[0] else { panic!("{plan:#?}") };
    assert!(decision.why.contains("60 GiB of h100 stay free on GPU 0"), "{}", decision.why);
    let refused = decision.candidates.iter().find(|one| one.name == "n2").unwrap();
    assert_eq!(refused.lack, Some(Lack::Gpu));
    assert_eq!(refused.why, "refused: needs 1 GPU of h100 with 20 GiB free, and there is no GPU");

    world.settle();
    world.snapshot.wanted.push(app("whole", 2, Some(need(1, 0, &[]))));
    let plan = world.apply();
    assert_eq!(held(&world, "whole"), ["n1 1"]);
    let short = &plan.shortfalls[0];
    assert_eq!((short.missing, short.decision.why.as_str()), (1, "no node has 1 whole GPU free"));
    world.settle();
    world.snapshot.wanted[1] = app("whole", 1, Some(need(1, 0, &[])));
    world.snapshot.wanted.push(app("large", 1, Some(need(1, 21, &[]))));
    let short = world.apply().shortfalls.remove(0).decision;
    let told = short.candidates.iter().find(|one| one.name == "n1").unwrap();
    assert_eq!(told.why, "refused: needs 1 GPU with 21 GiB free, the largest free is 20 GiB");
    // As soon as one leaves there is room.
    world.snapshot.wanted[0] = app("small", 2, Some(need(1, 20, &["h100"])));
    world.settle();
    assert_eq!(held(&world, "large"), ["n1 0"]);
}

#[test]
fn several_gpus_are_on_one_node_and_of_one_model() {
    let nodes = vec![
        with_gpus("n1", &[("h100", 80), ("l4", 24)]),
        with_gpus("n2", &[("h100", 80)]),
        with_gpus("n3", &[("l4", 24), ("h100", 80), ("l4", 24)]),
    ];
    let mut world = World::new(nodes);
    world.snapshot.wanted = vec![app("pair", 2, Some(need(2, 0, &[])))];
    let plan = world.apply();
    assert_eq!(held(&world, "pair"), ["n3 0,2"]);
    let told = &plan.shortfalls[0].decision.candidates[0].why;
    assert_eq!(told, "refused: needs 2 whole GPUs free, one on a node is");
}

#[test]
fn what_needs_no_gpu_leaves_their_nodes_free_as_long_as_another_has_as_few_of_it() {
    let large =
        NodeState { capacity: node("x", 1000).capacity, ..with_gpus("n1", &[("h100", 80)]) };
    let mut world = World::new(vec![large, node("n2", 2)]);
    world.snapshot.wanted = vec![app("web", 1, None)];
    world.settle();
    assert_eq!(held(&world, "web"), ["n2 "]);
    // It spreads all the same, and goes there when there is no other room.
    world.snapshot.wanted = vec![app("web", 4, None)];
    world.settle();
    assert_eq!(held(&world, "web"), ["n1 ", "n1 ", "n2 ", "n2 "]);
}

#[test]
fn others_leave_gpus_for_what_matters_more() {
    let mut world = World::new(vec![with_gpus("n1", &[("l4", 24), ("l4", 24)])]);
    let batch = |name: &str, number, gib| {
        let main = Goal {
            priority: Priority::new(number).unwrap(),
            ..app(name, 1, Some(need(1, gib, &[]))).main
        };
        WantedApp { main, make_room: 1, ..app(name, 1, None) }
    };
    world.snapshot.wanted = vec![batch("a", 20, 20), batch("b", 30, 20)];
    world.settle();
    world.snapshot.wanted.push(batch("web", 80, 10));
    let plan = world.apply();
    let [Action::Drain { why, .. }] = &plan.actions[..] else { panic!("{plan:#?}") };
    assert_eq!(why, "makes room for web (priority 80)");
    world.snapshot.wanted[0].make_room = 0;
    world.settle();
    let all = ["a", "b", "web"].map(|app| held(&world, app).len());
    assert_eq!(all, [0, 1, 1], "{:#?}", world.snapshot.instances);
}

/// What is free of each GPU of a node, by what its instances hold.
fn free(
    world: &World,
    node: &NodeState,
    counts: impl Fn(&PlacedInstance) -> bool,
) -> Vec<(GpuModel, u64, u64)> {
    let on_node: Vec<_> = world
        .snapshot
        .instances
        .iter()
        .filter(|one| one.node == node.name && counts(one))
        .collect();
    let each = (0..).zip(&node.gpus).map(|(index, gpu)| {
        let held: u64 = on_node.iter().map(|one| one.gpus.of(index).0).sum();
        assert!(held <= gpu.memory.0, "GPU {index} of {} is given twice", node.name);
        (gpu.model.clone(), gpu.memory.0, gpu.memory.0 - held)
    });
    each.collect()
}

/// Whether such a need finds its GPUs among these.
fn fits(need: &GpuNeed, free: &[(GpuModel, u64, u64)]) -> bool {
    let mut suiting: BTreeMap<&GpuModel, u32> = BTreeMap::new();
    for (model, memory, free) in free {
        let is_asked_for = need.models.is_empty() || need.models.contains(model);
        let is_enough = *free >= need.memory.map_or(*memory, |asked| asked.0);
        *suiting.entry(model).or_default() += u32::from(is_asked_for && is_enough);
    }
    suiting.values().any(|n| *n >= need.count)
}

/// That nothing is given twice, and that everybody has what it asked for and no other.
fn check(world: &World) {
    for node in &world.snapshot.nodes {
        free(world, node, |_| true);
    }
    for one in &world.snapshot.instances {
        let Some(need) = world.goal(&one.app, one.release).gpus else {
            assert!(one.gpus.is_empty());
            continue;
        };
        let node = world.snapshot.nodes.iter().find(|node| node.name == one.node).unwrap();
        let shares: Vec<GpuShare> = one.gpus.iter().collect();
        let given: Vec<&Gpu> =
            shares.iter().map(|share| &node.gpus[share.index as usize]).collect();
        assert_eq!(given.len(), need.count as usize);
        for (share, gpu) in shares.iter().zip(&given) {
            assert_eq!(share.memory, need.memory.unwrap_or(gpu.memory));
            assert!(need.takes(&gpu.model) && gpu.model == given[0].model, "{need} got {given:?}");
        }
    }
}

const MODELS: [&str; 2] = ["h100", "l4"];

fn needs() -> impl Strategy<Value = Option<GpuNeed>> {
    let models = prop::sample::subsequence(MODELS.to_vec(), 0..=2);
    prop::option::weighted(
        0.8,
        (1..3_u32, 0..6_u64, models).prop_map(|(n, gib, of)| need(n, gib, &of)),
    )
}

proptest! {
    /// Whatever comes, goes and makes room for what: no GPU is given twice, nobody has one of a model that it did
    /// not ask for, the same comes out again, and nothing waits whose GPUs are free.
    #[test]
    fn gpus_are_given_once_as_asked_for_and_not_left_idle(
        nodes in prop::collection::vec(
            prop::collection::vec((prop::sample::select(MODELS.to_vec()), 1..6_u64), 0..4), 1..4),
        waves in prop::collection::vec(
            prop::collection::vec((1..=100_u8, 0..4_u32, needs(), any::<bool>()), 1..4), 1..4),
    ) {
        let nodes = nodes.iter().enumerate().map(|(idx, gpus)| with_gpus(&format!("n{idx}"), gpus));
        let mut world = World::new(nodes.collect());
        for (wave, apps) in waves.iter().enumerate() {
            for (idx, (number, count, need, asks)) in apps.iter().enumerate() {
                let mut app = app(&format!("a{wave}-{idx}"), *count, need.clone());
                app.main.priority = Priority::new(*number).unwrap();
                app.make_room = if *asks { *count } else { 0 };
                world.snapshot.wanted.push(app);
            }
            let mut n_rounds = 0;
            loop {
                let snapshot = world.snapshot.clone();
                let plan = world.apply();
                prop_assert_eq!(&plan, &super::plan(&snapshot), "the same again");
                check(&world);
                let moves = [Standing::NotReady, Standing::Leaving].iter().any(|it| world.n(*it) > 0);
                if plan.actions.is_empty() && !moves {
                    break;
                }
                if plan.actions.is_empty() {
                    world.let_time_pass();
                }
                n_rounds += 1;
                prop_assert!(n_rounds < 500, "it never ends");
            }
            for short in super::plan(&world.snapshot).shortfalls {
                let wanted = world.snapshot.wanted.iter().find(|one| one.app == short.app).unwrap();
                let Some(need) = &wanted.main.gpus else { continue };
                let limit = wanted.main.priority.displaces().filter(|_| wanted.make_room > 0);
                let stays = |one: &PlacedInstance| one.yields > limit || limit.is_none();
                for node in &world.snapshot.nodes {
                    let free = free(&world, node, stays);
                    prop_assert!(!fits(need, &free), "{need} of {} fits on {}", short.app, node.name);
                }
            }
            let idx = wave % world.snapshot.wanted.len();
            world.snapshot.wanted[idx].main.count = 0;
        }
    }
}
