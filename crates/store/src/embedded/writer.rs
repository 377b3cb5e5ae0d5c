//! The thread that writes.
//!
//! It takes everything that waits, does it in the redb transaction that is open, puts what that changed into
//! the journal and waits for the disk once, tells the watchers, then answers. Nobody is told of anything that
//! a crash could take back.
//!
//! The transaction goes on over many batches, so that pages which they have in common are written once. It
//! ends when a reader is to see what is in it, which costs no wait for the disk, and is put on the disk once a
//! second, or when the journal has become long.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use redb::{Database, Durability, WriteTransaction};

use crate::error::StoreError;
use crate::key_value::LeaseId;

use super::apply::Tables;
use super::journal::Journal;
use super::queue::{Reply, Request};
use super::{Shared, fault};

/// How long a full disk is left alone when a lease has run out.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long the journal alone has what was written.
const IN_JOURNAL: Duration = Duration::from_secs(1);
/// With so many bytes it begins anew earlier; it is read whole when the store is opened.
const MAX_JOURNAL: usize = 4 << 20;
/// What the file may need beside the bytes that the journal has, in bytes.
const TABLES_ROOM: u64 = 4 << 20;

/// Answers one request, once it is known whether the batch is on disk.
type Answer = Box<dyn FnOnce(Result<(), &StoreError>)>;

/// A lease that begins when the batch is on disk, with its time to live.
type Granted = (LeaseId, Duration);

/// Why a redb transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Somebody wants to read what is in it.
    Read,
    /// The journal has had it for long enough.
    Due,
    /// The store is closed.
    Closed,
}

struct Writer<'a> {
    shared: &'a Shared,
    keep_revisions: Option<u64>,
    journal: Journal,
    /// When what the journal has must be on the disk without it; `None` when it has nothing.
    due: Option<Instant>,
    /// Leases that ran out are left alone until then.
    not_before: Option<Instant>,
}

/// Writes until the queue is closed and empty, or the disk fails.
fn run(shared: &Shared, journal: Journal, keep_revisions: Option<u64>) {
    // However this ends, a panic included, nobody may be left waiting for an answer.
    let _closing = CloseQueue(shared);
    let mut writer = Writer { shared, keep_revisions, journal, due: None, not_before: None };
    loop {
        let mut work = Work::default();
        let ended = shared.with_database(|database| writer.transaction(database, &mut work));
        match ended {
            Ok(End::Closed) => return,
            Ok(End::Read | End::Due) => work.answer(Ok(())),
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

impl Writer<'_> {
    /// One redb transaction, with as many batches as come before it has to end. `work` has those that wait for
    /// its end, or for nothing any more when it fails.
    fn transaction(&mut self, database: &Database, work: &mut Work) -> Result<End, StoreError> {
        let transaction = database.begin_write().map_err(fault("beginning to write"))?;
        let mut tables = Tables::begin(&transaction)?;
        let end = loop {
            if let Some(end) = self.batch(&mut tables, work)? {
                break end;
            }
        };
        if end == End::Read && !tables.is_dirty() {
            drop(tables);
            transaction.abort().map_err(fault("ending a read"))?;
            return Ok(end);
        }
        tables.finish(end == End::Closed)?;
        commit(transaction, end)?;
        if end != End::Read {
            self.journal.begin_anew().map_err(fault("beginning its journal anew"))?;
            self.due = None;
        }
        // Nobody but this thread makes it true.
        self.shared.is_unsettled.store(false, Ordering::Release);
        Ok(end)
    }

    /// Takes what waits, does it and answers; gives why the transaction has to end, if it has to.
    fn batch(
        &mut self,
        tables: &mut Tables<'_>,
        work: &mut Work,
    ) -> Result<Option<End>, StoreError> {
        let shared = self.shared;
        let leases = shared.lease_clock().next_deadline().max(self.not_before.take());
        let deadline = [leases, self.due].into_iter().flatten().min();
        let Some(requests) = shared.queue.take(deadline) else { return Ok(Some(End::Closed)) };
        let full = shared.room.as_ref().and_then(|room| room.check().err());
        match &full {
            // Leases that ran out meanwhile end when that can be written.
            Some(_) => self.not_before = leases.map(|_| Instant::now() + LOOK_AGAIN),
            None => {
                for lease in shared.lease_clock().take_expired(Instant::now()) {
                    // It may have been revoked in the batch before this one, after it had run out.
                    tables.revoke(lease)?.unwrap_or(());
                }
            }
        }
        for request in requests {
            match &full {
                // Who wants to read asks for no room.
                Some(error) if !matches!(request, Request::Settle { .. }) => request.refuse(error),
                _ => work.apply(tables, request)?,
            }
        }
        if full.is_none()
            && let Some(keep) = self.keep_revisions
        {
            tables.compact_automatically(keep)?;
        }
        if let Some(batch) = tables.end_batch() {
            let written = self.journal.append(batch.number, &batch.record);
            written.map_err(fault("writing its journal"))?;
            self.due.get_or_insert_with(|| Instant::now() + IN_JOURNAL);
            shared.is_unsettled.store(true, Ordering::Release);
            work.start_and_end_leases(shared);
            shared.publish(batch.changes);
        }
        work.answer_writers();
        // On a full disk at once: others go on to fill it, and opening would need the room.
        let is_due = self.due.is_some_and(|due| due <= Instant::now() || full.is_some());
        let is_postponed = is_due && full.as_ref().is_some_and(|full| self.lacks_room(full));
        if is_postponed {
            // It is safe where it is.
            self.due = Some(Instant::now() + LOOK_AGAIN);
        }
        Ok(if is_due && !is_postponed || self.journal.n_bytes() >= MAX_JOURNAL {
            Some(End::Due)
        } else if work.readers.is_empty() {
            None
        } else {
            Some(End::Read)
        })
    }
}

impl Writer<'_> {
    /// Whether a full disk has no room even for what is to leave the journal.
    fn lacks_room(&self, full: &StoreError) -> bool {
        let needed = 2 * self.journal.n_bytes() as u64 + TABLES_ROOM;
        matches!(full, StoreError::DiskFull { free, .. } if *free < needed)
    }
}

fn commit(mut transaction: WriteTransaction, end: End) -> Result<(), StoreError> {
    let durability = if end == End::Read { Durability::None } else { Durability::Immediate };
    transaction.set_durability(durability).map_err(fault("committing"))?;
    transaction.commit().map_err(fault("committing"))
}

/// What remains to be done when a batch is on disk.
#[derive(Default)]
struct Work {
    answers: Vec<Answer>,
    granted: Vec<Granted>,
    ended: Vec<LeaseId>,
    /// Those who wait for the end of the transaction.
    readers: Vec<Reply<()>>,
}

impl Work {
    fn apply(&mut self, tables: &mut Tables<'_>, request: Request) -> Result<(), StoreError> {
        match request {
            Request::Commit { transaction, reply } => {
                let result = tables.transaction(&transaction);
                self.answer_later(reply, result)
            }
            Request::CommitInOrder { transactions, reply } => {
                let result = tables.transactions(&transactions);
                self.answer_later(reply, result)
            }
            Request::Grant { ttl, reply } => {
                let result = tables.grant(ttl);
                self.granted.extend(result.as_ref().ok().map(|id| (*id, ttl)));
                self.answer_later(reply, result.map(Ok))
            }
            Request::Revoke { lease, reply } => {
                let result = tables.revoke(lease);
                self.ended.push(lease);
                self.answer_later(reply, result)
            }
            Request::Compact { to, reply } => {
                let result = tables.compact(to);
                self.answer_later(reply, result)
            }
            Request::Settle { reply } => {
                self.readers.push(reply);
                Ok(())
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

    /// The batch is on disk.
    fn answer_writers(&mut self) {
        for answer in self.answers.drain(..) {
            answer(Ok(()));
        }
        self.granted.clear();
        self.ended.clear();
    }

    /// The transaction has ended, or everything failed.
    fn answer(mut self, ended: Result<(), &StoreError>) {
        for answer in self.answers.drain(..) {
            answer(ended);
        }
        for reader in self.readers {
            // Who wanted to read may be gone.
            let _ = reader.send(ended.map_err(StoreError::clone));
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
    journal: Journal,
    keep_revisions: Option<u64>,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new()
        .name("store-writer".to_owned())
        .spawn(move || run(&shared, journal, keep_revisions))
}
