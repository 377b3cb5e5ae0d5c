//! Releases that take each other's place.

use std::time::Duration;

use futures_util::StreamExt;
use http::Method;
use longshore_api::ProblemCode;
use longshore_api::links::{Allotment, AllotmentSet, RegistryTable};
use longshore_api::v1::{AppView, ScaleRequest};
use longshore_link::CallError;
use longshore_types::{ExitReason, Generation, InstancePhase, ReleaseNumber, RestartPolicy};
use serde_json::json;

use crate::plane::*;

#[tokio::test]
async fn a_rollback_makes_an_earlier_release_the_one_that_should_run() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    assert!(plane.rollback(None).await.is_err(), "there is no app");
    let first = plane.deploy(web()).await.unwrap();
    let CallError::Refused(problem) = plane.rollback(None).await.unwrap_err() else {
        panic!("there is no release before the first")
    };
    assert_eq!(problem.code, ProblemCode::Conflict);
    let mut changed = web();
    changed["env"] = json!({"A": "1"});
    plane.deploy(changed.clone()).await.unwrap();
    let scale = ScaleRequest { count: 3 };
    let path = "/v1/projects/default/apps/web/scale";
    plane.user.call::<_, AppView>(Method::POST, path, Some(&scale)).await.unwrap();

    let back = plane.rollback(None).await.unwrap();
    assert!(back.changed && back.generation > first.generation);
    assert_eq!(back.release, first.release);
    assert_eq!((plane.app().await.release, plane.app().await.count), (ReleaseNumber(1), 3));
    let current: Vec<_> = plane.releases().await.iter().map(|release| release.current).collect();
    assert_eq!(current, [true, false]);

    assert!(!plane.rollback(Some(1)).await.unwrap().changed);
    assert_eq!(plane.rollback(Some(2)).await.unwrap().release.number, ReleaseNumber(2));
    // What comes next is new, whatever should run now.
    plane.rollback(Some(1)).await.unwrap();
    assert_eq!(plane.deploy(changed).await.unwrap().release.number, ReleaseNumber(3));
    plane.stop().await;
}

#[tokio::test]
async fn a_release_that_gets_no_further_is_taken_back_to_the_last_complete_one() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    plane.report(Generation(0), vec![]).await;
    let with = |rollout: serde_json::Value, env: &str| {
        let mut document = web();
        document["count"] = json!(1);
        document["rollout"] = rollout;
        document["env"] = json!({"A": env});
        document
    };
    let mut sets = plane.allotments().await;
    plane.deploy(with(json!({"deadline": "1s"}), "good")).await.unwrap();
    let is_of = |release: u64| {
        move |set: &AllotmentSet| set.allotments.iter().any(|a| a.release.number.0 == release)
    };
    let set = until(&mut sets, is_of(1)).await;
    // It is late, and there is nothing to go back to; then it is complete all the same.
    plane.app_when(|app| app.state == "failed" && app.failed == Some(ReleaseNumber(1))).await;
    let kept = healthy(&set.allotments[0], "web-00000001");
    plane.report(set.generation, vec![kept.clone()]).await;
    plane.app_when(|app| app.state == "running" && app.failed.is_none()).await;

    plane.deploy(with(json!({"deadline": "1s"}), "bad")).await.unwrap();
    let set = until(&mut sets, is_of(2)).await;
    plane.report(set.generation, vec![kept.clone()]).await;
    let app = plane.app_when(|app| app.release == ReleaseNumber(1)).await;
    assert_eq!(app.failed, Some(ReleaseNumber(2)));
    assert_eq!(app.note.unwrap(), "r2 got no further for 1s; r1 runs");
    until(&mut sets, is_of(1)).await;
    assert_eq!(plane.app().await.state, "running", "what ran all the time is kept");

    // The next word of the user ends that; one that says so is not taken back.
    plane.deploy(with(json!({"deadline": "1s", "revert": false}), "bad")).await.unwrap();
    let app = plane.app_when(|app| app.state == "failed").await;
    assert_eq!((app.release, app.failed), (ReleaseNumber(3), Some(ReleaseNumber(3))));
    plane.stop().await;
}

#[tokio::test]
async fn a_canary_runs_beside_the_last_complete_release_until_it_is_promoted() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    plane.report(Generation(0), vec![]).await;
    let mut sets = plane.allotments().await;
    let canary = json!({"canary": "25%"});
    // Nothing runs that it could be beside.
    plane.deploy(web_with("one", canary.clone())).await.unwrap();
    let set = until(&mut sets, |set| set.allotments.len() == 1).await;
    assert_eq!((set.allotments[0].count, &set.allotments[0].canary), (2, &None));
    let one = |id: &str| healthy(&set.allotments[0], id);
    let mut running = vec![one("web-00000001"), one("web-00000002")];
    plane.report(set.generation, running.clone()).await;
    plane.app_when(|app| app.state == "running").await;
    assert!(plane.promote().await.is_err(), "no canary runs");

    plane.deploy(web_with("two", canary.clone())).await.unwrap();
    let set = until(&mut sets, |set| set.allotments[0].canary.is_some()).await;
    let allotment = &set.allotments[0];
    let tried = allotment.canary.as_ref().unwrap();
    assert_eq!((allotment.release.number.0, allotment.count), (1, 2));
    assert_eq!((tried.release.number.0, tried.count), (2, 1));
    let app = plane.app().await;
    assert_eq!((app.state.as_str(), app.release.0), ("canary", 2));
    let mut second = one("web-00000003");
    second.release = ReleaseNumber(2);
    running.push(second);
    plane.report(set.generation, running.clone()).await;
    let app = plane.app_when(|app| app.canary.as_ref().is_some_and(|c| c.is_ready())).await;
    let note = "canaries beside r1: 1 of 1 healthy; waits to be promoted";
    assert_eq!(app.note.as_deref(), Some(note));

    let promoted = plane.promote().await.unwrap();
    assert_eq!(promoted.release.number, ReleaseNumber(2));
    let set = until(&mut sets, |set| set.allotments[0].release.number.0 == 2).await;
    assert_eq!(set.allotments[0].canary, None);
    for status in &mut running {
        status.release = ReleaseNumber(2);
    }
    plane.report(set.generation, running[1..].to_vec()).await;
    plane.app_when(|app| app.state == "running").await;

    // A rollback is not tried first, and takes a canary back.
    plane.deploy(web_with("three", canary)).await.unwrap();
    until(&mut sets, |set| set.allotments[0].canary.is_some()).await;
    assert_eq!(plane.rollback(None).await.unwrap().release.number, ReleaseNumber(2));
    let set = until(&mut sets, |set| set.allotments[0].canary.is_none()).await;
    assert_eq!(set.allotments[0].release.number, ReleaseNumber(2));
    plane.stop().await;
}

#[tokio::test]
async fn a_canary_takes_over_after_its_wait_and_is_taken_back_when_it_is_not_healthy() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    plane.report(Generation(0), vec![]).await;
    let mut sets = plane.allotments().await;
    plane.deploy(web_with("one", json!({}))).await.unwrap();
    let set = until(&mut sets, |set| set.allotments.len() == 1).await;
    let one = |id: &str| healthy(&set.allotments[0], id);
    let running = vec![one("web-00000001"), one("web-00000002")];
    plane.report(set.generation, running.clone()).await;
    plane.app_when(|app| app.state == "running").await;

    let rules = json!({"canary": 1, "canary_wait": "1s", "deadline": "1s"});
    plane.deploy(web_with("sick", rules.clone())).await.unwrap();
    let app = plane.app_when(|app| app.failed == Some(ReleaseNumber(2))).await;
    assert_eq!((app.release.0, app.canary), (1, None));

    plane.deploy(web_with("well", rules)).await.unwrap();
    let is_third = |set: &AllotmentSet| {
        set.allotments[0].canary.as_ref().is_some_and(|c| c.release.number.0 == 3)
    };
    let set = until(&mut sets, is_third).await;
    let mut third = one("web-00000003");
    third.release = ReleaseNumber(3);
    plane.report(set.generation, [running, vec![third]].concat()).await;
    until(&mut sets, |set| set.allotments[0].release.number.0 == 3).await;
    plane.stop().await;
}

#[tokio::test]
async fn a_release_command_comes_first_and_what_it_says_counts() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    plane.report(Generation(0), vec![]).await;
    let mut sets = plane.allotments().await;
    let with_command = |word: &str| {
        let mut document = web_with(word, json!({}));
        document["release"] = json!({"command": ["migrate", word]});
        document
    };
    let ended = |allotment: &Allotment, code: i32| {
        let mut status = healthy(allotment, &format!("web-0000010{code}"));
        status.release = allotment.command.as_ref().unwrap().number;
        status.is_command = true;
        status.observed.phase = InstancePhase::Exited;
        status.observed.last_exit = Some(ExitReason::Exited { code });
        status.observed.note = Some(format!("exited with code {code}: no such table"));
        status
    };
    // The first release of all waits for its own.
    plane.deploy(with_command("one")).await.unwrap();
    let set = until(&mut sets, |set| set.allotments.len() == 1).await;
    let allotment = &set.allotments[0];
    let command = allotment.command.as_ref().unwrap();
    assert_eq!((allotment.count, command.number.0), (0, 1));
    assert_eq!(command.manifest.process.command.as_ref().unwrap(), &["migrate", "one"]);
    assert_eq!((command.manifest.port, command.manifest.restart), (None, RestartPolicy::Never));
    assert_eq!(plane.app().await.state, "releasing");
    plane.report(set.generation, vec![ended(allotment, 1)]).await;
    let app = plane.app_when(|app| app.state == "failed").await;
    let why = "the release command of r1 exited with code 1: no such table";
    assert_eq!(app.note.as_deref(), Some(why));
    until(&mut sets, |set| set.allotments[0].command.is_none()).await;

    // The same again is a new try.
    plane.deploy(with_command("one")).await.unwrap();
    let set = until(&mut sets, |set| set.allotments[0].command.is_some()).await;
    plane.report(set.generation, vec![ended(&set.allotments[0], 0)]).await;
    let set = until(&mut sets, |set| set.allotments[0].count == 2).await;
    assert_eq!((set.allotments[0].release.number.0, &set.allotments[0].command), (2, &None));
    let one = |id: &str| healthy(&set.allotments[0], id);
    let running = vec![one("web-00000001"), one("web-00000002")];
    plane.report(set.generation, running.clone()).await;
    plane.app_when(|app| app.state == "running").await;

    // The old release runs on while the new one's command does, and after that failed.
    plane.deploy(with_command("two")).await.unwrap();
    let set = until(&mut sets, |set| set.allotments[0].command.is_some()).await;
    assert_eq!((set.allotments[0].release.number.0, set.allotments[0].count), (2, 2));
    plane.report(set.generation, [running, vec![ended(&set.allotments[0], 3)]].concat()).await;
    let app = plane.app_when(|app| app.failed == Some(ReleaseNumber(3))).await;
    let why = "the release command of r3 exited with code 3: no such table; r2 runs";
    assert_eq!((app.release.0, app.note.as_deref()), (2, Some(why)));

    // It runs also for an app of which nothing should.
    let scale = ScaleRequest { count: 0 };
    let path = "/v1/projects/default/apps/web/scale";
    plane.user.call::<_, AppView>(Method::POST, path, Some(&scale)).await.unwrap();
    let mut none = with_command("three");
    none["count"] = json!(0);
    plane.deploy(none).await.unwrap();
    let set = until(&mut sets, |set| set.allotments[0].command.is_some()).await;
    assert_eq!(set.allotments[0].count, 0);
    plane.report(set.generation, vec![ended(&set.allotments[0], 0)]).await;
    until(&mut sets, |set| set.allotments.iter().all(|one| one.command.is_none())).await;
    plane.report(set.generation, vec![]).await;
    plane.app_when(|app| app.state == "stopped").await;
    plane.stop().await;
}

#[tokio::test]
async fn old_releases_are_forgotten_and_the_images_of_all_others_must_stay() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    plane.report(Generation(0), vec![]).await;
    let mut sets = plane.allotments().await;
    plane.deploy(web()).await.unwrap();
    let set = until(&mut sets, |set| set.allotments.len() == 1).await;
    let one = |id: &str| healthy(&set.allotments[0], id);
    plane.report(set.generation, vec![one("web-00000001"), one("web-00000002")]).await;
    plane.app_when(|app| app.state == "running").await;
    for number in 0..25 {
        plane.deploy(web_with(&number.to_string(), json!({}))).await.unwrap();
    }
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    let kept = loop {
        let kept: Vec<_> = plane.releases().await.iter().map(|release| release.number.0).collect();
        if kept.len() == 21 {
            break kept;
        }
        assert!(tokio::time::Instant::now() < deadline, "{kept:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    // The last complete one, which the present one may be taken back to, and the newest twenty.
    assert_eq!(kept, [vec![1], (7..=26).collect()].concat());

    let mut tables = plane.link.watch::<RegistryTable>("/link/registry/table").await.unwrap();
    let pins = tables.next().await.unwrap().unwrap().pins;
    assert_eq!(pins.len(), 1, "they are of one image");
    assert_eq!(
        (pins[0].release.as_str(), pins[0].digest.to_string()),
        ("web r26", DIGEST.to_owned())
    );
    plane.user.call::<(), ()>(Method::DELETE, "/v1/projects/default/apps/web", None).await.unwrap();
    let set = until(&mut sets, |set| set.allotments.is_empty()).await;
    plane.report(set.generation, vec![]).await;
    let unpinned = async { while !tables.next().await.unwrap().unwrap().pins.is_empty() {} };
    tokio::time::timeout(Duration::from_secs(20), unpinned).await.expect("in time");
    plane.stop().await;
}

#[tokio::test]
async fn as_many_releases_are_kept_as_the_platform_was_told() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start_keeping(dir.path(), 3);
    plane.report(Generation(0), vec![]).await;
    for number in 0..6 {
        plane.deploy(web_with(&number.to_string(), json!({}))).await.unwrap();
    }
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    let kept = loop {
        let kept: Vec<_> = plane.releases().await.iter().map(|release| release.number.0).collect();
        if kept.len() == 3 {
            break kept;
        }
        assert!(tokio::time::Instant::now() < deadline, "{kept:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(kept, [4, 5, 6]);
    plane.stop().await;
}

#[tokio::test]
async fn a_plan_says_what_a_deploy_would_do_and_does_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    plane.report(Generation(0), vec![]).await;
    let first = plane.plan(web()).await.unwrap();
    assert_eq!((first.current, first.release), (None, ReleaseNumber(1)));
    let fields: Vec<_> = first.changes.iter().map(|change| change.field.as_str()).collect();
    assert!(["count", "image_digest", "port"].iter().all(|f| fields.contains(f)), "{fields:?}");
    assert!(!fields.contains(&"resources.memory"), "what is as by default is no news");
    let place = &first.placement[0];
    assert_eq!((place.location.as_str(), place.before, place.after), ("ams", 0, 2));
    assert_eq!(place.decision.as_ref().unwrap().why, "the only location");
    let apps: Vec<AppView> = plane.user.get("/v1/projects/default/apps").await.unwrap();
    assert!(apps.is_empty());

    plane.deploy(web()).await.unwrap();
    until(&mut plane.allotments().await, |set| set.allotments.len() == 1).await;
    let same = plane.plan(web()).await.unwrap();
    assert_eq!((same.release, same.changes.len()), (ReleaseNumber(1), 0));
    assert_eq!((same.placement[0].before, same.placement[0].after), (2, 2));
    let mut changed = web();
    changed["count"] = json!(3);
    changed["env"] = json!({"A": "1"});
    let plan = plane.plan(changed).await.unwrap();
    assert_eq!((plan.current, plan.release), (Some(ReleaseNumber(1)), ReleaseNumber(2)));
    let told: Vec<_> = plan
        .changes
        .iter()
        .map(|c| (c.field.as_str(), c.before.clone(), c.after.clone()))
        .collect();
    let env = ("process.env.A", None, Some(json!("1")));
    assert_eq!(told, [("count", Some(json!(2)), Some(json!(3))), env]);
    assert_eq!((plan.placement[0].before, plan.placement[0].after), (2, 3));
    assert_eq!(plane.releases().await.len(), 1);

    // A manifest that says what `scale` did is a release of its own.
    let scale = ScaleRequest { count: 3 };
    let path = "/v1/projects/default/apps/web/scale";
    plane.user.call::<_, AppView>(Method::POST, path, Some(&scale)).await.unwrap();
    let mut scaled = web();
    scaled["count"] = json!(3);
    let plan = plane.plan(scaled).await.unwrap();
    assert_eq!((plan.release, plan.changes.len()), (ReleaseNumber(2), 0));

    let CallError::Refused(problem) = plane.plan(json!({"app": "web"})).await.unwrap_err() else {
        panic!("must be refused as a deploy is")
    };
    assert_eq!(problem.problems[0].field, "image");
    plane.stop().await;
}

#[tokio::test]
async fn what_should_not_run_or_may_end_is_not_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    plane.report(Generation(0), vec![]).await;
    let none = json!({
        "app": "web", "image": "default/web:1", "count": 0, "rollout": {"deadline": "1s"},
    });
    let once = json!({
        "app": "web", "image": "default/web:1", "restart": "never", "rollout": {"deadline": "1s"},
    });
    for (document, state) in [(none, "stopped"), (once, "waiting")] {
        plane.deploy(document).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2500)).await;
        let app = plane.app().await;
        assert_eq!((app.state.as_str(), app.failed), (state, None));
    }
    plane.stop().await;
}

#[tokio::test]
async fn a_rollback_that_cannot_be_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    let mut other = web();
    other["image"] = json!("default/web:2");
    plane.deploy(other).await.unwrap();
    plane.deploy(web()).await.unwrap();
    for (to, field, part) in [
        (Some(7), "release", "a release of the app that is kept: r1, r2"),
        (Some(1), "image", "an image in the registry"),
        (None, "image", "an image in the registry"),
    ] {
        let CallError::Refused(problem) = plane.rollback(to).await.unwrap_err() else {
            panic!("{to:?} must be refused")
        };
        let named = &problem.problems[0];
        assert_eq!((problem.status, named.field.as_str()), (422, field), "{to:?}");
        assert!(named.allowed.contains(part), "{to:?}: {named}");
    }
    assert_eq!((plane.app().await.release, plane.releases().await.len()), (ReleaseNumber(2), 2));
    plane.stop().await;
}
