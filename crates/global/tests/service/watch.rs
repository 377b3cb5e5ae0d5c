//! Server-sent events, and listings page by page.

use futures_util::StreamExt;
use http::Method;
use longshore_api::v1::{
    DeployRequest, DeployResponse, EventView, InstanceView, ProjectChange, ProjectView,
};
use longshore_link::{Client, EventStream, ServerSentEvent};
use serde::de::DeserializeOwned;

use crate::plane::*;

async fn next(events: &mut EventStream) -> ServerSentEvent {
    let event = tokio::time::timeout(std::time::Duration::from_secs(20), events.next());
    event.await.expect("in time").expect("the stream goes on").unwrap()
}

/// The next event, which must be of that name.
async fn expect<T: DeserializeOwned>(events: &mut EventStream, name: &str) -> (String, T) {
    let event = next(events).await;
    assert_eq!(event.name, name, "{event:?}");
    (event.id.unwrap(), serde_json::from_str(&event.data).unwrap())
}

#[tokio::test]
async fn who_watches_a_project_gets_its_state_then_changes_and_may_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let (plane, set) = Plane::start_with_web(dir.path()).await;

    let path = "/v1/projects/default/watch";
    let mut events = plane.user.events(path, None).await.unwrap();
    let (first, state) = expect::<ProjectView>(&mut events, "state").await;
    assert_eq!((state.apps.len(), state.instances.len()), (1, 0));

    let reported = ["web-00000001", "web-00000002"].map(|id| healthy(&set.allotments[0], id));
    plane.report(set.generation, reported.to_vec()).await;
    let (_, change) = expect::<ProjectChange>(&mut events, "change").await;
    assert_eq!((change.apps[0].ready, change.instances.len()), (2, 2));
    drop(events);

    plane.report(set.generation, reported[..1].to_vec()).await;
    let mut events = plane.user.events(path, Some(&first)).await.unwrap();
    let mut gone = Vec::new();
    while gone.is_empty() {
        gone = expect::<ProjectChange>(&mut events, "change").await.1.instances_gone;
    }
    assert_eq!(gone[0].as_str(), "web-00000002");

    // Another part of the project has another feed, for which that place means nothing.
    let lean = format!("{path}?app=web&instances=false");
    let mut events = plane.user.events(&lean, Some(&first)).await.unwrap();
    let (_, state) = expect::<ProjectView>(&mut events, "state").await;
    assert_eq!((state.apps.len(), state.instances.len()), (1, 0));

    let mut lines = plane.user.watch::<ProjectView>(path).await.unwrap();
    assert_eq!(lines.next().await.unwrap().unwrap().instances.len(), 1);
    for bad in ["?instances=some", "?app=Web", "?app="] {
        assert!(plane.user.events(&format!("{path}{bad}"), None).await.is_err(), "{bad}");
    }
    plane.stop().await;
}

#[tokio::test]
async fn events_are_told_as_they_come_and_after_a_restart_from_where_one_was() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    let mut events = plane.user.events("/v1/events", None).await.unwrap();
    plane.deploy(web()).await.unwrap();
    let (first, event) = expect::<EventView>(&mut events, "event").await;
    assert_eq!((event.what.as_str(), event.subject.as_str()), ("deploy", "web r1"));
    let elsewhere = plane.user.events("/v1/events?project=other", Some("0")).await;
    let mut elsewhere = elsewhere.unwrap();

    let deploy = async |client: &Client, word: &str| {
        let request = DeployRequest { manifest: web_with(word, serde_json::json!({})) };
        let path = "/v1/projects/default/apps/web";
        client.call::<_, DeployResponse>(Method::PUT, path, Some(&request)).await.unwrap();
    };
    for word in ["a", "b"] {
        deploy(&plane.user, word).await;
    }
    assert_eq!(expect::<EventView>(&mut events, "event").await.1.subject, "web r2");
    drop(events);
    plane.stop().await;
    // Nothing of another project is told, not even by a stream that began before.
    assert!(elsewhere.next().await.is_none_or(|event| event.is_err()));

    let plane = Plane::start(dir.path()).await;
    deploy(&plane.user, "c").await;
    let mut events = plane.user.events("/v1/events", Some(&first)).await.unwrap();
    for number in 2..=4 {
        let event = expect::<EventView>(&mut events, "event").await.1;
        assert_eq!(event.subject, format!("web r{number}"));
    }
    // A place that this platform has not come to is one of another.
    let mut events = plane.user.events("/v1/events", Some("999999")).await.unwrap();
    assert_eq!(next(&mut events).await.name, "missed");
    plane.stop().await;
}

#[tokio::test]
async fn instances_are_listed_page_by_page_without_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let (plane, set) = Plane::start_with_web(dir.path()).await;
    let ids: Vec<String> = (0..25).map(|number| format!("web-{number:08x}")).collect();
    let reported = ids.iter().rev().map(|id| healthy(&set.allotments[0], id)).collect();
    plane.report(set.generation, reported).await;

    let list = async |query: String| {
        let path = format!("/v1/projects/default/instances?{query}");
        plane.user.get::<Vec<InstanceView>>(&path).await
    };
    let mut seen = Vec::new();
    let mut page = list("limit=10&location=ams".to_owned()).await.unwrap();
    while let Some(last) = page.last() {
        let after = last.id().clone();
        seen.extend(page.iter().map(|view| view.id().to_string()));
        page = list(format!("limit=10&after={after}")).await.unwrap();
    }
    assert_eq!(seen, ids);
    for (bad, field) in [("limit=0", "limit"), ("limit=x", "limit"), ("after=-", "after")] {
        let refused = list(bad.to_owned()).await.unwrap_err().to_string();
        assert!(refused.contains(field), "{refused}");
    }
    let refused = list("location=sin".to_owned()).await.unwrap_err().to_string();
    assert_eq!(refused, "there is no location sin");
    plane.stop().await;
}
