//! The record of how a container ended. It is on disk before anyone is told.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use longshore_types::{ExitReason, InstanceId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::files::{self, Durability, FileProblem};

/// How and when a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// The version of this record.
    pub v: u32,
    /// The instance.
    pub id: InstanceId,
    /// Why it ended.
    pub reason: ExitReason,
    /// When, by the clock of this machine.
    pub at: Timestamp,
    /// When it had started; absent when it never did.
    pub started_at: Option<Timestamp>,
    /// How many of its processes the kernel ended for want of memory. May be over zero though the
    /// reason is another, when the container survived that.
    pub oom_kills: u64,
    /// Lines of output that could not be written to the log.
    pub lost_lines: u64,
}

impl ExitRecord {
    const VERSION: u32 = 1;
    pub(crate) const FILE: &str = "exit.json";

    /// A record of an end that is noticed now.
    pub(crate) fn now(id: &InstanceId, reason: ExitReason, started_at: Option<Timestamp>) -> Self {
        let (v, at) = (Self::VERSION, now());
        Self { v, id: id.clone(), reason, at, started_at, oom_kills: 0, lost_lines: 0 }
    }

    /// Writes the record to the instance's directory and waits until it is on the disk.
    pub(crate) fn store(&self, dir: &Path) -> Result<(), FileProblem> {
        files::replace_json(&dir.join(Self::FILE), self, Durability::Synced)
    }

    /// Reads the record from the instance's directory; absent when it has not ended, as far as
    /// anyone noted.
    pub fn load(dir: &Path) -> Result<Option<Self>, FileProblem> {
        let path = dir.join(Self::FILE);
        match files::read_json::<Self>(&path)? {
            Some(record) if record.v != Self::VERSION => {
                Err(FileProblem::Version { path, found: record.v, known: Self::VERSION })
            }
            other => Ok(other),
        }
    }
}

/// The time by the clock of this machine.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
