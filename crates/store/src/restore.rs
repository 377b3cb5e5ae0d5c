//! Filling an empty store from a backup.
//!
//! It takes many transactions, each on the condition that a mark is there which the first one puts and the
//! last one takes away. So what was cut short is known as such: whoever opens the store looks for the mark
//! ([`is_half_restored`]) and refuses it, and the next restore begins anew. Two at once cannot mix.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::backup::Backup;
use crate::error::StoreError;
use crate::key_value::Revision;
use crate::record::{self, RecordError};
use crate::store::{Page, Store};
use crate::transaction::{Compare, MAX_OPERATIONS, MAX_REQUEST_BYTES, Relation, Transaction};
use crate::world::{WORLD, World};

/// The key of the mark.
const RESTORING: &str = "/restoring";
/// How many bytes of keys and values are put at once, which leaves room for what is around them.
const MOST_BYTES: usize = MAX_REQUEST_BYTES / 2;

/// Why a backup was not restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Something is there already.
    #[error("the store is not empty: {0}; nothing was changed")]
    NotEmpty(String),
    /// Another restore began meanwhile.
    #[error("somebody else restores into the same store; this restore was given up")]
    Overtaken,
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The record of the new world cannot be written.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Whether a restore into this store was begun and did not end.
///
/// # Errors
///
/// When the store cannot be read.
pub async fn is_half_restored(store: &dyn Store) -> Result<bool, StoreError> {
    Ok(store.get(RESTORING).await?.is_some())
}

/// What is in a store, in words, by the first parts of its keys; nothing for an empty one. What is left
/// of a restore that did not end does not count.
///
/// # Errors
///
/// When the store cannot be read.
pub async fn contents(store: &dyn Store) -> Result<Option<String>, StoreError> {
    if is_half_restored(store).await? {
        return Ok(None);
    }
    let listing = store.list("/", Page::default()).await?;
    Ok(described(listing.items.iter().map(|item| item.key.as_str())))
}

fn described<'a>(keys: impl Iterator<Item = &'a str>) -> Option<String> {
    let mut counts = BTreeMap::<&str, usize>::new();
    for key in keys {
        *counts.entry(key.split('/').nth(1).unwrap_or_default()).or_default() += 1;
    }
    let mut text = String::new();
    for (part, count) in counts {
        let separator = if text.is_empty() { "" } else { ", " };
        write!(text, "{separator}{count} below /{part}").expect("a text takes everything");
    }
    (!text.is_empty()).then_some(text)
}

impl Backup {
    /// Fills an empty store with what is in this, as a new world.
    ///
    /// # Errors
    ///
    /// When the store is not empty, or cannot be written.
    pub async fn restore(&self, store: &dyn Store, world: &World) -> Result<(), RestoreError> {
        let mark = begin(store).await?;
        let world = record::encode(world)?;
        let items = self.items.iter().filter(|(key, _)| key != WORLD);
        let (mut change, mut n_ops, mut n_bytes) = (Transaction::new(), 0, 0);
        for (key, value) in items {
            let size = key.len() + value.len();
            // The record of the world and the mark's end go with the last of them.
            if n_ops + 2 == MAX_OPERATIONS || (n_ops > 0 && n_bytes + size > MOST_BYTES) {
                commit(store, std::mem::take(&mut change), mark).await?;
                (n_ops, n_bytes) = (0, 0);
            }
            change = change.put(key.clone(), value.clone());
            (n_ops, n_bytes) = (n_ops + 1, n_bytes + size);
        }
        commit(store, change.put(WORLD, world).delete(RESTORING), mark).await
    }
}

/// Puts the mark, and sees to it that nothing else is there.
async fn begin(store: &dyn Store) -> Result<Revision, RestoreError> {
    let cut_short = is_half_restored(store).await?;
    if cut_short {
        // Whoever put the mark that is there finds it gone, if they still go on.
        let held = Transaction::new().when(Compare::exists(RESTORING));
        store.commit(held.delete_prefix("/")).await?;
    }
    let mark = Transaction::new().when(Compare::absent(RESTORING)).put(RESTORING, "{}");
    let put = store.commit(mark).await?;
    if !put.succeeded {
        return Err(RestoreError::Overtaken);
    }
    let listing = store.list("/", Page::default()).await?;
    let others = listing.items.iter().map(|item| item.key.as_str());
    let Some(found) = described(others.filter(|key| *key != RESTORING)) else {
        return Ok(put.revision);
    };
    commit(store, Transaction::new().delete(RESTORING), put.revision).await?;
    Err(RestoreError::NotEmpty(found))
}

async fn commit(
    store: &dyn Store,
    change: Transaction,
    mark: Revision,
) -> Result<(), RestoreError> {
    let held = Compare::create_revision(RESTORING, Relation::Equal, mark);
    match store.commit(change.when(held)).await?.succeeded {
        true => Ok(()),
        false => Err(RestoreError::Overtaken),
    }
}
