//! The control plane as its neighbours see it: a registry and a location that speak the real
//! protocols, played by the test.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use futures_util::StreamExt;
use http::Method;
use longshore_api::ProblemCode;
use longshore_api::links::{
    Allotment, AllotmentSet, InstanceStatus, LocationReport, NodeSummary, ObservedInstance,
    RegistryTable, SecretValues, SecretsRequest,
};
use longshore_api::v1::{
    AppView, DeployRequest, DeployResponse, Explanation, InstanceView, PlanView, ReleaseView,
    RollbackRequest, ScaleRequest, SecretKeyView, SecretRequest, SecretView, TokenCreated,
    TokenRequest,
};
use longshore_global::Options;
use longshore_link::{CallError, Client, Endpoint, LineStream, Listener, now};
use longshore_types::token::{RegistryAction, RegistryRight, Rights};
use longshore_types::{
    Ability, ByteCount, Capacity, ExitReason, Generation, InstanceId, InstancePhase, MilliCpu,
    ReleaseNumber, RestartPolicy, RuntimeName, RuntimeOffer, SecretValue, SecretVersion,
};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
/// Of an image that is removed once its tag was asked for.
const GONE: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

/// A control plane in this process, with a registry that knows one image, and of another the tag.
struct Plane {
    user: Client,
    link: Client,
    shutdown: CancellationToken,
    done: JoinHandle<()>,
}

impl Plane {
    async fn start(dir: &Path) -> Self {
        let tcp = || Listener::bind("test", &Endpoint::Tcp("127.0.0.1:0".into())).unwrap();
        let (registry, api) = (tcp(), tcp());
        let registry_at = registry.endpoint().unwrap();
        let image = |digest| get(move || async move { [("docker-content-digest", digest)] });
        let known = Router::new()
            .route("/v2/default/web/manifests/1", image(DIGEST))
            .route(&format!("/v2/default/web/manifests/{DIGEST}"), image(DIGEST))
            .route("/v2/default/web/manifests/2", image(GONE))
            .fallback(|| async { StatusCode::NOT_FOUND });
        let shutdown = CancellationToken::new();
        tokio::spawn(registry.serve(known, shutdown.clone()));
        for file in ["admin", "system"] {
            std::fs::write(dir.join(file), format!("{file}-token\n")).unwrap();
        }
        let link = Endpoint::Unix(dir.join("link.sock"));
        let user = Client::new(api.endpoint().unwrap()).with_token("admin-token");
        let options = Options {
            data_dir: dir.join("data"),
            api,
            link: Listener::bind("link", &link).unwrap(),
            registry: registry_at,
            registry_public: "127.0.0.1:4601".to_owned(),
            ingress_public: "127.0.0.1:8080".to_owned(),
            domain: "localhost".to_owned(),
            admin_token_file: dir.join("admin"),
            system_token_file: dir.join("system"),
            secret_keys_file: dir.join("secret-keys.json"),
        };
        let until = shutdown.clone();
        let done =
            tokio::spawn(async move { longshore_global::run(options, until).await.unwrap() });
        Self { user, link: Client::new(link), shutdown, done }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.done.await.unwrap();
    }

    async fn allotments(&self) -> LineStream<AllotmentSet> {
        self.link.watch("/link/locations/ams/allotments").await.unwrap()
    }

    async fn report(&self, acknowledged: Generation, instances: Vec<InstanceStatus>) {
        self.report_runtimes(acknowledged, instances, Vec::new()).await;
    }

    async fn report_runtimes(
        &self,
        acknowledged: Generation,
        instances: Vec<InstanceStatus>,
        runtimes: Vec<RuntimeOffer>,
    ) {
        let capacity =
            Capacity { cpu: MilliCpu(8000), memory: ByteCount::gib(8), disk: ByteCount::gib(100) };
        let node = NodeSummary {
            node: "n1".parse().unwrap(),
            reachable: true,
            reported_at: now(),
            capacity,
            promised: Capacity::default(),
            version: "1".to_owned(),
            runtimes,
        };
        let report = LocationReport {
            location: "ams".parse().unwrap(),
            gate: "unix:/nowhere".to_owned(),
            acknowledged,
            at: now(),
            nodes: vec![node],
            instances,
            shortfalls: vec![],
        };
        let path = "/link/locations/ams/report";
        self.link.call::<_, ()>(Method::POST, path, Some(&report)).await.unwrap();
    }

    async fn deploy(&self, document: serde_json::Value) -> Result<DeployResponse, CallError> {
        let request = DeployRequest { manifest: document };
        self.user.call(Method::PUT, "/v1/projects/default/apps/web", Some(&request)).await
    }

    async fn plan(&self, document: serde_json::Value) -> Result<PlanView, CallError> {
        let request = DeployRequest { manifest: document };
        self.user.call(Method::POST, "/v1/projects/default/apps/web/plan", Some(&request)).await
    }

    async fn rollback(&self, to: Option<u64>) -> Result<DeployResponse, CallError> {
        let request = RollbackRequest { release: to.map(ReleaseNumber) };
        let path = "/v1/projects/default/apps/web/rollback";
        self.user.call(Method::POST, path, Some(&request)).await
    }

    async fn promote(&self) -> Result<DeployResponse, CallError> {
        let path = "/v1/projects/default/apps/web/promote";
        self.user.call(Method::POST, path, None::<&()>).await
    }

    async fn releases(&self) -> Vec<ReleaseView> {
        self.user.get("/v1/projects/default/apps/web/releases").await.unwrap()
    }

    async fn app_when(&self, holds: impl Fn(&AppView) -> bool) -> AppView {
        let search = async {
            loop {
                let app = self.app().await;
                if holds(&app) {
                    return app;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), search).await.expect("in time")
    }

    async fn app(&self) -> AppView {
        self.user.get("/v1/projects/default/apps/web").await.unwrap()
    }
}

fn web() -> serde_json::Value {
    json!({"app": "web", "image": "default/web:1", "port": 80, "count": 2})
}

/// The next set for which `holds`.
async fn until(
    sets: &mut LineStream<AllotmentSet>,
    holds: impl Fn(&AllotmentSet) -> bool,
) -> AllotmentSet {
    let search = async {
        loop {
            let set = sets.next().await.expect("the watch goes on").unwrap();
            if holds(&set) {
                return set;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), search).await.expect("in time")
}

fn healthy(allotment: &Allotment, id: &str) -> InstanceStatus {
    let instance: InstanceId = id.parse().unwrap();
    let mut observed = ObservedInstance::pending(instance, Generation(1));
    observed.phase = InstancePhase::Healthy;
    InstanceStatus {
        project: allotment.project().clone(),
        app: allotment.app().clone(),
        release: allotment.release.number,
        node: "n1".parse().unwrap(),
        observed,
        draining: false,
        is_command: false,
        awaits_ingress: false,
        created_at: now(),
        decision: allotment.decision.clone(),
    }
}

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

/// The app with one word in its environment, by which releases differ.
fn web_with(word: &str, rollout: serde_json::Value) -> serde_json::Value {
    let mut document = web();
    document["env"] = json!({"A": word});
    document["rollout"] = rollout;
    document
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
    let rights = Rights { admin: false, registry: vec![right] };
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

#[tokio::test]
async fn secrets_go_to_the_locations_that_need_them_and_never_back() {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::start(dir.path()).await;
    plane.report(Generation(0), vec![]).await;
    let path = "/v1/projects/default/secrets/db";
    let set = async |text: &str| {
        let request = SecretRequest { value: SecretValue::new(text.as_bytes().to_vec()) };
        plane.user.call::<_, SecretView>(Method::PUT, path, Some(&request)).await
    };
    let mut document = web();
    document["secrets"] = json!({"DATABASE_URL": "db"});
    let CallError::Refused(problem) = plane.deploy(document.clone()).await.unwrap_err() else {
        panic!("there is no such secret yet")
    };
    assert!(problem.to_string().contains("longshore secret set db"), "{problem}");
    assert!(set("").await.is_err(), "an empty one");
    assert_eq!(set("first").await.unwrap().version, SecretVersion(1));

    let mut sets = plane.allotments().await;
    let one = plane.deploy(document.clone()).await.unwrap();
    assert_eq!(one.release.secrets, [("db".parse().unwrap(), SecretVersion(1))].into());
    until(&mut sets, |set| set.allotments.len() == 1).await;
    let ask = async |location: &str, version: u64| {
        let request = SecretsRequest {
            project: Default::default(),
            secrets: [("db".parse().unwrap(), SecretVersion(version))].into(),
        };
        let path = format!("/link/locations/{location}/secrets");
        plane.link.call::<_, SecretValues>(Method::POST, &path, Some(&request)).await
    };
    let value = |answer: SecretValues| answer.values.into_values().next().unwrap();
    assert_eq!(value(ask("ams", 1).await.unwrap()).bytes(), b"first");
    assert!(ask("sin", 1).await.is_err(), "nothing runs there");

    // A new value is a new release for who deploys again, and nothing for what runs.
    assert_eq!(set("second").await.unwrap().used_by.len(), 1);
    assert!(ask("ams", 2).await.is_err(), "no release there has it");
    let planned = plane.plan(document.clone()).await.unwrap();
    assert_eq!(planned.changes[0].field, "secret_versions.db");
    let two = plane.deploy(document.clone()).await.unwrap();
    assert!(two.changed && !plane.deploy(document.clone()).await.unwrap().changed);
    until(&mut sets, |set| set.allotments[0].release.number == two.release.number).await;
    assert_eq!(value(ask("ams", 2).await.unwrap()).bytes(), b"second");
    plane.rollback(None).await.unwrap();
    until(&mut sets, |set| set.allotments[0].release.number == one.release.number).await;
    assert_eq!(value(ask("ams", 1).await.unwrap()).bytes(), b"first");

    // Another key opens all of it, and the old one is gone.
    let before = std::fs::read(dir.path().join("secret-keys.json")).unwrap();
    let rotated: SecretKeyView =
        plane.user.call(Method::POST, "/v1/secrets/rotate-key", None::<&()>).await.unwrap();
    assert_eq!(rotated.resealed, 2);
    assert_ne!(std::fs::read(dir.path().join("secret-keys.json")).unwrap(), before);
    assert_eq!(value(ask("ams", 1).await.unwrap()).bytes(), b"first");

    let removed = plane.user.call::<(), ()>(Method::DELETE, path, None).await;
    assert!(matches!(removed, Err(CallError::Refused(p)) if p.code == ProblemCode::Conflict));
    plane.deploy(web()).await.unwrap();
    // The last complete release is none yet, so nothing else holds it.
    plane.user.call::<(), ()>(Method::DELETE, path, None).await.unwrap();
    let back = plane.rollback(Some(1)).await;
    let CallError::Refused(problem) = back.unwrap_err() else { panic!("its secret is gone") };
    assert_eq!(problem.detail, "r1 needs v1 of secret db, which was removed");
    plane.stop().await;
    let store = std::fs::read(dir.path().join("data/store.redb")).unwrap();
    for value in ["first", "second"] {
        let found = store.windows(value.len()).any(|window| window == value.as_bytes());
        assert!(!found, "{value} is in the store");
    }
}
