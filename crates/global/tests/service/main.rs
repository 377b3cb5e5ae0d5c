//! The control plane as its neighbours see it: a registry and a location that speak the real
//! protocols, played by the test.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod access;
mod budgets;
mod changes;
mod cordons;
mod demand;
mod elsewhere;
mod gpus;
mod joining;
mod leading;
mod lives;
mod once;
mod overview;
mod placement;
mod plane;
mod prewarms;
mod priorities;
mod registry;
mod restored;
mod rollouts;
mod secrets;
mod watch;
mod waves;

use std::time::Duration;

use futures_util::StreamExt;
use http::Method;
use longshore_api::ProblemCode;
use longshore_api::links::{AllotmentSet, RegistryTable};
use longshore_api::v1::{
    AppView, Explanation, InstanceView, ScaleRequest, TokenCreated, TokenRequest,
};
use longshore_link::{CallError, Client};
use longshore_types::token::{RegistryAction, RegistryRight, Rights};
use longshore_types::{Ability, Generation, ReleaseNumber, RuntimeName, RuntimeOffer};
use serde_json::json;

use plane::*;

#[tokio::test]
async fn a_deploy_becomes_an_allotment_and_reports_become_what_users_see() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    plane.report(Generation(0), vec![]).await;
    let deployed = plane.deploy(web()).await.unwrap();
    assert!(deployed.changed);
    assert_eq!(
        (deployed.release.number, deployed.release.image_digest.to_string()),
        (ReleaseNumber(1), DIGEST.to_owned())
    );
    assert_eq!(plane.app().await.state, "waiting");

    let mut sets = plane.allotments().await;
    let set = until(&mut sets, |set| set.allotments.len() == 1).await;
    let allotment = &set.allotments[0];
    assert_eq!((allotment.count, allotment.budget), (2, 4));
    assert_eq!(allotment.hosts[0].as_str(), "web.localhost");

    let ids = ["web-00000001", "web-00000002"];
    plane.report(set.generation, ids.map(|id| healthy(allotment, id)).to_vec()).await;
    let app = plane.app().await;
    assert_eq!((app.state.as_str(), app.ready), ("running", 2));
    let path = "/v1/projects/default/instances/web-00000001";
    let shown: InstanceView = plane.user.get(path).await.unwrap();
    assert_eq!(shown.location.as_str(), "ams");
    let why: Explanation = plane.user.get(&format!("{path}/explain")).await.unwrap();
    assert_eq!(why.location.why, "the only location");
    plane.stop().await;
}

#[tokio::test]
async fn the_same_deploy_changes_nothing_and_a_restart_forgets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    plane.deploy(web()).await.unwrap();
    assert!(!plane.deploy(web()).await.unwrap().changed);
    let mut changed = web();
    changed["env"] = json!({"A": "1"});
    assert_eq!(plane.deploy(changed.clone()).await.unwrap().release.number, ReleaseNumber(2));
    plane.stop().await;

    let plane = Plane::start(dir.path()).await;
    assert_eq!(plane.releases().await.len(), 2);
    assert!(!plane.deploy(changed).await.unwrap().changed);
    plane.stop().await;
}

#[tokio::test]
async fn an_app_scales_and_is_forgotten_once_its_location_says_that_it_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    plane.report(Generation(0), vec![]).await;
    plane.deploy(web()).await.unwrap();
    let mut sets = plane.allotments().await;
    until(&mut sets, |set| set.allotments.iter().any(|a| a.count == 2)).await;

    let scale = |count| ScaleRequest { count };
    let path = "/v1/projects/default/apps/web/scale";
    let app: AppView = plane.user.call(Method::POST, path, Some(&scale(5))).await.unwrap();
    assert_eq!(app.count, 5);
    let set = until(&mut sets, |set| set.allotments.iter().any(|a| a.count == 5)).await;
    let too_many = plane.user.call::<_, AppView>(Method::POST, path, Some(&scale(20_000))).await;
    let CallError::Refused(problem) = too_many.unwrap_err() else { panic!("must be refused") };
    assert_eq!((problem.status, problem.problems[0].field.as_str()), (422, "count"));
    assert_eq!(plane.app().await.count, 5);

    let left = healthy(&set.allotments[0], "web-00000001");
    plane.report(set.generation, vec![left.clone()]).await;
    let app = "/v1/projects/default/apps/web";
    plane.user.call::<(), ()>(Method::DELETE, app, None).await.unwrap();
    let set = until(&mut sets, |set| set.allotments.is_empty()).await;
    plane.report(set.generation, vec![left]).await;
    assert_eq!(plane.app().await.state, "removing", "an instance is left");
    let refused = plane.deploy(web()).await.unwrap_err();
    assert!(matches!(refused, CallError::Refused(p) if p.code == ProblemCode::Conflict));
    plane.report(set.generation, vec![]).await;
    let gone = async {
        while plane.user.get::<AppView>(app).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.expect("the app is forgotten");
    let missing = plane.user.get::<AppView>("/v1/projects/default/apps/wbe").await.unwrap_err();
    assert!(missing.to_string().ends_with("there is no app wbe"), "{missing}");
    plane.deploy(web()).await.unwrap();
    let missing = plane.user.get::<AppView>("/v1/projects/default/apps/wbe").await.unwrap_err();
    assert!(missing.to_string().ends_with("did you mean web?"), "{missing}");
    plane.stop().await;
}

#[tokio::test]
async fn a_runtime_that_no_node_has_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    let with_runtime = |runtime: &str| {
        let mut document = web();
        document["runtime"] = runtime.into();
        document
    };
    // Nothing is known yet, so it may come.
    plane.deploy(with_runtime("crun")).await.unwrap();
    let offer = |runtime, unavailable: Option<&str>, lacks: &[Ability]| RuntimeOffer {
        runtime,
        path: None,
        version: None,
        unavailable: unavailable.map(str::to_owned),
        lacks: lacks.iter().map(|ability| (*ability, "it is old".to_owned())).collect(),
    };
    let runtimes = vec![
        offer(RuntimeName::Embedded, None, &[Ability::Gpu]),
        offer(RuntimeName::Runc, None, &[Ability::SystemCallFilter]),
        offer(RuntimeName::Runsc, Some("not found"), &[]),
    ];
    plane.report_runtimes(Generation(0), vec![], runtimes).await;
    for (runtime, why) in [
        ("runsc", "n1: no runsc: not found"),
        ("runc", "n1: runc lacks system call filter: it is old"),
        ("crun", "n1: no crun: the node does not know it"),
    ] {
        let CallError::Refused(problem) = plane.deploy(with_runtime(runtime)).await.unwrap_err()
        else {
            panic!("{runtime}: no refusal")
        };
        let error = problem.problems[0].to_string();
        assert!(error.contains("runtime = ") && error.contains(why), "{error}");
    }
    plane.deploy(with_runtime("embedded")).await.unwrap();
    plane.stop().await;
}

#[tokio::test]
async fn bad_deploys_name_every_problem_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    let with = |key: &str, value: serde_json::Value| {
        let mut document = web();
        document[key] = value;
        document
    };
    for (document, field, part) in [
        (json!({}), "app", "is required"),
        (with("app", json!("other")), "app", "the same as in the path"),
        (with("imagee", json!("x")), "imagee", "did you mean"),
        (with("image", json!("default/none:1")), "image", "an image in the registry; push it"),
        (with("image", json!("example.com/x:1")), "image", "push it there first"),
        (with("count", json!("two")), "count", "a whole number"),
    ] {
        let error = plane.deploy(document.clone()).await.unwrap_err();
        let CallError::Refused(problem) = error else { panic!("{document}: {error}") };
        assert_eq!(problem.status, 422, "{document}");
        let named = problem.problems.iter().find(|p| p.field == field);
        assert!(named.is_some_and(|p| p.allowed.contains(part)), "{document}: {problem:?}");
    }
    let apps: Vec<AppView> = plane.user.get("/v1/projects/default/apps").await.unwrap();
    assert!(apps.is_empty());
    plane.stop().await;
}

#[tokio::test]
async fn tokens_open_what_they_say_and_reach_the_registry_as_hashes() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    let right =
        RegistryRight { repositories: "default/*".to_owned(), actions: vec![RegistryAction::Pull] };
    let rights = Rights { registry: vec![right], ..Rights::default() };
    let request = TokenRequest { name: "ci".parse().unwrap(), rights: rights.clone() };
    let made: TokenCreated =
        plane.user.call(Method::POST, "/v1/tokens", Some(&request)).await.unwrap();
    assert!(made.token.starts_with("lsh_"));
    let again =
        plane.user.call::<_, TokenCreated>(Method::POST, "/v1/tokens", Some(&request)).await;
    assert!(matches!(again, Err(CallError::Refused(p)) if p.code == ProblemCode::Conflict));

    let mut tables = plane.link.watch::<RegistryTable>("/link/registry/table").await.unwrap();
    let table = tables.next().await.unwrap().unwrap();
    assert_eq!(table.tokens.values().filter(|r| **r == rights).count(), 1);
    assert!(table.tokens.keys().all(|hash| hash.len() == 64 && !hash.contains(&made.token)));

    let endpoint = plane.user.endpoint().clone();
    for (client, code) in [
        (Client::new(endpoint.clone()), ProblemCode::Unauthenticated),
        (Client::new(endpoint.clone()).with_token("wrong"), ProblemCode::Unauthenticated),
        (Client::new(endpoint).with_token(made.token), ProblemCode::Forbidden),
    ] {
        let error = client.get::<Vec<AppView>>("/v1/projects/default/apps").await.unwrap_err();
        assert!(matches!(&error, CallError::Refused(p) if p.code == code), "{error}");
    }
    let builtin = plane.user.call::<(), ()>(Method::DELETE, "/v1/tokens/admin", None).await;
    assert!(matches!(builtin, Err(CallError::Refused(p)) if p.code == ProblemCode::Conflict));
    plane.user.call::<(), ()>(Method::DELETE, "/v1/tokens/ci", None).await.unwrap();
    plane.stop().await;
}

/// More than one transaction of the store takes.
#[tokio::test]
async fn an_app_spreads_over_hundreds_of_locations_and_leaves_them_all() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    let names: Vec<String> = (0..200).map(|number| format!("place-{number}")).collect();
    for name in &names {
        plane.report_from(name, Generation(0), vec![], vec![]).await;
    }
    let mut wide = web();
    wide["count"] = json!(400);
    plane.deploy(wide).await.unwrap();
    let mut newest = Vec::new();
    for name in &names {
        let path = format!("/link/locations/{name}/allotments");
        let mut sets = plane.link.watch::<AllotmentSet>(&path).await.unwrap();
        let set = until(&mut sets, |set| set.allotments.iter().any(|a| a.count == 2)).await;
        assert!(set.allotments[0].decision.candidates.len() <= 16);
        newest.push(sets);
    }
    let app = "/v1/projects/default/apps/web";
    plane.user.call::<(), ()>(Method::DELETE, app, None).await.unwrap();
    for (name, sets) in names.iter().zip(&mut newest) {
        let set = until(sets, |set| set.allotments.is_empty()).await;
        plane.report_from(name, set.generation, vec![], vec![]).await;
    }
    let gone = async {
        while plane.user.get::<AppView>(app).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.expect("the app is forgotten");
    plane.stop().await;
}

/// What is not there any more left no trace in the store.
#[tokio::test]
async fn a_location_learns_of_a_removal_that_a_start_lies_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (plane, set) = Plane::start_with_web(dir.path()).await;
    let ids = ["web-00000001", "web-00000002"];
    let running = ids.map(|id| healthy(&set.allotments[0], id)).to_vec();
    plane.report(set.generation, running.clone()).await;
    let app = "/v1/projects/default/apps/web";
    plane.user.call::<(), ()>(Method::DELETE, app, None).await.unwrap();
    let taken = until(&mut plane.allotments().await, |set| set.allotments.is_empty()).await;
    plane.stop().await;

    // It was cut off meanwhile, and knows the set before.
    let plane = Plane::start(dir.path()).await;
    plane.report(set.generation, running).await;
    let told = until(&mut plane.allotments().await, |_| true).await;
    assert_eq!(told.allotments, []);
    assert!(told.generation >= taken.generation && told.generation > set.generation);
    assert!(plane.user.get::<AppView>(app).await.is_ok(), "its instances are there still");
    plane.report(told.generation, vec![]).await;
    let gone = async {
        while plane.user.get::<AppView>(app).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.expect("the app is forgotten");
    plane.stop().await;
}
