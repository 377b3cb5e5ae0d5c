//! Converts the layers of images in the background ([`longshore_image::converted`]).
//!
//! What is to be done is found by looking: an image without a link to what was converted of it. That is
//! done at the start, each hour, and whenever a manifest is pushed for that one; so a crash loses no more than
//! the layer that was under way. What became of a layer is remembered, so it is converted once, and what
//! cannot be converted is tried once.
//!
//! One layer at a time, on a thread of the lowest priority, whose children have the same: a registry that
//! serves does not notice. What it makes are blobs like others, and an artifact about the image, which goes with
//! it; what was pushed is read and never changed.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use longshore_image::Limits;
use longshore_image::converted::artifact::{self, ConvertedLayer, ConvertedLayers};
use longshore_image::converted::{Converted, convert};
use longshore_image::manifest::{Descriptor, Document};
use longshore_image::source::Retry;
use longshore_image::unpack::{LayerIdentity, UnpackError};
use longshore_types::{ByteCount, Digest, Repository, chain};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::sync::{Notify, oneshot};

use crate::Registry;
use crate::manifest::Manifest;
use crate::manifests::{self, Name};
use crate::refusal::{Code, Refusal};
use crate::server::{CONTENT_DIGEST, query, set};
use crate::storage::{Outcome, Pushed, Storage, StorageError, UploadHash, UploadId};

mod pieces;

use pieces::Pieces;

/// How often all images are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(3600);

/// Images that were pushed and not looked at yet. Those for which there is no room are found when all
/// are looked at.
const MAX_PUSHED: usize = 1024;

/// The lowest priority of a thread; for its reads and writes, too.
const LOWEST: i32 = 19;

/// What was pushed may become so many times as large, and no more: frames know nothing of one another, and
/// what repeats over more than one of them is in each.
const MOST_TIMES: u64 = 4;

/// An image of a repository.
type Image = (Repository, Digest);

/// How the layers of an image get here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comes {
    /// Before its manifest.
    Whole,
    /// When somebody pulls them.
    BitByBit,
}

/// What was pushed since the last look.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    pushed: Mutex<VecDeque<Image>>,
    more: Notify,
}

impl Queue {
    /// An image was pushed.
    pub(crate) fn add(&self, repository: &Repository, manifest: &Digest) {
        let mut pushed = self.pushed.lock().unwrap_or_else(PoisonError::into_inner);
        if pushed.len() < MAX_PUSHED {
            pushed.push_back((repository.clone(), *manifest));
            self.more.notify_one();
        }
    }

    fn take(&self) -> Option<Image> {
        self.pushed.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// The next one; waits for it.
    async fn next(&self) -> Image {
        loop {
            if let Some(image) = self.take() {
                return image;
            }
            self.more.notified().await;
        }
    }
}

/// Why an image was not converted, this time.
#[derive(Debug, thiserror::Error)]
enum ConvertError {
    #[error("reading or keeping what is converted")]
    Storage(#[from] StorageError),
    #[error("converting the layer {0}")]
    Layer(Digest, #[source] UnpackError),
    #[error("there is too little room on the disk")]
    Room,
    #[error("publishing what was converted: {0:?}")]
    Publish(Refusal),
    #[error("starting a thread")]
    Thread(#[source] io::Error),
    #[error("the converter broke off; this is a bug")]
    Broken,
    #[error("the registry ends")]
    Ends,
}

/// `GET` gives the artifact that names what was converted of an image.
pub(crate) async fn answer(
    registry: &Arc<Registry>,
    repository: Repository,
    parts: &Parts,
) -> Result<Response, Refusal> {
    #[derive(Deserialize)]
    struct Wanted {
        manifest: String,
    }
    if parts.method != Method::GET {
        return Err(Refusal::method(&parts.method, "GET"));
    }
    let Wanted { manifest } = query(parts)?;
    let image: Digest =
        manifest.parse().map_err(|error| Refusal::bad(Code::DigestInvalid, error))?;
    let of = repository.clone();
    let found = registry.blocking(move |storage| {
        let Some(artifact) = storage.converted(&of, &image)? else { return Ok(None) };
        // From here on it stays, with all that it names, for as long as a pull may take.
        storage.touch(&of, &artifact);
        let found = storage.manifest(&of, &artifact)?;
        Ok::<_, StorageError>(found.map(|found| (artifact, found)))
    });
    let found = found.await?;
    let (digest, found) = found.ok_or_else(|| {
        let message = format!("nothing is converted of {image} in {repository}");
        Refusal::new(StatusCode::NOT_FOUND, Code::ManifestUnknown, message)
    })?;
    let length = found.bytes.len();
    let mut response = Response::new(Body::from(found.bytes));
    set(&mut response, CONTENT_LENGTH, length);
    set(&mut response, CONTENT_TYPE, found.media_type);
    set(&mut response, CONTENT_DIGEST, digest);
    Ok(response)
}

impl Registry {
    /// Converts the layers of images, those that are there and those that come; never ends. Run beside the
    /// server and dropped with it. Does nothing where nothing is to be converted.
    pub async fn convert(&self) {
        let Some(from) = self.convert_from else { return };
        loop {
            let looked = tokio::time::Instant::now();
            match self.blocking(unconverted).await {
                Ok(images) => {
                    for image in images {
                        // What was pushed a moment ago is likely to be pulled next.
                        while let Some(pushed) = self.pushed.take() {
                            self.convert_or_tell(pushed, from).await;
                        }
                        self.convert_or_tell(image, from).await;
                    }
                }
                Err(error) => tell(&error, "cannot look for images to convert"),
            }
            let next_look = looked + LOOK_INTERVAL;
            while let Ok(image) = tokio::time::timeout_at(next_look, self.pushed.next()).await {
                self.convert_or_tell(image, from).await;
            }
        }
    }

    async fn convert_or_tell(&self, image: Image, from: ByteCount) {
        let storage = Arc::clone(&self.storage);
        let (repository, manifest) = (image.0.clone(), image.1);
        let comes = match self.upstreams.of(&repository) {
            Some(_) => Comes::BitByBit,
            None => Comes::Whole,
        };
        let converted = on_thread(move |is_ending| {
            if comes == Comes::BitByBit && !is_whole(&storage, &image.0, &image.1)? {
                return Ok(0);
            }
            convert_image(&storage, (&image.0, &image.1), from, is_ending)
        });
        match converted.await {
            Ok(0) | Err(ConvertError::Ends) => {}
            Ok(layers) => tracing::info!(%repository, %manifest, layers, "converted an image"),
            // Tried again with the next look.
            Err(error) => tell(&error, &format!("cannot convert {repository}@{manifest}")),
        }
    }
}

fn tell(error: &(dyn std::error::Error + 'static), what: &str) {
    tracing::warn!(error, "{what}; trying again later");
}

/// Does so on a thread of the lowest priority, which is told when this is dropped.
async fn on_thread<T: Send + 'static>(
    work: impl FnOnce(&AtomicBool) -> Result<T, ConvertError> + Send + 'static,
) -> Result<T, ConvertError> {
    struct Ending(Arc<AtomicBool>);
    impl Drop for Ending {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let ending = Ending(Arc::default());
    let is_ending = Arc::clone(&ending.0);
    let (done, result) = oneshot::channel();
    let thread = std::thread::Builder::new().name("converter".to_owned()).spawn(move || {
        if let Err(error) = rustix::process::setpriority_process(None, LOWEST) {
            tracing::debug!(%error, "the converter has the priority of others");
        }
        // Nobody waits for it when the registry ends.
        let _ = done.send(work(&is_ending));
    });
    thread.map_err(ConvertError::Thread)?;
    result.await.unwrap_or(Err(ConvertError::Broken))
}

/// The images of which nothing is converted yet, as far as that can be known without reading them.
fn unconverted(storage: &Storage) -> Result<Vec<Image>, StorageError> {
    storage.forget_outcomes()?;
    let mut found = Vec::new();
    for repository in storage.repositories()? {
        for manifest in storage.manifests(&repository)? {
            if storage.converted(&repository, &manifest)?.is_none() {
                found.push((repository.clone(), manifest));
            }
        }
    }
    Ok(found)
}

/// Converts the layers of an image that are large enough, and says so in its repository; gives how many
/// they are.
fn convert_image(
    storage: &Storage,
    (repository, digest): (&Repository, &Digest),
    from: ByteCount,
    is_ending: &AtomicBool,
) -> Result<usize, ConvertError> {
    if is_ending.load(Ordering::Relaxed) {
        return Err(ConvertError::Ends);
    }
    let Some(stored) = storage.manifest(repository, digest)? else { return Ok(0) };
    let size = ByteCount(stored.bytes.len() as u64);
    // Something else than an image, or one that no node takes.
    let document = Document::parse(&stored.bytes, &stored.media_type);
    let Ok(Document::Manifest { config, layers }) = document else { return Ok(0) };
    if !layers.iter().any(|layer| layer.size >= from) {
        return Ok(0);
    }
    let Some(diff_ids) = diff_ids(storage, repository, &config)? else { return Ok(0) };
    if diff_ids.len() != layers.len() || storage.converted(repository, digest)?.is_some() {
        return Ok(0);
    }
    let mut converted = ConvertedLayers::new();
    for (layer, diff_id) in layers.iter().zip(diff_ids).filter(|(layer, _)| layer.size >= from) {
        let of = LayerIdentity { blob: layer.digest, size: layer.size, diff_id };
        if let Some(parts) = convert_layer(storage, repository, &of, is_ending)? {
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
fn is_whole(
    storage: &Storage,
    repository: &Repository,
    digest: &Digest,
) -> Result<bool, StorageError> {
    let Some(stored) = storage.manifest(repository, digest)? else { return Ok(false) };
    let manifest = Manifest::parse(Some(&stored.media_type), &stored.bytes)
        .map_err(|error| StorageError::unreadable(digest, error))?;
    for blob in &manifest.blobs {
        if storage.blob_size(repository, &blob.digest)?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
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
    storage: &Storage,
    repository: &Repository,
    of: &LayerIdentity,
    is_ending: &AtomicBool,
) -> Result<Option<ConvertedLayer>, ConvertError> {
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
    let Some((bytes, size)) = storage.open_blob(repository, &of.blob)? else { return Ok(None) };
    let most = of.size.0.saturating_mul(MOST_TIMES);
    if !storage.has_room(most)? {
        return Err(ConvertError::Room);
    }
    let (upload, hash) = storage.begin_own_upload()?;
    let mut pieces = Pieces::new(bytes, size, is_ending);
    let converted = convert(&mut pieces, of, &Limits::default(), Writer { hash, most });
    let Converted { index, table, frames: Writer { hash, .. } } = match converted {
        Ok(converted) => converted,
        Err(error) => {
            storage.remove_upload(upload)?;
            if is_ending.load(Ordering::Relaxed) {
                return Err(ConvertError::Ends);
            }
            // What cannot be read now says nothing of the layer.
            if pieces.has_failed() {
                return Err(ConvertError::Layer(of.blob, error));
            }
            return refuse(storage, pushed, error).map(|()| None);
        }
    };
    let frames = finish(storage, repository, upload, hash)?;
    let index = put_blob(storage, repository, index)?;
    let table = put_blob(storage, repository, table.encode())?;
    let parts = ConvertedLayer { index, frames, table };
    storage.keep_outcome(pushed, &Outcome::Converted(parts))?;
    Ok(Some(parts))
}

/// Remembers that a layer cannot be converted, when that is certain.
fn refuse(storage: &Storage, pushed: Pushed, error: UnpackError) -> Result<(), ConvertError> {
    if error.retry() == Retry::CanHelp {
        return Err(ConvertError::Layer(pushed.blob, error));
    }
    let why = chain(&error);
    tracing::info!(layer = %pushed.blob, why, "a layer cannot be converted");
    Ok(storage.keep_outcome(pushed, &Outcome::Refused(why))?)
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
    manifests::keep(storage, repository, &Name::Digest(digest), &digest, (manifest, bytes))
        .map_err(ConvertError::Publish)?;
    Ok(storage.set_converted(repository, &image, &digest)?)
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
