//! From a body to an upload's file and hash.

use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use http_body_util::BodyExt as _;
use longshore_types::Digest;
use tokio::sync::OwnedMutexGuard;
use tokio::task::JoinHandle;

use crate::Registry;
use crate::refusal::{Code, Refusal};
use crate::storage::{StorageError, UploadHash};

/// Bytes that are gathered before a thread writes and hashes them. A thread is never held while a
/// client is waited for, so slow clients cost memory and not threads: two of these each.
const SEGMENT: usize = 1 << 20;

/// After so many bytes the disk is set to work on them while more are received, so that a manifest
/// finds little left to wait for.
const FLUSH_EVERY: u64 = 64 << 20;

/// An upload that this request holds alone; its hash has been computed.
#[derive(Debug)]
pub(super) struct Held(OwnedMutexGuard<Option<UploadHash>>);

impl Held {
    /// `slot` must be filled.
    pub(super) fn new(slot: OwnedMutexGuard<Option<UploadHash>>) -> Self {
        Self(slot)
    }

    fn hash(&self) -> &UploadHash {
        self.0.as_ref().expect("filled when it was taken")
    }

    pub(super) fn hash_mut(&mut self) -> &mut UploadHash {
        self.0.as_mut().expect("filled when it was taken")
    }

    pub(super) fn length(&self) -> u64 {
        self.hash().length()
    }

    pub(super) fn digest(&self) -> Digest {
        self.hash().digest()
    }

    /// Makes whoever holds the upload next look up what it has.
    pub(super) fn clear(&mut self) {
        *self.0 = None;
    }
}

/// How many bytes a request said it would send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    /// It did not say, or said it only in a Content-Length.
    Any,
    /// A chunk with a place.
    Bytes(u64),
}

/// Adds a body to an upload. Whatever ends it early, the bytes before that are kept.
pub(super) async fn receive(
    registry: &Registry,
    held: Held,
    body: &mut Body,
    expected: Expected,
) -> Result<Held, Refusal> {
    let room = registry.max_blob.0.saturating_sub(held.length());
    let limit = match expected {
        Expected::Bytes(n_bytes) => n_bytes.min(room),
        Expected::Any => room,
    };
    let mut writer = Writer::Idle(held);
    let mut received = 0;
    let end = gather(registry, body, &mut writer, (limit, &mut received)).await;
    let settled = writer.settle().await;
    end?;
    let held = sent(registry, settled?).await?;
    match expected {
        Expected::Bytes(n_bytes) if received != n_bytes => Err(Refusal::bad(
            Code::SizeInvalid,
            format!("the chunk has {received} bytes; its Content-Range says {n_bytes}"),
        )),
        _ => Ok(held),
    }
}

/// Waits until what is on its way to an object store is there, so that its failure is told to who sent it.
async fn sent(registry: &Registry, mut held: Held) -> Result<Held, Refusal> {
    let settled = registry.blocking(move |_| match held.hash_mut().settle() {
        Ok(()) => Ok(held),
        Err(error) => {
            held.clear();
            Err(error)
        }
    });
    Ok(settled.await?)
}

/// Reads the body to its end and hands it to the writer segment by segment.
async fn gather(
    registry: &Registry,
    body: &mut Body,
    writer: &mut Writer,
    (limit, received): (u64, &mut u64),
) -> Result<(), Refusal> {
    let mut segment = Vec::new();
    let mut in_segment = 0;
    let end = loop {
        let bytes = match next(registry, body).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => break Ok(()),
            Err(refusal) => break Err(refusal),
        };
        if *received + bytes.len() as u64 > limit {
            break Err(too_large());
        }
        *received += bytes.len() as u64;
        in_segment += bytes.len();
        segment.push(bytes);
        if in_segment >= SEGMENT {
            writer.write(std::mem::take(&mut segment)).await?;
            in_segment = 0;
        }
    };
    if !segment.is_empty() {
        writer.write(segment).await?;
    }
    end
}

/// The next bytes of a body; `None` at its end.
async fn next(registry: &Registry, body: &mut Body) -> Result<Option<Bytes>, Refusal> {
    loop {
        let frame = tokio::time::timeout(registry.body_stall, body.frame()).await;
        let frame = frame.map_err(|_| {
            Refusal::new(
                StatusCode::REQUEST_TIMEOUT,
                Code::BlobUploadInvalid,
                format!("nothing was sent for {} s", registry.body_stall.as_secs()),
            )
        })?;
        match frame {
            None => return Ok(None),
            // Trailers mean nothing here.
            Some(Ok(frame)) => match frame.into_data() {
                Ok(bytes) if !bytes.is_empty() => return Ok(Some(bytes)),
                _ => {}
            },
            Some(Err(error)) => {
                tracing::debug!(%error, "a body broke off");
                return Err(Refusal::bad(
                    Code::BlobUploadInvalid,
                    "the body broke off before its end",
                ));
            }
        }
    }
}

/// Reads a small body into memory.
pub(crate) async fn read_whole(
    registry: &Registry,
    body: &mut Body,
    limit: usize,
) -> Result<Vec<u8>, Refusal> {
    let mut whole = Vec::new();
    while let Some(bytes) = next(registry, body).await? {
        if whole.len() + bytes.len() > limit {
            return Err(Refusal::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                Code::SizeInvalid,
                format!("a manifest may have {limit} bytes"),
            ));
        }
        whole.extend_from_slice(&bytes);
    }
    Ok(whole)
}

fn too_large() -> Refusal {
    Refusal::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        Code::SizeInvalid,
        "more bytes than the Content-Range says, or than a blob may have",
    )
}

/// Writes and hashes one segment while the next one is received.
#[derive(Debug)]
enum Writer {
    Idle(Held),
    Busy(JoinHandle<Result<Held, StorageError>>),
    /// A write failed, which was told then.
    Failed,
}

impl Writer {
    async fn write(&mut self, segment: Vec<Bytes>) -> Result<(), Refusal> {
        let mut held = std::mem::replace(self, Self::Failed).settle().await?;
        *self = Self::Busy(tokio::task::spawn_blocking(move || {
            let hash = held.hash_mut();
            let before = hash.length();
            if let Err(error) = hash.append(&segment) {
                held.clear();
                return Err(error);
            }
            if before / FLUSH_EVERY < hash.length() / FLUSH_EVERY
                && let Some(flusher) = hash.flusher()
            {
                tokio::task::spawn_blocking(move || flusher.flush());
            }
            Ok(held)
        }));
        Ok(())
    }

    /// Waits for the write in progress.
    async fn settle(self) -> Result<Held, Refusal> {
        match self {
            Self::Idle(held) => Ok(held),
            Self::Busy(write) => match write.await {
                Ok(written) => Ok(written?),
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            },
            Self::Failed => Err(Refusal::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                Code::Unknown,
                "an earlier write failed",
            )),
        }
    }
}
