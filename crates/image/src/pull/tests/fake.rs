//! A registry in memory that can be told to misbehave.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, Stream, StreamExt, stream};
use serde_json::json;
use tokio::sync::watch;

use super::images::INDEX;
use super::*;
use crate::config::host_architecture;
use crate::source::{FetchedManifest, Given, Part};

/// Bytes in a piece of a stream.
const PIECE: usize = 4096;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Each stream ends with an error after so many bytes.
    BreaksEvery(usize),
    /// Each stream stops giving anything after so many bytes.
    StallsEvery(usize),
    /// Every request is answered by an error that may pass.
    AlwaysBreaks,
    /// Stops at this byte of each stream until the source is healed.
    HangsAt(usize),
    /// The bytes of the blob from this one on are not given until the source is healed.
    HangsBehind(usize),
    /// A part is given with all that follows it.
    GoesOn,
    /// Whatever part is asked for, the whole blob is given.
    HasNoParts,
    /// Each part takes so long, one after the other whoever asks.
    Slow(Duration),
}

pub(super) struct FakeSource {
    state: Mutex<State>,
    n_layer_requests: AtomicUsize,
    healed: watch::Sender<bool>,
    /// Held by the part that comes now of those that take long.
    turn: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct State {
    manifests: HashMap<Digest, FetchedManifest>,
    blobs: HashMap<Digest, Vec<u8>>,
    layers: HashSet<Digest>,
    faults: HashMap<Digest, Fault>,
    n_bytes_given: HashMap<Digest, u64>,
    /// The artifacts of images, by their manifests; an empty one cannot be had.
    converted: HashMap<Digest, Vec<u8>>,
}

impl Default for FakeSource {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            n_layer_requests: AtomicUsize::new(0),
            healed: watch::channel(false).0,
            turn: Arc::default(),
        }
    }
}

impl FakeSource {
    pub fn add_blob(&self, bytes: Vec<u8>) {
        self.state.lock().unwrap().blobs.insert(digest_of(&bytes), bytes);
    }

    pub fn add_layer(&self, bytes: Vec<u8>) {
        self.state.lock().unwrap().layers.insert(digest_of(&bytes));
        self.add_blob(bytes);
    }

    pub fn add_manifest(&self, media_type: &str, bytes: Vec<u8>) -> Digest {
        let digest = digest_of(&bytes);
        let fetched = FetchedManifest { media_type: media_type.to_owned(), bytes: bytes.into() };
        self.state.lock().unwrap().manifests.insert(digest, fetched);
        digest
    }

    /// Gives this when it is asked what is converted of an image; nothing of it stands for an error.
    pub fn add_converted(&self, manifest: &Digest, artifact: Vec<u8>) {
        self.state.lock().unwrap().converted.insert(*manifest, artifact);
    }

    /// An index with that manifest for this machine and another for a different one.
    pub fn publish_index(&self, manifest: &Digest) -> Digest {
        let size = self.state.lock().unwrap().manifests[manifest].bytes.len();
        let entry = |architecture: &str, digest: &Digest| {
            json!({
                "mediaType": super::images::MANIFEST, "digest": digest, "size": size,
                "platform": { "os": "linux", "architecture": architecture },
            })
        };
        let entries = [entry("z80", &digest_of(b"")), entry(host_architecture(), manifest)];
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries });
        self.add_manifest(INDEX, index.to_string().into_bytes())
    }

    pub fn manifest_size(&self, digest: &Digest) -> u64 {
        self.state.lock().unwrap().manifests[digest].bytes.len() as u64
    }

    pub fn replace_blob(&self, digest: &Digest, change: impl FnOnce(&mut Vec<u8>)) {
        change(self.state.lock().unwrap().blobs.get_mut(digest).unwrap());
    }

    pub fn remove_blob(&self, digest: &Digest) {
        self.state.lock().unwrap().blobs.remove(digest).unwrap();
    }

    pub fn replace_manifest(&self, digest: &Digest, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state.lock().unwrap();
        let fetched = state.manifests.get_mut(digest).unwrap();
        let mut bytes = fetched.bytes.to_vec();
        change(&mut bytes);
        fetched.bytes = bytes.into();
    }

    pub fn restate_manifest(&self, digest: &Digest, media_type: &str) {
        let mut state = self.state.lock().unwrap();
        state.manifests.get_mut(digest).unwrap().media_type = media_type.to_owned();
    }

    pub fn remove_manifest(&self, digest: &Digest) {
        self.state.lock().unwrap().manifests.remove(digest).unwrap();
    }

    pub fn fault(&self, blob: &Digest, fault: Fault) {
        self.state.lock().unwrap().faults.insert(*blob, fault);
    }

    /// Ends every fault, hanging streams go on.
    pub fn heal(&self) {
        self.state.lock().unwrap().faults.clear();
        self.go_on();
    }

    /// Lets hanging streams go on.
    pub fn go_on(&self) {
        self.healed.send_replace(true);
    }

    pub fn n_layer_requests(&self) -> usize {
        self.n_layer_requests.load(Ordering::Relaxed)
    }

    pub fn n_bytes_given(&self, blob: &Digest) -> u64 {
        self.state.lock().unwrap().n_bytes_given.get(blob).copied().unwrap_or(0)
    }

    fn give(&self, digest: &Digest, part: Part) -> Result<Given, SourceError> {
        let mut state = self.state.lock().unwrap();
        if state.layers.contains(digest) {
            self.n_layer_requests.fetch_add(1, Ordering::Relaxed);
        }
        let missing = || SourceError::new("no such blob", Retry::Pointless);
        let bytes = state.blobs.get(digest).ok_or_else(missing)?;
        let fault = state.faults.get(digest).copied();
        if fault == Some(Fault::HasNoParts) {
            return Ok(Given::Whole(pieces(bytes).boxed()));
        }
        let after =
            bytes.get(part.from as usize..).filter(|rest| part.from == 0 || !rest.is_empty());
        let no_part = || SourceError::new("no such part", Retry::Pointless);
        let mut rest = after.ok_or_else(no_part)?.to_vec();
        if fault != Some(Fault::GoesOn) {
            rest.truncate(part.n_bytes.map_or(usize::MAX, |n_bytes| n_bytes.get() as usize));
        }
        let broken = || Err(SourceError::new("the connection broke", Retry::CanHelp));
        let n_given = match fault {
            Some(Fault::AlwaysBreaks) => return broken(),
            Some(Fault::BreaksEvery(n_bytes) | Fault::StallsEvery(n_bytes)) => n_bytes,
            Some(Fault::HangsAt(n_bytes)) => n_bytes,
            Some(Fault::HangsBehind(end)) => end.saturating_sub(part.from as usize),
            Some(Fault::GoesOn | Fault::HasNoParts | Fault::Slow(_)) | None => rest.len(),
        };
        let (now, later) = rest.split_at(n_given.min(rest.len()));
        *state.n_bytes_given.entry(*digest).or_default() += now.len() as u64;
        if let Some(Fault::Slow(takes)) = fault {
            let (turn, pieces) = (Arc::clone(&self.turn), pieces(now));
            let come = async move {
                let _turn = turn.lock().await;
                tokio::time::sleep(takes).await;
                pieces
            };
            return Ok(Given::Part(stream::once(come).flatten().boxed()));
        }
        if later.is_empty() {
            return Ok(Given::Part(pieces(now).boxed()));
        }
        let then = match fault {
            Some(Fault::BreaksEvery(_)) => {
                let error = SourceError::new("the connection broke", Retry::CanHelp);
                stream::iter([Err(error)]).boxed()
            }
            Some(Fault::StallsEvery(_)) => stream::pending().boxed(),
            _ => {
                let mut healed = self.healed.subscribe();
                let rest = pieces(later);
                let wait = async move {
                    healed.wait_for(|healed| *healed).await.unwrap();
                    rest
                };
                stream::once(wait).flatten().boxed()
            }
        };
        Ok(Given::Part(pieces(now).chain(then).boxed()))
    }
}

fn pieces(bytes: &[u8]) -> impl Stream<Item = Result<Bytes, SourceError>> + Send + use<> {
    let pieces: Vec<_> = bytes.chunks(PIECE).map(Bytes::copy_from_slice).collect();
    stream::iter(pieces.into_iter().map(Ok))
}

impl Source for FakeSource {
    fn manifest<'a>(
        &'a self,
        _repository: &'a Repository,
        digest: &'a Digest,
    ) -> BoxFuture<'a, Result<FetchedManifest, SourceError>> {
        let found = self.state.lock().unwrap().manifests.get(digest).cloned();
        let missing = || SourceError::new("no such manifest", Retry::Pointless);
        async move { found.ok_or_else(missing) }.boxed()
    }

    fn blob<'a>(
        &'a self,
        _repository: &'a Repository,
        digest: &'a Digest,
        part: Part,
    ) -> BoxFuture<'a, Result<Given, SourceError>> {
        async move { self.give(digest, part) }.boxed()
    }

    fn converted<'a>(
        &'a self,
        _repository: &'a Repository,
        manifest: &'a Digest,
    ) -> BoxFuture<'a, Result<Option<Bytes>, SourceError>> {
        let found = self.state.lock().unwrap().converted.get(manifest).cloned();
        let away = || SourceError::new("the registry is away", Retry::CanHelp);
        async move {
            match found {
                Some(artifact) if artifact.is_empty() => Err(away()),
                found => Ok(found.map(Bytes::from)),
            }
        }
        .boxed()
    }
}
