//! What of a report the one above knows, so that the next need not say it again.

use std::sync::Arc;

use longshore_types::{InstanceId, SharedMap, Timestamp};
use serde::{Deserialize, Serialize};

/// The answer to a report that has a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportTaken {
    /// The number of the report that is known now: the next may be a change of it. None when it was a change of what
    /// is not known.
    pub number: Option<u64>,
}

/// The instances that a report tells of, by id.
pub type Told<T> = SharedMap<InstanceId, Arc<T>>;

/// Makes reports changes of those that were taken.
#[derive(Debug)]
pub struct ReportChanges<T> {
    number: u64,
    /// What was sent last, and not answered yet.
    sent: Told<T>,
    /// What is known of the report with this number.
    known: Option<Told<T>>,
}

/// What a report is to say of its instances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said<T> {
    /// Which report it is.
    pub number: u64,
    /// The number of the report that it is a change of, unless it is whole.
    pub since: Option<u64>,
    /// The instances, in a change those that are new or others than before.
    pub instances: Vec<Arc<T>>,
    /// In a change, those that are gone.
    pub gone: Vec<InstanceId>,
}

impl<T: PartialEq> ReportChanges<T> {
    /// Begins with a whole one. The numbers of one process must not be those of another that the one above may have
    /// heard, so they begin with the time.
    pub fn new(now: Timestamp) -> Self {
        Self { number: now.0, sent: Told::default(), known: None }
    }

    /// What is to be said of these instances.
    pub fn of(&mut self, instances: &Told<T>) -> Said<T> {
        let before = self.known.take();
        self.sent = instances.clone();
        let since = before.as_ref().map(|_| self.number);
        let (instances, gone) = match &before {
            Some(before) => changed(before, instances),
            None => (instances.values().cloned().collect(), Vec::new()),
        };
        self.number += 1;
        Said { number: self.number, since, instances, gone }
    }

    /// What was sent was answered; false when the whole is to be sent at once. Without an answer, or by one of who
    /// knows of no changes, the next is whole.
    pub fn taken(&mut self, answer: Option<ReportTaken>) -> bool {
        let is_known = answer.is_some_and(|taken| taken.number == Some(self.number));
        self.known = is_known.then(|| std::mem::take(&mut self.sent));
        is_known || answer.is_none()
    }

    /// The next one is to be whole.
    pub fn begin_anew(&mut self) {
        self.known = None;
    }
}

/// What is new or other than before, and what is gone.
pub(super) fn changed<T: PartialEq>(
    before: &Told<T>,
    now: &Told<T>,
) -> (Vec<Arc<T>>, Vec<InstanceId>) {
    let (mut news, mut gone) = (Vec::new(), Vec::new());
    for (instance, status) in now.changes_since(before) {
        match status {
            None => gone.push(instance.clone()),
            Some(status) if before.get(instance) == Some(status) => {}
            Some(status) => news.push(Arc::clone(status)),
        }
    }
    (news, gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Instances by the last digits of their ids, and how often each was started again.
    fn told(instances: &[(&str, u32)]) -> Told<(InstanceId, u32)> {
        let mut told = Told::default();
        for (id, restarts) in instances {
            let id: InstanceId = format!("web-0000000{id}").parse().unwrap();
            told.insert(id.clone(), Arc::new((id, *restarts)));
        }
        told
    }

    fn ids(said: &Said<(InstanceId, u32)>) -> Vec<&str> {
        said.instances.iter().map(|one| one.0.as_str().trim_start_matches("web-0000000")).collect()
    }

    #[test]
    fn what_was_taken_is_not_said_again() {
        let mut changes = ReportChanges::new(Timestamp(7));
        let whole = changes.of(&told(&[("a", 0), ("b", 0), ("d", 0)]));
        assert_eq!((whole.since, ids(&whole)), (None, vec!["a", "b", "d"]));
        assert!(changes.taken(Some(ReportTaken { number: Some(whole.number) })));
        let change = changes.of(&told(&[("a", 0), ("b", 1), ("c", 0)]));
        assert_eq!((change.since, ids(&change)), (Some(whole.number), vec!["b", "c"]));
        assert_eq!(change.gone, ["web-0000000d".parse().unwrap()]);
        assert!(changes.taken(Some(ReportTaken { number: Some(change.number) })));
        let nothing = changes.of(&told(&[("a", 0), ("b", 1), ("c", 0)]));
        assert_eq!((nothing.since, ids(&nothing)), (Some(change.number), vec![]));
        assert_eq!(nothing.gone, []);
    }

    #[test]
    fn the_whole_is_sent_after_whatever_leaves_it_open_what_is_known() {
        let mut changes = ReportChanges::new(Timestamp(7));
        let all = told(&[("a", 0)]);
        for (answer, is_well) in [
            (None, true),
            (Some(ReportTaken { number: None }), false),
            (Some(ReportTaken { number: Some(1) }), false),
        ] {
            let sent = changes.of(&all);
            assert!(changes.taken(Some(ReportTaken { number: Some(sent.number) })));
            assert!(changes.of(&all).since.is_some());
            assert_eq!(changes.taken(answer), is_well, "{answer:?}");
            assert_eq!(changes.of(&all).since, None, "{answer:?}");
        }
        // One that was never answered is none to build on either.
        let sent = changes.of(&all);
        assert_eq!(sent.since, None);
        assert!(changes.taken(Some(ReportTaken { number: Some(sent.number) })));
        changes.begin_anew();
        assert_eq!(changes.of(&all).since, None);
    }
}
