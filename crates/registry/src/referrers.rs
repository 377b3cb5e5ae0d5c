//! What is about a manifest: signatures, bills of materials and the like, which name it as their
//! subject. The list is made when it is asked for, from links that were kept with each of them.

use std::sync::Arc;

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, LINK};
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use longshore_types::{Digest, Repository};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Registry;
use crate::listings::Page;
use crate::manifest::{Kind, MAX_MANIFEST};
use crate::refusal::{Code, Refusal};
use crate::server::set;
use crate::storage::{Storage, StorageError};

const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// The most that one answer lists, whatever `n` asks for.
const MAX_PAGE: usize = 1000;

/// Which of them a client wants.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Filter {
    #[serde(rename = "artifactType")]
    artifact_type: Option<String>,
}

/// `GET referrers/<digest>`. An unknown subject has an empty list: a 404 would tell the client that
/// there is no such endpoint, and it would begin to keep lists of its own.
pub(crate) async fn answer(
    registry: &Arc<Registry>,
    repository: Repository,
    subject: &str,
    (filter, page): (Filter, Page),
) -> Result<Response, Refusal> {
    let subject: Digest =
        subject.parse().map_err(|error| Refusal::bad(Code::DigestInvalid, error))?;
    let wanted = filter.artifact_type.filter(|wanted| !wanted.is_empty());
    let n = page.limit(MAX_PAGE)?;
    let (of, kind) = (repository.clone(), wanted.clone());
    let found = registry.blocking(move |storage| {
        let from = page.last.as_deref().unwrap_or_default();
        list(storage, (&of, &subject), kind.as_deref(), (n, from))
    });
    let (descriptors, last) = found.await?;
    let index = json!({
        "schemaVersion": 2,
        "mediaType": Kind::OciIndex.media_type(),
        "manifests": descriptors,
    });
    let mut response = Response::new(Body::from(index.to_string()));
    let kind = HeaderValue::from_static(Kind::OciIndex.media_type());
    response.headers_mut().insert(CONTENT_TYPE, kind);
    if wanted.is_some() {
        set(&mut response, FILTERS_APPLIED, "artifactType");
    }
    if let Some(last) = last {
        let filter = wanted
            .map(|kind| format!("artifactType={}&", utf8_percent_encode(&kind, NON_ALPHANUMERIC)))
            .unwrap_or_default();
        let path = format!("/v2/{repository}/referrers/{subject}?{filter}n={n}&last={last}");
        set(&mut response, LINK, format!("<{path}>; rel=\"next\""));
    }
    Ok(response)
}

/// At most `n` descriptors after `from`, no more than an answer may hold, and after which to go on
/// when there are more.
fn list(
    storage: &Storage,
    (repository, subject): (&Repository, &Digest),
    wanted: Option<&str>,
    (n, from): (usize, &str),
) -> Result<(Vec<Value>, Option<String>), StorageError> {
    let mut found = Vec::new();
    let (mut n_bytes, mut last) = (0, None);
    for digest in storage.referrers(repository, subject)? {
        let name = digest.hex();
        if *name <= *from {
            continue;
        }
        let Some(descriptor) = storage.referrer(repository, subject, &digest)? else {
            continue;
        };
        let size = descriptor.to_string().len();
        if wanted.is_some_and(|wanted| descriptor["artifactType"] != wanted) {
            continue;
        }
        if found.len() == n || (n_bytes + size > MAX_MANIFEST && !found.is_empty()) {
            return Ok((found, last));
        }
        n_bytes += size;
        found.push(descriptor);
        last = Some(name);
    }
    Ok((found, None))
}
