//! Blobs on their way from an upstream.
//!
//! One fetch, however many ask. What comes is written into a file of its own and read from there by all who wait for it,
//! so the slowest of them holds up nobody. The last byte is held back until the digest is right: nobody gets a wrong
//! blob whole. A connection that breaks off is taken up where it did, elsewhere if there is an elsewhere; bytes get their
//! name in the repository when all of them are there and right, and of a fetch that a crash ended nothing is left.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use futures_util::{TryStreamExt as _, stream};
use longshore_image::client::{OpenedBlob, RegistryClient, RegistryClientError};
use longshore_image::source::Part;
use longshore_types::{Digest, Repository};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio::time::Instant;

use super::mirrors::Upstream;
use super::{Theirs, lock};
use crate::Registry;
use crate::blobs::of_file;
use crate::metrics::{Given, UpstreamMetrics, What};
use crate::refusal::{Code, Refusal};
use crate::storage::{Storage, StorageError};

/// Bytes that are gathered before a thread writes and hashes them.
const SEGMENT: usize = 1 << 20;

/// And how many of them, however small.
const MOST_PIECES: usize = 4096;
/// How long such a segment may take: who gives less holds up others.
const SEGMENT_WITHIN: Duration = Duration::from_secs(300);

/// How often a blob is taken up again without this much having come of it in between.
const MAX_TRIES: u32 = 3;
const LEAST: u64 = 64 << 10;

/// How long a blob goes on coming that nobody waits for.
const UNREAD_FOR: Duration = Duration::from_secs(60);

/// How far a blob has come.
#[derive(Debug, Clone)]
pub(super) enum State {
    /// Nothing is known of it yet.
    Asking,
    Coming {
        spool: Arc<File>,
        size: u64,
        have: u64,
    },
    /// It is in its repository.
    Kept,
    Failed(Refusal),
}

/// What became of asking for a blob.
pub(crate) enum Joined {
    /// It is in the repository now.
    Kept,
    /// It can be read while it comes.
    Coming(Coming),
}

/// A blob that is read while it comes.
#[derive(Debug)]
pub(crate) struct Coming {
    spool: Arc<File>,
    size: u64,
    state: watch::Receiver<State>,
}

impl Coming {
    /// How many bytes it will have.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// A part of it that is not empty, as a body.
    pub(crate) fn body(self, part: Range<u64>) -> Body {
        let parts =
            stream::try_unfold((self, part), async |(mut coming, left): (Self, Range<u64>)| {
                if left.is_empty() {
                    return Ok::<_, io::Error>(None);
                }
                let end = coming.beyond(left.start).await?.min(left.end);
                let here = of_file(coming.spool.try_clone()?, left.start..end);
                let here = here.into_data_stream().map_err(io::Error::other);
                Ok(Some((here, (coming, end..left.end))))
            });
        Body::from_stream(parts.try_flatten())
    }

    /// How far it can be read, which is behind `at`; waits for that.
    async fn beyond(&mut self, at: u64) -> io::Result<u64> {
        let size = self.size;
        let readable = |state: &State| match state {
            State::Kept => size,
            // The last byte waits for the digest.
            State::Coming { have, .. } => (*have).min(size - 1),
            State::Asking | State::Failed(_) => 0,
        };
        let is_news = |state: &State| matches!(state, State::Failed(_)) || readable(state) > at;
        let state = self.state.wait_for(is_news).await.map_err(io::Error::other)?;
        match &*state {
            State::Failed(_) => Err(io::Error::other("the rest of the blob does not come")),
            state => Ok(readable(state)),
        }
    }
}

/// Asks an upstream for a blob that is not here, or waits with others who did.
pub(crate) async fn join(
    registry: &Arc<Registry>,
    theirs: &Theirs,
    repository: &Repository,
    digest: &Digest,
) -> Result<Joined, Refusal> {
    let mut state = begin(registry, theirs, repository, digest);
    let begun = state.wait_for(|state| !matches!(state, State::Asking)).await;
    let begun = begun.map(|state| state.clone());
    match begun {
        Ok(State::Coming { spool, size, .. }) => Ok(Joined::Coming(Coming { spool, size, state })),
        Ok(State::Failed(refusal)) => Err(refusal),
        Ok(State::Kept | State::Asking) => Ok(Joined::Kept),
        Err(_) => Err(away(theirs.name(), "the blob broke off")),
    }
}

fn away(upstream: &str, why: &str) -> Refusal {
    let message = format!("the upstream {upstream}: {why}");
    Refusal::new(StatusCode::BAD_GATEWAY, Code::Unknown, message)
}

/// Takes part in the fetch of a blob, or begins it.
fn begin(
    registry: &Arc<Registry>,
    theirs: &Theirs,
    repository: &Repository,
    digest: &Digest,
) -> watch::Receiver<State> {
    let key = (repository.clone(), *digest);
    let mut blobs = lock(&theirs.upstream.blobs);
    if let Some(state) = blobs.get(&key) {
        return state.clone();
    }
    let (sender, state) = watch::channel(State::Asking);
    blobs.insert(key, state.clone());
    drop(blobs);
    let fetch = Fetch {
        storage: Arc::clone(&registry.storage),
        theirs: theirs.clone(),
        repository: repository.clone(),
        digest: *digest,
        most: registry.max_blob.0,
        metrics: registry.metrics.upstreams.clone(),
        sender,
    };
    registry.upstreams.spawn(fetch.run());
    state
}

/// A blob that is being fetched.
struct Fetch {
    storage: Arc<Storage>,
    theirs: Theirs,
    repository: Repository,
    digest: Digest,
    /// The largest that is taken.
    most: u64,
    metrics: UpstreamMetrics,
    sender: watch::Sender<State>,
}

/// However it ends, who asks from then on begins anew.
impl Drop for Fetch {
    fn drop(&mut self) {
        let key = (self.repository.clone(), self.digest);
        lock(&self.theirs.upstream.blobs).remove(&key);
    }
}

/// Why a blob does not come.
enum Broken {
    /// It may be taken up again where it broke off.
    Passing(Refusal),
    Final(Refusal),
}

/// The bytes are others than were asked for.
#[derive(Debug, thiserror::Error)]
#[error("it gave a blob with the digest {found} for {wanted}")]
struct WrongDigest {
    found: Digest,
    wanted: Digest,
}

impl From<StorageError> for Broken {
    fn from(error: StorageError) -> Self {
        Self::Final(error.into())
    }
}

impl Fetch {
    async fn run(self) {
        let (end, given) = match self.bring().await {
            Ok(()) => (State::Kept, Given::Fetched),
            Err(Broken::Passing(refusal) | Broken::Final(refusal)) => {
                let given = Given::not(&refusal);
                (State::Failed(refusal), given)
            }
        };
        self.metrics.gave(self.theirs.name(), What::Blob, given);
        self.sender.send_replace(end);
    }

    async fn bring(&self) -> Result<(), Broken> {
        let permit = self.upstream().fetches.acquire().await;
        let _permit = permit.map_err(|_| Broken::Final(self.away("it is closed")))?;
        if !self.is_read() {
            return Err(Broken::Final(self.away("nobody waits for the blob any more")));
        }
        let (repository, digest) = (self.repository.clone(), self.digest);
        // It may have come just before this began.
        if self.blocking(move |storage| storage.blob_size(&repository, &digest)).await?.is_some() {
            return Ok(());
        }
        let mut spool = self.blocking(Spool::begin).await?;
        let mut n_tries = 0;
        loop {
            let before = spool.length;
            let (after, end) = self.go_on(spool).await?;
            spool = after;
            match end {
                Ok(()) => break,
                Err(broken) if spool.length - before < LEAST && n_tries + 1 == MAX_TRIES => {
                    return Err(broken);
                }
                Err(Broken::Passing(_)) => {
                    n_tries = if spool.length - before < LEAST { n_tries + 1 } else { 0 };
                }
                Err(broken) => return Err(broken),
            }
        }
        self.keep(spool).await
    }

    /// Gets what is left of the blob; gives what came, and whether that is all.
    async fn go_on(&self, mut spool: Spool) -> Result<(Spool, Result<(), Broken>), Broken> {
        if spool.size == Some(spool.length) {
            return Ok((spool, Ok(())));
        }
        let (remote, digest) = (&self.theirs.remote, &self.digest);
        let part = Part { from: spool.length, n_bytes: None };
        let open =
            |client: RegistryClient| async move { client.open_blob(remote, digest, part).await };
        let (opened, mirror) = match self.upstream().ask(open).await {
            Ok(opened) => opened,
            Err(error) => {
                let is_away = error.is_away();
                let unknown = || Refusal::blob_unknown(&self.repository, digest);
                let refusal = error.into_refusal(unknown);
                let broken = if is_away { Broken::Passing } else { Broken::Final };
                return Ok((spool, Err(broken(refusal))));
            }
        };
        let OpenedBlob { is_whole, size, mut bytes } = opened;
        spool.given_by.insert(mirror.idx);
        self.check_size(&mut spool, size)?;
        let mut skip = if is_whole { spool.length } else { 0 };
        let (mut pieces, mut gathered) = (Vec::new(), 0);
        let mut until = Instant::now() + SEGMENT_WITHIN;
        let mut read_at = Instant::now();
        let end = loop {
            let mut piece: Bytes = match tokio::time::timeout_at(until, bytes.try_next()).await {
                Ok(Ok(Some(piece))) => piece,
                Ok(Ok(None)) => break Ok(()),
                Ok(Err(error)) => break Err(error),
                Err(_) => break Err(RegistryClientError::Stalled { action: "read the blob" }),
            };
            let skipped = skip.min(piece.len() as u64);
            skip -= skipped;
            // As many as there are in it.
            let piece = piece.split_off(skipped as usize);
            gathered += piece.len();
            pieces.push(piece);
            if gathered < SEGMENT && pieces.len() < MOST_PIECES {
                continue;
            }
            if gathered >= SEGMENT {
                until = Instant::now() + SEGMENT_WITHIN;
            }
            spool = self.write(spool, std::mem::take(&mut pieces)).await?;
            gathered = 0;
            if self.is_read() {
                read_at = Instant::now();
            } else if read_at.elapsed() >= UNREAD_FOR {
                return Err(Broken::Final(self.away("nobody waits for the blob any more")));
            }
        };
        spool = self.write(spool, pieces).await?;
        let end = match end {
            Ok(()) if spool.size.is_none_or(|size| spool.length >= size) => Ok(()),
            Ok(()) => Err(Broken::Passing(self.away("the blob ends early"))),
            Err(error) => {
                self.upstream().pass_over(mirror, &error);
                Err(Broken::Passing(self.broke_off(&error)))
            }
        };
        Ok((spool, end))
    }

    fn check_size(&self, spool: &mut Spool, said: Option<u64>) -> Result<(), Broken> {
        match (spool.size, said) {
            (None, Some(size)) if size > self.most => Err(Broken::Final(self.too_large())),
            (None, Some(size)) => {
                self.check_room(size)?;
                spool.size = Some(size);
                self.tell(spool);
                Ok(())
            }
            (Some(before), Some(size)) if size != before => {
                let why = format!("the blob had {before} bytes, and has {size} now");
                Err(Broken::Final(self.away(&why)))
            }
            _ => Ok(()),
        }
    }

    /// Refuses so much more where pushes and others need what is left of the disk.
    fn check_room(&self, more: u64) -> Result<(), Broken> {
        match self.storage.has_local_room(more)? {
            true => Ok(()),
            false => {
                let why = "the registry's disk has no room for the blob";
                let refusal = Refusal::new(StatusCode::INSUFFICIENT_STORAGE, Code::Unknown, why);
                Err(Broken::Final(refusal))
            }
        }
    }

    /// Whether anybody waits for it, beside those who may yet ask.
    fn is_read(&self) -> bool {
        self.sender.receiver_count() > 1
    }

    /// Writes and hashes what came, and tells those who read.
    async fn write(&self, spool: Spool, pieces: Vec<Bytes>) -> Result<Spool, Broken> {
        if spool.size.is_none() {
            self.check_room(0)?;
        }
        let n_bytes: usize = pieces.iter().map(Bytes::len).sum();
        self.metrics.came(self.theirs.name(), n_bytes as u64);
        let spool = self.blocking(move |_| spool.append(&pieces)).await?;
        if spool.length > spool.size.unwrap_or(self.most) {
            return Err(Broken::Final(self.too_large()));
        }
        self.tell(&spool);
        Ok(spool)
    }

    fn tell(&self, spool: &Spool) {
        // Who reads it must know where it ends.
        if let Some(size) = spool.size.filter(|size| *size > 0) {
            let (spool, have) = (Arc::clone(&spool.file), spool.length);
            self.sender.send_replace(State::Coming { spool, size, have });
        }
    }

    async fn keep(&self, spool: Spool) -> Result<(), Broken> {
        let found = Digest::from_sha256(spool.hasher.clone().finalize().into());
        if found != self.digest {
            let wrong = WrongDigest { found, wanted: self.digest };
            // Which of them it was nobody can say.
            spool.given_by.iter().for_each(|idx| self.upstream().pass_over_liar(*idx, &wrong));
            return Err(Broken::Final(self.away(&wrong.to_string())));
        }
        let (to, name, digest) =
            (self.repository.clone(), self.theirs.name().to_owned(), self.digest);
        let kept = self.blocking(move |storage| {
            storage.mark_upstream(&to, &name)?;
            storage.keep_fetched(&to, &digest, &spool.path)
        });
        Ok(kept.await?)
    }

    fn upstream(&self) -> &Upstream {
        &self.theirs.upstream
    }

    fn away(&self, why: &str) -> Refusal {
        away(self.theirs.name(), why)
    }

    fn broke_off(&self, error: &RegistryClientError) -> Refusal {
        self.away(&format!("the blob broke off: {}", longshore_types::chain(error)))
    }

    fn too_large(&self) -> Refusal {
        self.away("the blob has more bytes than it said, or than a blob may have")
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Storage) -> T + Send + 'static,
    ) -> T {
        let storage = Arc::clone(&self.storage);
        match tokio::task::spawn_blocking(move || work(&storage)).await {
            Ok(done) => done,
            // Ends this fetch as if the panic had happened in it.
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

/// What came of a blob, in a file that is nobody's yet.
struct Spool {
    path: PathBuf,
    file: Arc<File>,
    hasher: Sha256,
    length: u64,
    /// How many bytes there should be, once that was said.
    size: Option<u64>,
    /// Which places of the upstream gave some of it.
    given_by: BTreeSet<usize>,
}

impl Spool {
    fn begin(storage: &Storage) -> Result<Self, StorageError> {
        let (path, file) = storage.passing_file()?;
        let (file, given_by) = (Arc::new(file), BTreeSet::new());
        Ok(Self { path, file, hasher: Sha256::new(), length: 0, size: None, given_by })
    }

    fn append(mut self, pieces: &[Bytes]) -> Result<Self, StorageError> {
        for piece in pieces {
            let written = self.file.write_all_at(piece, self.length);
            written.map_err(|error| StorageError::of_file("write", &self.path, error))?;
            self.hasher.update(piece);
            self.length += piece.len() as u64;
        }
        Ok(self)
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        // It has become a blob, or is removed with all that is passing at the next start if not now.
        let _ = std::fs::remove_file(&self.path);
    }
}
