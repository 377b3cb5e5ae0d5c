//! What matters more, and who leaves for it.

use super::*;

fn priority(number: u8) -> Priority {
    Priority::new(number).unwrap()
}

/// An app of so many instances that each take so many hundred MiB, for all of which others may leave.
fn app(name: &str, number: u8, (count, size): (u32, u64)) -> WantedApp {
    let each = Capacity { memory: ByteCount::mib(100 * size), ..EACH };
    let main = Goal { priority: priority(number), each, ..goal(1, count) };
    let app = name.parse().unwrap();
    WantedApp { app, main, make_room: count, budget: 2 * count, ..wanted(1, count, count) }
}

fn world(nodes: &[u64], apps: Vec<WantedApp>) -> World {
    let nodes = nodes.iter().enumerate();
    let nodes = nodes.map(|(idx, memory)| node_with(&format!("n{idx}"), *memory, 1000));
    let mut world = World::new(nodes.collect());
    world.snapshot.wanted = apps;
    world
}

impl World {
    /// How many of an app are on each node, in the order of the nodes.
    fn on_nodes(&self, app: &str) -> Vec<usize> {
        let of_node = |node: &NodeState| {
            let all = self.snapshot.instances.iter();
            all.filter(|one| one.app.as_str() == app && one.node == node.name).count()
        };
        self.snapshot.nodes.iter().map(of_node).collect()
    }

    fn assert_nothing_is_promised_twice(&self) {
        for node in &self.snapshot.nodes {
            let on_node = self.snapshot.instances.iter().filter(|one| one.node == node.name);
            let promised = on_node.fold(Capacity::default(), |sum, one| sum.plus(one.each));
            assert!(node.capacity.holds(promised), "{}", node.name);
        }
    }

    /// Until nothing changes any more; every one that left for another.
    fn run(&mut self) -> Vec<(PlacedInstance, String)> {
        let mut left = Vec::new();
        for _ in 0..500 {
            assert_eq!(plan(&self.snapshot), plan(&self.snapshot), "the same again");
            let before = self.snapshot.clone();
            let plan = self.apply();
            self.assert_nothing_is_promised_twice();
            for action in &plan.actions {
                if let Action::Drain { instance, why } = action
                    && let Some(rest) = why.strip_prefix("makes room for ")
                {
                    let one = before.instances.iter().find(|one| one.id == *instance).unwrap();
                    left.push((one.clone(), rest.split(' ').next().unwrap().to_owned()));
                }
            }
            let moves = [Standing::NotReady, Standing::Leaving].iter().any(|it| self.n(*it) > 0);
            if plan.actions.is_empty() && !moves {
                return left;
            }
            if plan.actions.is_empty() {
                self.let_time_pass();
            }
        }
        panic!("it never ends: {:#?}", self.snapshot);
    }
}

/// Which of `old`, each an app with one instance by priority and size, leave a node for one of priority 80, and
/// what is said of it.
fn leaving(old: &[(u8, u64)], memory: u64, size: u64) -> Vec<u8> {
    let apps = old.iter().enumerate();
    let apps = apps.map(|(idx, (number, size))| app(&format!("a{idx}"), *number, (1, *size)));
    let mut world = world(&[memory], apps.collect());
    assert!(world.run().is_empty());
    assert_eq!(world.n(Standing::Ready), old.len());
    world.snapshot.wanted.push(app("web", 80, (1, size)));
    let left = world.run();
    assert!(left.iter().all(|(_, by)| by == "web"));
    left.iter().map(|(one, _)| one.yields.unwrap().into()).collect()
}

#[test]
fn as_little_leaves_as_has_to_and_what_matters_least() {
    for (old, memory, size, expected) in [
        // There is room.
        (&[(20, 1), (30, 1)][..], 3, 1, &[][..]),
        (&[(20, 1), (30, 1)], 2, 1, &[20]),
        (&[(20, 1), (30, 1), (40, 1)], 3, 2, &[20, 30]),
        // One of the higher priority alone is enough, and the lower ones are not.
        (&[(20, 1), (30, 4)], 5, 4, &[30]),
        // What matters least, though it is more of them.
        (&[(20, 1), (20, 1), (30, 2)], 4, 2, &[20, 20]),
        // Not what matters as much, or hardly less.
        (&[(71, 1), (80, 1), (90, 1)], 3, 1, &[]),
        (&[(70, 1), (80, 1), (90, 1)], 3, 1, &[70]),
        // Not in vain.
        (&[(20, 1), (71, 2)], 3, 2, &[]),
    ] {
        assert_eq!(leaving(old, memory, size), expected, "{old:?}");
    }
}

#[test]
fn of_equals_the_youngest_leaves_and_everybody_is_told_why() {
    let mut world = world(&[2], vec![app("old", 50, (1, 1))]);
    world.run();
    world.snapshot.wanted.push(app("young", 50, (1, 1)));
    world.run();
    world.snapshot.wanted.push(app("web", 60, (1, 1)));
    let plan = world.apply();
    let [Action::Drain { instance, why }] = &plan.actions[..] else { panic!("{plan:#?}") };
    assert_eq!(why, "makes room for web (priority 60)");
    let [Shortfall { app, missing: 1, decision, room: RoomMaking::UnderWay, .. }] =
        &plan.shortfalls[..]
    else {
        panic!("{plan:#?}")
    };
    let waits = format!("waits on n0 until {instance} (priority 50) has left");
    assert_eq!((app.as_str(), decision.why.as_str()), ("web", waits.as_str()));
    // Nobody more leaves meanwhile, and what left finds no room.
    let next = world.apply();
    assert!(next.actions.is_empty(), "{next:#?}");
    let rooms: Vec<_> = next.shortfalls.iter().map(|one| (one.app.as_str(), one.room)).collect();
    assert_eq!(rooms, [("web", RoomMaking::UnderWay), ("young", RoomMaking::InVain)]);
    world.run();
    assert_eq!((world.on_nodes("old"), world.on_nodes("web")), (vec![1], vec![1]));
}

#[test]
fn nobody_leaves_unless_the_world_has_no_room_nor_for_what_a_rollout_has_beside_it() {
    let batch = app("batch", 20, (2, 1));
    let mut world = world(&[3], vec![batch.clone()]);
    world.run();
    let not_asked = WantedApp { make_room: 0, ..app("web", 80, (2, 1)) };
    world.snapshot.wanted = vec![batch.clone(), not_asked];
    assert!(world.run().is_empty());
    assert_eq!((world.on_nodes("batch"), world.on_nodes("web")), (vec![2], vec![1]));
    // The next release, with one more than should run meanwhile.
    let mut next = app("web", 80, (1, 1));
    next.main.release = ReleaseNumber(2);
    world.snapshot.wanted = vec![batch, next];
    assert!(world.run().is_empty());
    assert_eq!((world.on_nodes("batch"), world.on_nodes("web")), (vec![2], vec![1]));
}

#[test]
fn what_waits_is_placed_in_the_order_of_its_priority_and_then_of_its_age() {
    let released = |name, number, at| {
        let mut app = WantedApp { make_room: 0, ..app(name, number, (1, 1)) };
        app.main.released_at = Timestamp(at);
        app
    };
    let apps = vec![released("a", 50, 3), released("b", 50, 2), released("c", 51, 9)];
    let mut world = world(&[0], apps);
    for expected in [(0, 0, 1), (0, 1, 1), (1, 1, 1)] {
        world.snapshot.nodes[0].capacity.memory.0 += ByteCount::mib(100).0;
        world.run();
        let n = |app| world.on_nodes(app)[0];
        assert_eq!((n("a"), n("b"), n("c")), expected);
    }
}

proptest! {
    /// Whatever is wanted when: nothing is promised twice, what leaves stands a gap lower than what it leaves for,
    /// it comes to an end, and then nothing is missing for which others that matter less could leave.
    #[test]
    fn what_matters_more_has_its_place_and_nothing_goes_round_in_circles(
        nodes in prop::collection::vec(0..8_u64, 1..4),
        waves in prop::collection::vec(
            prop::collection::vec((1..=100_u8, 0..4_u32, 1..4_u64, any::<bool>()), 1..4), 1..4),
    ) {
        let mut world = world(&nodes, vec![]);
        for (wave, apps) in waves.iter().enumerate() {
            for (idx, (number, count, size, asks)) in apps.iter().enumerate() {
                let mut app = app(&format!("a{wave}-{idx}"), *number, (*count, *size));
                app.make_room = if *asks { *count } else { 0 };
                world.snapshot.wanted.push(app);
            }
            let n_before = world.snapshot.instances.len();
            let n_new: u32 = apps.iter().map(|(_, count, ..)| count).sum();
            let left = world.run();
            let of = |app: &str| world.snapshot.wanted.iter().find(|one| one.app.as_str() == app);
            for (one, by) in &left {
                let limit = of(by).unwrap().main.priority.displaces();
                prop_assert!(one.yields <= limit, "{} left for {by}", one.id);
            }
            // Each that leaves may push away what stands a gap lower, and so on.
            let most = (n_before + n_new as usize) * 10;
            prop_assert!(left.len() <= most, "{} left", left.len());
            for short in plan(&world.snapshot).shortfalls {
                let wanted = of(short.app.as_str()).unwrap();
                prop_assert_ne!(short.room, RoomMaking::UnderWay);
                for node in world.snapshot.nodes.iter() {
                    let on_node = world.snapshot.instances.iter().filter(|one| one.node == node.name);
                    let limit = wanted.main.priority.displaces().filter(|_| wanted.make_room > 0);
                    let stay = on_node.filter(|one| one.yields > limit || limit.is_none());
                    let held = stay.fold(Capacity::default(), |sum, one| sum.plus(one.each));
                    let free = node.capacity.minus(held);
                    prop_assert!(!free.holds(wanted.main.each), "{} fits on {}", short.app, node.name);
                }
            }
        }
    }
}
