//! A control plane without sockets: what its locations and users would send is handed over, and what they would
//! be told is asked for.
//!
//! For simulations, which give it a store, run its tasks in an order of their own and decide what becomes of each
//! message. Everything between is the same as in [`crate::run`]: the lead, the mirror, the scheduler, the API with
//! its access rights. There is no cargo feature for this, for with one everything above would be compiled twice.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::body::{Body, to_bytes};
use futures_util::future::BoxFuture;
use http::{Method, Request, header};
use longshore_api::Problem;
use longshore_api::links::{AllotmentSet, LocationReport, ReportTaken};
use longshore_link::{Endpoint, Service};
use longshore_store::{Revision, Store};
use longshore_trust::Peer;
use longshore_types::LocationName;
use tokio::sync::watch;
use tower_service::Service as _;

use crate::images::ImageResolver;
use crate::leader::{Lead, LeaderRecord};
use crate::metrics::Metrics;
use crate::{
    GlobalError, Options, Plane, RegistryChoice, StoreChoice, Trusted, lead, links, routers,
};

/// As `up` has it.
const REBALANCE_AFTER: longshore_types::Duration = longshore_types::Duration::from_secs(180);
const KEEP_RELEASES: u32 = 20;
const TOKEN: &str = "admin-token";
/// More than a simulated user ever asks.
const API_RATE: u32 = 100_000;
/// The largest answer that is read.
const MAX_ANSWER: usize = 16 << 20;

/// What a location was told over a connection.
#[derive(Debug, Clone, Default)]
pub struct Told(Option<links::Told>);

/// One that leads.
#[derive(Clone)]
pub struct Simulated {
    plane: Arc<Plane>,
    api: Router,
}

impl Simulated {
    /// Waits until the control plane of this id leads; nothing when the service ends before. What it keeps beside
    /// the store lies in `dir`.
    ///
    /// # Errors
    ///
    /// As [`crate::run`].
    pub async fn begin(
        store: Arc<dyn Store>,
        id: &str,
        dir: &Path,
        service: &Service,
    ) -> Result<Option<Self>, GlobalError> {
        let options = options(dir)?;
        let trusted = Trusted::begin(&options, false, service)?;
        let own = LeaderRecord {
            id: id.to_owned(),
            api: format!("unix:/{id}/api"),
            link: format!("unix:/{id}/link"),
            locations: None,
            passing_key: id.to_owned(),
        };
        let known = watch::Sender::default();
        let taken = Lead::take(store.as_ref(), &own, &known, &service.shutdown()).await;
        let Some(taken) = taken else { return Ok(None) };
        let led = Some((taken.condition(), own.passing_key));
        service.spawn("lead", taken.keep(Arc::clone(&store), service.shutdown()));
        let (metrics, leading) = (Metrics::default(), OnceLock::new());
        let neighbours = (trusted, ImageResolver::simulated());
        let plane = lead(&options, (store, led), (&metrics, &leading), neighbours, service).await?;
        let api = routers(&metrics, Arc::clone(&plane)).api;
        Ok(Some(Self { plane, api }))
    }

    /// Up to which revision of the store it knows everything.
    pub fn revision(&self) -> Revision {
        self.plane.catalog().revision
    }

    /// What a location is to be told now after what it was told over the same connection, if anything.
    pub fn allotments(&self, location: &LocationName, told: &mut Told) -> Option<AllotmentSet> {
        let to = (location, &*self.plane.public.domain);
        links::next_set(&self.plane.catalog(), to, &mut told.0, true)
    }

    /// Takes over what a location of its machine says.
    ///
    /// # Errors
    ///
    /// When it is refused.
    pub async fn take_report(
        &self,
        report: LocationReport,
    ) -> Result<Option<ReportTaken>, Problem> {
        let location = report.location.clone();
        let taken = links::take_report(&self.plane, location, &Peer::Local, report).await;
        taken.map_err(|refusal| refusal.0)
    }

    /// A request to the API with the token of an administrator: the status of the answer, and its body.
    ///
    /// # Panics
    ///
    /// When the path is none, or the answer cannot be read.
    pub fn call(
        &self,
        method: Method,
        path: &str,
        body: &serde_json::Value,
    ) -> BoxFuture<'static, (u16, serde_json::Value)> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::AUTHORIZATION, format!("Bearer {TOKEN}"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body.to_string()));
        let request = request.expect("a simulated request is one");
        let mut api = self.api.clone();
        Box::pin(async move {
            let answer = api.call(request).await.unwrap_or_else(|never| match never {});
            let status = answer.status().as_u16();
            let body = to_bytes(answer.into_body(), MAX_ANSWER).await.expect("an answer is whole");
            (status, serde_json::from_slice(&body).unwrap_or_default())
        })
    }
}

/// Those of a control plane that nobody can reach.
fn options(dir: &Path) -> Result<Options, GlobalError> {
    let (admin_token_file, system_token_file) = (dir.join("admin"), dir.join("system"));
    for (file, token) in [(&admin_token_file, TOKEN), (&system_token_file, "system-token")] {
        let failed = |source| GlobalError::TokenFile { path: file.clone(), source };
        std::fs::write(file, token).map_err(failed)?;
    }
    let nowhere = || Endpoint::Unix(dir.join("nowhere"));
    Ok(Options {
        data_dir: dir.to_owned(),
        store: StoreChoice::Embedded,
        store_tls: None,
        api_advertise: nowhere(),
        link_advertise: nowhere(),
        registry: RegistryChoice::At {
            endpoint: nowhere(),
            public: "registry.invalid:1".parse().expect("it is a name"),
        },
        ingress_public: "ingress.invalid".to_owned(),
        domain: "localhost".to_owned(),
        admin_token_file,
        system_token_file,
        secret_keys_file: dir.join("secret-keys.json"),
        root_file: dir.join("root.json"),
        joining: None,
        api_ca: None,
        rebalance_after: REBALANCE_AFTER,
        keep_releases: KEEP_RELEASES.try_into().expect("it is not zero"),
        api_rate: API_RATE.try_into().expect("it is not zero"),
    })
}
