//! Blobs as clients push them: in one request, or in chunks that survive a broken connection, a
//! restarted registry and a client that comes back later.
//!
//! A body is never believed: its bytes are counted and hashed as they come, a client that stops
//! sending is cut off, and what was received until then stays, so that a client that asks where it
//! stands can go on from there. One request at a time works on an upload; another waits for it and
//! then finds the offset moved.

mod receive;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::http::header::{CONTENT_RANGE, LOCATION, RANGE};
use axum::http::request::Parts;
use axum::http::{HeaderName, Method, StatusCode};
use axum::response::Response;
use longshore_types::{Digest, Repository};
use serde::Deserialize;

use crate::Registry;
use crate::range;
use crate::refusal::{Code, Refusal};
use crate::server::{CONTENT_DIGEST, empty, query, set, text, visible};
use crate::storage::{StorageError, UploadHash, UploadId};

pub(crate) use receive::read_whole;
use receive::{Expected, Held, receive};

const UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");

type Slot = Arc<tokio::sync::Mutex<Option<UploadHash>>>;

/// The uploads that this process has seen, with their running hashes; `None` until the bytes that
/// an earlier process left were read.
#[derive(Debug, Default)]
pub(crate) struct Uploads {
    known: Mutex<HashMap<UploadId, (Repository, Slot)>>,
}

impl Uploads {
    fn add(&self, upload: UploadId, repository: &Repository, hash: Option<UploadHash>) -> Slot {
        let mut known = self.lock();
        // Another request may have looked at the disk as well and added it a moment ago.
        let entry = known.entry(upload);
        entry.or_insert_with(|| (repository.clone(), Slot::new(hash.into()))).1.clone()
    }

    fn get(&self, upload: UploadId) -> Option<(Repository, Slot)> {
        self.lock().get(&upload).cloned()
    }

    fn forget(&self, upload: UploadId) {
        self.lock().remove(&upload);
    }

    /// Forgets the hashes that no request is using; they can be computed again.
    pub(crate) fn forget_idle(&self) {
        self.lock().retain(|_, (_, slot)| Arc::strong_count(slot) > 1);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<UploadId, (Repository, Slot)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The query with which an upload begins.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Start {
    digest: Option<String>,
    mount: Option<String>,
    /// From where to mount; only when the token may pull there.
    pub(crate) from: Option<String>,
}

/// The query with which an upload ends.
#[derive(Debug, Deserialize)]
struct Finish {
    digest: Option<String>,
}

/// `POST blobs/uploads/`: mount, upload at once, or begin.
pub(crate) async fn start(
    registry: &Arc<Registry>,
    repository: Repository,
    start: Start,
    body: &mut Body,
) -> Result<Response, Refusal> {
    if let Some(mount) = &start.mount {
        let digest = parse_digest(mount)?;
        let from = start.from.and_then(|from| from.parse::<Repository>().ok());
        if let Some(from) = from {
            let to = repository.clone();
            let mounted =
                registry.blocking(move |storage| storage.mount_blob(&from, &to, &digest)).await?;
            if mounted {
                return Ok(created(&repository, &digest));
            }
        }
    }
    let wanted = start.digest.as_deref().map(parse_digest).transpose()?;
    let of = repository.clone();
    let (upload, hash) = registry.blocking(move |storage| storage.begin_upload(&of)).await?;
    registry.uploads.add(upload, &repository, Some(hash));
    match wanted {
        None => Ok(accepted(&repository, upload, 0)),
        Some(digest) => {
            let held = hold(registry, &repository, upload).await?;
            let finished = match receive(registry, held, body, Expected::Any).await {
                Ok(held) => finish(registry, &repository, upload, digest, held).await,
                Err(refusal) => Err(refusal),
            };
            if finished.is_err() {
                // Nobody was told the upload's name, so nobody can go on with it.
                abandon(registry, upload).await?;
            }
            finished
        }
    }
}

/// What is done to an upload that was begun.
pub(crate) async fn answer(
    registry: &Arc<Registry>,
    repository: Repository,
    id: &str,
    parts: &Parts,
    body: &mut Body,
) -> Result<Response, Refusal> {
    let upload = id.parse().map_err(|_| Refusal::upload_unknown(&repository, id))?;
    let held = hold(registry, &repository, upload).await?;
    match parts.method {
        Method::GET => Ok(progress(StatusCode::NO_CONTENT, &repository, upload, held.length())),
        Method::DELETE => {
            abandon(registry, upload).await?;
            Ok(empty(StatusCode::NO_CONTENT))
        }
        Method::PATCH => {
            let held = append(registry, &repository, upload, held, (parts, body)).await?;
            Ok(accepted(&repository, upload, held.length()))
        }
        _ => {
            // Before the bytes are taken: a client that forgot the digest can still send it.
            let wanted = query::<Finish>(parts)?.digest.ok_or_else(|| {
                Refusal::bad(Code::DigestInvalid, "?digest= must name the blob's digest")
            })?;
            let wanted = parse_digest(&wanted)?;
            let held = append(registry, &repository, upload, held, (parts, body)).await?;
            finish(registry, &repository, upload, wanted, held).await
        }
    }
}

/// Takes the upload for this request alone, with the hash over what it already has.
async fn hold(
    registry: &Arc<Registry>,
    repository: &Repository,
    upload: UploadId,
) -> Result<Held, Refusal> {
    let unknown = || Refusal::upload_unknown(repository, upload);
    let slot = match registry.uploads.get(upload) {
        Some((owner, slot)) if owner == *repository => slot,
        Some(_) => return Err(unknown()),
        None => {
            let of = repository.clone();
            if !registry.blocking(move |storage| storage.has_upload(&of, upload)).await? {
                return Err(unknown());
            }
            registry.uploads.add(upload, repository, None)
        }
    };
    let waited = tokio::time::timeout(registry.body_stall, slot.clone().lock_owned());
    let held = waited.await.map_err(|_| {
        Refusal::new(
            StatusCode::CONFLICT,
            Code::BlobUploadInvalid,
            "another request is still sending to this upload",
        )
    })?;
    // It may have been finished or cancelled by the request that held it.
    let known = registry.uploads.get(upload);
    if !known.is_some_and(|(_, known)| Arc::ptr_eq(&known, &slot)) {
        return Err(unknown());
    }
    if held.is_some() {
        return Ok(Held::new(held));
    }
    let resumed = registry.blocking(move |storage| {
        let mut held = held;
        *held = storage.resume_upload(upload)?;
        Ok::<_, StorageError>(held)
    });
    let held = resumed.await?;
    if held.is_none() {
        registry.uploads.forget(upload);
        return Err(unknown());
    }
    Ok(Held::new(held))
}

/// Adds a request's body to the upload, at the place that the request names if it names one.
async fn append(
    registry: &Arc<Registry>,
    repository: &Repository,
    upload: UploadId,
    held: Held,
    (parts, body): (&Parts, &mut Body),
) -> Result<Held, Refusal> {
    let expected = match text(parts, CONTENT_RANGE) {
        None => Expected::Any,
        Some(header) => {
            let place = range::chunk(header).ok_or_else(|| {
                let message = format!("Content-Range is {header:?}; it must be first-last");
                Refusal::bad(Code::BlobUploadInvalid, message)
            })?;
            let have = held.length();
            if place.start != have {
                let message = format!("the next byte to send is {have}, not {}", place.start);
                return Err(Refusal::new(
                    StatusCode::RANGE_NOT_SATISFIABLE,
                    Code::BlobUploadInvalid,
                    message,
                )
                .with(LOCATION, visible(location(repository, upload)))
                .with(RANGE, visible(received(have)))
                .with(UPLOAD_UUID, visible(upload)));
            }
            Expected::Bytes(place.end - place.start)
        }
    };
    let outcome = receive(registry, held, body, expected).await;
    give_up_in_vain(registry, upload, &outcome).await?;
    outcome
}

/// On a full disk the space is worth more than the chance that the client resumes; and what the object
/// store has forgotten cannot be resumed.
async fn give_up_in_vain<T>(
    registry: &Arc<Registry>,
    upload: UploadId,
    outcome: &Result<T, Refusal>,
) -> Result<(), Refusal> {
    match outcome {
        Err(refusal) if refusal.is_full_disk() || refusal.is_unknown_upload() => {
            abandon(registry, upload).await
        }
        _ => Ok(()),
    }
}

/// Turns the upload into a blob when its bytes are what the client says.
async fn finish(
    registry: &Arc<Registry>,
    repository: &Repository,
    upload: UploadId,
    wanted: Digest,
    mut held: Held,
) -> Result<Response, Refusal> {
    let found = held.digest();
    if found != wanted {
        abandon(registry, upload).await?;
        let message = format!("the bytes have the digest {found}, not {wanted}");
        return Err(Refusal::bad(Code::DigestInvalid, message));
    }
    let to = repository.clone();
    let finished = registry.blocking(move |storage| {
        let finished = storage.finish_upload(&to, upload, held.hash_mut());
        // Whether it worked or not, the next to come must look at the disk.
        held.clear();
        finished
    });
    let finished = finished.await.map_err(Refusal::from);
    give_up_in_vain(registry, upload, &finished).await?;
    finished?;
    registry.uploads.forget(upload);
    Ok(created(repository, &wanted))
}

async fn abandon(registry: &Arc<Registry>, upload: UploadId) -> Result<(), Refusal> {
    registry.blocking(move |storage| storage.remove_upload(upload)).await?;
    registry.uploads.forget(upload);
    Ok(())
}

fn parse_digest(text: &str) -> Result<Digest, Refusal> {
    text.parse().map_err(|error| Refusal::bad(Code::DigestInvalid, error))
}

fn location(repository: &Repository, upload: UploadId) -> String {
    format!("/v2/{repository}/blobs/uploads/{upload}")
}

/// The bytes that are here, as the protocol writes them; it has no way to say "none".
fn received(length: u64) -> String {
    format!("0-{}", length.saturating_sub(1))
}

fn created(repository: &Repository, digest: &Digest) -> Response {
    let mut response = empty(StatusCode::CREATED);
    let location = format!("/v2/{repository}/blobs/{digest}");
    set(&mut response, LOCATION, location);
    set(&mut response, CONTENT_DIGEST, digest);
    response
}

fn accepted(repository: &Repository, upload: UploadId, length: u64) -> Response {
    progress(StatusCode::ACCEPTED, repository, upload, length)
}

fn progress(
    status: StatusCode,
    repository: &Repository,
    upload: UploadId,
    length: u64,
) -> Response {
    let mut response = empty(status);
    set(&mut response, LOCATION, location(repository, upload));
    set(&mut response, RANGE, received(length));
    set(&mut response, UPLOAD_UUID, upload);
    response
}
