//! An object store that speaks the protocol of S3, as a place for the bytes of blobs.
//!
//! It has bytes and nothing else: which repository has which blob, and under which key its bytes
//! are, stays on the registry's disk (`storage`), which knows how not to lose that. So a key is
//! random and never changes: a blob is known by its digest only once it is complete, and S3 cannot
//! rename; to copy the bytes at the end, as others do, ends at 5 GiB.
//!
//! Rejected: to keep what belongs to whom in the store too. It has no order of writes that outlives a
//! crash, and a look would cost a request.

mod body;
mod credentials;
mod location;

use std::fmt;
use std::io;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use longshore_types::ByteCount;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::multipart::{MultipartStore as _, PartId};
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, ObjectStoreExt as _, RetryConfig};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

use crate::storage::StorageError;
pub(crate) use body::of_object;
pub use credentials::{ReadS3CredentialsError, S3Credentials};
pub use location::{
    S3Endpoint, S3EndpointError, S3Location, S3LocationError, S3Region, S3RegionError,
};

/// As many parts are held in memory at a time, of all uploads together.
const PARTS_AT_ONCE: usize = 8;
/// How long the store may say nothing in the middle of a request. It has to be enough for all parts that are sent at
/// a time, in which it says nothing either: 4 Mbit/s are.
const SILENCE: Duration = Duration::from_secs(600);
/// How long a request is tried again that the store refused for now, or that broke.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long the first requests are tried again, before which nobody is served.
const PATIENCE_AT_START: Duration = Duration::from_secs(10);
/// How long it may take until an object is there that somebody else completes, and how often it is looked for.
const COMPLETED_BY: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// S3 takes no more parts of one object.
pub(crate) const MAX_PARTS: u64 = 10_000;
/// S3 takes no smaller ones, but for the last.
const MIN_PART: u64 = 5 << 20;

/// Where blobs are, and how they are reached.
#[derive(Debug, Clone)]
pub struct S3Options {
    /// The bucket, and what the names of our objects begin with.
    pub location: S3Location,
    /// The store, as `https://HOST:PORT`. Default: what `AWS_ENDPOINT_URL` says, else Amazon's of the region.
    pub endpoint: Option<S3Endpoint>,
    /// Default: what `AWS_REGION` says, else `us-east-1`.
    pub region: Option<S3Region>,
    /// Default: what the environment says, as for every client of S3.
    pub credentials: Option<S3Credentials>,
    /// All parts of a large blob have this size, but for the last: some stores want it so. Default: 32 MiB,
    /// with which 10,000 of them hold the largest blob that is taken. At least 5 MiB.
    pub part_size: ByteCount,
    /// How long a request is tried again that failed. Default: 60 s.
    pub patience: Duration,
}

impl S3Options {
    /// Options with their defaults.
    pub fn new(location: S3Location) -> Self {
        let part_size = ByteCount(32 << 20);
        let (endpoint, region, credentials) = (None, None, None);
        Self { location, endpoint, region, credentials, part_size, patience: PATIENCE }
    }
}

/// Why an object store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConnectS3Error {
    /// What was said of it makes no sense.
    #[error("cannot speak to the object store {location}")]
    Settings {
        /// Where it is.
        location: S3Location,
        /// What is wrong.
        #[source]
        source: Box<object_store::Error>,
    },
    /// One of the things that a registry does with objects did not work.
    #[error("cannot {action} an object in {location}, as a registry must")]
    Check {
        /// What was tried.
        action: &'static str,
        /// Where.
        location: S3Location,
        /// What failed.
        #[source]
        source: Box<object_store::Error>,
    },
    /// It did not give back what it was given.
    #[error("an object in {location} was read back with other bytes than it was written with")]
    OtherBytes {
        /// Where it is.
        location: S3Location,
    },
    /// S3 would not take such parts.
    #[error("parts of {part_size} cannot be had; at least {least}")]
    PartSize {
        /// What was asked for.
        part_size: ByteCount,
        /// What would do.
        least: ByteCount,
    },
}

/// An object store that was found to work.
#[derive(Clone)]
pub struct Objects(Arc<Inner>);

struct Inner {
    store: AmazonS3,
    location: S3Location,
    part_size: u64,
    patience: Duration,
    runtime: Handle,
    parts: Arc<Semaphore>,
}

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Objects({})", self.0.location)
    }
}

impl Objects {
    /// Finds out whether the store can be used, by writing, reading and removing an object. To be called
    /// in the runtime that is there as long as this is used.
    pub async fn connect(options: S3Options) -> Result<Self, ConnectS3Error> {
        let (objects, at_start) = Self::unchecked(options)?;
        check(&at_start, objects.location()).await?;
        Ok(objects)
    }

    /// The same for a store that could be used before: one that is away will be back, and what needs it
    /// not is served meanwhile.
    pub async fn connect_again(options: S3Options) -> Result<Self, ConnectS3Error> {
        let (objects, at_start) = Self::unchecked(options)?;
        if let Err(error) = check(&at_start, objects.location()).await {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::error!(%error, cause, "blobs cannot be pulled or pushed until this works again");
        }
        Ok(objects)
    }

    /// It, and what speaks to it with less patience.
    fn unchecked(options: S3Options) -> Result<(Self, AmazonS3), ConnectS3Error> {
        let (location, part_size) = (options.location.clone(), options.part_size);
        if part_size.0 < MIN_PART {
            return Err(ConnectS3Error::PartSize { part_size, least: ByteCount(MIN_PART) });
        }
        let client = |patience, silence| {
            let made = client(&options, (patience, silence));
            made.map_err(|error| {
                let (location, source) = (location.clone(), Box::new(error));
                ConnectS3Error::Settings { location, source }
            })
        };
        let at_start = client(PATIENCE_AT_START.min(options.patience), PATIENCE_AT_START)?;
        let objects = Self(Arc::new(Inner {
            store: client(options.patience, SILENCE)?,
            location: location.clone(),
            part_size: part_size.0,
            patience: options.patience,
            runtime: Handle::current(),
            parts: Arc::new(Semaphore::new(PARTS_AT_ONCE)),
        }));
        Ok((objects, at_start))
    }

    /// Where they are.
    pub(crate) fn location(&self) -> &S3Location {
        &self.0.location
    }

    /// The size of all parts of a large object but the last.
    pub(crate) fn part_size(&self) -> u64 {
        self.0.part_size
    }

    /// The largest object that is taken.
    pub(crate) fn max_object(&self) -> u64 {
        self.0.part_size * MAX_PARTS
    }

    /// Waits for the store; only for threads that may wait.
    pub(crate) fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.0.runtime.block_on(work)
    }

    /// Does something beside what the caller does.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        self.0.runtime.spawn(work)
    }

    /// A key that nobody else has.
    pub(crate) fn new_key() -> String {
        Uuid::new_v4().simple().to_string()
    }

    fn path(&self, key: &str) -> Path {
        self.0.location.path(key)
    }

    fn failed(&self, action: &'static str, key: &str, source: object_store::Error) -> StorageError {
        let name = format!("{}/{key}", self.0.location);
        StorageError::of_objects(action, name.into(), source)
    }

    /// Writes a file of so few bytes that it needs no parts.
    pub(crate) async fn put(&self, key: &str, file: &FilePath) -> Result<(), StorageError> {
        let (_in_memory, bytes) = self.read(key, file).await?;
        let put = self.0.store.put(&self.path(key), bytes.into()).await;
        put.map(drop).map_err(|error| self.failed("write", key, error))
    }

    /// Writes an object that says what wrote it.
    pub(crate) async fn put_mark(&self, key: &str) -> Result<(), StorageError> {
        let bytes = Bytes::from_static(b"a registry of Longshore has its blobs beside this");
        let put = self.0.store.put(&self.path(key), bytes.into()).await;
        put.map(drop).map_err(|error| self.failed("write", key, error))
    }

    /// Whether the store has an object.
    pub(crate) async fn has(&self, key: &str) -> Result<bool, StorageError> {
        match self.0.store.head(&self.path(key)).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(self.failed("look for", key, error)),
        }
    }

    /// Begins an object of many parts, and gives the name by which the store knows them.
    pub(crate) async fn begin(&self, key: &str) -> Result<String, StorageError> {
        let begun = self.0.store.create_multipart(&self.path(key)).await;
        begun.map_err(|error| self.failed("begin", key, error))
    }

    /// Sends a file as a part, and gives what the store calls that.
    pub(crate) async fn put_part(
        &self,
        (key, upload): (&str, &str),
        idx: usize,
        file: &FilePath,
    ) -> Result<String, StorageError> {
        let (_in_memory, bytes) = self.read(key, file).await?;
        let (path, upload) = (self.path(key), upload.to_owned());
        let put = self.0.store.put_part(&path, &upload, idx, bytes.into()).await;
        put.map(|part| part.content_id).map_err(|error| self.failed("write a part of", key, error))
    }

    /// Makes the parts, and a file as the last one, an object of so many bytes. Once it is there, doing so
    /// again changes nothing.
    pub(crate) async fn complete(
        &self,
        (key, upload): (&str, &str),
        parts: &[String],
        last: Option<&FilePath>,
        size: u64,
    ) -> Result<(), StorageError> {
        let (path, upload) = (self.path(key), upload.to_owned());
        let last = match last {
            Some(file) => Some(self.read(key, file).await?),
            None => None,
        };
        let of_id = |part: &String| PartId { content_id: part.clone() };
        let mut parts: Vec<PartId> = parts.iter().map(of_id).collect();
        let completed = async {
            if let Some((_in_memory, bytes)) = last {
                parts.push(self.0.store.put_part(&path, &upload, parts.len(), bytes.into()).await?);
            }
            self.0.store.complete_multipart(&path, &upload, parts).await
        };
        let error = match completed.await {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        // The store does not know it any more when it was completed by who did not hear of that; who asks
        // may be early.
        let is_unknown = matches!(
            error,
            object_store::Error::NotFound { .. } | object_store::Error::PermissionDenied { .. }
        );
        let until = tokio::time::Instant::now() + self.0.patience.min(COMPLETED_BY);
        loop {
            let found = self.0.store.head(&path).await;
            if found.is_ok_and(|found| found.size == size) {
                return Ok(());
            }
            if !is_unknown || tokio::time::Instant::now() > until {
                return Err(self.failed("complete", key, error));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// A file in memory, when there is room for it.
    async fn read(
        &self,
        key: &str,
        file: &FilePath,
    ) -> Result<(OwnedSemaphorePermit, Bytes), StorageError> {
        let room = Arc::clone(&self.0.parts).acquire_owned();
        // As long as one part may take. While the store takes nothing, requests must not gather without end.
        let room = tokio::time::timeout(self.0.patience + SILENCE, room).await.map_err(|_| {
            let source = "other parts wait for the store".into();
            self.failed("write", key, object_store::Error::Generic { store: "S3", source })
        })?;
        let room = room.expect("nobody closes it");
        let bytes = tokio::fs::read(file).await;
        let bytes = bytes.map_err(|error| StorageError::of_file("read", file, error))?;
        Ok((room, bytes.into()))
    }

    /// Removes an object, and the parts of one that was not completed, whether they are there or not.
    pub(crate) async fn remove(&self, key: &str, upload: Option<&str>) -> Result<(), StorageError> {
        let path = self.path(key);
        let gone = match upload {
            // Of what was completed nothing else is left.
            Some(upload) => match self.0.store.head(&path).await {
                Ok(_) => self.0.store.delete(&path).await,
                // Who may not list is told so of what is not there.
                Err(
                    object_store::Error::NotFound { .. }
                    | object_store::Error::PermissionDenied { .. },
                ) => self.0.store.abort_multipart(&path, &upload.to_owned()).await,
                Err(error) => Err(error),
            },
            None => self.0.store.delete(&path).await,
        };
        match gone {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed("remove", key, error)),
        }
    }
}

fn client(
    options: &S3Options,
    (patience, silence): (Duration, Duration),
) -> Result<AmazonS3, object_store::Error> {
    // Only the first call of a process can set it, and all set the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = match &options.credentials {
        // Not mixed with a part of what the environment says.
        Some(credentials) => credentials.give(AmazonS3Builder::new()),
        None => AmazonS3Builder::from_env(),
    };
    let said = |names: &[&str]| names.iter().find_map(|name| std::env::var(name).ok());
    let region = options.region.as_ref().map(|region| region.as_str().to_owned());
    let region = region.or_else(|| said(&["AWS_REGION", "AWS_DEFAULT_REGION"]));
    let endpoint = options.endpoint.as_ref().map(|endpoint| endpoint.as_str().to_owned());
    let endpoint = endpoint.or_else(|| said(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]));
    let is_plain = endpoint.as_ref().is_some_and(|at| at.starts_with("http://"));
    // The whole of a request takes as long as the client who pulls does.
    let http = ClientOptions::new()
        .with_timeout_disabled()
        .with_connect_timeout(PATIENCE_AT_START)
        .with_read_timeout(silence)
        .with_allow_http(is_plain)
        // A machine without any CA certificate can still speak to a store next to it.
        .with_no_system_certificates(is_plain);
    let builder = builder
        .with_client_options(http)
        .with_bucket_name(options.location.bucket())
        .with_virtual_hosted_style_request(false)
        .with_retry(RetryConfig {
            // The time decides, not how often it was tried.
            max_retries: usize::MAX,
            retry_timeout: patience,
            backoff: BackoffConfig { max_backoff: LONGEST_PAUSE, ..BackoffConfig::default() },
        });
    let builder = region.into_iter().fold(builder, AmazonS3Builder::with_region);
    endpoint.into_iter().fold(builder, AmazonS3Builder::with_endpoint).build()
}

/// Writes, reads and removes an object of a name that nobody else has.
async fn check(store: &AmazonS3, location: &S3Location) -> Result<(), ConnectS3Error> {
    let bytes = Bytes::from_static(b"longshore can write here");
    let path = location.path(&format!("check-{}", Objects::new_key()));
    let failed = |action| {
        let location = location.clone();
        move |error| ConnectS3Error::Check { action, location, source: Box::new(error) }
    };
    store.put(&path, bytes.clone().into()).await.map_err(failed("write"))?;
    let found = store.get(&path).await.map_err(failed("read"))?;
    let found = found.bytes().await.map_err(failed("read"))?;
    store.delete(&path).await.map_err(failed("remove"))?;
    match found == bytes {
        true => Ok(()),
        false => Err(ConnectS3Error::OtherBytes { location: location.clone() }),
    }
}

/// What the store said, in its own words, when it is that which failed.
pub(crate) fn is_of_objects(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<object_store::Error>())
}
