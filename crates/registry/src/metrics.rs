//! What a registry tells operators; `docs/metrics.md` says what each means.

use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use longshore_telemetry::counted::Bodies;
use longshore_telemetry::metrics::{Registry, Unit, long_times};
use longshore_telemetry::requests::Requests;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::refusal::Refusal;
use crate::route::{Route, Target};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfUpstream {
    upstream: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Wanted {
    upstream: String,
    what: &'static str,
    outcome: &'static str,
}

/// The metrics of a registry.
#[derive(Debug, Clone)]
pub struct Metrics {
    requests: Requests,
    bodies: Bodies,
    pub(crate) converter: ConverterMetrics,
    pub(crate) upstreams: UpstreamMetrics,
}

/// Those of what it makes of layers.
#[derive(Debug, Clone)]
pub(crate) struct ConverterMetrics {
    conversions: Family<Ended, Counter>,
    read: Counter,
    written: Counter,
    durations: Histogram,
    /// Images that wait to be looked at.
    pub(crate) waiting: Gauge,
    checks: Family<Ended, Counter>,
}

/// How the conversion of a layer ended.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Conversion {
    Done,
    Refused,
    Failed,
}

impl Conversion {
    const ALL: [Self; 3] = [Self::Done, Self::Refused, Self::Failed];

    fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// How a converted layer was found.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Check {
    Same,
    Damaged,
    Different,
    OriginalDamaged,
    Failed,
}

impl Check {
    const ALL: [Self; 5] =
        [Self::Same, Self::Damaged, Self::Different, Self::OriginalDamaged, Self::Failed];

    fn as_str(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Damaged => "damaged",
            Self::Different => "different",
            Self::OriginalDamaged => "original_damaged",
            Self::Failed => "failed",
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let (requests, bodies) = (Requests::new(kind), Bodies::default());
        let (converter, upstreams) = (ConverterMetrics::default(), UpstreamMetrics::default());
        Self { requests, bodies, converter, upstreams }
    }
}

impl Default for ConverterMetrics {
    fn default() -> Self {
        let (conversions, checks) = (Family::default(), Family::default());
        // They are told from the beginning, so that the first of each is a change.
        let tell = |family: &Family<Ended, Counter>, outcome| {
            drop(family.get_or_create(&Ended { outcome }));
        };
        Conversion::ALL.iter().for_each(|how| tell(&conversions, how.as_str()));
        Check::ALL.iter().for_each(|how| tell(&checks, how.as_str()));
        Self {
            conversions,
            read: Counter::default(),
            written: Counter::default(),
            durations: long_times(),
            waiting: Gauge::default(),
            checks,
        }
    }
}

impl ConverterMetrics {
    /// A conversion ended.
    pub(crate) fn ended(&self, how: Conversion) {
        self.conversions.get_or_create(&Ended { outcome: how.as_str() }).inc();
    }

    /// One was done, of so many bytes into so many.
    pub(crate) fn converted(&self, read: u64, written: u64, took: Duration) {
        self.ended(Conversion::Done);
        self.read.inc_by(read);
        self.written.inc_by(written);
        self.durations.observe(took.as_secs_f64());
    }

    /// A converted layer was checked.
    pub(crate) fn checked(&self, how: Check) {
        self.checks.get_or_create(&Ended { outcome: how.as_str() }).inc();
    }

    fn register(&self, registry: &mut Registry) {
        let help = "Layers that the converter took up, by how that ended";
        registry.register("conversions", help, self.conversions.clone());
        let help = "Layers that were converted, as they were pushed";
        registry.register_with_unit("conversion_read", help, Unit::Bytes, self.read.clone());
        let help = "What they became";
        registry.register_with_unit("conversion_written", help, Unit::Bytes, self.written.clone());
        let help = "The conversion of one layer";
        let durations = self.durations.clone();
        registry.register_with_unit("conversion_duration", help, Unit::Seconds, durations);
        let help = "Images that the converter has yet to look at";
        registry.register("conversion_queue_images", help, self.waiting.clone());
        let help = "Converted layers that were converted again and compared, by what was found";
        registry.register("conversion_checks", help, self.checks.clone());
    }
}

/// Those of other registries whose images this one gives.
#[derive(Debug, Clone, Default)]
pub(crate) struct UpstreamMetrics {
    wanted: Family<Wanted, Counter>,
    fetched: Family<OfUpstream, Counter>,
}

/// What was wanted of an upstream.
#[derive(Debug, Clone, Copy)]
pub(crate) enum What {
    Manifest,
    Blob,
}

impl What {
    const ALL: [Self; 2] = [Self::Manifest, Self::Blob];

    fn as_str(self) -> &'static str {
        match self {
            Self::Manifest => "manifest",
            Self::Blob => "blob",
        }
    }
}

/// Where it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Given {
    /// From here.
    Here,
    /// From the upstream.
    Fetched,
    /// From here, because the upstream does not say what a tag names now.
    Last,
    /// From nowhere: the upstream has it not, or not for us.
    Refused,
    /// From nowhere: the upstream is away, or what it gave is wrong.
    Failed,
}

impl Given {
    const ALL: [Self; 5] = [Self::Here, Self::Fetched, Self::Last, Self::Refused, Self::Failed];

    /// What became of something that is not given.
    pub(crate) fn not(refusal: &Refusal) -> Self {
        if refusal.is_servers() { Self::Failed } else { Self::Refused }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Here => "here",
            Self::Fetched => "fetched",
            Self::Last => "last",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

impl UpstreamMetrics {
    /// Tells of an upstream from the beginning.
    pub(crate) fn begin(&self, upstream: &str) {
        drop(self.fetched.get_or_create(&OfUpstream { upstream: upstream.to_owned() }));
        for (what, given) in What::ALL.iter().flat_map(|what| Given::ALL.map(|given| (what, given)))
        {
            drop(self.wanted.get_or_create(&Wanted::new(upstream, *what, given)));
        }
    }

    /// Something was given, or was not.
    pub(crate) fn gave(&self, upstream: &str, what: What, given: Given) {
        self.wanted.get_or_create(&Wanted::new(upstream, what, given)).inc();
    }

    /// So many bytes of blobs came.
    pub(crate) fn came(&self, upstream: &str, n_bytes: u64) {
        self.fetched.get_or_create(&OfUpstream { upstream: upstream.to_owned() }).inc_by(n_bytes);
    }

    fn register(&self, registry: &mut Registry) {
        let help = "What was wanted of another registry, by where it came from";
        registry.register("upstream_requests", help, self.wanted.clone());
        let help = "Bytes of blobs that came from another registry";
        registry.register_with_unit("upstream_fetched", help, Unit::Bytes, self.fetched.clone());
    }
}

impl Wanted {
    fn new(upstream: &str, what: What, given: Given) -> Self {
        Self { upstream: upstream.to_owned(), what: what.as_str(), outcome: given.as_str() }
    }
}

impl Metrics {
    /// Fills a registry of metrics with these.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("longshore_registry");
        self.requests.register(registry);
        let help = "Bodies of requests: what is pushed";
        registry.register_with_unit("received", help, Unit::Bytes, self.bodies.received.clone());
        let help = "Bodies of answers: what is pulled";
        registry.register_with_unit("sent", help, Unit::Bytes, self.bodies.sent.clone());
        self.converter.register(registry);
        self.upstreams.register(registry);
    }

    /// The router with its requests told of.
    pub fn measure(self, router: Router) -> Router {
        self.requests.measure(self.bodies.measure(router))
    }
}

/// What a request is about, without the names in it.
fn kind(request: &Request) -> String {
    let kind = match Route::parse(request.uri().path()) {
        Ok(Route::Base) => "base",
        Ok(Route::Token) => "token",
        Ok(Route::Catalog) => "catalog",
        Ok(Route::Garbage) => "garbage",
        Ok(Route::Converted(_)) => "converted",
        Ok(Route::Retention(_)) => "retention",
        Ok(Route::Kept(_)) => "kept",
        Ok(Route::In(_, Target::Tags)) => "tags",
        Ok(Route::In(_, Target::Referrers(_))) => "referrers",
        Ok(Route::In(_, Target::Manifest(_))) => "manifest",
        Ok(Route::In(_, Target::Blob(_))) => "blob",
        Ok(Route::In(_, Target::Uploads | Target::Upload(_))) => "upload",
        Err(_) => "none",
    };
    kind.to_owned()
}

/// A registry of metrics as a registry of images fills it, to hold against the documentation.
pub fn described() -> Registry {
    let mut registry = registry();
    let metrics = Metrics::default();
    metrics.requests.invent();
    // What was never counted is not told, and these names are not known before.
    metrics.upstreams.begin("docker.io");
    metrics.register(&mut registry);
    registry
}

/// A registry of metrics with what every role tells.
pub fn registry() -> Registry {
    longshore_telemetry::metrics::registry("registry", env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    #[test]
    fn requests_are_told_apart_by_what_they_are_about() {
        for (path, expected) in [
            ("/v2/", "base"),
            ("/token", "token"),
            ("/v2/_catalog", "catalog"),
            ("/v2/_longshore/retention/a/b", "retention"),
            ("/v2/_longshore/converted/a/b", "converted"),
            ("/v2/_longshore/kept/a/b", "kept"),
            ("/v2/a/b/tags/list", "tags"),
            ("/v2/a/b/manifests/latest", "manifest"),
            ("/v2/a/b/blobs/uploads/", "upload"),
            ("/metrics", "none"),
        ] {
            let request = Request::get(path).body(Body::empty()).unwrap();
            assert_eq!(kind(&request), expected, "{path}");
        }
    }
}
