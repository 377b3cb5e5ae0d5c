//! Images that a location keeps for its nodes.

use anyhow::Result;
use longshore_api::links::StartPath;
use longshore_e2e::eventually;
use longshore_e2e::machine::{Machine, Part};
use longshore_e2e::platform::Instances;
use longshore_e2e::process::{Process, signal};
use rustix::process::Signal;
use serde_json::json;

use crate::joining::{all_are_healthy, first_machine, on, token};
use crate::metrics::{scrape, value};
use crate::scene::{but, web};

/// Whether an instance runs on a machine.
fn runs_one(machine: &Machine) -> Result<Option<()>> {
    let dir = machine.marks().dir;
    let is_shim = |process: &Process| process.arguments.get(1).is_some_and(|verb| verb == "shim");
    let runs = Process::all()?.iter().any(|process| is_shim(process) && process.mentions(&dir));
    Ok(runs.then_some(()))
}

#[test]
fn a_location_that_is_cut_off_starts_an_instance_on_a_node_that_never_had_the_image() {
    let [mut place, mut beside] =
        [Part::Location, Part::Node].map(|part| Machine::start(part).unwrap());
    let platform = first_machine(&place);
    place.join(&token(&platform, Part::Location, "there", &[]), "two").unwrap();
    let is_there = |name: &'static str| {
        eventually("a node is there", || {
            let nodes = platform.run(&["nodes"]).ok();
            Ok(nodes.lines().any(|line| line.starts_with(name)).then_some(()))
        })
        .unwrap();
    };
    is_there("two ");
    beside.join(&token(&platform, Part::Node, "there", &[]), "three").unwrap();
    is_there("three ");
    beside.down().unwrap();
    let placement = json!({"placement": {"allow": ["there"], "max_per_node": 1}});
    platform.deploy_only(&but(web("web", 2), &placement)).unwrap();
    let serves = || Ok(place.get("web.localhost", "/").ok().filter(|page| page.status == 200));
    eventually("the first node serves", serves).unwrap();
    let sent = || value(&scrape(&platform), "registry", "longshore_registry_sent_bytes_total");
    let before = sent();
    assert!(runs_one(&place).unwrap().is_some() && runs_one(&beside).unwrap().is_none());

    let away = ["global", "registry"].map(|role| platform.role(role).unwrap());
    away.iter().for_each(|role| signal(role.pid, Signal::STOP).unwrap());
    beside.up(Instances::Keep).unwrap();
    eventually("the other node runs one", || runs_one(&beside)).unwrap();
    away.iter().for_each(|role| signal(role.pid, Signal::CONT).unwrap());
    eventually("both are healthy", || all_are_healthy(&platform, 2)).unwrap();
    let instances = platform.instances("web").unwrap();
    let [there] = on(&instances, "three")[..] else { panic!("{instances:?}") };
    assert_eq!(there.observed.path, Some(StartPath::Pulled));
    // Of the image, which has a hundred times as much, nothing.
    assert!(sent() - before < 10_000.0, "{} bytes went over the wire", sent() - before);
    platform.remove("web").unwrap();
    platform.finish();
    beside.finish();
    place.finish();
}
