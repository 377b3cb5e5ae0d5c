//! A location that lost what it knew, and knows it again from its nodes.

use std::fs;
use std::path::Path;

use anyhow::Result;
use longshore_e2e::Platform;
use longshore_e2e::eventually;
use longshore_e2e::machine::{Machine, Part};
use longshore_store::RedbStore;
use longshore_types::InstancePhase;
use serde_json::json;

use crate::joining::{first_machine, token, two_machines};
use crate::scene::{Lives, busybox, ids, lives, page, traffic, web};

/// Once all are healthy again: the same, not touched.
fn are_untouched(platform: &Platform, before: &Lives) -> Result<Option<()>> {
    let now = platform.instances("web")?;
    let is_healthy = now.iter().all(|one| one.observed.phase == InstancePhase::Healthy);
    Ok((is_healthy && lives(&now) == *before).then_some(()))
}

fn wait_for_log(platform: &Platform, text: &str, times: usize) {
    eventually(text, || {
        let log = fs::read_to_string(platform.log_path())?;
        Ok((log.matches(text).count() >= times).then_some(()))
    })
    .unwrap();
}

/// The store with its journal.
fn rename_store(from: &Path, to: &Path) {
    for (from, to) in RedbStore::files(from).iter().zip(RedbStore::files(to)) {
        fs::rename(from, to).unwrap();
    }
}

#[test]
fn a_location_whose_store_is_deleted_while_it_serves_goes_on_from_what_its_nodes_have() {
    let (machine, platform) = two_machines(Part::Node);
    platform.deploy(&web("web", 2)).unwrap();
    let instances = platform.instances("web").unwrap();
    let nodes: Vec<_> = instances.iter().map(|one| one.node.as_str()).collect();
    assert!(nodes.contains(&"one") && nodes.contains(&"two"), "{nodes:?}");
    let before = lives(&instances);
    let store = platform.data_dir().join("location/store.redb");
    let (old, new) = (platform.dir().join("old.redb"), platform.dir().join("new.redb"));

    let users = traffic(&platform, "web");
    users.goes_on().unwrap();
    // Until it dies it goes on writing there.
    rename_store(&store, &old);
    platform.role("location").unwrap().kill().unwrap();
    wait_for_log(&platform, "recovered from what nodes had", 1);
    eventually("all are as they were", || are_untouched(&platform, &before)).unwrap();
    users.goes_on().unwrap();
    let failed = users.stop();
    assert!(failed.is_empty(), "{failed:?}");

    // It decides as before.
    platform.push(&busybox(&platform, "next"), "default/web:1").unwrap();
    platform.deploy(&web("web", 2)).unwrap();
    assert_eq!(page(&platform, "web"), "next");
    platform.run(&["scale", "web=3"]).ok();
    platform.wait_until_settled("web").unwrap();
    let instances = platform.instances("web").unwrap();
    assert_eq!(ids(&instances).len(), 3);

    // The store of before knows of none of these, and is refused.
    rename_store(&store, &new);
    rename_store(&old, &store);
    platform.role("location").unwrap().kill().unwrap();
    wait_for_log(&platform, "this store is of life 0 of location here, which is in life 1", 1);
    assert_eq!(page(&platform, "web"), "next");
    fs::remove_file(&store).unwrap();
    wait_for_log(&platform, "recovered from what nodes had", 2);
    eventually("all are as they were", || are_untouched(&platform, &lives(&instances))).unwrap();
    platform.remove("web").unwrap();
    platform.finish();
    machine.finish();
}

#[test]
fn a_machine_takes_the_place_of_a_location_by_a_token_and_adopts_what_runs() {
    let (mut machine, platform) = two_machines(Part::Location);
    platform.deploy(&web("web", 2)).unwrap();
    let before = lives(&platform.instances("web").unwrap());
    let users = traffic(&platform, "web");
    users.goes_on().unwrap();
    machine.down().unwrap();
    // A name that is taken is taken over by who has a token for that, and by nobody else.
    let taken = platform.run(&["join-token", "--role", "location", "--location", "there"]);
    taken.fails(1, &["--recover"]);
    machine.join(&token(&platform, Part::Location, "there", &["--recover"]), "two").unwrap();
    eventually("it recovered", || {
        Ok(machine.log().contains("recovered from what nodes had").then_some(()))
    })
    .unwrap();
    eventually("all are as they were", || are_untouched(&platform, &before)).unwrap();
    users.goes_on().unwrap();
    assert_eq!(users.stop(), Vec::<String>::new());
    platform.remove("web").unwrap();
    platform.finish();
    machine.finish();
}

#[test]
fn the_node_of_a_location_that_lost_its_machine_goes_on_untouched_under_another() {
    let [mut lost, mut beside, mut other] =
        [Part::Location, Part::Node, Part::Location].map(|part| Machine::start(part).unwrap());
    let platform = first_machine(&other);
    lost.join(&token(&platform, Part::Location, "there", &[]), "two").unwrap();
    eventually("it is there", || Ok(platform.run(&["nodes"]).ok().contains("two ").then_some(())))
        .unwrap();
    beside.join(&token(&platform, Part::Node, "there", &[]), "three").unwrap();
    eventually("its location has heard it", || {
        Ok(platform.run(&["nodes"]).ok().contains("three ").then_some(()))
    })
    .unwrap();
    // All of it is to be on that node.
    platform.run(&["cordon", "two"]).ok();
    let mut app = web("web", 2);
    app["placement"] = json!({"allow": ["there"]});
    platform.deploy(&app).unwrap();
    let instances = platform.instances("web").unwrap();
    assert!(instances.iter().all(|one| one.node.as_str() == "three"), "{instances:?}");
    let before = lives(&instances);
    assert_eq!(page(&platform, "web"), "one");

    // That machine is gone with its disk, and what takes its place has another address.
    lost.finish();
    beside.down().unwrap();
    beside.up_at(&format!("{}:4602", other.address())).unwrap();
    other.join(&token(&platform, Part::Location, "there", &["--recover"]), "four").unwrap();
    eventually("it recovered", || {
        Ok(other.log().contains("recovered from what nodes had").then_some(()))
    })
    .unwrap();
    eventually("all are as they were", || are_untouched(&platform, &before)).unwrap();
    eventually("requests get there", || {
        Ok((platform.get("web.localhost", "/")?.status == 200).then_some(()))
    })
    .unwrap();
    // It decides as the one before did.
    platform.run(&["scale", "web=3"]).ok();
    platform.wait_until_settled("web").unwrap();
    let now = platform.instances("web").unwrap();
    assert_eq!(now.len(), 3);
    assert!(before.keys().all(|id| ids(&now).contains(id)), "{now:?}");
    platform.remove("web").unwrap();
    platform.finish();
    beside.finish();
    other.finish();
}
