//! A global control plane with hundreds of locations and thousands of instances, of which only it is real.
//!
//! The locations are tasks of this program. Each does over the link what a location does: it follows its
//! allotments, and reports what they ask for as healthy, again every few seconds. So what is measured of the
//! API is measured with the state, and the traffic beside it, of a platform of that size.

use std::fs;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use futures_util::StreamExt;
use http::Method;
use longshore_api::links::{
    Allotment, AllotmentSet, InstanceStatus, LocationReport, NodeSummary, ObservedInstance,
};
use longshore_api::v1::{AppView, DeployRequest};
use longshore_e2e::{eventually, platform};
use longshore_link::{CallError, Client, Endpoint, Listener, now};
use longshore_types::{
    ByteCount, Capacity, Coordinates, Decision, InstancePhase, LocationName, MilliCpu, Timestamp,
};
use serde_json::json;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// How often a location reports without news.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);
/// What any image is here.
const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
/// How many nodes a location has, and what each offers.
const N_NODES: usize = 3;
const NODE: Capacity =
    Capacity { cpu: MilliCpu(64_000), memory: ByteCount::gib(256), disk: ByteCount::gib(2048) };
/// The token that has every right.
pub const ADMIN_TOKEN: &str = "lsh_bench_admin";

/// A place in the world.
#[derive(Debug, Clone)]
pub struct Site {
    name: LocationName,
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

/// The control plane and its locations; all end when this is dropped.
pub struct Fleet {
    /// Where the API is.
    pub api: SocketAddr,
    global: Child,
    shutdown: CancellationToken,
    /// Where the locations run.
    pub runtime: Runtime,
    _dir: TempDir,
}

impl Fleet {
    /// Starts a control plane with these locations.
    pub fn start(sites: &[Site]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("lsf-").tempdir()?;
        let at = |name: &str| dir.path().join(name);
        fs::write(at("admin"), ADMIN_TOKEN)?;
        fs::write(at("system"), "lsh_bench_system")?;
        let runtime = Runtime::new()?;
        let shutdown = CancellationToken::new();
        let registry = Listener::bind("registry", &Endpoint::Tcp("127.0.0.1:0".into()))?;
        let registry_at = registry.endpoint()?;
        let any = Router::new().fallback(|| async { [("docker-content-digest", DIGEST)] });
        runtime.spawn(registry.serve(any, shutdown.clone()));
        let api = free_address()?;
        let link = Endpoint::Unix(at("link.sock"));
        let global = Command::new(platform::binary()?)
            .args(["global", "--data-dir"])
            .arg(at("data"))
            .args(["--api-listen", &format!("http://{api}"), "--link-listen", &link.to_string()])
            .args(["--registry", &registry_at.to_string(), "--admin-token-file"])
            .arg(at("admin"))
            .arg("--system-token-file")
            .arg(at("system"))
            .arg("--secret-keys-file")
            .arg(at("keys.json"))
            .arg("--root-file")
            .arg(at("root.json"))
            .stdin(Stdio::null())
            .stderr(fs::File::create(at("global.log"))?)
            .spawn()
            .context("cannot start the global role; was it built?")?;
        let fleet = Self { api, global, shutdown, runtime, _dir: dir };
        let user = fleet.client();
        eventually("the API answers", || {
            let asked = user.get::<serde_json::Value>("/v1/health");
            Ok(fleet.runtime.block_on(asked).ok().map(drop))
        })?;
        for (idx, site) in sites.iter().enumerate() {
            let Site { name, coordinates } = site.clone();
            let location = Location { idx, name, coordinates, link: Client::new(link.clone()) };
            fleet.runtime.spawn(fleet.shutdown.clone().run_until_cancelled_owned(location.run()));
        }
        Ok(fleet)
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

    /// A client with every right.
    pub fn client(&self) -> Client {
        Client::new(Endpoint::Tcp(self.api.to_string())).with_token(ADMIN_TOKEN)
    }

    /// The process id of the control plane.
    pub fn pid(&self) -> Result<i32> {
        Ok(i32::try_from(self.global.id())?)
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.shutdown.cancel();
        // It may have ended by itself, which is said where it was missed.
        let _ = self.global.kill();
        let _ = self.global.wait();
    }
}

/// An app as the fleet has many.
pub fn manifest(name: &str, count: u32) -> serde_json::Value {
    json!({
        "app": name, "image": "default/web:1", "port": 8080, "count": count,
        "resources": {"cpu": 0.5, "memory": "256MiB", "disk": "1GiB"},
    })
}

fn free_address() -> Result<SocketAddr> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// One of the locations.
struct Location {
    idx: usize,
    name: LocationName,
    coordinates: Coordinates,
    link: Client,
}

impl Location {
    /// Reports until it is dropped; a control plane that is away is tried again.
    async fn run(self) {
        let mut set = AllotmentSet::default();
        loop {
            let path = format!("/link/locations/{}/allotments", self.name);
            let sets = self.link.watch::<AllotmentSet>(&path).await;
            if let Ok(mut sets) = sets {
                loop {
                    // What could not be reported is reported the next time.
                    let _ = self.report(&set).await;
                    tokio::select! {
                        next = sets.next() => match next {
                            Some(Ok(next)) => set = next,
                            Some(Err(_)) | None => break,
                        },
                        () = tokio::time::sleep(REPORT_INTERVAL) => {}
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn report(&self, set: &AllotmentSet) -> Result<(), CallError> {
        let instances = set.allotments.iter().flat_map(|allotment| self.instances(allotment));
        let instances: Vec<_> = instances.collect();
        let report = LocationReport {
            location: self.name.clone(),
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
            nodes: (0..N_NODES).map(|number| self.node(number, instances.len())).collect(),
            instances,
            shortfalls: Vec::new(),
            staying: Vec::new(),
            strays: Vec::new(),
        };
        let path = format!("/link/locations/{}/report", self.name);
        self.link.call(Method::POST, &path, Some(&report)).await
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
            traits: Default::default(),
            lost: false,
            instances: u32::try_from(share).unwrap_or(0),
            cordon: None,
            drained: false,
            leaving: Capacity::default(),
            yielding: Vec::new(),
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
