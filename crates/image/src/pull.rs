//! Brings an image from a source to the disk.
//!
//! Manifest, config, then the layers, two at a time: each is fetched by this task and unpacked by
//! threads of its own that take the bytes from a bounded queue, so a slow disk slows the network down
//! and not the memory up. One pull of an image or layer runs at a time; others wait for it and find
//! the result. Nothing limits how long a pull takes, but a source that sends nothing for a while is
//! asked again from where it stopped, and what came of a large layer is kept for the next pull.
//!
//! Dropping the future stops the pull: the threads see their queue closed and remove what they made.

mod commit;
mod converted;
mod fetch;
mod kept;
mod layer;
mod progress;
#[cfg(test)]
pub(crate) mod tests;

use std::cmp::Reverse;
use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt};
use longshore_types::{ByteCount, Digest, Repository, chain};

use crate::config::{ConfigError, ConfigFile};
use crate::limits::LimitExceeded;
use crate::manifest::{Descriptor, Document, ManifestError};
use crate::source::{Retry, Source, SourceError};
use crate::store::{Image, ImageStore, NoRoom, Reservation, StoreIoError};
use crate::unpack::{LayerIdentity, UnpackError};

use commit::{CommitError, commit};
use fetch::Fetcher;
use layer::{LayerOutcome, fetch_layer};
pub use progress::PullProgress;

/// Layers that one pull fetches and unpacks at the same time. At the beginning and the end of each, its threads wait
/// for the source and the disk; with two, a sixth of two processors was idle.
pub const LAYERS_AT_ONCE: usize = 3;

/// What a pull tells while it runs. Sizes are of the bytes as the registry stores them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PullEvent {
    /// Manifest and config are here: what there is to do.
    Resolved {
        /// The blobs of the image's layers, those on the disk already included, with their sizes.
        layers: Vec<(Digest, ByteCount)>,
    },
    /// A layer was on the disk already, or another pull brought it.
    LayerReused {
        /// The layer's blob.
        blob: Digest,
    },
    /// More of a layer is here.
    LayerProgress {
        /// The layer's blob.
        blob: Digest,
        /// Bytes so far.
        fetched: ByteCount,
        /// Bytes in all.
        total: ByteCount,
    },
    /// A layer is pulled as it was pushed, although the registry has it converted.
    LayerPlain {
        /// The layer's blob.
        blob: Digest,
        /// What is wrong with the converted form.
        why: String,
    },
    /// A layer is unpacked, checked and on the disk.
    LayerDone {
        /// The layer's blob.
        blob: Digest,
        /// Length of its uncompressed archive.
        unpacked: ByteCount,
    },
}

/// What a pull did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PullReport {
    /// Layers of the image.
    pub layers: usize,
    /// Of these, the ones that were on the disk already or that another pull brought.
    pub reused_layers: usize,
    /// Of these, the ones that came as the registry converted them.
    pub converted_layers: usize,
    /// Why layers came as they were pushed although the registry may have them converted; nothing of
    /// those that it has not.
    pub why_plain: Vec<String>,
    /// Bytes of layers that came from the source.
    pub bytes_fetched: ByteCount,
    /// Bytes of layers' contents that came from neighbours instead, as they are uncompressed.
    pub bytes_of_neighbours: ByteCount,
    /// Neighbours that were given up, and why.
    pub given_up: Vec<String>,
    /// What they unpacked to, as archives.
    pub bytes_unpacked: ByteCount,
    /// Devices and fifos in the image that were not made, reused layers included.
    pub dropped_devices: u64,
    /// Time spent waiting for layers' bytes, summed over layers.
    pub fetch: Duration,
    /// Time spent decompressing, checking, writing and syncing layers, summed over layers.
    pub unpack: Duration,
    /// From the call to the image being on the disk.
    pub elapsed: Duration,
}

/// Why an image could not be pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullImageError {
    /// The source did not hand over the manifest or index.
    #[error("fetching the manifest {digest}")]
    FetchManifest {
        /// Of the manifest.
        digest: Digest,
        /// The source's answer.
        #[source]
        source: SourceError,
    },
    /// The manifest or index is refused.
    #[error("the manifest {digest}")]
    Manifest {
        /// Of the manifest.
        digest: Digest,
        /// What is wrong with it.
        #[source]
        source: ManifestError,
    },
    /// The source did not hand over the config.
    #[error("fetching the image config {digest}")]
    FetchConfig {
        /// Of the config.
        digest: Digest,
        /// The source's answer.
        #[source]
        source: SourceError,
    },
    /// The config is refused.
    #[error("the image config {digest}")]
    Config {
        /// Of the config.
        digest: Digest,
        /// What is wrong with it.
        #[source]
        source: ConfigError,
    },
    /// A manifest or config is not what its digest or size says.
    #[error("the {what} {expected} came as {found_bytes} bytes with the digest {found}")]
    Mismatch {
        /// `manifest` or `config`.
        what: &'static str,
        /// The digest that was asked for.
        expected: Digest,
        /// The digest of what came.
        found: Digest,
        /// Its length.
        found_bytes: u64,
    },
    /// Manifest and config contradict each other.
    #[error("the manifest has {layers} layers, the config describes {diff_ids}")]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the config.
        diff_ids: usize,
    },
    /// The image is too large in some way.
    #[error("the image {digest} asks for too much")]
    Limit {
        /// As it was asked for.
        digest: Digest,
        /// Which limit.
        #[source]
        source: LimitExceeded,
    },
    /// The source did not hand over a layer.
    #[error("fetching the layer {blob}")]
    FetchLayer {
        /// The layer's blob.
        blob: Digest,
        /// The source's answer.
        #[source]
        source: SourceError,
    },
    /// A layer could not be unpacked.
    #[error("unpacking the layer {blob}")]
    UnpackLayer {
        /// The layer's blob.
        blob: Digest,
        /// What is wrong.
        #[source]
        source: UnpackError,
    },
    /// The store's disk refused.
    #[error("storing the image {digest}")]
    Store {
        /// As it was asked for.
        digest: Digest,
        /// The disk's answer.
        #[source]
        source: StoreIoError,
    },
    /// The disk that the store lies on has no room. Everything of the attempt is removed again.
    #[error("the disk is full below {directory:?}", directory = .directory.display())]
    DiskFull {
        /// The store's directory.
        directory: PathBuf,
        /// What was being done.
        #[source]
        source: Box<PullImageError>,
    },
    /// The disk that the store lies on has no room for it, also after what nobody needs had gone.
    #[error("there is no room for the image {digest} below {directory:?}", directory = .directory.display())]
    NoRoom {
        /// As it was asked for.
        digest: Digest,
        /// The store's directory.
        directory: PathBuf,
        /// How much there is, and is needed.
        #[source]
        source: NoRoom,
    },
    /// The process is shutting down.
    #[error("the pull was interrupted")]
    Interrupted,
}

impl PullImageError {
    /// Whether pulling again can succeed without anyone changing the image.
    pub fn retry(&self) -> Retry {
        match self {
            Self::FetchManifest { source, .. }
            | Self::FetchConfig { source, .. }
            | Self::FetchLayer { source, .. } => source.retry(),
            Self::UnpackLayer { source, .. } => source.retry(),
            Self::Mismatch { .. }
            | Self::Store { .. }
            | Self::DiskFull { .. }
            | Self::NoRoom { .. }
            | Self::Interrupted => Retry::CanHelp,
            Self::Manifest { .. }
            | Self::Config { .. }
            | Self::LayerCount { .. }
            | Self::Limit { .. } => Retry::Pointless,
        }
    }
}

/// Says in which directory there was no room, when that is why a pull failed.
fn name_full_disk(error: PullImageError, directory: &Path) -> PullImageError {
    let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
    while let Some(error) = cause {
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        if let Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) = kind {
            break;
        }
        cause = error.source();
    }
    match cause {
        None => error,
        Some(_) => {
            let directory = directory.to_owned();
            PullImageError::DiskFull { directory, source: Box::new(error) }
        }
    }
}

/// How a layer came.
enum Way {
    Converted,
    /// As it was pushed; and why, when it could have come in the other way.
    Plain(Option<String>),
}

/// Where a pull's events go.
pub type Progress<'a> = &'a (dyn Fn(PullEvent) + Send + Sync);

/// What manifest and config say, checked.
struct Resolved {
    manifest: Digest,
    config: ConfigFile,
    config_text: String,
    layers: Vec<LayerIdentity>,
}

impl ImageStore {
    /// Makes sure that the image with this digest (of a manifest or index) is on the disk.
    ///
    /// Sizes and digests of everything are checked; on error nothing of the image is visible, but
    /// layers that were finished stay for the next attempt. Must be called from a tokio runtime.
    pub async fn pull(
        &self,
        source: Arc<dyn Source>,
        repository: &Repository,
        digest: &Digest,
        progress: Progress<'_>,
    ) -> Result<(Image, PullReport), PullImageError> {
        let pulled = self.try_pull(source, repository, digest, progress).await;
        pulled.map_err(|error| name_full_disk(error, self.inner.root()))
    }

    async fn try_pull(
        &self,
        source: Arc<dyn Source>,
        repository: &Repository,
        digest: &Digest,
        progress: Progress<'_>,
    ) -> Result<(Image, PullReport), PullImageError> {
        let started = Instant::now();
        let alone = self.inner.flight(digest).lock_owned().await;
        if let Some(image) = self.image(digest) {
            let mut report = self
                .report_present(digest)
                .map_err(|source| PullImageError::Store { digest: *digest, source })?;
            report.elapsed = started.elapsed();
            return Ok((image, report));
        }
        let mut fetcher = Fetcher::new(source.as_ref(), repository, &self.inner.limits);
        let resolved = resolve(&fetcher, digest).await?;
        progress(PullEvent::Resolved {
            layers: resolved.layers.iter().map(|layer| (layer.blob, layer.size)).collect(),
        });
        let pins = self.inner.pin(&resolved.config.diff_ids);
        let (converted, why_plain) = match converted::look(&self.inner, &fetcher, &resolved).await {
            Ok(converted) => (converted, None),
            Err(why) => {
                let why = chain(&why);
                tracing::warn!(image = %digest, why, "an image is pulled as it was pushed");
                (Default::default(), Some(why))
            }
        };
        if !converted.is_empty() {
            fetcher.look_for_neighbours(digest).await;
        }
        let reservation = self.reserve(digest, &resolved.layers).await?;
        let progress = |event: PullEvent| {
            if let Some(reservation) = &reservation {
                reservation.note(&event);
            }
            progress(event);
        };
        // The largest first: a large one that came last would come alone.
        let mut layers = resolved.layers.clone();
        layers.sort_by_key(|layer| Reverse(layer.size.0));
        let outcomes: Vec<LayerOutcome> = futures_util::stream::iter(layers)
            .map(|layer| {
                let parts = converted.get(&layer.diff_id);
                fetch_layer(&self.inner, &fetcher, layer, parts, &progress)
            })
            .buffer_unordered(LAYERS_AT_ONCE)
            .try_collect()
            .await?;
        let mut report = summarise(&outcomes);
        report.why_plain.extend(why_plain);
        // The guards go along: the thread ends its work also when this future is dropped.
        self.commit(*digest, resolved, outcomes, (alone, pins)).await?;
        report.elapsed = started.elapsed();
        let image = self.image(digest).ok_or(PullImageError::Interrupted)?;
        Ok((image, report))
    }

    /// Looks for room for the layers that are not here, and keeps it.
    async fn reserve(
        &self,
        digest: &Digest,
        layers: &[LayerIdentity],
    ) -> Result<Option<Reservation>, PullImageError> {
        let missing = layers.iter().filter(|layer| !self.inner.has_layer(&layer.diff_id));
        let missing = missing.map(|layer| (layer.blob, layer.size.0)).collect();
        match self.inner.reserve(missing).await {
            Ok(Ok(reservation)) => Ok(reservation),
            Ok(Err(source)) => {
                let directory = self.inner.root().to_owned();
                Err(PullImageError::NoRoom { digest: *digest, directory, source })
            }
            Err(source) => Err(PullImageError::Store { digest: *digest, source }),
        }
    }

    /// The report of a pull that had nothing to do.
    fn report_present(&self, digest: &Digest) -> Result<PullReport, StoreIoError> {
        let (form, diff_ids) = self.inner.layers_of(digest);
        let mut report = PullReport {
            layers: diff_ids.len(),
            reused_layers: diff_ids.len(),
            ..PullReport::default()
        };
        let is_here = |diff_id: &&Digest| self.inner.layer_path(form, diff_id).is_dir();
        for diff_id in diff_ids.iter().filter(is_here) {
            report.dropped_devices += self.inner.read_layer_report(form, diff_id)?.dropped_devices;
        }
        Ok(report)
    }

    /// Writes the image's record once all its layers are there.
    async fn commit(
        &self,
        digest: Digest,
        resolved: Resolved,
        outcomes: Vec<LayerOutcome>,
        guards: impl Send + 'static,
    ) -> Result<(), PullImageError> {
        let store = Arc::clone(&self.inner);
        let reports = outcomes.into_iter().map(|done| (done.diff_id, done.report)).collect();
        blocking(move || {
            let result = commit(&store, digest, resolved, &reports);
            drop(guards);
            result
        })
        .await?
        .map_err(|error| match error {
            CommitError::Store(source) => PullImageError::Store { digest, source },
            CommitError::Limit(source) => PullImageError::Limit { digest, source },
        })
    }
}

/// Runs what may block on a thread for that; a panic there goes on here.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, PullImageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(PullImageError::Interrupted),
        },
    }
}

async fn resolve(fetcher: &Fetcher<'_>, digest: &Digest) -> Result<Resolved, PullImageError> {
    let mut manifest = *digest;
    let mut document = fetcher.manifest(&manifest, None).await?;
    if let Document::Index(chosen) = document {
        manifest = chosen.digest;
        document = fetcher.manifest(&manifest, Some(chosen.size)).await?;
    }
    let Document::Manifest { config, layers } = document else {
        // An index names only manifests, and the type that a source states is checked against it.
        return Err(PullImageError::Manifest {
            digest: manifest,
            source: ManifestError::MediaType("an index inside an index".to_owned()),
        });
    };
    let allowed = fetcher.limits.layers;
    let limit = |source| PullImageError::Limit { digest: *digest, source };
    LimitExceeded::check("layers", layers.len() as u64, allowed as u64).map_err(limit)?;
    // Each is no larger than what it may unpack to; so their sum is no larger than 64 bits.
    let largest = layers.iter().map(|layer| layer.size.0).max().unwrap_or(0);
    let allowed = fetcher.limits.layer_bytes.0;
    LimitExceeded::check("bytes in one layer", largest, allowed).map_err(limit)?;
    let (config, config_text) = fetcher.config(&config).await?;
    if config.diff_ids.len() != layers.len() {
        return Err(PullImageError::LayerCount {
            layers: layers.len(),
            diff_ids: config.diff_ids.len(),
        });
    }
    let identity = |(layer, diff_id): (&Descriptor, &Digest)| LayerIdentity {
        blob: layer.digest,
        size: layer.size,
        diff_id: *diff_id,
    };
    Ok(Resolved {
        manifest,
        layers: layers.iter().zip(&config.diff_ids).map(identity).collect(),
        config,
        config_text,
    })
}

fn summarise(outcomes: &[LayerOutcome]) -> PullReport {
    let mut report = PullReport { layers: outcomes.len(), ..PullReport::default() };
    for outcome in outcomes {
        report.dropped_devices += outcome.report.dropped_devices;
        match &outcome.way {
            Way::Converted => report.converted_layers += 1,
            Way::Plain(Some(why)) => {
                report.why_plain.push(format!("layer {}: {why}", outcome.diff_id));
            }
            Way::Plain(None) => {}
        }
        match &outcome.fetched {
            None => report.reused_layers += 1,
            Some(fetched) => {
                report.bytes_fetched.0 += fetched.bytes.0;
                report.bytes_of_neighbours.0 += fetched.of_neighbours.0;
                report.given_up.extend(fetched.given_up.iter().cloned());
                report.bytes_unpacked.0 += outcome.report.unpacked.0;
                report.fetch += fetched.waiting;
                report.unpack += fetched.working;
            }
        }
    }
    report
}
