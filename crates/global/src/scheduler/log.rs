//! The log of what was decided, from which `longshore replay` recomputes it.

use std::path::Path;

use longshore_planning::global::{LocationState, Shared, WantedApp};
use longshore_planning::replay::{Decided, Record, Recorder};
use longshore_telemetry::journal::{Journal, MAX_FILE_BYTES, Noted};
use longshore_types::Timestamp;
use serde::Serialize;

/// Below the data directory.
const FILE: &str = "decisions.jsonl";

/// The log.
pub struct Log {
    journal: Journal,
    recorder: Recorder,
}

impl Log {
    /// Goes on with that in a data directory.
    pub fn open(data_dir: &Path) -> Self {
        let journal = Journal::open(&data_dir.join(FILE), MAX_FILE_BYTES);
        Self { journal, recorder: Recorder::default() }
    }

    /// Notes what became of an app, given where it could be.
    pub fn note(
        &mut self,
        (now, wanted): (Timestamp, &WantedApp),
        states: &[LocationState],
        shared: &Shared,
    ) {
        let decision = encode(&Decided::Global { now, app: wanted, shared });
        let mut lines = lines(self.recorder.locations(states).as_slice(), &decision);
        if self.journal.begins_file(lines.len() + 1) {
            self.recorder.forget();
            lines = self::lines(self.recorder.locations(states).as_slice(), &decision);
        }
        if self.journal.note(lines) == Noted::Dropped {
            // What comes next must not build on what nobody will read.
            self.recorder.forget();
        }
    }
}

/// A decision with what has to be known of the locations, in lines but for the last line end. Where all that is
/// said stands behind, so does the version.
fn lines(said: &[Record], decision: &[u8]) -> Vec<u8> {
    let is_all = said.iter().any(|record| matches!(record, Record::Locations { all: true, .. }));
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let began = is_all.then_some(Record::Began { version });
    let before = began.iter().chain(said).map(encode);
    before.chain([decision.to_vec()]).collect::<Vec<_>>().join(&b'\n')
}

fn encode(record: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(record).expect("records have string keys and no failing serializers")
}
