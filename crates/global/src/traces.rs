//! The span of each start as a whole, told once a location reports how it ended.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use longshore_api::links::{InstanceStatus, LocationReport};
use longshore_link::now;
use longshore_telemetry::traces::{ROOT, Span, Start, Tracer};
use longshore_types::{InstanceId, InstancePhase, LocationName, Timestamp};

/// Tells of each instance once.
#[derive(Debug)]
pub struct Starts {
    tracer: Tracer,
    /// What was over before this process began was told by the one before.
    since: Timestamp,
    told: Mutex<HashSet<(LocationName, InstanceId)>>,
}

impl Starts {
    /// Tells to `tracer`.
    pub fn new(tracer: Tracer) -> Self {
        Self { tracer, since: now(), told: Mutex::default() }
    }

    /// Looks at a report for starts that are over.
    pub fn look(&self, report: &LocationReport) {
        if !self.tracer.is_on() {
            return;
        }
        let over =
            |one: &&Arc<InstanceStatus>| over(one, report).is_some_and(|at| at >= self.since);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if report.since.is_none() {
            let there: HashSet<_> =
                report.instances.iter().map(|one| &one.observed.instance).collect();
            told.retain(|(at, instance)| *at != report.location || there.contains(instance));
        }
        for gone in &report.gone {
            told.remove(&(report.location.clone(), gone.clone()));
        }
        for one in report.instances.iter().filter(over) {
            if told.insert((report.location.clone(), one.observed.instance.clone())) {
                self.tracer.tell(span(one, report));
            }
        }
    }
}

/// When the first start of an instance was over: it was ready, or has failed and is tried again or
/// given up.
fn over(one: &InstanceStatus, report: &LocationReport) -> Option<Timestamp> {
    if one.observed.restarts == 0 && one.observed.ready_at.is_some() {
        return one.observed.ready_at;
    }
    let failed = matches!(one.observed.phase, InstancePhase::Backoff | InstancePhase::Exited);
    (failed || one.observed.restarts > 0).then_some(report.at)
}

fn span(one: &InstanceStatus, report: &LocationReport) -> Span {
    let instance = &one.observed.instance;
    let ready = one.observed.ready_at.filter(|_| one.observed.restarts == 0);
    let failure = match (ready, &one.observed.last_exit) {
        (Some(_), _) => None,
        (None, Some(reason)) => Some(reason.to_string()),
        (None, None) => Some("it was not ready".to_owned()),
    };
    let attributes = vec![
        ("longshore.instance", instance.to_string()),
        ("longshore.project", one.project.to_string()),
        ("longshore.app", one.app.to_string()),
        ("longshore.release", one.release.to_string()),
        ("longshore.location", report.location.to_string()),
        ("longshore.node", one.node.to_string()),
    ];
    Span {
        start: Start::new(instance.as_str(), 0),
        name: ROOT,
        parent: None,
        began: time(one.created_at),
        ended: time(ready.unwrap_or(report.at)),
        attributes,
        failure,
    }
}

fn time(at: Timestamp) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(at.0)
}
