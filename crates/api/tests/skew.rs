//! Machines are brought to a new release one after the other, so for a while roles of two releases that follow
//! each other speak to each other. Both have to understand what the other says.
//!
//! Below `skew/` are messages as roles of each release sent them, one of each kind, recorded on the link; a change is
//! what was recorded as a whole with what makes it one, and what has few members is as its type writes it. What this
//! release reads it must go on reading; what it writes must have everything that the release before
//! wrote, which may rely on it; and what a release to come adds must not be in the way of this one. When a
//! release is made, its messages are recorded anew, and those of the release before the last can go.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Debug;
use std::path::{Path, PathBuf};

use longshore_api::links::{
    AllotmentSet, ArchiveRequest, AssignmentSet, ElsewhereChange, ImageNeighbours, InstanceUsage,
    LocationReport, LogLine, MeasuredWays, NodeReport, PrewarmOrders, RegistryTable, ReportTaken,
    RouteAck, RoutingTable, SecretsRequest, StopInstance, UsageRequest,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The messages of each release, by the name of their kind.
fn recorded(kind: &str) -> Vec<(PathBuf, Value)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/skew");
    let releases = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    let messages = releases.map(|release| {
        let path = release.join(kind).with_extension("json");
        let text = std::fs::read_to_string(&path).unwrap();
        (path, serde_json::from_str(&text).unwrap())
    });
    messages.collect()
}

/// The same message with one more member in each record, as a later release might write it.
fn with_more(message: &Value) -> Value {
    match message {
        Value::Object(members) => {
            // What is keyed by digests, names and the like is a map and no record.
            let is_record = members
                .keys()
                .all(|key| key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'));
            let more = members.iter().map(|(key, value)| (key.clone(), with_more(value)));
            let added = (is_record && members.len() > 1)
                .then(|| ("of_a_later_release".to_owned(), Value::from(7)));
            Value::Object(more.chain(added).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(with_more).collect()),
        other => other.clone(),
    }
}

/// A runtime that a later release knows.
fn with_a_runtime(message: &Value) -> Value {
    match message {
        Value::Object(members) => {
            let with = |(key, value): (&String, &Value)| {
                let mut value = with_a_runtime(value);
                if let (true, Value::Array(runtimes)) = (key == "runtimes", &mut value) {
                    runtimes
                        .push(serde_json::json!({"runtime": "of_a_later_release", "lacks": {}}));
                }
                (key.clone(), value)
            };
            Value::Object(members.iter().map(with).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(with_a_runtime).collect()),
        other => other.clone(),
    }
}

/// What is in `before` and not in `after`: nothing, or the path to it. What was empty may be left out.
fn missing(before: &Value, after: &Value, at: &str) -> Option<String> {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => before.iter().find_map(|(key, value)| {
            let at = format!("{at}.{key}");
            match after.get(key) {
                Some(after) => missing(value, after, &at),
                None if value.is_null() => None,
                None => Some(at),
            }
        }),
        (Value::Array(before), Value::Array(after)) if before.len() == after.len() => {
            let pairs = before.iter().zip(after).enumerate();
            pairs.into_iter().find_map(|(idx, (a, b))| missing(a, b, &format!("{at}[{idx}]")))
        }
        (before, after) => (before != after).then(|| at.to_owned()),
    }
}

fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(kind: &str) {
    let recorded = recorded(kind);
    assert!(!recorded.is_empty(), "no release is recorded");
    for (path, message) in recorded {
        let path = path.display();
        let read: T = serde_json::from_value(message.clone())
            .unwrap_or_else(|error| panic!("{path} is not understood any more: {error}"));
        let written = serde_json::to_value(&read).unwrap();
        assert_eq!(
            missing(&message, &written, kind),
            None,
            "{path} has what is not written any more"
        );
        let mut more = with_a_runtime(&with_more(&message));
        // A record of one member looks like a map; the whole is none.
        more["of_a_later_release"] = Value::from(7);
        let later: T = serde_json::from_value(more)
            .unwrap_or_else(|error| panic!("{path} must not grow: {error}"));
        assert_eq!(later, read, "{path}");
    }
}

#[test]
fn nodes_and_locations_of_two_releases_understand_each_other() {
    check::<NodeReport>("node_report");
    check::<NodeReport>("node_report_change");
    check::<ReportTaken>("report_taken");
    check::<AssignmentSet>("assignment_set");
    check::<AssignmentSet>("assignment_change");
    check::<PrewarmOrders>("prewarm_orders");
    check::<ImageNeighbours>("image_neighbours");
}

#[test]
fn gates_and_who_calls_them_of_two_releases_understand_each_other() {
    check::<LogLine>("log_line");
    check::<UsageRequest>("usage_request");
    check::<InstanceUsage>("instance_usage");
    check::<ArchiveRequest>("archive_request");
    check::<StopInstance>("stop_instance");
}

#[test]
fn ingresses_and_locations_of_two_releases_understand_each_other() {
    check::<RoutingTable>("routing_table");
    check::<RouteAck>("route_ack");
    check::<ElsewhereChange>("elsewhere_line");
    check::<MeasuredWays>("measured_ways");
}

#[test]
fn locations_and_the_global_plane_of_two_releases_understand_each_other() {
    check::<LocationReport>("location_report");
    check::<LocationReport>("location_report_change");
    check::<ReportTaken>("report_taken");
    check::<AllotmentSet>("allotment_set");
    check::<AllotmentSet>("allotment_change");
    check::<ElsewhereChange>("elsewhere_line");
    check::<SecretsRequest>("secrets_request");
}

#[test]
fn registries_and_the_global_plane_of_two_releases_understand_each_other() {
    check::<RegistryTable>("registry_table");
}
