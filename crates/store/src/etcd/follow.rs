//! Watches that outlive a member of the cluster.

use std::collections::VecDeque;
use std::time::Duration;

use tonic::Status;

use super::Inner;
use super::connection::{OpenWatch, is_passing};
use super::convert::event;
use super::messages::WatchResponse;
use crate::error::StoreError;
use crate::key_value::{Event, Revision};
use crate::watch::{Follow, Watch, WatchBatch};

/// The wait before a watch that broke is begun again.
const AGAIN: Duration = Duration::from_millis(200);

/// A watch under way.
struct Follower {
    inner: Inner,
    prefix: String,
    /// The first revision that was not told yet.
    next: Revision,
    /// Absent when it has to be begun, for the first time or again.
    open: Option<OpenWatch>,
    /// Events of one revision, of which more may come.
    partial: Vec<Event>,
    /// Received and not yet given out.
    ready: VecDeque<WatchBatch>,
}

/// The changes under `prefix` from revision `from` on.
pub(super) fn follow(inner: Inner, prefix: String, from: Revision) -> Watch {
    Watch::following(Follower {
        inner,
        prefix,
        next: from,
        open: None,
        partial: Vec::new(),
        ready: VecDeque::new(),
    })
}

impl Follow for Follower {
    async fn next_batch(&mut self) -> Result<WatchBatch, StoreError> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                self.next = batch.revision.next();
                return Ok(batch);
            }
            match self.receive().await {
                Ok(Some(response)) => self.take(response)?,
                Ok(None) => self.broke(&Status::unavailable("the watch ended")).await,
                Err(status) if is_passing(&status) => self.broke(&status).await,
                Err(status) => return Err(super::connection::failed("watching")(status)),
            }
        }
    }
}

impl Follower {
    /// Begins the watch where it is not, and waits for what it tells. Cancel safe.
    async fn receive(&mut self) -> Result<Option<WatchResponse>, Status> {
        if self.open.is_none() {
            self.open = Some(self.inner.watch(&self.prefix, self.next).await?);
        }
        match &mut self.open {
            Some((_, answers)) => answers.message().await,
            None => Ok(None),
        }
    }

    async fn broke(&mut self, status: &Status) {
        tracing::warn!(error = status.message(), "a watch of etcd broke; beginning again");
        self.open = None;
        // What was not told whole comes again.
        self.partial.clear();
        tokio::time::sleep(AGAIN).await;
    }

    fn take(&mut self, response: WatchResponse) -> Result<(), StoreError> {
        if response.compact_revision > 0 {
            let at = Revision(response.compact_revision.unsigned_abs()).next();
            return Err(StoreError::Compacted { requested: self.next, at });
        }
        if response.canceled {
            // Such as by a member that lost the others.
            tracing::warn!(reason = response.cancel_reason, "a watch of etcd was cancelled");
            self.open = None;
            self.partial.clear();
            return Ok(());
        }
        for stored in response.events {
            let event = event(&self.inner, stored)?;
            if self.partial.first().is_some_and(|first| first.revision() != event.revision()) {
                self.whole();
            }
            self.partial.push(event);
        }
        if !response.fragment {
            self.whole();
        }
        Ok(())
    }

    /// No more events come of the revision of those that have.
    fn whole(&mut self) {
        let events = std::mem::take(&mut self.partial);
        let Some(revision) = events.first().map(Event::revision) else { return };
        // What is told again after a break is not given out twice.
        if revision >= self.next {
            self.ready.push_back(WatchBatch { revision, events });
        }
    }
}
