//! Pushing an image that lies in files: an OCI layout (directory or tar) or what `docker save` made.
//!
//! Tars are not unpacked: an entry's bytes are sent from where they lie. Layers are sent as they are.
//! Those of a docker archive are plain tars, and stay so: the digest of such a layer is its DiffID,
//! which costs nothing to compute twice, and compressing is a later, better informed job.

mod archive;
mod image;

use std::path::Path;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use longshore_types::{Digest, Repository, Tag};

use crate::client::{Mounted, RegistryClient, RegistryClientError};

pub use archive::OpenArchiveError;
pub use image::{Blob, LocalImage, LocalImageError, LocalManifest};

/// Blobs that are sent at the same time.
const PARALLEL_BLOBS: usize = 4;
/// How often a small request is made before its failure is reported.
const MAX_TRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// Where an image is pushed.
#[derive(Debug, Clone)]
pub struct PushTarget {
    /// The repository.
    pub repository: Repository,
    /// The tag; without one the image is known by its digest alone.
    pub tag: Option<Tag>,
    /// A repository of the same registry that may have some of the blobs.
    pub mount_from: Option<Repository>,
}

/// What just happened to a blob or manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushProgress {
    /// The registry has this many bytes of a blob.
    Sending {
        /// The blob.
        digest: Digest,
        /// Bytes that have arrived; falls when an upload had to begin again.
        sent: u64,
        /// All its bytes.
        size: u64,
    },
    /// The registry had the blob, or took it from another repository.
    Present {
        /// The blob.
        digest: Digest,
        /// Its bytes.
        size: u64,
    },
    /// A manifest was stored.
    Manifest {
        /// Its digest.
        digest: Digest,
    },
}

/// What a push did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// The digest by which the image can be pulled.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Blobs that were sent.
    pub n_sent: usize,
    /// Blobs that were there.
    pub n_present: usize,
    /// Bytes of the blobs that were sent.
    pub bytes_sent: u64,
}

/// Why a push failed.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The image in the files is not complete or not an image.
    #[error("cannot read the image")]
    Image(#[from] LocalImageError),
    /// A blob could not be pushed.
    #[error("cannot push the blob {digest}")]
    Blob {
        /// The blob.
        digest: Digest,
        /// Why not.
        #[source]
        source: RegistryClientError,
    },
    /// A manifest could not be pushed.
    #[error("cannot push the manifest {digest}")]
    Manifest {
        /// The manifest.
        digest: Digest,
        /// Why not.
        #[source]
        source: RegistryClientError,
    },
}

/// Pushes the image in `path`: an OCI layout, an OCI archive or a docker archive. `wanted` chooses
/// one by its name when there are several.
pub async fn push(
    client: &RegistryClient,
    path: &Path,
    wanted: Option<&str>,
    target: &PushTarget,
    progress: &(dyn Fn(PushProgress) + Send + Sync),
) -> Result<Pushed, PushError> {
    let (path, wanted) = (path.to_owned(), wanted.map(str::to_owned));
    let opened =
        tokio::task::spawn_blocking(move || LocalImage::open(&path, wanted.as_deref())).await;
    let image = match opened {
        Ok(image) => image?,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    };
    push_image(client, &image, target, progress).await
}

/// Pushes an image that was opened.
pub async fn push_image(
    client: &RegistryClient,
    image: &LocalImage,
    target: &PushTarget,
    progress: &(dyn Fn(PushProgress) + Send + Sync),
) -> Result<Pushed, PushError> {
    let sent: Vec<u64> = futures_util::stream::iter(image.blobs())
        .map(|blob| push_blob(client, blob, target, progress))
        .buffer_unordered(PARALLEL_BLOBS)
        .try_filter_map(async |sent| Ok(sent))
        .try_collect()
        .await?;
    let top = image.manifests().last().expect("an image has a manifest");
    for manifest in image.manifests() {
        // An index refers to its manifests by digest; only the whole has the tag.
        let reference = match &target.tag {
            Some(tag) if manifest.digest == top.digest => tag.to_string(),
            _ => manifest.digest.to_string(),
        };
        let repository = &target.repository;
        let put = || {
            let bytes = manifest.bytes.clone();
            client.push_manifest(repository, &reference, &manifest.media_type, bytes)
        };
        retry(put)
            .await
            .map_err(|source| PushError::Manifest { digest: manifest.digest, source })?;
        progress(PushProgress::Manifest { digest: manifest.digest });
    }
    Ok(Pushed {
        digest: top.digest,
        media_type: top.media_type.clone(),
        n_sent: sent.len(),
        n_present: image.blobs().len() - sent.len(),
        bytes_sent: sent.iter().sum(),
    })
}

/// Makes the repository have a blob; the bytes that had to be sent for it, if any.
async fn push_blob(
    client: &RegistryClient,
    blob: &Blob,
    target: &PushTarget,
    progress: &(dyn Fn(PushProgress) + Send + Sync),
) -> Result<Option<u64>, PushError> {
    let (digest, size) = (blob.digest, blob.source.length());
    let failed = |source| PushError::Blob { digest, source };
    let to = &target.repository;
    let found = retry(|| client.blob_size(to, &digest)).await;
    let mut present = found.map_err(failed)?.is_some();
    if let (false, Some(from)) = (present, &target.mount_from) {
        let mounted = retry(|| client.mount(to, &digest, from)).await;
        present = mounted.map_err(failed)? == Mounted::Yes;
    }
    if present {
        progress(PushProgress::Present { digest, size });
        return Ok(None);
    }
    let sending = |sent| progress(PushProgress::Sending { digest, sent, size });
    client.push_blob(to, &digest, &blob.source, &sending).await.map_err(failed)?;
    Ok(Some(size))
}

/// Makes a request that can be repeated until it succeeds or repeating is pointless.
async fn retry<T, F>(request: impl Fn() -> F) -> Result<T, RegistryClientError>
where
    F: Future<Output = Result<T, RegistryClientError>>,
{
    let mut tries = 1;
    loop {
        match request().await {
            Err(error) if error.is_retryable() && tries < MAX_TRIES => {
                tracing::debug!(%error, tries, "asking the registry again");
                tokio::time::sleep(FIRST_PAUSE * 2_u32.pow(tries - 1)).await;
                tries += 1;
            }
            done => return done,
        }
    }
}
