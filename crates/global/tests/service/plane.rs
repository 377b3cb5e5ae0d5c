//! A control plane in this process, and what its neighbours say to it.

use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use futures_util::StreamExt;
use http::Method;
use longshore_api::links::{
    Allotment, AllotmentSet, InstanceStatus, LocationReport, NodeSummary, ObservedInstance,
};
use longshore_api::v1::{
    AppView, DeployRequest, DeployResponse, PlanView, ReleaseView, RollbackRequest,
};
use longshore_global::{JoiningOptions, Listeners, Options, RegistryChoice, StoreChoice};
use longshore_link::{CallError, Client, Endpoint, LineStream, Listener, now};
use longshore_types::{
    ByteCount, Capacity, Epoch, Generation, InstanceId, InstancePhase, MilliCpu, ReleaseNumber,
    RuntimeOffer,
};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
/// Of an image that is removed once its tag was asked for.
pub const GONE: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

/// Of another image, which is there under tag 3.
pub const OTHER_DIGEST: &str =
    "sha256:cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc";

/// A control plane in this process, with a registry that knows two images, and of another the tag.
pub struct Plane {
    pub user: Client,
    pub link: Client,
    pub shutdown: CancellationToken,
    pub done: JoinHandle<()>,
    /// Where locations of other machines call, as `host:port`.
    pub locations: String,
}

/// A registry of its own, wherever that will be.
fn own_registry(dir: &Path) -> RegistryChoice {
    let public = "127.0.0.1:4601".parse().unwrap();
    RegistryChoice::At { endpoint: Endpoint::Unix(dir.join("nowhere")), public }
}

impl Plane {
    pub async fn start(dir: &Path) -> Self {
        Self::start_with_rate(dir, NonZeroU32::new(1000).unwrap()).await
    }

    /// The same with so many requests a second for each token.
    pub async fn start_with_rate(dir: &Path, api_rate: NonZeroU32) -> Self {
        Self::start_on(dir, StoreChoice::Embedded, api_rate)
    }

    /// The same with a registry that joins.
    pub async fn start_for_registry(dir: &Path) -> Self {
        Self::start_as(dir, RegistryChoice::Joined, StoreChoice::Embedded, (1000, 20))
    }

    /// The same, which keeps so many releases of an app.
    pub fn start_keeping(dir: &Path, keep_releases: u32) -> Self {
        Self::start_as(dir, own_registry(dir), StoreChoice::Embedded, (1000, keep_releases))
    }

    /// The same with its state in a certain store. It may have to wait until it leads.
    pub fn start_on(dir: &Path, store: StoreChoice, api_rate: NonZeroU32) -> Self {
        Self::start_as(dir, own_registry(dir), store, (api_rate.get(), 20))
    }

    fn start_as(
        dir: &Path,
        mut choice: RegistryChoice,
        store: StoreChoice,
        (api_rate, keep_releases): (u32, u32),
    ) -> Self {
        let tcp = || Listener::bind("test", &Endpoint::Tcp("127.0.0.1:0".into())).unwrap();
        let (registry, api) = (tcp(), tcp());
        let joins = choice == RegistryChoice::Joined;
        if let RegistryChoice::At { endpoint, .. } = &mut choice {
            *endpoint = registry.endpoint().unwrap();
        }
        let image = |digest| get(move || async move { [("docker-content-digest", digest)] });
        let known = Router::new()
            .route("/v2/default/web/manifests/1", image(DIGEST))
            .route(&format!("/v2/default/web/manifests/{DIGEST}"), image(DIGEST))
            .route("/v2/default/web/manifests/2", image(GONE))
            .route("/v2/default/web/manifests/3", image(OTHER_DIGEST))
            .route(&format!("/v2/default/web/manifests/{OTHER_DIGEST}"), image(OTHER_DIGEST))
            .fallback(|| async { StatusCode::NOT_FOUND });
        let shutdown = CancellationToken::new();
        tokio::spawn(registry.serve(known, shutdown.clone()));
        for file in ["admin", "system"] {
            std::fs::write(dir.join(file), format!("{file}-token\n")).unwrap();
        }
        let link = Endpoint::Unix(dir.join("link.sock"));
        let any = Endpoint::Tls("127.0.0.1:0".to_owned());
        let locations = Listener::bind("locations", &any).unwrap();
        let address = locations.endpoint().unwrap().authority().to_owned();
        let user = Client::new(api.endpoint().unwrap()).with_token("admin-token");
        let options = Options {
            data_dir: dir.join("data"),
            store,
            store_tls: None,
            api_advertise: api.endpoint().unwrap(),
            api_ca: None,
            link_advertise: link.clone(),
            registry: choice,
            ingress_public: "127.0.0.1:8080".to_owned(),
            domain: "localhost".to_owned(),
            admin_token_file: dir.join("admin"),
            system_token_file: dir.join("system"),
            secret_keys_file: dir.join("secret-keys.json"),
            root_file: dir.join("root.json"),
            joining: Some(JoiningOptions {
                advertised: address.clone(),
                registry_advertised: (!joins).then(|| "203.0.113.1:4605".to_owned()),
            }),
            api_rate: api_rate.try_into().unwrap(),
            rebalance_after: longshore_types::Duration::from_millis(1),
            keep_releases: keep_releases.try_into().unwrap(),
        };
        let listeners = Listeners {
            api,
            api_tls: None,
            api_here: None,
            link: Listener::bind("link", &link).unwrap(),
            locations: Some(locations),
            metrics: None,
        };
        let until = shutdown.clone();
        let done =
            tokio::spawn(
                async move { longshore_global::run(options, listeners, until).await.unwrap() },
            );
        Self { user, link: Client::new(link), locations: address, shutdown, done }
    }

    /// With an app that its location was told to run.
    pub async fn start_with_web(dir: &Path) -> (Self, AllotmentSet) {
        let plane = Self::start(dir).await;
        plane.report(Generation(0), vec![]).await;
        plane.deploy(web()).await.unwrap();
        let set = until(&mut plane.allotments().await, |set| set.allotments.len() == 1).await;
        (plane, set)
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        self.done.await.unwrap();
    }

    pub async fn allotments(&self) -> LineStream<AllotmentSet> {
        self.link.watch("/link/locations/ams/allotments").await.unwrap()
    }

    pub async fn report(&self, acknowledged: Generation, instances: Vec<InstanceStatus>) {
        self.report_runtimes(acknowledged, instances, Vec::new()).await;
    }

    pub async fn report_runtimes(
        &self,
        acknowledged: Generation,
        instances: Vec<InstanceStatus>,
        runtimes: Vec<RuntimeOffer>,
    ) {
        self.report_from("ams", acknowledged, instances, runtimes).await;
    }

    pub async fn report_from(
        &self,
        location: &str,
        acknowledged: Generation,
        instances: Vec<InstanceStatus>,
        runtimes: Vec<RuntimeOffer>,
    ) {
        self.send(&report_of(location, acknowledged, instances, runtimes)).await;
    }

    /// A report that may be refused.
    pub async fn try_send(&self, report: &LocationReport) -> Result<(), CallError> {
        let path = format!("/link/locations/{}/report", report.location);
        self.link.call::<_, ()>(Method::POST, &path, Some(report)).await
    }

    pub async fn send(&self, report: &LocationReport) {
        self.try_send(report).await.unwrap();
    }

    pub async fn deploy(&self, document: serde_json::Value) -> Result<DeployResponse, CallError> {
        let request = DeployRequest { manifest: document };
        self.user.call(Method::PUT, "/v1/projects/default/apps/web", Some(&request)).await
    }

    pub async fn plan(&self, document: serde_json::Value) -> Result<PlanView, CallError> {
        let request = DeployRequest { manifest: document };
        self.user.call(Method::POST, "/v1/projects/default/apps/web/plan", Some(&request)).await
    }

    pub async fn rollback(&self, to: Option<u64>) -> Result<DeployResponse, CallError> {
        let request = RollbackRequest { release: to.map(ReleaseNumber) };
        let path = "/v1/projects/default/apps/web/rollback";
        self.user.call(Method::POST, path, Some(&request)).await
    }

    pub async fn promote(&self) -> Result<DeployResponse, CallError> {
        let path = "/v1/projects/default/apps/web/promote";
        self.user.call(Method::POST, path, None::<&()>).await
    }

    pub async fn releases(&self) -> Vec<ReleaseView> {
        self.user.get("/v1/projects/default/apps/web/releases").await.unwrap()
    }

    pub async fn app_when(&self, holds: impl Fn(&AppView) -> bool) -> AppView {
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

    /// The same of one that may not answer yet.
    pub async fn app_when_it_answers(&self, holds: impl Fn(&AppView) -> bool) -> AppView {
        let search = async {
            loop {
                match self.user.get("/v1/projects/default/apps/web").await {
                    Ok(app) if holds(&app) => return app,
                    _ => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), search).await.expect("in time")
    }

    pub async fn app(&self) -> AppView {
        self.user.get("/v1/projects/default/apps/web").await.unwrap()
    }
}

pub fn web() -> serde_json::Value {
    json!({"app": "web", "image": "default/web:1", "port": 80, "count": 2})
}

/// The next set for which `holds`.
/// What a location says that has one node.
pub fn report_of(
    location: &str,
    acknowledged: Generation,
    instances: Vec<InstanceStatus>,
    runtimes: Vec<RuntimeOffer>,
) -> LocationReport {
    let capacity =
        Capacity { cpu: MilliCpu(8000), memory: ByteCount::gib(8), disk: ByteCount::gib(100) };
    let node = NodeSummary {
        node: "n1".parse().unwrap(),
        reachable: true,
        reported_at: now(),
        capacity,
        promised: Capacity::default(),
        leaving: Default::default(),
        yielding: Vec::new(),
        gpus: Vec::new(),
        reached: Vec::new(),
        version: "1".to_owned(),
        runtimes,
        image_mount: None,
        traits: Default::default(),
        lost: false,
        instances: 0,
        cordon: None,
        drained: false,
    };
    LocationReport {
        number: 0,
        since: None,
        gone: Vec::new(),
        location: location.parse().unwrap(),
        coordinates: Some("52.37,4.9".parse().unwrap()),
        traits: Default::default(),
        joining: Some("203.0.113.1:4602".to_owned()),
        peering: None,
        round_trip_micros: Default::default(),
        demand: vec![],
        gate: Some("unix:/nowhere".to_owned()),
        epoch: Epoch(0),
        acknowledged,
        at: now(),
        nodes: vec![node],
        instances: instances.into_iter().map(Into::into).collect(),
        shortfalls: vec![],
        staying: vec![],
        strays: vec![],
        location_epoch: Default::default(),
        node_keys: None,
    }
}

pub async fn until(
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

pub fn healthy(allotment: &Allotment, id: &str) -> InstanceStatus {
    let instance: InstanceId = id.parse().unwrap();
    let mut observed = ObservedInstance::pending(instance, Generation(1));
    observed.phase = InstancePhase::Healthy;
    InstanceStatus {
        project: allotment.project().clone(),
        app: allotment.app().clone(),
        release: allotment.release.number,
        node: "n1".parse().unwrap(),
        gpus: Default::default(),
        observed,
        draining: false,
        is_command: false,
        awaits_ingress: false,
        created_at: now(),
        decision: allotment.decision.clone(),
    }
}

/// The app with one word in its environment, by which releases differ.
pub fn web_with(word: &str, rollout: serde_json::Value) -> serde_json::Value {
    let mut document = web();
    document["env"] = json!({"A": word});
    document["rollout"] = rollout;
    document
}
