//! What waits for the writer: every request that changes the store.
//!
//! This is the group commit: while the writer waits for the disk, requests gather here, and it takes
//! them all as its next batch. The queue is bounded; who finds it full waits for room.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, oneshot};

use crate::error::StoreError;
use crate::key_value::{LeaseId, Revision};
use crate::transaction::{CheckedTransaction, TransactionResult};

/// The most requests that wait; further ones wait before the queue.
const MAX_WAITING: usize = 1024;
/// The most requests in a batch, so that the first does not wait for very many others.
const MAX_BATCH: usize = 256;
/// The most bytes in a batch, unless its first request alone has more.
const MAX_BATCH_BYTES: usize = 8 << 20;

/// Where the answer to a request goes.
pub type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// A request to the writer.
#[derive(Debug)]
pub enum Request {
    Commit {
        transaction: CheckedTransaction,
        reply: Reply<TransactionResult>,
    },
    /// Commits one after the other in one batch, up to the first that is refused.
    CommitInOrder {
        transactions: Vec<CheckedTransaction>,
        reply: Reply<Vec<TransactionResult>>,
    },
    Grant {
        ttl: Duration,
        reply: Reply<LeaseId>,
    },
    Revoke {
        lease: LeaseId,
        reply: Reply<()>,
    },
    /// Compacts a stretch towards `to` and answers whether it got there.
    Compact {
        to: Revision,
        reply: Reply<bool>,
    },
    /// Lets a reader see all that has been acknowledged.
    Settle {
        reply: Reply<()>,
    },
}

impl Request {
    fn n_bytes(&self) -> usize {
        match self {
            Self::Commit { transaction, .. } => transaction.n_bytes(),
            Self::CommitInOrder { transactions, .. } => {
                transactions.iter().map(CheckedTransaction::n_bytes).sum()
            }
            Self::Grant { .. }
            | Self::Revoke { .. }
            | Self::Compact { .. }
            | Self::Settle { .. } => 0,
        }
    }

    /// Answers with an error. Who asked may be gone by then.
    pub fn refuse(self, error: &StoreError) {
        let error = error.clone();
        match self {
            Self::Commit { reply, .. } => drop(reply.send(Err(error))),
            Self::CommitInOrder { reply, .. } => drop(reply.send(Err(error))),
            Self::Grant { reply, .. } => drop(reply.send(Err(error))),
            Self::Revoke { reply, .. } => drop(reply.send(Err(error))),
            Self::Compact { reply, .. } => drop(reply.send(Err(error))),
            Self::Settle { reply } => drop(reply.send(Err(error))),
        }
    }
}

/// The requests that wait.
#[derive(Debug)]
pub struct Queue {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
    room: Semaphore,
}

#[derive(Debug, Default)]
struct Waiting {
    requests: VecDeque<Request>,
    closed: bool,
}

/// The queue takes no more requests.
#[derive(Debug)]
pub struct QueueClosed;

impl Queue {
    pub fn new() -> Self {
        Self {
            waiting: Mutex::default(),
            arrived: Condvar::new(),
            room: Semaphore::new(MAX_WAITING),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a request, once there is room.
    pub async fn push(&self, request: Request) -> Result<(), QueueClosed> {
        self.room.acquire().await.map_err(|_| QueueClosed)?.forget();
        let mut waiting = self.lock();
        if waiting.closed {
            return Err(QueueClosed);
        }
        waiting.requests.push_back(request);
        self.arrived.notify_one();
        Ok(())
    }

    /// The next batch: as soon as there is one, or an empty one at `deadline`. `None` when the queue
    /// is closed and empty.
    pub fn take(&self, deadline: Option<Instant>) -> Option<Vec<Request>> {
        let mut waiting = self.lock();
        while waiting.requests.is_empty() {
            if waiting.closed {
                return None;
            }
            let Some(deadline) = deadline else {
                waiting = self.arrived.wait(waiting).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            waiting =
                self.arrived.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let mut batch = Vec::new();
        let mut n_bytes = 0;
        while batch.len() < MAX_BATCH
            && let Some(next) = waiting.requests.front()
        {
            n_bytes += next.n_bytes();
            // The room that is kept on the disk is enough for so many.
            if n_bytes > MAX_BATCH_BYTES && !batch.is_empty() {
                break;
            }
            batch.extend(waiting.requests.pop_front());
        }
        self.room.add_permits(batch.len());
        Some(batch)
    }

    /// Takes no more requests; those that wait can still be taken.
    pub fn close(&self) {
        self.lock().closed = true;
        self.room.close();
        self.arrived.notify_one();
    }

    /// Drops the requests that wait, which tells those who made them.
    pub fn clear(&self) {
        self.lock().requests.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::transaction::Transaction;

    /// Commits of a MiB each.
    fn in_order(n_transactions: usize) -> Request {
        let transaction = || Transaction::new().put("/k", vec![7; 1 << 20]).check().unwrap();
        let transactions = (0..n_transactions).map(|_| transaction()).collect();
        Request::CommitInOrder { transactions, reply: oneshot::channel().0 }
    }

    fn compact(to: u64) -> (Request, oneshot::Receiver<Result<bool, StoreError>>) {
        let (reply, answer) = oneshot::channel();
        let to = Revision(to);
        (Request::Compact { to, reply }, answer)
    }

    #[tokio::test]
    async fn what_gathers_is_one_batch_in_order() {
        let queue = Queue::new();
        let mut answers = Vec::new();
        for to in 0..300 {
            let (request, answer) = compact(to);
            queue.push(request).await.unwrap();
            answers.push(answer);
        }
        let sizes: Vec<_> = (0..2).map(|_| queue.take(None).unwrap().len()).collect();
        assert_eq!(sizes, [256, 44]);
        assert!(queue.take(Some(Instant::now())).unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_batch_keeps_to_its_bytes_unless_its_first_request_has_more() {
        let queue = Queue::new();
        for n_transactions in [4, 3, 2, 9, 1] {
            queue.push(in_order(n_transactions)).await.unwrap();
        }
        let sizes: Vec<_> = (0..4).map(|_| queue.take(None).unwrap().len()).collect();
        assert_eq!(sizes, [2, 1, 1, 1]);
    }

    #[tokio::test]
    async fn a_full_queue_makes_the_next_one_wait() {
        let queue = Arc::new(Queue::new());
        for to in 0..1024 {
            queue.push(compact(to).0).await.unwrap();
        }
        let mut late = Box::pin(queue.push(compact(9999).0));
        assert!(futures_util::poll!(&mut late).is_pending());
        queue.take(None).unwrap();
        late.await.unwrap();
    }

    #[tokio::test]
    async fn a_closed_queue_gives_out_what_waits_and_takes_no_more() {
        let queue = Queue::new();
        queue.push(compact(1).0).await.unwrap();
        let (second, answer) = compact(2);
        queue.close();
        queue.push(second).await.unwrap_err();
        answer.await.unwrap_err();
        assert_eq!(queue.take(None).unwrap().len(), 1);
        assert!(queue.take(None).is_none());
    }
}
