//! Passing bytes between the ingresses of two other locations, of which one cannot be dialled.
//!
//! A location behind a NAT keeps connections open to two that it can dial; over those it is reached by the
//! others, which ask one of the two to carry a connection. What is carried is TLS between the two ends, each of which
//! checks the other as if it had been dialled: the relay learns who speaks with whom, when and how much, and neither
//! reads nor changes a byte. So an app that has to stay in a jurisdiction may have a relay outside of it, and HTTP/2,
//! upgrades and whatever comes later need nothing here.
//!
//! It carries for ingresses that were let in at its own door, to one that opened connections there. What comes over a
//! connection that is carried is not asked for, so nothing goes through two relays, and there are no loops.
//!
//! Rejected: passing requests on, which the relay would read, and upgrades, which HTTP/2 has none of, would need another
//! form; the control plane as the relay, which is not there when it is needed most; holes punched into NATs, which need
//! UDP and a kind of NAT that not every provider has.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use http_body_util::{Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use longshore_link::{Reverse, Tunnel, pass_on_noting};
use longshore_types::{LocationName, NodeName};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::elsewhere::Others;
use crate::gate::{Gates, Stream};
use crate::limits::{MAX_CARRIED, PING_INTERVAL};
use crate::metrics::{CarriedMetrics, Metrics};
use crate::proxy::Answer;

/// The host of what is asked of a relay, by which no app can be reached.
const RELAY: &str = "relay.longshore.internal";
/// Where a location opens a connection to be reached over.
const OPEN: &str = "/open";
/// Where a node opens one.
const OPEN_BY_NODE: &str = "/link/reverse";
/// Where one asks for a connection to another, whose name follows.
const TO: &str = "/to/";
/// What the connection becomes.
const TUNNEL: &str = "tcp";
/// How long to wait for a connection of a location that has none open: it is opening more while there is a burst.
const TAKE_WITHIN: Duration = Duration::from_secs(1);
/// An ingress that ends breaks off what was silent for so long: over HTTP/2 there are pings while there are requests.
const QUIET: Duration = Duration::from_millis(1_500).saturating_add(PING_INTERVAL);

/// Asks for a connection to a location, over a connection to the ingress of another one.
pub(crate) async fn carried(relay: Box<dyn Stream>, to: &LocationName) -> io::Result<Tunnel> {
    ask(relay, format!("{TO}{to}")).await
}

/// Opens a connection to be reached over, to the ingress of another location.
pub(crate) async fn opened(relay: Box<dyn Stream>) -> io::Result<Tunnel> {
    ask(relay, OPEN.to_owned()).await
}

async fn ask(relay: Box<dyn Stream>, path: String) -> io::Result<Tunnel> {
    let shaken = http1::handshake(TokioIo::new(relay)).await;
    let (mut sender, connection) = shaken.map_err(io::Error::other)?;
    let driving = driven(connection);
    let request = Request::get(path)
        .header(header::HOST, RELAY)
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, TUNNEL)
        .body(Empty::new())
        .map_err(io::Error::other)?;
    // Who asks lets go of the connection at the end, so that it ends whatever was answered.
    let asking = async move {
        let answer = sender.send_request(request).await.map_err(io::Error::other)?;
        match answer.status() {
            StatusCode::SWITCHING_PROTOCOLS => {
                hyper::upgrade::on(answer).await.map(TokioIo::new).map_err(io::Error::other)
            }
            status => Err(io::Error::other(format!("the relay answered with status {status}"))),
        }
    };
    let (driven, tunnel) = tokio::join!(driving, asking);
    driven.map_err(io::Error::other).and(tunnel)
}

/// Drives a connection. Its type is forgotten here, for what holds it over an `await` is not seen to be `Send`.
fn driven(
    connection: http1::Connection<TokioIo<Box<dyn Stream>>, Empty<Bytes>>,
) -> BoxFuture<'static, hyper::Result<()>> {
    Box::pin(connection.with_upgrades())
}

/// Carries for others.
#[derive(Debug)]
pub(crate) struct Relay {
    others: Arc<Others>,
    gates: Arc<Gates>,
    metrics: Metrics,
    places: Arc<Semaphore>,
    tunnels: TaskTracker,
    shutdown: CancellationToken,
    /// Cancelled when the time to drain is over.
    end: CancellationToken,
}

impl Relay {
    pub fn new(
        (others, gates): (Arc<Others>, Arc<Gates>),
        metrics: Metrics,
        (shutdown, end): (CancellationToken, CancellationToken),
    ) -> Self {
        let places = Arc::new(Semaphore::new(MAX_CARRIED));
        Self { others, gates, metrics, places, tunnels: TaskTracker::new(), shutdown, end }
    }

    /// Waits until nothing is carried any more. To be called after the last request.
    pub async fn ended(&self) {
        self.tunnels.close();
        self.tunnels.wait().await;
    }

    /// Whether something is asked of a relay.
    pub fn is_asked(request: &Request<Incoming>) -> bool {
        request.headers().get(header::HOST).is_some_and(|host| host.as_bytes() == RELAY.as_bytes())
    }

    /// Answers what an ingress of another location asks.
    pub async fn answer(
        &self,
        request: Request<Incoming>,
        from: &LocationName,
    ) -> Response<Answer> {
        if !is_for_tunnel(&request) {
            return refused(StatusCode::BAD_REQUEST, "a relay is asked for a tunnel");
        }
        match request.uri().path() {
            OPEN => match self.others.opened_by(from) {
                Some((reverse, _)) => {
                    self.keep(request, reverse, || {});
                    switching()
                }
                None => refused(StatusCode::FORBIDDEN, "it is no location any more"),
            },
            path => match path.strip_prefix(TO).map(str::parse::<LocationName>) {
                Some(Ok(to)) if to != *from => self.carry(request, from, &to).await,
                _ => refused(StatusCode::NOT_FOUND, "a relay has a connection to no such thing"),
            },
        }
    }

    /// Answers what a node of this location asks, which is to keep its connection.
    pub fn answer_node(
        &self,
        request: Request<Incoming>,
        node: NodeName,
        reverse: Reverse,
    ) -> Response<Answer> {
        if !is_for_tunnel(&request) || request.uri().path() != OPEN_BY_NODE {
            return refused(StatusCode::NOT_FOUND, "an ingress keeps connections of nodes alone");
        }
        let gates = Arc::clone(&self.gates);
        self.keep(request, reverse, move || gates.opened().note(&node));
        switching()
    }

    /// Keeps a connection by which somebody can be reached.
    fn keep(
        &self,
        request: Request<Incoming>,
        reverse: Reverse,
        note: impl FnOnce() + Send + 'static,
    ) {
        self.tunnels.spawn(async move {
            // One that went away meanwhile is reached otherwise.
            if let Ok(connection) = hyper::upgrade::on(request).await {
                reverse.keep(TokioIo::new(connection));
                note();
            }
        });
    }

    /// Carries a connection to a location that has opened some.
    async fn carry(
        &self,
        request: Request<Incoming>,
        from: &LocationName,
        to: &LocationName,
    ) -> Response<Answer> {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            return refused(StatusCode::SERVICE_UNAVAILABLE, "the relay carries as much as it may");
        };
        let (Some((_, from_key)), Some((reverse, to_key))) =
            (self.others.opened_by(from), self.others.opened_by(to))
        else {
            return refused(StatusCode::NOT_FOUND, "one of the two is no location any more");
        };
        let far = match tokio::time::timeout(TAKE_WITHIN, reverse.take()).await {
            Ok(Ok(far)) => far,
            Ok(Err(_)) | Err(_) => {
                return refused(StatusCode::SERVICE_UNAVAILABLE, "it has no connection open");
            }
        };
        let others = Arc::clone(&self.others);
        let (names, keys) = ([from.clone(), to.clone()], [from_key, to_key]);
        let moved = Arc::new(Moved::new(self.metrics.note_carried(to)));
        let (end, quiet) = (self.end.clone(), quiet_at_the_end(&self.shutdown, &moved));
        self.tunnels.spawn(async move {
            let _place = place;
            let Ok(near) = hyper::upgrade::on(request).await else { return };
            tokio::select! {
                () = pass_on_noting(TokioIo::new(near), far, |length| moved.note(length)) => {}
                () = others.left(&names[0], keys[0]) => {}
                () = others.left(&names[1], keys[1]) => {}
                () = quiet => {}
                () = end.cancelled() => {}
            }
        });
        switching()
    }
}

fn is_for_tunnel(request: &Request<Incoming>) -> bool {
    let upgrade = request.headers().get(header::UPGRADE);
    request.version() == Version::HTTP_11
        && upgrade.is_some_and(|to| to.as_bytes() == TUNNEL.as_bytes())
}

fn switching() -> Response<Answer> {
    let mut answer = Response::new(Answer::Upgrade);
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    answer.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(TUNNEL));
    answer
}

fn refused(status: StatusCode, why: &'static str) -> Response<Answer> {
    let mut answer = Response::new(Answer::Own(Full::new(Bytes::from_static(why.as_bytes()))));
    *answer.status_mut() = status;
    answer
}

/// How many bytes were carried over a connection.
#[derive(Debug)]
struct Moved {
    n_bytes: AtomicU64,
    metrics: CarriedMetrics,
}

impl Moved {
    fn new(metrics: CarriedMetrics) -> Self {
        Self { n_bytes: AtomicU64::new(0), metrics }
    }

    fn note(&self, n_bytes: usize) {
        let n_bytes = u64::try_from(n_bytes).unwrap_or(u64::MAX);
        self.n_bytes.fetch_add(n_bytes, Ordering::Relaxed);
        self.metrics.bytes.inc_by(n_bytes);
    }
}

/// Ends after `shutdown`, once nothing moved for a while.
fn quiet_at_the_end(
    shutdown: &CancellationToken,
    moved: &Arc<Moved>,
) -> impl Future<Output = ()> + Send + 'static {
    let (shutdown, moved) = (shutdown.clone(), Arc::clone(moved));
    async move {
        shutdown.cancelled().await;
        let mut before = None;
        loop {
            let now = moved.n_bytes.load(Ordering::Relaxed);
            if before == Some(now) {
                return;
            }
            before = Some(now);
            tokio::time::sleep(QUIET).await;
        }
    }
}
