//! What a watch yields.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::stream::{BoxStream, Stream, StreamExt};

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
