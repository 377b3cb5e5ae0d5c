//! A store that was lost, and nodes that know more.

use longshore_api::links::{Assignment, HandedOver, NodeReport};
use longshore_types::{GpuShare, LocationEpoch};

use super::*;
use crate::life::{Awaited, Life};

/// A location in its second life, which waits for these nodes.
fn recovered(nodes: &[&'static str], all_known: bool) -> World {
    // Ids follow from the seed, which is never that of before.
    let mut world = World { nodes: nodes.to_vec(), seed: 100, ..World::new() };
    let nodes = nodes.iter().map(|node| node.parse().unwrap()).collect();
    world.state.live(Life::recovered(1, Awaited { nodes, all_known }));
    world
}

/// The life before that, in which two nodes have an instance each, with a seal.
fn before() -> World {
    let mut world = World { nodes: vec!["n1", "n2"], ..World::new() };
    world.state.live(Life::recovered(0, Awaited { nodes: Default::default(), all_known: true }));
    world.obey();
    world.take(&set(1, 1));
    world.reconcile();
    for id in ids(&world) {
        let share = GpuShare { index: 3, memory: ByteCount::gib(16) };
        world.state.instances.change(&id, |record| record.gpus = vec![share].into());
    }
    world.obey();
    world.reconcile();
    world
}

/// What a node says that carries out what the life before gave it, and hands it over where it was asked to.
fn says(before: &World, node: &str, to: Option<u64>) -> NodeReport {
    let name = node.parse().unwrap();
    let known = &before.state.nodes[&name];
    let instances = known.observed.values().cloned().collect();
    let mut report = NodeReport { since: None, instances, ..known.report.clone() };
    let has = before.state.assignments(&name).values().cloned().collect();
    let handed_over = |to| HandedOver { to: LocationEpoch(to), assignments: has };
    report.handed_over = to.map(handed_over);
    report
}

fn hear(world: &mut World, report: NodeReport, reach: Reach) -> Changes {
    let (moment, mut changes) = (world.moment(), Changes::default());
    world.state.take_handed_over(&report, &reach, moment, &mut changes);
    world.state.take_report(report, reach, &mut changes, moment);
    changes
}

fn ids(world: &World) -> Vec<InstanceId> {
    world.state.instances.keys().cloned().collect()
}

#[test]
fn nothing_is_decided_until_every_node_has_handed_over_and_then_nothing_has_to_be() {
    let before = before();
    let mut world = recovered(&["n1", "n2"], true);
    assert!(!world.state.settled(world.moment()));
    // Each is asked once it is heard, and told nothing else.
    for node in ["n1", "n2"] {
        hear(&mut world, says(&before, node, None), Reach::Here);
        assert!(world.state.nodes[&node.parse().unwrap()].owes);
    }
    let changes = hear(&mut world, says(&before, "n1", Some(1)), Reach::Here);
    assert_eq!(changes.put.len(), 1);
    assert!(!world.state.settled(world.moment()), "it does not know what n2 has");
    let changes = hear(&mut world, says(&before, "n2", Some(1)), Reach::Here);
    assert_eq!(changes.put.len(), 1);
    assert!(!world.state.settled(world.moment()), "it does not know what should be");
    world.take(&set(5, 1));
    assert!(world.state.settled(world.moment()));
    world.state.life.end_wait().unwrap();
    assert_eq!(ids(&world), ids(&before));
    for node in ["n1", "n2"].map(|node| node.parse().unwrap()) {
        let (now, then) = (world.state.assignments(&node), before.state.assignments(&node));
        assert!(now.iter().eq(&then), "nobody is told anything new");
    }
    world.obey();
    assert!(world.reconcile().is_empty());
    assert_eq!(world.routed(), 2);
    assert_eq!(world.state.table.location_epoch, LocationEpoch(1));
    let why = &world.state.instances.values().next().unwrap().decision.why;
    assert!(why.contains("handed it over"), "{why}");
    // What is said again changes nothing.
    let changes = hear(&mut world, says(&before, "n1", Some(1)), Reach::Here);
    assert!(changes.is_empty());
}

#[test]
fn a_node_that_does_not_come_is_waited_for_for_a_while_and_one_that_comes_late_keeps_what_it_has() {
    let before = before();
    let mut world = recovered(&["n1", "n2"], true);
    world.take(&set(5, 1));
    hear(&mut world, says(&before, "n1", Some(1)), Reach::Here);
    world.wait(14_900);
    assert!(!world.state.settled(world.moment()));
    world.wait(200);
    assert!(world.state.settled(world.moment()));
    world.state.life.end_wait().unwrap();
    world.nodes = vec!["n1"];
    world.obey();
    world.reconcile();
    let replaced = ids(&world);
    assert_eq!(replaced.len(), 2, "another takes the place of what is not known");
    // What is too much then goes as it does when a lost node comes back, and nothing before the others are there.
    let late = hear(&mut world, says(&before, "n2", Some(1)), Reach::Here);
    assert_eq!((late.put.len(), world.state.instances.len()), (1, 3));
    world.nodes = vec!["n1", "n2"];
    world.obey();
    world.settle();
    assert_eq!(world.state.instances.len(), 2);
}

#[test]
fn where_not_all_nodes_are_known_it_is_waited_in_any_case() {
    let before = before();
    let mut world = recovered(&["n1"], false);
    world.take(&set(5, 1));
    hear(&mut world, says(&before, "n1", Some(1)), Reach::Here);
    assert!(!world.state.settled(world.moment()));
    world.wait(15_000);
    assert!(world.state.settled(world.moment()));
}

#[test]
fn a_node_that_hands_nothing_over_is_told_nothing_and_gets_nothing() {
    let before = before();
    let mut world = recovered(&["n1"], true);
    world.take(&set(5, 1));
    hear(&mut world, says(&before, "n1", Some(1)), Reach::Here);
    // As one of an earlier release would, or one that answers another location.
    for answer in [None, Some(7)] {
        hear(&mut world, says(&before, "n2", answer), Reach::Here);
        assert!(world.state.nodes[&"n2".parse().unwrap()].owes);
    }
    world.state.life.end_wait().unwrap();
    world.obey_of("n1");
    world.reconcile();
    let nodes: Vec<_> = world.state.instances.values().map(|one| one.node.as_str()).collect();
    assert_eq!(nodes, ["n1", "n1"]);
}

#[test]
fn a_node_of_another_machine_hands_over_what_it_was_given_and_nothing_else() {
    let before = before();
    let gate = || Reach::Gate("https://192.0.2.1:1".to_owned());
    let count = |report: NodeReport| {
        let mut world = recovered(&["n1", "n2"], true);
        world.take(&set(5, 1));
        hear(&mut world, report, gate()).put.len()
    };
    let own = says(&before, "n1", Some(1));
    assert_eq!(count(own.clone()), 1);
    // What another has, what none was given, and more than was given.
    let mut of_another = says(&before, "n2", Some(1));
    of_another.node = "n1".parse().unwrap();
    assert_eq!(count(of_another), 0);
    let with = |change: &dyn Fn(&mut Assignment)| {
        let mut report = own.clone();
        let all = &mut report.handed_over.as_mut().unwrap().assignments;
        all.iter_mut().for_each(|one| change(Arc::make_mut(one)));
        report
    };
    assert_eq!(count(with(&|one| one.origin.seal = None)), 0);
    assert_eq!(count(with(&|one| one.instance = "web-00000000".parse().unwrap())), 0);
    assert_eq!(count(with(&|one| one.origin.is_command = true)), 0);
    assert_eq!(count(with(&|one| Arc::make_mut(&mut one.release).number = ReleaseNumber(2))), 0);
    assert_eq!(
        count(with(
            &|one| Arc::make_mut(&mut one.release).image_digest = Digest::from_sha256([2; 32])
        )),
        0
    );
    let secret = || ("key".parse().unwrap(), longshore_types::SecretVersion(1));
    assert_eq!(count(with(&|one| Arc::make_mut(&mut one.release).secrets.extend([secret()]))), 0);
    // How a manifest is written may change with a release of Longshore.
    assert_eq!(count(with(&|one| Arc::make_mut(&mut one.release).manifest.count = 9)), 1);
}

#[test]
fn what_was_being_stopped_goes_on_being_stopped() {
    let before = before();
    let mut world = recovered(&["n1", "n2"], true);
    world.take(&set(5, 1));
    let mut report = says(&before, "n1", Some(1));
    let stopped = Arc::make_mut(&mut report.handed_over.as_mut().unwrap().assignments[0]);
    (stopped.intent, stopped.generation) = (Intent::Stop, Generation(4));
    hear(&mut world, report, Reach::Here);
    let record = world.state.instances.values().next().unwrap();
    assert!(record.draining.is_some() && record.intent == Intent::Stop);
    assert_eq!(record.generation, Generation(4));
}

#[test]
fn a_first_life_asks_for_nothing_and_seals_what_there_was() {
    let mut world = World::running();
    assert!(world.state.instances.values().all(|record| record.seal.is_none()));
    let awaited = Awaited { nodes: Default::default(), all_known: true };
    world.state.live(Life::recovered(0, awaited));
    assert!(world.state.instances.values().all(|record| record.seal.is_some()));
    assert!(world.state.nodes.values().all(|node| !node.owes));
}
