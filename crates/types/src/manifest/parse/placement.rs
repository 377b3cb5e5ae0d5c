//! The table `[placement]`.

use std::collections::BTreeSet;

use serde_json::Value;

use super::MAX_COUNT;
use super::table::Table;
use crate::{Duration, EgressRule, LatencyGoal, Percent, Placement, ReachAddress, Spread};

const KEYS: &[&str] = &[
    "allow",
    "deny",
    "jurisdiction",
    "labels",
    "spread_locations",
    "max_per_node",
    "min_locations",
    "reach",
    "near",
    "latency",
    "users",
];

/// The most addresses that an app may have to reach: each is tried on every node of the world.
const MAX_REACH: usize = 8;

/// What it says of an app of which `count` instances should run.
pub(super) fn of(table: &mut Table<'_>, count: u32, egress: &[EgressRule]) -> Placement {
    table.refuse_unknown(KEYS);
    for key in ["allow", "jurisdiction"] {
        // It would say "nowhere", which nobody means.
        if let Some(empty) = table.map.and_then(|map| map.get(key))
            && empty.as_array().is_some_and(Vec::is_empty)
        {
            table.refuse(key, empty, "at least one; without the key, anywhere is allowed");
        }
    }
    let min_locations = table.number("min_locations", 1, MAX_COUNT);
    if let Some(least) = min_locations.filter(|least| *least > count.max(1)) {
        table.refuse("min_locations", &Value::from(least), &format!("at most count, {count}"));
    }
    let (latency, users) = goal(table);
    Placement {
        allow: table.list("allow").into_iter().collect(),
        deny: table.list("deny").into_iter().collect(),
        jurisdiction: table.list("jurisdiction").into_iter().collect(),
        labels: table.list("labels").into_iter().collect(),
        spread_locations: spread(table, "spread_locations"),
        max_per_node: table.number("max_per_node", 1, MAX_COUNT),
        min_locations,
        reach: reach(table, egress),
        near: table.text("near"),
        latency,
        users,
    }
}

/// What has to answer, as far as instances may speak to it.
fn reach(table: &mut Table<'_>, egress: &[EgressRule]) -> BTreeSet<ReachAddress> {
    let all: Vec<ReachAddress> = table.list("reach");
    if all.len() > MAX_REACH {
        table.refuse("reach", &Value::from(all.len()), &format!("at most {MAX_REACH} addresses"));
    }
    for address in all.iter().filter(|address| address.is_closed_by(egress)) {
        let allowed = "an address that egress.allow opens to the instances";
        table.refuse("reach", &Value::from(address.to_string()), allowed);
    }
    all.into_iter().collect()
}

/// How near how many users it should be.
fn goal(table: &mut Table<'_>) -> (Option<Duration>, Option<Percent>) {
    let value = |table: &Table<'_>, key| table.map.and_then(|map| map.get(key)).cloned();
    let (shortest, longest) = LatencyGoal::WITHIN;
    let latency: Option<Duration> = table.text("latency");
    if let (Some(latency), Some(value)) = (latency, value(table, "latency"))
        && !(shortest..=longest).contains(&latency)
    {
        table.refuse("latency", &value, &format!("a round trip from {shortest} to {longest}"));
    }
    let users = table.text("users");
    if let (Some(_), Some(value), None) = (users, value(table, "users"), value(table, "latency")) {
        table.refuse("users", &value, "only beside placement.latency, which it is for");
    }
    (latency, users)
}

fn spread(table: &mut Table<'_>, key: &str) -> Option<Spread> {
    let value = table.map?.get(key)?;
    let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
    match (value.as_str(), number.filter(|number| (1..=MAX_COUNT).contains(number))) {
        (Some("soft"), _) => Some(Spread::Soft),
        (None, Some(most)) => Some(Spread::AtMost(most)),
        _ => {
            let allowed = "\"soft\", or how many may be at one location at most, from 1";
            table.refuse(key, value, allowed);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::Manifest;

    #[test]
    fn a_placement_is_read_whole() {
        let document = json!({"app": "web", "image": "web", "count": 3, "placement": {
            "allow": ["ams", "tier=edge"], "deny": ["sin"], "jurisdiction": ["eu", "ch"],
            "labels": ["disk=nvme"], "spread_locations": 2, "max_per_node": 1,
            "min_locations": 2, "near": "52.37, 4.90", "reach": ["DB.example.com:5432"],
            "latency": "50ms", "users": "90%",
        }});
        let placement = Manifest::from_document(&document).unwrap().placement;
        let expected = json!({
            "allow": ["ams", "tier=edge"], "deny": ["sin"], "jurisdiction": ["CH", "eu"],
            "labels": ["disk=nvme"], "spread_locations": {"at_most": 2}, "max_per_node": 1,
            "min_locations": 2, "near": "52.37,4.9", "reach": ["db.example.com:5432"],
            "latency": "50ms", "users": "90%",
        });
        assert_eq!(serde_json::to_value(&placement).unwrap(), expected);
        let none = Manifest::from_document(&json!({"app": "web", "image": "web", "placement": {}}));
        assert!(none.unwrap().placement.is_none());
    }

    #[test]
    fn every_problem_names_its_field_its_value_and_what_is_allowed() {
        let document = json!({"app": "web", "image": "web", "count": 2, "placement": {
            "allow": [], "deny": ["Ams", "a=b=c"], "jurisdiction": ["uk", "eeu"], "labels": ["nvme"],
            "spread_locations": 0, "max_per_node": 0, "min_locations": 3, "near": "100,0",
            "alow": ["ams"], "reach": ["db", "10.0.0.5:5432"], "latency": "11s", "users": "0%",
        }});
        let problems = Manifest::from_document(&document).unwrap_err();
        let told: Vec<_> = problems.iter().map(ToString::to_string).collect();
        for part in [
            "placement.allow = []: at least one; without the key, anywhere is allowed",
            "placement.deny[0] = \"Ams\": the name of a location, or a label",
            "placement.deny[1] = \"a=b=c\": ",
            "placement.jurisdiction[0] = \"uk\": a two-letter country code of ISO 3166, or one of eu, \
             eea, efta; did you mean \"GB\"?",
            "placement.jurisdiction[1] = \"eeu\": ",
            "placement.labels[0] = \"nvme\": key=value",
            "placement.spread_locations = 0: \"soft\", or how many",
            "placement.max_per_node = 0: a whole number from 1",
            "placement.min_locations = 3: at most count, 2",
            "placement.near = \"100,0\": the name of a location, or latitude",
            "placement.reach[0] = \"db\": a host name or IPv4 address, ':' and a port",
            "placement.reach = \"10.0.0.5:5432\": an address that egress.allow opens",
            "placement.alow = [\"ams\"]: unknown key; did you mean \"allow\"?",
            "placement.latency = \"11s\": a round trip from 1ms to 10s",
            "placement.users = \"0%\": a whole number from 1% to 100%",
        ] {
            assert!(told.iter().any(|line| line.starts_with(part)), "{part} missing in {told:#?}");
        }
        assert_eq!(told.len(), 15, "{told:#?}");
    }

    #[test]
    fn a_goal_is_for_most_users_unless_it_says_for_how_many() {
        let placed = |placement: serde_json::Value| {
            let document = json!({"app": "web", "image": "web", "placement": placement});
            Manifest::from_document(&document).map(|manifest| manifest.placement.goal())
        };
        let goal = placed(json!({"latency": "50ms"})).unwrap().unwrap();
        assert_eq!(goal.to_string(), "95% of users within 50ms");
        assert_eq!(placed(json!({})).unwrap(), None);
        let problems = placed(json!({"users": "95%"})).unwrap_err();
        let told = "placement.users = \"95%\": only beside placement.latency, which it is for";
        assert_eq!(problems[0].to_string(), told);
    }
}
