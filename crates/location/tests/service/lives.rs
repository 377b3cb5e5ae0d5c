//! A location that loses its store, and the global plane that counts its lives.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use axum::routing::{MethodRouter, post};
use http::Method;
use longshore_api::links::{
    AllotmentSet, AssignmentSet, HandedOver, LocationReport, NodeReport, RoutingTable,
};
use longshore_api::{Problem, ProblemCode};
use longshore_link::{Body, CallError, Client, LineStream, Refusal};
use longshore_location::LocationError;
use longshore_trust::{BeginRequest, Begun, Fingerprint};
use longshore_types::{LocationEpoch, NodeName};

use crate::joining::{SECRET, Scene, refused};
use crate::{World, report, set, until};

/// What the global plane of a test keeps of a location, in files.
#[derive(Clone)]
pub struct Lives {
    life: PathBuf,
    keys: PathBuf,
}

impl Lives {
    pub fn of(dir: &Path) -> Self {
        Self { life: dir.join("life"), keys: dir.join("keys.json") }
    }

    fn now(&self) -> Option<LocationEpoch> {
        let text = std::fs::read_to_string(&self.life).ok()?;
        Some(LocationEpoch(text.parse().unwrap()))
    }

    fn refuse(&self, own: LocationEpoch) -> Result<(), Refusal> {
        match self.now() {
            Some(known) if own < known => {
                Err(Problem::new(ProblemCode::Recovered, "it was recovered").into())
            }
            _ => Ok(()),
        }
    }

    pub fn begin(&self) -> MethodRouter {
        let lives = self.clone();
        post(move |Body(BeginRequest { epoch: own }): Body<_>| async move {
            let epoch = match (own, lives.now()) {
                (None, known) => known.map_or(LocationEpoch::FIRST, LocationEpoch::next),
                (Some(own), _) => lives.refuse(own).map(|()| own)?,
            };
            std::fs::write(&lives.life, epoch.to_string()).unwrap();
            let keys = std::fs::read(&lives.keys).unwrap_or_else(|_| b"{}".to_vec());
            let node_keys: BTreeMap<NodeName, Fingerprint> = serde_json::from_slice(&keys).unwrap();
            Ok::<_, Refusal>(axum::Json(Begun { epoch, seal: "seal".to_owned().into(), node_keys }))
        })
    }

    pub fn follow(&self, report: &LocationReport) -> Result<(), Refusal> {
        self.refuse(report.location_epoch)?;
        let keys = serde_json::to_vec(report.node_keys.as_ref().unwrap()).unwrap();
        std::fs::write(&self.keys, keys).unwrap();
        Ok(())
    }
}

/// A node that carries out a set, and hands it over to whoever asks.
struct Node {
    client: Client,
    name: &'static str,
    gate: &'static str,
    sets: LineStream<AssignmentSet>,
    has: AssignmentSet,
}

impl Node {
    async fn of(client: Client, name: &'static str, gate: &'static str) -> Self {
        let path = format!("/link/nodes/{name}/assignments");
        let sets = client.watch(&path).await.unwrap();
        Self { client, name, gate, sets, has: AssignmentSet::default() }
    }

    /// The same with another connection, to whatever its location is now.
    async fn again(self, client: Client) -> Self {
        let has = self.has;
        Self { has, ..Self::of(client, self.name, self.gate).await }
    }

    async fn says(&self, to: Option<LocationEpoch>) -> Result<(), CallError> {
        let assignments = self.has.assignments.clone();
        let report = NodeReport {
            location_epoch: self.has.location_epoch,
            handed_over: to.map(|to| HandedOver { to, assignments }),
            ..report(self.name, self.gate, &self.has.assignments)
        };
        let path = format!("/link/nodes/{}/report", self.name);
        self.client.call(Method::POST, &path, Some(&report)).await
    }

    /// Reports, is asked, and hands over what it has.
    async fn hands_over(&mut self) {
        self.says(None).await.unwrap();
        let asked = until(&mut self.sets, |set| set.hand_over).await;
        assert_eq!((asked.assignments.len(), asked.generation.0), (0, 0));
        self.says(Some(asked.location_epoch)).await.unwrap();
        let told = until(&mut self.sets, |set| !set.hand_over).await;
        assert_eq!(told.assignments, self.has.assignments, "nothing is new to it");
        assert_eq!(told.location_epoch, asked.location_epoch);
        self.has = told;
        self.says(None).await.unwrap();
    }

    async fn carries_out(&mut self, count: usize) {
        self.has = until(&mut self.sets, |set| set.assignments.len() == count).await;
        self.says(None).await.unwrap();
    }
}

const HERE: &str = "unix:/nowhere/gate.sock";
const AFAR: &str = "https://192.0.2.1:1";

fn store(dir: &Path, name: &str) -> PathBuf {
    dir.join("data").join(name)
}

#[tokio::test]
async fn a_location_without_its_store_goes_on_with_what_its_nodes_have_and_the_store_of_before_is_refused()
 {
    let mut scene = Scene::start(Router::new()).await;
    let identity = scene.join("n2", SECRET).await.unwrap();
    let mut here = Node::of(scene.world.location.clone(), "n1", HERE).await;
    let mut afar = Node::of(scene.with(&identity), "n2", AFAR).await;
    for node in [&here, &afar] {
        node.says(None).await.unwrap();
    }
    scene.world.reported(|report| report.nodes.len() == 2).await;
    scene.world.allot.send_replace(set(5, 4));
    here.carries_out(2).await;
    afar.carries_out(2).await;
    let before = scene.world.reported(|report| report.instances.len() == 4).await;
    assert_eq!(before.location_epoch, LocationEpoch::FIRST);
    assert_eq!(before.node_keys.as_ref().unwrap().len(), 1);
    scene.world.stop().await;
    std::fs::rename(store(scene.dir.path(), "store.redb"), store(scene.dir.path(), "before"))
        .unwrap();

    (scene.world, scene.address) = Scene::location(scene.dir.path(), &scene.root).await;
    scene.listens().await;
    scene.world.allot.send_replace(set(5, 4));
    let mut tables = scene.world.watch::<RoutingTable>("/link/routes").await;
    let mut here = here.again(scene.world.location.clone()).await;
    let mut afar = afar.again(scene.with(&identity)).await;
    here.hands_over().await;
    afar.hands_over().await;
    // The first table has all of them, so that nobody is left out for a moment.
    let table = until(&mut tables, |_| true).await;
    assert_eq!((table.location_epoch, table.routes[0].endpoints.len()), (LocationEpoch(1), 4));
    let after = scene.world.reported(|report| report.location_epoch == LocationEpoch(1)).await;
    let known = |report: &LocationReport| {
        let each = report.instances.iter();
        each.map(|one| (one.observed.instance.clone(), one.created_at)).collect::<Vec<_>>()
    };
    assert_eq!(known(&after), known(&before));
    assert_eq!(after.acknowledged.0, 5);
    // Fewer, then more: it decides again.
    scene.world.allot.send_replace(set(6, 3));
    scene.world.reported(|report| report.instances.iter().any(|one| one.draining)).await;
    scene.world.stop().await;

    // A start with the new store is like any other.
    (scene.world, scene.address) = Scene::location(scene.dir.path(), &scene.root).await;
    scene.listens().await;
    let here = here.again(scene.world.location.clone()).await;
    here.says(None).await.unwrap();
    scene.world.stop().await;

    std::fs::rename(store(scene.dir.path(), "store.redb"), store(scene.dir.path(), "present"))
        .unwrap();
    std::fs::rename(store(scene.dir.path(), "before"), store(scene.dir.path(), "store.redb"))
        .unwrap();
    for _ in 0..2 {
        let (world, _) = Scene::location(scene.dir.path(), &scene.root).await;
        let ended = world.done.await.unwrap().unwrap_err();
        world.shutdown.cancel();
        let told = matches!(&ended, LocationError::Recovered(why) if why == "it was recovered");
        let by_task = ended.to_string().contains("it was recovered");
        assert!(told || by_task, "{ended}");
    }
}

#[tokio::test]
async fn a_location_that_runs_ends_when_it_was_recovered_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::start(dir.path()).await;
    world.node_says(&[]).await;
    world.allot.send_replace(Arc::new(AllotmentSet::clone(&set(5, 1))));
    world.reported(|report| report.acknowledged.0 == 5).await;
    std::fs::write(dir.path().join("life"), "1").unwrap();
    // The next report is refused.
    world.allot.send_replace(set(6, 1));
    let ended = world.done.await.unwrap().unwrap_err();
    assert!(ended.to_string().contains("it was recovered"), "{ended}");
}

#[tokio::test]
async fn a_node_that_was_removed_does_not_come_back_with_a_location_that_lost_its_store() {
    let mut scene = Scene::start(Router::new()).await;
    let identity = scene.join("n2", SECRET).await.unwrap();
    let here = Node::of(scene.world.location.clone(), "n1", HERE).await;
    here.says(None).await.unwrap();
    scene
        .world
        .reported(|report| report.node_keys.as_ref().is_some_and(|keys| keys.len() == 1))
        .await;
    scene.world.stop().await;
    // As if it had been removed, which the location reports.
    std::fs::write(scene.dir.path().join("keys.json"), "{}").unwrap();
    std::fs::remove_file(store(scene.dir.path(), "store.redb")).unwrap();
    (scene.world, scene.address) = Scene::location(scene.dir.path(), &scene.root).await;
    scene.listens().await;
    let node = scene.with(&identity);
    let answer = node.get::<serde_json::Value>("/link/nodes/n2/assignments").await;
    refused(answer, ProblemCode::Forbidden);
    scene.end().await;
}
