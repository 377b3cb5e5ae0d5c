//! Apps that need GPUs.

use http::Method;
use longshore_api::links::{Allotment, AllotmentSet, LocationReport};
use longshore_api::v1::{AppExplanation, DeployRequest, DeployResponse};
use longshore_types::{ByteCount, Generation, NodeGpu};
use serde_json::json;

use crate::placement::recomputed;
use crate::plane::*;

/// What a location says that has a GPU, of which so much is promised.
fn with_gpu(
    location: &str,
    model: &str,
    promised_gib: u64,
    acknowledged: Generation,
) -> LocationReport {
    let mut report = report_of(location, acknowledged, vec![], vec![]);
    report.nodes[0].gpus = vec![NodeGpu {
        model: model.parse().unwrap(),
        memory: ByteCount::gib(80),
        promised: ByteCount::gib(promised_gib),
        leaving: ByteCount(0),
    }];
    report
}

async fn deploy(plane: &Plane, app: &str, gib: u64) {
    let path = format!("/v1/projects/default/apps/{app}");
    let gpu = json!({"memory": format!("{gib}GiB"), "models": ["h100"]});
    let manifest = json!({"app": app, "image": "default/web:1", "resources": {"gpu": gpu}});
    let request = DeployRequest { manifest };
    let _: DeployResponse = plane.user.call(Method::PUT, &path, Some(&request)).await.unwrap();
}

#[tokio::test]
async fn what_was_given_counts_before_it_is_reported_and_what_waits_is_woken_by_a_free_gpu() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    plane.send(&with_gpu("sin", "l4", 0, Generation(0))).await;
    plane.send(&with_gpu("ams", "h100", 0, Generation(0))).await;
    deploy(&plane, "first", 60).await;
    let mut sets = plane.allotments().await;
    let of = |app: &'static str| {
        move |set: &AllotmentSet| set.allotments.iter().any(|one| one.app().as_str() == app)
    };
    let set = until(&mut sets, of("first")).await;
    // Nothing of it was reported yet.
    deploy(&plane, "second", 30).await;
    let explain = async || -> AppExplanation {
        plane.user.get("/v1/projects/default/apps/second/explain").await.unwrap()
    };
    let waits = "0 of 1 run; 1 waits: no location has 1 GPU of h100 with 30 GiB free";
    let told = explain().await;
    assert_eq!(told.summary, waits);
    let candidates = told.waiting.unwrap().decision.candidates;
    let mut whys: Vec<_> = candidates.iter().map(|one| one.why.as_str()).collect();
    whys.sort_unstable();
    let needs = "refused: needs 1 GPU of h100 with 30 GiB free";
    assert_eq!(
        whys,
        [format!("{needs}, and there is only l4"), format!("{needs}, the largest free is 20 GiB")]
    );

    let first = set.allotments.iter().find(|one| one.app().as_str() == "first").unwrap();
    let mut report = with_gpu("ams", "h100", 60, set.generation);
    report.instances = vec![healthy(first, "first-00000001").into()];
    plane.send(&report).await;
    assert_eq!(explain().await.summary, waits);
    // Somebody gives back enough of it.
    let mut report = with_gpu("ams", "h100", 50, set.generation);
    report.instances = vec![healthy(first, "first-00000001").into()];
    plane.send(&report).await;
    until(&mut sets, of("second")).await;
    plane.stop().await;
    assert!(recomputed(&dir.path().join("data/decisions.jsonl")) > 1);
}

#[tokio::test]
async fn an_app_that_needs_gpus_from_now_on_moves_to_them() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    plane.send(&with_gpu("sin", "l4", 0, Generation(0))).await;
    plane.deploy(web()).await.unwrap();
    let watch = async |name: &str| {
        let path = format!("/link/locations/{name}/allotments");
        plane.link.watch::<AllotmentSet>(&path).await.unwrap()
    };
    let mut at_sin = watch("sin").await;
    let set = until(&mut at_sin, |set| !set.allotments.is_empty()).await;
    let (old, count) = (set.allotments[0].release.number, set.allotments[0].count);
    let all = |allotment: &Allotment, letter: char| -> Vec<_> {
        (0..count).map(|idx| healthy(allotment, &format!("web-{letter}{idx:07}"))).collect()
    };
    let mut report = with_gpu("sin", "l4", 0, set.generation);
    report.instances = all(&set.allotments[0], 'a').into_iter().map(Into::into).collect();
    plane.send(&report).await;
    plane.send(&with_gpu("ams", "h100", 0, Generation(0))).await;
    let mut document = web();
    document["resources"] = json!({"gpu": {"memory": "20GiB", "models": ["h100"]}});
    plane.deploy(document).await.unwrap();

    // There it is started first, and what has no such GPU is not told of it.
    let mut at_ams = watch("ams").await;
    let set = until(&mut at_ams, |set| set.allotments.iter().any(|one| one.count == count)).await;
    assert!(set.allotments[0].release.number > old);
    let there = until(&mut watch("sin").await, |_| true).await;
    assert_eq!((there.allotments[0].release.number, there.allotments[0].count), (old, count));
    let mut report = with_gpu("ams", "h100", 20 * u64::from(count), set.generation);
    report.instances = all(&set.allotments[0], 'b').into_iter().map(Into::into).collect();
    plane.send(&report).await;
    until(&mut at_sin, |set| set.allotments.iter().all(|one| one.count == 0)).await;
    plane.stop().await;
    assert!(recomputed(&dir.path().join("data/decisions.jsonl")) > 1);
}
