//! A second machine joins, as a node or as a location, and is what it should be to everyone.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use longshore_api::v1::InstanceView;
use longshore_e2e::machine::{Machine, Part, platform_for};
use longshore_e2e::platform::Instances;
use longshore_e2e::process::signal;
use longshore_e2e::websocket::Message;
use longshore_e2e::{Platform, Traffic, UpOptions, WebSocket, eventually, programs};
use longshore_types::{InstanceId, InstancePhase};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::scene::{busybox, host, web};

/// The token of the command that joins a machine, made with these flags besides.
pub fn token(platform: &Platform, part: Part, location: &str, flags: &[&str]) -> String {
    let make = ["join-token", "--role", part.verb(), "--location", location];
    let shown = platform.run(&[&make, flags].concat()).ok();
    let command = format!("longshore {} join ", part.verb());
    shown.trim().strip_prefix(&command).expect("a command").to_owned()
}

/// A platform that calls this machine `one` of `here`, and another machine `two`, which joined as its node or
/// as a location of its own, `there`.
pub fn two_machines(part: Part) -> (Machine, Platform) {
    joined(Machine::start(part).unwrap())
}

/// The same, and the other one only dials out.
fn two_machines_with_one_behind_nat(part: Part) -> (Machine, Platform) {
    let machine = Machine::start(part).unwrap();
    machine.put_behind_nat().unwrap();
    joined(machine)
}

/// A platform that calls this machine `one` of `here`, with an image, for what joins from that one and others.
pub fn first_machine(others: &Machine) -> Platform {
    let config = "node = \"one\"\nlocation = \"here\"\ncountry = \"NL\"\n".to_owned();
    let options = UpOptions { config, ..UpOptions::default() };
    let platform = platform_for(others, options).unwrap();
    platform.push(&busybox(&platform, "one"), "default/web:1").unwrap();
    platform
}

fn joined(mut machine: Machine) -> (Machine, Platform) {
    let (part, platform) = (machine.part(), first_machine(&machine));
    let location = if part == Part::Node { "here" } else { "there" };
    machine.join(&token(&platform, part, location, &[]), "two").unwrap();
    eventually("both nodes are there", || {
        let nodes = platform.run(&["nodes"]).ok();
        Ok((nodes.contains("one ") && nodes.contains("two ")).then_some(()))
    })
    .unwrap();
    // The link outlives the platform that listens on it.
    (machine, platform)
}

pub fn ids(instances: &[InstanceView]) -> BTreeSet<InstanceId> {
    instances.iter().map(|instance| instance.id().clone()).collect()
}

pub fn all_are_healthy(platform: &Platform, count: usize) -> Result<Option<()>> {
    let now = platform.instances("web")?;
    let is_healthy = |instance: &&InstanceView| instance.observed.phase == InstancePhase::Healthy;
    Ok((now.len() == count && now.iter().filter(is_healthy).count() == count).then_some(()))
}

pub fn on<'a>(instances: &'a [InstanceView], node: &str) -> Vec<&'a InstanceView> {
    instances.iter().filter(|instance| instance.node.as_str() == node).collect()
}

/// An instance on another machine: its log is read, and what it uses is told.
fn tells_of_itself(platform: &Platform, far: &str) {
    platform.run(&["exec", far, "--", "sh", "-c", "echo logged > /proc/1/fd/1"]).ok();
    let logged = || Ok(platform.run(&["logs", far]).ok().contains("logged").then_some(()));
    eventually("its log is read", logged).unwrap();
    let is_far = |row: &Value| row["instance"] == far && row["usage"]["memory"].is_u64();
    eventually("what it uses is told", || {
        let used: Value = platform.run(&["top", "--json"]).json();
        ensure!(used.as_array().is_some_and(|rows| rows.iter().any(is_far)), "{used}");
        Ok(Some(()))
    })
    .unwrap();
}

#[test]
fn a_machine_joins_by_one_command_and_carries_its_share() {
    let (mut machine, platform) = two_machines(Part::Node);
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

    // The scheduler may die: no request fails. What bytes go through takes along those that are under way,
    // and no instance.
    let traffic = Traffic::start(platform.ingress_address(), "web.localhost");
    platform.role("location").unwrap().kill().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    eventually("all are healthy again", || all_are_healthy(&platform, 4)).unwrap();
    traffic.goes_on().unwrap();
    let failed = traffic.stop();
    assert!(failed.is_empty(), "{failed:?}");
    machine.kill("node").unwrap();
    platform.role("ingress").unwrap().kill().unwrap();
    eventually("it answers again", || {
        let answer = platform.get("web.localhost", "/who")?;
        Ok((answer.status == 200).then_some(()))
    })
    .unwrap();
    eventually("all are healthy again", || all_are_healthy(&platform, 4)).unwrap();
    assert_eq!(ids(&platform.instances("web").unwrap()), ids(&instances));

    // Stopped and started it takes its instances over again, also after its certificate has expired.
    machine.down().unwrap();
    machine.age_certificate().unwrap();
    machine.up(Instances::Keep).unwrap();
    eventually("it is named anew", || Ok(machine.log().contains("named anew").then_some(())))
        .unwrap();
    assert_eq!(platform.run(&["exec", far, "--", "busybox", "hostname"]).ok().trim(), far);
    platform.remove("web").unwrap();
    platform.finish();
    machine.finish();
}

#[test]
fn a_node_behind_a_nat_is_reached_in_every_way() {
    let (machine, platform) = two_machines_with_one_behind_nat(Part::Node);
    platform.deploy(&web("web", 2)).unwrap();
    let instances = platform.instances("web").unwrap();
    let [near, far] = ["one", "two"].map(|node| on(&instances, node)[0].id().as_str());
    let write = |id: &str, words: &str| {
        let write = format!("echo {words} > /www/who");
        platform.run(&["exec", id, "--", "sh", "-c", &write]).ok();
    };
    write(near, "from here");
    write(far, "from afar");
    tells_of_itself(&platform, far);
    eventually("it answers its share of the requests", || {
        let answer = platform.get("web.localhost", "/who")?;
        Ok((answer.status == 200 && answer.text() == "from afar\n").then_some(()))
    })
    .unwrap();

    // They go to it past the location, which may hang or die: what it did not hear of, nobody misses.
    let location = platform.role("location").unwrap();
    signal(location.pid, Signal::STOP).unwrap();
    eventually("it answers while its location hangs", || {
        let answer = platform.get("web.localhost", "/who")?;
        Ok((answer.status == 200 && answer.text() == "from afar\n").then_some(()))
    })
    .unwrap();
    // What dies there is started anew meanwhile, without what it had written.
    machine.kill_shim(far).unwrap();
    eventually("what died answers again", || {
        Ok((platform.get("web.localhost", "/who")?.status == 404).then_some(()))
    })
    .unwrap();
    let traffic = Traffic::start(platform.ingress_address(), "web.localhost");
    traffic.goes_on().unwrap();
    location.kill().unwrap();
    eventually("all are healthy again", || all_are_healthy(&platform, 2)).unwrap();
    traffic.goes_on().unwrap();
    let failed = traffic.stop();
    assert!(failed.is_empty(), "{failed:?}");

    // Whoever else dies, requests go through again, and it is the same instance.
    write(far, "from afar");
    for role in ["location", "ingress"] {
        platform.role(role).unwrap().kill().unwrap();
    }
    machine.kill("node").unwrap();
    eventually("it answers again", || {
        let answer = platform.get("web.localhost", "/who")?;
        Ok((answer.status == 200 && answer.text() == "from afar\n").then_some(()))
    })
    .unwrap();
    platform.remove("web").unwrap();
    platform.finish();
    machine.finish();
}

#[test]
fn an_app_is_only_where_its_manifest_lets_it_be_and_says_why() {
    let (machine, platform) = two_machines(Part::Location);
    let placed = |placement: Value| {
        let mut manifest = web("web", 2);
        manifest["placement"] = placement;
        manifest
    };
    let nodes = |platform: &Platform| {
        let instances = platform.instances("web").unwrap();
        instances.iter().map(|instance| instance.node.to_string()).collect::<Vec<_>>()
    };
    // Nobody said in which country the other machine is.
    platform.deploy(&placed(json!({"jurisdiction": ["eu"]}))).unwrap();
    assert_eq!(nodes(&platform), ["one", "one"]);
    let told = platform.run(&["explain", platform.instances("web").unwrap()[0].id().as_str()]).ok();
    for part in
        ["chosen   here (score ", "refused  there: refused: nobody said in which country it is"]
    {
        assert!(told.contains(part), "{part} in {told}");
    }
    // A changed mind moves what runs, the new first.
    platform.deploy(&placed(json!({"deny": ["here"]}))).unwrap();
    eventually("all is at the other", || Ok((nodes(&platform) == ["two", "two"]).then_some(())))
        .unwrap();
    platform.remove("web").unwrap();
    platform.deploy_only(&placed(json!({"jurisdiction": ["jp"]}))).unwrap();
    eventually("it says what it waits for", || {
        let told = platform.run(&["explain", "web"]).ok();
        let parts = [
            "web: 0 of 2 run; 2 wait: no location is in JP",
            "refused  here: refused: it is in NL",
            "to change that: placement.jurisdiction of the manifest",
        ];
        Ok(parts.iter().all(|part| told.contains(part)).then_some(()))
    })
    .unwrap();
    platform.remove("web").unwrap();
    platform.finish();
    machine.finish();
}

#[test]
fn a_location_behind_a_nat_serves_on_while_it_is_cut_off() {
    let (mut machine, platform) = two_machines_with_one_behind_nat(Part::Location);
    platform.deploy(&web("web", 2)).unwrap();
    let instances = platform.instances("web").unwrap();
    let (here, there) = (on(&instances, "one"), on(&instances, "two"));
    assert_eq!((here.len(), there.len()), (1, 1), "each location has one");
    let far = there[0].id().as_str();
    assert_eq!(there[0].location.as_str(), "there");
    assert_eq!(platform.run(&["exec", far, "--", "busybox", "hostname"]).ok().trim(), far);
    let told = platform.run(&["explain", far]).ok();
    assert!(told.contains("location there"), "{told}");
    tells_of_itself(&platform, far);
    assert_eq!(platform.get("web.localhost", "/").unwrap().status, 200);
    let answer = |machine: &Machine| {
        let answer = machine.get("web.localhost", "/")?;
        ensure!(answer.status == 200, "{}", answer.status);
        Ok(Some(answer.text()))
    };
    eventually("its own ingress answers", || answer(&machine)).unwrap();

    // Cut off, it serves, restarts what dies, and starts anew without a word from anyone.
    machine.set_link(false).unwrap();
    answer(&machine).unwrap();
    machine.kill_shim(far).unwrap();
    eventually("what died answers again", || answer(&machine)).unwrap();
    machine.kill("location").unwrap();
    machine.kill("node").unwrap();
    answer(&machine).unwrap();
    machine.down().unwrap();
    machine.up(Instances::Keep).unwrap();
    eventually("it serves after a start of its own", || Ok(machine.get("web.localhost", "/").ok()))
        .unwrap();
    eventually("it is missed", || {
        Ok(platform.run(&["locations"]).ok().contains("silent").then_some(()))
    })
    .unwrap();

    // Back, it is the same instance, and gets the next release like the others.
    machine.set_link(true).unwrap();
    eventually("all are healthy again", || all_are_healthy(&platform, 2)).unwrap();
    assert_eq!(ids(&platform.instances("web").unwrap()), ids(&instances));
    platform.push(&busybox(&platform, "next"), "default/web:1").unwrap();
    platform.deploy(&web("web", 2)).unwrap();
    eventually("the next release is there too", || {
        Ok(answer(&machine)?.filter(|page| page.trim() == "next"))
    })
    .unwrap();
    platform.remove("web").unwrap();
    platform.finish();
    machine.finish();
}

#[test]
fn a_request_goes_to_the_location_that_has_an_instance() {
    let (machine, platform) = two_machines(Part::Location);
    platform.push_from(&programs::image("node").unwrap(), "default/node:1").unwrap();
    let node = json!({
        "app": "node", "image": "default/node:1", "count": 1, "port": 3000,
        "resources": {"memory": "96MiB", "cpu": "0.5", "disk": "64MiB"},
        "health": {"kind": "http", "path": "/", "interval": "1s"},
    });
    // Each location has an app that the other has not.
    for (closed, app) in [("there", web("web", 1)), ("here", node)] {
        platform.run(&["cordon", "--location", closed]).ok();
        platform.deploy(&app).unwrap();
        platform.run(&["uncordon", "--location", closed]).ok();
    }
    let at = |app| platform.instances(app).unwrap()[0].location.to_string();
    assert_eq!((at("web"), at("node")), ("here".to_owned(), "there".to_owned()));
    let from_there = || {
        let answer = machine.get(&host("web"), "/")?;
        Ok((answer.status == 200 && answer.text().trim() == "one").then_some(()))
    };
    eventually("who asks there is answered from here", from_there).unwrap();
    let from_here = || Ok((platform.get(&host("node"), "/")?.status == 200).then_some(()));
    eventually("who asks here is answered from there", from_here).unwrap();
    eventually("the distance is shown", || {
        let shown = platform.run(&["locations"]).ok();
        Ok(shown.contains("round trips from here: there ").then_some(()))
    })
    .unwrap();
    let echo = |socket: &mut WebSocket| {
        socket.send_text("far?").unwrap();
        assert_eq!(socket.receive().unwrap(), Message::Text("far?".to_owned()));
    };
    let mut socket =
        WebSocket::connect(platform.ingress_address(), &host("node"), "/echo").unwrap();
    echo(&mut socket);

    // Nobody has to say so any more: without the control plane and the schedulers it goes on, also by
    // an ingress that has just begun.
    let global = platform.role("global").unwrap();
    signal(global.pid, Signal::STOP).unwrap();
    platform.role("location").unwrap().kill().unwrap();
    machine.kill("location").unwrap();
    echo(&mut socket);
    from_there().unwrap().expect("an answer from here");
    from_here().unwrap().expect("an answer from there");
    machine.kill("ingress").unwrap();
    eventually("a new ingress passes requests on", from_there).unwrap();
    signal(global.pid, Signal::CONT).unwrap();

    // What cannot be reached is said to have no instance, and is found again.
    machine.set_link(false).unwrap();
    eventually("nobody is there", || {
        let answer = platform.get(&host("node"), "/")?;
        Ok((answer.status == 503 && answer.text().contains("no-healthy-instance")).then_some(()))
    })
    .unwrap();
    machine.set_link(true).unwrap();
    eventually("who asks here is answered from there again", from_here).unwrap();
    platform.remove("web").unwrap();
    platform.remove("node").unwrap();
    platform.finish();
    machine.finish();
}
