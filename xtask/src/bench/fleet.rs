//! A global control plane with hundreds of locations and thousands of instances, of which only it is real.
//!
//! The locations are tasks of this program. Each does over the link what a location does: it follows its
//! allotments, and reports what they ask for as healthy, again every few seconds. So what is measured of the
//! API is measured with the state, and the traffic beside it, of a platform of that size.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::StreamExt;
use http::Method;
use longshore_api::links::{
    Allotment, AllotmentSet, InstanceStatus, LocationReport, NodeSummary, ObservedInstance,
    ReportChanges, Said, Told,
};
use longshore_api::v1::{AppView, DeployRequest, LocationView};
use longshore_e2e::eventually;
use longshore_link::{CallError, Client, Endpoints, Followed, now};
use longshore_types::{
    ByteCount, Capacity, Coordinates, Decision, InstancePhase, LocationName, MilliCpu, Timestamp,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::plane::{Plane, registry};

/// How often a location reports without news.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);
/// How long one waits before it tries again.
const RETRY: Duration = Duration::from_millis(200);
/// How many nodes a location has, and what each offers.
const N_NODES: usize = 3;
const NODE: Capacity =
    Capacity { cpu: MilliCpu(64_000), memory: ByteCount::gib(256), disk: ByteCount::gib(2048) };

/// A place in the world.
#[derive(Debug, Clone)]
pub struct Site {
    /// Its name as a location.
    pub name: LocationName,
    coordinates: Coordinates,
}

/// 351 of them.
pub fn sites() -> Result<Vec<Site>> {
    let rows = include_str!("sites.csv").lines().filter(|line| !line.starts_with('#')).skip(1);
    let site = |row: &str| {
        let (code, coordinates) = row.split_once(',').context("sites.csv: a row of one value")?;
        Ok(Site { name: code.to_lowercase().parse()?, coordinates: coordinates.parse()? })
    };
    rows.map(site).collect()
}

/// What goes over the links of the locations, bodies alone.
#[derive(Debug, Default)]
struct Traffic {
    up: AtomicU64,
    down: AtomicU64,
}

/// An app that is looked for in what locations are told, and those that were told of it.
#[derive(Debug, Default)]
struct Expected {
    app: String,
    told: BTreeSet<usize>,
}

/// What the locations have in common.
#[derive(Debug, Default)]
struct Shared {
    traffic: Traffic,
    expected: Mutex<Expected>,
}

/// Control planes and their locations; all end when this is dropped.
pub struct Fleet {
    /// The control planes.
    pub planes: Vec<Plane>,
    /// Where the locations run.
    pub runtime: Runtime,
    shared: Arc<Shared>,
    joined: BTreeMap<LocationName, CancellationToken>,
    shutdown: CancellationToken,
    _dir: TempDir,
}

impl Fleet {
    /// Starts a control plane with these locations.
    pub fn start(sites: &[Site]) -> Result<Self> {
        let mut fleet = Self::on(&["embedded"])?;
        fleet.join(sites)?;
        Ok(fleet)
    }

    /// Starts a control plane on each of these stores, and no location.
    pub fn on(stores: &[&str]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("lsf-").tempdir()?;
        let (runtime, shutdown) = (Runtime::new()?, CancellationToken::new());
        let images = registry(&runtime, shutdown.clone())?;
        let start = |(number, store): (usize, &&str)| {
            let dir: &Path = &dir.path().join(number.to_string());
            Plane::start(dir, store, &images, &runtime)
        };
        let planes = stores.iter().enumerate().map(start).collect::<Result<_>>()?;
        let (shared, joined) = Default::default();
        Ok(Self { planes, runtime, shared, joined, shutdown, _dir: dir })
    }

    /// Has locations join.
    pub fn join(&mut self, sites: &[Site]) -> Result<()> {
        let mut links = self.planes.iter().map(|plane| plane.link.clone());
        let first = links.next().context("a fleet without a control plane")?;
        let global = Endpoints { first, rest: links.collect() };
        for (idx, site) in sites.iter().enumerate() {
            let Site { name, coordinates } = site.clone();
            let ends = self.shutdown.child_token();
            self.joined.insert(name.clone(), ends.clone());
            let (link, shared) = (Followed::new(global.clone()), Arc::clone(&self.shared));
            let location = Location { idx, name, coordinates, link, shared };
            self.runtime.spawn(ends.run_until_cancelled_owned(location.run()));
        }
        Ok(())
    }

    /// Waits until every location that joined has reported lately, to whoever leads.
    pub fn wait_until_heard(&self) -> Result<()> {
        eventually("every location is heard of", || {
            let n_heard = self.heard()?.values().filter(|heard| **heard).count();
            Ok((n_heard == self.joined.len()).then_some(()))
        })
    }

    /// Whether each location is heard of.
    pub fn heard(&self) -> Result<BTreeMap<LocationName, bool>> {
        let locations: Vec<LocationView> = self.get("/v1/locations?nodes=false")?;
        let heard = locations.into_iter().map(|view| (view.location, view.reachable));
        Ok(heard.collect())
    }

    /// A location is not heard of from now on.
    pub fn lose(&self, location: &LocationName) {
        if let Some(ends) = self.joined.get(location) {
            ends.cancel();
        }
    }

    /// Looks for an app in what locations are told from now on.
    pub fn expect(&self, app: &str) {
        let mut expected = self.shared.expected.lock().unwrap_or_else(PoisonError::into_inner);
        *expected = Expected { app: app.to_owned(), told: BTreeSet::new() };
    }

    /// How many locations were told of that app.
    pub fn n_told(&self) -> usize {
        self.shared.expected.lock().unwrap_or_else(PoisonError::into_inner).told.len()
    }

    /// How many bytes the locations have sent and received so far.
    pub fn traffic(&self) -> (u64, u64) {
        let Traffic { up, down } = &self.shared.traffic;
        (up.load(Ordering::Relaxed), down.load(Ordering::Relaxed))
    }

    /// Deploys so many apps with so many instances in all, and waits until all are healthy.
    pub fn deploy(&self, n_apps: u32, n_instances: u32) -> Result<()> {
        let user = self.client();
        self.runtime.block_on(async {
            for number in 0..n_apps {
                let name = format!("app{number}");
                let manifest = manifest(&name, n_instances / n_apps);
                let path = format!("/v1/projects/default/apps/{name}");
                let request = DeployRequest { manifest };
                user.send(Method::PUT, &path, Some(&request)).await?;
            }
            Ok::<_, CallError>(())
        })?;
        eventually("every instance is healthy", || {
            let apps =
                self.runtime.block_on(user.get::<Vec<AppView>>("/v1/projects/default/apps"))?;
            let ready: u32 = apps.iter().map(|app| app.ready).sum();
            Ok((ready >= n_instances).then_some(()))
        })
    }

    /// A client with every right of the first control plane that runs.
    pub fn client(&self) -> Client {
        self.planes[0].client()
    }

    /// What the API answers there.
    pub fn get<T: DeserializeOwned + Send>(&self, path: &str) -> Result<T> {
        Ok(self.runtime.block_on(self.client().get(path))?)
    }

    /// The process id of that.
    pub fn pid(&self) -> Result<i32> {
        self.planes[0].role.pid()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// An app as the fleet has many.
pub fn manifest(name: &str, count: u32) -> serde_json::Value {
    json!({
        "app": name, "image": "default/web:1", "port": 8080, "count": count,
        "resources": {"cpu": 0.5, "memory": "256MiB", "disk": "1GiB"},
    })
}

/// How many bytes a message has.
fn size(message: &impl Serialize) -> u64 {
    serde_json::to_vec(message).map_or(0, |bytes| bytes.len() as u64)
}

/// One of the locations.
struct Location {
    idx: usize,
    name: LocationName,
    coordinates: Coordinates,
    link: Followed,
    shared: Arc<Shared>,
}

impl Location {
    /// Hears and reports until it is dropped, both at the same time as a location does; a control plane that is away
    /// is tried again.
    async fn run(self) {
        let (told, set) = watch::channel(AllotmentSet::default());
        tokio::join!(self.hear(told), self.report_all(set));
    }

    async fn hear(&self, told: watch::Sender<AllotmentSet>) {
        let path = format!("/link/locations/{}/allotments?changes=true", self.name);
        loop {
            let mut set = AllotmentSet::default();
            if let Ok(mut sets) = self.link.watch::<AllotmentSet>(&path).await {
                while let Some(Ok(next)) = sets.next().await {
                    self.note(&next);
                    set = match next.since {
                        None => next,
                        // The first is whole, and each of the others follows the one before.
                        Some(_) => match set.changed(next) {
                            Ok(set) => set,
                            Err(_) => break,
                        },
                    };
                    told.send_replace(set.clone());
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn report_all(&self, mut told: watch::Receiver<AllotmentSet>) {
        let mut changes = ReportChanges::new(now());
        loop {
            let set = told.borrow_and_update().clone();
            match self.report(&set, &mut changes).await {
                Ok(()) => _ = tokio::time::timeout(REPORT_INTERVAL, told.changed()).await,
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        }
    }

    async fn report(
        &self,
        set: &AllotmentSet,
        changes: &mut ReportChanges<InstanceStatus>,
    ) -> Result<(), CallError> {
        let instances = set.allotments.iter().flat_map(|allotment| self.instances(allotment));
        let mut told = Told::default();
        instances.for_each(|one| told.insert(one.observed.instance.clone(), Arc::new(one)));
        let Said { number, since, instances, gone } = changes.of(&told);
        let report = LocationReport {
            location: self.name.clone(),
            number,
            since,
            instances,
            gone,
            coordinates: Some(self.coordinates),
            traits: Default::default(),
            joining: None,
            peering: None,
            round_trip_micros: Default::default(),
            demand: Vec::new(),
            location_epoch: Default::default(),
            node_keys: None,
            gate: Some("unix:/nowhere".to_owned()),
            epoch: set.epoch,
            acknowledged: set.generation,
            at: now(),
            nodes: (0..N_NODES).map(|number| self.node(number, told.len())).collect(),
            shortfalls: Vec::new(),
            staying: Vec::new(),
            strays: Vec::new(),
        };
        let part = if report.since.is_some() { "/changes" } else { "" };
        let path = format!("/link/locations/{}/report{part}", self.name);
        self.shared.traffic.up.fetch_add(size(&report), Ordering::Relaxed);
        let answer = self.link.call(Method::POST, &path, Some(&report)).await;
        changes.taken(answer?);
        Ok(())
    }

    /// Counts what it was told.
    fn note(&self, set: &AllotmentSet) {
        self.shared.traffic.down.fetch_add(size(set), Ordering::Relaxed);
        let mut expected = self.shared.expected.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it =
            |allotment: &Allotment| allotment.app().as_str() == expected.app && allotment.count > 0;
        if set.allotments.iter().any(is_it) {
            expected.told.insert(self.idx);
        }
    }

    fn node_name(&self, number: usize) -> longshore_types::NodeName {
        let name = format!("{}-{number}", self.name);
        name.parse().expect("a location's name and a digit are a name")
    }

    fn node(&self, number: usize, n_instances: usize) -> NodeSummary {
        let share = u64::try_from(n_instances / N_NODES).unwrap_or(0);
        let promised = Capacity {
            cpu: MilliCpu(500 * u32::try_from(share).unwrap_or(0)),
            memory: ByteCount::gib(share).min(NODE.memory),
            disk: ByteCount::gib(share),
        };
        NodeSummary {
            node: self.node_name(number),
            reachable: true,
            reported_at: now(),
            capacity: NODE,
            promised,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            runtimes: Vec::new(),
            image_mount: None,
            traits: Default::default(),
            lost: false,
            instances: u32::try_from(share).unwrap_or(0),
            cordon: None,
            drained: false,
            leaving: Capacity::default(),
            yielding: Vec::new(),
            gpus: Vec::new(),
            reached: Vec::new(),
        }
    }

    /// What an allotment asks for, all healthy.
    fn instances<'a>(
        &'a self,
        allotment: &'a Allotment,
    ) -> impl Iterator<Item = InstanceStatus> + 'a {
        (0..allotment.count).map(move |number| {
            let id = format!("{}-{:04x}{number:04x}", allotment.app(), self.idx);
            let id = id.parse().expect("an app's name and eight digits are an id");
            let mut observed = ObservedInstance::pending(id, allotment.generation);
            observed.phase = InstancePhase::Healthy;
            observed.started_at = Some(Timestamp(1_795_000_000_000));
            let node = self.node_name(usize::try_from(number).unwrap_or(0) % N_NODES);
            InstanceStatus {
                project: allotment.project().clone(),
                app: allotment.app().clone(),
                release: allotment.release.number,
                node: node.clone(),
                gpus: Default::default(),
                observed,
                draining: false,
                is_command: false,
                awaits_ingress: false,
                created_at: Timestamp(1_795_000_000_000),
                decision: Decision {
                    at: Timestamp(1_795_000_000_000),
                    chosen: Some(node.to_string()),
                    why: "most is free there".to_owned(),
                    candidates: Vec::new(),
                },
            }
        })
    }
}
