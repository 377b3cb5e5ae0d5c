//! Apps that follow their users.

use std::time::Duration;

use futures_util::future::join_all;
use longshore_api::links::{AllotmentSet, AppDemand, LocationReport};
use longshore_api::v1::{AppExplanation, AppLocationView, EventView, Explanation};
use longshore_types::LocationName;
use serde_json::json;

use crate::placement::recomputed;
use crate::plane::*;

/// How far they are from each other, in milliseconds.
const WAYS: [(&str, &str, u64); 3] = [("ams", "nyc", 80), ("ams", "sin", 160), ("nyc", "sin", 220)];

/// What a location says that carries out what it was told, while so many requests for `web` come in there.
fn says(location: &str, set: &AllotmentSet, requests_per_hour: u64) -> LocationReport {
    let instances = set.allotments.iter().flat_map(|allotment| {
        (0..allotment.count.min(allotment.budget))
            .map(move |n| healthy(allotment, &format!("web-{}{n:0>7}", &location[..1])))
    });
    let mut report = report_of(location, set.generation, instances.collect(), vec![]);
    let to = |(a, b, millis): (&str, &str, u64)| {
        let other = [(a, b), (b, a)].into_iter().find(|(here, _)| *here == location)?.1;
        Some((other.parse::<LocationName>().unwrap(), millis * 1000))
    };
    report.round_trip_micros = WAYS.into_iter().filter_map(to).collect();
    let app = "web".parse().unwrap();
    report.demand = vec![AppDemand { project: Default::default(), app, requests_per_hour }];
    report
}

/// Carries out whatever a location is told.
async fn carry_out(plane: &Plane, location: &str, requests_per_hour: u64) {
    let mut sets = plane.sets_of(location).await;
    loop {
        let set = until(&mut sets, |_| true).await;
        plane.send(&says(location, &set, requests_per_hour)).await;
    }
}

async fn locations(plane: &Plane) -> Vec<(String, u32)> {
    let views: Vec<AppLocationView> =
        plane.user.get("/v1/projects/default/apps/web/locations").await.unwrap();
    views.into_iter().map(|view| (view.location.to_string(), view.ready)).collect()
}

#[tokio::test]
async fn an_instance_follows_its_users_and_is_healthy_there_before_it_leaves() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    plane.send(&says("ams", &AllotmentSet::default(), 0)).await;
    let mut near = web();
    near["count"] = json!(1);
    near["placement"] = json!({"latency": "50ms", "users": "90%"});
    plane.deploy(near.clone()).await.unwrap();
    let mut sets = plane.sets_of("ams").await;
    let set = until(&mut sets, |set| set.allotments.len() == 1).await;
    plane.send(&says("ams", &set, 100)).await;
    let app = plane.app_when(|app| app.state == "running").await;
    let told = app.latency.unwrap();
    assert_eq!((told.reached, told.is_missed()), (Some(100), false));

    // There are others now, where most of the users are.
    for (location, requests) in [("nyc", 0), ("sin", 900)] {
        plane.send(&says(location, &AllotmentSet::default(), requests)).await;
    }
    let played = [("ams", 100), ("nyc", 0), ("sin", 900)];
    let world = join_all(played.map(|(at, requests)| carry_out(&plane, at, requests)));
    let moved = async {
        loop {
            let now = locations(&plane).await;
            assert!(now.iter().any(|(_, ready)| *ready > 0), "somebody answers: {now:?}");
            if now == [("sin".to_owned(), 1)] {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        _ = world => panic!("locations go on for ever"),
        moved = tokio::time::timeout(Duration::from_secs(20), moved) => moved.expect("in time"),
    }
    let app = plane.app().await;
    assert_eq!(app.latency.unwrap().text(), "90 % of its users are within 50ms, and 90% should be");
    let told: AppExplanation =
        plane.user.get("/v1/projects/default/apps/web/explain").await.unwrap();
    assert_eq!(told.latency.unwrap().reached, Some(90));
    let told: Explanation =
        plane.user.get("/v1/projects/default/instances/web-s0000000/explain").await.unwrap();
    let why = "nearer to its users than one at ams: ";
    assert!(told.location.why.starts_with(why), "{:?}", told.location);
    assert!(told.location.why.ends_with("90 % of its users are within 50ms of here"));
    let events: Vec<EventView> = plane.user.get("/v1/events").await.unwrap();
    let moves = events.iter().filter(|event| event.what == "move");
    let moves: Vec<_> = moves.map(|event| event.subject.as_str()).collect();
    assert!(matches!(moves[..], [one] if one.starts_with("web from ams to sin: ")), "{moves:?}");

    // A second one goes where the rest of them are, and it is said before.
    near["count"] = json!(2);
    let planned = plane.plan(near).await.unwrap();
    let then: Vec<_> =
        planned.placement.iter().map(|one| (one.location.as_str(), one.after)).collect();
    assert_eq!(then, [("ams", 1), ("sin", 1)]);
    assert_eq!(planned.latency.unwrap().reached, Some(100));
    plane.stop().await;
    assert!(recomputed(&dir.path().join("data/decisions.jsonl")) >= 3);
}
