//! What matters more has a place where there is not room for all.

use longshore_api::v1::{EventView, LocationView};
use longshore_e2e::{Platform, eventually};
use serde_json::{Value, json};

use crate::scene::{page, web, with_web};

/// An app of which the machine has room for one instance.
fn large(platform: &Platform, app: &str, priority: u8) -> Value {
    let here: LocationView = platform.call("GET", "/v1/locations/local", None).unwrap();
    let mib = (here.capacity.memory.0 >> 20) * 6 / 10;
    let mut manifest = web(app, 1);
    manifest["priority"] = json!(priority);
    manifest["resources"]["memory"] = json!(format!("{mib}MiB"));
    manifest
}

#[test]
fn what_matters_more_takes_the_place_of_what_matters_less_and_gives_it_back() {
    let platform = with_web();
    platform.deploy(&large(&platform, "batch", 20)).unwrap();
    let old = platform.instances("batch").unwrap().remove(0);

    platform.deploy_only(&large(&platform, "shop", 80)).unwrap();
    platform.wait_until_settled("shop").unwrap();
    assert_eq!(page(&platform, "shop"), "one");
    let why = "about 1 of priority 20 or lower makes room for it (priority 80)";
    let explained = platform.run(&["explain", "shop"]).ok();
    assert!(explained.contains(why), "{explained}");
    let events: Vec<EventView> = platform.call("GET", "/v1/events", None).unwrap();
    let told = events.iter().find(|event| event.what == "preempt").unwrap();
    assert!(told.subject.contains(why), "{told:?}");

    // It was drained, and waits.
    eventually("it has left", || {
        let app = platform.app("batch")?;
        let is_gone = platform.instances("batch")?.iter().all(|one| one.id() != old.id());
        Ok((is_gone && app.note.is_some_and(|note| note.contains("1 waits"))).then_some(()))
    })
    .unwrap();
    platform.remove("shop").unwrap();
    platform.wait_until_settled("batch").unwrap();
    assert_eq!(page(&platform, "batch"), "one");
    platform.finish();
}
