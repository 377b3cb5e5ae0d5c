//! Blobs as clients pull them.

use std::sync::Arc;

use axum::body::Body;
use axum::http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_RANGE, RANGE,
};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::Response;
use longshore_types::{Digest, Repository};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, SeekFrom};
use tokio_util::io::ReaderStream;

use crate::Registry;
use crate::range::Wanted;
use crate::refusal::{Code, Refusal};
use crate::server::{CONTENT_DIGEST, empty, is_known_to_client, set, text, visible};
use crate::storage::StorageError;

/// Large enough that a read from the page cache outweighs the hop to the thread that does it.
const READ_BUFFER: usize = 512 << 10;

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
    let of = repository.clone();
    let opened = registry.blocking(move |storage| storage.open_blob(&of, &digest)).await?;
    let (file, length) = opened.ok_or_else(|| Refusal::blob_unknown(&repository, &digest))?;
    let mut response = send(file.into(), length, &digest, parts).await?;
    set(&mut response, CONTENT_DIGEST, digest);
    response.headers_mut().insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    Ok(response)
}

async fn delete(
    registry: &Arc<Registry>,
    repository: Repository,
    digest: Digest,
) -> Result<Response, Refusal> {
    let of = repository.clone();
    let existed = registry.blocking(move |storage| storage.delete_blob(&of, &digest)).await?;
    if existed {
        Ok(empty(StatusCode::ACCEPTED))
    } else {
        Err(Refusal::blob_unknown(&repository, &digest))
    }
}

async fn send(
    mut file: tokio::fs::File,
    length: u64,
    digest: &Digest,
    parts: &Parts,
) -> Result<Response, Refusal> {
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
    let body = if parts.method == Method::HEAD {
        Body::empty()
    } else {
        file.seek(SeekFrom::Start(part.start))
            .await
            .map_err(|error| StorageError::reading(digest, error))?;
        Body::from_stream(ReaderStream::with_capacity(file.take(n_bytes), READ_BUFFER))
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
