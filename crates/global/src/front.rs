//! What is answered where another control plane may lead.
//!
//! What locations report is in the memory of the one that leads, so that one answers. The others pass each
//! request of the API on to it, whole and as it comes, and say where it is to locations and registries,
//! which go there themselves: they report all the time, and a way around would double what that costs.
//! Rejected: to answer reads from the store, without what runs; to redirect users, whose clients would
//! need a way to every control plane.
//!
//! A request is passed on once. One that comes to a control plane that does not lead any more is refused
//! there, and whoever sent it asks again.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use axum::extract::{ConnectInfo, Request, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use longshore_api::{Problem, ProblemCode};
use longshore_link::{Client, Endpoint, NotPassedOn, Refusal, Service, chain};
use longshore_trust::{Peer, public_client_config};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tower_service::Service as _;

use crate::hash::sha256;
use crate::leader::{KnownLeader, LeaderRecord};

/// Carries the passing key of the leader, and says that a request was passed on.
const PASSED_ON: HeaderName = HeaderName::from_static("longshore-passed-on");
/// Says from which address it came.
const PASSED_ON_FROM: HeaderName = HeaderName::from_static("longshore-passed-on-from");
/// When to come back to who finds no leader, in seconds.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// How long a request is held while nobody leads.
const HOLD: Duration = Duration::from_secs(3);

/// Answers for a control plane until it leads, and hands over to what answers then.
pub struct Front {
    led: OnceLock<Led>,
    /// Told when that is set.
    leads: Notify,
    known: watch::Receiver<KnownLeader>,
    /// The certificates of who vouches for others at `https`, when that is not whom the machine trusts.
    ca: Option<PathBuf>,
    way: Mutex<Option<Arc<Way>>>,
    service: Service,
}

/// What answers while this control plane leads.
pub struct Led {
    /// The API.
    pub api: Router,
    /// What locations and the registry call.
    pub link: Router,
}

/// The way to a leader.
struct Way {
    leader: Arc<LeaderRecord>,
    api: Client,
    passing_key: HeaderValue,
    /// Ends with the lead, and with this process.
    gone: CancellationToken,
}

impl Front {
    /// Answers as long as others lead, those who are told of in `known`.
    pub fn new(
        (known, ca): (watch::Receiver<KnownLeader>, Option<PathBuf>),
        service: Service,
    ) -> Arc<Self> {
        let (led, leads) = (OnceLock::new(), Notify::new());
        let front = Self { led, leads, known, ca, way: Mutex::default(), service };
        let front = Arc::new(front);
        let follow = Arc::clone(&front);
        front.service.spawn_until_shutdown("front", async move { follow.end_old_ways().await });
        front
    }

    /// From now on this control plane leads.
    pub fn lead(&self, led: Led) {
        // A control plane that lost the lead ends, so it begins to lead once.
        let _ = self.led.set(led);
        self.leads.notify_waiters();
    }

    /// Waits a little for somebody to lead: one that was killed and started again leads in a moment, and
    /// that is a delay and no error to whoever asks meanwhile.
    async fn wait_for_a_leader(&self) {
        let mut known = self.known.clone();
        let wait = async {
            loop {
                let leads = self.leads.notified();
                if self.led.get().is_some() || self.way().is_some() {
                    return;
                }
                tokio::select! {
                    () = leads => {}
                    changed = known.changed() => if changed.is_err() { return },
                }
            }
        };
        // Whoever still finds none is told so.
        let _ = tokio::time::timeout(HOLD, wait).await;
    }

    /// The API.
    pub fn api(self: Arc<Self>) -> Router {
        Router::new().fallback(api).with_state(self)
    }

    /// What locations and the registry call.
    pub fn link(self: Arc<Self>) -> Router {
        Router::new().fallback(link).with_state(self)
    }

    /// Breaks off what was passed on to a leader that is none any more: it may be dead with its machine,
    /// and say so to nobody.
    async fn end_old_ways(&self) {
        let mut known = self.known.clone();
        while known.changed().await.is_ok() {
            let leader = known.borrow_and_update().clone();
            let mut way = self.way.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(old) = way.take_if(|way| Some(&way.leader) != leader.as_ref()) {
                old.gone.cancel();
            }
        }
    }

    /// A client of the API of another control plane.
    fn dial(&self, api: Endpoint) -> Option<Client> {
        if !matches!(api, Endpoint::Tls(_)) {
            return Some(Client::new(api));
        }
        match public_client_config(self.ca.as_deref()) {
            Ok(config) => Some(Client::public(api, config)),
            Err(error) => {
                tracing::error!(%api, "cannot speak to the leader: {}", chain(&error));
                None
            }
        }
    }

    /// The way to the leader, if there is one and it says where it is.
    fn way(&self) -> Option<Arc<Way>> {
        let mut kept = self.way.lock().unwrap_or_else(PoisonError::into_inner);
        let leader = self.known.borrow().clone()?;
        if let Some(way) = kept.as_ref().filter(|way| way.leader == leader) {
            return Some(Arc::clone(way));
        }
        let way = Arc::new(Way {
            api: self.dial(leader.api.parse().ok()?)?,
            passing_key: HeaderValue::from_str(&leader.passing_key).ok()?,
            gone: self.service.shutdown().child_token(),
            leader,
        });
        if let Some(old) = kept.replace(Arc::clone(&way)) {
            old.gone.cancel();
        }
        Some(way)
    }
}

async fn api(State(front): State<Arc<Front>>, request: Request) -> Response {
    if front.led.get().is_none() && !request.headers().contains_key(PASSED_ON) {
        front.wait_for_a_leader().await;
    }
    if let Some(led) = front.led.get() {
        return answered(led.api.clone(), request).await;
    }
    if request.headers().contains_key(PASSED_ON) {
        return no_leader("the request was passed on to a control plane that does not lead");
    }
    let Some(way) = front.way() else {
        return no_leader("no control plane leads now; another takes over within some seconds");
    };
    let mut more = HeaderMap::from_iter([(PASSED_ON, way.passing_key.clone())]);
    let from = request.extensions().get::<ConnectInfo<SocketAddr>>();
    if let Some(from) = from.and_then(|from| HeaderValue::from_str(&from.0.to_string()).ok()) {
        more.insert(PASSED_ON_FROM, from);
    }
    let passed = way.api.pass_on_request(request, more, &front.service, &way.gone).await;
    passed.unwrap_or_else(|error| {
        let id = &way.leader.id;
        tracing::warn!(id, "cannot pass a request on to the leader: {}", chain(&error));
        no_leader(match error {
            NotPassedOn::NotSent(_) => {
                "the control plane that leads cannot be reached from this one; nothing was changed"
            }
            NotPassedOn::BrokeOff(_) => {
                "the control plane that leads broke off before it answered; what was asked for may \
                 have been done"
            }
        })
    })
}

async fn answered(mut router: Router, request: Request) -> Response {
    // A router fails at nothing: what it cannot do it answers.
    let Ok(answer) = router.call(request).await;
    answer
}

fn no_leader(detail: &str) -> Response {
    let problem = Problem::new(ProblemCode::NoLeader, detail);
    ([(header::RETRY_AFTER, RETRY_AFTER)], Refusal(problem)).into_response()
}

async fn link(
    State(front): State<Arc<Front>>,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Response {
    if let Some(led) = front.led.get() {
        return answered(led.link.clone(), request).await;
    }
    let leader = front.known.borrow().clone();
    let Some(leader) = leader else { return no_leader("no control plane leads now") };
    let detail = "another control plane leads; `leader` says where it listens";
    let mut problem = Problem::new(ProblemCode::NotLeader, detail);
    let elsewhere = leader.locations.as_ref().map(|at| Endpoint::Tls(at.clone()).to_string());
    problem.leader = match peer {
        Peer::Local => Some(leader.link.as_str().into()),
        Peer::Known { .. } | Peer::Dialled(_) | Peer::Stranger => elsewhere.map(Into::into),
    };
    Refusal(problem).into_response()
}

/// The address that a request came from. What one that was passed on says of it is believed to who shows
/// the key.
pub fn came_from(request: &Request, passing_key: Option<&str>) -> Option<SocketAddr> {
    let text =
        |name| request.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let shown = text(PASSED_ON);
    // Hashes, so that the time that this takes says nothing of the key.
    match shown.zip(passing_key).is_some_and(|(shown, key)| sha256(shown) == sha256(key)) {
        true => text(PASSED_ON_FROM).and_then(|from| from.parse().ok()),
        false => request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0),
    }
}
