//! Many locations at once, as far from each other as on Earth: what they do when the way between them
//! is cut, and that nothing is left of them.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use longshore_api::v1::{AppView, InstanceView};
use longshore_e2e::eventually;
use longshore_e2e::image;
use longshore_e2e::world::World;
use serde_json::json;

use crate::scene::{but, script, web};

const HOST: &str = "web.localhost";

/// What the ingress of a location says to a user of its place.
fn page(world: &World, location: &str) -> Result<String> {
    let answer = world.get_there(location, HOST, "/")?;
    ensure!(answer.status == 200, "{location}: {}", answer.status);
    Ok(answer.text().trim().to_owned())
}

fn push(world: &World, page: &str) {
    let layout = image::busybox(world.dir(), &format!("image-{page}"), page).unwrap();
    world.push(&layout, "default/web:1").unwrap();
}

fn at(instances: &[InstanceView]) -> BTreeSet<&str> {
    instances.iter().map(|instance| instance.location.as_str()).collect()
}

#[test]
fn a_place_that_is_cut_off_serves_and_is_as_the_others_again_when_that_ends() {
    let world = World::start(&["--places", "ams,nyc,sin", "--user-at", "lon"]).unwrap();
    // As far as the table says, from here and from one another.
    for location in ["ams", "nyc", "sin"] {
        let round_trip = world.path("lon", location).unwrap().round_trip_ms;
        let took = world.connect(location).unwrap();
        assert!(took >= Duration::from_secs_f64(round_trip / 1000.0), "{location}: {took:?}");
    }
    let places = world.locations().unwrap();
    assert!(places.iter().all(|place| place.coordinates.is_some()), "the map shows them");
    push(&world, "one");
    world.deploy(&web("web", 3)).unwrap();
    let before = world.instances("web").unwrap();
    assert_eq!(at(&before), BTreeSet::from(["ams", "nyc", "sin"]));
    assert_eq!(world.get("sin", HOST, "/").unwrap().status, 200);
    // Each place has the law of its country.
    let lawful = json!({"placement": {"jurisdiction": ["SG"]}});
    world.deploy(&but(script("law", "exec sleep 1000"), &lawful)).unwrap();
    assert_eq!(at(&world.instances("law").unwrap()), BTreeSet::from(["sin"]));

    world.try_tell(&["cut", "sni"]).fails(3, &["a = \"sni\"", "did you mean sin?", "nyc"]);
    world.try_tell(&["slow", "sin", "--loss", "101"]).fails(3, &["loss_percent = 101"]);
    world.tell(&["cut", "Singapore"]).unwrap();
    assert!(world.get("sin", HOST, "/").is_err(), "nobody elsewhere reaches it");
    assert_eq!(page(&world, "sin").unwrap(), "one");
    eventually("it is missed", || {
        Ok(world.locations()?.iter().any(|location| !location.reachable).then_some(()))
    })
    .unwrap();

    // What is deployed meanwhile reaches those that can be reached, and the others later.
    push(&world, "two");
    world.deploy_only(&web("web", 3)).unwrap();
    assert_eq!(page(&world, "sin").unwrap(), "one");
    world.tell(&["heal"]).unwrap();
    world.wait_until_settled("web").unwrap();
    let after = world.instances("web").unwrap();
    assert_eq!(at(&after), BTreeSet::from(["ams", "nyc", "sin"]));
    for location in ["ams", "nyc", "sin"] {
        eventually("it has the new release", || {
            Ok((page(&world, location)? == "two").then_some(()))
        })
        .unwrap();
    }
    world.finish();
}

#[test]
fn a_request_goes_to_the_nearest_place_that_can_answer_it() {
    let world = World::start(&["--places", "ams,lon,sin", "--user-at", "ams"]).unwrap();
    push(&world, "one");
    world.run(&["cordon", "--location", "ams"]).ok();
    world.deploy(&web("web", 2)).unwrap();
    let instances = world.instances("web").unwrap();
    assert_eq!(at(&instances), BTreeSet::from(["lon", "sin"]));
    for instance in &instances {
        let write = format!("echo {} > /www/who", instance.location);
        world.run(&["exec", instance.id().as_str(), "--", "sh", "-c", &write]).ok();
    }
    let answers = |place: &'static str| {
        let told = format!("{place} answers who asks in ams");
        eventually(&told, || {
            let answer = world.get_there("ams", HOST, "/who")?;
            Ok((answer.status == 200 && answer.text().trim() == place).then_some(()))
        })
        .unwrap();
    };
    answers("lon");
    // Not the map counts, but how long it takes.
    world.tell(&["slow", "ams", "lon", "--delay", "300ms"]).unwrap();
    answers("sin");
    let measured = |to: &str| {
        let locations = world.locations().unwrap();
        let ams = locations.iter().find(|one| one.location.as_str() == "ams").unwrap();
        let micros = ams.round_trip_micros.iter().find(|(name, _)| name.as_str() == to);
        Duration::from_micros(*micros.unwrap().1)
    };
    eventually("how far it is, is shown", || {
        let distance = world.path("ams", "sin")?.round_trip_ms;
        Ok((measured("sin") >= Duration::from_secs_f64(distance / 1000.0)).then_some(()))
    })
    .unwrap();
    world.tell(&["cut", "sin"]).unwrap();
    answers("lon");

    // Two that nobody can dial any more: requests go over what they open, through a third for who has no other way.
    world.tell(&["heal"]).unwrap();
    world.run(&["cordon", "--location", "sin"]).ok();
    world.deploy(&web("solo", 1)).unwrap();
    assert_eq!(at(&world.instances("solo").unwrap()), BTreeSet::from(["lon"]));
    for place in ["lon", "sin"] {
        world.put_behind_nat(place).unwrap();
        world.role(place, "ingress").unwrap().kill().unwrap();
    }
    answers("lon");
    eventually("lon answers who asks in sin, through ams", || {
        let answered = world.get_there("sin", "solo.localhost", "/")?.status == 200;
        let carried = world.ingress_metric("longshore_ingress_carried_total{to=\"lon\"}")?;
        Ok((answered && carried > 0.0).then_some(()))
    })
    .unwrap();
    world.finish();
}

#[test]
fn an_instance_follows_its_users_around_the_world_without_a_failed_request() {
    let places = ["--places", "ams,nyc,sin", "--user-at", "ams"];
    let world = World::start_with(&places, &[("LONGSHORE_REBALANCE_AFTER", "1s")]).unwrap();
    push(&world, "one");
    for place in ["nyc", "sin"] {
        world.run(&["cordon", "--location", place]).ok();
    }
    let goal = json!({"placement": {"latency": "60ms"}});
    world.deploy(&but(web("web", 1), &goal)).unwrap();
    assert_eq!(at(&world.instances("web").unwrap()), BTreeSet::from(["ams"]));
    for place in ["nyc", "sin"] {
        world.run(&["uncordon", "--location", place]).ok();
    }
    eventually("it is answered in Singapore", || Ok(page(&world, "sin").ok())).unwrap();
    eventually("it is where its users are", || {
        assert_eq!(page(&world, "sin").unwrap(), "one", "each request is answered");
        Ok((at(&world.instances("web")?) == BTreeSet::from(["sin"])).then_some(()))
    })
    .unwrap();
    // And from afar, where nobody is now.
    assert_eq!(page(&world, "ams").unwrap(), "one");
    let told = world.run(&["explain", "web"]);
    let words = ["within 60ms, and 95% should be", "because nearer to its users than one at ams: "];
    assert!(words.iter().all(|words| told.stdout.contains(words)), "{told}");
    let app: AppView = world.call("/v1/projects/default/apps/web").unwrap();
    assert!(app.latency.unwrap().reached > Some(90));
    assert!(world.run(&["events", "--json"]).stdout.contains("web from ams to sin: "));
    world.finish();
}

#[test]
fn nothing_is_left_of_a_world_that_was_killed_once_the_next_has_been_there() {
    let mut world = World::start(&["--places", "ams,lon", "--nodes", "2"]).unwrap();
    push(&world, "one");
    world.deploy(&web("web", 4)).unwrap();
    world.kill_all().unwrap();
    assert_eq!(world.shims().unwrap().len(), 4, "containers outlive all of it");
    world.up().unwrap();
    assert!(world.shims().unwrap().is_empty(), "a world begins anew");
    world.finish();
}
