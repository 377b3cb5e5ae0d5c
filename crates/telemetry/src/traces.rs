//! Traces of starts, by OTLP, for whoever has a collector.
//!
//! A start is told once it is over, from the times that were taken anyway, so it costs the start
//! nothing. Every role tells its part by itself: the ids follow from the instance and the number of
//! its start, so no role hands them to another, and one that was restarted in between gives the same.
//! Rejected: handing a context down with allotments and assignments, which are states that hold for
//! longer than a start and would have to be stored with it.
//!
//! Spans wait in a queue of [`MAX_WAITING`]; when that is full they are dropped and that is logged. A
//! collector that is away costs spans and nothing else.

use std::convert::Infallible;
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use axum::body::Bytes;
use longshore_link::Service;
use opentelemetry::trace::{SpanContext, SpanKind, Status, TraceFlags, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
pub use opentelemetry::{SpanId, TraceId};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// The variables of which one turns traces on; those beside them (`OTEL_EXPORTER_OTLP_HEADERS`,
/// `OTEL_RESOURCE_ATTRIBUTES` and so on) are read as OpenTelemetry says.
pub const VARIABLES: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", VARIABLE];
/// That of them which names the collector for everything.
pub const VARIABLE: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// Spans that wait for the collector.
const MAX_WAITING: usize = 2048;
/// Spans in one message.
const MAX_BATCH: usize = 256;
/// How long the last spans may take once the role ends.
const LAST_EXPORT: Duration = Duration::from_secs(2);

/// Which start of which instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// The trace.
    pub trace: TraceId,
    is_first: bool,
}

impl Start {
    /// The `nth` start of an instance, counted from 0.
    pub fn new(instance: &str, nth: u32) -> Self {
        let digest = Sha256::digest(format!("{instance}/{nth}"));
        let bytes = digest[..16].try_into().expect("a digest has more bytes");
        Self { trace: TraceId::from_bytes(bytes), is_first: nth == 0 }
    }

    /// The id of the span of this name, which is there once.
    pub fn span(&self, name: &str) -> SpanId {
        let digest = Sha256::digest([&self.trace.to_bytes()[..], name.as_bytes()].concat());
        SpanId::from_bytes(digest[..8].try_into().expect("a digest has more bytes"))
    }

    /// The span of the whole start, told by the global plane, below which the parts of the other
    /// roles are. A start after the first is the node's alone.
    pub fn root(&self) -> Option<SpanId> {
        self.is_first.then(|| self.span(ROOT))
    }
}

/// The name of the span of a whole start.
pub const ROOT: &str = "start";

/// A part of a start, with its times by the clock of the role that tells it.
#[derive(Debug, Clone)]
pub struct Span {
    /// What it is a part of.
    pub start: Start,
    /// Its name.
    pub name: &'static str,
    /// What it is below of.
    pub parent: Option<SpanId>,
    /// When it began.
    pub began: SystemTime,
    /// When it ended.
    pub ended: SystemTime,
    /// What else is known of it.
    pub attributes: Vec<(&'static str, String)>,
    /// Why it failed, if it did.
    pub failure: Option<String>,
}

/// Takes spans; cheap to copy, and does nothing where there is no collector.
#[derive(Debug, Clone, Default)]
pub struct Tracer(Option<Arc<Sender>>);

#[derive(Debug)]
struct Sender {
    spans: mpsc::Sender<Span>,
    dropped: AtomicU64,
}

impl Tracer {
    /// A tracer for what the environment says; a task of the role carries the spans away.
    pub fn start(role: &'static str, version: &'static str, service: &Service) -> Self {
        let (tracer, export) = Self::of_environment(role, version);
        if let Some(export) = export {
            service.spawn("traces", export.run(service.shutdown()));
        }
        tracer
    }

    fn of_environment(role: &'static str, version: &'static str) -> (Self, Option<Export>) {
        let is_set = |name: &&str| std::env::var(name).is_ok_and(|value| !value.is_empty());
        if !VARIABLES.iter().any(is_set) {
            return (Self::default(), None);
        }
        match Export::new(role, version) {
            Ok((sender, export)) => (Self(Some(Arc::new(sender))), Some(export)),
            Err(error) => {
                // A platform must run whatever becomes of its traces.
                tracing::error!(%error, "there are no traces: the collector cannot be used");
                (Self::default(), None)
            }
        }
    }

    /// True where there is a collector.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Tells of a span, unless too many wait.
    pub fn tell(&self, span: Span) {
        let Some(sender) = &self.0 else { return };
        if sender.spans.try_send(span).is_err()
            && sender.dropped.fetch_add(1, Ordering::Relaxed).is_multiple_of(1000)
        {
            tracing::warn!("spans are dropped: the collector takes them too slowly or not at all");
        }
    }
}

/// Carries spans to the collector.
#[derive(Debug)]
struct Export {
    spans: mpsc::Receiver<Span>,
    exporter: SpanExporter,
    scope: InstrumentationScope,
}

impl Export {
    fn new(
        role: &'static str,
        version: &'static str,
    ) -> Result<(Sender, Self), Box<dyn std::error::Error + Send + Sync>> {
        let mut exporter =
            SpanExporter::builder().with_http().with_http_client(Http::new()?).build()?;
        exporter.set_resource(
            &Resource::builder()
                .with_service_name(format!("longshore-{role}"))
                .with_attribute(KeyValue::new("service.version", version))
                .build(),
        );
        let (sender, spans) = mpsc::channel(MAX_WAITING);
        let scope = InstrumentationScope::builder("longshore").with_version(version).build();
        let sender = Sender { spans: sender, dropped: AtomicU64::new(0) };
        Ok((sender, Self { spans, exporter, scope }))
    }

    /// Carries until `shutdown`, and then what is left.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), Infallible> {
        let mut batch = Vec::new();
        while shutdown
            .run_until_cancelled(self.spans.recv_many(&mut batch, MAX_BATCH))
            .await
            .is_some_and(|n| n > 0)
        {
            self.export(&mut batch).await;
        }
        while let Ok(span) = self.spans.try_recv() {
            batch.push(span);
        }
        if tokio::time::timeout(LAST_EXPORT, self.export(&mut batch)).await.is_err() {
            tracing::debug!("the last spans did not reach the collector in time");
        }
        Ok(())
    }

    async fn export(&self, batch: &mut Vec<Span>) {
        if batch.is_empty() {
            return;
        }
        let spans = batch.drain(..).map(|span| self.data(span)).collect();
        if let Err(error) = self.exporter.export(spans).await {
            tracing::warn!(%error, "spans did not reach the collector");
        }
    }

    fn data(&self, span: Span) -> SpanData {
        let Span { start, name, parent, began, ended, attributes, failure } = span;
        let attributes =
            attributes.into_iter().map(|(key, value)| KeyValue::new(key, value)).collect();
        SpanData {
            span_context: SpanContext::new(
                start.trace,
                start.span(name),
                TraceFlags::SAMPLED,
                false,
                TraceState::default(),
            ),
            parent_span_id: parent.unwrap_or(SpanId::INVALID),
            parent_span_is_remote: parent.is_some() && parent == start.root(),
            span_kind: SpanKind::Internal,
            name: name.into(),
            start_time: began,
            end_time: ended.max(began),
            attributes,
            dropped_attributes_count: 0,
            events: Default::default(),
            links: Default::default(),
            status: failure.map_or(Status::Ok, Status::error),
            instrumentation_scope: self.scope.clone(),
        }
    }
}

/// The exporter's way to the collector.
#[derive(Debug)]
struct Http(reqwest::Client);

impl Http {
    fn new() -> Result<Self, reqwest::Error> {
        // Only the first call of a process can set it, and all set the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let secure = VARIABLES
            .iter()
            .any(|name| std::env::var(name).is_ok_and(|value| value.starts_with("https")));
        let builder = reqwest::Client::builder().timeout(Duration::from_secs(10));
        // A machine without any CA certificate can still have a collector of its own.
        let builder = if secure { builder } else { builder.tls_certs_only([]) };
        builder.build().map(Self)
    }
}

#[async_trait::async_trait]
impl HttpClient for Http {
    async fn send_bytes(
        &self,
        request: axum::http::Request<Bytes>,
    ) -> Result<axum::http::Response<Bytes>, HttpError> {
        let answer = self.0.execute(request.try_into()?).await?;
        let mut taken = axum::http::Response::builder().status(answer.status());
        if let Some(headers) = taken.headers_mut() {
            headers.clone_from(answer.headers());
        }
        Ok(taken.body(answer.bytes().await?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_follow_from_the_instance_and_the_number_of_its_start() {
        let start = Start::new("web-1", 0);
        assert_eq!(start, Start::new("web-1", 0));
        assert_ne!(start.trace, Start::new("web-1", 1).trace);
        assert_ne!(start.trace, Start::new("web-2", 0).trace);
        assert_ne!(start.span("pull"), start.span("create"));
        assert_eq!(start.root(), Some(start.span(ROOT)));
        assert_eq!(Start::new("web-1", 1).root(), None);
    }

    #[test]
    fn without_a_collector_nothing_is_kept() {
        let tracer = Tracer::default();
        assert!(!tracer.is_on());
        let (began, ended) = (SystemTime::now(), SystemTime::now());
        let start = Start::new("web-1", 0);
        let (parent, attributes, failure) = (None, Vec::new(), None);
        tracer.tell(Span { start, name: ROOT, parent, began, ended, attributes, failure });
    }
}
