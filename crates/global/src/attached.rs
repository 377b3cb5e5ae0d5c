//! Apps that were there for one client, and have ended: they are forgotten after a while.
//!
//! Mostly the client removes its app itself, once it has what it came for. This is for clients that
//! left it running, or died. When an end was seen first is kept in memory: a control plane that is
//! started again gives every one its whole time anew.

use std::collections::BTreeMap;
use std::time::Duration;

use longshore_types::InstancePhase;
use tokio::time::Instant;

use crate::catalog::AppKey;
use crate::records::AppRecord;
use crate::reports::{ByLocation, of_app};
use crate::scheduler::Found;

/// Time enough to read its log.
const KEPT: Duration = Duration::from_secs(600);

/// When each end was seen first.
#[derive(Debug, Default)]
pub struct Ended(BTreeMap<AppKey, Instant>);

impl Ended {
    /// The record of an app that is to be removed now, if it is one.
    pub fn next_record(
        &mut self,
        Found { key, stored, release, .. }: &Found<'_>,
        reports: &ByLocation,
        now: Instant,
    ) -> Option<AppRecord> {
        (*release)?.manifest.attached?;
        let mut instances = of_app(reports, key).peekable();
        let ended = instances.peek().is_some()
            && instances.all(|status| status.observed.phase == InstancePhase::Exited);
        if !self.is_over(key, ended, now) {
            return None;
        }
        let record = &stored.record;
        let generation = record.generation.next();
        Some(AppRecord { removing: true, generation, ..record.clone() })
    }

    /// Whether an app has ended long enough ago.
    fn is_over(&mut self, key: &AppKey, ended: bool, now: Instant) -> bool {
        if !ended {
            self.0.remove(key);
            return false;
        }
        let seen = *self.0.entry(key.clone()).or_insert(now);
        now.duration_since(seen) >= KEPT
    }

    /// Forgets the apps that are gone.
    pub fn forget_gone(&mut self, exists: impl Fn(&AppKey) -> bool) {
        self.0.retain(|key, _| exists(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ended_is_removed_after_a_while() {
        let key: AppKey = ("default".parse().unwrap(), "run-a".parse().unwrap());
        let (begin, mut ended) = (Instant::now(), Ended::default());
        let mut is_over = |after: u64, has_ended| {
            ended.is_over(&key, has_ended, begin + Duration::from_secs(after))
        };
        assert!(!is_over(0, true) && !is_over(599, true) && is_over(600, true));
        // An instance that took its place is another matter.
        assert!(!is_over(700, false) && !is_over(800, true) && !is_over(1399, true));
        assert!(is_over(1400, true));
    }
}
