//! Apps that matter more than others.

use http::Method;
use longshore_api::links::{AllotmentSet, LocationReport, Shortfall};
use longshore_api::v1::{AppExplanation, DeployRequest, DeployResponse, EventView, PlanView};
use longshore_types::{
    ByteCount, Candidate, Capacity, Decision, Lack, Priority, RoomMaking, Yielding,
};
use serde_json::json;

use crate::placement::recomputed;
use crate::plane::*;

/// A node has room for one of these.
fn large(app: &str, priority: u8) -> DeployRequest {
    let resources = json!({"memory": "6GiB", "disk": "1GiB"});
    let manifest = json!({
        "app": app, "image": "default/web:1", "priority": priority, "resources": resources,
    });
    DeployRequest { manifest }
}

async fn deploy(plane: &Plane, app: &str, priority: u8) {
    let path = format!("/v1/projects/default/apps/{app}");
    let request = large(app, priority);
    let _: DeployResponse = plane.user.call(Method::PUT, &path, Some(&request)).await.unwrap();
}

/// What a location says that runs one instance of the `running` of these apps.
fn running(set: &AllotmentSet, running: &str) -> LocationReport {
    let of = set.allotments.iter().find(|one| one.app().as_str() == running).unwrap();
    let instance = healthy(of, &format!("{running}-00000001"));
    let mut report = report_of("ams", set.generation, vec![instance], vec![]);
    let manifest = &of.release.manifest;
    let promised = manifest.resources.capacity();
    report.nodes[0].promised = promised;
    report.nodes[0].yielding = vec![Yielding {
        priority: manifest.priority,
        instances: 1,
        promised,
        gpus: Default::default(),
    }];
    report
}

fn short(app: &str, room: RoomMaking) -> Shortfall {
    let candidate = Candidate {
        name: "n1".to_owned(),
        score: None,
        why: "refused: 6 GiB of memory needed, 2 GiB free".to_owned(),
        lack: Some(Lack::Memory),
    };
    let (at, why) = (Default::default(), "no node has room".to_owned());
    let decision = Decision { at, chosen: None, why, candidates: vec![candidate] };
    let (project, app) = (Default::default(), app.parse().unwrap());
    Shortfall { project, app, missing: 1, decision, room }
}

/// For how many of an app others may be made to leave, and how many should run.
fn asks(set: &AllotmentSet, app: &str) -> Option<(u32, u32)> {
    let found = set.allotments.iter().find(|one| one.app().as_str() == app)?;
    Some((found.make_room, found.count))
}

#[tokio::test]
async fn what_fits_nowhere_is_given_to_where_others_leave_for_it_and_everybody_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    plane.report(Default::default(), vec![]).await;
    deploy(&plane, "batch", 30).await;
    let mut sets = plane.allotments().await;
    let set = until(&mut sets, |set| asks(set, "batch") == Some((0, 1))).await;
    plane.send(&running(&set, "batch")).await;

    // What matters hardly more waits, and does not say that anybody would leave.
    let path = "/v1/projects/default/apps/shop/plan";
    let plan = async |priority| -> PlanView {
        plane.user.call(Method::POST, path, Some(&large("shop", priority))).await.unwrap()
    };
    assert!(plan(39).await.waiting.is_some());
    let decision = plan(40).await.placement.remove(0).decision.unwrap();
    let told = "no location has 6 GiB of memory free; about 1 of priority 30 or lower makes room for it \
                (priority 40)";
    assert_eq!(decision.why, told);

    deploy(&plane, "shop", 40).await;
    let set = until(&mut sets, |set| asks(set, "shop") == Some((1, 1))).await;
    let mut report = running(&set, "batch");
    std::sync::Arc::make_mut(&mut report.instances[0]).draining = true;
    let node = &mut report.nodes[0];
    (node.leaving, node.yielding) = (node.promised, vec![]);
    report.shortfalls = vec![short("shop", RoomMaking::UnderWay), short("batch", RoomMaking::None)];
    plane.send(&report).await;
    let events: Vec<EventView> = plane.user.get("/v1/events").await.unwrap();
    let event = events.iter().find(|event| event.what == "preempt").unwrap();
    assert_eq!(event.subject, format!("shop at ams: {told}"));

    // It runs, and nobody has to leave any more. What left waits where it was, for there is no other place.
    let mut report = running(&set, "shop");
    report.shortfalls = vec![short("batch", RoomMaking::InVain)];
    plane.send(&report).await;
    let set = until(&mut sets, |set| asks(set, "shop") == Some((0, 1))).await;
    assert_eq!(asks(&set, "batch"), Some((0, 1)));
    let told: AppExplanation =
        plane.user.get("/v1/projects/default/apps/batch/explain").await.unwrap();
    assert_eq!(told.summary, "0 of 1 run; 1 waits: no node has room");
    plane.stop().await;
    assert!(recomputed(&dir.path().join("data/decisions.jsonl")) > 1);
}

#[tokio::test]
async fn what_waits_is_placed_in_the_order_of_its_priority() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    let mut small = report_of("ams", Default::default(), vec![], vec![]);
    small.nodes[0].capacity = Capacity { memory: ByteCount::gib(1), ..small.nodes[0].capacity };
    plane.send(&small).await;
    for (app, priority) in [("a", 50), ("b", 52), ("c", 51)] {
        deploy(&plane, app, priority).await;
    }
    let mut sets = plane.allotments().await;
    until(&mut sets, |set| set.allotments.is_empty()).await;
    plane.report(Default::default(), vec![]).await;
    let set = until(&mut sets, |set| !set.allotments.is_empty()).await;
    assert_eq!(asks(&set, "b"), Some((0, 1)));
    assert_eq!(Priority::new(52), Some(set.allotments[0].release.manifest.priority));
    assert_eq!(set.allotments.len(), 1);
    plane.stop().await;
}
