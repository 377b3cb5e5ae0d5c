//! Which life of a store this is.
//!
//! Revisions of a store that was restored or moved begin anew, so they say nothing to whoever saw those of
//! the one before. The epoch does: each restore and each migration raises it, and it is never the same
//! twice, also when one backup is restored again and again, for it is made of the time.

use serde::{Deserialize, Serialize};

use crate::error::StoreError;
use crate::record::{Record, RecordError};
use crate::store::Store;

/// The key of the [`World`].
pub const WORLD: &str = "/world";

/// What began a life of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Nothing was there before.
    New,
    /// A backup was restored.
    Restored,
    /// It was moved from another store.
    Migrated,
}

/// A life of a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct World {
    /// Higher than that of every life before; 0 for one that was never restored nor moved.
    pub epoch: u64,
    /// How it began.
    pub origin: Origin,
}

impl Record for World {
    const KIND: &'static str = "world";
}

impl World {
    /// That of a store in which nothing says so.
    pub const FIRST: Self = Self { epoch: 0, origin: Origin::New };

    /// The next life after that with `epoch`, when it begins at `now`, in milliseconds since 1970.
    pub fn after(epoch: u64, origin: Origin, now: u64) -> Self {
        Self { epoch: now.max(epoch.saturating_add(1)), origin }
    }

    /// That of a store.
    ///
    /// # Errors
    ///
    /// When the store cannot be read, or its record not be understood.
    pub async fn of(store: &dyn Store) -> Result<Self, WorldError> {
        match store.get(WORLD).await? {
            Some(stored) => Ok(stored.decode()?),
            None => Ok(Self::FIRST),
        }
    }
}

/// Why it is not known which life of a store this is.
#[derive(Debug, thiserror::Error)]
pub enum WorldError {
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The record cannot be understood.
    #[error(transparent)]
    Record(#[from] RecordError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_only_grow_whatever_the_clock_says() {
        for (epoch, now, next) in [(0, 1000, 1000), (1000, 1000, 1001), (2000, 1000, 2001)] {
            assert_eq!(World::after(epoch, Origin::Restored, now).epoch, next);
        }
    }
}
