//! Apps that were there for one client, and have ended: they are forgotten after a while.
//!
//! Mostly the client removes its app itself, once it has what it came for. This is for clients that
//! left it running, or died. When an end was seen first is kept in memory: a control plane that is
//! started again gives every one its whole time anew.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use longshore_types::InstancePhase;

use crate::catalog::{AppKey, Catalog};
use crate::records::AppRecord;
use crate::reports::{ByLocation, of_app};

/// Time enough to read its log.
const KEPT: Duration = Duration::from_secs(600);

/// When each end was seen first.
#[derive(Debug, Default)]
pub struct Ended(BTreeMap<AppKey, Instant>);

impl Ended {
    /// The record of an app that is to be removed now, if it is one.
    pub fn next_record(
        &mut self,
        key: &AppKey,
        catalog: &Catalog,
        reports: &ByLocation,
    ) -> Option<AppRecord> {
        catalog.current_release(key)?.manifest.attached?;
        let ended = of_app(reports, key).any(|s| s.observed.phase == InstancePhase::Exited);
        if !ended {
            self.0.remove(key);
            return None;
        }
        let seen = *self.0.entry(key.clone()).or_insert_with(Instant::now);
        if seen.elapsed() < KEPT {
            return None;
        }
        self.0.remove(key);
        let record = &catalog.apps.get(key)?.record;
        let generation = record.generation.next();
        Some(AppRecord { removing: true, generation, ..record.clone() })
    }

    /// Forgets the apps that are gone.
    pub fn forget_gone(&mut self, catalog: &Catalog) {
        self.0.retain(|key, _| catalog.apps.contains_key(key));
    }
}
