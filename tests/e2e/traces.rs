//! Traces of starts, as a collector gets them.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use longshore_e2e::{Platform, UpOptions, eventually};
use longshore_types::InstancePhase;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as AnyValue;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message as _;
use serde_json::json;

use crate::scene::{busybox, but, script, web};

/// A span with the service that told it.
#[derive(Debug, Clone)]
struct Told {
    service: String,
    span: Span,
}

impl Told {
    fn attribute(&self, key: &str) -> Option<String> {
        let found = self.span.attributes.iter().find(|attribute| attribute.key == key)?;
        text(found.value.clone()?.value?)
    }

    fn failed(&self) -> Option<&str> {
        let status = self.span.status.as_ref()?;
        (status.code == StatusCode::Error as i32).then_some(&status.message)
    }
}

fn text(value: AnyValue) -> Option<String> {
    match value {
        AnyValue::StringValue(text) => Some(text),
        _ => None,
    }
}

/// A collector that takes OTLP over HTTP and keeps the spans.
struct Collector {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<Told>>>,
}

impl Collector {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let spans = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&spans);
        // They end with the process of the test.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let kept = Arc::clone(&kept);
                std::thread::spawn(move || serve(&stream.unwrap(), &kept));
            }
        });
        Self { address, spans }
    }

    /// The spans of the start of an instance by name, once all of these are there.
    fn start_of(&self, instance: &str, names: &[&str]) -> BTreeMap<String, Told> {
        eventually("the trace is whole", || {
            let all = self.spans.lock().unwrap().clone();
            let is_its =
                |told: &&Told| told.attribute("longshore.instance").as_deref() == Some(instance);
            let Some(trace) = all.iter().find(is_its).map(|told| told.span.trace_id.clone()) else {
                return Ok(None);
            };
            let of_trace = all.into_iter().filter(|told| told.span.trace_id == trace);
            let spans: BTreeMap<_, _> =
                of_trace.map(|told| (told.span.name.clone(), told)).collect();
            let whole = names.iter().all(|name| spans.contains_key(*name));
            Ok(whole.then_some(spans))
        })
        .unwrap()
    }
}

/// Takes the messages of a connection. Anything unexpected panics, and the test then waits in vain.
fn serve(stream: &TcpStream, kept: &Mutex<Vec<Told>>) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if line == "\r\n" {
                break;
            }
            head.push(line.trim().to_ascii_lowercase());
        }
        assert_eq!(head[0], "post /v1/traces http/1.1");
        assert!(head.contains(&"content-type: application/x-protobuf".to_owned()), "{head:?}");
        let length = head.iter().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        reader.read_exact(&mut body).unwrap();
        keep(&ExportTraceServiceRequest::decode(&body[..]).unwrap(), kept);
        let answer =
            b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
        (&*stream).write_all(answer).unwrap();
    }
}

fn keep(message: &ExportTraceServiceRequest, kept: &Mutex<Vec<Told>>) {
    for of_resource in &message.resource_spans {
        let attributes = &of_resource.resource.as_ref().unwrap().attributes;
        let name = attributes.iter().find(|one| one.key == "service.name").unwrap();
        let service = text(name.value.clone().unwrap().value.unwrap()).unwrap();
        let spans = of_resource.scope_spans.iter().flat_map(|scope| &scope.spans);
        let told = spans.map(|span| Told { service: service.clone(), span: span.clone() });
        kept.lock().unwrap().extend(told);
    }
}

/// Checks that a span is below another, and not outside of it by more than the clocks can tell.
#[track_caller]
fn is_below(spans: &BTreeMap<String, Told>, child: &str, parent: &str) {
    /// Times of users of the API have a millisecond.
    const TICK: u64 = 1_000_000;
    let (child, parent) = (&spans[child].span, &spans[parent].span);
    assert_eq!(child.parent_span_id, parent.span_id, "{} below {}", child.name, parent.name);
    assert!(child.start_time_unix_nano <= child.end_time_unix_nano);
    assert!(
        child.start_time_unix_nano + TICK >= parent.start_time_unix_nano,
        "{child:?} {parent:?}"
    );
    assert!(child.end_time_unix_nano <= parent.end_time_unix_nano + TICK, "{child:?} {parent:?}");
}

#[test]
fn a_start_is_a_trace_through_all_roles() {
    let collector = Collector::start();
    let config = format!("otlp_endpoint = \"http://{}\"\n", collector.address);
    let platform = Platform::start_with(&UpOptions { config, ..Default::default() }).unwrap();
    platform.push(&busybox(&platform, "one"), "default/web:1").unwrap();
    platform.deploy(&web("web", 1)).unwrap();
    let instance = platform.instances("web").unwrap().remove(0).id().to_string();

    let stages = ["pull", "unpack", "network", "mount", "create", "ready"];
    let names = [&["start", "schedule", "node"], &stages[..]].concat();
    let spans = collector.start_of(&instance, &names);
    assert_eq!(spans.len(), names.len(), "{:?}", spans.keys());
    assert!(spans["start"].span.parent_span_id.is_empty());
    is_below(&spans, "schedule", "start");
    is_below(&spans, "node", "start");
    for stage in ["pull", "network", "mount", "create", "ready"] {
        is_below(&spans, stage, "node");
    }
    is_below(&spans, "unpack", "pull");
    let begins = |name: &str| spans[name].span.start_time_unix_nano;
    let in_order = ["pull", "network", "mount", "create", "ready"].map(begins);
    assert!(in_order.is_sorted(), "{in_order:?}");
    for (name, role) in [("start", "global"), ("schedule", "location"), ("node", "node")] {
        assert_eq!(spans[name].service, format!("longshore-{role}"));
    }
    let root = &spans["start"];
    let attributes =
        ["app", "location", "release"].map(|key| root.attribute(&format!("longshore.{key}")));
    assert_eq!(attributes.map(Option::unwrap), ["web", "local", "r1"]);
    assert_eq!(spans["node"].attribute("longshore.path").as_deref(), Some("pulled"));
    assert!(spans.values().all(|told| told.failed().is_none()));

    // One that ends before it is ready is a trace too, and says why.
    let check = json!({"port": 9, "health": {"port": 9}, "restart": "never"});
    platform.deploy_only(&but(script("fails", "exit 3"), &check)).unwrap();
    let failed = platform
        .wait_for_instance("fails", "has ended", |one| one.observed.phase == InstancePhase::Exited)
        .unwrap();
    let spans = collector.start_of(failed.id().as_str(), &["start", "schedule", "node", "create"]);
    assert!(!spans.contains_key("ready"));
    for name in ["start", "node"] {
        assert_eq!(spans[name].failed(), Some("exited with code 3"), "{name}");
    }
    is_below(&spans, "node", "start");
    platform.finish();
}

#[test]
fn a_collector_that_is_not_there_disturbs_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let config = format!(
        "otlp_endpoint = \"http://{}\"\nlog_format = \"json\"\n",
        listener.local_addr().unwrap()
    );
    drop(listener);
    let platform = Platform::start_with(&UpOptions { config, ..Default::default() }).unwrap();
    platform.push(&busybox(&platform, "one"), "default/web:1").unwrap();
    platform.deploy(&web("web", 2)).unwrap();
    eventually("it is logged, in lines that are objects", || {
        let log = std::fs::read_to_string(platform.log_path())?;
        let lines = log.lines().map(serde_json::from_str::<serde_json::Value>);
        let lines: Vec<_> = lines.collect::<Result<_, _>>()?;
        let told = |line: &serde_json::Value| {
            line["role"] == "node" && line["message"] == "spans did not reach the collector"
        };
        Ok(lines.iter().any(told).then_some(()))
    })
    .unwrap();
    platform.finish();
}
