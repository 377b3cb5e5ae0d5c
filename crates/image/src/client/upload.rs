//! Sending a blob so that neither a broken connection nor a restarted registry loses what arrived.
//!
//! Small blobs go in one request. Others go in chunks that say where they belong. When one fails,
//! the registry is asked how much it has, and sending goes on from there.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use longshore_types::{Digest, Repository};
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use reqwest::{Body, Method, RequestBuilder, Response, StatusCode, Url};

use super::login::Shown;
use super::{RegistryClient, RegistryClientError, STALL, header, is_good};

/// What is sent at once and held in memory.
const CHUNK: usize = 4 << 20;
/// The parts in which a chunk is handed to the connection; each counts as progress.
const PART: usize = 64 << 10;
/// How often sending is taken up again without any progress in between.
const MAX_TRIES: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// What is being done with bytes.
const SEND: &str = "send the blob";

/// Where the bytes of a blob are.
#[derive(Debug, Clone)]
pub enum BlobSource {
    /// In memory.
    Bytes(Bytes),
    /// In a file, or in a part of one.
    File {
        /// The file.
        path: PathBuf,
        /// Where the blob begins, in bytes.
        offset: u64,
        /// Its size in bytes.
        length: u64,
    },
}

impl BlobSource {
    /// The size of the blob in bytes.
    pub fn length(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { length, .. } => *length,
        }
    }

    /// Reads up to [`CHUNK`] bytes from `at`. Blocks.
    pub(crate) fn read(&self, at: u64) -> Result<Bytes, RegistryClientError> {
        let left = usize::try_from(self.length() - at).unwrap_or(usize::MAX);
        let length = left.min(CHUNK);
        match self {
            Self::Bytes(bytes) => {
                let start = bytes.len() - left;
                Ok(bytes.slice(start..start + length))
            }
            Self::File { path, offset, .. } => {
                let mut chunk = vec![0; length];
                File::open(path)
                    .and_then(|file| file.read_exact_at(&mut chunk, offset + at))
                    .map_err(|source| RegistryClientError::Read { path: path.clone(), source })?;
                Ok(chunk.into())
            }
        }
    }
}

/// An upload that the registry began.
struct Upload {
    url: Url,
    offset: u64,
}

impl RegistryClient {
    /// Pushes a blob; `progress` is told the number of bytes that the registry has, which can fall
    /// when an upload must begin again.
    pub async fn push_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        source: &BlobSource,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), RegistryClientError> {
        let mut upload = None;
        let mut tries = 0;
        let mut best = 0;
        loop {
            let attempt = self.attempt(repository, digest, source, &mut upload, progress);
            let Err(error) = attempt.await else {
                progress(source.length());
                return Ok(());
            };
            let reached = upload.as_ref().map_or(0, |upload: &Upload| upload.offset);
            if reached > best {
                (best, tries) = (reached, 0);
            }
            tries += 1;
            let lost = error.code() == Some("BLOB_UPLOAD_UNKNOWN");
            if tries >= MAX_TRIES || !(error.is_retryable() || lost) {
                return Err(error);
            }
            tracing::debug!(%error, tries, "taking up an upload again");
            tokio::time::sleep(FIRST_PAUSE * 2_u32.pow(tries - 1)).await;
            upload = match upload {
                Some(upload) if !lost => self.take_up(upload).await,
                _ => None,
            };
        }
    }

    async fn attempt(
        &self,
        repository: &Repository,
        digest: &Digest,
        source: &BlobSource,
        upload: &mut Option<Upload>,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), RegistryClientError> {
        let begin = self.path(&format!("/v2/{repository}/blobs/uploads/"));
        if source.length() <= CHUNK as u64 {
            return self.push_at_once(begin, digest, source).await;
        }
        let Upload { url, offset } = match upload {
            Some(upload) => upload,
            None => {
                let request = self.request(Method::POST, begin);
                let response = self.send("begin an upload", request).await?;
                let url = self.location(&response)?;
                upload.insert(Upload { url, offset: 0 })
            }
        };
        while *offset < source.length() {
            progress(*offset);
            let chunk = read(source, *offset).await?;
            let end = *offset + chunk.len() as u64;
            let request = self
                .request(Method::PATCH, url.clone())
                .header(CONTENT_RANGE, format!("{offset}-{}", end - 1));
            let response = self.send_chunk(request, chunk).await?;
            *url = self.location(&response)?;
            *offset = end;
        }
        let request = self.request(Method::PUT, with_digest(url.clone(), digest));
        self.send("finish the upload", request).await.map(drop)
    }

    async fn push_at_once(
        &self,
        begin: Url,
        digest: &Digest,
        source: &BlobSource,
    ) -> Result<(), RegistryClientError> {
        let bytes = read(source, 0).await?;
        let request = self.request(Method::POST, with_digest(begin, digest));
        let response = self.send_chunk(request, bytes.clone()).await?;
        if response.status() == StatusCode::CREATED {
            return Ok(());
        }
        // A registry that does not take blobs so begins an upload in its place.
        let url = with_digest(self.location(&response)?, digest);
        let request = self.request(Method::PUT, url);
        self.send_chunk(request, bytes).await.map(drop)
    }

    /// Asks how much of an upload arrived; `None` when it must begin again.
    async fn take_up(&self, upload: Upload) -> Option<Upload> {
        let request = self.request(Method::GET, upload.url.clone());
        match self.send("ask about the upload", request).await {
            Ok(response) => {
                let last = header(response.headers(), RANGE.as_str())?
                    .strip_prefix("0-")?
                    .parse::<u64>()
                    .ok()?;
                // `0-0` means one byte, or none: nothing is lost by beginning again.
                (last > 0).then(|| Upload {
                    url: self.location(&response).unwrap_or(upload.url),
                    offset: last + 1,
                })
            }
            Err(error) if error.is_retryable() => Some(upload),
            Err(error) => {
                tracing::debug!(%error, "the upload is gone; beginning again");
                None
            }
        }
    }

    /// Sends bytes, once more where the registry wants to know who sends them.
    async fn send_chunk(
        &self,
        request: RequestBuilder,
        bytes: Bytes,
    ) -> Result<Response, RegistryClientError> {
        let again = request.try_clone();
        let (shown, mut answer) = self.try_chunk(request, bytes.clone()).await?;
        if let Some(again) = again
            && let Some(header) = self.login.learn(&shown, &answer).await?
        {
            answer = self.try_chunk(again.header(AUTHORIZATION, header), bytes).await?.1;
        }
        match is_good(answer.status()) {
            true => Ok(answer),
            false => Err(RegistryClientError::refused(SEND, answer).await),
        }
    }

    /// Sends bytes and gives up when none of them moves for [`STALL`].
    async fn try_chunk(
        &self,
        request: RequestBuilder,
        bytes: Bytes,
    ) -> Result<(Shown, Response), RegistryClientError> {
        let moved = Arc::new(AtomicU64::new(0));
        let length = bytes.len();
        let parts =
            futures_util::stream::unfold((bytes, moved.clone()), async |(mut left, moved)| {
                if left.is_empty() {
                    return None;
                }
                let part = left.split_to(left.len().min(PART));
                moved.fetch_add(1, Ordering::Relaxed);
                Some((Ok::<_, std::io::Error>(part), (left, moved)))
            });
        let failed = |source| RegistryClientError::Send { action: SEND, source };
        let built = request
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_LENGTH, length)
            .build();
        let mut request = built.map_err(failed)?;
        let shown = match request.headers().contains_key(AUTHORIZATION) {
            true => Shown::default(),
            false => self.login.show(&mut request).await,
        };
        *request.body_mut() = Some(Body::wrap_stream(Box::pin(parts)));
        let answer = self.http.execute(request);
        let silence = async {
            let mut seen = None;
            loop {
                let now = moved.load(Ordering::Relaxed);
                if seen.replace(now) == Some(now) {
                    return;
                }
                tokio::time::sleep(STALL).await;
            }
        };
        tokio::select! {
            answer = answer => answer.map(|answer| (shown, answer)).map_err(failed),
            () = silence => Err(RegistryClientError::Stalled { action: SEND }),
        }
    }
}

async fn read(source: &BlobSource, at: u64) -> Result<Bytes, RegistryClientError> {
    let source = source.clone();
    match tokio::task::spawn_blocking(move || source.read(at)).await {
        Ok(read) => read,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

fn with_digest(mut url: Url, digest: &Digest) -> Url {
    url.query_pairs_mut().append_pair("digest", &digest.to_string());
    url
}
