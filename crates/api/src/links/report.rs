//! What of a location's reports the global plane knows, so that the next need not say it again.

use std::sync::Arc;

use longshore_types::{InstanceId, Timestamp};
use serde::{Deserialize, Serialize};

use super::{InstanceStatus, LocationReport};

/// The answer to a report that has a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportTaken {
    /// The number of the report that is known now: the next may be a change of it. None when it was a change of what
    /// is not known.
    pub number: Option<u64>,
}

/// The instances of a report, in the order of their ids.
type Instances = Vec<Arc<InstanceStatus>>;

/// Makes reports changes of those that were taken.
#[derive(Debug)]
pub struct ReportChanges {
    number: u64,
    /// What was sent last, and not answered yet.
    sent: Instances,
    /// What is known of the report with this number.
    known: Option<Instances>,
}

impl ReportChanges {
    /// Begins with a whole one. The numbers of one process must not be those of another that the global plane may have
    /// heard, so they begin with the time.
    pub fn new(now: Timestamp) -> Self {
        Self { number: now.0, sent: Vec::new(), known: None }
    }

    /// A report as it is to be sent, whose instances are in the order of their ids.
    pub fn of(&mut self, mut report: LocationReport) -> LocationReport {
        let before = self.known.take();
        self.sent.clone_from(&report.instances);
        if let Some(before) = before {
            report.since = Some(self.number);
            (report.instances, report.gone) = changed(&before, &report.instances);
        }
        self.number += 1;
        LocationReport { number: self.number, ..report }
    }

    /// What was sent was answered; false when the whole is to be sent at once. Without an answer, or by one of a global
    /// plane that knows of no changes, the next is whole.
    pub fn taken(&mut self, answer: Option<ReportTaken>) -> bool {
        let is_known = answer.is_some_and(|taken| taken.number == Some(self.number));
        self.known = is_known.then(|| std::mem::take(&mut self.sent));
        is_known || answer.is_none()
    }
}

/// What is new or other than before, and what is gone.
fn changed(before: &Instances, now: &Instances) -> (Instances, Vec<InstanceId>) {
    let id = |status: &InstanceStatus| status.observed.instance.clone();
    let (mut news, mut gone) = (Vec::new(), Vec::new());
    let mut before = before.iter().peekable();
    for status in now {
        let instance = &status.observed.instance;
        while let Some(past) = before.next_if(|past| past.observed.instance < *instance) {
            gone.push(id(past));
        }
        let known = before.next_if(|known| known.observed.instance == *instance);
        // Those that were not looked at again are the same ones, which is seen without reading them.
        if known != Some(status) {
            news.push(Arc::clone(status));
        }
    }
    gone.extend(before.map(|past| id(past)));
    (news, gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(instances: &[(&str, u32)]) -> LocationReport {
        let status = |(id, restarts): &(&str, u32)| {
            serde_json::json!({
                "project": "default", "app": "web", "release": 1, "node": "n1", "draining": false, "created_at": 1,
                "decision": {"at": 1, "chosen": "n1", "why": "", "candidates": []},
                "observed": {
                    "instance": format!("web-0000000{id}"), "generation": 1, "phase": "healthy", "restarts": restarts,
                    "note": null, "address": null, "last_exit": null, "started_at": null, "ready_at": null,
                    "path": null, "stages": [],
                },
            })
        };
        let instances: Vec<_> = instances.iter().map(status).collect();
        let document = serde_json::json!({
            "location": "ams", "acknowledged": 1, "at": 1, "nodes": [], "shortfalls": [], "instances": instances,
        });
        serde_json::from_value(document).unwrap()
    }

    fn ids(report: &LocationReport) -> Vec<&str> {
        let id = |one: &Arc<InstanceStatus>| one.observed.instance.as_str().len() - 1;
        report.instances.iter().map(|one| &one.observed.instance.as_str()[id(one)..]).collect()
    }

    #[test]
    fn what_was_taken_is_not_said_again() {
        let mut changes = ReportChanges::new(Timestamp(7));
        let whole = changes.of(report(&[("a", 0), ("b", 0), ("d", 0)]));
        assert_eq!((whole.since, ids(&whole)), (None, vec!["a", "b", "d"]));
        assert!(changes.taken(Some(ReportTaken { number: Some(whole.number) })));
        let change = changes.of(report(&[("a", 0), ("b", 1), ("c", 0)]));
        assert_eq!((change.since, ids(&change)), (Some(whole.number), vec!["b", "c"]));
        assert_eq!(change.gone, ["web-0000000d".parse().unwrap()]);
        assert!(changes.taken(Some(ReportTaken { number: Some(change.number) })));
        let nothing = changes.of(report(&[("a", 0), ("b", 1), ("c", 0)]));
        assert_eq!((nothing.since, ids(&nothing)), (Some(change.number), vec![]));
        assert_eq!(nothing.gone, []);
    }

    #[test]
    fn the_whole_is_sent_after_whatever_leaves_it_open_what_is_known() {
        let mut changes = ReportChanges::new(Timestamp(7));
        for (answer, is_well) in [
            (None, true),
            (Some(ReportTaken { number: None }), false),
            (Some(ReportTaken { number: Some(1) }), false),
        ] {
            let sent = changes.of(report(&[("a", 0)]));
            assert!(changes.taken(Some(ReportTaken { number: Some(sent.number) })));
            assert!(changes.of(report(&[("a", 0)])).since.is_some());
            assert_eq!(changes.taken(answer), is_well, "{answer:?}");
            assert_eq!(changes.of(report(&[("a", 0)])).since, None, "{answer:?}");
        }
        // One that was never answered is none to build on either.
        assert_eq!(changes.of(report(&[("a", 0)])).since, None);
    }
}
