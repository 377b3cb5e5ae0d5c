//! The log of what was decided, from which `longshore replay` recomputes it.

use std::path::Path;

use longshore_planning::location::{NodeState, Plan, Snapshot};
use longshore_planning::replay::{Record, Recorder};
use longshore_telemetry::journal::{Journal, MAX_FILE_BYTES, Noted};

/// Below the data directory.
const FILE: &str = "decisions.jsonl";

/// The log.
pub struct Log {
    journal: Journal,
    recorder: Recorder,
}

/// A plan that decided something, with what it was made from.
#[derive(Debug)]
pub struct Decided {
    pub snapshot: Snapshot,
    pub plan: Plan,
}

impl Log {
    /// Goes on with that in a data directory.
    pub fn open(data_dir: &Path) -> Self {
        let journal = Journal::open(&data_dir.join(FILE), MAX_FILE_BYTES);
        Self { journal, recorder: Recorder::default() }
    }

    /// Notes a decision.
    pub fn note(&mut self, Decided { mut snapshot, plan }: Decided) {
        let nodes = std::mem::take(&mut snapshot.nodes);
        let (snapshot, plan) = (Box::new(snapshot), Box::new(plan));
        let decision = encode(&Record::Location { snapshot, nodes_said: true, plan });
        let mut lines = self.lines(&nodes, &decision);
        if self.journal.begins_file(lines.len() + 1) {
            self.recorder.forget();
            lines = self.lines(&nodes, &decision);
        }
        if self.journal.note(lines) == Noted::Dropped {
            // What comes next must not build on what nobody will read.
            self.recorder.forget();
        }
    }

    /// A decision with what has to be known of the nodes, in lines but for the last line end. Where all that is said
    /// stands behind, so does the version.
    fn lines(&mut self, nodes: &[NodeState], decision: &[u8]) -> Vec<u8> {
        let said = self.recorder.nodes(nodes);
        let is_all = matches!(said, Some(Record::Nodes { all: true, .. }));
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let began = is_all.then_some(Record::Began { version });
        let before = began.iter().chain(&said).map(encode);
        before.chain([decision.to_vec()]).collect::<Vec<_>>().join(&b'\n')
    }
}

fn encode(record: &Record) -> Vec<u8> {
    serde_json::to_vec(record).expect("records have string keys and no failing serializers")
}
