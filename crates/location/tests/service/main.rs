//! The location as its neighbours see it: a global plane, a node and an ingress that speak the real
//! protocols, played by the test.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod changes;
mod elsewhere;
mod joining;
mod lives;
mod mirror;
mod neighbours;
mod registry;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::{get, post};
use futures_util::StreamExt;
use http::Method;
use longshore_api::links::{
    Allotment, AllotmentSet, Assignment, AssignmentSet, Intent, LocationReport, Move, NodeReport,
    ObservedInstance, RouteAck, RoutingTable, StopInstance,
};
use longshore_link::{
    Body, CallError, Client, Endpoint, LineStream, Listener, Refusal, json_lines, watch_lines,
};
use longshore_location::{ImageOrigin, JoiningOptions, LocationError, Membership, Options};
use longshore_planning::replay::Outcome;
use longshore_store::{Page, RedbStore, Store as _, Transaction};
use longshore_types::{
    ByteCount, Capacity, Cordon, Decision, Digest, Epoch, Generation, InstancePhase, Manifest,
    MilliCpu, MirrorSize, NodeName, Release, ReleaseNumber, Timestamp, Traits,
};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A location in this process and the global plane above it.
struct World {
    location: Client,
    allot: watch::Sender<Arc<AllotmentSet>>,
    reports: watch::Receiver<Option<LocationReport>>,
    shutdown: CancellationToken,
    done: JoinHandle<Result<(), LocationError>>,
    /// The end of the global plane alone.
    lost: CancellationToken,
    global: JoinHandle<std::io::Result<()>>,
}

/// What a location has to do with other machines.
#[derive(Default)]
struct Outside {
    joining: Option<JoiningOptions>,
    /// Where ingresses of other locations pass requests on.
    peers_advertised: Option<String>,
    /// The registry of this machine when absent.
    images: Option<ImageOrigin>,
    /// How much of images it keeps; nothing when absent.
    mirror: Option<MirrorSize>,
}

impl World {
    async fn start(dir: &Path) -> Self {
        Self::start_with(dir, None, Router::new()).await
    }

    /// The same where nodes may join, with more that the global plane answers.
    async fn start_with(dir: &Path, joining: Option<JoiningOptions>, more: Router) -> Self {
        Self::start_as(dir, Outside { joining, ..Outside::default() }, more).await
    }

    /// The same with what else it has to do with other machines.
    async fn start_as(
        dir: &Path,
        Outside { joining, peers_advertised, images, mirror }: Outside,
        more: Router,
    ) -> Self {
        std::fs::write(dir.join("token"), "lsh_token").unwrap();
        let images = images.unwrap_or_else(|| ImageOrigin::Registry {
            registry: Endpoint::Unix(dir.join("registry.sock")),
            token_file: dir.join("token"),
        });
        let shutdown = CancellationToken::new();
        let (allot, allotted) = watch::channel(Arc::new(AllotmentSet::default()));
        let (report, reports) = watch::channel(None);
        let lost = shutdown.child_token();
        let until = lost.clone();
        let sets = get(move || async move { json_lines(watch_lines(allotted), until) });
        let lives = lives::Lives::of(dir);
        let begin = lives.begin();
        let take = post(move |Body(said): Body<LocationReport>| async move {
            lives.follow(&said)?;
            report.send_replace(Some(said));
            Ok::<_, Refusal>(axum::Json(()))
        });
        let global = Router::new()
            .route("/link/locations/ams/allotments", sets)
            .route("/link/locations/ams/report", take)
            .route("/link/locations/ams/begin", begin)
            .merge(more);
        let global_at = Endpoint::Unix(dir.join("global.sock"));
        let listener = Listener::bind("global", &global_at).unwrap();
        let global = tokio::spawn(listener.serve(global, lost.clone()));
        let link = Endpoint::Unix(dir.join("location.sock"));
        let options = Options {
            name: "ams".parse().unwrap(),
            coordinates: Some("52.37,4.9".parse().unwrap()),
            traits: Traits { country: "NL".parse().ok(), labels: Default::default() },
            data_dir: dir.join("data"),
            link: Listener::bind("location", &link).unwrap(),
            global: global_at.into(),
            membership: Membership::Local,
            own_node: Some("n1".parse().unwrap()),
            joining,
            images,
            mirror: mirror.unwrap_or(MirrorSize::NONE),
            peers_advertised,
            metrics: Some(Listener::bind("metrics", &metrics_at(dir)).unwrap()),
        };
        let until = shutdown.clone();
        let done = tokio::spawn(longshore_location::run(options, until));
        Self { location: Client::new(link), allot, reports, shutdown, done, lost, global }
    }

    /// From now on nobody answers as the global plane.
    async fn lose_global(&mut self) {
        self.lost.cancel();
        (&mut self.global).await.unwrap().unwrap();
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.done.await.unwrap().unwrap();
    }

    async fn node_says(&self, assignments: &[Arc<Assignment>]) {
        self.try_to_say(assignments).await.unwrap();
    }

    async fn try_to_say(&self, assignments: &[Arc<Assignment>]) -> Result<(), CallError> {
        let report = report("n1", "unix:/nowhere/gate.sock", assignments);
        let path = "/link/nodes/n1/report";
        self.location.call::<_, ()>(Method::POST, path, Some(&report)).await
    }

    async fn watch<T: DeserializeOwned + Send + 'static>(&self, path: &str) -> LineStream<T> {
        self.location.watch(path).await.unwrap()
    }

    async fn reported(&mut self, holds: impl Fn(&LocationReport) -> bool) -> LocationReport {
        let found = self.reports.wait_for(|report| report.as_ref().is_some_and(&holds));
        let found = tokio::time::timeout(Duration::from_secs(20), found).await;
        found.expect("in time").unwrap().clone().expect("checked by the condition")
    }
}

fn metrics_at(dir: &Path) -> Endpoint {
    Endpoint::Unix(dir.join("metrics.sock"))
}

/// How often the keeper of the location there has looked at everything.
async fn n_rounds(dir: &Path) -> u64 {
    let client = Client::new(metrics_at(dir));
    let answer = client.send(Method::GET, "/metrics", None::<&()>).await.unwrap();
    let text = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap();
    let text = String::from_utf8(text.to_bytes().to_vec()).unwrap();
    let mut counts = text
        .lines()
        .filter_map(|line| line.strip_prefix("longshore_location_round_duration_seconds_count "));
    counts.next().expect("rounds are counted").parse().unwrap()
}

/// What a node says that carries out its assignments.
fn report(node: &str, gate: &str, assignments: &[Arc<Assignment>]) -> NodeReport {
    let observe = |assignment: &Arc<Assignment>| ObservedInstance {
        phase: match assignment.intent {
            Intent::Run => InstancePhase::Healthy,
            Intent::Stop => InstancePhase::Exited,
        },
        address: Some(Ipv4Addr::new(100, 64, 0, 2)),
        ..ObservedInstance::pending(assignment.instance.clone(), assignment.generation)
    };
    NodeReport {
        node: node.parse().unwrap(),
        gate: gate.to_owned(),
        version: "1".to_owned(),
        capacity: Capacity {
            cpu: MilliCpu(8000),
            memory: ByteCount::gib(8),
            disk: ByteCount::gib(100),
        },
        acknowledged: None,
        images: vec![],
        pulling: vec![],
        number: 0,
        since: None,
        instances: assignments.iter().map(observe).map(Arc::new).collect(),
        gone: Vec::new(),
        network: String::new(),
        runtimes: vec![],
        image_mount: None,
        traits: Default::default(),
        location_epoch: Default::default(),
        handed_over: None,
        gpus: Vec::new(),
        reached: Vec::new(),
    }
}

async fn until<T>(lines: &mut LineStream<T>, holds: impl Fn(&T) -> bool) -> T {
    let search = async {
        loop {
            let line = lines.next().await.expect("the watch goes on").unwrap();
            if holds(&line) {
                return line;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), search).await.expect("in time")
}

/// So many instances of the same release.
fn of_web(generation: u64, count: u32) -> Arc<AllotmentSet> {
    let mut set = AllotmentSet::clone(&set(generation, 1));
    set.allotments[0].count = count;
    Arc::new(set)
}

fn set(generation: u64, count: u32) -> Arc<AllotmentSet> {
    let document = json!({"app": "web", "image": "default/web:1", "port": 80, "count": count});
    let release = Release {
        secrets: Default::default(),
        number: ReleaseNumber(1),
        manifest: Manifest::from_document(&document).unwrap(),
        image_digest: Digest::from_sha256([1; 32]),
        created_at: Timestamp(0),
    };
    let allotment = Allotment {
        release: release.into(),
        count,
        canary: None,
        command: None,
        budget: 4,
        make_room: 0,
        rollback: None,
        hosts: vec!["web.localhost".parse().unwrap()],
        generation: Generation(generation),
        decision: Decision {
            at: Timestamp(0),
            chosen: Some("ams".to_owned()),
            why: "the only location".to_owned(),
            candidates: vec![],
        },
    };
    let (generation, allotments) = (Generation(generation), vec![allotment]);
    Arc::new(AllotmentSet { generation, allotments, ..AllotmentSet::default() })
}

#[tokio::test]
async fn a_location_to_which_nothing_happens_rests() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::start(dir.path()).await;
    world.node_says(&[]).await;
    world.allot.send_replace(set(5, 2));
    world.reported(|report| report.instances.len() == 2).await;
    let (before, began) = (n_rounds(dir.path()).await, std::time::Instant::now());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let n_rounds = n_rounds(dir.path()).await - before;
    // It looks twice a second by itself, and what came a moment ago may have it look once more.
    let expected = began.elapsed().as_millis() as u64 / 500 + 4;
    assert!(n_rounds <= expected, "{n_rounds} rounds, {expected} expected");
    world.stop().await;
}

#[tokio::test]
async fn allotments_become_assignments_routes_and_reports_and_outlive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::start(dir.path()).await;
    world.node_says(&[]).await;
    world.allot.send_replace(set(5, 2));
    let mut sets = world.watch::<AssignmentSet>("/link/nodes/n1/assignments").await;
    let assigned = until(&mut sets, |set| set.assignments.len() == 2).await;
    world.node_says(&assigned.assignments).await;
    let mut tables = world.watch::<RoutingTable>("/link/routes").await;
    let table =
        until(&mut tables, |t| t.routes.first().is_some_and(|r| r.endpoints.len() == 2)).await;
    assert_eq!(table.routes[0].hosts[0].as_str(), "web.localhost");
    let report =
        world.reported(|r| r.acknowledged == Generation(5) && r.instances.len() == 2).await;
    assert_eq!(report.instances[0].decision.why, "the only node");
    assert_eq!(report.coordinates, "52.37,4.9".parse().ok());
    // What is said of a location is said of its nodes.
    assert_eq!(report.traits.country, "NL".parse().ok());
    assert_eq!(report.nodes[0].traits, report.traits);
    world.stop().await;
    // What was decided comes out again.
    let log = std::fs::read_to_string(dir.path().join("data/decisions.jsonl")).unwrap();
    let mut replay = longshore_planning::replay::Replay::default();
    let take = |line: &str| replay.take(serde_json::from_str(line).unwrap());
    let mut outcomes: Vec<_> = log.lines().map(take).collect();
    outcomes.retain(|outcome| *outcome != Outcome::Read);
    assert!(
        !outcomes.is_empty() && outcomes.iter().all(|it| *it == Outcome::Same),
        "{outcomes:#?}"
    );
    // So is what the node took over before it was answered.
    let store = RedbStore::open(&dir.path().join("data/store.redb")).unwrap();
    let said = store.list("/confirmed/", Page::default()).await.unwrap().items;
    let said = said.iter().map(|stored| stored.key.trim_start_matches("/confirmed/"));
    assert!(said.eq(assigned.assignments.iter().map(|one| one.instance.as_str())));
    // A release that knew nothing of these ended an instance.
    let orphan = "/confirmed/web-eeeeeeee";
    store.commit(Transaction::new().put(orphan, r#"{"v":1,"data":1}"#)).await.unwrap();
    drop(store);

    // The global plane of the second start knows nothing newer: what was stored goes on.
    let mut world = World::start(dir.path()).await;
    let mut sets = world.watch::<AssignmentSet>("/link/nodes/n1/assignments").await;
    let again = until(&mut sets, |_| true).await;
    assert_eq!(again.assignments, assigned.assignments);
    assert!(again.generation >= assigned.generation);
    let mut tables = world.watch::<RoutingTable>("/link/routes").await;
    world.node_says(&again.assignments).await;
    let first = until(&mut tables, |_| true).await;
    assert_eq!(first.routes, table.routes, "nobody is unrouted while the location settles");
    assert!(first.revision > table.revision);
    // What nothing needs any more goes with what is written.
    world.allot.send_replace(set(6, 3));
    world.reported(|report| report.acknowledged == Generation(6)).await;
    world.stop().await;
    let store = RedbStore::open(&dir.path().join("data/store.redb")).unwrap();
    assert!(store.get(orphan).await.unwrap().is_none());
}

#[tokio::test]
async fn a_change_is_taken_over_and_one_that_does_not_fit_has_the_whole_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::start(dir.path()).await;
    world.node_says(&[]).await;
    world.allot.send_replace(set(5, 1));
    let mut sets = world.watch::<AssignmentSet>("/link/nodes/n1/assignments").await;
    until(&mut sets, |set| set.assignments.len() == 1).await;
    let set_of = |since: Option<u64>, generation, count| {
        let set = AllotmentSet::clone(&of_web(generation, count));
        Arc::new(AllotmentSet { since: since.map(Generation), ..set })
    };
    world.allot.send_replace(set_of(Some(5), 6, 2));
    let assigned = until(&mut sets, |set| set.assignments.len() == 2).await;
    // What a node takes over is stored when it is answered.
    world.node_says(&assigned.assignments).await;
    world.reported(|report| report.acknowledged == Generation(6)).await;
    world.allot.send_replace(set_of(Some(7), 8, 4));
    // A new connection begins with the whole, as a control plane does it.
    world.allot.send_replace(set_of(None, 9, 3));
    let more = until(&mut sets, |set| set.assignments.len() > 2).await;
    assert_eq!(more.assignments.len(), 3, "what was missed is not guessed");
    world.stop().await;

    let mut world = World::start(dir.path()).await;
    world.node_says(&more.assignments).await;
    world
        .reported(|report| report.acknowledged == Generation(9) && report.instances.len() == 3)
        .await;
    world.stop().await;
}

#[tokio::test]
async fn a_node_hears_what_it_is_to_reach_also_when_nothing_else_changed() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::start(dir.path()).await;
    world.node_says(&[]).await;
    world.allot.send_replace(set(5, 1));
    let mut sets = world.watch::<AssignmentSet>("/link/nodes/n1/assignments").await;
    let assigned = until(&mut sets, |set| set.assignments.len() == 1).await;
    world.node_says(&assigned.assignments).await;
    world.reported(|report| report.acknowledged == Generation(5)).await;
    // As after a restart, when the set that is known comes once more, with what is stored nowhere here.
    let reach = BTreeSet::from(["db.example.com:5432".parse().unwrap()]);
    let again = AllotmentSet { reach: reach.clone(), ..AllotmentSet::clone(&set(5, 1)) };
    world.allot.send_replace(Arc::new(again));
    until(&mut sets, |set| set.reach == reach && set.assignments.len() == 1).await;
    world.stop().await;
}

#[tokio::test]
async fn a_node_that_was_removed_is_refused_and_told_to_end_what_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::start(dir.path()).await;
    world.node_says(&[]).await;
    world.allot.send_replace(set(5, 2));
    let mut sets = world.watch::<AssignmentSet>("/link/nodes/n1/assignments").await;
    let assigned = until(&mut sets, |set| set.assignments.len() == 2).await;
    world.node_says(&assigned.assignments).await;
    let path = "/gate/nodes/n1/drain";
    let moves: Vec<Move> = world.location.get(path).await.unwrap();
    assert!(moves.len() == 2 && moves[0].why == "stays: there is no other node", "{moves:?}");
    assert!(world.location.get::<Vec<Move>>("/gate/nodes/n9/drain").await.is_err());

    let with = |generation, cordons| {
        let set = AllotmentSet::clone(&set(generation, 2));
        Arc::new(AllotmentSet { cordons, ..set })
    };
    let cordon = Cordon { since: Timestamp(0), by: None, drains: true, removed: true };
    let node: NodeName = "n1".parse().unwrap();
    world.allot.send_replace(with(6, BTreeMap::from([(node, cordon)])));
    let emptied = until(&mut sets, |set| set.assignments.is_empty()).await;
    assert!(emptied.generation > assigned.generation);
    world.reported(|r| r.nodes.is_empty() && r.instances.is_empty()).await;
    let again = world.try_to_say(&assigned.assignments).await.unwrap_err().to_string();
    assert!(again.contains("removed by an operator") && again.contains("uncordon n1"), "{again}");
    world.stop().await;

    // A location that is started again knows it, whatever the global plane says first.
    let mut world = World::start(dir.path()).await;
    assert!(world.try_to_say(&assigned.assignments).await.is_err());
    let mut sets = world.watch::<AssignmentSet>("/link/nodes/n1/assignments").await;
    until(&mut sets, |set| set.assignments.is_empty()).await;
    world.allot.send_replace(with(7, BTreeMap::new()));
    world.reported(|r| r.acknowledged == Generation(7)).await;
    world.node_says(&[]).await;
    until(&mut sets, |set| set.assignments.len() == 2).await;
}

#[tokio::test]
async fn what_a_restored_store_does_not_know_outlives_a_restart_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::start(dir.path()).await;
    world.node_says(&[]).await;
    world.allot.send_replace(set(500, 2));
    let mut sets = world.watch::<AssignmentSet>("/link/nodes/n1/assignments").await;
    let assigned = until(&mut sets, |set| set.assignments.len() == 2).await;
    world.node_says(&assigned.assignments).await;
    world.reported(|report| report.instances.len() == 2).await;
    let restored = AllotmentSet { epoch: Epoch(9), ..AllotmentSet::default() };
    world.allot.send_replace(Arc::new(restored));
    let report = world.reported(|report| report.epoch == Epoch(9)).await;
    assert_eq!(report.strays.len(), 1);
    world.stop().await;

    // Now the old control plane speaks again.
    let mut world = World::start(dir.path()).await;
    world.node_says(&assigned.assignments).await;
    world.allot.send_replace(set(501, 0));
    let again = world.reported(|report| report.at > Timestamp(0)).await;
    assert_eq!((again.epoch, again.strays), (Epoch(9), report.strays));
    let mut sets = world.watch::<AssignmentSet>("/link/nodes/n1/assignments").await;
    assert_eq!(until(&mut sets, |_| true).await.assignments, assigned.assignments);
    world.stop().await;
}

#[tokio::test]
async fn a_stop_drains_first_and_the_place_is_filled_again() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(dir.path()).await;
    world.node_says(&[]).await;
    world.allot.send_replace(set(5, 1));
    let mut sets = world.watch::<AssignmentSet>("/link/nodes/n1/assignments").await;
    let assigned = until(&mut sets, |set| set.assignments.len() == 1).await;
    world.node_says(&assigned.assignments).await;
    let mut tables = world.watch::<RoutingTable>("/link/routes").await;
    let table = until(&mut tables, |t| t.routes.iter().any(|r| !r.endpoints.is_empty())).await;
    let ack = |revision| RouteAck { ingress: "i".to_owned(), revision, busy: Vec::new() };
    let path = "/link/routes/ack";
    world.location.call::<_, ()>(Method::POST, path, Some(&ack(table.revision))).await.unwrap();

    let first = assigned.assignments[0].instance.clone();
    let order = StopInstance { instance: first.clone() };
    world.location.call::<_, ()>(Method::POST, "/gate/stop", Some(&order)).await.unwrap();
    let without =
        |t: &RoutingTable| t.routes.iter().flat_map(|r| &r.endpoints).all(|e| e.instance != first);
    let table = until(&mut tables, without).await;
    world.location.call::<_, ()>(Method::POST, path, Some(&ack(table.revision))).await.unwrap();
    let stopping = |set: &AssignmentSet| {
        set.assignments.iter().any(|a| a.instance == first && a.intent == Intent::Stop)
    };
    let assigned = until(&mut sets, stopping).await;
    world.node_says(&assigned.assignments).await;
    let replaced =
        |set: &AssignmentSet| set.assignments.len() == 1 && set.assignments[0].instance != first;
    until(&mut sets, replaced).await;
    let unknown = StopInstance { instance: "web-00000000".parse().unwrap() };
    let refused = world.location.call::<_, ()>(Method::POST, "/gate/stop", Some(&unknown)).await;
    assert!(matches!(refused, Err(CallError::Refused(p)) if p.status == 404));
    world.stop().await;
}
