//! What planners were given and what they made of it, as it is logged, and the proof that they would do so again.
//!
//! A log is a list of [`Record`]s. Locations hardly differ from one decision to the next, so a decision of the
//! global planner stands behind those of them that changed since the last one, and one of a location behind the nodes
//! that did; [`Recorder`] and [`Replay`] keep them. A file begins with all of them, so that it is understood by itself.

use std::collections::{BTreeMap, BTreeSet};

use longshore_types::{LocationName, NodeName, Timestamp};
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
    /// The nodes of a location that differ from what was said of them before.
    Nodes {
        /// True when nothing counts any more that was said before.
        all: bool,
        /// Those that differ.
        changed: Vec<location::NodeState>,
        /// Those that are not there any more.
        gone: Vec<NodeName>,
    },
    /// A decision of the planner of a location.
    Location {
        /// All that it depends on, less the nodes where they were said before.
        snapshot: Box<location::Snapshot>,
        /// Whether they were. In logs of the releases before they stand in the snapshot.
        #[serde(default)]
        nodes_said: bool,
        /// What became of it.
        plan: Box<location::Plan>,
    },
}

/// A decision as a [`Record`] has it, of what is lent: to log it nothing is copied.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Decided<'a> {
    /// [`Record::Global`].
    Global {
        /// The clock value.
        now: Timestamp,
        /// The app.
        app: &'a global::WantedApp,
        /// What became of it.
        shared: &'a global::Shared,
    },
}

/// Makes the records of a planner.
#[derive(Debug, Default)]
pub struct Recorder {
    /// What was said last, by name.
    locations: Said<LocationName, global::LocationState>,
    nodes: Said<NodeName, location::NodeState>,
}

impl Recorder {
    /// Begins anew, where what was said before will not be read.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    /// The record that says how the locations are, if it is needed.
    pub fn locations(&mut self, states: &[global::LocationState]) -> Option<Record> {
        let (all, changed, gone) = self.locations.differing(states, |state| &state.name)?;
        Some(Record::Locations { all, changed, gone })
    }

    /// The same of the nodes of a location, which are in the order of their names.
    pub fn nodes(&mut self, states: &[location::NodeState]) -> Option<Record> {
        let (all, changed, gone) = self.nodes.differing(states, |state| &state.name)?;
        Some(Record::Nodes { all, changed, gone })
    }
}

/// What was said last, by name; nothing when that will not be read.
#[derive(Debug)]
struct Said<K, V>(Option<BTreeMap<K, V>>);

impl<K, V> Default for Said<K, V> {
    fn default() -> Self {
        Self(None)
    }
}

impl<K: Ord + Clone, V: PartialEq + Clone> Said<K, V> {
    /// Whether all has to be said, which differ from what was said before, and which of those are gone; nothing when
    /// there is nothing to say. They are said with that.
    fn differing(
        &mut self,
        states: &[V],
        name: impl Fn(&V) -> &K,
    ) -> Option<(bool, Vec<V>, Vec<K>)> {
        let all = self.0.is_none();
        let said = self.0.get_or_insert_default();
        let changed: Vec<V> =
            states.iter().filter(|state| said.get(name(state)) != Some(*state)).cloned().collect();
        let names: BTreeSet<_> = states.iter().map(&name).collect();
        let gone: Vec<K> = said.keys().filter(|known| !names.contains(known)).cloned().collect();
        for name in &gone {
            said.remove(name);
        }
        said.extend(changed.iter().map(|state| (name(state).clone(), state.clone())));
        let is_news = all || !changed.is_empty() || !gone.is_empty();
        is_news.then_some((all, changed, gone))
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
    nodes: BTreeMap<NodeName, location::NodeState>,
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
            Record::Nodes { all, changed, gone } => {
                if all {
                    self.nodes.clear();
                }
                self.nodes.retain(|name, _| !gone.contains(name));
                self.nodes.extend(changed.into_iter().map(|state| (state.name.clone(), state)));
                Outcome::Read
            }
            Record::Location { mut snapshot, nodes_said, plan } => {
                if nodes_said {
                    snapshot.nodes = self.nodes.values().cloned().collect();
                }
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

#[cfg(test)]
mod tests {
    use longshore_types::{ByteCount, Capacity, MilliCpu};

    use super::*;

    fn node(name: &str, gib: u64) -> location::NodeState {
        let memory = ByteCount::gib(gib);
        location::NodeState {
            name: name.parse().unwrap(),
            reachable: true,
            cordon: None,
            capacity: Capacity { cpu: MilliCpu(1000), memory, disk: memory },
            others: Capacity::default(),
            gpus: Vec::new(),
            others_gpus: Default::default(),
            images: BTreeSet::new(),
            pulling: BTreeSet::new(),
            runtimes: Vec::new(),
            traits: Default::default(),
            reached: Vec::new(),
        }
    }

    #[test]
    fn what_is_lent_is_logged_as_what_is_owned() {
        let app = serde_json::json!({
            "project": "default", "app": "web", "count": 2, "max": 4,
            "each": Capacity::default(), "placement": {}, "tried": null, "refusals": {},
            "pinned": null, "shares": [],
        });
        let app: global::WantedApp = serde_json::from_value(app).unwrap();
        let (now, shared) = (Timestamp(7), global::plan_shares(Timestamp(7), &app, &[]));
        let lent = serde_json::to_string(&Decided::Global { now, app: &app, shared: &shared });
        let record = Record::Global { now, app: Box::new(app), shared: Box::new(shared) };
        assert_eq!(lent.unwrap(), serde_json::to_string(&record).unwrap());
        assert_eq!(Replay::default().take(record), Outcome::Same);
    }

    #[test]
    fn nodes_are_said_once_and_then_those_that_differ() {
        let (mut recorder, mut replay) = (Recorder::default(), Replay::default());
        let steps = [
            (vec![], (true, 0, 0)),
            (vec![node("a", 1), node("b", 1)], (false, 2, 0)),
            (vec![node("a", 2), node("b", 1)], (false, 1, 0)),
            (vec![node("a", 2)], (false, 0, 1)),
        ];
        for (states, expected) in steps {
            let record = recorder.nodes(&states).unwrap();
            let Record::Nodes { all, changed, gone } = &record else { panic!("{record:?}") };
            assert_eq!((*all, changed.len(), gone.len()), expected);
            assert_eq!(replay.take(record), Outcome::Read);
            assert!(replay.nodes.values().eq(&states));
            assert_eq!(recorder.nodes(&states), None);
        }
        recorder.forget();
        let record = recorder.nodes(&[node("c", 1)]).unwrap();
        assert!(matches!(&record, Record::Nodes { all: true, .. }));
        replay.take(record);
        assert!(replay.nodes.values().eq(&[node("c", 1)]));
    }
}
