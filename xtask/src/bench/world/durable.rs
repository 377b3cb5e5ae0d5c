//! How many placements a second are on disk on both ends, and whether each is found again after a power cut's
//! worth of kills.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use http::Method;
use longshore_api::v1::DeployRequest;
use longshore_e2e::eventually;
use longshore_link::{Client, Endpoint};
use longshore_store::conformance::EtcdServer;
use longshore_store::{EtcdAddress, EtcdStore, KeyValue, Page, RedbStore, Store};
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::disks::Disk;
use super::{Figures, figure};
use crate::bench::figures::percentile;
use crate::bench::plane::{Plane, Role, cpu_seconds_of, registry};

/// How many clients each wait for a placement before they ask for the next.
const N_CLIENTS: usize = 64;
/// How many instances each app of the run with many has.
const MANY: u32 = 16;
/// How many commits each placement waits for, one after the other: the app, its allotment, the instance and its
/// acknowledgement.
const N_COMMITS: u32 = 4;
/// How long a placement may take before the run has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// How many records are read at a time.
const PAGE: usize = 2_000;
/// The name of the location.
const LOCATION: &str = "bench";

/// Where the state of the control plane is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    Embedded,
    Etcd,
}

/// How many instances the apps have that are deployed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deploys {
    /// One each.
    OfOne,
    /// [`MANY`] each.
    OfMany,
}

impl Deploys {
    fn n_instances(self) -> u32 {
        match self {
            Self::OfOne => 1,
            Self::OfMany => MANY,
        }
    }
}

/// The names of the figures: placements a second, how long a deploy takes in the middle and at the 99th percentile,
/// placements in a wait for the location's disk, and the processor time of the three processes for one, without that
/// of an etcd.
fn names(on: On, deploys: Deploys) -> [&'static str; 5] {
    match (on, deploys) {
        (On::Embedded, Deploys::OfOne) => [
            "durable_placements_per_s",
            "durable_placement_p50_ms",
            "durable_placement_p99_ms",
            "placements_per_fdatasync",
            "cpu_ms_per_placement",
        ],
        (On::Embedded, Deploys::OfMany) => [
            "durable_placements_of_16_per_s",
            "durable_deploy_of_16_p50_ms",
            "durable_deploy_of_16_p99_ms",
            "placements_of_16_per_fdatasync",
            "cpu_ms_per_placement_of_16",
        ],
        (On::Etcd, _) => [
            "etcd_placements_per_s",
            "etcd_placement_p50_ms",
            "etcd_placement_p99_ms",
            "etcd_placements_per_fdatasync",
            "etcd_cpu_ms_per_placement",
        ],
    }
}

/// Measures for so many seconds.
pub fn run(on: On, deploys: Deploys, n_nodes: u32, seconds: u64) -> Result<Figures> {
    let runtime = Runtime::new()?;
    let shutdown = CancellationToken::new();
    let disks = [Disk::new()?, Disk::new()?];
    let a_commit = (disks[0].median_fdatasync()? + disks[1].median_fdatasync()?) / 2;
    let mut etcd = match on {
        On::Embedded => None,
        On::Etcd => Some(start_etcd(&disks[0])?),
    };
    let address = etcd.as_ref().map(|etcd| EtcdServer::address(std::slice::from_ref(etcd)));
    let store = address.as_ref().map_or_else(|| "embedded".to_owned(), ToString::to_string);
    let images = registry(&runtime, shutdown.clone())?;
    let plane = Plane::start(&disks[0].path().join("global"), &store, &images, &runtime)?;
    let world = World::start(plane, &disks[1], n_nodes)?;
    let before = [disks[0].flushes()?, disks[1].flushes()?];
    let cpu = world.cpu_seconds()?;
    let began = Instant::now();
    let until = began + Duration::from_secs(seconds);
    let api = world.plane.client();
    let n_each = deploys.n_instances();
    let done = runtime.block_on(ask(&api, &world.waiting, (until, n_each)))?;
    let took = began.elapsed().as_secs_f64();
    let used = world.cpu_seconds()?;
    let flushes = [disks[0].flushes()? - before[0], disks[1].flushes()? - before[1]];
    let resident = (world.plane.role.rss_mib()?, world.location.rss_mib()?);
    world.kill()?;
    if let Some(etcd) = &mut etcd {
        etcd.kill();
        etcd.start()?;
        etcd.wait_until_it_listens()?;
    }
    runtime.block_on(found_again(address.as_ref(), &disks, (&done, n_each)))?;
    shutdown.cancel();

    let times: Vec<f64> = done.iter().map(|(_, time)| time.as_secs_f64() * 1000.0).collect();
    let n = figure(times.len().try_into()?)? * f64::from(n_each);
    // With the disks as they are, and everything else free.
    let limit =
        figure(N_CLIENTS.try_into()?)? * f64::from(n_each) / (a_commit * N_COMMITS).as_secs_f64();
    println!(
        "\n{on:?}: {} deploys of {n_each} instances each, by {N_CLIENTS} clients, {n_nodes} nodes in one location, \
         {took:.1} s;\nevery one was found again after all were killed.\n\
         an fdatasync of 4 KiB takes {a_commit:.2?} on these disks, and each waits for {N_COMMITS} in turn: no more \
         than\n{limit:.0} placements a second, whatever the processors do.\n\
         flushes of the disks: {} global, {} location; processor: {:.1} s global, {:.1} s location, \
         {:.1} s nodes, {:.1} s clients;\nmemory: {:.0} MiB global, {:.0} MiB location",
        times.len(),
        flushes[0],
        flushes[1],
        used[0] - cpu[0],
        used[1] - cpu[1],
        used[2] - cpu[2],
        used[3] - cpu[3],
        resident.0,
        resident.1
    );
    let a_flush = n / figure(flushes[1].max(1))?;
    let cpu: f64 = used[..3].iter().zip(cpu).map(|(after, before)| after - before).sum();
    let values =
        [n / took, percentile(&times, 50), percentile(&times, 99), a_flush, cpu * 1000.0 / n];
    Ok(names(on, deploys).into_iter().zip(values).collect())
}

/// The processes, and who waits for what.
struct World {
    plane: Plane,
    location: Role,
    agents: Agents,
    waiting: Waiting,
}

impl World {
    fn start(plane: Plane, disk: &Disk, n_nodes: u32) -> Result<Self> {
        let link = Endpoint::Unix(disk.path().join("link.sock"));
        let data = disk.path().join("location").display().to_string();
        let (at, global) = (link.to_string(), plane.link.to_string());
        let arguments = [
            "location",
            "run",
            "--name",
            LOCATION,
            "--data-dir",
            &data,
            "--listen",
            &at,
            "--global",
            &global,
        ];
        let location =
            Role::start(&arguments.map(str::to_owned), &disk.path().join("location.log"))?;
        let is_there = || Ok(disk.path().join("link.sock").exists().then_some(()));
        eventually("the location listens", is_there)?;
        let waiting = Waiting::default();
        let agents = Agents::start(&link, n_nodes, waiting.clone())?;
        let (api, runtime) = (plane.client(), Runtime::new()?);
        eventually("every node has reported", || {
            let location = api.get::<serde_json::Value>("/v1/locations/bench");
            // Not before the location has reported.
            let Ok(location) = runtime.block_on(location) else { return Ok(None) };
            let nodes = location["nodes"].as_array().context("a location without nodes")?;
            let n_there = nodes.iter().filter(|node| node["reachable"] == true).count();
            Ok((n_there == usize::try_from(n_nodes)?).then_some(()))
        })?;
        Ok(Self { plane, location, agents, waiting })
    }

    /// Of the control plane, the location, the nodes, and of the clients with their registry.
    fn cpu_seconds(&self) -> Result<[f64; 4]> {
        let agents = self.agents.role.cpu_seconds()?;
        let own = cpu_seconds_of(i32::try_from(std::process::id())?)?;
        Ok([self.plane.role.cpu_seconds()?, self.location.cpu_seconds()?, agents, own])
    }

    /// Kills everything, as a machine that fails does.
    fn kill(mut self) -> Result<()> {
        self.plane.role.kill()?;
        self.agents.role.kill()?;
        self.location.kill()
    }
}

/// Who waits for the placements of which app.
#[derive(Clone, Default)]
struct Waiting(Arc<Mutex<HashMap<String, Waits>>>);

struct Waits {
    n_missing: u32,
    /// Told when none is.
    placed: oneshot::Sender<()>,
}

impl Waiting {
    fn by_app(&self) -> MutexGuard<'_, HashMap<String, Waits>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for so many from now on.
    fn for_app(&self, name: &str, n_missing: u32) -> oneshot::Receiver<()> {
        let (placed, receiver) = oneshot::channel();
        self.by_app().insert(name.to_owned(), Waits { n_missing, placed });
        receiver
    }

    /// One more is placed.
    fn placed(&self, name: &str) {
        let mut by_app = self.by_app();
        let Some(waits) = by_app.get_mut(name) else { return };
        waits.n_missing -= 1;
        if waits.n_missing == 0
            && let Some(Waits { placed, .. }) = by_app.remove(name)
        {
            // Its client may have given up, and the run with it.
            let _ = placed.send(());
        }
    }
}

/// The process of the nodes.
struct Agents {
    role: Role,
}

impl Agents {
    fn start(link: &Endpoint, n_nodes: u32, waiting: Waiting) -> Result<Self> {
        let mut child: Child = Command::new(std::env::current_exe()?)
            .args(["bench", "world-agents", "--link", &link.to_string()])
            .args(["--nodes", &n_nodes.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the nodes")?;
        let output = child.stdout.take().context("the nodes have no output")?;
        // Ends with the process.
        thread::spawn(move || {
            for name in BufReader::new(output).lines().map_while(Result::ok) {
                waiting.placed(&name);
            }
        });
        Ok(Self { role: Role::of(child) })
    }
}

/// Has the clients deploy app after app of so many instances; every one that was placed, with the time that it took.
async fn ask(
    api: &Client,
    waiting: &Waiting,
    (until, n_each): (Instant, u32),
) -> Result<Vec<(String, Duration)>> {
    let clients = (0..N_CLIENTS).map(|client| {
        let (api, waiting) = (api.clone(), waiting.clone());
        tokio::spawn(async move {
            let mut done = Vec::new();
            for number in 0_u32.. {
                if Instant::now() >= until {
                    break;
                }
                let name = format!("c{client:02}-{number:06}");
                let began = Instant::now();
                let placed = waiting.for_app(&name, n_each);
                let request = DeployRequest { manifest: manifest(&name, n_each) };
                let path = format!("/v1/projects/default/apps/{name}");
                api.send(Method::PUT, &path, Some(&request)).await?;
                let placed = tokio::time::timeout(PATIENCE, placed).await;
                placed.with_context(|| format!("{name} was not placed in time"))??;
                done.push((name, began.elapsed()));
            }
            Ok::<_, anyhow::Error>(done)
        })
    });
    let mut all = Vec::new();
    for client in clients.collect::<Vec<_>>() {
        all.extend(client.await??);
    }
    Ok(all)
}

fn manifest(name: &str, count: u32) -> serde_json::Value {
    let resources = json!({"cpu": 0.1, "memory": "16MiB", "disk": "16MiB"});
    json!({"app": name, "image": "default/web:1", "count": count, "resources": resources})
}

/// An etcd that waits for its disk.
fn start_etcd(disk: &Disk) -> Result<EtcdServer> {
    let mut members = EtcdServer::cluster(&disk.path(), 1)?;
    let mut etcd = members.pop().context("a cluster without a member")?;
    // One that is killed before it has founded its cluster does not get over it.
    let leads = |etcd: &EtcdServer| Ok(etcd.leads().unwrap_or(false).then_some(()));
    eventually("the etcd leads", || leads(&etcd))?;
    etcd.kill();
    etcd.sync();
    etcd.start()?;
    eventually("the etcd leads again", || leads(&etcd))?;
    Ok(etcd)
}

/// Looks for every placement in the stores of the killed.
async fn found_again(
    etcd: Option<&EtcdAddress>,
    disks: &[Disk; 2],
    (done, n_each): (&[(String, Duration)], u32),
) -> Result<()> {
    let here = RedbStore::open(&disks[1].path().join("location/store.redb"))?;
    let mut acknowledged = HashMap::new();
    for_each(&here, "/confirmed/", |stored| {
        let record: serde_json::Value = serde_json::from_slice(&stored.value)?;
        acknowledged.insert(stored.key.replace("/confirmed/", ""), record["data"].clone());
        Ok(())
    })
    .await?;
    let mut confirmed: BTreeMap<String, u32> = BTreeMap::new();
    for_each(&here, "/instances/", |stored| {
        let record: serde_json::Value = serde_json::from_slice(&stored.value)?;
        let record = &record["data"];
        let instance = record["instance"].as_str().context("an instance without an id")?;
        let said = acknowledged.get(instance).unwrap_or(&record["confirmed"]);
        if said.is_u64() && *said == record["generation"] {
            let app = record["release"]["manifest"]["app"].as_str();
            let app = app.context("an instance of no app")?;
            *confirmed.entry(app.to_owned()).or_default() += 1;
        }
        Ok(())
    })
    .await?;
    let global: Box<dyn Store> = match etcd {
        None => Box::new(RedbStore::open(&disks[0].path().join("global/data/store.redb"))?),
        Some(address) => Box::new(EtcdStore::connect(address, None).await?),
    };
    let mut wanted: BTreeMap<String, u32> = BTreeMap::new();
    for prefix in ["/projects/default/apps/", &format!("/allotments/{LOCATION}/default/")] {
        for_each(global.as_ref(), prefix, |stored| {
            let name = stored.key.rsplit('/').next().unwrap_or_default();
            *wanted.entry(name.to_owned()).or_default() += 1;
            Ok(())
        })
        .await?;
    }
    let is_there =
        |name: &String| confirmed.get(name) == Some(&n_each) && wanted.get(name) == Some(&2);
    let lost: Vec<_> = done.iter().filter(|(name, _)| !is_there(name)).collect();
    let few = &lost[..lost.len().min(5)];
    ensure!(few.is_empty(), "{} of {} placements are lost: {few:?}…", lost.len(), done.len());
    Ok(())
}

async fn for_each(
    store: &dyn Store,
    prefix: &str,
    mut look: impl FnMut(&KeyValue) -> Result<()>,
) -> Result<()> {
    let mut page = Some(Page::first(PAGE));
    while let Some(next) = page {
        let listing = store.list(prefix, next).await?;
        listing.items.iter().try_for_each(&mut look)?;
        page = listing.next_page(PAGE);
    }
    Ok(())
}
