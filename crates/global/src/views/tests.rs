use std::time::Duration;

use longshore_link::now;
use longshore_types::Timestamp;
use serde_json::json;

use super::*;
use crate::records::{AllotmentRecord, LeftWith, LocationRecord};

#[test]
fn urls_carry_the_port_of_the_ingress_unless_it_is_the_usual_one() {
    let manifest = |port: u16| {
        let mut document = serde_json::json!({"app": "web", "image": "web"});
        document["port"] = port.into();
        Manifest::from_document(&document).unwrap()
    };
    let web = manifest(8000);
    let hosts = hosts(&web, "localhost");
    assert_eq!(urls(&web, &hosts, "127.0.0.1:8080"), ["http://web.localhost:8080"]);
    assert_eq!(urls(&web, &hosts, "[::1]:80"), ["http://web.localhost"]);
    let worker = serde_json::json!({"app": "web", "image": "web"});
    let worker = Manifest::from_document(&worker).unwrap();
    assert!(urls(&worker, &hosts, "127.0.0.1:8080").is_empty());
}

const CUT_OFF_FOR: Duration = Duration::from_secs(14 * 60 + 5);

fn since() -> Timestamp {
    Timestamp(now().0 - u64::try_from(CUT_OFF_FOR.as_millis()).unwrap())
}

/// Where one instance of an app should run, and what it was left with.
fn at_sin(left_with: Option<LeftWith>) -> (AppKey, Catalog) {
    let decision = json!({"at": 1, "chosen": null, "why": "", "candidates": []});
    let record = json!({
        "release": 42, "count": 1, "budget": 3, "budget_in_force": 3, "generation": 9, "decision": decision,
    });
    let record: AllotmentRecord = serde_json::from_value(record).unwrap();
    let stored =
        Stored { record: AllotmentRecord { left_with, ..record }, revision: Default::default() };
    let (key, sin): (AppKey, LocationName) =
        ((Default::default(), "web".parse().unwrap()), "sin".parse().unwrap());
    let mut catalog = Catalog::default();
    catalog.locations.insert(sin.clone(), LocationRecord::joined(Timestamp(1), None));
    catalog.allotments.insert((sin, key.0.clone(), key.1.clone()), stored);
    (key, catalog)
}

/// That it runs r41, as it said before it was cut off.
fn silent() -> ByLocation {
    let observed = json!({
        "instance": "web-00000001", "generation": 1, "phase": "healthy", "note": null, "address": null,
        "restarts": 0, "last_exit": null, "started_at": null, "ready_at": null, "path": null, "stages": [],
    });
    let decision = json!({"at": 1, "chosen": null, "why": "", "candidates": []});
    let status = json!({
        "project": "default", "app": "web", "release": 41, "node": "n1", "draining": false,
        "created_at": 1, "decision": decision, "observed": observed,
    });
    let report = json!({
        "location": "sin", "gate": null, "acknowledged": 7, "at": 1, "shortfalls": [],
        "instances": [status], "nodes": [],
    });
    let report = serde_json::from_value(report).unwrap();
    let (mut received, _) = Received::new(report, Default::default(), None);
    (received.at, received.at_wall) = (received.at - CUT_OFF_FOR, since());
    let mut reports = ByLocation::default();
    reports.insert("sin".parse().unwrap(), received);
    reports
}

/// What is said of an app whose newest release this is.
fn excepted(release: u64, catalog: &Catalog, reports: &ByLocation, key: &AppKey) -> Option<String> {
    let statuses: Vec<_> = statuses(reports, &key.0).collect();
    let away = away(catalog, reports, (key, &statuses), &unheard(catalog, reports));
    except(&away, ReleaseNumber(release))
}

#[test]
fn what_is_cut_off_is_excepted_with_what_runs_there() {
    let (key, catalog) = at_sin(None);
    let said = |release| excepted(release, &catalog, &silent(), &key).unwrap();
    assert_eq!(said(42), "complete except sin (cut off for 14 min, running r41)");
    assert_eq!(said(41), "not counting sin (cut off for 14 min, running r41)");
    let mut heard = silent();
    heard.values_mut().for_each(|received| received.at += CUT_OFF_FOR);
    assert_eq!(excepted(42, &catalog, &heard, &key), None);
}

#[test]
fn a_control_plane_that_never_heard_of_it_knows_what_it_was_left_with() {
    let never = ByLocation::default();
    let said = |left_with| {
        let (key, catalog) = at_sin(left_with);
        excepted(42, &catalog, &never, &key).unwrap()
    };
    let release = ReleaseNumber(41);
    let known = LeftWith { release, since: Some(since()) };
    assert_eq!(said(Some(known)), "complete except sin (cut off for 14 min, running r41)");
    let told = LeftWith { release, since: None };
    assert_eq!(said(Some(told)), "complete except sin (not heard of, running r41)");
    assert_eq!(said(None), "not counting sin (not heard of, running r42)");
}
