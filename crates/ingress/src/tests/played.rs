//! What stands around an ingress in tests.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::StreamExt;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use longshore_api::links::{Elsewhere, Endpoint, MeasuredWays, Route, RouteAck, RoutingTable};
use longshore_link::{Body, Client, Listener, json_lines, now, watch_lines};
use longshore_trust::{CertificateRequest, LocationAuthority, Name, Signed};
use longshore_types::InstanceId;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::gate::{DirectGate, Gates, NodeGate};
use crate::limits::Limits;
use crate::{IngressError, IngressOptions, SecureOptions, run_with};

/// How long anything in a test may take.
const DEADLINE: Duration = Duration::from_secs(30);

pub const HOST: &str = "web.test";

pub async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within {DEADLINE:?}"),
    }
}

/// A location that gives tables and keeps acknowledgements.
pub struct Location {
    tables: watch::Sender<Arc<Option<RoutingTable>>>,
    elsewhere: watch::Sender<Arc<Elsewhere>>,
    pub measured: watch::Receiver<MeasuredWays>,
    acks: watch::Receiver<BTreeMap<String, RouteAck>>,
    /// The revision of the last table that was on its way.
    told: watch::Receiver<u64>,
    _end: DropGuard,
}

#[derive(Clone)]
struct Served {
    tables: watch::Receiver<Arc<Option<RoutingTable>>>,
    elsewhere: watch::Receiver<Arc<Elsewhere>>,
    measured: Arc<watch::Sender<MeasuredWays>>,
    authority: Option<Arc<LocationAuthority>>,
    acks: Arc<watch::Sender<BTreeMap<String, RouteAck>>>,
    told: Arc<watch::Sender<u64>>,
    end: CancellationToken,
}

impl Location {
    /// Listens in `dir`, where `Ingress::start` looks for it.
    pub fn start(dir: &Path) -> Self {
        Self::start_with(dir, None)
    }

    /// The same with an authority, which names its ingresses.
    pub fn start_with(dir: &Path, authority: Option<Arc<LocationAuthority>>) -> Self {
        let listener = Listener::bind("location", &location_endpoint(dir)).unwrap();
        let (tables, tables_seen) = watch::channel(Arc::new(None));
        let (acks, acks_seen) = watch::channel(BTreeMap::new());
        let (elsewhere, elsewhere_seen) = watch::channel(Arc::default());
        let (measure, measured) = watch::channel(MeasuredWays::default());
        let end = CancellationToken::new();
        let (tell, told) = watch::channel(0);
        let served = Served {
            tables: tables_seen,
            elsewhere: elsewhere_seen,
            measured: Arc::new(measure),
            authority,
            acks: Arc::new(acks),
            told: Arc::new(tell),
            end: end.clone(),
        };
        let router = Router::new()
            .route("/link/elsewhere", get(elsewhere_lines))
            .route("/link/elsewhere/measured", post(measured_ways))
            .route("/link/ingress/certificate", post(certificate))
            .route("/link/routes", get(routes))
            .route("/link/routes/ack", post(ack))
            .with_state(served);
        tokio::spawn(listener.serve(router, end.clone()));
        Self { tables, elsewhere, measured, acks: acks_seen, told, _end: end.drop_guard() }
    }

    /// Says what other locations serve.
    pub fn tell(&self, elsewhere: Elsewhere) {
        self.elsewhere.send_replace(Arc::new(elsewhere));
    }

    pub fn give(&self, revision: u64, endpoints: &[&Endpoint]) {
        self.tables.send_replace(Arc::new(Some(table(revision, endpoints))));
    }

    /// Waits until some ingress routes by this revision.
    pub async fn acked(&self, revision: u64) {
        self.acked_when(|ack| ack.revision == revision).await;
    }

    /// Waits until some ingress said such a thing.
    pub async fn acked_when(&self, holds: impl Fn(&RouteAck) -> bool) {
        let mut acks = self.acks.clone();
        let acked = acks.wait_for(|acks| acks.values().any(&holds));
        in_time("an acknowledgement", acked).await.unwrap();
    }

    pub async fn give_and_wait(&self, revision: u64, endpoints: &[&Endpoint]) {
        self.give(revision, endpoints);
        self.acked(revision).await;
    }

    pub async fn give_table_and_wait(&self, table: RoutingTable) {
        let revision = table.revision;
        self.tables.send_replace(Arc::new(Some(table)));
        self.acked(revision).await;
    }

    /// Gives a table that nobody will acknowledge, and waits until it is on its way.
    pub async fn give_in_vain(&self, table: RoutingTable) {
        let revision = table.revision;
        self.tables.send_replace(Arc::new(Some(table)));
        let mut told = self.told.clone();
        let is_told = told.wait_for(|told| *told == revision);
        in_time("that it is told", is_told).await.unwrap();
    }

    pub fn ingresses(&self) -> Vec<String> {
        self.acks.borrow().keys().cloned().collect()
    }
}

async fn routes(State(served): State<Served>) -> axum::response::Response {
    let tables = watch_lines(served.tables);
    let told = served.told;
    let tables = tables.filter_map(move |table| {
        if let Some(table) = &*table {
            told.send_replace(table.revision);
        }
        std::future::ready((*table).clone())
    });
    json_lines(tables.boxed(), served.end)
}

async fn elsewhere_lines(State(served): State<Served>) -> axum::response::Response {
    let told = watch_lines(served.elsewhere);
    // Each line may be a whole one.
    json_lines(told.map(|elsewhere| elsewhere.whole()).boxed(), served.end)
}

async fn measured_ways(
    State(served): State<Served>,
    Body(ways): Body<MeasuredWays>,
) -> axum::Json<()> {
    served.measured.send_replace(ways);
    axum::Json(())
}

async fn certificate(
    State(served): State<Served>,
    Body(request): Body<CertificateRequest>,
) -> Result<axum::Json<Signed>, StatusCode> {
    let authority = served.authority.ok_or(StatusCode::SERVICE_UNAVAILABLE)?;
    let name = Name::Ingress(authority.location().clone());
    Ok(axum::Json(authority.sign(&name, &request.key, now()).unwrap()))
}

async fn ack(State(served): State<Served>, Body(ack): Body<RouteAck>) -> axum::Json<()> {
    served.acks.send_modify(|acks| {
        acks.insert(ack.ingress.clone(), ack);
    });
    axum::Json(())
}

fn location_endpoint(dir: &Path) -> longshore_link::Endpoint {
    longshore_link::Endpoint::Unix(dir.join("location.sock"))
}

pub fn table(revision: u64, endpoints: &[&Endpoint]) -> RoutingTable {
    let route = |app: &str, host: &str, endpoints| {
        Arc::new(Route {
            project: Default::default(),
            app: app.parse().unwrap(),
            hosts: vec![host.parse().unwrap()],
            rules: Default::default(),
            endpoints,
        })
    };
    let endpoints = endpoints.iter().copied().cloned().collect();
    let routes = vec![route("web", HOST, endpoints), route("empty", "empty.test", Vec::new())];
    RoutingTable { revision, routes, ..RoutingTable::default() }
}

pub fn endpoint(address: SocketAddr) -> Endpoint {
    // Ports do not repeat within a test, so that neither do these.
    let instance = InstanceId::mint(&"web".parse().unwrap(), u64::from(address.port()));
    let node = "node".parse().unwrap();
    Endpoint { instance, node, address, protocol: Default::default(), reach: Default::default() }
}

/// The endpoint of an instance that is gone: its port refuses.
pub async fn dead_endpoint() -> Endpoint {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    endpoint(listener.local_addr().unwrap())
}

/// An instance that is an axum router.
pub struct Instance {
    pub endpoint: Endpoint,
    _end: DropGuard,
}

impl Instance {
    pub async fn start(router: Router) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = endpoint(listener.local_addr().unwrap());
        let end = CancellationToken::new();
        let ended = end.clone();
        tokio::spawn(async move {
            ended.run_until_cancelled(axum::serve(listener, router).into_future()).await
        });
        Self { endpoint, _end: end.drop_guard() }
    }

    /// One that answers everything with `text`.
    pub async fn saying(text: &'static str) -> Self {
        Self::start(Router::new().fallback(async move || text)).await
    }
}

/// An instance of which the test plays every byte.
pub struct RawInstance {
    pub endpoint: Endpoint,
    pub listener: TcpListener,
}

impl RawInstance {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { endpoint: endpoint(listener.local_addr().unwrap()), listener }
    }

    pub async fn accept(&self) -> TcpStream {
        in_time("a connection to the instance", self.listener.accept()).await.unwrap().0
    }
}

/// An ingress that ends with the test.
pub struct Ingress {
    pub address: SocketAddr,
    pub shutdown: CancellationToken,
    pub ended: tokio::task::JoinHandle<Result<(), IngressError>>,
    _end: DropGuard,
}

pub fn limits() -> Limits {
    Limits::within(1 << 20)
}

impl Ingress {
    pub fn start(dir: &Path, limits: Limits) -> Self {
        Self::start_with_gate(dir, limits, Arc::new(DirectGate))
    }

    pub fn start_with_gate(dir: &Path, limits: Limits, gate: Arc<dyn NodeGate>) -> Self {
        Self::start_with(dir, limits, gate, (None, None))
    }

    /// The same with where other locations come in, and where its metrics are asked for.
    pub fn start_with(
        dir: &Path,
        limits: Limits,
        gate: Arc<dyn NodeGate>,
        (peers, metrics): (Option<Listener>, Option<Listener>),
    ) -> Self {
        Self::start_secure(dir, limits, gate, (peers, metrics, None))
    }

    /// The same with where users come in by TLS.
    pub fn start_secure(
        dir: &Path,
        limits: Limits,
        gate: Arc<dyn NodeGate>,
        (peers, metrics, secure): (Option<Listener>, Option<Listener>, Option<SecureOptions>),
    ) -> Self {
        let any = longshore_link::Endpoint::Tcp("127.0.0.1:0".to_owned());
        let listener = Listener::bind("ingress", &any).unwrap();
        let Listener::Tcp(socket) = &listener else { unreachable!("bound to TCP") };
        let address = socket.local_addr().unwrap();
        let options = IngressOptions {
            listener,
            secure,
            peers,
            location: location_endpoint(dir),
            state_dir: dir.join("state"),
            metrics,
        };
        let shutdown = CancellationToken::new();
        let own = Arc::new(Gates::new(Client::new(location_endpoint(dir))));
        let running = run_with(options, limits, (gate, own), shutdown.clone());
        let ended = tokio::spawn(running);
        Self { address, ended, _end: shutdown.clone().drop_guard(), shutdown }
    }

    pub async fn client(&self) -> http1::SendRequest<Full<Bytes>> {
        client(self.address).await
    }

    /// `GET /` of the app, over a connection of its own.
    pub async fn get(&self) -> (StatusCode, String) {
        let answer = self.send(request(HOST, "/")).await;
        let status = answer.status();
        (status, text(answer).await)
    }

    pub async fn send(&self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        let mut client = self.client().await;
        in_time("an answer", client.send_request(request)).await.unwrap()
    }
}

/// The whole scene: one ingress that routes to `endpoints`.
pub struct Scene {
    pub location: Location,
    pub ingress: Ingress,
    pub dir: tempfile::TempDir,
}

impl Scene {
    pub async fn new(endpoints: &[&Endpoint]) -> Self {
        Self::with(limits(), endpoints).await
    }

    pub async fn with(limits: Limits, endpoints: &[&Endpoint]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let location = Location::start(dir.path());
        let ingress = Ingress::start(dir.path(), limits);
        location.give_and_wait(1, endpoints).await;
        Self { location, ingress, dir }
    }
}

/// A client whose connection is driven until the sender is dropped.
pub async fn client<B>(address: SocketAddr) -> http1::SendRequest<B>
where
    B: http_body::Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
        + Send
        + 'static,
{
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    sender
}

pub fn request(host: &str, path: &str) -> Request<Full<Bytes>> {
    Request::get(path).header(header::HOST, host).body(Full::default()).unwrap()
}

pub async fn text(answer: Response<Incoming>) -> String {
    let body = in_time("a body", answer.into_body().collect()).await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

/// A body that is what is sent into the channel, frame by frame.
pub type ChannelBody = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

/// The two ends of a body that takes one frame at a time.
pub fn channel_body() -> (mpsc::Sender<Bytes>, ChannelBody) {
    let (sender, receiver) = mpsc::channel(1);
    let frames = futures_util::stream::unfold(receiver, async |mut receiver| {
        let bytes: Bytes = receiver.recv().await?;
        Some((Ok(Frame::data(bytes)), receiver))
    });
    (sender, StreamBody::new(frames).boxed_unsync())
}

/// Reads the head of a message from a socket.
pub async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(in_time("a head", stream.read_u8()).await.unwrap());
    }
    String::from_utf8(head).unwrap()
}
