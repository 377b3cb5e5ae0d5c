//! Images of the registry on the disk of a location, for its nodes.
//!
//! What one node asks for lies here when the next one does, so it comes over the wide link once: blobs, whole or in
//! parts, also while they come, and the documents that say which ones an image needs. Who may have what is decided
//! before anything is asked of the mirror, by the assignments; and what the registry never gave of a repository is
//! not given of that, nor is what is not whole given of another than it comes of. It is never in the way: what there
//! is no room for, or what the disk refuses, comes from the registry past it. Rejected: to fetch what nobody asked
//! for yet, which is what prewarming is for; redirects to a cache beside the location, which would have to know who
//! is given what.
//!
//! - `way`: which bytes are here and who brings the others. `coming`: a blob on its way. `fetch`: what brings it.
//! - `shelf`: blobs that are whole. `room`: which of them go. `documents`: manifests and the like. `disk`: files.

mod coming;
mod disk;
mod documents;
mod fetch;
mod room;
mod shelf;
mod way;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use http::Response;
use hyper::body::Incoming;
use longshore_api::{Problem, ProblemCode};
use longshore_link::{Refusal, Service};
use longshore_types::{Digest, MirrorSize};
use tokio::time::Instant;

use crate::metrics::{MirrorMetrics, Outcome};
use crate::registry::{Part, Registry, blob_path};
use coming::Coming;
pub use disk::MirrorError;
use disk::blocking;
pub use documents::{Document, Of, What};
use fetch::{Fetch, Shape};
use shelf::{NotKept, Shelf, Whole};
use way::{Id, PIECE, Step};

/// How often it is looked whether others need the room.
const LOOK: Duration = Duration::from_secs(30);

/// How long a blob that is not whole is kept that nobody reads.
const UNREAD_FOR: Duration = Duration::from_secs(3600);

/// The same where another one needs the room.
const UNREAD_FOR_ROOM: Duration = Duration::from_secs(60);

/// How often it is said at most that blobs go past the mirror.
const SAID_EACH: Duration = Duration::from_secs(60);

/// A blob that comes, once that is known. Whoever asks for it holds this while the registry is asked.
type Slot = Arc<tokio::sync::Mutex<Option<Arc<Coming>>>>;

/// What a location keeps.
pub struct Mirror {
    registry: Arc<Registry>,
    shelf: Arc<Shelf>,
    /// By repository, too: bytes that nobody looked at are those of who gave them, and given of that alone.
    coming: Mutex<BTreeMap<Of, Slot>>,
    metrics: MirrorMetrics,
    service: Service,
    /// Held by who reads a blob whole to see whether its bytes are right.
    looks: tokio::sync::Mutex<()>,
    said_at: Mutex<Option<Instant>>,
}

/// What a node gets when it asks for a blob.
pub enum Given {
    /// These bytes.
    Bytes(BoxStream<'static, io::Result<Bytes>>),
    /// The answer of the registry, of which nothing is kept.
    Passed(Response<Incoming>),
}

impl Mirror {
    /// That in a directory, of what a registry has; none, and nothing in the directory, where it may take nothing.
    pub fn open(
        dir: &Path,
        size: MirrorSize,
        registry: &Arc<Registry>,
        metrics: MirrorMetrics,
        service: &Service,
    ) -> Result<Option<Arc<Self>>, MirrorError> {
        if size == MirrorSize::NONE {
            return disk::remove_all(dir).map(|()| None);
        }
        let shelf = Arc::new(Shelf::open(dir.to_owned(), size, metrics.kept.clone())?);
        let (coming, looks, said_at) = Default::default();
        let (registry, service) = (Arc::clone(registry), service.clone());
        let mirror = Self { registry, shelf, coming, metrics, service, looks, said_at };
        let mirror = Arc::new(mirror);
        mirror.service.spawn_until_shutdown("mirror", Arc::clone(&mirror).keep());
        Ok(Some(mirror))
    }

    /// A blob, or a part of it, for who may have it of that repository.
    pub async fn blob(self: &Arc<Self>, of: &Of, part: Part) -> Result<Given, Refusal> {
        if let Some(given) = self.whole(of, part).await? {
            return Ok(given);
        }
        let slot = Arc::clone(self.coming().entry(of.clone()).or_default());
        let mut begun = slot.lock().await;
        // It may have become whole meanwhile.
        if let Some(given) = self.whole(of, part).await? {
            return Ok(given);
        }
        if let Some(coming) = begun.as_ref().filter(|coming| !coming.is_given_up()) {
            let wanted = within(part, coming.size)?;
            self.metrics.asked(Outcome::Coming);
            let reader = coming.join(wanted);
            return Ok(self.read(Arc::clone(coming), reader));
        }
        *begun = None;
        let (repository, digest) = of;
        let answer = self.registry.send(&blob_path(repository, digest), part.header()).await?;
        let shape = Shape::of(&answer).filter(|shape| shape.size > 0 && shape.start <= part.from);
        let Some(Shape { size, .. }) = shape else { return Ok(self.pass(answer)) };
        let coming = match self.begin(of, size).await {
            Ok(coming) => coming,
            Err(why) => {
                self.say(digest, &why);
                return Ok(self.pass(answer));
            }
        };
        let wanted = within(part, size)?;
        *begun = Some(Arc::clone(&coming));
        self.metrics.asked(Outcome::Coming);
        let reader = coming.join(wanted.clone());
        let fetch = coming.begin_fetch(wanted);
        Fetch::begin(self, &coming, fetch, Some(answer));
        Ok(self.read(coming, reader))
    }

    fn coming(&self) -> MutexGuard<'_, BTreeMap<Of, Slot>> {
        self.coming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A blob that is whole, if it is.
    async fn whole(
        self: &Arc<Self>,
        (repository, digest): &Of,
        part: Part,
    ) -> Result<Option<Given>, Refusal> {
        let Some(is_of) = self.shelf.find(digest, repository) else { return Ok(None) };
        if !is_of {
            self.registry.check_blob(repository, digest).await?;
        }
        let (shelf, digest, repository) = (Arc::clone(&self.shelf), *digest, repository.clone());
        let opened = blocking(move || {
            if !is_of {
                tell(shelf.add(&digest, &repository), "it has to be asked for again");
            }
            shelf.open_blob(&digest)
        });
        let Some(Whole { file, size, is_due }) = opened.await else { return Ok(None) };
        // Whatever is wanted of it: nobody else is told that it is due.
        if is_due {
            let look = Arc::clone(self).look(digest);
            self.service.spawn_request("look at a blob", look);
        }
        let wanted = within(part, size)?;
        self.metrics.asked(Outcome::Here);
        let (file, given) = (Arc::new(file), self.metrics.given.clone());
        let pieces = stream::try_unfold((file, wanted), move |(file, left)| {
            let given = given.clone();
            async move {
                if left.is_empty() {
                    return Ok(None);
                }
                let end = left.end.min(left.start + PIECE);
                let (from, reading) = (left.start..end, Arc::clone(&file));
                let piece = blocking(move || disk::read(&reading, from)).await?;
                given.inc_by(piece.len() as u64);
                Ok(Some((piece, (file, end..left.end))))
            }
        });
        Ok(Some(Given::Bytes(pieces.boxed())))
    }

    /// What a reader gets of a blob that comes.
    fn read(self: &Arc<Self>, coming: Arc<Coming>, id: Id) -> Given {
        let reader = Reader { mirror: Arc::clone(self), coming, id };
        let pieces = stream::try_unfold(reader, async |reader: Reader| {
            let piece = reader.next().await?;
            Ok(piece.map(|piece| (piece, reader)))
        });
        Given::Bytes(pieces.boxed())
    }

    fn pass(&self, answer: Response<Incoming>) -> Given {
        self.metrics.asked(Outcome::Passed);
        Given::Passed(answer)
    }

    async fn begin(&self, of: &Of, size: u64) -> Result<Arc<Coming>, NotKept> {
        let begin = || {
            let (shelf, of) = (Arc::clone(&self.shelf), of.clone());
            blocking(move || Coming::begin(&shelf, of, size))
        };
        match begin().await {
            Err(NotKept::Room { .. }) => {
                self.drop_unread(UNREAD_FOR_ROOM);
                begin().await
            }
            begun => begun,
        }
    }

    fn say(&self, digest: &Digest, why: &NotKept) {
        let mut said_at = self.said_at.lock().unwrap_or_else(PoisonError::into_inner);
        if said_at.is_none_or(|at| at.elapsed() >= SAID_EACH) {
            *said_at = Some(Instant::now());
            let error = why as &dyn std::error::Error;
            tracing::warn!(%digest, error, "blobs come from the registry past the mirror");
        }
    }

    /// All of a blob has come: it is kept when it is what it should be.
    async fn finish(&self, coming: &Arc<Coming>) {
        let alone = self.looks.lock().await;
        let kept = Arc::clone(coming);
        match blocking(move || kept.keep()).await {
            Ok(None) => {}
            Ok(Some(found)) => {
                let (repository, digest) = &coming.of;
                tracing::warn!(%repository, %digest, %found, "the registry gave other bytes");
                coming.give_up("the bytes that came are not those of the digest".to_owned());
            }
            Err(error) => tell(Err(error), "a blob is not kept"),
        }
        drop(alone);
        let slot = self.coming().get(&coming.of).cloned();
        let Some(slot) = slot else { return };
        let mut begun = slot.lock().await;
        // Another one may have been begun meanwhile.
        if begun.as_ref().is_some_and(|begun| Arc::ptr_eq(begun, coming)) {
            *begun = None;
        }
    }

    /// Looks whether the bytes of a blob are still right.
    async fn look(self: Arc<Self>, digest: Digest) {
        let _alone = self.looks.lock().await;
        let shelf = Arc::clone(&self.shelf);
        match blocking(move || shelf.is_right(&digest)).await {
            Ok(true) => return,
            Ok(false) => tracing::warn!(%digest, "the disk changed a blob of the mirror"),
            Err(error) => tell(Err(error), "a blob of the mirror cannot be read"),
        }
        self.shelf.forget(&digest);
    }

    /// Gives up what is not whole and nobody has read for so long.
    fn drop_unread(&self, span: Duration) {
        let is_used = |begun: Option<&Arc<Coming>>| begun.is_some_and(|it| !it.is_idle(span));
        self.coming().retain(|_, slot| {
            // Where others have the slot, somebody is about to read what it has.
            Arc::strong_count(slot) > 1
                || slot.try_lock().is_ok_and(|begun| is_used(begun.as_ref()))
        });
    }

    /// Gives room back to those who share the disk. Never ends.
    async fn keep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK).await;
            let shelf = Arc::clone(&self.shelf);
            let lacks_room = blocking(move || shelf.lacks_room()).await;
            self.drop_unread(if lacks_room { UNREAD_FOR_ROOM } else { UNREAD_FOR });
            let shelf = Arc::clone(&self.shelf);
            tell(blocking(move || shelf.clear()).await, "no room is given back");
        }
    }

    /// A document that is kept.
    pub async fn document(&self, what: What, of: &Of) -> Option<Document> {
        let (shelf, of) = (Arc::clone(&self.shelf), of.clone());
        blocking(move || shelf.documents.read(what, &of)).await
    }

    /// Keeps a document.
    pub async fn keep_document(&self, what: What, of: &Of, document: Document) {
        let (shelf, of) = (Arc::clone(&self.shelf), of.clone());
        let kept = blocking(move || shelf.documents.keep(what, &of, &document));
        tell(kept.await, "a document is not kept");
    }
}

/// The part of a blob of this size.
fn within(part: Part, size: u64) -> Result<Range<u64>, Refusal> {
    part.within(size).ok_or_else(|| {
        let detail = format!("the blob has {size} bytes, and those from {} on are none", part.from);
        Problem::new(ProblemCode::Unavailable, detail).into()
    })
}

/// Tells of what did not work and does not matter to who asks.
fn tell(done: Result<(), MirrorError>, what: &'static str) {
    if let Err(error) = done {
        tracing::warn!(error = &error as &dyn std::error::Error, "the mirror: {what}");
    }
}

/// Who reads a blob that comes, until it is dropped.
struct Reader {
    mirror: Arc<Mirror>,
    coming: Arc<Coming>,
    id: Id,
}

impl Reader {
    async fn next(&self) -> io::Result<Option<Bytes>> {
        loop {
            match self.coming.step(self.id).await {
                Step::End => return Ok(None),
                Step::Broken(why) => return Err(io::Error::other(why)),
                Step::Fetch(fetch) => {
                    Fetch::begin(&self.mirror, &self.coming, fetch, None);
                }
                Step::Wait => {}
                Step::Read(part) => {
                    let (coming, id) = (Arc::clone(&self.coming), self.id);
                    let piece = blocking(move || coming.read(id, part)).await?;
                    self.mirror.metrics.given.inc_by(piece.len() as u64);
                    return Ok(Some(piece));
                }
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.coming.leave(self.id);
    }
}
