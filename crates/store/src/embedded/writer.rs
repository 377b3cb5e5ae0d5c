//! The thread that writes.
//!
//! It takes everything that waits, does it in one redb transaction, waits for the disk once, tells
//! the watchers, then answers. Nobody is told of anything that a crash could take back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redb::Database;

use crate::error::StoreError;
use crate::key_value::LeaseId;

use super::apply::{Batch, Outcome};
use super::queue::{Reply, Request};
use super::{Room, Shared, fault};

/// How long a full disk is left alone when a lease has run out.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Answers one request, once it is known whether the batch is on disk.
type Answer = Box<dyn FnOnce(Result<(), &StoreError>)>;

/// A lease that begins when the batch is on disk, with its time to live.
type Granted = (LeaseId, Duration);

/// Writes until the queue is closed and empty, or the disk fails.
pub fn run(shared: &Shared, keep_revisions: Option<u64>) {
    // However this ends, a panic included, nobody may be left waiting for an answer.
    let _closing = CloseQueue(shared);
    let mut not_before = None;
    loop {
        let deadline = shared.lease_clock().next_deadline().max(not_before.take());
        let Some(requests) = shared.queue.take(deadline) else {
            return;
        };
        if let Some(Err(error)) = shared.room.as_ref().map(Room::check) {
            requests.into_iter().for_each(|request| request.refuse(&error));
            // Leases that ran out meanwhile end when that can be written.
            not_before = deadline.map(|_| Instant::now() + LOOK_AGAIN);
            continue;
        }
        let expired = shared.lease_clock().take_expired(Instant::now());
        if requests.is_empty() && expired.is_empty() {
            continue;
        }
        let mut work = Work::new(requests.len());
        let mut requests = requests.into_iter();
        let written = shared.with_database(|database| {
            work.write(database, &mut requests, &expired, keep_revisions)
        });
        match written {
            Ok(outcome) => {
                work.start_and_end_leases(shared);
                shared.publish(outcome.changes);
                work.answer(Ok(()));
            }
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the store failed and must be opened anew"
                );
                shared.fail(&error);
                work.answer(Err(&error));
                return;
            }
        }
    }
}

struct CloseQueue<'a>(&'a Shared);

#[derive(Debug, thiserror::Error)]
#[error("the writer panicked")]
struct WriterPanicked;

impl Drop for CloseQueue<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(&fault("writing")(WriterPanicked));
        }
        self.0.queue.close();
        self.0.queue.clear();
    }
}

/// What remains to be done when a batch is on disk.
struct Work {
    answers: Vec<Answer>,
    granted: Vec<Granted>,
    ended: Vec<LeaseId>,
}

impl Work {
    fn new(n_requests: usize) -> Self {
        Self { answers: Vec::with_capacity(n_requests), granted: Vec::new(), ended: Vec::new() }
    }

    fn write(
        &mut self,
        database: &Database,
        requests: &mut impl Iterator<Item = Request>,
        expired: &[LeaseId],
        keep_revisions: Option<u64>,
    ) -> Result<Outcome, StoreError> {
        let transaction = database.begin_write().map_err(fault("beginning to write"))?;
        let mut batch = Batch::begin(&transaction)?;
        for lease in expired {
            // It may have been revoked in the batch before this one, after it had run out.
            batch.revoke(*lease)?.unwrap_or(());
        }
        for request in requests {
            self.apply(&mut batch, request)?;
        }
        if let Some(keep) = keep_revisions {
            batch.compact_automatically(keep)?;
        }
        let outcome = batch.finish()?;
        if outcome.dirty {
            transaction.commit().map_err(fault("committing"))?;
        } else {
            transaction.abort().map_err(fault("ending a read"))?;
        }
        Ok(outcome)
    }

    fn apply(&mut self, batch: &mut Batch<'_>, request: Request) -> Result<(), StoreError> {
        match request {
            Request::Commit { transaction, reply } => {
                let result = batch.transaction(&transaction);
                self.answer_later(reply, result)
            }
            Request::Grant { ttl, reply } => {
                let result = batch.grant(ttl);
                self.granted.extend(result.as_ref().ok().map(|id| (*id, ttl)));
                self.answer_later(reply, result.map(Ok))
            }
            Request::Revoke { lease, reply } => {
                let result = batch.revoke(lease);
                self.ended.push(lease);
                self.answer_later(reply, result)
            }
            Request::Compact { to, reply } => {
                let result = batch.compact(to);
                self.answer_later(reply, result)
            }
        }
    }

    /// Keeps the answer until the batch is on disk. Who asked may be gone by then, which is all
    /// right: the request stands.
    fn answer_later<T: 'static>(
        &mut self,
        reply: Reply<T>,
        result: Result<Result<T, StoreError>, StoreError>,
    ) -> Result<(), StoreError> {
        let (result, fault) = match result {
            Ok(result) => (result, Ok(())),
            Err(fault) => (Err(fault.clone()), Err(fault)),
        };
        self.answers.push(Box::new(move |written| {
            let _ = reply.send(match written {
                Ok(()) => result,
                Err(error) => Err(error.clone()),
            });
        }));
        fault
    }

    fn answer(self, written: Result<(), &StoreError>) {
        for answer in self.answers {
            answer(written);
        }
    }

    fn start_and_end_leases(&self, shared: &Shared) {
        let now = Instant::now();
        let mut clock = shared.lease_clock();
        for (id, ttl) in &self.granted {
            clock.start(*id, *ttl, now);
        }
        for id in &self.ended {
            clock.end(*id);
        }
    }
}

/// Starts the thread.
pub fn spawn(
    shared: Arc<Shared>,
    keep_revisions: Option<u64>,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new()
        .name("store-writer".to_owned())
        .spawn(move || run(&shared, keep_revisions))
}
