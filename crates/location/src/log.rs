//! The log of what was decided, from which `longshore replay` recomputes it.

use std::path::Path;

use longshore_planning::replay::Record;
use longshore_telemetry::journal::{Journal, MAX_FILE_BYTES};

/// Below the data directory.
const FILE: &str = "decisions.jsonl";

/// The log.
pub struct Log {
    journal: Journal,
    /// Whether the version stands in the file.
    has_begun: bool,
}

impl Log {
    /// Goes on with that in a data directory.
    pub fn open(data_dir: &Path) -> Self {
        let journal = Journal::open(&data_dir.join(FILE), MAX_FILE_BYTES);
        Self { journal, has_begun: false }
    }

    /// Notes a decision.
    pub fn note(&mut self, decision: &Record) {
        let mut lines = encode(decision);
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let began = encode(&Record::Began { version });
        let n_bytes = began.len() + lines.len() + 2;
        if !self.has_begun || self.journal.begins_file(n_bytes) {
            lines = [began, lines].join(&b'\n');
            self.has_begun = true;
        }
        // One that the disk did not keep up with is missing; the next one says all by itself.
        self.journal.note(lines);
    }
}

fn encode(record: &Record) -> Vec<u8> {
    serde_json::to_vec(record).expect("records have string keys and no failing serializers")
}
