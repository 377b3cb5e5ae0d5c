//! Manifests and tags, pushed, pulled and deleted.

use std::sync::Arc;

use axum::body::Body;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG, LOCATION};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::response::Response;
use longshore_image::converted::artifact::ARTIFACT_TYPE;
use longshore_types::{Digest, Repository, Tag};
use sha2::{Digest as _, Sha256};

use crate::Registry;
use crate::manifest::{MAX_MANIFEST, Manifest, Reference};
use crate::refusal::{Code, Refusal};
use crate::server::{CONTENT_DIGEST, empty, is_known_to_client, set, text};
use crate::storage::{Referrer, Storage, StorageError, StoredManifest};
use crate::uploads::read_whole;
use crate::upstream;

const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");

/// How a client names a manifest.
#[derive(Debug, Clone)]
pub(crate) enum Name {
    Digest(Digest),
    Tag(Tag),
}

impl Name {
    /// Only a digest can contain a colon.
    fn parse(text: &str) -> Result<Self, (Code, longshore_types::ParseError)> {
        if text.contains(':') {
            let digest = text.parse().map(Self::Digest);
            digest.map_err(|error| (Code::DigestInvalid, error))
        } else {
            let tag = text.parse().map(Self::Tag);
            tag.map_err(|error| (Code::ManifestInvalid, error))
        }
    }

    /// As a registry is asked for it.
    pub(crate) fn wanted(&self) -> String {
        match self {
            Self::Digest(digest) => digest.to_string(),
            Self::Tag(tag) => tag.to_string(),
        }
    }
}

pub(crate) async fn answer(
    registry: &Arc<Registry>,
    repository: Repository,
    reference: &str,
    parts: &Parts,
    body: &mut Body,
) -> Result<Response, Refusal> {
    let name = match Name::parse(reference) {
        Ok(name) => name,
        // What cannot be a tag is not there; only a push must be told that it never can be.
        Err((Code::ManifestInvalid, _)) if parts.method != Method::PUT => {
            return Err(Refusal::manifest_unknown(&repository, reference));
        }
        Err((code, error)) => return Err(Refusal::bad(code, error)),
    };
    match parts.method {
        Method::PUT => put(registry, repository, name, parts, body).await,
        Method::DELETE => delete(registry, repository, name, reference).await,
        _ => get(registry, repository, name, reference, parts).await,
    }
}

async fn get(
    registry: &Arc<Registry>,
    repository: Repository,
    name: Name,
    reference: &str,
    parts: &Parts,
) -> Result<Response, Refusal> {
    let (digest, manifest) = match registry.upstreams.of(&repository) {
        Some(theirs) => upstream::find_manifest(registry, &theirs, &repository, &name).await?,
        None => {
            let of = repository.clone();
            let found = registry.blocking(move |storage| find(storage, &of, &name)).await?;
            found.ok_or_else(|| match repository.project().contains('.') {
                true => Refusal::no_upstream(&repository, reference),
                false => Refusal::manifest_unknown(&repository, reference),
            })?
        }
    };
    let etag = format!("\"{digest}\"");
    let mut response = if is_known_to_client(parts, &etag) {
        empty(StatusCode::NOT_MODIFIED)
    } else {
        let length = manifest.bytes.len();
        let body = match parts.method {
            Method::HEAD => Body::empty(),
            _ => Body::from(manifest.bytes),
        };
        let mut response = Response::new(body);
        set(&mut response, CONTENT_LENGTH, length);
        set(&mut response, CONTENT_TYPE, manifest.media_type);
        response
    };
    set(&mut response, ETAG, etag);
    set(&mut response, CONTENT_DIGEST, digest);
    // Without it a browser, told nothing else, may take text that a user pushed for a page.
    response
        .headers_mut()
        .insert(axum::http::header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(response)
}

fn find(
    storage: &Storage,
    repository: &Repository,
    name: &Name,
) -> Result<Option<(Digest, StoredManifest)>, StorageError> {
    let digest = match name {
        Name::Digest(digest) => Some(*digest),
        Name::Tag(tag) => storage.tag(repository, tag)?,
    };
    let Some(digest) = digest else {
        return Ok(None);
    };
    let manifest = by_digest(storage, repository, &digest)?;
    Ok(manifest.map(|manifest| (digest, manifest)))
}

/// A manifest that is here, which can be counted on from now on.
pub(crate) fn by_digest(
    storage: &Storage,
    repository: &Repository,
    digest: &Digest,
) -> Result<Option<StoredManifest>, StorageError> {
    // What is not there is not remembered; what is found after the touch can be counted on.
    if storage.manifest_size(repository, digest)?.is_none() {
        return Ok(None);
    }
    storage.touch(repository, digest);
    storage.manifest(repository, digest)
}

async fn put(
    registry: &Arc<Registry>,
    repository: Repository,
    name: Name,
    parts: &Parts,
    body: &mut Body,
) -> Result<Response, Refusal> {
    let bytes = read_whole(registry, body, MAX_MANIFEST).await?;
    let manifest = Manifest::parse(text(parts, CONTENT_TYPE), &bytes)
        .map_err(|error| Refusal::bad(Code::ManifestInvalid, error))?;
    if manifest.is_converted() {
        let message = format!(
            "artifacts of the type {ARTIFACT_TYPE} are what the registry itself made of an image; \
             it takes them from nobody"
        );
        return Err(Refusal::new(StatusCode::FORBIDDEN, Code::Denied, message));
    }
    let digest = Digest::from_sha256(Sha256::digest(&bytes).into());
    if let Name::Digest(claimed) = &name
        && *claimed != digest
    {
        let message = format!("the manifest's digest is {digest}, not {claimed}");
        return Err(Refusal::bad(Code::DigestInvalid, message));
    }
    let to = repository.clone();
    let (subject, is_image) = (manifest.subject, manifest.manifests.is_empty());
    let kept = registry.blocking(move |storage| {
        storage.unmark_upstream(&to)?;
        keep(storage, &to, &name, &digest, (manifest, bytes))
    });
    kept.await?;
    if is_image && registry.convert_from.is_some() {
        registry.pushed.add(&repository, &digest);
    }
    let mut response = empty(StatusCode::CREATED);
    if let Some(subject) = subject {
        // Tells the client that it need not keep the list of referrers under a tag itself.
        set(&mut response, SUBJECT, subject);
    }
    let location = format!("/v2/{repository}/manifests/{digest}");
    set(&mut response, LOCATION, location);
    set(&mut response, CONTENT_DIGEST, digest);
    Ok(response)
}

/// Keeps a manifest when all is there that it names.
pub(crate) fn keep(
    storage: &Storage,
    repository: &Repository,
    name: &Name,
    digest: &Digest,
    (manifest, bytes): (Manifest, Vec<u8>),
) -> Result<(), Refusal> {
    let _unchanged = storage.lock_repository(repository);
    let named = manifest.blobs.iter().chain(&manifest.manifests).map(|named| named.digest);
    let named: Vec<Digest> = named.chain([*digest]).collect();
    named.iter().for_each(|named| storage.touch(repository, named));
    for blob in &manifest.blobs {
        check(blob, "blob", storage.blob_size(repository, &blob.digest)?)?;
    }
    for child in &manifest.manifests {
        let size = storage.manifest_size(repository, &child.digest)?;
        check(child, "manifest", size)?;
    }
    storage.settle(repository, manifest.blobs.iter().map(|blob| blob.digest))?;
    put_in_place(storage, repository, name, digest, (manifest, bytes))?;
    // Once more: a look that began meanwhile may have seen the half of this, and must know.
    named.iter().for_each(|named| storage.touch(repository, named));
    Ok(())
}

/// Keeps a manifest of which all else is elsewhere, and is fetched when somebody asks for it.
pub(crate) fn keep_incomplete(
    storage: &Storage,
    repository: &Repository,
    name: &Name,
    digest: &Digest,
    manifest: (Manifest, Vec<u8>),
) -> Result<(), StorageError> {
    let _unchanged = storage.lock_repository(repository);
    storage.touch(repository, digest);
    put_in_place(storage, repository, name, digest, manifest)
}

fn put_in_place(
    storage: &Storage,
    repository: &Repository,
    name: &Name,
    digest: &Digest,
    (manifest, bytes): (Manifest, Vec<u8>),
) -> Result<(), StorageError> {
    let referrer = manifest
        .subject
        .map(|subject| Referrer { subject, descriptor: manifest.as_referrer(digest, bytes.len()) });
    let stored = StoredManifest { media_type: manifest.kind.media_type().to_owned(), bytes };
    storage.put_manifest(repository, digest, &stored, referrer.as_ref())?;
    match name {
        Name::Tag(tag) => storage.put_tag(repository, tag, digest),
        Name::Digest(_) => Ok(()),
    }
}

/// A wrong size is refused too: those who pull reserve space and set limits by it.
fn check(reference: &Reference, what: &str, size: Option<u64>) -> Result<(), Refusal> {
    let Reference { digest, size: said } = reference;
    match size {
        None => Err(Refusal::bad(
            Code::ManifestBlobUnknown,
            format!("{what} {digest} must be pushed to this repository first"),
        )),
        Some(size) if size != *said => Err(Refusal::bad(
            Code::SizeInvalid,
            format!("{what} {digest} has {size} bytes, not {said}"),
        )),
        Some(_) => Ok(()),
    }
}

async fn delete(
    registry: &Arc<Registry>,
    repository: Repository,
    name: Name,
    reference: &str,
) -> Result<Response, Refusal> {
    let (of, pins) = (repository.clone(), registry.pins.clone());
    let deleted = registry.blocking(move |storage| {
        Ok::<_, Refusal>(match name {
            Name::Digest(digest) => {
                pins.check(storage, &of, &digest)?;
                storage.delete_manifest(&of, &digest)?
            }
            Name::Tag(tag) => storage.delete_tag(&of, &tag)?,
        })
    });
    let existed = deleted.await?;
    if existed {
        Ok(empty(StatusCode::ACCEPTED))
    } else {
        Err(Refusal::manifest_unknown(&repository, reference))
    }
}
