//! An operator empties a node under requests, closes it, opens it again and takes it away.

use longshore_api::v1::LocationView;
use longshore_e2e::{Platform, UpOptions, eventually};
use serde_json::Value;

use crate::scene::{page, traffic, web, with_web_on};
use crate::second_node::SecondNode;

/// The nodes on which instances of the app are, each as often as it has some.
fn nodes_of(platform: &Platform) -> Vec<String> {
    let instances = platform.instances("web").unwrap();
    instances.iter().map(|one| one.node.to_string()).collect()
}

fn location(platform: &Platform) -> anyhow::Result<LocationView> {
    platform.call("GET", "/v1/locations/ams", None)
}

/// Waits until both nodes report.
fn both_are_there(platform: &Platform) {
    let both = || Ok((location(platform)?.n_reachable == 2).then_some(()));
    eventually("both nodes are there", both).unwrap();
}

#[test]
fn a_node_is_drained_without_a_failed_request_and_then_removed() {
    let config = "node = \"n1\"\nlocation = \"ams\"\n".to_owned();
    let platform = with_web_on(&UpOptions { config, ..UpOptions::default() });
    platform.deploy(&web("web", 2)).unwrap();
    // With nowhere to go nothing moves, and that is said.
    platform.run(&["drain", "n1"]).fails(1, &["not all of it can move", "there is no other node"]);
    assert_eq!(nodes_of(&platform), ["n1", "n1"]);
    let told = platform.run(&["nodes"]).ok();
    assert!(told.contains(" on n1: ") && told.contains("there is no other node"), "{told}");
    let closed = platform.run(&["cordon", "n1"]).ok();
    assert!(closed.contains("n1 of ams: cordoned; 2 instances stay, nothing moves"), "{closed}");
    platform.run(&["uncordon", "n1"]).ok();

    let second = SecondNode::start(&platform, &[]);
    both_are_there(&platform);
    let preview: Value = platform.run(&["drain", "n1", "--dry-run", "--json"]).json();
    let moves = preview["moves"].as_array().unwrap();
    assert!(moves.len() == 2 && moves.iter().all(|one| one["to"] == "n2"), "{preview}");
    assert_eq!(nodes_of(&platform), ["n1", "n1"], "a preview changes nothing");

    let traffic = traffic(&platform, "web");
    let drained = platform.run(&["drain", "n1"]);
    assert!(drained.stderr.contains("what a drain moves"), "{drained}");
    assert!(drained.ok().contains("n1 of ams: drained"));
    assert_eq!(nodes_of(&platform), ["n2", "n2"]);
    assert!(platform.run(&["nodes"]).ok().contains("drained"));

    // The wish outlives the death of both who decide.
    for role in ["global", "location"] {
        platform.role(role).unwrap().kill().unwrap();
    }
    both_are_there(&platform);
    platform.run(&["scale", "web=3", "--wait"]).ok();
    assert_eq!(nodes_of(&platform), ["n2", "n2", "n2"]);
    let why = platform.run(&["explain", "web"]).ok();
    assert!(why.contains("n1: refused: drained by an operator since 20"), "{why}");

    platform.run(&["nodes", "rm", "n2"]).fails(1, &["neither drained nor lost"]);
    platform.run(&["uncordon", "n1"]).ok();
    platform.run(&["drain", "n2"]).ok();
    assert_eq!(nodes_of(&platform), ["n1", "n1", "n1"]);
    traffic.goes_on().unwrap();
    assert_eq!(traffic.stop(), Vec::<String>::new());

    let told = platform.run(&["nodes", "rm", "n2", "--dry-run"]).ok();
    assert!(told.contains("n2 of ams: nothing is there that would have to start"), "{told}");
    assert!(platform.run(&["nodes"]).ok().contains("n2"), "a dry run changes nothing");
    platform.run(&["nodes", "rm", "n2"]).ok();
    let names = location(&platform).unwrap().nodes.into_iter().map(|node| node.node.to_string());
    assert_eq!(names.collect::<Vec<_>>(), ["n1"], "it still runs, and is nobody's any more");
    second.finish();
    assert_eq!(page(&platform, "web"), "one");
    let events = platform.run(&["events"]).ok();
    for told in ["drain", "uncordon", "nodes rm"] {
        let line = events.lines().find(|line| line.contains(told) && line.contains("node n"));
        assert!(line.is_some_and(|line| line.contains("127.0.0.1:")), "{told}: {events}");
    }
    platform.finish();
}
