//! Applying requests to the tables, batch after batch inside one redb transaction.
//!
//! A request is decided completely before its first row is written, so a refused one leaves nothing
//! to undo and the rest of the batch goes on. The outer error of these functions is a failing disk,
//! after which the whole transaction is given up.

use std::time::Duration;

use redb::{ReadableTable, Table, WriteTransaction};

use crate::error::StoreError;
use crate::key_value::{Event, KeyValue, LeaseId, Revision};
use crate::transaction::{CheckedTransaction, Compare, Op, OpResponse, Target, TransactionResult};
use crate::watch::WatchBatch;

use super::fault;
use super::steps::{Step, Steps};
use super::tables::{
    CURRENT, Entry, Head, LEASE_KEYS, LEASES, LOG, META, META_BATCH, META_CLOSED, META_COMPACTED,
    META_NEXT_LEASE, META_REVISION, Position, PositionRow, TOMBSTONES, key_of_lease_row,
    lease_key_row,
};

/// The tables of a redb transaction, and what the batch at hand has changed in them so far.
pub struct Tables<'txn> {
    pub(super) current: Table<'txn, &'static str, super::tables::HeadRow>,
    pub(super) tombstones: Table<'txn, &'static str, PositionRow>,
    pub(super) log: Table<'txn, PositionRow, &'static [u8]>,
    leases: Table<'txn, u64, u64>,
    lease_keys: Table<'txn, &'static [u8], ()>,
    meta: Table<'txn, &'static str, u64>,
    /// The newest revision, those of this batch included.
    pub(super) revision: Revision,
    /// The oldest revision that can be read.
    pub(super) compacted: Revision,
    next_lease: u64,
    /// The number of the newest batch that has ended.
    batch: u64,
    /// Whether a batch has ended since the transaction began.
    dirty: bool,
    /// What the batch changed, as the journal will have it.
    pub(super) steps: Steps,
    /// What the batch changed, one element per revision.
    changes: Vec<WatchBatch>,
}

/// What a batch came to.
pub struct Batch {
    /// Counted from 1 since the store was made.
    pub number: u64,
    /// Its steps.
    pub record: Vec<u8>,
    /// What changed, one element per revision; a lease may have come or gone without a change.
    pub changes: Vec<WatchBatch>,
}

#[derive(Debug, thiserror::Error)]
#[error("batch {0} of the journal does not fit what the store has")]
struct Diverged(u64);

impl<'txn> Tables<'txn> {
    /// Opens the tables of a redb transaction.
    pub fn begin(transaction: &'txn WriteTransaction) -> Result<Self, StoreError> {
        let opening = "opening its tables";
        let meta = transaction.open_table(META).map_err(fault(opening))?;
        let number = |name| -> Result<u64, StoreError> {
            let stored = meta.get(name).map_err(fault(opening))?;
            Ok(stored.map_or(0, |stored| stored.value()))
        };
        let revision = Revision(number(META_REVISION)?);
        let compacted = Revision(number(META_COMPACTED)?);
        let next_lease = number(META_NEXT_LEASE)?;
        let batch = number(META_BATCH)?;
        Ok(Self {
            current: transaction.open_table(CURRENT).map_err(fault(opening))?,
            tombstones: transaction.open_table(TOMBSTONES).map_err(fault(opening))?,
            log: transaction.open_table(LOG).map_err(fault(opening))?,
            leases: transaction.open_table(LEASES).map_err(fault(opening))?,
            lease_keys: transaction.open_table(LEASE_KEYS).map_err(fault(opening))?,
            meta,
            revision,
            compacted,
            next_lease,
            batch,
            dirty: false,
            steps: Steps::default(),
            changes: Vec::new(),
        })
    }

    /// Ends the batch at hand; `None` when it changed nothing.
    pub fn end_batch(&mut self) -> Option<Batch> {
        if self.steps.is_empty() {
            return None;
        }
        self.batch += 1;
        self.dirty = true;
        let changes = std::mem::take(&mut self.changes);
        Some(Batch { number: self.batch, record: self.steps.take(), changes })
    }

    /// Whether a batch has ended that changed something.
    pub fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Writes the store's numbers, that it is closed or is not among them; the redb transaction can then be
    /// committed.
    pub fn finish(mut self, is_closed: bool) -> Result<(), StoreError> {
        let numbers = [
            (META_REVISION, self.revision.0),
            (META_COMPACTED, self.compacted.0),
            (META_NEXT_LEASE, self.next_lease),
            (META_BATCH, self.batch),
            (META_CLOSED, is_closed.into()),
        ];
        for (name, number) in numbers {
            self.meta.insert(name, number).map_err(fault("writing its revision"))?;
        }
        Ok(())
    }

    /// Does a batch once more that the journal has. It comes to the same steps, or the journal is of something else.
    pub fn replay(&mut self, number: u64, record: &[u8]) -> Result<(), StoreError> {
        let mut change = self.begin_change();
        for step in Steps::of(record) {
            match step? {
                Step::Event { position, entry } => {
                    if position.revision != change.revision {
                        self.end_change(change);
                        change = self.begin_change();
                    }
                    match Entry::decode(position, entry)?.event {
                        Event::Put(kv) => self.put(&mut change, kv)?,
                        Event::Delete { key, .. } => drop(self.delete(&mut change, &key)?),
                    }
                }
                Step::Granted { lease, ttl_ms } => self.insert_lease(lease, ttl_ms)?,
                Step::Revoked(lease) => drop(self.remove_lease(lease)?),
                Step::Compacted(to) => {
                    self.end_change(change);
                    change = self.begin_change();
                    self.compact_to(to)?;
                }
            }
        }
        self.end_change(change);
        match self.end_batch() {
            Some(batch) if batch.number == number && batch.record == record => Ok(()),
            _ => Err(fault("doing once more what the journal has")(Diverged(number))),
        }
    }

    /// Does a transaction, or refuses it as a whole.
    pub fn transaction(
        &mut self,
        transaction: &CheckedTransaction,
    ) -> Result<Result<TransactionResult, StoreError>, StoreError> {
        let mut succeeded = true;
        for condition in transaction.conditions() {
            succeeded = succeeded && self.holds(condition)?;
        }
        let ops = transaction.branch(succeeded);
        for op in ops {
            if let Op::Put { lease: Some(lease), .. } = op
                && !self.lease_exists(*lease)?
            {
                return Ok(Err(StoreError::LeaseNotFound { lease: *lease }));
            }
        }
        let mut change = self.begin_change();
        let mut responses = Vec::with_capacity(ops.len());
        for op in ops {
            responses.push(self.operation(&mut change, op)?);
        }
        self.end_change(change);
        Ok(Ok(TransactionResult { succeeded, revision: self.revision, responses }))
    }

    /// Does transactions one after the other, up to the first that is refused.
    pub fn transactions(
        &mut self,
        transactions: &[CheckedTransaction],
    ) -> Result<Result<Vec<TransactionResult>, StoreError>, StoreError> {
        let mut results = Vec::with_capacity(transactions.len());
        for transaction in transactions {
            match self.transaction(transaction)? {
                Ok(result) => results.push(result),
                Err(refused) => return Ok(Err(refused)),
            }
        }
        Ok(Ok(results))
    }

    /// Grants a lease.
    pub fn grant(&mut self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let lease = LeaseId(self.next_lease);
        self.insert_lease(lease, u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))?;
        Ok(lease)
    }

    fn insert_lease(&mut self, lease: LeaseId, ttl_ms: u64) -> Result<(), StoreError> {
        self.next_lease = lease.0 + 1;
        self.leases.insert(lease.0, ttl_ms).map_err(fault("granting a lease"))?;
        self.steps.add(Step::Granted { lease, ttl_ms });
        Ok(())
    }

    /// Whether it was there.
    fn remove_lease(&mut self, lease: LeaseId) -> Result<bool, StoreError> {
        let was_there = self.leases.remove(lease.0).map_err(fault("ending a lease"))?.is_some();
        if was_there {
            self.steps.add(Step::Revoked(lease));
        }
        Ok(was_there)
    }

    /// Ends a lease and deletes its keys in one revision; refuses one that does not exist.
    pub fn revoke(&mut self, lease: LeaseId) -> Result<Result<(), StoreError>, StoreError> {
        let ending = "ending a lease";
        if !self.remove_lease(lease)? {
            return Ok(Err(StoreError::LeaseNotFound { lease }));
        }
        let first = lease_key_row(lease, "");
        let end = lease_key_row(LeaseId(lease.0 + 1), "");
        let mut keys = Vec::new();
        for row in self.lease_keys.range::<&[u8]>(&first[..]..&end[..]).map_err(fault(ending))? {
            let (row, ()) = row.map(|(row, unit)| (row, unit.value())).map_err(fault(ending))?;
            keys.push(key_of_lease_row(row.value())?);
        }
        let mut change = self.begin_change();
        for key in keys {
            self.delete(&mut change, &key)?;
        }
        self.end_change(change);
        Ok(Ok(()))
    }

    fn holds(&self, condition: &Compare) -> Result<bool, StoreError> {
        let head = self.head(&condition.key)?;
        let relation = condition.relation;
        Ok(match &condition.target {
            Target::CreateRevision(given) => {
                let stored = head.map_or(Revision(0), |head| head.create_revision);
                relation.holds(&stored, given)
            }
            Target::ModRevision(given) => {
                let stored = head.map_or(Revision(0), |head| head.position.revision);
                relation.holds(&stored, given)
            }
            Target::Version(given) => relation.holds(&head.map_or(0, |head| head.version), given),
            Target::Value(given) => match head {
                Some(head) => relation.holds(&self.key_value(head)?.value[..], &given[..]),
                None => false,
            },
        })
    }

    fn operation(&mut self, change: &mut WatchBatch, op: &Op) -> Result<OpResponse, StoreError> {
        match op {
            Op::Put { key, value, lease } => {
                let kv = KeyValue {
                    key: key.clone(),
                    value: value.clone(),
                    // These two are settled by what is there, in `put`.
                    create_revision: change.revision,
                    version: 1,
                    mod_revision: change.revision,
                    lease: *lease,
                };
                self.put(change, kv)?;
                Ok(OpResponse::Put)
            }
            Op::Delete { key } => Ok(OpResponse::Deleted(self.delete(change, key)?.into())),
            Op::DeletePrefix { prefix } => {
                let mut n_deleted = 0;
                for (key, _) in self.heads_under(prefix)? {
                    n_deleted += u64::from(self.delete(change, &key)?);
                }
                Ok(OpResponse::Deleted(n_deleted))
            }
            Op::Get { key } => {
                let head = self.head(key)?;
                Ok(OpResponse::Got(head.map(|head| self.key_value(head)).transpose()?))
            }
            Op::GetPrefix { prefix } => self
                .heads_under(prefix)?
                .into_iter()
                .map(|(_, head)| self.key_value(head))
                .collect::<Result<_, _>>()
                .map(OpResponse::GotPrefix),
        }
    }

    fn put(&mut self, change: &mut WatchBatch, mut kv: KeyValue) -> Result<(), StoreError> {
        let writing = "writing a key";
        let old = self.head(&kv.key)?;
        let previous = match old {
            Some(old) => {
                kv.create_revision = old.create_revision;
                kv.version = old.version + 1;
                Some(old.position)
            }
            None => self
                .tombstones
                .remove(kv.key.as_str())
                .map_err(fault(writing))?
                .map(|row| Position::from_row(row.value())),
        };
        self.move_to_lease(&kv.key, old.and_then(|old| old.lease), kv.lease)?;
        let head = Head {
            position: next_position(change),
            create_revision: kv.create_revision,
            version: kv.version,
            lease: kv.lease,
        };
        self.current.insert(kv.key.as_str(), head.row()).map_err(fault(writing))?;
        self.record(change, previous, Event::Put(kv))
    }

    /// Deletes a key; whether it was there.
    fn delete(&mut self, change: &mut WatchBatch, key: &str) -> Result<bool, StoreError> {
        let deleting = "deleting a key";
        let Some(old) = self.head(key)? else {
            return Ok(false);
        };
        self.current.remove(key).map_err(fault(deleting))?;
        self.tombstones.insert(key, next_position(change).row()).map_err(fault(deleting))?;
        self.move_to_lease(key, old.lease, None)?;
        let event = Event::Delete { key: key.to_owned(), revision: change.revision };
        self.record(change, Some(old.position), event)?;
        Ok(true)
    }

    /// Adds a change to the log and to what the revision tells its watchers.
    fn record(
        &mut self,
        change: &mut WatchBatch,
        previous: Option<Position>,
        event: Event,
    ) -> Result<(), StoreError> {
        let position = next_position(change);
        let entry = Entry { previous, event };
        let encoded = entry.encode();
        self.log
            .insert(position.row(), encoded.as_slice())
            .map_err(fault("writing the history"))?;
        self.steps.add(Step::Event { position, entry: &encoded });
        change.events.push(entry.event);
        Ok(())
    }

    fn move_to_lease(
        &mut self,
        key: &str,
        from: Option<LeaseId>,
        to: Option<LeaseId>,
    ) -> Result<(), StoreError> {
        let moving = "tying a key to a lease";
        if from == to {
            return Ok(());
        }
        if let Some(from) = from {
            self.lease_keys.remove(lease_key_row(from, key).as_slice()).map_err(fault(moving))?;
        }
        if let Some(to) = to {
            self.lease_keys.insert(lease_key_row(to, key).as_slice(), ()).map_err(fault(moving))?;
        }
        Ok(())
    }

    fn begin_change(&self) -> WatchBatch {
        WatchBatch { revision: self.revision.next(), events: Vec::new() }
    }

    fn end_change(&mut self, change: WatchBatch) {
        if !change.events.is_empty() {
            self.revision = change.revision;
            self.changes.push(change);
        }
    }

    fn lease_exists(&self, lease: LeaseId) -> Result<bool, StoreError> {
        let stored = self.leases.get(lease.0).map_err(fault("reading a lease"))?;
        Ok(stored.is_some())
    }

    fn head(&self, key: &str) -> Result<Option<Head>, StoreError> {
        let stored = self.current.get(key).map_err(fault("reading a key"))?;
        Ok(stored.map(|stored| Head::from_row(stored.value())))
    }

    fn key_value(&self, head: Head) -> Result<KeyValue, StoreError> {
        super::read::key_value(&self.log, head.position)
    }

    fn heads_under(&self, prefix: &str) -> Result<Vec<(String, Head)>, StoreError> {
        let mut heads = Vec::new();
        for row in self.current.range(prefix..).map_err(fault("reading keys"))? {
            let (key, head) = row.map_err(fault("reading keys"))?;
            if !key.value().starts_with(prefix) {
                break;
            }
            heads.push((key.value().to_owned(), Head::from_row(head.value())));
        }
        Ok(heads)
    }
}

/// Where the next event of a change goes in the log.
fn next_position(change: &WatchBatch) -> Position {
    Position {
        revision: change.revision,
        index: u32::try_from(change.events.len()).expect("a revision has fewer than 2^32 changes"),
    }
}
