use longshore_types::{Capacity, Generation, MilliCpu};
use serde_json::json;

use super::*;

fn report(change: impl FnOnce(&mut serde_json::Value)) -> LocationReport {
    let status = |instance: &str, app: &str| {
        json!({
            "project": "default", "app": app, "release": 1, "node": "n1", "draining": false,
            "created_at": 1, "decision": {"at": 1, "chosen": null, "why": "", "candidates": []},
            "observed": {
                "instance": instance, "generation": 1, "phase": "pending", "note": null, "address": null,
                "restarts": 0, "last_exit": null, "started_at": null, "ready_at": null, "path": null,
                "stages": [],
            },
        })
    };
    let mut document = json!({
        "location": "ams", "gate": null, "acknowledged": 7, "at": 1, "shortfalls": [],
        "instances": [status("web-00000001", "web"), status("api-00000001", "api")],
        "nodes": [{
            "node": "n1", "reachable": true, "reported_at": 1, "version": "1",
            "capacity": Capacity::default(), "promised": Capacity::default(),
        }],
    });
    change(&mut document);
    serde_json::from_value(document).unwrap()
}

fn web() -> AppKey {
    (Default::default(), "web".parse().unwrap())
}

/// What is new in a report that differs from the one before it in this.
fn news(change: impl FnOnce(&mut serde_json::Value)) -> News {
    let reports = Reports::default();
    reports.receive(report(|_| {}));
    assert!(reports.take_news().1.rest, "of a new location all is news");
    reports.receive(report(change));
    reports.take_news().1
}

#[test]
fn news_is_of_the_apps_that_it_is_of() {
    let same = news(|_| {});
    assert!(!same.any && !same.rest && same.apps.is_empty());
    let passing = news(|report| {
        report["at"] = json!(9);
        report["nodes"][0]["reported_at"] = json!(9);
    });
    assert!(!passing.any, "times that pass are no news");
    let healthy = news(|report| report["instances"][0]["observed"]["phase"] = json!("healthy"));
    assert!(healthy.any && !healthy.rest && healthy.apps == [web()].into());
    let gone = news(|report| _ = report["instances"].as_array_mut().unwrap().remove(0));
    assert!(gone.any && !gone.rest && gone.apps == [web()].into());
    let heard = news(|report| report["acknowledged"] = json!(Generation(8)));
    assert!(heard.any && !heard.rest && heard.apps.is_empty());
    let silent = news(|report| report["nodes"][0]["reachable"] = json!(false));
    assert!(silent.any && silent.rest);
    let grown = Capacity { cpu: MilliCpu(1), ..Capacity::default() };
    let larger = news(|report| report["nodes"][0]["capacity"] = json!(grown));
    assert!(larger.any && !larger.rest, "only what waits for room is concerned");
    let leaving = news(|report| report["nodes"][0]["leaving"] = json!(grown));
    assert!(leaving.any && !leaving.rest, "so is what waits for others to leave");
    let tried = |error: Option<&str>| json!([{"address": "db:5432", "at": 1, "error": error}]);
    let unreached = news(|report| report["nodes"][0]["reached"] = tried(Some("refused")));
    assert!(unreached.any && unreached.rest);
    let users = json!([{"project": "default", "app": "web", "requests_per_hour": 9}]);
    let moved = news(|report| report["demand"] = users);
    assert!(!moved.any && moved.apps == [web()].into(), "users move all the time");
    let decision = json!({"at": 1, "chosen": null, "why": "", "candidates": []});
    let shortfall = json!({"project": "default", "app": "web", "missing": 1, "decision": decision});
    let refused = news(|report| report["shortfalls"] = json!([shortfall]));
    assert!(refused.any && !refused.rest && refused.apps == [web()].into());
}

#[test]
fn news_waits_for_who_takes_it() {
    let reports = Reports::default();
    reports.receive(report(|_| {}));
    reports.take_news();
    reports.receive(report(|report| report["instances"][0]["draining"] = json!(true)));
    reports.receive(report(|report| report["instances"][1]["draining"] = json!(true)));
    let (_, news) = reports.take_news();
    assert_eq!(news.apps.len(), 2);
    assert!(reports.take_news().1.apps.is_empty());
}

/// What is known of each instance, by id: its app and its restarts.
fn known(reports: &Reports) -> Vec<(String, String, u32)> {
    let now = reports.now();
    let received = now.values().next().unwrap();
    let one = |status: &InstanceStatus| {
        let observed = &status.observed;
        (observed.instance.to_string(), status.app.to_string(), observed.restarts)
    };
    let all: Vec<_> = received.instances().map(one).collect();
    let mut by_app: Vec<_> =
        received.by_app.keys().flat_map(|key| received.of_app(key).map(one)).collect();
    by_app.sort();
    assert_eq!(all, by_app, "what is found by app is what there is");
    all
}

fn numbered(
    number: u64,
    since: Option<u64>,
    change: impl FnOnce(&mut serde_json::Value),
) -> LocationReport {
    LocationReport { number, since, ..report(change) }
}

#[test]
fn a_change_is_put_into_the_report_that_it_is_of_and_is_news_of_what_it_changes() {
    let reports = Reports::default();
    assert!(reports.receive(numbered(5, None, |_| {})));
    reports.take_news();
    let change = |report: &mut serde_json::Value| {
        let all = report["instances"].as_array_mut().unwrap();
        all.truncate(1);
        all[0]["observed"]["restarts"] = json!(2);
        report["gone"] = json!(["api-00000001"]);
    };
    assert!(reports.receive(numbered(6, Some(5), change)));
    let (_, news) = reports.take_news();
    let api: AppKey = (Default::default(), "api".parse().unwrap());
    assert_eq!(news.apps, [web(), api].into());
    let web = ("web-00000001".to_owned(), "web".to_owned(), 2);
    assert_eq!(known(&reports), std::slice::from_ref(&web));
    // What says nothing new is none.
    let nothing = |report: &mut serde_json::Value| report["instances"] = json!([]);
    assert!(reports.receive(numbered(7, Some(6), nothing)));
    assert!(!reports.take_news().1.any);
    // An instance is in one app alone, whatever its location says.
    let other = |report: &mut serde_json::Value| {
        report["instances"].as_array_mut().unwrap().truncate(1);
        report["instances"][0]["app"] = json!("liar");
    };
    assert!(reports.receive(numbered(8, Some(7), other)));
    assert_eq!(known(&reports), [(web.0, "liar".to_owned(), 0)]);
    // A whole one says all that there is.
    assert!(reports.receive(numbered(9, None, |report| {
        report["instances"].as_array_mut().unwrap().remove(0);
    })));
    assert_eq!(known(&reports), [("api-00000001".to_owned(), "api".to_owned(), 0)]);
}

#[test]
fn a_change_of_another_report_changes_nothing_and_is_said_to_be_one() {
    let reports = Reports::default();
    assert!(!reports.receive(numbered(2, Some(1), |_| {})), "of a location that nobody knows");
    assert!(reports.now().is_empty());
    assert!(reports.receive(numbered(5, None, |_| {})));
    reports.take_news();
    let empty = |report: &mut serde_json::Value| report["instances"] = json!([]);
    for since in [4, 6] {
        let change = |report: &mut serde_json::Value| report["gone"] = json!(["web-00000001"]);
        assert!(!reports.receive(numbered(7, Some(since), change)), "{since}");
    }
    assert!(!reports.take_news().1.any);
    assert_eq!(known(&reports).len(), 2);
    assert!(reports.receive(numbered(6, Some(5), empty)), "what is of it is taken still");
}
