//! Locations that lost their stores or their machines.

use std::time::Duration;

use futures_util::StreamExt as _;
use http::Method;
use longshore_api::links::{AllotmentSet, LocationReport};
use longshore_api::v1::{EventView, JoinTokenCreated, JoinTokenRequest, JoinTokenRole};
use longshore_api::{Problem, ProblemCode};
use longshore_link::{CallError, Client, now};
use longshore_trust::{BeginRequest, Begun, Fingerprint, JoinToken, Name};
use longshore_types::{Generation, LocationEpoch};

use crate::joining::refused;
use crate::plane::*;

async fn begin(client: &Client, location: &str, own: Option<u64>) -> Result<Begun, CallError> {
    let request = BeginRequest { epoch: own.map(LocationEpoch) };
    let path = format!("/link/locations/{location}/begin");
    client.call(Method::POST, &path, Some(&request)).await
}

/// What a location says in a life, to which one node has joined.
fn report_in(location: &str, life: u64) -> LocationReport {
    let keys = [("n2".parse().unwrap(), Fingerprint::of(b"n2").to_string())];
    LocationReport {
        location_epoch: LocationEpoch(life),
        node_keys: Some(keys.into()),
        ..report_of(location, Generation(0), vec![], vec![])
    }
}

async fn say(client: &Client, report: &LocationReport) -> Result<(), CallError> {
    let path = format!("/link/locations/{}/report", report.location);
    client.call(Method::POST, &path, Some(report)).await
}

fn recovered(problem: Problem) -> String {
    assert_eq!(problem.code, ProblemCode::Recovered);
    problem.detail
}

#[tokio::test]
async fn a_location_that_lost_its_store_begins_another_life_and_that_of_before_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    let first = begin(&plane.link, "ams", None).await.unwrap();
    assert_eq!((first.epoch, first.node_keys.len()), (LocationEpoch::FIRST, 0));
    let again = begin(&plane.link, "ams", Some(0)).await.unwrap();
    assert_eq!((again.epoch, &again.seal), (LocationEpoch::FIRST, &first.seal));
    say(&plane.link, &report_in("ams", 0)).await.unwrap();
    plane.deploy(web()).await.unwrap();
    let path = "/link/locations/ams/allotments";
    let mut sets = plane.link.watch::<AllotmentSet>(path).await.unwrap();
    let before = until(&mut sets, |set| !set.allotments.is_empty()).await;

    let second = begin(&plane.link, "ams", None).await.unwrap();
    assert_eq!((second.epoch, &second.seal), (LocationEpoch(1), &first.seal));
    assert_eq!(second.node_keys[&"n2".parse().unwrap()], Fingerprint::of(b"n2"));
    let rest = tokio::time::timeout(Duration::from_secs(20), sets.by_ref().count()).await;
    rest.expect("the life before is told nothing more");
    let why = recovered(refused(say(&plane.link, &report_in("ams", 0)).await));
    assert!(
        why.contains("life 0") && why.contains("in life 1") && why.contains("store.redb"),
        "{why}"
    );
    recovered(refused(begin(&plane.link, "ams", Some(0)).await.map(drop)));
    say(&plane.link, &report_in("ams", 1)).await.unwrap();
    // What it was given it has still.
    let mut sets = plane.link.watch::<AllotmentSet>(path).await.unwrap();
    let after = until(&mut sets, |_| true).await;
    assert_eq!(after.allotments, before.allotments);
    // A node that the location lets go is not vouched for any more; one that says nothing of them lets none go.
    let silent = LocationReport { node_keys: None, ..report_in("ams", 1) };
    say(&plane.link, &silent).await.unwrap();
    assert_eq!(begin(&plane.link, "ams", Some(1)).await.unwrap().node_keys.len(), 1);
    let none = LocationReport { node_keys: Some(Default::default()), ..silent };
    say(&plane.link, &none).await.unwrap();
    assert_eq!(begin(&plane.link, "ams", Some(1)).await.unwrap().node_keys.len(), 0);
    let garbage = [("n2".parse().unwrap(), "no key".to_owned())];
    let garbage = LocationReport { node_keys: Some(garbage.into()), ..none };
    let why = refused(say(&plane.link, &garbage).await);
    assert_eq!(why.code, ProblemCode::InvalidRequest, "{why:?}");
    // After a restore of the global store, which knows of fewer lives, the newest goes on.
    say(&plane.link, &report_in("ams", 7)).await.unwrap();
    assert_eq!(begin(&plane.link, "ams", None).await.unwrap().epoch, LocationEpoch(8));
    let events: Vec<EventView> = plane.user.get("/v1/events").await.unwrap();
    assert!(events.iter().any(|event| event.what == "location recover" && event.subject == "ams"));
    plane.stop().await;
}

async fn recover_token(
    plane: &Plane,
    role: JoinTokenRole,
    location: &str,
) -> Result<JoinTokenCreated, CallError> {
    let location = Some(location.parse().unwrap());
    let request = JoinTokenRequest { location, role, recover: true, country: None };
    plane.user.call(Method::POST, "/v1/join-tokens", Some(&request)).await
}

#[tokio::test]
async fn another_machine_takes_the_place_of_a_location_by_a_token_and_the_one_before_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    begin(&plane.link, "ams", None).await.unwrap();
    let sin = Name::Location("sin".parse().unwrap());
    let token = plane.join_token_as(JoinTokenRole::Location, "sin").await.unwrap();
    let before = plane.join("sin", &token.token.parse().unwrap()).await.unwrap();
    let before = plane.showing(&before.identify(&sin, now()).unwrap());
    begin(&before, "sin", None).await.unwrap();
    say(&before, &report_in("sin", 0)).await.unwrap();
    plane.deploy(web()).await.unwrap();
    let path = "/link/locations/sin/allotments";
    let mut sets = before.watch::<AllotmentSet>(path).await.unwrap();
    let given = until(&mut sets, |set| !set.allotments.is_empty()).await;

    // There is nobody, it is of this machine, it is a node.
    let refusals = [
        (JoinTokenRole::Location, "fra", ProblemCode::NotFound),
        (JoinTokenRole::Location, "ams", ProblemCode::Conflict),
        (JoinTokenRole::Node, "sin", ProblemCode::InvalidRequest),
    ];
    for (role, location, code) in refusals {
        assert_eq!(refused(recover_token(&plane, role, location).await).code, code, "{location}");
    }
    let token = recover_token(&plane, JoinTokenRole::Location, "sin").await.unwrap();
    let token: JoinToken = token.token.parse().unwrap();
    assert!(token.recovers);
    let after = plane.join("sin", &token).await.unwrap();
    assert!(plane.join("sin", &token).await.is_err(), "it was used");
    let rest = tokio::time::timeout(Duration::from_secs(20), sets.count()).await;
    rest.expect("the one before is told nothing more");
    let why = recovered(refused(say(&before, &report_in("sin", 0)).await));
    assert!(why.contains("another machine"), "{why}");
    recovered(refused(begin(&before, "sin", Some(0)).await.map(drop)));
    recovered(refused(begin(&before, "sin", None).await.map(drop)));

    let after = plane.showing(&after.identify(&sin, now()).unwrap());
    let begun = begin(&after, "sin", None).await.unwrap();
    assert_eq!(begun.epoch, LocationEpoch(1));
    assert_eq!(begun.node_keys.len(), 1, "its nodes are known by their keys");
    say(&after, &report_in("sin", begun.epoch.0)).await.unwrap();
    let mut sets = after.watch::<AllotmentSet>(path).await.unwrap();
    assert_eq!(until(&mut sets, |_| true).await.allotments, given.allotments);
    let events: Vec<EventView> = plane.user.get("/v1/events").await.unwrap();
    let told: Vec<_> = events.iter().map(|event| (&*event.what, &*event.subject)).collect();
    for what in [("join-token create", "to recover location sin"), ("location recover", "sin")] {
        assert!(told.contains(&what), "{told:?}");
    }
    plane.stop().await;
}
