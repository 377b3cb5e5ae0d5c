//! Gets bytes from a source, asking again when that can help.

mod window;

use std::num::NonZeroU64;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use longshore_types::{ByteCount, Digest, Repository};
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use super::PullImageError;
use crate::config::ConfigFile;
use crate::limits::{LimitExceeded, Limits};
use crate::manifest::{Descriptor, Document};
use crate::source::{
    BlobStream, FetchedManifest, Given, Neighbours, Part, Retry, Source, SourceError,
};
#[cfg(test)]
pub(super) use window::SHARED;
pub(super) use window::{PART, PARTS_AT_ONCE, Window};

/// How often in a row a source may fail without sending anything.
const ATTEMPTS: u32 = 5;

/// A source that sends nothing for this long is asked again. Tests wait for it in real time.
const STALL: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 60 });

/// How long it may take to hear of neighbours.
const NEIGHBOURS_WITHIN: Duration = Duration::from_secs(1);

/// Before the second attempt; doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(if cfg!(test) { 5 } else { 200 });

/// A source and what to ask it for.
pub(super) struct Fetcher<'a> {
    source: &'a dyn Source,
    repository: &'a Repository,
    pub limits: &'a Limits,
    /// Who is asked for frames before the source.
    pub neighbours: Neighbours,
    /// Turns of parts that are ahead of those that are handed over.
    ahead: Semaphore,
}

impl<'a> Fetcher<'a> {
    pub fn new(source: &'a dyn Source, repository: &'a Repository, limits: &'a Limits) -> Self {
        let ahead = Semaphore::new(window::SHARED);
        Self { source, repository, limits, neighbours: Neighbours::default(), ahead }
    }

    /// The manifest or index with a digest, checked and parsed.
    pub async fn manifest(
        &self,
        digest: &Digest,
        size: Option<ByteCount>,
    ) -> Result<Document, PullImageError> {
        let mut attempts = Attempts::default();
        let fetched: FetchedManifest = loop {
            let asked = self.source.manifest(self.repository, digest);
            match within_stall(asked).await {
                Ok(fetched) => break fetched,
                Err(error) => attempts
                    .after(error)
                    .await
                    .map_err(|source| PullImageError::FetchManifest { digest: *digest, source })?,
            }
        };
        self.check_size(
            digest,
            "bytes in the manifest",
            &fetched.bytes,
            self.limits.manifest_bytes,
        )?;
        check("manifest", digest, size, &fetched.bytes)?;
        Document::parse(&fetched.bytes, &fetched.media_type)
            .map_err(|source| PullImageError::Manifest { digest: *digest, source })
    }

    /// The config that a manifest names, checked and parsed, and its text.
    pub async fn config(
        &self,
        config: &Descriptor,
    ) -> Result<(ConfigFile, String), PullImageError> {
        let digest = config.digest;
        let allowed = self.limits.config_bytes;
        LimitExceeded::check("bytes in the config", config.size.0, allowed.0)
            .map_err(|source| PullImageError::Limit { digest, source })?;
        // One that is too long the check below tells.
        let fetched = self.whole(digest, config.size).await;
        let bytes = fetched.map_err(|source| PullImageError::FetchConfig { digest, source })?;
        check("config", &digest, Some(config.size), &bytes)?;
        let parsed = ConfigFile::parse(&bytes)
            .map_err(|source| PullImageError::Config { digest, source })?;
        let text = String::from_utf8(bytes).expect("what parses as JSON is UTF-8");
        Ok((parsed, text))
    }

    /// The bytes behind the first `from` of a blob that should be so long, several parts at a time when
    /// they are many.
    pub fn blob(&self, digest: Digest, from: u64, size: ByteCount) -> Window<'_> {
        Window::new(self, digest, from, size)
    }

    /// These bytes of a blob, several parts at a time when they are many. More may follow from a source that
    /// has no parts to give.
    pub fn range(&self, digest: Digest, bytes: Range<u64>) -> Window<'_> {
        Window::of_range(self, digest, bytes)
    }

    /// The bytes of a blob that should be so long; fewer or more when it is not. They are not checked.
    pub async fn whole(&self, digest: Digest, size: ByteCount) -> Result<Vec<u8>, SourceError> {
        let mut bytes = Vec::new();
        let mut blob = self.part(digest, Part::WHOLE);
        while let Some(piece) = blob.next().await? {
            bytes.extend_from_slice(&piece);
            if bytes.len() as u64 > size.0 {
                break;
            }
        }
        Ok(bytes)
    }

    /// The artifact that names the converted layers of an image. It is asked for once: without it an image is
    /// pulled as it was pushed.
    pub async fn converted(&self, manifest: &Digest) -> Result<Option<Bytes>, SourceError> {
        within_stall(self.source.converted(self.repository, manifest)).await
    }

    /// Asks who else may be asked for frames of an image. It is not waited for long: the source has them, too.
    pub async fn look_for_neighbours(&mut self, image: &Digest) {
        let asked = self.source.neighbours(self.repository, image);
        if let Ok(neighbours) = tokio::time::timeout(NEIGHBOURS_WITHIN, asked).await {
            self.neighbours = neighbours;
        }
    }

    /// The bytes of a part of a blob, resumed where they break off.
    fn part(&self, digest: Digest, part: Part) -> PartFetch<'_> {
        PartFetch {
            source: self.source,
            repository: self.repository,
            digest,
            from: part.from,
            n_left: part.n_bytes.map(NonZeroU64::get),
            stream: None,
            attempts: Attempts::default(),
        }
    }

    fn check_size(
        &self,
        digest: &Digest,
        what: &'static str,
        bytes: &Bytes,
        allowed: ByteCount,
    ) -> Result<(), PullImageError> {
        LimitExceeded::check(what, bytes.len() as u64, allowed.0)
            .map_err(|source| PullImageError::Limit { digest: *digest, source })
    }
}

fn check(
    what: &'static str,
    expected: &Digest,
    size: Option<ByteCount>,
    bytes: &[u8],
) -> Result<(), PullImageError> {
    let found = Digest::from_sha256(Sha256::digest(bytes).into());
    let found_bytes = bytes.len() as u64;
    if found != *expected || size.is_some_and(|size| size.0 != found_bytes) {
        return Err(PullImageError::Mismatch { what, expected: *expected, found, found_bytes });
    }
    Ok(())
}

/// A part of a blob on its way. Not cancel-safe in the sense that a dropped `next` loses nothing but
/// the connection's place: the next one asks again from the last byte that was handed out.
struct PartFetch<'a> {
    source: &'a dyn Source,
    repository: &'a Repository,
    digest: Digest,
    /// Where in the blob the next byte is.
    from: u64,
    /// Bytes of the part that were not handed out yet, when it has an end of its own.
    n_left: Option<u64>,
    stream: Option<BlobStream>,
    attempts: Attempts,
}

/// Whether a source gives parts of a blob.
enum Gives {
    Parts,
    Whole,
}

impl PartFetch<'_> {
    /// Asks the source, and says what it gives.
    async fn open(&mut self) -> Result<Gives, SourceError> {
        loop {
            match self.try_open().await {
                Ok(gives) => return Ok(gives),
                Err(error) => self.attempts.after(error).await?,
            }
        }
    }

    async fn try_open(&mut self) -> Result<Gives, SourceError> {
        let part = Part { from: self.from, n_bytes: self.n_left.and_then(NonZeroU64::new) };
        let given = within_stall(self.source.blob(self.repository, &self.digest, part)).await?;
        let (stream, gives) = match given {
            Given::Part(stream) => (stream, Gives::Parts),
            Given::Whole(stream) => (without_first(self.from, stream), Gives::Whole),
        };
        self.stream = Some(stream);
        Ok(gives)
    }

    /// The next piece, never empty, or `None` at the end of the part or of the blob as the source sees
    /// it.
    async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        loop {
            if self.n_left == Some(0) {
                self.stream = None;
                return Ok(None);
            }
            match self.try_next().await {
                Ok(Some(piece)) if piece.is_empty() => {}
                Ok(Some(piece)) => return Ok(Some(self.hand_out(piece))),
                Ok(None) => return Ok(None),
                Err(error) => {
                    self.stream = None;
                    self.attempts.after(error).await?;
                }
            }
        }
    }

    /// Leaves what lies behind the part.
    fn hand_out(&mut self, mut piece: Bytes) -> Bytes {
        if let Some(n_left) = &mut self.n_left {
            piece.truncate(usize::try_from(*n_left).unwrap_or(usize::MAX));
            *n_left -= piece.len() as u64;
        }
        self.from += piece.len() as u64;
        self.attempts = Attempts::default();
        piece
    }

    async fn try_next(&mut self) -> Result<Option<Bytes>, SourceError> {
        if self.stream.is_none() {
            self.try_open().await?;
        }
        let stream = self.stream.as_mut().expect("it was opened");
        within_stall(async { stream.next().await.transpose() }).await
    }
}

/// The same bytes without the first `skip` of them.
fn without_first(mut skip: u64, bytes: BlobStream) -> BlobStream {
    let bytes = bytes.map_ok(move |mut part| {
        let skipped = usize::try_from(skip).map_or(part.len(), |skip| skip.min(part.len()));
        skip -= skipped as u64;
        part.split_off(skipped)
    });
    bytes.boxed()
}

async fn within_stall<T>(
    asked: impl Future<Output = Result<T, SourceError>>,
) -> Result<T, SourceError> {
    match tokio::time::timeout(STALL, asked).await {
        Ok(result) => result,
        Err(_) => Err(SourceError::new(
            format!("nothing came for {} seconds", STALL.as_secs()),
            Retry::CanHelp,
        )),
    }
}

#[derive(Default)]
struct Attempts(u32);

impl Attempts {
    /// Waits before the next attempt, or gives the error back when there is to be none.
    async fn after(&mut self, error: SourceError) -> Result<(), SourceError> {
        self.0 += 1;
        if error.retry() == Retry::Pointless || self.0 == ATTEMPTS {
            return Err(error);
        }
        tracing::debug!(attempt = self.0, %error, "asking the source again");
        tokio::time::sleep(FIRST_PAUSE * 2_u32.pow(self.0 - 1)).await;
        Ok(())
    }
}
