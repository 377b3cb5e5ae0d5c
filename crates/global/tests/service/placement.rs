//! Where apps may be.

use std::path::Path;

use longshore_api::links::{AllotmentSet, LocationReport, Shortfall};
use longshore_api::v1::AppExplanation;
use longshore_link::{CallError, LineStream};
use longshore_planning::replay::{Outcome, Replay};
use longshore_types::{Candidate, Decision, Generation, Lack, Reached, ReleaseNumber, Traits};
use serde_json::json;

use crate::plane::*;

impl Plane {
    /// A location in a country reports, with its node, which has this label as well.
    async fn is_in(&self, location: &str, country: &str, label: &str, set: &AllotmentSet) {
        self.send(&report_in(location, country, label, set)).await;
    }
}

fn report_in(location: &str, country: &str, label: &str, set: &AllotmentSet) -> LocationReport {
    let of = |name: &str| format!("{location}-{name}");
    let instances = set.allotments.iter().flat_map(|allotment| {
        (0..allotment.count.min(allotment.budget))
            .map(move |n| healthy(allotment, &format!("web-{location}{n:0>5}")))
    });
    let mut report = report_of(location, set.generation, instances.collect(), vec![]);
    report.traits.country = country.parse().ok();
    report.nodes[0].node = of("n1").parse().unwrap();
    let labels = label.parse().into_iter().collect();
    report.nodes[0].traits = report.traits.of_node(&Traits { country: None, labels });
    report
}

fn placed(placement: serde_json::Value) -> serde_json::Value {
    let mut document = web();
    document["placement"] = placement;
    document
}

fn count(set: &AllotmentSet) -> u32 {
    set.allotments.iter().map(|allotment| allotment.count).sum()
}

/// Says what was told is carried out, until it is enough.
async fn carry_out(
    plane: &Plane,
    (location, country): (&str, &str),
    sets: &mut LineStream<AllotmentSet>,
    is_enough: impl Fn(&AllotmentSet) -> bool,
) -> AllotmentSet {
    loop {
        let set = until(sets, |_| true).await;
        plane.is_in(location, country, "disk=nvme", &set).await;
        if is_enough(&set) {
            return set;
        }
    }
}

/// What two locations in two countries are told.
async fn two_countries(plane: &Plane) -> [LineStream<AllotmentSet>; 2] {
    let none = AllotmentSet::default();
    plane.is_in("ams", "NL", "disk=hdd", &none).await;
    plane.is_in("nyc", "US", "disk=hdd", &none).await;
    [plane.sets_of("ams").await, plane.sets_of("nyc").await]
}

#[tokio::test]
async fn a_jurisdiction_is_kept_and_a_changed_one_moves_what_runs_with_its_release() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    let [mut ams, mut nyc] = two_countries(&plane).await;

    let waits = plane.plan(placed(json!({"jurisdiction": ["jp"]}))).await.unwrap();
    assert!(waits.placement.is_empty());
    let waiting = waits.waiting.unwrap();
    assert_eq!((waiting.missing, waiting.decision.why.as_str()), (2, "no location is in JP"));

    plane.deploy(placed(json!({"jurisdiction": ["us"]}))).await.unwrap();
    carry_out(&plane, ("nyc", "US"), &mut nyc, |set| count(set) == 2).await;
    plane.app_when(|app| app.state == "running").await;

    // What is new is never told to the place where it may not be, and there the old goes on meanwhile.
    plane.deploy(placed(json!({"jurisdiction": ["eu"]}))).await.unwrap();
    let moved = carry_out(&plane, ("nyc", "US"), &mut nyc, |set| set.allotments[0].budget == 3);
    assert_eq!(moved.await.allotments[0].release.number, ReleaseNumber(1));
    let there = carry_out(&plane, ("ams", "NL"), &mut ams, |set| {
        set.allotments.iter().any(|one| one.count == 2 && one.budget >= 2)
    });
    assert_eq!(there.await.allotments[0].release.number, ReleaseNumber(2));
    carry_out(&plane, ("nyc", "US"), &mut nyc, |set| count(set) == 0).await;
    let app = plane.app_when(|app| app.state == "running").await;
    assert_eq!((app.release, app.outdated), (ReleaseNumber(2), 0));
    plane.stop().await;
    // The first, the move, and the two of its ends.
    assert!(recomputed(&dir.path().join("data/decisions.jsonl")) > 3);
}

/// How many decisions of a log come out the same again, which are all.
pub fn recomputed(log: &Path) -> usize {
    let text = std::fs::read_to_string(log).unwrap();
    let mut replay = Replay::default();
    let outcomes = text.lines().map(|line| replay.take(serde_json::from_str(line).unwrap()));
    let decisions: Vec<_> = outcomes.filter(|outcome| *outcome != Outcome::Read).collect();
    assert!(decisions.iter().all(|outcome| *outcome == Outcome::Same), "{decisions:#?}");
    decisions.len()
}

#[tokio::test]
async fn what_waits_says_why_and_goes_where_it_can_be_as_soon_as_that_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    let none = AllotmentSet::default();
    plane.is_in("ams", "NL", "disk=hdd", &none).await;
    plane.is_in("nyc", "US", "disk=nvme", &none).await;
    let nvme = json!({"jurisdiction": ["eu"], "labels": ["disk=nvme"]});
    plane.deploy(placed(nvme)).await.unwrap();
    let app = plane.app_when(|app| app.note.is_some()).await;
    assert_eq!(app.state, "waiting");
    let note = app.note.unwrap();
    let expected = "0 of 2 run; 2 wait: all 2 locations are refused: 1 by placement.jurisdiction, 1 by \
                    placement.labels (ams: refused: no label disk=nvme, but disk=hdd)";
    assert_eq!(note, expected);
    let told: AppExplanation =
        plane.user.get("/v1/projects/default/apps/web/explain").await.unwrap();
    assert_eq!((told.count, told.ready), (2, 0));
    assert!(expected.starts_with(&told.summary), "{}", told.summary);
    let waiting = told.waiting.unwrap();
    let lacks: Vec<_> = waiting.decision.candidates.iter().map(|one| one.lack.unwrap()).collect();
    assert_eq!(lacks, [Lack::Label, Lack::Jurisdiction]);
    let mut ams = plane.sets_of("ams").await;
    assert_eq!(count(&until(&mut ams, |_| true).await), 0);
    plane.is_in("ams", "NL", "disk=nvme", &none).await;
    until(&mut ams, |set| count(set) == 2).await;
    plane.stop().await;
}

#[tokio::test]
async fn a_location_that_nobody_knows_is_refused_with_the_nearest_name() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    let refused = async |placement| match plane.deploy(placed(placement)).await {
        Err(CallError::Refused(problem)) => {
            let each = problem.problems.iter().map(ToString::to_string);
            each.collect::<Vec<_>>()
        }
        other => panic!("{other:?}"),
    };
    let none = "placement.near = \"ams\": the name of a location, and none has joined yet";
    assert_eq!(refused(json!({"near": "ams"})).await, [none]);
    plane.is_in("ams", "NL", "disk=hdd", &AllotmentSet::default()).await;
    let mut nowhere = report_of("sin", Generation(0), vec![], vec![]);
    nowhere.coordinates = None;
    plane.send(&nowhere).await;
    let told = refused(json!({"allow": ["asm"], "deny": ["frankfurt"], "near": "sin"})).await;
    let expected = [
        "placement.allow = \"asm\": the name of a location; did you mean \"ams\"?",
        "placement.deny = \"frankfurt\": the name of a location: ams, sin",
        "placement.near = \"sin\": a location that has --coordinates, or coordinates",
    ];
    assert_eq!(told, expected);
    plane.deploy(placed(json!({"allow": ["ams"], "near": "ams"}))).await.unwrap();
    plane.stop().await;
}

#[tokio::test]
async fn what_has_to_answer_is_tried_everywhere_before_anything_starts_there() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    let [mut ams, mut nyc] = two_countries(&plane).await;
    plane.deploy(placed(json!({"reach": ["db.example.com:5432"]}))).await.unwrap();
    for sets in [&mut ams, &mut nyc] {
        let set = until(sets, |set| !set.reach.is_empty()).await;
        assert_eq!((count(&set), set.reach.len()), (0, 1));
    }
    let app = plane.app_when(|app| app.note.is_some()).await;
    let untried = "ams: refused: nobody has tried db.example.com:5432 there yet";
    assert!(app.note.as_ref().unwrap().contains(untried), "{:?}", app.note);
    let tried = |location: &str, country: &str, set: &AllotmentSet, error: Option<&str>| {
        let mut report = report_in(location, country, "disk=hdd", set);
        report.nodes[0].reached = vec![Reached {
            address: "db.example.com:5432".parse().unwrap(),
            at: longshore_link::now(),
            error: error.map(str::to_owned),
        }];
        report
    };
    let none = AllotmentSet::default();
    plane.send(&tried("ams", "NL", &none, Some("connection refused"))).await;
    plane.send(&tried("nyc", "US", &none, None)).await;
    let set = until(&mut nyc, |set| count(set) == 2).await;
    // Once it runs it stays, also where the address does not answer any more.
    plane.send(&tried("nyc", "US", &set, Some("no answer within 3 s"))).await;
    plane.app_when(|app| app.state == "running").await;
    let again = plane.plan(placed(json!({"reach": ["db.example.com:5432"]}))).await.unwrap();
    assert!(again.placement.iter().all(|one| one.location.as_str() == "nyc" && one.after == 2));
    plane.stop().await;
}

#[tokio::test]
async fn what_a_location_refuses_goes_on_at_once_and_not_back() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    let [mut ams, mut nyc] = two_countries(&plane).await;
    plane.deploy(web()).await.unwrap();
    let set = until(&mut ams, |set| count(set) == 1).await;
    until(&mut nyc, |set| count(set) == 1).await;
    let candidate = Candidate {
        name: "ams-n1".to_owned(),
        score: None,
        why: "refused: no embedded: broken".to_owned(),
        lack: Some(Lack::Runtime),
    };
    let decision = Decision {
        at: Default::default(),
        chosen: None,
        why: "no node can run it with the runtime embedded".to_owned(),
        candidates: vec![candidate],
    };
    let (project, app) = (Default::default(), "web".parse().unwrap());
    let mut refusing = report_in("ams", "NL", "disk=hdd", &set);
    refusing.instances.clear();
    let room = Default::default();
    refusing.shortfalls = vec![Shortfall { project, app, missing: 1, decision, room }];
    plane.send(&refusing).await;
    until(&mut nyc, |set| count(set) == 2).await;
    let emptied = until(&mut ams, |set| count(set) == 0).await;
    // It has nothing to refuse any more, and is not asked again for the same.
    plane.is_in("ams", "NL", "disk=hdd", &emptied).await;
    let again = plane.plan(web()).await.unwrap();
    let given: Vec<_> =
        again.placement.iter().map(|one| (one.location.as_str(), one.after)).collect();
    assert_eq!(given, [("nyc", 2)]);
    // Another release may need something else.
    let mut other = web();
    other["placement"] = json!({"allow": ["ams"]});
    let moved = plane.plan(other).await.unwrap();
    assert!(moved.placement.iter().any(|one| (one.location.as_str(), one.after) == ("ams", 2)));
    plane.stop().await;
}
