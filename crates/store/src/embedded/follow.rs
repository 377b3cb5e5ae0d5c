//! Watches: a position in the history that moves on.
//!
//! A watch is pulled, never pushed to. It asks for what follows its position: from memory when it
//! has kept up, else from disk. So catching up and going live are the same step, and there is no
//! seam between them at which an event could be lost or told twice.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use tokio::sync::watch;

use crate::error::StoreError;
use crate::key_value::Revision;
use crate::watch::{Follow, Watch, WatchBatch};

use super::Shared;
use super::recent::Stretch;

/// A watch under way.
struct Follower {
    shared: Weak<Shared>,
    newest: watch::Receiver<Revision>,
    prefix: Arc<str>,
    /// The first revision not read yet.
    next: Revision,
    /// Read and not yet given out.
    ready: VecDeque<WatchBatch>,
}

/// The changes under `prefix` from revision `from` on. It does not keep the store open.
pub fn follow(shared: &Arc<Shared>, prefix: &str, from: Revision) -> Watch {
    Watch::following(Follower {
        shared: Arc::downgrade(shared),
        newest: shared.newest.subscribe(),
        prefix: prefix.into(),
        next: from,
        ready: VecDeque::new(),
    })
}

impl Follow for Follower {
    async fn next_batch(&mut self) -> Result<WatchBatch, StoreError> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                return Ok(batch);
            }
            let newest = *self.newest.borrow_and_update();
            // Asked after the line above, so that a failure from now on ends the wait below.
            self.shared()?.check_usable()?;
            if self.next <= newest {
                let Stretch { batches, next } = self.read().await?;
                self.ready.extend(batches);
                self.next = next;
            } else {
                self.newest.changed().await.map_err(|_| StoreError::Closed)?;
            }
        }
    }
}

impl Follower {
    fn shared(&self) -> Result<Arc<Shared>, StoreError> {
        self.shared.upgrade().ok_or(StoreError::Closed)
    }

    async fn read(&self) -> Result<Stretch, StoreError> {
        let shared = self.shared()?;
        if let Some(stretch) = shared.recent.read(self.next, &self.prefix) {
            return Ok(stretch);
        }
        let (from, prefix) = (self.next, Arc::clone(&self.prefix));
        shared.snapshot(move |snapshot| snapshot.history(from, &prefix)).await
    }
}
