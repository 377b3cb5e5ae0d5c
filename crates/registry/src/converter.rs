//! Converts the layers of images in the background ([`longshore_image::converted`]).
//!
//! What is to be done is found by looking: an image without a link to what was converted of it. That is
//! done at the start, each hour, and whenever a manifest is pushed for that one; so a crash loses no more than
//! the layer that was under way. What became of a layer is remembered, so it is converted once, and what
//! cannot be converted is tried once.
//!
//! One layer at a time, on a thread of the lowest priority, whose children have the same: a registry that
//! serves does not notice. What it makes are blobs like others, and an artifact about the image, which goes with
//! it; what was pushed is read and never changed. With nothing to convert, layers that are converted are checked, now
//! and then one ([`check`]).
//!
//! What nobody asks for goes ([`crate::garbage`]), and is made again once somebody does.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use longshore_image::unpack::UnpackError;
use longshore_types::{ByteCount, Digest, Repository};
use prometheus_client::metrics::gauge::Gauge;
use serde::Deserialize;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};

use crate::Registry;
use crate::metrics::{Check, ConverterMetrics};
use crate::refusal::{Code, Refusal};
use crate::server::{CONTENT_DIGEST, query, set};
use crate::storage::{Pushed, Standing, Storage, StorageError, StoredManifest};

mod check;
mod image;
mod pieces;

use image::{convert_image, is_whole};

/// How often all images are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(3600);

/// Images that were pushed and not looked at yet. Those for which there is no room are found when all
/// are looked at.
const MAX_PUSHED: usize = 1024;

/// The lowest priority of a thread; for its reads and writes, too.
const LOWEST: i32 = 19;

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

/// What was pushed since the last look, and what else is to be converted soon.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    pushed: Mutex<VecDeque<Image>>,
    more: Notify,
    waiting: Gauge,
}

impl Queue {
    /// One that tells how many images wait.
    pub(crate) fn new(waiting: Gauge) -> Self {
        Self { waiting, ..Self::default() }
    }

    /// An image was pushed, or is wanted.
    pub(crate) fn add(&self, repository: &Repository, manifest: &Digest) {
        let mut pushed = self.lock();
        if pushed.len() < MAX_PUSHED {
            pushed.push_back((repository.clone(), *manifest));
            self.waiting.inc();
            self.more.notify_one();
        }
    }

    fn take(&self) -> Option<Image> {
        let taken = self.lock().pop_front();
        if taken.is_some() {
            self.waiting.dec();
        }
        taken
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

    /// Waits until there is one.
    async fn some(&self) {
        while self.lock().is_empty() {
            self.more.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Image>> {
        // It holds names, which a panic leaves as they are.
        self.pushed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// With what an image is converted.
#[derive(Debug, Clone, Copy)]
struct Work<'a> {
    storage: &'a Storage,
    metrics: &'a ConverterMetrics,
    is_ending: &'a AtomicBool,
}

impl Work<'_> {
    fn is_ending(&self) -> bool {
        self.is_ending.load(Ordering::Relaxed)
    }
}

/// Why an image was not converted, or a layer not checked, this time.
#[derive(Debug, thiserror::Error)]
enum ConvertError {
    #[error("reading or keeping what is converted")]
    Storage(#[from] StorageError),
    #[error("converting the layer {0}")]
    Layer(Digest, #[source] UnpackError),
    #[error("{0} is gone")]
    Gone(Digest),
    #[error("there is too little room on the disk")]
    Room,
    #[error("publishing what was converted: {0:?}")]
    Publish(Refusal),
    #[error("starting a thread")]
    Thread(#[source] io::Error),
    #[error("the converter broke off; this is a bug")]
    Broken,
    #[error("a second look found something else than the first")]
    Unsteady,
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
    let converts = registry.convert_from.is_some();
    let looked = registry.blocking(move |storage| find(storage, &of, &image, converts));
    let found = match looked.await? {
        Found::Artifact(digest, found) => Some((digest, found)),
        Found::Wanted => {
            registry.pushed.add(&repository, &image);
            None
        }
        Found::Nothing => None,
    };
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

/// What there is of an image when somebody asks.
enum Found {
    Artifact(Digest, StoredManifest),
    /// It went, for nobody had asked; now somebody does.
    Wanted,
    Nothing,
}

fn find(
    storage: &Storage,
    repository: &Repository,
    image: &Digest,
    converts: bool,
) -> Result<Found, StorageError> {
    match storage.standing(repository, image)? {
        Standing::Made(artifact) => {
            // From here on it stays, with all that it names, for as long as a pull may take.
            storage.touch(repository, &artifact);
            let Some(found) = storage.manifest(repository, &artifact)? else {
                return Ok(Found::Nothing);
            };
            storage.note_form_use(repository, image)?;
            Ok(Found::Artifact(artifact, found))
        }
        Standing::Unpulled if converts && storage.want_form(repository, image)? => {
            Ok(Found::Wanted)
        }
        Standing::Unpulled | Standing::Open => Ok(Found::Nothing),
    }
}

impl Registry {
    /// Converts the layers of images, those that are there and those that come, and checks now and then what it made;
    /// never ends. Run beside the server and dropped with it. Does nothing where nothing is to be converted.
    pub async fn convert(&self) {
        let Some(from) = self.convert_from else { return };
        let (mut look_at, mut check_at) = (Instant::now(), Instant::now() + self.check_interval);
        let mut put_off = HashSet::new();
        loop {
            tokio::select! {
                biased;
                () = sleep_until(look_at) => {
                    look_at = Instant::now() + LOOK_INTERVAL;
                    self.look(from).await;
                }
                image = self.pushed.next() => self.convert_or_tell(image, from).await,
                () = sleep_until(check_at) => {
                    self.check_one(&mut put_off).await;
                    check_at = Instant::now() + self.check_interval;
                }
            }
        }
    }

    /// Converts all images that are not converted yet.
    async fn look(&self, from: ByteCount) {
        let images = match self.blocking(unconverted).await {
            Ok(images) => images,
            Err(error) => return tell(&error, "cannot look for images to convert"),
        };
        let waiting = &self.metrics.converter.waiting;
        waiting.inc_by(i64::try_from(images.len()).unwrap_or(i64::MAX));
        for image in images {
            // What was pushed a moment ago is likely to be pulled next.
            while let Some(pushed) = self.pushed.take() {
                self.convert_or_tell(pushed, from).await;
            }
            waiting.dec();
            self.convert_or_tell(image, from).await;
        }
    }

    async fn convert_or_tell(&self, image: Image, from: ByteCount) {
        let storage = Arc::clone(&self.storage);
        let metrics = self.metrics.converter.clone();
        let (repository, manifest) = (image.0.clone(), image.1);
        let comes = match self.upstreams.of(&repository) {
            Some(_) => Comes::BitByBit,
            None => Comes::Whole,
        };
        let ending = Ending::default();
        let converted = on_thread(&ending, move |is_ending| {
            if comes == Comes::BitByBit && !is_whole(&storage, &image.0, &image.1)? {
                return Ok(0);
            }
            let work = Work { storage: &storage, metrics: &metrics, is_ending };
            convert_image(work, (&image.0, &image.1), from)
        });
        match converted.await {
            Ok(0) | Err(ConvertError::Ends) => {}
            Ok(layers) => tracing::info!(%repository, %manifest, layers, "converted an image"),
            // Tried again with the next look.
            Err(error) => tell(&error, &format!("cannot convert {repository}@{manifest}")),
        }
    }

    /// Checks the converted layer that nobody looked at for longest, when there is one that is due. Breaks off when
    /// something is to be converted; what was not checked to its end comes last the next time.
    async fn check_one(&self, put_off: &mut HashSet<Pushed>) {
        let (again, last) = (self.check_again, put_off.clone());
        let found = self.blocking(move |storage| check::find(storage, again, &last)).await;
        let (made, home) = match found {
            Ok(Some(found)) => found,
            Ok(None) => return,
            Err(error) => return tell(&error, "cannot look for converted layers to check"),
        };
        let (storage, metrics) = (Arc::clone(&self.storage), self.metrics.converter.clone());
        let ending = Ending::default();
        let checked = on_thread(&ending, move |is_ending| {
            let work = Work { storage: &storage, metrics: &metrics, is_ending };
            let verdict = check::check_twice(work, &home, &made)?;
            check::act(work, &home, &made, verdict)
        });
        tokio::pin!(checked);
        let checked = tokio::select! {
            checked = &mut checked => checked,
            () = self.pushed.some() => {
                ending.now();
                checked.await
            }
        };
        match checked {
            Ok(images) => {
                put_off.remove(&made.layer);
                images.iter().for_each(|(repository, image)| self.pushed.add(repository, image));
            }
            Err(error) => {
                put_off.insert(made.layer);
                if !matches!(error, ConvertError::Ends) {
                    self.metrics.converter.checked(Check::Failed);
                    let layer = made.layer.blob;
                    tell(&error, &format!("cannot check what the layer {layer} became"));
                }
            }
        }
    }
}

fn tell(error: &(dyn std::error::Error + 'static), what: &str) {
    tracing::warn!(error, "{what}; trying again later");
}

/// Tells a thread to end, when this is dropped at the latest.
#[derive(Default)]
struct Ending(Arc<AtomicBool>);

impl Ending {
    fn now(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.now();
    }
}

/// Does so on a thread of the lowest priority.
async fn on_thread<T: Send + 'static>(
    ending: &Ending,
    work: impl FnOnce(&AtomicBool) -> Result<T, ConvertError> + Send + 'static,
) -> Result<T, ConvertError> {
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

/// The images of which nothing is converted yet, as far as that can be known without reading them, or not all is there
/// any more. What cannot be read is told, and keeps nobody else waiting.
fn unconverted(storage: &Storage) -> Result<Vec<Image>, StorageError> {
    or_tell(storage.forget_outcomes(), "cannot forget what became of layers that are gone");
    let mut found = Vec::new();
    for repository in storage.repositories()? {
        or_tell(storage.forget_imageless(&repository), &format!("cannot tidy {repository}"));
        let manifests = storage.manifests(&repository);
        let manifests = or_tell(manifests, &format!("cannot look for images in {repository}"));
        for manifest in manifests.unwrap_or_default() {
            let is_open = is_open(storage, &repository, &manifest);
            let what = format!("cannot look at what is converted of {repository}@{manifest}");
            if or_tell(is_open, &what) == Some(true) {
                found.push((repository.clone(), manifest));
            }
        }
    }
    Ok(found)
}

fn is_open(
    storage: &Storage,
    repository: &Repository,
    image: &Digest,
) -> Result<bool, StorageError> {
    match storage.standing(repository, image)? {
        Standing::Open => Ok(true),
        Standing::Made(artifact) => storage.drop_if_broken(repository, image, &artifact),
        Standing::Unpulled => Ok(false),
    }
}

/// What came of it, unless it failed, which is told.
fn or_tell<T>(result: Result<T, StorageError>, what: &str) -> Option<T> {
    result.inspect_err(|error| tell(error, what)).ok()
}
