//! Where a pull gets its bytes from: the registry, and nodes of the same location that have or pull the same.
//!
//! A source is not trusted. It hands over bytes; the pull checks every size and digest itself, so a
//! source that lies costs a failed pull and nothing else. What our own registry converted is the exception:
//! that its parts belong to a layer only who made them can say.

use std::num::NonZeroU64;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
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

    /// The bytes of a part of a blob. Of one blob, several parts may be asked for at the same time.
    fn blob<'a>(
        &'a self,
        repository: &'a Repository,
        digest: &'a Digest,
        part: Part,
    ) -> BoxFuture<'a, Result<Given, SourceError>>;

    /// The artifact that names the converted layers of the image with this manifest
    /// ([`crate::converted`]); nothing where there is none. Of all that a source gives this alone is believed:
    /// only a registry of ours gives it, of what it made itself.
    fn converted<'a>(
        &'a self,
        _repository: &'a Repository,
        _manifest: &'a Digest,
    ) -> BoxFuture<'a, Result<Option<Bytes>, SourceError>> {
        Box::pin(async { Ok(None) })
    }

    /// Who else has, or pulls, the image with this digest, as it was asked for. What they give is frames of its
    /// converted layers.
    fn neighbours<'a>(
        &'a self,
        _repository: &'a Repository,
        _image: &'a Digest,
    ) -> BoxFuture<'a, Neighbours> {
        Box::pin(async { Neighbours::default() })
    }
}

/// Those who may be asked before the source.
#[derive(Clone, Default)]
pub struct Neighbours {
    /// By which name this node is a neighbour of theirs.
    pub own: String,
    /// The others.
    pub others: Vec<Known>,
}

/// A neighbour.
#[derive(Clone)]
pub struct Known {
    /// What it is called.
    pub name: String,
    /// Whether it had all of the image when it was named; otherwise it pulls it, too.
    pub has_all: bool,
    /// How it is asked.
    pub asked: Arc<dyn Neighbour>,
}

/// Something that can hand over frames of layers.
pub trait Neighbour: Send + Sync {
    /// A frame of the layer with this DiffID. One that pulls the layer may take a while, until it has it.
    fn frame<'a>(
        &'a self,
        layer: &'a Digest,
        idx: usize,
    ) -> BoxFuture<'a, Result<Answer, SourceError>>;
}

/// What a neighbour says that is asked for a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Its contents, which are not trusted.
    Given(Bytes),
    /// It did not come there yet, and will.
    OnItsWay,
    /// It is not there.
    Absent,
}

/// Which bytes of a blob are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Offset of the first.
    pub from: u64,
    /// How many; without a number, all that follow.
    pub n_bytes: Option<NonZeroU64>,
}

impl Part {
    /// All of it.
    pub const WHOLE: Self = Self { from: 0, n_bytes: None };

    /// The value of an HTTP `Range` header that asks for it; none for the whole.
    pub fn range(&self) -> Option<String> {
        match (self.from, self.n_bytes) {
            (0, None) => None,
            (from, None) => Some(format!("bytes={from}-")),
            (from, Some(n_bytes)) => {
                let last = from.saturating_add(n_bytes.get() - 1);
                Some(format!("bytes={from}-{last}"))
            }
        }
    }
}

/// What a source makes of being asked for a part.
pub enum Given {
    /// The bytes from where the part begins. They may go on behind its end.
    Part(BlobStream),
    /// The bytes of the whole blob: the source has no parts to give.
    Whole(BlobStream),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_asked_for_as_http_has_it() {
        let part = |from, n_bytes| Part { from, n_bytes: NonZeroU64::new(n_bytes) }.range();
        assert_eq!(Part::WHOLE.range(), None);
        assert_eq!(part(7, 0).as_deref(), Some("bytes=7-"));
        assert_eq!(part(0, 1).as_deref(), Some("bytes=0-0"));
        assert_eq!(part(8, 8).as_deref(), Some("bytes=8-15"));
        assert_eq!(part(u64::MAX, 8), Some(format!("bytes={0}-{0}", u64::MAX)));
    }
}
