//! What an ingress tells operators; `docs/metrics.md` says what each means.
//!
//! A request looks nothing up: the metrics of an app are found when a table is put in force, and
//! forgotten when the app has left it. So there are as many as there are apps, whatever strangers ask
//! for.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use longshore_types::{AppName, LocationName, ProjectName};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use longshore_telemetry::metrics::{Registry, Unit, times};
use longshore_telemetry::scrape::{Scrape, at_scrape};
use longshore_trust::PublicCertificates;

use crate::demand::Demand;
use crate::elsewhere::Others;
use crate::fault::Fault;
use crate::router::Router;

/// An app; both empty where there is none.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, EncodeLabelSet)]
pub(crate) struct AppLabels {
    project: String,
    app: String,
}

impl AppLabels {
    pub fn new(project: &ProjectName, app: &AppName) -> Self {
        Self { project: project.to_string(), app: app.to_string() }
    }

    /// The names that they were made of.
    pub fn names(&self) -> (ProjectName, AppName) {
        let project = self.project.parse().expect("it was the name of a project");
        (project, self.app.parse().expect("it was the name of an app"))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    project: String,
    app: String,
    /// The first digit of the status and `xx`.
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refused {
    project: String,
    app: String,
    /// The code of the fault.
    reason: &'static str,
}

/// Where a request that left for another location went.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct To {
    to: String,
}

/// From which location a request came.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct From {
    from: String,
}

const CODES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
/// Within an answer, after its head.
const BROKEN_OFF: &str = "answer-broken-off";

/// The metrics of an ingress.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    answers: Family<Answered, Counter>,
    faults: Family<Refused, Counter>,
    durations: Family<AppLabels, Histogram, fn() -> Histogram>,
    received: Family<AppLabels, Counter>,
    sent: Family<AppLabels, Counter>,
    retries: Family<AppLabels, Counter>,
    ejections: Family<AppLabels, Counter>,
    users: Family<AppLabels, Counter>,
    demand: Demand,
    connections: Gauge,
    passed_on: Family<To, Counter>,
    taken_in: Family<From, Counter>,
    guests_refused: Counter,
    carried: Family<To, Counter>,
    carried_bytes: Family<To, Counter>,
    handshakes_failed: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            answers: Family::default(),
            faults: Family::default(),
            durations: Family::new_with_constructor(times as fn() -> Histogram),
            received: Family::default(),
            sent: Family::default(),
            retries: Family::default(),
            ejections: Family::default(),
            users: Family::default(),
            demand: Demand::default(),
            connections: Gauge::default(),
            passed_on: Family::default(),
            taken_in: Family::default(),
            guests_refused: Counter::default(),
            carried: Family::default(),
            carried_bytes: Family::default(),
            handshakes_failed: Counter::default(),
        }
    }
}

impl Metrics {
    /// Fills a registry with these, and with what is read from the table in force at each scrape.
    pub fn register(&self, registry: &mut Registry, router: Arc<Router>, others: Arc<Others>) {
        let registry = registry.sub_registry_with_prefix("longshore_ingress");
        registry.register(
            "requests",
            "Requests answered by an instance, by the class of the status",
            self.answers.clone(),
        );
        registry.register(
            "faults",
            "Requests that failed otherwise, by the code of the ingress's own answer",
            self.faults.clone(),
        );
        registry.register_with_unit(
            "request_duration",
            "From the head of a request to the last byte of its answer; upgrades to their head",
            Unit::Seconds,
            self.durations.clone(),
        );
        registry.register_with_unit(
            "received",
            "Bodies of requests passed to instances",
            Unit::Bytes,
            self.received.clone(),
        );
        registry.register_with_unit(
            "sent",
            "Bodies of answers passed to users",
            Unit::Bytes,
            self.sent.clone(),
        );
        registry.register(
            "retries",
            "Tries of a request with another instance after one took no connection or refused it",
            self.retries.clone(),
        );
        registry.register(
            "ejections",
            "Times that an instance was left out because its requests failed",
            self.ejections.clone(),
        );
        registry.register(
            "user_requests",
            "Requests of users that came in here, wherever they were answered, if they were",
            self.users.clone(),
        );
        registry.register(
            "connections",
            "Connections of users that are open",
            self.connections.clone(),
        );
        self.register_passing(registry);
        registry.register(
            "handshakes_failed",
            "Connections of users for TLS that came to nothing, as for a name without a certificate",
            self.handshakes_failed.clone(),
        );
        at_scrape(registry, move |scrape| tell_of_table(&router, scrape));
        at_scrape(registry, move |scrape| tell_of_others(&others, scrape));
    }

    /// Those of what goes to other locations, and comes from them.
    fn register_passing(&self, registry: &mut Registry) {
        registry.register(
            "passed_on",
            "Requests that an ingress of another location answered",
            self.passed_on.clone(),
        );
        registry.register(
            "taken_in",
            "Requests that came from ingresses of other locations",
            self.taken_in.clone(),
        );
        registry.register(
            "guests_refused",
            "Connections for other locations of who is none or did not show it",
            self.guests_refused.clone(),
        );
        registry.register(
            "carried",
            "Connections of other locations that were carried to one over what it opened",
            self.carried.clone(),
        );
        registry.register_with_unit(
            "carried",
            "What was carried over them, in both directions",
            Unit::Bytes,
            self.carried_bytes.clone(),
        );
    }

    /// Tells of an app that there is not, so that the documentation can be held against the labels
    /// too: what was never counted is not told at all.
    pub fn invent(&self) {
        self.of_app(&AppLabels::default());
        let _ = self.passed_on.get_or_create(&To { to: String::new() });
        let _ = self.taken_in.get_or_create(&From { from: String::new() });
        let to = To { to: String::new() };
        let _ = self.carried.get_or_create(&to);
        let _ = self.carried_bytes.get_or_create(&to);
    }

    /// Those of an app of the table.
    pub fn of_app(&self, labels: &AppLabels) -> AppMetrics {
        let AppLabels { project, app } = labels.clone();
        let answers = CODES.map(|code| {
            let labels = Answered { project: project.clone(), app: app.clone(), code };
            self.answers.get_or_create_owned(&labels)
        });
        let broken_off = Refused { project, app, reason: BROKEN_OFF };
        let users = self.users.get_or_create_owned(labels);
        self.demand.watch(labels, &users);
        AppMetrics {
            users,
            answers,
            duration: self.durations.get_or_create_owned(labels),
            received: self.received.get_or_create_owned(labels),
            sent: self.sent.get_or_create_owned(labels),
            retries: self.retries.get_or_create_owned(labels),
            ejections: self.ejections.get_or_create_owned(labels),
            broken_off: self.faults.get_or_create_owned(&broken_off),
        }
    }

    /// An app left the table.
    pub fn forget(&self, labels: &AppLabels) {
        let AppLabels { project, app } = labels.clone();
        for code in CODES {
            self.answers.remove(&Answered { project: project.clone(), app: app.clone(), code });
        }
        for reason in Fault::CODES.into_iter().chain([BROKEN_OFF]) {
            self.faults.remove(&Refused { project: project.clone(), app: app.clone(), reason });
        }
        self.durations.remove(labels);
        for family in [&self.received, &self.sent, &self.retries, &self.ejections, &self.users] {
            family.remove(labels);
        }
        self.demand.forget(labels);
    }

    /// What the location is told of the requests of users.
    pub fn demand(&self) -> &Demand {
        &self.demand
    }

    /// A location is none any more.
    pub fn forget_peer(&self, location: &LocationName) {
        self.passed_on.remove(&To { to: location.to_string() });
        self.taken_in.remove(&From { from: location.to_string() });
        self.carried.remove(&To { to: location.to_string() });
        self.carried_bytes.remove(&To { to: location.to_string() });
    }

    /// A connection is carried to a location.
    pub fn note_carried(&self, to: &LocationName) -> CarriedMetrics {
        let to = To { to: to.to_string() };
        self.carried.get_or_create(&to).inc();
        CarriedMetrics { bytes: self.carried_bytes.get_or_create_owned(&to) }
    }

    /// Another location answered a request.
    pub fn note_passed_on(&self, to: &LocationName) {
        self.passed_on.get_or_create(&To { to: to.to_string() }).inc();
    }

    /// A request came from another location.
    pub fn note_taken_in(&self, from: &LocationName) {
        self.taken_in.get_or_create(&From { from: from.to_string() }).inc();
    }

    /// Somebody was not let in where other locations are.
    pub fn note_guest_refused(&self) {
        self.guests_refused.inc();
    }

    /// A user who wanted to speak TLS does not.
    pub fn note_handshake_failed(&self) {
        self.handshakes_failed.inc();
    }

    /// A connection of a user is open until this is dropped.
    pub fn connection(&self) -> OpenConnection {
        self.connections.inc();
        OpenConnection(self.connections.clone())
    }

    /// The ingress answered by itself; for which app, where there is one.
    pub fn note_fault(&self, labels: Option<&AppLabels>, fault: &Fault) {
        let AppLabels { project, app } = labels.cloned().unwrap_or_default();
        self.faults.get_or_create(&Refused { project, app, reason: fault.code() }).inc();
    }
}

/// The metrics of what is carried to a location, found.
#[derive(Debug, Clone)]
pub(crate) struct CarriedMetrics {
    pub bytes: Counter,
}

/// The metrics of an app, found.
#[derive(Debug, Clone)]
pub(crate) struct AppMetrics {
    answers: [Counter; CODES.len()],
    pub duration: Histogram,
    pub received: Counter,
    pub sent: Counter,
    pub retries: Counter,
    pub ejections: Counter,
    /// Requests that came from users.
    pub users: Counter,
    /// An answer ended before its end.
    pub broken_off: Counter,
}

impl AppMetrics {
    /// An instance answered with this.
    pub fn note_answer(&self, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100);
        if let Some(counter) = class.checked_sub(1).and_then(|idx| self.answers.get(idx)) {
            counter.inc();
        }
    }
}

/// A connection of a user.
#[derive(Debug)]
pub(crate) struct OpenConnection(Gauge);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Measures an exchange until it is dropped.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    began: Instant,
    duration: Histogram,
}

impl Stopwatch {
    pub fn start(began: Instant, metrics: &AppMetrics) -> Self {
        Self { began, duration: metrics.duration.clone() }
    }
}

impl Drop for Stopwatch {
    fn drop(&mut self) {
        self.duration.observe(self.began.elapsed().as_secs_f64());
    }
}

/// What is read from the table at each scrape.
fn tell_of_table(router: &Router, scrape: &mut Scrape<'_>) -> fmt::Result {
    let census = router.census();
    let mut column = |name, help, value: fn(&Census) -> usize| {
        let values = census.apps.iter().map(|one| (one.labels.clone(), value(one) as f64));
        scrape.gauges(name, help, values)
    };
    column("endpoints", "Instances that requests may go to", |one| one.endpoints)?;
    let help = "Those of them that are left out for their failures";
    column("endpoints_left_out", help, |one| one.left_out)?;
    let help = "Requests and upgraded connections under way";
    column("requests_in_flight", help, |one| one.in_flight)?;
    let help = "The revision of the routing table in force";
    scrape.gauge("routes_revision", help, census.revision as f64)
}

/// What is read of other locations at each scrape.
fn tell_of_others(others: &Others, scrape: &mut Scrape<'_>) -> fmt::Result {
    let census = others.census();
    let to = |one: &PeerCensus| To { to: one.to.to_string() };
    let measured = census.iter().filter_map(|one| Some((to(one), one.round_trip?.as_secs_f64())));
    let help = "The smoothed round trip to the ingress of another location, once it was measured";
    scrape.gauges("elsewhere_round_trip_seconds", help, measured)?;
    let in_flight = census.iter().map(|one| (to(one), one.in_flight as f64));
    let help = "Requests and upgraded connections under way that another location answers";
    scrape.gauges("elsewhere_requests_in_flight", help, in_flight)?;
    let reached = census.iter().map(|one| (to(one), f64::from(u8::from(!one.passed_over))));
    let help = "0 while another location takes no connection";
    scrape.gauges("elsewhere_reached", help, reached)?;
    let relayed = census.iter().map(|one| (to(one), f64::from(u8::from(one.relayed))));
    let help =
        "1 while another location is reached over connections that it opened, here or to a relay";
    scrape.gauges("elsewhere_relayed", help, relayed)
}

/// A certificate, by the first of its names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Certificate {
    name: String,
}

/// Fills a registry with when the certificates for users end.
pub(crate) fn register_certificates(
    registry: &mut Registry,
    certificates: Arc<PublicCertificates>,
) {
    let registry = registry.sub_registry_with_prefix("longshore_ingress");
    at_scrape(registry, move |scrape| {
        let all = certificates.all();
        tell_of_certificates(
            scrape,
            all.iter().map(|one| {
                let name = one.names().first().cloned().unwrap_or_default();
                (name, one.expires_at().0 as f64 / 1000.0)
            }),
        )
    });
}

/// The same with one that there is not.
pub(crate) fn describe_certificates(registry: &mut Registry) {
    let registry = registry.sub_registry_with_prefix("longshore_ingress");
    at_scrape(registry, |scrape| tell_of_certificates(scrape, [(String::new(), 0.0)]));
}

fn tell_of_certificates(
    scrape: &mut Scrape<'_>,
    certificates: impl IntoIterator<Item = (String, f64)>,
) -> fmt::Result {
    let certificates = certificates.into_iter().map(|(name, end)| (Certificate { name }, end));
    let help = "When a certificate for users ends, in seconds since 1970";
    scrape.gauges("certificate_expires_seconds", help, certificates)
}

/// How the way to another location is.
#[derive(Debug)]
pub(crate) struct PeerCensus {
    pub to: LocationName,
    pub round_trip: Option<Duration>,
    pub in_flight: usize,
    pub passed_over: bool,
    pub relayed: bool,
}

/// How the table stands.
#[derive(Debug, Default)]
pub(crate) struct TableCensus {
    pub revision: u64,
    pub apps: Vec<Census>,
}

/// How an app stands.
#[derive(Debug)]
pub(crate) struct Census {
    pub labels: AppLabels,
    pub endpoints: usize,
    pub left_out: usize,
    pub in_flight: usize,
}
