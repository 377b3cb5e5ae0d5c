//! A store as one would first think of it: every state there ever was, whole.

use std::collections::{BTreeMap, BTreeSet};

use longshore_store::{
    Compare, Event, KeyValue, LeaseId, Op, OpResponse, Revision, StoreError, Target, Transaction,
    TransactionResult, WatchBatch,
};

type State = BTreeMap<String, KeyValue>;

pub struct Naive {
    /// The state after each revision.
    states: BTreeMap<Revision, State>,
    changes: Vec<WatchBatch>,
    compacted: Revision,
    leases: BTreeSet<LeaseId>,
}

/// A transaction's state and what it has changed so far.
struct Draft {
    revision: Revision,
    state: State,
    events: Vec<Event>,
}

impl Draft {
    fn delete(&mut self, keys: Vec<String>) -> u64 {
        let mut n_deleted = 0;
        for key in keys {
            if self.state.remove(&key).is_some() {
                n_deleted += 1;
                self.events.push(Event::Delete { key, revision: self.revision });
            }
        }
        n_deleted
    }

    fn under(&self, prefix: &str) -> Vec<String> {
        self.state.keys().filter(|key| key.starts_with(prefix)).cloned().collect()
    }

    fn put(&mut self, key: &str, value: &[u8], lease: Option<LeaseId>) {
        let old = self.state.get(key);
        let kv = KeyValue {
            key: key.to_owned(),
            value: value.to_vec().into(),
            create_revision: old.map_or(self.revision, |old| old.create_revision),
            mod_revision: self.revision,
            version: old.map_or(1, |old| old.version + 1),
            lease,
        };
        self.state.insert(key.to_owned(), kv.clone());
        self.events.push(Event::Put(kv));
    }

    fn operation(&mut self, op: &Op) -> OpResponse {
        match op {
            Op::Put { key, value, lease } => {
                self.put(key, value, *lease);
                OpResponse::Put
            }
            Op::Delete { key } => OpResponse::Deleted(self.delete(vec![key.clone()])),
            Op::DeletePrefix { prefix } => OpResponse::Deleted(self.delete(self.under(prefix))),
            Op::Get { key } => OpResponse::Got(self.state.get(key).cloned()),
            Op::GetPrefix { prefix } => OpResponse::GotPrefix(
                self.under(prefix).iter().map(|key| self.state[key].clone()).collect(),
            ),
        }
    }
}

impl Naive {
    pub fn new() -> Self {
        Self {
            states: BTreeMap::from([(Revision(1), State::new())]),
            changes: Vec::new(),
            compacted: Revision(0),
            leases: BTreeSet::new(),
        }
    }

    pub fn revision(&self) -> Revision {
        *self.states.keys().next_back().expect("there is always a state")
    }

    pub fn compacted(&self) -> Revision {
        self.compacted
    }

    fn state(&self) -> &State {
        &self.states[&self.revision()]
    }

    pub fn get(&self, key: &str) -> Option<&KeyValue> {
        self.state().get(key)
    }

    pub fn grant(&mut self, lease: LeaseId) {
        self.leases.insert(lease);
    }

    pub fn revoke(&mut self, lease: LeaseId) -> Result<(), StoreError> {
        if !self.leases.remove(&lease) {
            return Err(StoreError::LeaseNotFound { lease });
        }
        let mut draft = self.draft();
        let keys = draft.state.values().filter(|kv| kv.lease == Some(lease));
        let keys = keys.map(|kv| kv.key.clone()).collect();
        draft.delete(keys);
        self.settle(draft);
        Ok(())
    }

    pub fn compact(&mut self, to: Revision) {
        self.compacted = self.compacted.max(to);
    }

    pub fn list(&self, prefix: &str, at: Revision) -> Result<Vec<KeyValue>, StoreError> {
        self.check_kept(at)?;
        // Before the first revision there was nothing.
        let state = self.states.get(&at).into_iter().flatten();
        Ok(state.filter(|(key, _)| key.starts_with(prefix)).map(|(_, kv)| kv.clone()).collect())
    }

    pub fn watch(&self, prefix: &str, from: Revision) -> Result<Vec<WatchBatch>, StoreError> {
        self.check_kept(from)?;
        let mut batches: Vec<_> =
            self.changes.iter().filter(|batch| batch.revision >= from).cloned().collect();
        for batch in &mut batches {
            batch.events.retain(|event| event.key().starts_with(prefix));
        }
        batches.retain(|batch| !batch.events.is_empty());
        Ok(batches)
    }

    pub fn commit(&mut self, transaction: &Transaction) -> Result<TransactionResult, StoreError> {
        check_duplicates(transaction.then_ops())?;
        check_duplicates(transaction.otherwise_ops())?;
        let succeeded = transaction.conditions().iter().all(|condition| self.holds(condition));
        let ops = if succeeded { transaction.then_ops() } else { transaction.otherwise_ops() };
        for op in ops {
            if let Op::Put { lease: Some(lease), .. } = op
                && !self.leases.contains(lease)
            {
                return Err(StoreError::LeaseNotFound { lease: *lease });
            }
        }
        let mut draft = self.draft();
        let responses = ops.iter().map(|op| draft.operation(op)).collect();
        self.settle(draft);
        Ok(TransactionResult { succeeded, revision: self.revision(), responses })
    }

    fn holds(&self, condition: &Compare) -> bool {
        let kv = self.get(&condition.key);
        let relation = condition.relation;
        let number = |of: fn(&KeyValue) -> u64| kv.map_or(0, of);
        match &condition.target {
            Target::CreateRevision(given) => {
                relation.holds(&number(|kv| kv.create_revision.0), &given.0)
            }
            Target::ModRevision(given) => relation.holds(&number(|kv| kv.mod_revision.0), &given.0),
            Target::Version(given) => relation.holds(&number(|kv| kv.version), given),
            Target::Value(given) => kv.is_some_and(|kv| relation.holds(&kv.value, given)),
        }
    }

    fn draft(&self) -> Draft {
        Draft { revision: self.revision().next(), state: self.state().clone(), events: Vec::new() }
    }

    fn settle(&mut self, draft: Draft) {
        if !draft.events.is_empty() {
            self.states.insert(draft.revision, draft.state);
            self.changes.push(WatchBatch { revision: draft.revision, events: draft.events });
        }
    }

    fn check_kept(&self, revision: Revision) -> Result<(), StoreError> {
        if revision < self.compacted {
            return Err(StoreError::Compacted { requested: revision, at: self.compacted });
        }
        Ok(())
    }
}

/// Each put against every other write of the branch.
fn check_duplicates(ops: &[Op]) -> Result<(), StoreError> {
    for (i, put) in ops.iter().enumerate() {
        let Op::Put { key, .. } = put else { continue };
        let hit = ops.iter().enumerate().any(|(j, other)| match other {
            Op::Put { key: other, .. } | Op::Delete { key: other } => i != j && other == key,
            Op::DeletePrefix { prefix } => key.starts_with(prefix.as_str()),
            Op::Get { .. } | Op::GetPrefix { .. } => false,
        });
        if hit {
            return Err(StoreError::DuplicateKey { key: key.clone() });
        }
    }
    Ok(())
}
