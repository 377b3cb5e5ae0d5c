//! What locations are given together never exceeds an app's `max`, while what runs moves between them.

use std::time::Duration;

use longshore_api::ProblemCode;
use longshore_api::links::InstanceStatus;
use longshore_types::Generation;
use serde_json::json;

use super::joining::refused;
use super::plane::*;

/// Has `ams` say that it carries out the newest that it was given while so many instances are there, until
/// `sin` may have as many as expected. It must never have been given more.
async fn until_given(plane: &Plane, there: &[InstanceStatus], expected: u32) {
    let search = async {
        loop {
            let set = until(&mut plane.allotments().await, |_| true).await;
            plane.report(set.generation, there.to_vec()).await;
            let path = "/link/locations/sin/allotments";
            let given = until(&mut plane.link.watch(path).await.unwrap(), |_| true).await;
            let budget = given.allotments.first().map_or(0, |one| one.budget);
            assert!(budget <= expected, "{budget} beside {} that run", there.len());
            if budget == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), search).await.expect("in time");
}

#[tokio::test]
async fn a_lowered_budget_counts_for_as_long_as_more_than_that_run() {
    let dir = tempfile::tempdir().unwrap();
    let (plane, set) = Plane::start_with_web(dir.path()).await;
    // In the midst of a rollout it has all that it may.
    let ids = ["web-00000001", "web-00000002", "web-00000003", "web-00000004"];
    let there = ids.map(|id| healthy(&set.allotments[0], id));
    plane.report(set.generation, there.to_vec()).await;
    plane.report_from("sin", Generation(0), vec![], vec![]).await;
    let mut wish = web();
    (wish["count"], wish["max"]) = (json!(4), json!(4));
    plane.deploy(wish).await.unwrap();
    until(&mut plane.allotments().await, |set| set.allotments[0].budget == 2).await;
    // What it may have no more is the other's once it is gone, and no sooner.
    for (n_there, given) in [(4, 0), (3, 1), (2, 2)] {
        until_given(&plane, &there[..n_there], given).await;
    }
    plane.stop().await;
}

#[tokio::test]
async fn nobody_acknowledges_what_was_not_decided_yet() {
    let dir = tempfile::tempdir().unwrap();
    let (plane, set) = Plane::start_with_web(dir.path()).await;
    let there: Vec<_> = ["web-00000001", "web-00000002", "web-00000003"]
        .map(|id| healthy(&set.allotments[0], id))
        .into();
    plane.report(set.generation, there.clone()).await;
    // It would count as told of whatever it loses later, and others would have that beside what runs there.
    for ahead in [Generation(set.generation.0 + 1000), Generation(u64::MAX)] {
        let report = report_of("ams", ahead, vec![], vec![]);
        let problem = refused(plane.try_send(&report).await);
        assert_eq!(problem.code, ProblemCode::InvalidRequest);
        let named = format!("ams has acknowledged = {}", ahead.0);
        assert!(problem.detail.contains(&named), "{problem:?}");
    }
    let app = plane.app().await;
    assert_eq!(app.ready, 3, "what it said before holds");
    plane.stop().await;
}
