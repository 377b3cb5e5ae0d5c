//! What keeps images on nodes.

use longshore_api::links::RollbackImage;
use longshore_types::{HoldReason, ImageHold};

use super::*;

fn digest(n: u8) -> Digest {
    Digest::from_sha256([n; 32])
}

fn hold(reason: HoldReason, by: &str) -> ImageHold {
    ImageHold { reason, by: by.to_owned() }
}

#[test]
fn what_keeps_an_image_on_a_node_is_told_with_its_reason() {
    let mut world = World::running();
    let node = "n1".parse().unwrap();
    let asked = [digest(1), digest(2), digest(3)];
    let holds = |world: &World| world.state.holds(&node, &asked, world.moment()).unwrap().holds;
    let instances: Vec<_> = world.state.instances.values().cloned().collect();
    let uses = instances.iter().map(|one| hold(HoldReason::Instance, one.instance.as_str()));
    let release = hold(HoldReason::Release, "default/web r1");
    let expected: Vec<_> = uses.clone().chain([release.clone()]).collect();
    assert_eq!(holds(&world), [(digest(1), expected)].into());
    let elsewhere = "n9".parse().unwrap();
    let elsewhere = world.state.holds(&elsewhere, &asked, world.moment()).unwrap().holds;
    assert_eq!(elsewhere[&digest(1)], [release], "any node may be the next that starts it");

    // A release is being replaced: what goes is used until it is gone, and may be needed again.
    let mut next = set(9, 2);
    Arc::make_mut(&mut next.allotments[0].release).image_digest = digest(2);
    let (release, image) = (ReleaseNumber(1), digest(1));
    next.allotments[0].rollback = Some(RollbackImage { release, image });
    world.take(&next);
    let rollback = hold(HoldReason::Rollback, "default/web r1");
    let before: Vec<_> = uses.chain([rollback]).collect();
    let now = hold(HoldReason::Release, "default/web r2");
    assert_eq!(holds(&world), [(digest(1), before), (digest(2), vec![now])].into());
}

#[test]
fn a_location_that_has_just_begun_does_not_say_that_something_may_go() {
    let mut world = World::running();
    let (instances, name) = (world.state.instances.values().cloned(), world.state.name.clone());
    world.state = State::new(name, set(1, 1), instances.collect::<Vec<_>>(), world.moment());
    world.start += world.elapsed;
    world.elapsed = Duration::ZERO;
    let node = "n1".parse().unwrap();
    assert_eq!(world.state.holds(&node, &[digest(1)], world.moment()), None);
    world.elapsed = SETTLE;
    assert!(world.state.holds(&node, &[digest(1)], world.moment()).is_some());
}
