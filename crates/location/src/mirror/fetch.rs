//! Bytes of a blob on their way from the registry.
//!
//! A connection that breaks off is taken up where it did; those who wait are told of one that brings next to
//! nothing, as they would be of the registry itself, and decide what they do about it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use http::{Response, StatusCode, header};
use http_body_util::{BodyDataStream, BodyExt as _};
use hyper::body::Incoming;
use longshore_link::Refusal;

use super::Mirror;
use super::coming::Coming;
use super::disk::blocking;
use super::way::Id;
use crate::registry::{Part, blob_path};

/// Bytes that are written at once, when so many have come.
const SEGMENT: usize = 256 << 10;

/// A connection that brought less is not taken up again for those who wait.
const LEAST: u64 = 64 << 10;

/// How long the registry may send nothing. Who waits may give up sooner, and is not held up by the others.
const SILENCE: Duration = Duration::from_secs(60);

/// Which bytes of a blob an answer has: all behind some, of so many in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub start: u64,
    pub size: u64,
}

impl Shape {
    /// What an answer says of itself; nothing when that is not enough.
    pub fn of<B>(answer: &Response<B>) -> Option<Self> {
        let text = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
        if answer.status() == StatusCode::PARTIAL_CONTENT {
            let (part, size) =
                text(header::CONTENT_RANGE)?.strip_prefix("bytes ")?.split_once('/')?;
            let (start, _) = part.split_once('-')?;
            return Some(Self { start: start.parse().ok()?, size: size.parse().ok()? });
        }
        Some(Self { start: 0, size: text(header::CONTENT_LENGTH)?.parse().ok()? })
    }
}

/// A fetch. However it ends, those who wait for it hear of that.
pub struct Fetch {
    mirror: Arc<Mirror>,
    coming: Arc<Coming>,
    id: Id,
}

/// Why a fetch did not bring all.
enum Broken {
    /// Those who wait have another one begun.
    TakenUp,
    /// They give up.
    Told(String),
}

impl From<Refusal> for Broken {
    fn from(Refusal(problem): Refusal) -> Self {
        Self::Told(problem.detail)
    }
}

impl Fetch {
    /// Begins one, of which the answer may be there already.
    pub fn begin(
        mirror: &Arc<Mirror>,
        coming: &Arc<Coming>,
        id: Id,
        answer: Option<Response<Incoming>>,
    ) {
        let (mirror, coming) = (Arc::clone(mirror), Arc::clone(coming));
        let service = mirror.service.clone();
        let fetch = Self { mirror, coming, id };
        service.spawn_request("blob for the mirror", fetch.run(answer));
    }

    async fn run(self, answer: Option<Response<Incoming>>) {
        match self.bring(answer).await {
            Ok(()) | Err(Broken::TakenUp) => self.coming.ended(self.id, None),
            Err(Broken::Told(why)) => {
                let (_, digest) = &self.coming.of;
                tracing::debug!(%digest, why, "a part of a blob does not come");
                self.coming.ended(self.id, Some(&why));
            }
        }
        if self.coming.finishes() {
            self.mirror.finish(&self.coming).await;
        }
    }

    async fn open(&self) -> Result<Response<Incoming>, Broken> {
        let Some(part) = Part::of(self.coming.left_of(self.id)) else {
            return Err(Broken::TakenUp);
        };
        let (repository, digest) = &self.coming.of;
        let path = blob_path(repository, digest);
        let asked = self.mirror.registry.send(&path, part.header());
        tokio::select! {
            answer = asked => Ok(answer?),
            () = self.coming.is_unwanted(self.id) => Err(Broken::TakenUp),
        }
    }

    async fn bring(&self, answer: Option<Response<Incoming>>) -> Result<(), Broken> {
        let answer = match answer {
            Some(answer) => answer,
            None => self.open().await?,
        };
        let from = self.coming.left_of(self.id).start;
        let shape = Shape::of(&answer).filter(|shape| shape.size == self.coming.size);
        let Some(mut skip) = shape.and_then(|shape| from.checked_sub(shape.start)) else {
            // One of the two answers is wrong: whoever asks again has it begun anew.
            let why = "the registry gives another part of the blob".to_owned();
            self.coming.give_up(why.clone());
            return Err(Broken::Told(why));
        };
        let mut body = answer.into_body().into_data_stream();
        let (mut n_brought, mut has_waited) = (0, false);
        while let Some(waited) = self.coming.goes_on(self.id).await {
            has_waited |= waited;
            let next = tokio::select! {
                next = tokio::time::timeout(SILENCE, body.next()) => next,
                () = self.coming.is_unwanted(self.id) => return Ok(()),
            };
            let piece = match next {
                Ok(Some(Ok(piece))) => piece,
                // One that had to wait may have been given up for that.
                _ if n_brought >= LEAST || has_waited => return Err(Broken::TakenUp),
                Ok(Some(Err(error))) => {
                    let why = longshore_link::chain(&error);
                    return Err(Broken::Told(format!("the blob broke off: {why}")));
                }
                Ok(None) => return Err(Broken::Told("the blob ends early".to_owned())),
                Err(_) => return Err(Broken::Told("the registry sends nothing".to_owned())),
            };
            n_brought += self.write(gather(piece, &mut body), &mut skip).await?;
        }
        Ok(())
    }

    /// Writes what came, without what is not asked for.
    async fn write(&self, pieces: Vec<Bytes>, skip: &mut u64) -> Result<u64, Broken> {
        let left = self.coming.left_of(self.id);
        let mut n_left = left.end.saturating_sub(left.start);
        let mut wanted = Vec::with_capacity(pieces.len());
        for mut piece in pieces {
            self.mirror.metrics.fetched.inc_by(piece.len() as u64);
            let n_skipped = usize::try_from(*skip).map_or(piece.len(), |n| n.min(piece.len()));
            *skip -= n_skipped as u64;
            let mut piece = piece.split_off(n_skipped);
            piece.truncate(usize::try_from(n_left).unwrap_or(usize::MAX));
            n_left -= piece.len() as u64;
            wanted.push(piece);
        }
        let n_bytes = wanted.iter().map(|piece| piece.len() as u64).sum();
        let (coming, id) = (Arc::clone(&self.coming), self.id);
        blocking(move || coming.write(id, &wanted)).await.map_err(|error| {
            let why = format!("the mirror's disk does not take it: {error}");
            // Whoever asks again gets it past the mirror, or has room made for it.
            let (_, digest) = &self.coming.of;
            tracing::warn!(%digest, why, "a blob is not kept");
            self.coming.give_up(why.clone());
            Broken::Told(why)
        })?;
        Ok(n_bytes)
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        // Nothing, where it came to its end.
        self.coming.ended(self.id, Some("the location gave up on it"));
    }
}

/// A piece with those that came by now.
fn gather(piece: Bytes, body: &mut BodyDataStream<Incoming>) -> Vec<Bytes> {
    let mut n_bytes = piece.len();
    let mut pieces = vec![piece];
    while n_bytes < SEGMENT
        && let Some(Some(Ok(piece))) = body.next().now_or_never()
    {
        n_bytes += piece.len();
        pieces.push(piece);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_which_bytes_it_has() {
        let shape = |status: u16, name: &str, value: &str| {
            let answer = Response::builder().status(status).header(name, value).body(()).unwrap();
            Shape::of(&answer).map(|shape| (shape.start, shape.size))
        };
        assert_eq!(shape(200, "content-length", "7"), Some((0, 7)));
        assert_eq!(shape(206, "content-range", "bytes 3-6/7"), Some((3, 7)));
        for (status, name, value) in [
            (200, "content-range", "bytes 3-6/7"),
            (206, "content-length", "7"),
            (206, "content-range", "bytes 3-6/*"),
            (206, "content-range", "bytes */7"),
            (206, "content-range", "3-6/7"),
            (200, "content-length", "many"),
        ] {
            assert_eq!(shape(status, name, value), None, "{status} {name}: {value}");
        }
    }
}
