//! The metrics of every role, held against `docs/metrics.md` and against promtool.

#![expect(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};

use longshore_telemetry::metrics::text;

const DOCUMENT: &str = include_str!("../../../docs/metrics.md");
/// The heading under which what all roles tell is documented.
const EVERY_ROLE: &str = "Every role";
const STORES: &str = "Stores";

/// The roles by the heading of their metrics, with what they tell.
fn roles() -> [(&'static str, &'static [&'static str], String); 5] {
    [
        ("Global", &[EVERY_ROLE, STORES], text(&longshore_global::described_metrics())),
        ("Location", &[EVERY_ROLE, STORES], text(&longshore_location::described_metrics())),
        ("Node", &[EVERY_ROLE], text(&longshore_node::described_metrics())),
        ("Registry", &[EVERY_ROLE], text(&longshore_registry::described_metrics())),
        ("Ingress", &[EVERY_ROLE], text(&longshore_ingress::described_metrics())),
    ]
}

/// Name to type, of what a role tells.
fn told(text: &str) -> BTreeMap<String, String> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types.map(|line| line.split_once(' ').unwrap()).map(|(n, t)| (n.into(), t.into())).collect()
}

/// Name to labels, of the samples of a role, `le` of histograms not counted.
fn labels(text: &str) -> BTreeMap<String, String> {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let named = samples.filter_map(|line| line.split_once('{'));
    named
        .map(|(name, rest)| {
            let inside = rest.split_once('}').unwrap().0;
            let names = inside.split(',').map(|pair| pair.split_once('=').unwrap().0);
            let names: Vec<_> = names.filter(|name| *name != "le").collect();
            let parts = ["_bucket", "_sum", "_count"];
            let part = parts.iter().find_map(|part| name.strip_suffix(part));
            (part.unwrap_or(name).to_owned(), names.join(", "))
        })
        .collect()
}

/// A metric as it is documented.
#[derive(Debug)]
struct Row {
    kind: String,
    /// Joined by commas.
    labels: String,
}

/// By name, what a section of the document says.
fn documented(heading: &str) -> BTreeMap<String, Row> {
    let (_, section) = DOCUMENT.split_once(&format!("\n## {heading}\n")).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        assert_eq!(cells.len(), 5, "name, type, labels, meaning: {row}");
        assert!(!cells[3].is_empty(), "no meaning: {row}");
        let (kind, labels) = (cells[1].to_owned(), cells[2].to_owned());
        (cells[0].trim_end_matches('`').to_owned(), Row { kind, labels })
    })
    .collect()
}

#[test]
fn every_metric_is_documented_and_every_documented_one_is_told() {
    for (heading, shared, text) in roles() {
        let mut expected = documented(heading);
        shared.iter().for_each(|heading| expected.extend(documented(heading)));
        let types = expected.iter().map(|(name, row)| (name.clone(), row.kind.clone())).collect();
        assert_eq!(told(&text), types, "{heading}");
        for (name, labels) in labels(&text) {
            assert_eq!(expected[&name].labels, labels, "labels of {name}");
        }
    }
}

#[test]
fn promtool_finds_nothing_wrong_with_any_metric() {
    for (heading, _, text) in roles() {
        let mut promtool = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("install the package prometheus");
        promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = promtool.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{heading}: {said}\n{text}");
    }
}
