//! One endpoint as this ingress sees it, an instance or another location: requests in flight, idle
//! connections, failures.
//!
//! Connections belong to their endpoint and die with it, so an address that the kernel gives to
//! another instance later can never be reached over an old connection. hyper-util's pooled client
//! was rejected: it consumes a request that it could not send, so a body could not be sent to
//! another endpoint when the first one refused the connection.

mod shared;

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::client::conn::http1;
use longshore_api::links::{Endpoint, Reach};
use longshore_types::{AppProtocol, IngressRules, InstanceId, LocationName, NodeName};
use tokio::sync::Notify;
use tokio::time::Instant;

pub(crate) use shared::{Place, SharedConnections};

use crate::balance::{self, Candidate, Outcome, Record, Times, Window};
use crate::elsewhere::{Others, Way};
use crate::proxy::RequestBody;
use crate::router::{App, Router};

/// Idle connections kept per endpoint.
const MAX_IDLE: usize = 64;
/// How long a connection is kept idle. Shorter than the shortest idle limit of common servers (two
/// seconds), so that a request seldom meets a connection that is just being closed. A new one
/// to the same machine costs a tenth of a millisecond.
const MAX_IDLE_TIME: Duration = Duration::from_millis(1500);
/// The same for one that is shared with another location: as long as that one keeps it.
const MAX_IDLE_TIME_ELSEWHERE: Duration = Duration::from_secs(45);
/// How long an endpoint is put aside after a connection failed; doubled at each failure in a row.
const FIRST_ASIDE: Duration = Duration::from_secs(1);
/// How long one request alone tries an endpoint that failed: as long as connecting may take.
const PROBE: Duration = Duration::from_secs(2);
/// The longest time that an endpoint is put aside.
const LAST_ASIDE: Duration = Duration::from_secs(8);

/// A connection over which HTTP/1.1 is spoken.
pub(crate) type Sender = http1::SendRequest<RequestBody>;

/// What makes an endpoint the same one in two tables.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct UpstreamKey(InstanceId, NodeName, SocketAddr, Reach);

impl UpstreamKey {
    pub fn of(endpoint: &Endpoint) -> Self {
        let Endpoint { instance, node, address, protocol: _, reach } = endpoint;
        Self(instance.clone(), node.clone(), *address, reach.clone())
    }
}

/// Who answers at an endpoint.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Site {
    Instance(Endpoint),
    /// An ingress of another location.
    Location(Way),
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Instance(endpoint) => endpoint.instance.fmt(f),
            Self::Location(way) => write!(f, "location {}", way.location),
        }
    }
}

impl Site {
    /// What is spoken there. Another location is asked over connections that many requests share, but for
    /// an upgrade, which HTTP/2 has none of.
    pub fn protocol(&self, is_upgrade: bool) -> AppProtocol {
        match self {
            Self::Instance(endpoint) => endpoint.protocol,
            Self::Location(_) if is_upgrade => AppProtocol::Http1,
            Self::Location(_) => AppProtocol::H2c,
        }
    }
}

/// An endpoint with its state.
#[derive(Debug)]
pub(crate) struct Upstream {
    site: Site,
    outstanding: AtomicUsize,
    /// Told when the last request in flight ended.
    ended: Notify,
    idle: Mutex<IdleConnections>,
    shared: SharedConnections,
    standing: Mutex<Standing>,
    /// When it came into the table.
    since: Instant,
}

#[derive(Debug, Default)]
struct IdleConnections {
    /// The one that was idle longest first.
    connections: Vec<(Instant, Sender)>,
    /// The endpoint left the table: no connection is kept any more.
    retired: bool,
}

/// What is known of it.
#[derive(Debug, Default)]
struct Standing {
    connecting: Failures,
    requests: Record,
}

/// Connections that could not be made.
#[derive(Debug, Default)]
struct Failures {
    in_a_row: u32,
    aside_until: Option<Instant>,
}

impl Upstream {
    pub fn new(site: Site, since: Instant) -> Self {
        Self {
            site,
            outstanding: AtomicUsize::new(0),
            ended: Notify::new(),
            idle: Mutex::default(),
            shared: SharedConnections::default(),
            standing: Mutex::default(),
            since,
        }
    }

    pub fn site(&self) -> &Site {
        &self.site
    }

    /// The instance, where it is one.
    pub fn instance(&self) -> Option<&InstanceId> {
        match &self.site {
            Site::Instance(endpoint) => Some(&endpoint.instance),
            Site::Location(_) => None,
        }
    }

    /// The location, where it is another one.
    pub fn location(&self) -> Option<&LocationName> {
        match &self.site {
            Site::Instance(_) => None,
            Site::Location(way) => Some(&way.location),
        }
    }

    /// True from a connection that could not be made until one was.
    pub fn takes_no_connection(&self) -> bool {
        lock(&self.standing).connecting.in_a_row > 0
    }

    /// Requests and upgraded connections in flight.
    pub fn outstanding(&self) -> usize {
        self.outstanding.load(Ordering::Acquire)
    }

    /// Waits until no request is in flight.
    pub async fn quiet(&self) {
        loop {
            // Made before the look, so that an end in between is not missed.
            let ended = self.ended.notified();
            if self.outstanding() == 0 {
                return;
            }
            ended.await;
        }
    }

    /// What a pick has to know. It is put aside while connections to it failed just now; its slow
    /// start begins when it came into the table and again when it is back from an ejection.
    pub fn candidate(&self, rules: &IngressRules, untried: bool, now: Instant) -> Candidate {
        let standing = lock(&self.standing);
        let out_since = standing.requests.out_since(now).filter(|_| rules.outlier_ejection);
        let began = standing.requests.back_at().map_or(self.since, |back| back.max(self.since));
        let age = now.saturating_duration_since(began);
        Candidate {
            outstanding: self.outstanding(),
            untried,
            aside: standing.connecting.aside_until.is_some_and(|until| now < until),
            out_since,
            weight: balance::weight(age, rules.slow_start.0),
        }
    }

    /// A request that was sent here ended so.
    fn note_outcome(&self, app: &App, outcome: Outcome, times: &Times) {
        let ejected = lock(&self.standing).requests.note(outcome, Instant::now(), times);
        if let Some(time) = ejected {
            app.metrics.ejections.inc();
            self.tell_of_ejection(time, "its requests fail one after the other");
        }
    }

    /// Its requests of the interval that ends now.
    pub fn take_window(&self) -> Window {
        lock(&self.standing).requests.take_window()
    }

    /// It is left out for a while, because of what its siblings do.
    pub fn eject(&self, app: &App, times: &Times) {
        let ejected = lock(&self.standing).requests.eject(Instant::now(), times);
        if let Some(time) = ejected {
            app.metrics.ejections.inc();
            self.tell_of_ejection(time, "its requests fail far more often than its siblings'");
        }
    }

    fn tell_of_ejection(&self, time: Duration, why: &'static str) {
        let (instance, seconds) = (&self.site, time.as_secs());
        tracing::warn!(%instance, seconds, "an instance is left out for a while: {why}");
    }

    /// The endpoint was picked. When it failed before, this request alone tries it: others leave it
    /// aside until the outcome is known.
    pub fn note_picked(&self, now: Instant) {
        let failures = &mut lock(&self.standing).connecting;
        if failures.in_a_row > 0 {
            failures.aside_until = Some(now + PROBE);
        }
    }

    /// A connection could not be made.
    pub fn note_failed(&self, now: Instant) {
        let failures = &mut lock(&self.standing).connecting;
        let doublings = failures.in_a_row.min(8);
        let aside = (FIRST_ASIDE * 2_u32.pow(doublings)).min(LAST_ASIDE);
        failures.in_a_row = failures.in_a_row.saturating_add(1);
        failures.aside_until = Some(now + aside);
    }

    /// A connection was made, or an earlier one is as good as new.
    pub fn note_connected(&self) {
        lock(&self.standing).connecting = Failures::default();
    }

    /// The connection that was used last, when there is one that still lives.
    pub fn take_idle(&self) -> Option<Sender> {
        let now = Instant::now();
        let mut idle = lock(&self.idle);
        while let Some((since, sender)) = idle.connections.pop() {
            if now < since + MAX_IDLE_TIME && sender.is_ready() {
                return Some(sender);
            }
        }
        None
    }

    /// Keeps a connection for a later request, unless there are enough.
    pub fn put_idle(&self, sender: Sender) {
        let mut idle = lock(&self.idle);
        if !idle.retired && idle.connections.len() < MAX_IDLE {
            idle.connections.push((Instant::now(), sender));
        }
    }

    /// Its connections, when it speaks HTTP/2.
    pub fn shared(&self) -> &SharedConnections {
        &self.shared
    }

    /// The endpoint left the table.
    pub fn retire(&self) {
        self.shared.retire();
        let mut idle = lock(&self.idle);
        idle.retired = true;
        idle.connections.clear();
    }

    fn sweep(&self, now: Instant) {
        let keep =
            |entry: &(Instant, Sender)| now < entry.0 + MAX_IDLE_TIME && !entry.1.is_closed();
        lock(&self.idle).connections.retain(keep);
        self.shared.sweep(
            now,
            match self.site {
                Site::Instance(_) => MAX_IDLE_TIME,
                Site::Location(_) => MAX_IDLE_TIME_ELSEWHERE,
            },
        );
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Closes connections that were idle for too long, for ever.
pub(crate) async fn sweep(router: &Router, others: &Others) {
    let mut ticks = tokio::time::interval(MAX_IDLE_TIME / 2);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let now = ticks.tick().await;
        router.upstreams().iter().for_each(|upstream| upstream.sweep(now));
        others.locations().iter().for_each(|location| location.upstream.sweep(now));
    }
}

/// A request that counts as in flight until this is dropped.
#[derive(Debug)]
pub(crate) struct InFlight {
    upstream: Arc<Upstream>,
    app: Arc<App>,
    times: Times,
}

impl InFlight {
    pub fn begin(upstream: &Arc<Upstream>, app: &Arc<App>, times: &Times) -> Self {
        upstream.outstanding.fetch_add(1, Ordering::AcqRel);
        Self { upstream: Arc::clone(upstream), app: Arc::clone(app), times: times.clone() }
    }

    pub fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
    }

    pub fn app(&self) -> &Arc<App> {
        &self.app
    }

    /// How the request ended counts for or against the endpoint. Not to be called when its user
    /// went away, or did not send the rest. Another location is not judged by what one app answers there.
    pub fn note_outcome(&self, outcome: Outcome) {
        if self.app.rules.outlier_ejection && self.upstream.instance().is_some() {
            self.upstream.note_outcome(&self.app, outcome, &self.times);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.upstream.outstanding.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.upstream.ended.notify_waiters();
        }
    }
}
