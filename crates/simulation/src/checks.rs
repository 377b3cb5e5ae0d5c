//! What must be so at every moment, and in the end. It is read from the store and from what runs on nodes, as
//! somebody outside would, and not from what the code under test thinks.

use std::collections::BTreeMap;

use longshore_store::{Event, Revision};
use longshore_types::InstanceId;
use serde_json::Value;

use crate::node::Node;
use crate::store::Memory;

/// What is stored of an app, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct App {
    /// The release that should run.
    pub release: u64,
    /// How many instances should.
    pub count: u64,
    /// It is being removed.
    pub removing: bool,
    /// The release that was given up.
    pub failed: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Allotted {
    budget_in_force: u64,
    generation: u64,
    /// It was taken away; what runs has to end.
    is_gone: bool,
}

/// Holds the world against what must be so.
pub struct Checks {
    /// The most instances that there may ever be of any app.
    max: u64,
    seen: Revision,
    /// By app and location.
    allotted: BTreeMap<(String, String), Allotted>,
    /// The apps that are stored.
    pub apps: BTreeMap<String, App>,
    /// On which node each instance was seen first.
    homes: BTreeMap<InstanceId, usize>,
}

fn data(value: &[u8]) -> Value {
    let document: Value = serde_json::from_slice(value).expect("what is stored is JSON");
    document["data"].clone()
}

fn number(value: &Value, field: &str) -> u64 {
    value[field].as_u64().unwrap_or_else(|| panic!("no {field} in {value}"))
}

impl Checks {
    /// Knows of nothing yet.
    pub fn new(max: u64) -> Self {
        let (allotted, apps, homes) = Default::default();
        Self { max, seen: Revision(0), allotted, apps, homes }
    }

    /// Reads on in the store; each change is a line, and must be one that may be.
    pub fn read(&mut self, store: &Memory) -> Result<Vec<String>, String> {
        let mut lines = Vec::new();
        for batch in store.changes_after(self.seen) {
            self.seen = batch.revision;
            for event in &batch.events {
                let line = match event {
                    Event::Put(put) => self.put(&put.key, &put.value)?,
                    Event::Delete { key, .. } => self.delete(key),
                };
                lines.extend(line.map(|line| format!("store {}: {line}", batch.revision)));
            }
            self.budgets_stay_below_max()?;
        }
        Ok(lines)
    }

    fn put(&mut self, key: &str, value: &[u8]) -> Result<Option<String>, String> {
        let parts: Vec<_> = key.split('/').skip(1).collect();
        match parts.as_slice() {
            ["allotments", location, _, app] => {
                let value = data(value);
                let next = Allotted {
                    budget_in_force: number(&value, "budget_in_force"),
                    generation: number(&value, "generation"),
                    is_gone: false,
                };
                let at = ((*app).to_owned(), (*location).to_owned());
                let before = self.allotted.insert(at, next).unwrap_or_default();
                if !before.is_gone && next.generation != before.generation + 1 {
                    return Err(format!(
                        "{key} went from generation {} to {}",
                        before.generation, next.generation
                    ));
                }
                let (count, budget) = (number(&value, "count"), number(&value, "budget"));
                let release = number(&value, "release");
                let in_force = next.budget_in_force;
                Ok(Some(format!(
                    "{location} gets {count} of {app} r{release}, budget {budget} ({in_force})"
                )))
            }
            ["projects", _, "apps", app] => {
                let value = data(value);
                let next = App {
                    release: number(&value, "release"),
                    count: number(&value, "count"),
                    removing: value["removing"].as_bool().unwrap_or_default(),
                    failed: value["failed"].as_u64(),
                };
                let line = format!("{app} is {next:?}");
                self.apps.insert((*app).to_owned(), next);
                Ok(Some(line))
            }
            // What has random parts is none of the trace.
            ["leader" | "cordons" | "locations", ..] => Ok(Some(format!("{key} is written"))),
            _ => Ok(None),
        }
    }

    fn delete(&mut self, key: &str) -> Option<String> {
        let parts: Vec<_> = key.split('/').skip(1).collect();
        match parts.as_slice() {
            ["allotments", location, _, app] => {
                let at = ((*app).to_owned(), (*location).to_owned());
                self.allotted.entry(at).or_default().is_gone = true;
            }
            ["projects", _, "apps", app] => _ = self.apps.remove(*app),
            ["leader"] | ["cordons", ..] => {}
            _ => return None,
        }
        Some(format!("{key} is deleted"))
    }

    /// What is handed out of an app, to unreachable locations too, is never more than its `max`.
    fn budgets_stay_below_max(&self) -> Result<(), String> {
        let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
        for ((app, _), allotted) in self.allotted.iter().filter(|(_, one)| !one.is_gone) {
            *sums.entry(app).or_default() += allotted.budget_in_force;
        }
        match sums.into_iter().find(|(_, sum)| *sum > self.max) {
            Some((app, sum)) => {
                Err(format!("budgets of {sum} for {app}, whose max is {}", self.max))
            }
            None => Ok(()),
        }
    }

    /// What runs on the nodes is never too much, and nothing runs twice. `names` are those of the locations.
    pub fn look<'a>(
        &mut self,
        nodes: impl Iterator<Item = &'a Node>,
        names: &[&str],
    ) -> Result<(), String> {
        let mut by_place: BTreeMap<(&str, usize), u64> = BTreeMap::new();
        let mut by_app: BTreeMap<&str, u64> = BTreeMap::new();
        for (number, node) in nodes.enumerate() {
            if let Some(fault) = node.fault_of_gpus() {
                return Err(format!("node {number}: {fault}"));
            }
            for (id, container) in &node.containers {
                let home = *self.homes.entry(id.clone()).or_insert(number);
                if home != number {
                    return Err(format!("instance {id} is on node {number} and was on {home}"));
                }
                if container.runs() {
                    let app = container.app.as_str();
                    *by_place.entry((app, node.location)).or_default() += 1;
                    *by_app.entry(app).or_default() += 1;
                }
            }
        }
        if let Some((app, n)) = by_app.into_iter().find(|(_, n)| *n > self.max) {
            return Err(format!("{n} instances of {app} run, whose max is {}", self.max));
        }
        for ((app, location), n) in by_place {
            let at = (app.to_owned(), names[location].to_owned());
            let allowed = self.allotted.get(&at).map_or(0, |one| one.budget_in_force);
            if n > allowed {
                return Err(format!("{n} of {app} run at {}, which may have {allowed}", at.1));
            }
        }
        Ok(())
    }

    /// What is not yet as it should be, if anything.
    pub fn difference<'a>(&self, nodes: impl Iterator<Item = &'a Node> + Clone) -> Option<String> {
        if let Some((app, _)) = self.apps.iter().find(|(_, app)| app.removing) {
            return Some(format!("{app} is not gone"));
        }
        let containers = || nodes.clone().flat_map(|node| node.containers.iter());
        for (id, container) in containers().filter(|(_, container)| container.runs()) {
            let app = self.apps.get(container.app.as_str());
            if app.is_none_or(|app| app.release != container.release.0) {
                return Some(format!("{id} of {} {} runs", container.app, container.release));
            }
        }
        for (name, app) in &self.apps {
            let running = containers().filter(|(_, container)| container.app.as_str() == name);
            let (n, n_healthy) = running.fold((0, 0), |(n, n_healthy), (_, container)| {
                (n + u64::from(container.runs()), n_healthy + u64::from(container.is_healthy()))
            });
            if (n, n_healthy) != (app.count, app.count) {
                return Some(format!("{n} of {name} run, {n_healthy} healthy, of {}", app.count));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use longshore_store::{Store as _, Transaction};
    use serde_json::json;

    use super::*;

    async fn put(store: &Memory, key: &str, data: Value) {
        let value = json!({"v": 1, "data": data}).to_string();
        store.commit(Transaction::new().put(key, value)).await.unwrap();
    }

    fn allotted(budget_in_force: u64, generation: u64) -> Value {
        json!({"budget_in_force": budget_in_force, "generation": generation, "count": 1, "budget": 1,
            "release": 1})
    }

    #[tokio::test]
    async fn what_may_not_be_is_seen() {
        let store = Memory::default();
        let mut checks = Checks::new(4);
        put(&store, "/allotments/ams/default/web", allotted(3, 1)).await;
        checks.read(&store).unwrap();
        put(&store, "/allotments/sin/default/web", allotted(2, 1)).await;
        assert!(checks.read(&store).unwrap_err().contains("budgets of 5"));
        put(&store, "/allotments/sin/default/web", allotted(1, 2)).await;
        checks.read(&store).unwrap();
        put(&store, "/allotments/sin/default/web", allotted(1, 2)).await;
        assert!(checks.read(&store).unwrap_err().contains("generation"));
        put(&store, "/projects/default/apps/web", json!({"release": 1, "count": 1})).await;
        checks.read(&store).unwrap();
        assert_eq!(checks.difference([].iter()).unwrap(), "0 of web run, 0 healthy, of 1");
    }
}
