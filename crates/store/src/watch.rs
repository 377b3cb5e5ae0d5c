//! What a watch yields.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::stream::{self, BoxStream, Stream, StreamExt};

use crate::error::StoreError;
use crate::key_value::{Event, Revision};

/// Everything that one revision changed under the watched prefix; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchBatch {
    /// The revision; each batch's is greater than that of the one before.
    pub revision: Revision,
    /// The changes in the order in which the transaction made them, one per key.
    pub events: Vec<Event>,
}

/// Where the batches of a watch come from, one after the other.
pub(crate) trait Follow: Send + 'static {
    /// The next batch; after an error it is not asked again.
    fn next_batch(&mut self) -> impl Future<Output = Result<WatchBatch, StoreError>> + Send;
}

/// A stream of [`WatchBatch`] in the order of revisions, without gap or duplicate.
///
/// It holds no queue of its own: a reader that falls behind reads on from the store's history, so a
/// slow reader costs no memory and loses nothing, until compaction overtakes it. Then, or when
/// the store fails or is closed, it yields one error and ends. Dropping it ends the watch.
///
/// The futures of [`Watch::next`] are cancel-safe.
pub struct Watch {
    batches: BoxStream<'static, Result<WatchBatch, StoreError>>,
}

impl Watch {
    /// Makes a watch of a stream that keeps what is promised above.
    pub fn new(
        batches: impl Stream<Item = Result<WatchBatch, StoreError>> + Send + 'static,
    ) -> Self {
        Self { batches: batches.boxed() }
    }

    /// Makes a watch that ends with the first error.
    pub(crate) fn following(follower: impl Follow) -> Self {
        Self::new(stream::unfold(Some(follower), |follower| async {
            let mut follower = follower?;
            match follower.next_batch().await {
                Ok(batch) => Some((Ok(batch), Some(follower))),
                Err(error) => Some((Err(error), None)),
            }
        }))
    }

    /// The next batch, when there is one; `None` after the error that ended the watch.
    pub async fn next(&mut self) -> Option<Result<WatchBatch, StoreError>> {
        self.batches.next().await
    }
}

impl Stream for Watch {
    type Item = Result<WatchBatch, StoreError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.batches.poll_next_unpin(cx)
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}
