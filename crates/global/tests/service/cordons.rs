//! Locations and nodes that operators close.

use std::collections::BTreeMap;

use longshore_api::ProblemCode;
use longshore_api::links::{AllotmentSet, LocationReport};
use longshore_api::v1::{AppMoveView, CordonRequest, EventView, JoinTokenRole, LocationView};
use longshore_link::{CallError, LineStream};
use longshore_trust::Name;
use longshore_types::{Cordon, Generation};

use http::Method;

use crate::plane::*;

const NODE: &str = "/v1/locations/ams/nodes/n1";

fn refused<T: std::fmt::Debug>(answer: Result<T, CallError>, code: ProblemCode, part: &str) {
    match answer {
        Err(CallError::Refused(problem)) => {
            assert!(problem.code == code && problem.detail.contains(part), "{problem:?}");
        }
        other => panic!("{other:?}"),
    }
}

impl Plane {
    async fn cordon(&self, path: &str, drains: bool) -> Result<Cordon, CallError> {
        let path = format!("{path}/cordon");
        self.user.call(Method::PUT, &path, Some(&CordonRequest { drains })).await
    }

    async fn delete(&self, path: &str) -> Result<(), CallError> {
        self.user.call(Method::DELETE, path, None::<&()>).await
    }

    async fn location(&self, name: &str) -> LocationView {
        self.user.get(&format!("/v1/locations/{name}")).await.unwrap()
    }

    /// The location says what it said before, and this of its only node.
    async fn node_is(&self, generation: Generation, lost: bool, drained: bool, instances: u32) {
        let view = self.location("ams").await;
        let mut node = view.nodes[0].clone();
        (node.lost, node.drained, node.instances, node.cordon) = (lost, drained, instances, None);
        let report = LocationReport {
            number: 0,
            since: None,
            gone: Vec::new(),
            location: view.location,
            coordinates: None,
            traits: Default::default(),
            gate: Some("unix:/nowhere".to_owned()),
            epoch: Default::default(),
            acknowledged: generation,
            at: longshore_link::now(),
            nodes: vec![node],
            instances: vec![],
            shortfalls: vec![],
            staying: vec![],
            joining: None,
            peering: None,
            round_trip_micros: Default::default(),
            demand: vec![],
            strays: vec![],
            location_epoch: Default::default(),
            node_keys: None,
        };
        self.send(&report).await;
    }

    pub async fn sets_of(&self, location: &str) -> LineStream<AllotmentSet> {
        self.link.watch(&format!("/link/locations/{location}/allotments")).await.unwrap()
    }
}

#[tokio::test]
async fn what_is_wished_of_a_node_goes_down_to_its_location_and_outlives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (plane, set) = Plane::start_with_web(dir.path()).await;
    let mut sets = plane.allotments().await;
    let made = plane.cordon(NODE, false).await.unwrap();
    assert_eq!(made.by.as_ref().unwrap().as_str(), "admin");
    let told = until(&mut sets, |set| !set.cordons.is_empty()).await;
    assert!(told.generation > set.generation && told.allotments == set.allotments);
    assert_eq!(told.cordons.values().next(), Some(&made));
    assert_eq!(plane.location("ams").await.nodes[0].cordon, Some(made.clone()));
    // Again it is the same wish, and no event.
    assert_eq!(plane.cordon(NODE, false).await.unwrap(), made);
    let drained = plane.cordon(NODE, true).await.unwrap();
    until(&mut sets, |set| set.cordons.values().all(|cordon| cordon.drains)).await;
    plane.stop().await;

    let plane = Plane::start(dir.path()).await;
    plane.report(Generation(0), vec![]).await;
    let set = until(&mut plane.allotments().await, |_| true).await;
    assert_eq!(set.cordons.values().next(), Some(&drained));
    plane.delete(&format!("{NODE}/cordon")).await.unwrap();
    let after = until(&mut plane.allotments().await, |set| set.cordons.is_empty()).await;
    assert!(after.generation > set.generation);
    plane.delete(&format!("{NODE}/cordon")).await.unwrap();
    plane.stop().await;

    // That a wish was taken back is newer than the wish, also after a restart that remembers neither.
    let plane = Plane::start(dir.path()).await;
    let again = until(&mut plane.allotments().await, |_| true).await;
    assert!(again.cordons.is_empty() && again.generation >= after.generation);
    let events: Vec<EventView> = plane.user.get("/v1/events").await.unwrap();
    let told: Vec<_> = events.iter().filter(|event| event.subject == "node n1 of ams").collect();
    let whats: Vec<_> = told.iter().map(|event| event.what.as_str()).collect();
    assert_eq!(whats, ["cordon", "drain", "uncordon"]);
    assert!(told.iter().all(|event| event.from.as_ref().unwrap().starts_with("127.0.0.1:")));
    plane.stop().await;
}

#[tokio::test]
async fn only_a_node_that_is_drained_or_lost_is_removed_and_it_may_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let (plane, set) = Plane::start_with_web(dir.path()).await;
    plane.node_is(set.generation, false, false, 2).await;
    refused(plane.delete(NODE).await, ProblemCode::Conflict, "neither drained nor lost");
    plane.cordon(NODE, true).await.unwrap();
    refused(plane.delete(NODE).await, ProblemCode::Conflict, "still has 2 instances");
    plane.node_is(set.generation, false, true, 0).await;
    plane.delete(NODE).await.unwrap();
    plane.delete(NODE).await.unwrap();
    let told = until(&mut plane.allotments().await, |_| true).await;
    assert!(told.cordons.values().all(|cordon| cordon.removed));
    assert!(plane.location("ams").await.nodes.is_empty());
    refused(plane.cordon(NODE, false).await, ProblemCode::Conflict, "uncordon it first");
    plane.delete(&format!("{NODE}/cordon")).await.unwrap();
    plane.report(told.generation, vec![]).await;
    plane.node_is(told.generation, true, false, 2).await;
    plane.delete(NODE).await.unwrap();

    let missing = "/v1/locations/ams/nodes/n9";
    for (path, what) in [(missing, "n9"), ("/v1/locations/sin", "sin")] {
        refused(plane.cordon(path, true).await, ProblemCode::NotFound, what);
        let cordon = format!("{path}/cordon");
        refused(plane.delete(&cordon).await, ProblemCode::NotFound, what);
        for preview in ["drain", "removal"] {
            let preview = plane.user.get::<serde_json::Value>(&format!("{path}/{preview}")).await;
            refused(preview, ProblemCode::NotFound, what);
        }
    }
    refused(plane.delete(missing).await, ProblemCode::NotFound, "n9");
    let wrong = plane.cordon("/v1/locations/ams/nodes/Wrong!", true).await;
    refused(wrong, ProblemCode::InvalidRequest, "1 value is not allowed");
    plane.stop().await;
}

#[tokio::test]
async fn a_drained_location_loses_an_app_once_it_is_healthy_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let (plane, set) = Plane::start_with_web(dir.path()).await;
    let here =
        [healthy(&set.allotments[0], "web-00000001"), healthy(&set.allotments[0], "web-00000002")];
    plane.report(set.generation, here.to_vec()).await;
    // With nowhere to go it stays, and that is said.
    plane.cordon("/v1/locations/ams", true).await.unwrap();
    let view = plane.location("ams").await;
    assert!(view.cordon.is_some_and(|cordon| cordon.drains) && !view.drained);
    assert_eq!(view.staying_apps[0].why, "there is no other location");
    assert!(!view.staying_apps[0].under_way);

    // Once there is somewhere, it goes at once: a preview is of what has not begun.
    plane.delete("/v1/locations/ams/cordon").await.unwrap();
    plane.report_from("sin", Generation(0), vec![], vec![]).await;
    let preview: Vec<AppMoveView> = plane.user.get("/v1/locations/ams/drain").await.unwrap();
    assert_eq!((preview[0].count, preview[0].staying), (2, 0));
    assert_eq!(preview[0].to, BTreeMap::from([("sin".parse().unwrap(), 2)]));
    plane.cordon("/v1/locations/ams", true).await.unwrap();
    // The budget that it gives away goes to the other once it has acknowledged that.
    let mut sets = plane.allotments().await;
    let lowered = until(&mut sets, |set| set.allotments[0].budget == 3).await;
    assert_eq!(lowered.allotments[0].count, 2);
    plane.report(lowered.generation, here.to_vec()).await;
    let mut others = plane.sets_of("sin").await;
    let given = until(&mut others, |set| {
        set.allotments.first().is_some_and(|one| (one.count, one.budget) == (2, 3))
    })
    .await;
    let there = |n: usize| {
        let ids = ["web-00000003", "web-00000004"];
        ids[..n].iter().map(|id| healthy(&given.allotments[0], id)).collect::<Vec<_>>()
    };
    plane.report_from("sin", given.generation, there(1), vec![]).await;
    until(&mut sets, |set| set.allotments[0].count == 1).await;
    plane.report_from("sin", given.generation, there(2), vec![]).await;
    let emptied = until(&mut sets, |set| set.allotments[0].count == 0).await;
    assert!(!plane.location("ams").await.drained, "its instances are still there");
    plane.report(emptied.generation, vec![]).await;
    let view = plane.location("ams").await;
    assert!(view.drained && view.staying_apps.is_empty(), "{view:?}");
    plane.delete("/v1/locations/ams/cordon").await.unwrap();
    assert_eq!(plane.location("ams").await.cordon, None);
    plane.stop().await;
}

#[tokio::test]
async fn where_every_location_is_cordoned_an_app_waits_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    plane.report(Generation(0), vec![]).await;
    plane.cordon("/v1/locations/ams", false).await.unwrap();
    plane.deploy(web()).await.unwrap();
    let note =
        "0 of 2 run; 2 wait: every location is cordoned by an operator (ams: refused: cordoned by";
    plane.app_when(|app| app.note.as_deref().is_some_and(|told| told.starts_with(note))).await;
    plane.delete("/v1/locations/ams/cordon").await.unwrap();
    until(&mut plane.allotments().await, |set| set.allotments.len() == 1).await;
    plane.stop().await;
}

#[tokio::test]
async fn what_a_removal_starts_elsewhere_is_told_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    plane.report(Generation(0), vec![]).await;
    let token = plane.join_token_as(JoinTokenRole::Location, "sin").await.unwrap();
    let sin = plane.join("sin", &token.token.parse().unwrap()).await.unwrap();
    let name = Name::Location("sin".parse().unwrap());
    let location = plane.showing(&sin.identify(&name, longshore_link::now()).unwrap());
    let report = report_of("sin", Generation(0), vec![], vec![]);
    let path = "/link/locations/sin/report";
    location.call::<_, ()>(Method::POST, path, Some(&report)).await.unwrap();
    plane.deploy(web()).await.unwrap();
    let mut sets = plane.sets_of("ams").await;
    until(&mut sets, |set| set.allotments.first().is_some_and(|one| one.count == 1)).await;
    // Those that are needed are not removed, and nothing is told of what would be.
    for (path, why) in [
        ("/v1/locations/sin/removal", "it reports, and has 0 instances"),
        ("/v1/locations/ams/removal", "it is of the machine of the control plane"),
        ("/v1/locations/ams/nodes/n1/removal", "it is neither drained nor lost"),
    ] {
        let preview = plane.user.get::<serde_json::Value>(path).await;
        refused(preview, ProblemCode::Conflict, why);
    }
    plane.stop().await;

    // It is not heard of any more.
    let plane = Plane::start(dir.path()).await;
    plane.report(Generation(0), vec![]).await;
    let preview: Vec<AppMoveView> = plane.user.get("/v1/locations/sin/removal").await.unwrap();
    let [web] = &preview[..] else { panic!("{preview:?}") };
    assert_eq!((web.count, web.staying, &web.why), (1, 0, &None));
    assert_eq!(web.to, BTreeMap::from([("ams".parse().unwrap(), 1)]));
    let mut sets = plane.sets_of("ams").await;
    assert_eq!(until(&mut sets, |_| true).await.allotments[0].count, 1, "it changed nothing");
    plane.delete("/v1/locations/sin").await.unwrap();
    until(&mut sets, |set| set.allotments[0].count == 2).await;
    plane.stop().await;
}
