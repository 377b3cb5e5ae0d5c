//! What a location is told that asks for changes.

use futures_util::StreamExt;
use http::Method;
use longshore_api::links::AllotmentSet;
use longshore_api::v1::DeployRequest;
use longshore_types::Generation;
use serde_json::json;

use crate::plane::*;

#[tokio::test]
async fn a_location_that_asks_for_changes_is_told_the_whole_once() {
    let dir = tempfile::tempdir().unwrap();
    let (plane, _) = Plane::start_with_web(dir.path()).await;
    let path = "/link/locations/ams/allotments?changes=true";
    let mut sets = plane.link.watch::<AllotmentSet>(path).await.unwrap();
    let mut known = sets.next().await.unwrap().unwrap();
    assert!(known.since.is_none() && known.allotments.len() == 1);

    let manifest = json!({"app": "api", "image": "default/web:1"});
    let request = DeployRequest { manifest };
    let api = "/v1/projects/default/apps/api";
    plane.user.send(Method::PUT, api, Some(&request)).await.unwrap();
    let told = until(&mut sets, |set| !set.allotments.is_empty()).await;
    assert_eq!((told.since, told.allotments.len()), (Some(known.generation), 1));
    known = known.changed(told).unwrap();
    assert_eq!(known.allotments.len(), 2);
    let again = plane.link.watch::<AllotmentSet>(path).await.unwrap().next().await;
    let again = again.unwrap().unwrap();
    assert!(again.since.is_none(), "each connection begins with the whole");
    assert_eq!(again.allotments.len(), known.allotments.len());

    plane.user.send(Method::DELETE, api, None::<&()>).await.unwrap();
    let told = until(&mut sets, |set| !set.gone.is_empty()).await;
    assert_eq!(told.gone[0].app.as_str(), "api");
    known = known.changed(told).unwrap();
    assert_eq!((known.allotments.len(), known.allotments[0].app().as_str()), (1, "web"));
    // It is forgotten once the location has carried that out.
    plane.report(known.generation, vec![]).await;
    plane.report(Generation(known.generation.0 + 1), vec![]).await;
    until_api_is_gone(&plane).await;
    plane.stop().await;
}

/// Until the app is not there any more.
async fn until_api_is_gone(plane: &Plane) {
    let gone = async {
        while plane.user.get::<serde_json::Value>("/v1/projects/default/apps/api").await.is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), gone).await.expect("in time");
}
