//! What is made of one image: of each large layer an index, frames and a table, and an artifact that names them.

use std::io;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use longshore_image::Limits;
use longshore_image::converted::artifact::{self, ConvertedLayer, ConvertedLayers};
use longshore_image::converted::{Converted, convert};
use longshore_image::manifest::{Descriptor, Document};
use longshore_image::source::Retry;
use longshore_image::unpack::LayerIdentity;
use longshore_types::{ByteCount, Digest, Repository, chain};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::pieces::Pieces;
use super::{ConvertError, Work};
use crate::manifest::Manifest;
use crate::manifests::{self, Name};
use crate::metrics::Conversion;
use crate::storage::{Outcome, Pushed, Standing, Storage, StorageError, UploadHash, UploadId};

/// What was pushed may become so many times as large, and no more: frames know nothing of one another, and
/// what repeats over more than one of them is in each.
const MOST_TIMES: u64 = 4;

/// Converts the layers of an image that are large enough, and says so in its repository; gives how many
/// they are.
pub(super) fn convert_image(
    work: Work<'_>,
    (repository, digest): (&Repository, &Digest),
    from: ByteCount,
) -> Result<usize, ConvertError> {
    if work.is_ending() {
        return Err(ConvertError::Ends);
    }
    let Work { storage, .. } = work;
    let Some(stored) = storage.manifest(repository, digest)? else { return Ok(0) };
    let size = ByteCount(stored.bytes.len() as u64);
    // Something else than an image, or one that no node takes.
    let document = Document::parse(&stored.bytes, &stored.media_type);
    let Ok(Document::Manifest { config, layers }) = document else { return Ok(0) };
    if !layers.iter().any(|layer| layer.size >= from) {
        return Ok(0);
    }
    let Some(diff_ids) = diff_ids(storage, repository, &config)? else { return Ok(0) };
    if diff_ids.len() != layers.len() || storage.standing(repository, digest)? != Standing::Open {
        return Ok(0);
    }
    let mut converted = ConvertedLayers::new();
    for (layer, diff_id) in layers.iter().zip(diff_ids).filter(|(layer, _)| layer.size >= from) {
        let of = LayerIdentity { blob: layer.digest, size: layer.size, diff_id };
        if let Some(parts) = convert_layer(work, repository, &of)? {
            converted.insert(diff_id, parts);
        }
        // What was made for this image is needed until it is published.
        let made = converted.values().flat_map(ConvertedLayer::blobs);
        made.for_each(|blob| storage.touch(repository, &blob.digest));
    }
    if !converted.is_empty() {
        let subject = (&*stored.media_type, Descriptor { digest: *digest, size });
        publish(storage, repository, subject, &converted)?;
    }
    Ok(converted.len())
}

/// Whether all blobs of an image are here; what is converted of it is said once.
pub(super) fn is_whole(
    storage: &Storage,
    repository: &Repository,
    digest: &Digest,
) -> Result<bool, StorageError> {
    let Some(stored) = storage.manifest(repository, digest)? else { return Ok(false) };
    let manifest = Manifest::parse(Some(&stored.media_type), &stored.bytes)
        .map_err(|error| StorageError::unreadable(digest, error))?;
    storage.has_blobs(repository, manifest.blobs.iter().map(|blob| &blob.digest))
}

/// The DiffIDs of an image; nothing when its config has none.
fn diff_ids(
    storage: &Storage,
    repository: &Repository,
    config: &Descriptor,
) -> Result<Option<Vec<Digest>>, ConvertError> {
    #[derive(Deserialize)]
    struct Config {
        rootfs: RootFs,
    }
    #[derive(Deserialize)]
    struct RootFs {
        diff_ids: Vec<Digest>,
    }
    if config.size > Limits::default().config_bytes {
        return Ok(None);
    }
    let Some((bytes, size)) = storage.open_blob(repository, &config.digest)? else {
        return Ok(None);
    };
    let never = AtomicBool::new(false);
    let mut pieces = Pieces::new(bytes, size, &never);
    let whole = pieces.read_all().map_err(|error| StorageError::reading(&config.digest, error))?;
    Ok(serde_json::from_slice(&whole).ok().map(|config: Config| config.rootfs.diff_ids))
}

/// What a layer becomes, in the repository; nothing when it cannot be converted.
fn convert_layer(
    work: Work<'_>,
    repository: &Repository,
    of: &LayerIdentity,
) -> Result<Option<ConvertedLayer>, ConvertError> {
    let Work { storage, .. } = work;
    // A layer that is said to lie elsewhere is taken without its bytes, so it may name anybody's.
    if storage.blob_size(repository, &of.blob)? != Some(of.size.0) {
        return Ok(None);
    }
    let pushed = Pushed { blob: of.blob, diff_id: of.diff_id };
    match storage.outcome(pushed)? {
        Some(Outcome::Converted(parts)) if storage.link_converted(repository, &parts)? => {
            return Ok(Some(parts));
        }
        Some(Outcome::Refused(_)) => return Ok(None),
        Some(Outcome::Converted(_)) | None => {}
    }
    let made = make(work, repository, of);
    match &made {
        Err(ConvertError::Ends) | Ok(Became::Nothing) => {}
        Err(_) => work.metrics.ended(Conversion::Failed),
        Ok(Became::Refused(why)) => {
            tracing::info!(layer = %of.blob, why, "a layer cannot be converted");
            storage.keep_outcome(pushed, &Outcome::Refused(why.clone()))?;
            work.metrics.ended(Conversion::Refused);
        }
        Ok(Became::Parts(parts)) => storage.keep_outcome(pushed, &Outcome::Converted(*parts))?,
    }
    Ok(match made? {
        Became::Parts(parts) => Some(parts),
        Became::Refused(_) | Became::Nothing => None,
    })
}

/// What came of a layer.
enum Became {
    Parts(ConvertedLayer),
    /// It never can be converted, for this reason.
    Refused(String),
    /// It is not there.
    Nothing,
}

fn make(
    work: Work<'_>,
    repository: &Repository,
    of: &LayerIdentity,
) -> Result<Became, ConvertError> {
    let Work { storage, .. } = work;
    let Some((bytes, size)) = storage.open_blob(repository, &of.blob)? else {
        return Ok(Became::Nothing);
    };
    let most = of.size.0.saturating_mul(MOST_TIMES);
    if !storage.has_room(most)? {
        return Err(ConvertError::Room);
    }
    let began = Instant::now();
    let (upload, hash) = storage.begin_own_upload()?;
    let mut pieces = Pieces::new(bytes, size, work.is_ending);
    let converted = convert(&mut pieces, of, &Limits::default(), Writer { hash, most });
    let Converted { index, table, frames: Writer { hash, .. } } = match converted {
        Ok(converted) => converted,
        Err(error) => {
            storage.remove_upload(upload)?;
            if work.is_ending() {
                return Err(ConvertError::Ends);
            }
            // What cannot be read now says nothing of the layer.
            if pieces.has_failed() || error.retry() == Retry::CanHelp {
                return Err(ConvertError::Layer(of.blob, error));
            }
            return Ok(Became::Refused(chain(&error)));
        }
    };
    let frames = finish(storage, repository, upload, hash)?;
    let index = put_blob(storage, repository, index)?;
    let table = put_blob(storage, repository, table.encode())?;
    let parts = ConvertedLayer { index, frames, table };
    let written = parts.blobs().iter().map(|part| part.size.0).sum();
    work.metrics.converted(of.size.0, written, began.elapsed());
    Ok(Became::Parts(parts))
}

/// Makes bytes a blob of the repository.
fn put_blob(
    storage: &Storage,
    repository: &Repository,
    bytes: Vec<u8>,
) -> Result<Descriptor, StorageError> {
    let (upload, mut hash) = storage.begin_own_upload()?;
    match hash.append(&[bytes.into()]) {
        Ok(()) => finish(storage, repository, upload, hash),
        Err(error) => given_up(storage, upload, error),
    }
}

/// Makes what was written of an upload a blob of the repository.
fn finish(
    storage: &Storage,
    repository: &Repository,
    upload: UploadId,
    mut hash: UploadHash,
) -> Result<Descriptor, StorageError> {
    let settled = hash.settle();
    match settled.and_then(|()| storage.finish_upload(repository, upload, &mut hash)) {
        Ok(()) => Ok(Descriptor { digest: hash.digest(), size: ByteCount(hash.length()) }),
        Err(error) => given_up(storage, upload, error),
    }
}

/// Removes an upload that came to nothing.
fn given_up<T>(
    storage: &Storage,
    upload: UploadId,
    error: StorageError,
) -> Result<T, StorageError> {
    // The first error is the one to tell; what is left goes at the next start.
    let _ = storage.remove_upload(upload);
    Err(error)
}

/// Says in the repository what was converted of an image.
fn publish(
    storage: &Storage,
    repository: &Repository,
    subject: (&str, Descriptor),
    layers: &ConvertedLayers,
) -> Result<(), ConvertError> {
    let config = put_blob(storage, repository, artifact::EMPTY_CONFIG.to_vec())?;
    let image = subject.1.digest;
    let bytes = artifact::encode(subject, config, layers);
    let digest = Digest::from_sha256(Sha256::digest(&bytes).into());
    let manifest = Manifest::parse(Some(artifact::MEDIA_TYPE), &bytes)
        .map_err(|error| StorageError::unreadable(&digest, error))?;
    storage.set_converted(repository, &image, &digest)?;
    manifests::keep(storage, repository, &Name::Digest(digest), &digest, (manifest, bytes))
        .map_err(ConvertError::Publish)
}

/// An upload as something to be written, of so many bytes at most.
struct Writer {
    hash: UploadHash,
    most: u64,
}

impl io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.hash.length().saturating_add(bytes.len() as u64) > self.most {
            let why = format!("it would become more than {MOST_TIMES} times as large");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let appended = self.hash.append(&[axum::body::Bytes::copy_from_slice(bytes)]);
        appended.map_err(StorageError::into_io)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
