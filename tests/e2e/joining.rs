//! A second machine joins, carries its share, and is what it should be to everyone.

use std::collections::BTreeSet;
use std::time::Duration;

use longshore_api::v1::InstanceView;
use longshore_e2e::machine::{Machine, platform_for};
use longshore_e2e::platform::Instances;
use longshore_e2e::{Platform, Traffic, UpOptions, eventually};
use longshore_types::InstancePhase;

use crate::scene::{busybox, web};

fn token(platform: &Platform) -> String {
    let shown = platform.run(&["join-token"]).ok();
    shown.trim().strip_prefix("longshore node join ").expect("a command").to_owned()
}

/// A platform that calls this machine `one`, and another machine that is its node `two`.
fn two_machines() -> (Machine, Platform) {
    let mut machine = Machine::start().unwrap();
    let config = "node = \"one\"\n".to_owned();
    let options = UpOptions { config, ..UpOptions::default() };
    let platform = platform_for(&machine, options).unwrap();
    platform.push(&busybox(&platform, "one"), "default/web:1").unwrap();
    machine.join(&token(&platform), "two").unwrap();
    eventually("both nodes are there", || {
        let nodes = platform.run(&["nodes"]).ok();
        Ok((nodes.contains("one ") && nodes.contains("two ")).then_some(()))
    })
    .unwrap();
    // The link outlives the platform that listens on it.
    (machine, platform)
}

fn on<'a>(instances: &'a [InstanceView], node: &str) -> Vec<&'a InstanceView> {
    instances.iter().filter(|instance| instance.node.as_str() == node).collect()
}

#[test]
fn a_machine_joins_by_one_command_and_carries_its_share() {
    let (mut machine, platform) = two_machines();
    platform.deploy(&web("web", 4)).unwrap();
    let instances = platform.instances("web").unwrap();
    let (here, there) = (on(&instances, "one"), on(&instances, "two"));
    assert_eq!((here.len(), there.len()), (2, 2));
    let far = there[0].id().as_str();

    // Everything that a user does reaches it.
    assert_eq!(platform.run(&["exec", far, "--", "busybox", "hostname"]).ok().trim(), far);
    let told = platform.run(&["explain", far]).ok();
    assert!(told.contains("two"), "{told}");
    let write = "echo from afar > /www/who";
    platform.run(&["exec", far, "--", "sh", "-c", write]).ok();
    eventually("it answers its share of the requests", || {
        let answer = platform.get("web.localhost", "/who")?;
        Ok((answer.status == 200 && answer.text() == "from afar\n").then_some(()))
    })
    .unwrap();

    // Its agent, and who it speaks to, may die: requests go on, and it is the same instance.
    let traffic = Traffic::start(platform.ingress_address(), "web.localhost");
    machine.kill_agent().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    platform.role("location").unwrap().kill().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    platform.role("ingress").unwrap().kill().unwrap();
    eventually("all are healthy again", || {
        let now = platform.instances("web")?;
        let healthy =
            now.iter().filter(|instance| instance.observed.phase == InstancePhase::Healthy).count();
        Ok((healthy == 4).then_some(()))
    })
    .unwrap();
    assert!(traffic.answered() > 0);
    let failed = traffic.stop();
    assert!(failed.is_empty(), "{failed:?}");
    let ids = |instances: &[InstanceView]| -> BTreeSet<_> {
        instances.iter().map(|instance| instance.id().clone()).collect()
    };
    assert_eq!(ids(&platform.instances("web").unwrap()), ids(&instances));

    // Stopped and started it takes its instances over again.
    machine.stop_node().unwrap();
    machine.start_node(Instances::Keep).unwrap();
    assert_eq!(platform.run(&["exec", far, "--", "busybox", "hostname"]).ok().trim(), far);
    platform.remove("web").unwrap();
    platform.finish();
    machine.finish();
}
