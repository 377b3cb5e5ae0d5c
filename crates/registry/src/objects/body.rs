//! The bytes of an object as the body of an answer.
//!
//! They are asked for in pieces, each when the one before was sent: a client that reads slowly then
//! keeps no request to the store open for hours, and what breaks is tried again with a patience of
//! its own. Within a piece bytes are passed on as they come; a client that does not read stops the
//! store, too.

use std::ops::Range;

use axum::body::{Body, Bytes};
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::{GetOptions, GetRange, ObjectStore as _};

use super::Objects;
use crate::storage::StorageError;

/// How much is asked for at a time: enough that the time to ask does not count.
const PIECE: u64 = 64 << 20;

/// A part of an object of so many bytes as a body, once the store has begun to send it.
pub(crate) async fn of_object(
    objects: Objects,
    (key, size): (String, u64),
    part: Range<u64>,
) -> Result<Body, StorageError> {
    let mut reader = Reader { objects, key, size, left: part, piece: None };
    // Until then the client can be told of a failure.
    let first = reader.next().await?;
    let rest = stream::try_unfold(reader, async |mut reader: Reader| {
        let next = reader.next().await?;
        Ok::<_, StorageError>(next.map(|bytes| (bytes, reader)))
    });
    let all = stream::iter(first.map(Ok)).chain(rest);
    let all = all.inspect_err(|error| {
        let cause = std::error::Error::source(error).map(ToString::to_string);
        tracing::error!(%error, cause, "an answer broke off");
    });
    Ok(Body::from_stream(all.boxed()))
}

type Piece = BoxStream<'static, object_store::Result<Bytes>>;

struct Reader {
    objects: Objects,
    key: String,
    size: u64,
    left: Range<u64>,
    /// What comes now, and where it began.
    piece: Option<(u64, Piece)>,
}

impl Reader {
    async fn next(&mut self) -> Result<Option<Bytes>, StorageError> {
        while !self.left.is_empty() {
            let (begun, mut piece) = match self.piece.take() {
                Some(piece) => piece,
                None => (self.left.start, self.begin().await.map_err(|error| self.failed(error))?),
            };
            match piece.next().await {
                Some(Ok(bytes)) => {
                    self.left.start += bytes.len() as u64;
                    self.piece = Some((begun, piece));
                    if !bytes.is_empty() {
                        return Ok(Some(bytes));
                    }
                }
                // Long after it was asked for, nobody else tries again: what came counts, and the rest is asked for
                // anew. Each time something has to have come.
                Some(Err(error)) if begun < self.left.start => {
                    tracing::debug!(%error, key = self.key, "asking again for the rest of an object");
                }
                Some(Err(error)) => return Err(self.failed(error)),
                None if begun == self.left.start => {
                    return Err(self.failed(generic("it sent nothing of what was asked for")));
                }
                None => {}
            }
        }
        Ok(None)
    }

    fn failed(&self, error: object_store::Error) -> StorageError {
        self.objects.failed("read", &self.key, error)
    }

    async fn begin(&mut self) -> object_store::Result<Piece> {
        let end = self.left.end.min(self.left.start.saturating_add(PIECE));
        let range = Some(GetRange::Bounded(self.left.start..end));
        let options = GetOptions { range, ..GetOptions::default() };
        let path = self.objects.path(&self.key);
        let found = self.objects.0.store.get_opts(&path, options).await?;
        if found.meta.size != self.size {
            return Err(generic(&format!("it has {} bytes, not {}", found.meta.size, self.size)));
        }
        Ok(found.into_stream())
    }
}

fn generic(what: &str) -> object_store::Error {
    object_store::Error::Generic { store: "S3", source: what.into() }
}
