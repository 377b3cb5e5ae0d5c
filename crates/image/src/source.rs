//! Where a pull gets its bytes from: the registry today, peers of the location later.
//!
//! A source is not trusted. It hands over bytes; the pull checks every size and digest itself, so a
//! source that lies costs a failed pull and nothing else.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, Stream, TryStreamExt as _};
use longshore_types::{Digest, Repository};

/// Something that can hand over manifests and blobs of a repository.
///
/// Object safe, so that a node can choose its source when it runs.
pub trait Source: Send + Sync {
    /// The bytes of the manifest or index with this digest, as the source stores them, and the media
    /// type that it states (an HTTP `Content-Type`; parameters may follow a `;`).
    fn manifest<'a>(
        &'a self,
        repository: &'a Repository,
        digest: &'a Digest,
    ) -> BoxFuture<'a, Result<FetchedManifest, SourceError>>;

    /// The bytes of a blob from offset `from` (bytes) to its end. `from` is above 0 only when an
    /// earlier stream of the same blob broke there; a source that cannot begin in the middle skips.
    fn blob<'a>(
        &'a self,
        repository: &'a Repository,
        digest: &'a Digest,
        from: u64,
    ) -> BoxFuture<'a, Result<BlobStream, SourceError>>;
}

/// A manifest as a source handed it over: nothing about it has been checked.
#[derive(Debug, Clone)]
pub struct FetchedManifest {
    /// The stated media type.
    pub media_type: String,
    /// The exact bytes, over which the digest is computed.
    pub bytes: Bytes,
}

/// The bytes of a blob in order. The end of the stream means that the source believes it complete.
pub type BlobStream = BoxStream<'static, Result<Bytes, SourceError>>;

/// The same bytes without the first `skip` of them, for a source that was asked to begin in the middle and
/// did not.
pub fn without_first<E>(
    mut skip: u64,
    bytes: impl Stream<Item = Result<Bytes, E>>,
) -> impl Stream<Item = Result<Bytes, E>> {
    bytes.map_ok(move |mut part| {
        let skipped = usize::try_from(skip).map_or(part.len(), |skip| skip.min(part.len()));
        skip -= skipped as u64;
        part.split_off(skipped)
    })
}

/// Why a source could not hand over what was asked for.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct SourceError {
    message: String,
    retry: Retry,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Whether doing the same again can succeed without anyone changing anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// It can: the network, a busy server, a full disk that garbage collection may empty.
    CanHelp,
    /// It cannot: not found, not allowed, malformed.
    Pointless,
}

impl SourceError {
    /// An error with its text for a reader (without the cause's text) and whether to try again.
    pub fn new(message: impl Into<String>, retry: Retry) -> Self {
        Self { message: message.into(), retry, source: None }
    }

    /// The same with the error that caused it.
    pub fn caused_by(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Whether doing the same again can succeed.
    pub fn retry(&self) -> Retry {
        self.retry
    }
}
