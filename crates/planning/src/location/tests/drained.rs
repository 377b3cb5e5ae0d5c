//! Nodes that are cordoned and drained.

use super::*;

fn cordon(drains: bool) -> Option<Cordon> {
    Some(Cordon { since: Timestamp(7000), by: None, drains, removed: false })
}

impl World {
    fn cordon(&mut self, name: &str, cordon: Option<Cordon>) {
        for node in self.snapshot.nodes.iter_mut().filter(|node| node.name.as_str() == name) {
            node.cordon.clone_from(&cordon);
        }
    }

    fn on(&self, name: &str) -> Vec<&PlacedInstance> {
        let instances = self.snapshot.instances.iter();
        instances.filter(|instance| instance.node.as_str() == name).collect()
    }

    fn is_closed(&self, node: &NodeName) -> bool {
        let found = self.snapshot.nodes.iter().find(|state| state.name == *node);
        found.is_some_and(|state| state.cordon.is_some())
    }
}

/// Two nodes, and `count` instances on the first.
fn all_on_one(count: u32, budget: u32, room_on_two: u64) -> World {
    let mut world = World::new(vec![node("n1", 20)]);
    world.want(wanted(1, count, budget));
    world.settle();
    world.snapshot.nodes.push(node("n2", room_on_two));
    world
}

#[test]
fn a_cordoned_node_keeps_what_it_has_and_gets_nothing_new() {
    let mut world = all_on_one(2, 8, 1);
    world.cordon("n1", cordon(false));
    world.want(wanted(1, 4, 8));
    let plan = world.apply();
    assert_eq!((plan.actions.len(), plan.shortfalls[0].missing), (1, 1));
    let refused = &plan.shortfalls[0].decision.candidates;
    let why = "refused: cordoned by an operator since 1970-01-01T00:00:07Z";
    assert!(refused.iter().any(|one| one.name == "n1" && one.why == why), "{refused:?}");
    world.cordon("n2", cordon(false));
    let plan = world.apply();
    assert_eq!(plan.shortfalls[0].decision.why, "every node is cordoned by an operator");
    assert_eq!(world.on("n1").len(), 2);
    world.cordon("n1", None);
    assert_eq!(world.apply().actions.len(), 1);
}

#[test]
fn a_drained_node_loses_each_instance_once_another_is_ready_elsewhere() {
    let mut world = all_on_one(3, 6, 20);
    let preview = preview_drain(&world.snapshot, &"n1".parse().unwrap());
    assert!(preview.iter().all(|one| one.to.as_ref().unwrap().as_str() == "n2"), "{preview:?}");
    world.cordon("n1", cordon(true));
    let plan = world.apply();
    let [Action::Place { node, replaces: Some(replaced), decision, .. }] = &plan.actions[..] else {
        panic!("{plan:?}");
    };
    assert_eq!(node.as_str(), "n2");
    let why = format!("takes the place of {replaced}, whose node n1 is drained; best of 2 nodes");
    assert!(decision.why.starts_with(&why), "{}", decision.why);
    let mut whys: Vec<_> = plan.staying.iter().map(|staying| staying.why.as_str()).collect();
    whys.sort_unstable();
    assert!(whys[0].starts_with("waits until others") && whys[2].ends_with("is healthy"));
    // As long as that is not ready nothing else happens.
    assert!(world.apply().actions.is_empty());
    world.settle();
    assert_eq!((world.on("n1").len(), world.on("n2").len()), (0, 3));
    assert!(world.apply().staying.is_empty());
}

#[test]
fn what_has_no_other_place_stays_and_says_why() {
    for (budget, room, reason) in [
        (4, 0, "no other node takes it (n2: refused: 100 MiB of memory needed, 0 B free"),
        (2, 9, "no other can be started beside it: at most 2 instances may run here"),
    ] {
        let mut world = all_on_one(2, budget, room);
        let preview = preview_drain(&world.snapshot, &"n1".parse().unwrap());
        assert!(preview.iter().all(|one| one.to.is_none() && one.why.contains(reason)));
        world.cordon("n1", cordon(true));
        let plan = world.apply();
        assert!(plan.actions.is_empty() && plan.shortfalls.is_empty(), "{plan:?}");
        assert!(plan.staying.iter().any(|one| one.why.contains(reason)), "{plan:?}");
        assert_eq!(plan.staying.len(), 2);
        world.settle();
        assert_eq!(world.on("n1").len(), 2);
    }
    let mut alone = World::new(vec![node("n1", 20)]);
    alone.want(wanted(1, 1, 2));
    alone.settle();
    alone.cordon("n1", cordon(true));
    assert_eq!(alone.apply().staying[0].why, "there is no other node");
}

#[test]
fn an_instance_that_never_was_healthy_holds_no_drain_up_and_passes_for_no_replacement() {
    let mut world = all_on_one(2, 6, 20);
    let broken = world.snapshot.instances[0].id.clone();
    world.set(&broken, Standing::NotReady);
    world.cordon("n1", cordon(true));
    for _ in 0..10 {
        world.apply();
        // Of the two that take their places one is broken as well: that of the broken one.
        for idx in 0..world.snapshot.instances.len() {
            let instance = &world.snapshot.instances[idx];
            let is_broken = instance.id == broken || instance.replaces.as_ref() == Some(&broken);
            let is_new = instance.standing == Standing::NotReady && !is_broken;
            if is_new {
                world.snapshot.instances[idx].standing = Standing::Ready;
            }
        }
        assert!(world.n(Standing::Ready) >= 1);
        world.snapshot.instances.retain(|instance| instance.standing != Standing::Leaving);
    }
    assert_eq!((world.on("n1").len(), world.on("n2").len()), (0, 2));
}

#[test]
fn what_would_do_its_work_twice_or_lose_its_client_stays() {
    for (pinned, under_way) in [(Pinned::Attached, true), (Pinned::Ended, false)] {
        let mut world = all_on_one(2, 6, 20);
        for instance in &mut world.snapshot.instances {
            instance.pinned = Some(pinned);
        }
        let preview = preview_drain(&world.snapshot, &"n1".parse().unwrap());
        assert!(preview.iter().all(|one| one.to.is_none() && one.why.contains(pinned.why())));
        world.cordon("n1", cordon(true));
        let plan = world.apply();
        assert!(plan.actions.is_empty(), "{plan:?}");
        let told: Vec<_> =
            plan.staying.iter().map(|one| (one.why.as_str(), one.under_way)).collect();
        assert_eq!(told, [(pinned.why(), under_way), (pinned.why(), under_way)]);
        // It counts as what should run.
        world.want(wanted(1, 3, 6));
        world.settle();
        assert_eq!((world.on("n1").len(), world.on("n2").len()), (2, 1));
    }
}

#[test]
fn canaries_move_and_a_release_command_ends_where_it_began() {
    let mut world = World::new(vec![node("n1", 20)]);
    let wish = |command| WantedApp { canary: Some(goal(2, 1)), command, ..wanted(1, 2, 6) };
    world.want(wish(Some(goal(2, 1))));
    world.settle();
    world.snapshot.nodes.push(node("n2", 20));
    world.cordon("n1", cordon(true));
    for _ in 0..30 {
        world.apply();
        world.let_time_pass();
    }
    let staying: Vec<_> = world.on("n1").iter().map(|one| one.is_command).collect();
    assert_eq!(staying, [true]);
    assert_eq!(world.apply().staying[0].why, "runs the release command to its end");
    assert_eq!((world.ready_of(1), world.ready_of(2)), (2, 2));
    world.want(wish(None));
    world.settle();
    assert!(world.on("n1").is_empty());
}

proptest! {
    /// Safety: whatever is cordoned, drained and wished when, nothing new is on a closed node, no ready
    /// instance of a drained node is taken before what takes its place is ready, and no more run than the
    /// budget allows. Progress: with room elsewhere everything leaves, and all that should run does.
    #[test]
    fn drains_are_gentle_and_get_there(
        rooms in prop::collection::vec(0..8_u64, 2..5),
        steps in prop::collection::vec(
            (any::<prop::sample::Index>(), 0..3_u8, 1..6_u32, 0..4_u32, any::<bool>()), 1..6),
    ) {
        let node = |(idx, room): (usize, &u64)| node(&format!("n{idx}"), *room);
        let mut world = World::new(rooms.iter().enumerate().map(node).collect());
        let mut release = 1;
        for (which, wish, count, extra, new_release) in steps {
            let idx = which.index(rooms.len());
            world.snapshot.nodes[idx].cordon = match wish {
                0 => None,
                1 => cordon(false),
                _ => cordon(true),
            };
            release += u64::from(new_release);
            world.want(wanted(release, count, count + extra));
            for round in 0..120 {
                let before = world.snapshot.clone();
                let plan = world.apply();
                for action in &plan.actions {
                    match action {
                        Action::Place { node, .. } => prop_assert!(!world.is_closed(node)),
                        Action::Drain { instance, why } if why.contains("is drained") => {
                            let find = |holds: &dyn Fn(&PlacedInstance) -> bool| {
                                before.instances.iter().find(|one| holds(one)).cloned()
                            };
                            let old = find(&|one| one.id == *instance).unwrap();
                            let new = find(&|one| one.replaces.as_ref() == Some(instance)).unwrap();
                            prop_assert!(!world.is_closed(&new.node) || world.is_closed(&old.node));
                            if old.standing == Standing::Ready {
                                prop_assert_eq!(new.standing, Standing::Ready);
                            }
                        }
                        Action::Drain { .. } => {}
                    }
                }
                let placed = plan.actions.iter().any(|a| matches!(a, Action::Place { .. }));
                let n_instances = world.snapshot.instances.len();
                prop_assert!(!placed || n_instances <= (count + extra) as usize);
                // Those told of are exactly those that are left there and should not be.
                if round == 119 {
                    let drained: Vec<_> = world.snapshot.nodes.iter()
                        .filter(|node| node.cordon.as_ref().is_some_and(|c| c.drains)).collect();
                    let mut left: Vec<_> = world.snapshot.instances.iter()
                        .filter(|one| drained.iter().any(|node| node.name == one.node))
                        .map(|one| one.id.clone()).collect();
                    let mut told: Vec<_> =
                        plan.staying.iter().map(|one| one.instance.clone()).collect();
                    left.sort();
                    told.sort();
                    prop_assert_eq!(left, told);
                }
                // Plans are made more often than instances become ready.
                if round % 2 == 1 {
                    world.let_time_pass();
                }
            }
            let open = world.snapshot.nodes.iter().filter(|node| node.cordon.is_none());
            let room: u64 = open.map(|node| node.capacity.memory.0 / (100 << 20)).sum();
            if extra > 0 && room > u64::from(count) {
                prop_assert_eq!(world.ready_of(release), count as usize);
                prop_assert_eq!(world.snapshot.instances.len(), count as usize);
                for node in &world.snapshot.nodes {
                    let drains = node.cordon.as_ref().is_some_and(|cordon| cordon.drains);
                    prop_assert!(!drains || world.on(node.name.as_str()).is_empty());
                }
            }
        }
    }

    /// With nowhere to go nothing moves, whatever is drained.
    #[test]
    fn a_drain_of_everything_moves_nothing_and_says_so(
        rooms in prop::collection::vec(1..8_u64, 1..5), count in 1..8_u32,
    ) {
        let node = |(idx, room): (usize, &u64)| node(&format!("n{idx}"), *room);
        let mut world = World::new(rooms.iter().enumerate().map(node).collect());
        let count = count.min(u32::try_from(rooms.iter().sum::<u64>()).unwrap());
        world.want(wanted(1, count, 2 * count));
        world.settle();
        for node in &mut world.snapshot.nodes {
            node.cordon = cordon(true);
        }
        let plan = world.apply();
        prop_assert!(plan.actions.is_empty() && plan.shortfalls.is_empty());
        prop_assert_eq!(plan.staying.len(), count as usize);
        for staying in &plan.staying {
            let fine = ["drained by an operator", "there is no other node", "others have moved"];
            prop_assert!(fine.iter().any(|part| staying.why.contains(part)), "{}", staying.why);
        }
    }
}

#[test]
fn what_is_lost_with_a_node_is_told_with_who_takes_its_place() {
    let mut world = all_on_one(2, 4, 20);
    let ids: Vec<_> = world.snapshot.instances.iter().map(|one| one.id.clone()).collect();
    ids.iter().for_each(|id| world.set(id, Standing::Lost));
    world.snapshot.nodes[0].reachable = false;
    let of_n1 = |world: &World| preview_drain(&world.snapshot, &"n1".parse().unwrap());
    let moves = of_n1(&world);
    assert!(moves.len() == 2 && moves.iter().all(|one| one.to == "n2".parse().ok()), "{moves:?}");
    assert!(moves.iter().all(|one| one.why.starts_with("lost with its node; ")), "{moves:?}");
    // Once one was replaced, the other is what is still to come.
    world.snapshot.wanted[0].budget = 3;
    world.apply();
    let moves = of_n1(&world);
    assert_eq!(moves.iter().filter(|one| one.to.is_some()).count(), 1, "{moves:?}");
    world.snapshot.wanted[0].budget = 4;
    world.apply();
    let taken = "is lost with its node; another has its place";
    assert!(of_n1(&world).iter().all(|one| one.to.is_none() && one.why == taken));
    // Without room nobody does.
    world.snapshot.instances.retain(|one| one.standing == Standing::Lost);
    world.snapshot.nodes[1].capacity = Capacity::default();
    assert!(
        of_n1(&world)
            .iter()
            .all(|one| one.to.is_none() && one.why.starts_with("is lost with its node: "))
    );
}
