//! The roles tell Prometheus how they do, where `metrics-targets.json` says.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};

use longshore_e2e::http::Request;
use longshore_e2e::{Platform, eventually};
use serde_json::{Value, json};

use crate::scene::{but, host, script, web, with_web};

/// Samples by name with labels, of one role.
pub(crate) type Samples = BTreeMap<String, f64>;

/// Asks every role for its metrics, as Prometheus does, and lets promtool judge them.
pub(crate) fn scrape(platform: &Platform) -> BTreeMap<String, Samples> {
    let file = platform.data_dir().join("metrics-targets.json");
    let targets: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let targets = targets.as_array().unwrap().iter().map(|target| {
        let address = target["targets"][0].as_str().unwrap();
        let answer = Request::get(address, "/metrics").send(address.parse().unwrap()).unwrap();
        assert_eq!(answer.status, 200, "{target}");
        let text = answer.text();
        judge(&text);
        let role = target["labels"]["role"].as_str().unwrap().to_owned();
        (role, samples(&text))
    });
    targets.collect()
}

fn samples(text: &str) -> Samples {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let samples = lines.map(|line| line.rsplit_once(' ').unwrap());
    samples.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
}

fn judge(text: &str) {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("install the package prometheus");
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}\n{text}");
}

#[track_caller]
pub(crate) fn value(scraped: &BTreeMap<String, Samples>, role: &str, name: &str) -> f64 {
    let samples = &scraped[role];
    *samples.get(name).unwrap_or_else(|| panic!("{role} has no {name} in {samples:#?}"))
}

/// The sum over all labels.
fn sum(scraped: &BTreeMap<String, Samples>, role: &str, name: &str) -> f64 {
    let begins = format!("{name}{{");
    let found = scraped[role].iter().filter(|(key, _)| key.starts_with(&begins));
    found.map(|(_, value)| value).sum()
}

#[test]
fn every_role_tells_what_happened_and_how_it_stands() {
    let platform = with_web();
    platform.deploy(&web("web", 2)).unwrap();
    let unknown = "longshore_ingress_faults_total{project=\"\",app=\"\",reason=\"unknown-host\"}";
    // Whoever waited for the ingress asked for no host.
    let before = scrape(&platform)["ingress"].get(unknown).copied().unwrap_or_default();
    for _ in 0..10 {
        assert_eq!(platform.get(&host("web"), "/").unwrap().status, 200);
    }
    assert_eq!(platform.get(&host("web"), "/absent").unwrap().status, 404);
    assert_eq!(platform.get("stranger.example", "/").unwrap().status, 404);
    let ends = but(script("ends", "exit 3"), &json!({"restart": "never"}));
    platform.deploy_only(&ends).unwrap();

    let scraped = eventually("the end is told", || {
        let scraped = scrape(&platform);
        let ended =
            value(&scraped, "node", "longshore_node_instance_ends_total{reason=\"exited\"}");
        Ok((ended == 1.0).then_some(scraped))
    })
    .unwrap();
    assert_eq!(scraped.len(), 5);
    for role in scraped.keys() {
        assert!(value(&scraped, role, "process_resident_memory_bytes") > 0.0);
        let version = env!("CARGO_PKG_VERSION");
        let build = format!("longshore_build_info{{role=\"{role}\",version=\"{version}\"}}");
        assert_eq!(value(&scraped, role, &build), 1.0);
    }
    let is = |role: &str, name: &str, expected: f64| {
        assert_eq!(value(&scraped, role, name), expected, "{name}");
    };
    let app = "project=\"default\",app=\"web\"";
    let of_app = |name: &str| format!("longshore_ingress_{name}{{{app}}}");
    is("ingress", &format!("longshore_ingress_requests_total{{{app},code=\"2xx\"}}"), 10.0);
    is("ingress", &format!("longshore_ingress_requests_total{{{app},code=\"4xx\"}}"), 1.0);
    is("ingress", &of_app("request_duration_seconds_count"), 11.0);
    is("ingress", &of_app("endpoints"), 2.0);
    is("ingress", &of_app("endpoints_left_out"), 0.0);
    is("ingress", &of_app("requests_in_flight"), 0.0);
    is("ingress", unknown, before + 1.0);
    let revision = value(&scraped, "ingress", "longshore_ingress_routes_revision");
    is("location", "longshore_location_routes_revision", revision);
    is("location", &format!("longshore_location_instances{{{app},phase=\"healthy\"}}"), 2.0);
    is("node", "longshore_node_instances{phase=\"healthy\"}", 2.0);
    is("node", "longshore_node_images", 1.0);
    is("global", "longshore_global_apps", 2.0);
    is("global", "longshore_global_location_reachable{location=\"local\"}", 1.0);

    let some =
        |role: &str, name: &str| assert!(value(&scraped, role, name) > 0.0, "{role}: {name}");
    some("ingress", &of_app("sent_bytes_total"));
    some("node", "longshore_node_pulls_total{outcome=\"done\"}");
    some("node", "longshore_node_pulled_bytes_total");
    some("node", "longshore_node_instances_memory_bytes");
    some("node", "longshore_node_memory_bytes");
    for stage in ["pull", "unpack", "network", "mount", "create", "ready"] {
        some(
            "node",
            &format!("longshore_node_start_stage_duration_seconds_count{{stage=\"{stage}\"}}"),
        );
    }
    assert!(sum(&scraped, "node", "longshore_node_start_duration_seconds_count") >= 2.0);
    some("global", "longshore_store_commits_total{outcome=\"done\"}");
    some("location", "longshore_store_size_bytes");
    some("global", "longshore_global_location_memory_promised_bytes{location=\"local\"}");
    some("registry", "longshore_registry_received_bytes_total");
    some("registry", "longshore_registry_sent_bytes_total");
    let deploy = "method=\"PUT\",route=\"/v1/projects/{project}/apps/{app}\",status=\"200\"";
    some("global", &format!("longshore_global_api_requests_total{{{deploy}}}"));

    // An app that is gone takes its metrics with it.
    platform.remove("web").unwrap();
    eventually("its metrics go", || {
        let of_web = |samples: &Samples| samples.keys().any(|name| name.contains("app=\"web\""));
        Ok((!of_web(&scrape(&platform)["ingress"])).then_some(()))
    })
    .unwrap();
    platform.finish();
}
