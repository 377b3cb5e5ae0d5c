//! What operators wish of nodes.

use longshore_types::Cordon;

use super::*;

fn with_cordon(generation: u64, drains: bool, removed: bool) -> AllotmentSet {
    let cordon = Cordon { since: Timestamp(0), by: None, drains, removed };
    AllotmentSet {
        cordons: BTreeMap::from([("n1".parse().unwrap(), cordon)]),
        ..set(generation, 1)
    }
}

impl World {
    fn on(&self, node: &str) -> usize {
        let records = self.state.instances.values();
        records.filter(|record| record.node.as_str() == node).count()
    }

    fn summary(&mut self, node: &str) -> Option<NodeSummary> {
        let report = self.state.report(Some("unix:/x"), self.moment());
        report.report.nodes.into_iter().find(|summary| summary.node.as_str() == node)
    }
}

#[test]
fn what_leaves_a_drained_node_is_routed_until_another_is() {
    let mut world = World::running();
    world.nodes.push("n2");
    world.obey();
    let node = "n1".parse().unwrap();
    let preview = world.state.preview_drain(&node, world.moment()).unwrap();
    assert!(preview.len() == 2 && preview.iter().all(|one| one.to.is_some()), "{preview:?}");
    assert_eq!(world.state.preview_drain(&"n9".parse().unwrap(), world.moment()), None);
    world.take(&with_cordon(2, true, false));
    world.reconcile();
    let report = world.state.report(Some("unix:/x"), world.moment());
    let staying = &report.report.staying;
    assert_eq!((staying.len(), staying[0].node.as_str()), (2, "n1"));
    let mut notes = report.instances.values().filter_map(|status| status.observed.note.as_deref());
    assert!(notes.any(|note| note.starts_with("its node is drained; waits until")));
    assert!(!world.summary("n1").unwrap().drained);
    for _ in 0..40 {
        world.reconcile();
        assert!(world.routed() >= 2, "{:#?}", world.state.table);
        world.wait(500);
        world.obey();
    }
    assert_eq!((world.on("n1"), world.on("n2"), world.routed()), (0, 2, 2));
    let summary = world.summary("n1").unwrap();
    assert!(summary.drained && summary.instances == 0 && summary.cordon.is_some());
    // Nothing comes back by itself when the wish is taken back.
    world.take(&set(3, 1));
    assert!(world.reconcile().is_empty());
    assert_eq!(world.summary("n1").unwrap().cordon, None);
}

#[test]
fn a_node_that_was_removed_is_forgotten_with_what_it_had() {
    let mut world = World::running();
    world.nodes.push("n2");
    world.obey();
    world.take(&with_cordon(2, true, true));
    let changes = world.reconcile();
    assert_eq!((changes.delete.len(), world.on("n1"), world.on("n2")), (2, 0, 2));
    world.obey();
    assert_eq!(world.summary("n1"), None, "what it says is not listened to");
    let n1 = "n1".parse().unwrap();
    assert_eq!(world.state.roster().owes(&n1), Some(false), "it is told to end what it has");
    assert!(world.state.assignments(&n1).is_empty());
    world.take(&set(3, 1));
    world.obey();
    assert!(world.summary("n1").unwrap().reachable);
}

#[test]
fn a_dead_node_is_listed_after_a_restart_as_long_as_it_has_instances() {
    let world = World::running();
    let stored: Vec<_> = world.state.instances.values().cloned().collect();
    let mut again = World::new();
    let set = AllotmentSet { cordons: Default::default(), ..set(1, 1) };
    again.state = State::new(world.state.name.clone(), set, stored, again.moment());
    again.wait(61_000);
    let summary = again.summary("n1").unwrap();
    assert!(!summary.reachable && summary.lost && summary.instances == 2, "{summary:?}");
    assert_eq!(summary.reported_at, Timestamp(1000), "it was there when it was given them");
}

#[test]
fn what_has_ended_for_good_is_not_run_once_more_elsewhere() {
    let mut world = World::running();
    world.nodes.push("n2");
    world.report(|_| InstancePhase::Exited);
    world.take(&with_cordon(2, true, false));
    world.reconcile();
    assert_eq!((world.on("n1"), world.on("n2")), (2, 0));
    let report = world.state.report(Some("unix:/x"), world.moment());
    let staying = &report.report.staying;
    assert!(staying.len() == 2 && staying.iter().all(|one| !one.under_way));
}
