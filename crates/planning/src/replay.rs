//! What planners were given and what they made of it, as it is logged, and the proof that they would do so again.
//!
//! A log is a list of [`Record`]s. Locations hardly differ from one decision to the next, so a decision of the
//! global planner stands behind those of them that changed since the last one; [`Recorder`] and [`Replay`] keep
//! them. A file begins with all of them, so that it is understood by itself.

use std::collections::{BTreeMap, BTreeSet};

use longshore_types::{LocationName, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{global, location};

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// What follows is of this version.
    Began {
        /// The version of Longshore.
        version: String,
    },
    /// The locations that differ from what was said of them before.
    Locations {
        /// True when nothing counts any more that was said before.
        all: bool,
        /// Those that differ.
        changed: Vec<global::LocationState>,
        /// Those that are not there any more.
        gone: Vec<LocationName>,
    },
    /// A decision of the global planner, with the locations as they were said to be.
    Global {
        /// The clock value.
        now: Timestamp,
        /// The app.
        app: Box<global::WantedApp>,
        /// What became of it.
        shared: Box<global::Shared>,
    },
    /// A decision of the planner of a location.
    Location {
        /// All that it depends on.
        snapshot: Box<location::Snapshot>,
        /// What became of it.
        plan: Box<location::Plan>,
    },
}

/// Makes the records of a global planner.
#[derive(Debug, Default)]
pub struct Recorder {
    /// What was said last, by name.
    said: BTreeMap<LocationName, global::LocationState>,
}

impl Recorder {
    /// Begins anew, where what was said before will not be read.
    pub fn forget(&mut self) {
        self.said.clear();
    }

    /// The record that says how the locations are, if it is needed.
    pub fn locations(&mut self, states: &[global::LocationState]) -> Option<Record> {
        let all = self.said.is_empty();
        let differs = |state: &&global::LocationState| self.said.get(&state.name) != Some(*state);
        let changed: Vec<_> = states.iter().filter(differs).cloned().collect();
        let names: BTreeSet<_> = states.iter().map(|state| &state.name).collect();
        let is_gone = |name: &&LocationName| !names.contains(name);
        let gone: Vec<_> = self.said.keys().filter(is_gone).cloned().collect();
        for name in &gone {
            self.said.remove(name);
        }
        self.said.extend(changed.iter().map(|state| (state.name.clone(), state.clone())));
        let is_news = all || !changed.is_empty() || !gone.is_empty();
        is_news.then_some(Record::Locations { all, changed, gone })
    }
}

/// What came of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It decides nothing.
    Read,
    /// The same comes out again.
    Same,
    /// Something else comes out now.
    Different {
        /// What was decided, in words.
        what: String,
        /// What was logged.
        logged: String,
        /// What comes out.
        now: String,
    },
}

/// Recomputes what was logged.
#[derive(Debug, Default)]
pub struct Replay {
    locations: BTreeMap<LocationName, global::LocationState>,
}

impl Replay {
    /// Takes the next record.
    pub fn take(&mut self, record: Record) -> Outcome {
        match record {
            Record::Began { .. } => Outcome::Read,
            Record::Locations { all, changed, gone } => {
                if all {
                    self.locations.clear();
                }
                self.locations.retain(|name, _| !gone.contains(name));
                let changed = changed.into_iter();
                self.locations.extend(changed.map(|state| (state.name.clone(), state)));
                Outcome::Read
            }
            Record::Global { now, app, shared } => {
                let states: Vec<_> = self.locations.values().cloned().collect();
                let again = global::plan_shares(now, &app, &states);
                let what = format!("the locations of {}/{}", app.project, app.app);
                compare(what, &*shared, &again)
            }
            Record::Location { snapshot, plan } => {
                let again = location::plan(&snapshot);
                compare(format!("a plan of a location at {}", snapshot.now), &*plan, &again)
            }
        }
    }
}

fn compare<T: PartialEq + std::fmt::Debug>(what: String, logged: &T, again: &T) -> Outcome {
    if logged == again {
        return Outcome::Same;
    }
    Outcome::Different { what, logged: format!("{logged:#?}"), now: format!("{again:#?}") }
}
