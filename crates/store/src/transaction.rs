//! Transactions: conditions, and what to do when they all hold or when one does not.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::error::StoreError;
use crate::key::{Key, Prefix};
use crate::key_value::{KeyValue, LeaseId, Revision};

/// The most conditions, and the most operations in one branch, that a transaction may have: etcd's
/// default for `--max-txn-ops`.
pub const MAX_OPERATIONS: usize = 128;

/// The largest transaction, in bytes: etcd's default for `--max-request-bytes`, 1.5 MiB.
pub const MAX_REQUEST_BYTES: usize = 3 * 512 * 1024;

/// What each condition and operation counts for beside its key and value: more than etcd's encoding
/// ever adds, so that a transaction that passes here is not refused there.
const OPERATION_OVERHEAD_BYTES: usize = 64;

/// How a condition relates what is stored to what is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// Stored equals given.
    Equal,
    /// Stored differs from given.
    NotEqual,
    /// Stored is less than given.
    Less,
    /// Stored is greater than given.
    Greater,
}

impl Relation {
    /// Whether `stored` stands in this relation to `given`.
    pub fn holds<T: Ord + ?Sized>(self, stored: &T, given: &T) -> bool {
        match self {
            Self::Equal => stored == given,
            Self::NotEqual => stored != given,
            Self::Less => stored < given,
            Self::Greater => stored > given,
        }
    }
}

/// What of a key a condition looks at. For a key that does not exist the numbers are 0, and a
/// condition on the value never holds, not even [`Relation::NotEqual`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The revision at which the key came into being.
    CreateRevision(Revision),
    /// The revision that last wrote the key.
    ModRevision(Revision),
    /// How often the key was written.
    Version(u64),
    /// The key's value, compared as bytes.
    Value(Bytes),
}

/// One condition of a transaction, on one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// The key looked at.
    pub key: String,
    /// What of it, and against what.
    pub target: Target,
    /// How the stored must relate to the given.
    pub relation: Relation,
}

impl Compare {
    fn new(key: impl Into<String>, relation: Relation, target: Target) -> Self {
        Self { key: key.into(), target, relation }
    }

    /// Holds when the key does not exist.
    pub fn absent(key: impl Into<String>) -> Self {
        Self::create_revision(key, Relation::Equal, Revision(0))
    }

    /// Holds when the key exists.
    pub fn exists(key: impl Into<String>) -> Self {
        Self::create_revision(key, Relation::Greater, Revision(0))
    }

    /// Holds when nobody wrote or deleted the key since `seen` was read: compare-and-swap.
    pub fn unchanged(seen: &KeyValue) -> Self {
        Self::mod_revision(seen.key.clone(), Relation::Equal, seen.mod_revision)
    }

    /// A condition on the revision at which the key came into being.
    pub fn create_revision(key: impl Into<String>, relation: Relation, given: Revision) -> Self {
        Self::new(key, relation, Target::CreateRevision(given))
    }

    /// A condition on the revision that last wrote the key.
    pub fn mod_revision(key: impl Into<String>, relation: Relation, given: Revision) -> Self {
        Self::new(key, relation, Target::ModRevision(given))
    }

    /// A condition on how often the key was written since it came into being.
    pub fn version(key: impl Into<String>, relation: Relation, given: u64) -> Self {
        Self::new(key, relation, Target::Version(given))
    }

    /// A condition on the value.
    pub fn value(key: impl Into<String>, relation: Relation, given: impl Into<Bytes>) -> Self {
        Self::new(key, relation, Target::Value(given.into()))
    }

    fn n_bytes(&self) -> usize {
        let value = match &self.target {
            Target::Value(value) => value.len(),
            Target::CreateRevision(_) | Target::ModRevision(_) | Target::Version(_) => 0,
        };
        OPERATION_OVERHEAD_BYTES + self.key.len() + value
    }
}

/// One operation of a transaction. A later one sees what the earlier ones did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Writes a key.
    Put {
        /// The key.
        key: String,
        /// Its new value.
        value: Bytes,
        /// The lease to tie it to; without one the key loses the lease it had.
        lease: Option<LeaseId>,
    },
    /// Deletes a key; deleting what is not there is no error and no change.
    Delete {
        /// The key.
        key: String,
    },
    /// Deletes every key that begins with the prefix.
    DeletePrefix {
        /// The prefix.
        prefix: String,
    },
    /// Reads a key.
    Get {
        /// The key.
        key: String,
    },
    /// Reads every key that begins with the prefix.
    GetPrefix {
        /// The prefix.
        prefix: String,
    },
}

impl Op {
    fn n_bytes(&self) -> usize {
        let (key, value) = match self {
            Self::Put { key, value, .. } => (key, value.len()),
            Self::Delete { key } | Self::Get { key } => (key, 0),
            Self::DeletePrefix { prefix } | Self::GetPrefix { prefix } => (prefix, 0),
        };
        OPERATION_OVERHEAD_BYTES + key.len() + value
    }

    fn check_key(&self) -> Result<(), StoreError> {
        match self {
            Self::Put { key, .. } | Self::Delete { key } | Self::Get { key } => {
                Key::parse(key).map(drop)
            }
            Self::DeletePrefix { prefix } | Self::GetPrefix { prefix } => {
                Prefix::parse(prefix).map(drop)
            }
        }
    }
}

/// Conditions and two lists of operations: one for when all conditions hold, one for when not.
///
/// ```
/// use longshore_store::{Compare, Transaction};
/// let create = Transaction::new()
///     .when(Compare::absent("/apps/default/web"))
///     .put("/apps/default/web", "{}")
///     .otherwise_get("/apps/default/web");
/// # drop(create);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    conditions: Vec<Compare>,
    then: Vec<Op>,
    otherwise: Vec<Op>,
}

impl Transaction {
    /// An empty transaction, whose conditions hold.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition; all must hold for the operations to be done.
    #[must_use]
    pub fn when(mut self, condition: Compare) -> Self {
        self.conditions.push(condition);
        self
    }

    /// Adds an operation for when all conditions hold.
    #[must_use]
    pub fn then(mut self, op: Op) -> Self {
        self.then.push(op);
        self
    }

    /// Adds an operation for when a condition does not hold.
    #[must_use]
    pub fn otherwise(mut self, op: Op) -> Self {
        self.otherwise.push(op);
        self
    }

    /// Writes a key without a lease.
    #[must_use]
    pub fn put(self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.then(Op::Put { key: key.into(), value: value.into(), lease: None })
    }

    /// Writes a key that goes when the lease goes.
    #[must_use]
    pub fn put_leased(
        self,
        key: impl Into<String>,
        value: impl Into<Bytes>,
        lease: LeaseId,
    ) -> Self {
        self.then(Op::Put { key: key.into(), value: value.into(), lease: Some(lease) })
    }

    /// Deletes a key.
    #[must_use]
    pub fn delete(self, key: impl Into<String>) -> Self {
        self.then(Op::Delete { key: key.into() })
    }

    /// Deletes every key that begins with the prefix.
    #[must_use]
    pub fn delete_prefix(self, prefix: impl Into<String>) -> Self {
        self.then(Op::DeletePrefix { prefix: prefix.into() })
    }

    /// Reads a key.
    #[must_use]
    pub fn get(self, key: impl Into<String>) -> Self {
        self.then(Op::Get { key: key.into() })
    }

    /// Reads a key when a condition does not hold: what stood in the way.
    #[must_use]
    pub fn otherwise_get(self, key: impl Into<String>) -> Self {
        self.otherwise(Op::Get { key: key.into() })
    }

    /// The conditions.
    pub fn conditions(&self) -> &[Compare] {
        &self.conditions
    }

    /// The operations for when all conditions hold.
    pub fn then_ops(&self) -> &[Op] {
        &self.then
    }

    /// The operations for when a condition does not hold.
    pub fn otherwise_ops(&self) -> &[Op] {
        &self.otherwise
    }

    /// Checks keys, limits and duplicate writes: what an implementation is handed has passed.
    pub(crate) fn check(self) -> Result<CheckedTransaction, StoreError> {
        let lists = [
            ("conditions", self.conditions.len()),
            ("operations", self.then.len()),
            ("operations", self.otherwise.len()),
        ];
        for (what, found) in lists {
            if found > MAX_OPERATIONS {
                return Err(StoreError::TooManyOperations { what, found, limit: MAX_OPERATIONS });
            }
        }
        for condition in &self.conditions {
            Key::parse(&condition.key)?;
        }
        for op in self.then.iter().chain(&self.otherwise) {
            op.check_key()?;
        }
        let n_bytes = self.conditions.iter().map(Compare::n_bytes).sum::<usize>()
            + self.then.iter().map(Op::n_bytes).sum::<usize>()
            + self.otherwise.iter().map(Op::n_bytes).sum::<usize>();
        if n_bytes > MAX_REQUEST_BYTES {
            return Err(StoreError::RequestTooLarge { bytes: n_bytes, limit: MAX_REQUEST_BYTES });
        }
        check_written_once(&self.then)?;
        check_written_once(&self.otherwise)?;
        Ok(CheckedTransaction { transaction: self, n_bytes })
    }
}

/// Refuses a branch that writes one key twice or both writes and deletes it, in either order.
fn check_written_once(ops: &[Op]) -> Result<(), StoreError> {
    let duplicate = |key: &str| StoreError::DuplicateKey { key: key.to_owned() };
    let mut written = BTreeSet::new();
    for op in ops {
        if let Op::Put { key, .. } = op
            && !written.insert(key.as_str())
        {
            return Err(duplicate(key));
        }
    }
    for op in ops {
        let hit = match op {
            Op::Delete { key } => written.get(key.as_str()),
            Op::DeletePrefix { prefix } => written
                .range(prefix.as_str()..)
                .next()
                .filter(|key| key.starts_with(prefix.as_str())),
            Op::Put { .. } | Op::Get { .. } | Op::GetPrefix { .. } => None,
        };
        if let Some(key) = hit {
            return Err(duplicate(key));
        }
    }
    Ok(())
}

/// A transaction within every limit. Only this crate makes one, so that no implementation of a
/// store can forget the check.
#[derive(Debug)]
pub struct CheckedTransaction {
    transaction: Transaction,
    n_bytes: usize,
}

impl CheckedTransaction {
    /// The conditions.
    pub fn conditions(&self) -> &[Compare] {
        &self.transaction.conditions
    }

    /// The operations for when the conditions hold (`true`) or do not.
    pub fn branch(&self, conditions_hold: bool) -> &[Op] {
        if conditions_hold { &self.transaction.then } else { &self.transaction.otherwise }
    }

    /// About how large the transaction is, in bytes.
    pub fn n_bytes(&self) -> usize {
        self.n_bytes
    }
}

/// What a transaction did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransactionResult {
    /// Whether the conditions held.
    pub succeeded: bool,
    /// The store's revision after the transaction: its own if it changed something.
    pub revision: Revision,
    /// One answer for each operation of the branch that was taken, in order.
    pub responses: Vec<OpResponse>,
}

/// What one operation of a transaction answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpResponse {
    /// The key was written.
    Put,
    /// So many keys were deleted.
    Deleted(u64),
    /// The key as read, if it exists.
    Got(Option<KeyValue>),
    /// The keys as read, in order.
    GotPrefix(Vec<KeyValue>),
}

#[cfg(test)]
mod tests;
