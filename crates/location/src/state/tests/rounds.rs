//! After which rounds there may be more to do at once.

use super::*;

#[test]
fn what_only_starts_instances_makes_nothing_else_possible() {
    let mut world = World::new();
    world.report(|_| InstancePhase::Healthy);
    world.take(&set(1, 1));
    let started = world.reconcile();
    assert!(started.only_places && started.put.len() == 2, "{started:?}");
    world.obey();
    assert!(!world.reconcile().only_places, "nothing was started");

    // The next release takes the place of this one: what leaves makes room, at once.
    world.take(&set(2, 2));
    let (mut n_rounds, mut n_drained) = (0, 0);
    while world.releases().values().any(|release| *release == 1) {
        let changes = world.reconcile();
        let is_drained = |id: &&InstanceId| {
            world.state.instances.get(id).is_some_and(|record| record.draining.is_some())
        };
        if changes.put.iter().any(|id| is_drained(&id)) {
            n_drained += 1;
            assert!(!changes.only_places, "{changes:?}");
        }
        world.wait(3000);
        world.obey();
        n_rounds += 1;
        assert!(n_rounds < 40);
    }
    assert!(n_drained > 0 && world.routed() == 2);
}
