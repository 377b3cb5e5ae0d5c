//! Gets bytes from a source, asking again when that can help.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use longshore_types::{ByteCount, Digest, Repository};
use sha2::{Digest as _, Sha256};

use super::PullImageError;
use crate::config::ConfigFile;
use crate::limits::{LimitExceeded, Limits};
use crate::manifest::{Descriptor, Document};
use crate::source::{BlobStream, FetchedManifest, Retry, Source, SourceError};

/// How often in a row a source may fail without sending anything.
const ATTEMPTS: u32 = 5;

/// A source that sends nothing for this long is asked again. Tests wait for it in real time.
const STALL: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 60 });

/// Before the second attempt; doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(if cfg!(test) { 5 } else { 200 });

/// A source and what to ask it for.
pub(super) struct Fetcher<'a> {
    source: &'a dyn Source,
    repository: &'a Repository,
    pub limits: &'a Limits,
}

impl<'a> Fetcher<'a> {
    pub fn new(source: &'a dyn Source, repository: &'a Repository, limits: &'a Limits) -> Self {
        Self { source, repository, limits }
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
        let mut bytes = Vec::new();
        let mut blob = self.blob(digest);
        loop {
            match blob.next().await {
                Ok(Some(piece)) if bytes.len() + piece.len() <= config.size.0 as usize => {
                    bytes.extend_from_slice(&piece);
                }
                Ok(Some(piece)) => {
                    bytes.extend_from_slice(&piece);
                    break; // Too long, which the check below says.
                }
                Ok(None) => break,
                Err(source) => return Err(PullImageError::FetchConfig { digest, source }),
            }
        }
        check("config", &digest, Some(config.size), &bytes)?;
        let parsed = ConfigFile::parse(&bytes)
            .map_err(|source| PullImageError::Config { digest, source })?;
        let text = String::from_utf8(bytes).expect("what parses as JSON is UTF-8");
        Ok((parsed, text))
    }

    /// The bytes of a blob, resumed where they break off.
    pub fn blob(&self, digest: Digest) -> BlobFetch<'_> {
        BlobFetch {
            source: self.source,
            repository: self.repository,
            digest,
            stream: None,
            n_fetched: 0,
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

/// A blob on its way. Not cancel-safe in the sense that a dropped `next` loses nothing but the
/// connection's place: the next one asks again from the last byte that was handed out.
pub(super) struct BlobFetch<'a> {
    source: &'a dyn Source,
    repository: &'a Repository,
    digest: Digest,
    stream: Option<BlobStream>,
    n_fetched: u64,
    attempts: Attempts,
}

impl BlobFetch<'_> {
    /// The next piece, never empty, or `None` at the end as the source sees it.
    pub async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        loop {
            match self.try_next().await {
                Ok(Some(piece)) if piece.is_empty() => {}
                Ok(Some(piece)) => {
                    self.n_fetched += piece.len() as u64;
                    self.attempts = Attempts::default();
                    return Ok(Some(piece));
                }
                Ok(None) => return Ok(None),
                Err(error) => {
                    self.stream = None;
                    self.attempts.after(error).await?;
                }
            }
        }
    }

    async fn try_next(&mut self) -> Result<Option<Bytes>, SourceError> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                let asked = self.source.blob(self.repository, &self.digest, self.n_fetched);
                none.insert(within_stall(asked).await?)
            }
        };
        within_stall(async { stream.next().await.transpose() }).await
    }
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
