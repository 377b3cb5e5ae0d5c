//! One request from its head to the last byte of its answer.
//!
//! A request is sent to another endpoint only when nothing of it was sent: no connection could be
//! made, or hyper hands the request back untouched because the connection was found dead before.
//! Whatever may have reached an instance is never sent twice, save a safe request without a body
//! over a connection that had been idle: a server that closes such a connection while a request is
//! on its way (a worker that ends, a limit on idle time) means no answer, and the request goes again
//! over a new connection to the same instance. Once: a new connection that ends is an answer. Over
//! HTTP/2 an instance may say that it did nothing for a request (`REFUSED_STREAM`), which then goes
//! to another one if it has no body.
//!
//! A request for which there is nobody here goes to another location (`crate::elsewhere`), by the same rule: to the
//! next one when it was not sent, or when the other says that no instance had it and what was sent of it is kept
//! (`held`).

mod attempt;
mod body;
mod dial;
mod elsewhere;
mod grpc;
mod headers;
mod held;
mod judge;
mod lease;
mod upgrade;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use longshore_types::{InstanceId, LocationName};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use body::{Answer, RequestBody};

use crate::balance::Outcome;
use crate::elsewhere::{Came, Others};
use crate::fault::{self, Fault};
use crate::gate::{Gates, NodeGate};
use crate::limits::Limits;
use crate::metrics::{AppLabels, Metrics, Stopwatch};
use crate::router::{NoPick, Router};
use crate::secure::Redirect;
use crate::server::Activity;
use crate::upstream::{InFlight, Site};
use attempt::Failed;
use body::{InstanceAnswer, Progress};
use dial::Dialler;
use elsewhere::PassedOn;
use headers::{Target, User};
use lease::{Connection, Lease, Seat};
use upgrade::Offer;

/// The connection that a request came over.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    /// The user's address; none over a Unix socket and from another location.
    pub client: Option<IpAddr>,
    /// Whether it is by TLS.
    pub is_secure: bool,
    /// The location whose ingress sends it; none for a user.
    pub from: Option<LocationName>,
    /// How that came.
    pub came: Came,
    pub activity: Arc<Activity>,
}

/// Passes requests to instances.
#[derive(Debug)]
pub(crate) struct Proxy {
    router: Arc<Router>,
    others: Arc<Others>,
    dialler: Dialler,
    redirect: Option<Redirect>,
    limits: Limits,
    seats: Arc<Semaphore>,
    metrics: Metrics,
    tunnels: TaskTracker,
    end: CancellationToken,
}

impl Proxy {
    pub fn new(
        (router, others): (Arc<Router>, Arc<Others>),
        (gate, own, redirect): (Arc<dyn NodeGate>, Arc<Gates>, Option<Redirect>),
        limits: Limits,
        metrics: Metrics,
    ) -> Arc<Self> {
        let end = CancellationToken::new();
        Arc::new(Self {
            dialler: Dialler::new(gate, (own, Arc::clone(&others)), &limits, end.clone()),
            router,
            others,
            redirect,
            seats: Arc::new(Semaphore::new(limits.requests)),
            limits,
            metrics,
            tunnels: TaskTracker::new(),
            end,
        })
    }

    /// What is told of the requests.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Waits until no upgraded connection is left. To be called after the last request.
    pub async fn tunnels_ended(&self) {
        self.tunnels.close();
        self.tunnels.wait().await;
    }

    /// Closes every connection to instances, and the upgraded ones of users.
    pub async fn end(&self) {
        self.end.cancel();
        self.tunnels_ended().await;
        self.dialler.ended().await;
    }

    /// Answers a request. Dropped when its user goes away, which closes the instance's connection.
    pub async fn answer(
        &self,
        mut request: Request<Incoming>,
        origin: Origin,
    ) -> Result<Response<Answer>, Infallible> {
        let from = origin.from.clone();
        if from.is_some()
            && let Some(answer) = self.answer_probe(&request)
        {
            return Ok(answer);
        }
        let is_call = grpc::is_call(request.headers());
        let as_html = fault::prefers_html(request.headers());
        let id = headers::ensure_request_id(request.headers_mut());
        let target = match *request.method() {
            Method::CONNECT => Err(Fault::Tunnel),
            _ => Target::of(&request),
        };
        if let (Ok(target), Some(redirect), false) = (&target, &self.redirect, origin.is_secure)
            && self.labels(&target.host).is_some()
            && let Some(mut answer) = redirect.answer(&target.host, request.uri())
        {
            answer.headers_mut().insert(headers::REQUEST_ID, id);
            return Ok(answer.map(Answer::Own));
        }
        let forwarded = match &target {
            Ok(target) => self.forward(request, target, origin, &id).await,
            Err(fault) => Err(fault.clone()),
        };
        let fault = match forwarded {
            Ok(answer) => return Ok(answer),
            Err(fault) => fault,
        };
        let labels = target.ok().and_then(|target| self.labels(&target.host));
        if let (None, Some(labels)) = (&from, &labels) {
            self.metrics.of_app(labels).users.inc();
        }
        self.metrics.note_fault(labels.as_ref(), &fault);
        tracing::debug!(code = fault.code(), request_id = ?id, "answered a request itself");
        let answer = match is_call {
            true => grpc::answer(&fault),
            false => fault.answer(as_html),
        };
        let mut answer = answer.map(Answer::Own);
        answer.headers_mut().insert(headers::REQUEST_ID, id);
        if from.is_some() {
            elsewhere::mark_refused(&mut answer, &fault);
        }
        Ok(answer)
    }

    /// By what the app of a host is known.
    fn labels(&self, host: &str) -> Option<AppLabels> {
        let own = self.router.app(host).map(|app| app.labels.clone());
        let elsewhere = || self.others.app(host).map(|app| AppLabels::new(&app.project, &app.app));
        own.or_else(elsewhere)
    }

    async fn forward(
        &self,
        mut request: Request<Incoming>,
        target: &Target,
        origin: Origin,
        id: &HeaderValue,
    ) -> Result<Response<Answer>, Fault> {
        let began = std::time::Instant::now();
        let mut busy = origin.activity.begin();
        let seats = Arc::clone(&self.seats);
        let permit = seats.try_acquire_owned().map_err(|_| Fault::Overloaded)?;

        let offer = Offer::of(&mut request);
        let (mut head, body) = request.into_parts();
        let protocol = offer.as_ref().map(|offer| &offer.protocol);
        let user = match &origin.from {
            Some(location) => {
                self.metrics.note_taken_in(location);
                User::AsTold
            }
            None => User::At { address: origin.client, is_secure: origin.is_secure },
        };
        headers::to_instance(&mut head, target, user, protocol);
        let silence = match grpc::is_call(&head.headers) {
            // The caller's own deadline bounds it, which the instance is told.
            true => {
                busy.wait_patiently();
                None
            }
            false => Some(self.limits.silence),
        };
        let Origin { client: _, is_secure: _, from, came: _, activity } = origin;
        let progress = Arc::new(Progress::new(activity, silence));
        let body = RequestBody::new(body, Arc::clone(&progress));
        let request = Request::from_parts(head, body);
        let Exchange { answer, connection, in_flight } =
            self.exchange(request, (&target.host, from.as_ref()), &progress, id).await?;

        let metrics = &in_flight.app().metrics;
        metrics.note_answer(answer.status());
        if from.is_none() {
            metrics.users.inc();
        }
        let stopwatch = Some(Stopwatch::start(began, metrics));
        let mut seat = Seat { in_flight, stopwatch, _permit: permit, _busy: busy };
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            // An instance that switches without having been asked to speaks no HTTP.
            let Some(offer) = offer else {
                seat.in_flight.note_outcome(Outcome::Failed);
                return Err(Fault::Broken);
            };
            seat.in_flight.note_outcome(Outcome::Answered);
            seat.stopwatch = None;
            let (answer, tunnel) = offer.accept(answer, seat, self.end.clone());
            self.tunnels.spawn(tunnel);
            return Ok(answer);
        }
        let tasks = self.dialler.tasks();
        let outcome = judge::of_head(&answer);
        let lease = Lease { connection, seat, outcome, request_id: id.clone(), tasks };
        let (mut head, body) = answer.into_parts();
        headers::to_user(&mut head.headers);
        let mut answer =
            Response::new(Answer::Instance(Box::new(InstanceAnswer::new(body, progress, lease))));
        *answer.status_mut() = head.status;
        *answer.headers_mut() = head.headers;
        Ok(answer)
    }

    /// Who gets a request next: an instance here, else another location, else an instance that took no
    /// connection just now. What comes from another location is for instances here alone.
    fn pick(
        &self,
        host: &str,
        from: Option<&LocationName>,
        tried: &Tried,
    ) -> Result<InFlight, Fault> {
        if let Ok(sound) = self.router.pick_sound(host, &tried.instances) {
            return Ok(sound);
        }
        if from.is_none()
            && let Some(elsewhere) = self.others.pick(host, &tried.locations)
        {
            return Ok(elsewhere);
        }
        self.router.pick(host, &tried.instances).map_err(|why| match (why, self.others.app(host)) {
            (NoPick::NoEndpoint(_), _) if !tried.instances.is_empty() => Fault::Unreachable,
            (NoPick::NoEndpoint(app), _) => Fault::NoInstance(app),
            (_, Some(app)) if from.is_none() => Fault::NoInstance(app.app),
            (NoPick::NoTable, _) => Fault::NoRoutes,
            (NoPick::UnknownHost, _) => Fault::UnknownHost(host.to_owned()),
        })
    }

    /// Tries endpoints until one has the request.
    async fn exchange(
        &self,
        mut request: Request<RequestBody>,
        (host, from): (&str, Option<&LocationName>),
        progress: &Progress,
        id: &HeaderValue,
    ) -> Result<Exchange, Fault> {
        // Bounds the wait, not the tries: endpoints that refuse at once cost nothing.
        let last_try = Instant::now() + 2 * self.limits.connect;
        let mut tried = Tried::default();
        loop {
            let in_flight = self.pick(host, from, &tried)?;
            progress.count_received(&in_flight.app().metrics.received);
            let upstream = in_flight.upstream();
            let passed_on = match upstream.location() {
                Some(to) => {
                    let passed_on;
                    (request, passed_on) = PassedOn::of(request);
                    Some((to, passed_on))
                }
                None => None,
            };
            match self.attempt(upstream, request, progress).await {
                Ok((answer, connection)) => {
                    let Some((to, passed_on)) = passed_on else {
                        return Ok(Exchange { answer, connection, in_flight });
                    };
                    request = match passed_on.refused(&answer, in_flight.app().name()) {
                        None => {
                            self.metrics.note_passed_on(to);
                            return Ok(Exchange { answer, connection, in_flight });
                        }
                        Some(refusal) => {
                            self.others.note_refused(host, to);
                            refusal?
                        }
                    };
                    tried.add(upstream.site());
                }
                Err(Failed::NotSent(unsent)) if Instant::now() < last_try => {
                    in_flight.app().metrics.retries.inc();
                    tried.add(upstream.site());
                    request = *unsent;
                }
                Err(Failed::NotSent(_)) => return Err(Fault::Unreachable),
                Err(failed) => {
                    let fault = match failed {
                        Failed::Sent(fault) => fault,
                        Failed::Closed | Failed::Refused | Failed::NotSent(_) => Fault::Broken,
                    };
                    if fault != Fault::ClientSilent {
                        in_flight.note_outcome(Outcome::Failed);
                    }
                    let instance = upstream.site();
                    tracing::debug!(code = fault.code(), %instance, request_id = ?id, "no answer");
                    return Err(fault);
                }
            }
        }
    }
}

/// Who did not take a request.
#[derive(Debug, Default)]
struct Tried {
    instances: BTreeSet<InstanceId>,
    locations: BTreeSet<LocationName>,
}

impl Tried {
    fn add(&mut self, site: &Site) {
        match site {
            Site::Instance(endpoint) => _ = self.instances.insert(endpoint.instance.clone()),
            Site::Location(way) => _ = self.locations.insert(way.location.clone()),
        }
    }
}

/// A request that an instance has begun to answer.
struct Exchange {
    answer: Response<Incoming>,
    connection: Connection,
    in_flight: InFlight,
}
