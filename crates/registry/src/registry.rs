//! The registry as a value: its options, its storage, the uploads in progress.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use longshore_types::garbage::{Garbage, KeptManifest};
use longshore_types::{ByteCount, Repository};
use tokio::sync::watch;

use crate::access::Authorizer;
use crate::access::passing::PassingTokens;
use crate::converter::Queue;
use crate::garbage::{self, Patience};
use crate::metrics::Metrics;
use crate::objects::{Objects, S3Location};
use crate::pins::{PinTable, Pins};
use crate::refusal::{Code, Refusal};
use crate::storage::{Storage, StorageError};
use crate::uploads::Uploads;
use crate::upstream::{OpenUpstreamError, UpstreamOptions, Upstreams};

/// How often uploads that nobody continues are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(3600);
/// How often what nobody needs is looked for.
const COLLECT_INTERVAL: Duration = Duration::from_secs(3600);
/// How often blobs that no manifest has asked for are brought to the disk.
const SETTLE_INTERVAL: Duration = Duration::from_secs(1);
/// How often objects that nobody knows any more are removed.
const REMOVE_INTERVAL: Duration = Duration::from_secs(10);

/// What a registry is opened with.
#[derive(Clone)]
pub struct RegistryOptions {
    /// The directory that holds everything; made when missing.
    pub root: PathBuf,
    /// Where the bytes of blobs are, when not in the directory, where all else is. Default: there.
    pub objects: Option<Objects>,
    /// Who knows the rights of tokens.
    pub authorizer: Arc<dyn Authorizer>,
    /// What must not be deleted. Default: nothing, for ever.
    pub pins: watch::Receiver<Arc<PinTable>>,
    /// Whether `pins` is what the one who pins says now; while it is not, nothing is removed but what
    /// users remove. Default: true.
    pub is_told: watch::Receiver<bool>,
    /// When pushes and deletions are taken. Default: always.
    pub pushes: Pushes,
    /// How long a blob or manifest is counted on that was pushed, mounted or asked for. Default: 1 h.
    pub push_lease: Duration,
    /// How long a manifest is kept that no tag and no release names. Default: 7 days.
    pub keep_untagged: Duration,
    /// Layers of at least so many bytes are converted; none when it is not said. Default: 8 MiB, for a smaller
    /// one comes in one request as it is.
    pub convert_from: Option<ByteCount>,
    /// How often a converted layer is checked, with nothing to convert: whether it is stored as it was made, and made
    /// again becomes the same. Default: 1 h.
    pub check_interval: Duration,
    /// How long a layer is not checked that was made or checked. Default: 7 days.
    pub check_again: Duration,
    /// How long what was converted of an image is kept that nobody asks for. Default: 30 days.
    pub keep_converted: Duration,
    /// Other registries, whose images this one gives as its own. Default: none.
    pub upstreams: UpstreamOptions,
    /// How long a client may send nothing in the middle of a body. Default: 30 s.
    pub body_stall: Duration,
    /// The largest blob that is taken. Default: 256 GiB.
    pub max_blob: ByteCount,
    /// After how long without a byte an upload is dropped. Default: 24 h.
    pub upload_age: Duration,
    /// How long a passing token holds, of those that clients fetch when they log in. Default: 5 min.
    pub passing_lifetime: Duration,
    /// Where it counts what it does in the background. Default: where nobody looks.
    pub metrics: Metrics,
}

impl RegistryOptions {
    /// Options with their defaults.
    pub fn new(root: impl Into<PathBuf>, authorizer: Arc<dyn Authorizer>) -> Self {
        Self {
            root: root.into(),
            objects: None,
            authorizer,
            pins: watch::channel(Arc::default()).1,
            is_told: watch::channel(true).1,
            pushes: Pushes::Always,
            push_lease: Duration::from_secs(3600),
            keep_untagged: Duration::from_secs(7 * 24 * 3600),
            convert_from: Some(ByteCount(8 << 20)),
            check_interval: Duration::from_secs(3600),
            check_again: Duration::from_secs(7 * 24 * 3600),
            keep_converted: Duration::from_secs(30 * 24 * 3600),
            upstreams: UpstreamOptions::default(),
            body_stall: Duration::from_secs(30),
            max_blob: ByteCount(256 << 30),
            upload_age: Duration::from_secs(24 * 3600),
            passing_lifetime: Duration::from_secs(300),
            metrics: Metrics::default(),
        }
    }
}

/// When a registry takes pushes and deletions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushes {
    /// Always, by the rights that are known.
    Always,
    /// While it is certain that these are the rights of now: one who was let in before may be let out since, where
    /// nobody says so.
    WhileTold {
        /// How long one waits for that: a control plane that is started again says it in a moment.
        hold: Duration,
    },
}

/// Why a registry cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenRegistryError {
    /// Another process serves this directory.
    #[error("{} is in use by another registry", root.display())]
    InUse {
        /// The directory.
        root: PathBuf,
    },
    /// The key that signs passing tokens could not be read or made.
    #[error("cannot read or make token-key in {}", root.display())]
    Key {
        /// The directory.
        root: PathBuf,
        /// What failed.
        #[source]
        source: io::Error,
    },
    /// The directory could not be prepared.
    #[error("cannot open the registry in {}", root.display())]
    Storage {
        /// The directory.
        root: PathBuf,
        /// What failed.
        #[source]
        source: StorageError,
    },
    /// It cannot have one of the upstreams that were asked for.
    #[error("cannot give the images of another registry")]
    Upstream(#[source] OpenUpstreamError),
}

/// An open registry; it holds its directory until it is dropped.
pub struct Registry {
    pub(crate) authorizer: Arc<dyn Authorizer>,
    pub(crate) passing: PassingTokens,
    pub(crate) pins: Pins,
    is_told: watch::Receiver<bool>,
    pushes: Pushes,
    patience: Patience,
    /// One collection at a time.
    collecting: tokio::sync::Mutex<()>,
    pub(crate) convert_from: Option<ByteCount>,
    pub(crate) check_interval: Duration,
    pub(crate) check_again: Duration,
    pub(crate) metrics: Metrics,
    /// What came and may have to be converted.
    pub(crate) pushed: Queue,
    pub(crate) upstreams: Upstreams,
    pub(crate) body_stall: Duration,
    pub(crate) max_blob: ByteCount,
    pub(crate) uploads: Uploads,
    upload_age: Duration,
    pub(crate) storage: Arc<Storage>,
}

/// Does something again and again; what failed is tried again the next time.
async fn every<F: Future<Output = Result<(), StorageError>>>(
    interval: Duration,
    mut work: impl FnMut() -> F,
) {
    let mut ticks = tokio::time::interval(interval);
    loop {
        ticks.tick().await;
        if let Err(error) = work().await {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::warn!(%error, cause, "cannot do maintenance; trying again later");
        }
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("storage", &self.storage).finish_non_exhaustive()
    }
}

impl Registry {
    /// Opens the registry in a directory and removes what a crash left there. Blocks for as long as
    /// the disk takes.
    pub fn open(options: RegistryOptions) -> Result<Self, OpenRegistryError> {
        let RegistryOptions {
            root,
            objects,
            authorizer,
            pins,
            is_told,
            pushes,
            push_lease,
            keep_untagged,
            convert_from,
            check_interval,
            check_again,
            keep_converted,
            upstreams,
            body_stall,
            max_blob,
            upload_age,
            passing_lifetime,
            metrics,
        } = options;
        let largest = objects.as_ref().map_or(u64::MAX, Objects::max_object);
        let storage = match Storage::open(&root, upload_age, objects) {
            Ok(storage) => Arc::new(storage),
            Err(error) if error.is_locked() => return Err(OpenRegistryError::InUse { root }),
            Err(source) => return Err(OpenRegistryError::Storage { root, source }),
        };
        let passing = match PassingTokens::open(&root.join("token-key"), passing_lifetime) {
            Ok(passing) => passing,
            Err(source) => return Err(OpenRegistryError::Key { root, source }),
        };
        let upstreams =
            Upstreams::open(upstreams, &storage).map_err(OpenRegistryError::Upstream)?;
        upstreams.names().iter().for_each(|name| metrics.upstreams.begin(name));
        Ok(Self {
            authorizer,
            passing,
            pins: Pins::new(pins),
            is_told,
            pushes,
            patience: Patience {
                lease: push_lease,
                untagged: keep_untagged,
                unpulled: keep_converted,
            },
            collecting: tokio::sync::Mutex::default(),
            convert_from,
            check_interval,
            check_again,
            pushed: Queue::new(metrics.converter.waiting.clone()),
            metrics,
            upstreams,
            body_stall,
            max_blob: ByteCount(max_blob.0.min(largest)),
            uploads: Uploads::default(),
            upload_age,
            storage,
        })
    }

    /// Whether a registry in this directory has used an object store before.
    pub fn has_used(root: &Path, store: &S3Location) -> bool {
        Storage::known_objects(root).is_ok_and(|known| known.as_deref() == Some(&store.to_string()))
    }

    /// Refuses an object store that has not what the registry in this directory put there, though it has the same
    /// name; one that does not answer may still be the right one.
    pub async fn check_store(root: &Path, objects: &Objects) -> Result<(), OpenRegistryError> {
        let checked = Storage::check_mark(root, objects).await;
        checked.map_err(|source| OpenRegistryError::Storage { root: root.to_owned(), source })
    }

    /// Brings blobs to the disk that no manifest has asked for, each second, removes objects that nobody
    /// knows any more, and each hour drops uploads that nobody continues and what nobody needs; never
    /// ends. Run beside the server and dropped with it.
    pub async fn maintain(&self) {
        // Beside each other: blobs do not wait for what takes long.
        tokio::join!(
            every(SETTLE_INTERVAL, || self.blocking(Storage::settle_all)),
            every(SWEEP_INTERVAL, || self.sweep()),
            every(COLLECT_INTERVAL, || self.collect()),
            every(REMOVE_INTERVAL, || self.remove_gone()),
        );
    }

    /// Removes from the object store what nobody knows any more, as [`Registry::maintain`] does again and
    /// again.
    pub async fn remove_gone(&self) -> Result<(), StorageError> {
        let removed = self.blocking(Storage::remove_gone).await?;
        if removed > 0 {
            tracing::info!(removed, "removed objects that nobody knows any more");
        }
        Ok(())
    }

    async fn collect(&self) -> Result<(), StorageError> {
        let (lease, age) = (self.patience.lease, self.upload_age);
        let forgotten = self.blocking(move |storage| {
            // A lease is longer by as much as an upload has been going on.
            let longest = storage.oldest_upload(None)?.unwrap_or_default().max(age);
            storage.forget_leases(lease + longest);
            Ok::<_, StorageError>(())
        });
        forgotten.await?;
        let Garbage { manifests, blobs, bytes, .. } = self.garbage(true).await?.unwrap_or_default();
        if manifests + blobs > 0 {
            tracing::info!(manifests, blobs, %bytes, "removed what nobody needs");
        }
        Ok(())
    }

    /// What nobody needs; gone afterwards when `removes`. `None` while it is not known what releases
    /// need.
    pub(crate) async fn garbage(&self, removes: bool) -> Result<Option<Garbage>, StorageError> {
        let _alone = self.collecting.lock().await;
        if !*self.is_told.borrow() {
            return Ok(None);
        }
        let (pins, patience) = (self.pins.table(), self.patience);
        let upstreams = self.upstreams.names();
        let collect = move |storage: &Storage| {
            garbage::collect(storage, &pins, &upstreams, patience, removes)
        };
        self.blocking(collect).await.map(Some)
    }

    /// Why each manifest of a repository is there; `None` while it is not known what releases need.
    pub(crate) async fn kept(
        &self,
        repository: Repository,
    ) -> Result<Option<Vec<KeptManifest>>, StorageError> {
        if !*self.is_told.borrow() {
            return Ok(None);
        }
        let (pins, patience) = (self.pins.table(), self.patience);
        let upstreams = self.upstreams.names();
        let kept = move |storage: &Storage| {
            garbage::kept(storage, &repository, &pins, &upstreams, patience)
        };
        self.blocking(kept).await.map(Some)
    }

    /// Refuses to change anything while it is not known who may.
    pub(crate) async fn check_told(&self) -> Result<(), Refusal> {
        let Pushes::WhileTold { hold } = self.pushes else { return Ok(()) };
        let mut is_told = self.is_told.clone();
        let told = tokio::time::timeout(hold, is_told.wait_for(|is_told| *is_told)).await;
        match told {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => {
                let message = "the control plane is away, so who may push or delete is not known; \
                    pulls go on, and this can be tried again when it is back";
                // Of an error of the server clients show nothing but its number, and try it again and again.
                Err(Refusal::new(StatusCode::FORBIDDEN, Code::Denied, message))
            }
        }
    }

    async fn sweep(&self) -> Result<(), StorageError> {
        let age = self.upload_age;
        self.uploads.forget_idle();
        let removed = self.blocking(move |storage| storage.sweep_uploads(age)).await?;
        if removed > 0 {
            tracing::info!(removed, "dropped uploads that nobody continued");
        }
        Ok(())
    }

    /// Runs what may wait for the disk away from the threads that serve connections.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Storage) -> T + Send + 'static,
    ) -> T {
        let storage = self.storage.clone();
        match tokio::task::spawn_blocking(move || work(&storage)).await {
            Ok(done) => done,
            // Ends this request as if the panic had happened in it.
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}
