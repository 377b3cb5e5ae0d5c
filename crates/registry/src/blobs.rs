//! Blobs as clients pull them.

mod body;

use std::fs::File;
use std::io::{self, Read as _};
use std::ops::Range;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_RANGE, RANGE,
};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::Response;
use longshore_types::{Digest, Repository};

use crate::Registry;
use crate::metrics::{Given, What};
use crate::objects::of_object;
use crate::range::Wanted;
use crate::refusal::{Code, Refusal};
use crate::server::{CONTENT_DIGEST, empty, is_known_to_client, set, text, visible};
use crate::storage::{BlobBytes, StorageError};
use crate::upstream::{self, Coming, Joined, Theirs};

pub(crate) use body::of_file;

/// A blob of at most so many bytes is read together with the look for it.
const SMALL: u64 = 512 << 10;

pub(crate) async fn answer(
    registry: &Arc<Registry>,
    repository: Repository,
    digest: &str,
    parts: &Parts,
) -> Result<Response, Refusal> {
    let digest: Digest =
        digest.parse().map_err(|error| Refusal::bad(Code::DigestInvalid, error))?;
    if parts.method == Method::DELETE {
        return delete(registry, repository, digest).await;
    }
    let is_read = parts.method == Method::GET;
    let theirs = registry.upstreams.of(&repository);
    let opened = match (open(registry, &repository, &digest, is_read).await?, theirs) {
        (Some(opened), None) => opened,
        (Some(opened), Some(theirs)) => {
            registry.metrics.upstreams.gave(theirs.name(), What::Blob, Given::Here);
            opened
        }
        (None, Some(theirs)) => {
            open_theirs(registry, &theirs, &repository, &digest, is_read).await?
        }
        (None, None) => return Err(Refusal::blob_unknown(&repository, &digest)),
    };
    let mut response = send(opened, &digest, parts).await?;
    set(&mut response, CONTENT_DIGEST, digest);
    response.headers_mut().insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    Ok(response)
}

/// A blob that is here.
async fn open(
    registry: &Arc<Registry>,
    repository: &Repository,
    digest: &Digest,
    is_read: bool,
) -> Result<Option<Opened>, Refusal> {
    let (of, digest) = (repository.clone(), *digest);
    let opened = registry.blocking(move |storage| {
        let opened = storage.open_blob(&of, &digest)?;
        let opened = opened.map(|(bytes, length)| Opened::new(bytes, length, is_read)).transpose();
        opened.map_err(|error| StorageError::reading(&digest, error))
    });
    Ok(opened.await?)
}

/// A blob that an upstream has.
async fn open_theirs(
    registry: &Arc<Registry>,
    theirs: &Theirs,
    repository: &Repository,
    digest: &Digest,
    is_read: bool,
) -> Result<Opened, Refusal> {
    if !is_read {
        let length = theirs.blob_size(repository, digest).await?;
        return Ok(Opened { bytes: Whence::Elsewhere, length, whole: None });
    }
    match upstream::join(registry, theirs, repository, digest).await? {
        Joined::Coming(coming) => {
            let length = coming.size();
            Ok(Opened { bytes: Whence::Coming(coming), length, whole: None })
        }
        Joined::Kept => {
            let opened = open(registry, repository, digest, is_read).await?;
            opened.ok_or_else(|| Refusal::blob_unknown(repository, digest))
        }
    }
}

async fn delete(
    registry: &Arc<Registry>,
    repository: Repository,
    digest: Digest,
) -> Result<Response, Refusal> {
    let (of, pins) = (repository.clone(), registry.pins.clone());
    let deleted = registry.blocking(move |storage| {
        pins.check(storage, &of, &digest)?;
        Ok::<_, Refusal>(storage.delete_blob(&of, &digest)?)
    });
    let existed = deleted.await?;
    if existed {
        Ok(empty(StatusCode::ACCEPTED))
    } else {
        Err(Refusal::blob_unknown(&repository, &digest))
    }
}

/// A blob, and its bytes when they are few: then one hop to a thread answers the request.
struct Opened {
    bytes: Whence,
    length: u64,
    whole: Option<Bytes>,
}

/// From where the bytes of a blob are had.
enum Whence {
    Kept(BlobBytes),
    /// While they come from an upstream.
    Coming(Coming),
    /// From nowhere: nobody asked for them.
    Elsewhere,
}

impl Opened {
    fn new(mut bytes: BlobBytes, length: u64, is_read: bool) -> io::Result<Self> {
        let whole = match &mut bytes {
            BlobBytes::Here(file) if is_read && length <= SMALL => Some(read_whole(file, length)?),
            BlobBytes::Here(_) | BlobBytes::Object(..) => None,
        };
        Ok(Self { bytes: Whence::Kept(bytes), length, whole })
    }

    /// Whether it comes in its order, and parts of it are best had so, too.
    fn is_coming(&self) -> bool {
        matches!(self.bytes, Whence::Coming(_))
    }

    /// A part of it that is not empty.
    async fn part(self, part: Range<u64>) -> Result<Body, StorageError> {
        match (self.whole, self.bytes) {
            // It is small, and so are its offsets.
            (Some(whole), _) => Ok(whole.slice(part.start as usize..part.end as usize).into()),
            (None, Whence::Kept(BlobBytes::Here(file))) => Ok(body::of_file(file, part)),
            (None, Whence::Kept(BlobBytes::Object(objects, key))) => {
                of_object(objects, (key, self.length), part).await
            }
            (None, Whence::Coming(coming)) => Ok(coming.body(part)),
            (None, Whence::Elsewhere) => Ok(Body::empty()),
        }
    }
}

async fn send(opened: Opened, digest: &Digest, parts: &Parts) -> Result<Response, Refusal> {
    let length = opened.length;
    // A digest names the same bytes for ever, which is what a strong entity tag promises.
    let etag = format!("\"{digest}\"");
    if is_known_to_client(parts, &etag) {
        let mut response = empty(StatusCode::NOT_MODIFIED);
        set(&mut response, ETAG, etag);
        return Ok(response);
    }
    let same = text(parts, IF_RANGE).is_none_or(|tag| tag == etag);
    let range = text(parts, RANGE).filter(|_| same && parts.method == Method::GET);
    let (status, part) = match Wanted::parse(range, length) {
        Wanted::Whole => (StatusCode::OK, 0..length),
        // Who gets the beginning in full asks for no other part, which would wait for all before it.
        Wanted::Part(part) if part.start == 0 && opened.is_coming() => (StatusCode::OK, 0..length),
        Wanted::Part(part) => (StatusCode::PARTIAL_CONTENT, part),
        Wanted::Unsatisfiable => {
            return Err(Refusal::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                Code::SizeInvalid,
                format!("the blob has {length} bytes"),
            )
            .with(CONTENT_RANGE, visible(format!("bytes */{length}"))));
        }
    };
    let n_bytes = part.end - part.start;
    let body = match parts.method {
        Method::HEAD => Body::empty(),
        _ if part.is_empty() => Body::empty(),
        _ => opened.part(part.clone()).await.map_err(of_blob)?,
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    set(&mut response, CONTENT_LENGTH, n_bytes);
    set(&mut response, ETAG, etag);
    if status == StatusCode::PARTIAL_CONTENT {
        let last = part.end - 1;
        let range = format!("bytes {}-{last}/{length}", part.start);
        set(&mut response, CONTENT_RANGE, range);
    }
    Ok(response)
}

/// What went wrong with the bytes of a blob that is known.
fn of_blob(error: StorageError) -> Refusal {
    if !error.is_unknown_object() {
        return error.into();
    }
    let cause = std::error::Error::source(&error).map(ToString::to_string);
    tracing::error!(%error, cause, "the object store has lost a blob");
    Refusal::objects_away()
}

fn read_whole(file: &mut File, n_bytes: u64) -> io::Result<Bytes> {
    let mut bytes = Vec::with_capacity(n_bytes as usize);
    if file.take(n_bytes).read_to_end(&mut bytes)? as u64 != n_bytes {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes.into())
}
