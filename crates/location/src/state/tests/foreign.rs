//! A node that speaks of what is another's.

use super::*;

#[test]
fn what_a_node_says_of_anothers_instances_changes_nothing() {
    let mut world = World::running();
    let honest = world.state.nodes[&"n1".parse::<NodeName>().unwrap()].report.clone();
    let before = world.state.report(None, world.moment());
    let anothers: Vec<_> = world.state.instances.keys().cloned().collect();
    let (victim, generation) = (&anothers[0], world.state.instances[&anothers[0]].generation);
    let says = |phase, generation| {
        let address = Some(Ipv4Addr::new(100, 64, 0, 66));
        let pending = ObservedInstance::pending(victim.clone(), generation);
        Arc::new(ObservedInstance { phase, address, ..pending })
    };
    // That it ended, that it is healthy where requests would then go, or that it is gone: now, and of all times.
    let of_all_times = Generation(u64::MAX);
    let lies = [
        (vec![says(InstancePhase::Exited, generation)], vec![]),
        (vec![says(InstancePhase::Healthy, generation)], vec![]),
        (vec![says(InstancePhase::Healthy, of_all_times)], vec![]),
        (vec![], anothers.clone()),
    ];
    for (number, (instances, gone)) in (1..).zip(lies) {
        let since = (!gone.is_empty()).then_some(number - 1);
        let node: NodeName = "n2".parse().unwrap();
        let lie =
            NodeReport { node: node.clone(), number, since, instances, gone, ..honest.clone() };
        let (mut changes, moment) = (Changes::default(), world.moment());
        world.state.take_report(lie.clone(), Reach::Here, &mut changes, moment);
        assert!(changes.is_empty() && changes.confirmed.is_empty(), "{lie:?}");
        assert!(world.state.nodes[&node].observed.is_empty(), "nothing of it is kept: {lie:?}");
        let changed = world.reconcile();
        assert!(changed.is_empty(), "{lie:?} had {changed:?} changed");
        let after = world.state.report(None, world.moment());
        assert!(after.instances.values().eq(before.instances.values()), "{lie:?}");
        let endpoints = &world.state.table.routes[0].endpoints;
        let is_honest = |one: &Endpoint| one.node == honest.node && one.reach == Reach::Here;
        assert!(endpoints.len() == 2 && endpoints.iter().all(is_honest), "{endpoints:?}");
        assert!(endpoints.iter().all(|one| one.address.ip() == Ipv4Addr::new(100, 64, 0, 2)));
    }
}
