//! Frames of layers for neighbours: of layers that are here, and of those that are on their way.
//!
//! A neighbour checks what it is given; so nothing is checked here, and any layer that is kept as contents can be
//! given, however it came.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use longshore_types::Digest;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{DATA, Form, ImageStore, Inner, StoreIoError};
use crate::converted::FRAME;

/// The layers that are on their way.
#[derive(Default)]
pub(crate) struct Arrivals {
    layers: Mutex<HashMap<Digest, Weak<Arriving>>>,
    /// Told when more of any of them is here.
    news: watch::Sender<()>,
}

/// The contents of a layer while its frames come.
struct Arriving {
    path: PathBuf,
    file: File,
    /// Which frames are here.
    here: Mutex<Vec<bool>>,
}

/// Has a layer known as one that is on its way, until it is dropped.
pub(crate) struct Arrival {
    store: Arc<Inner>,
    diff_id: Digest,
    arriving: Arc<Arriving>,
}

/// Whether a frame can be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It is here.
    Here,
    /// Its layer is on its way, and it is not here yet.
    OnItsWay,
    /// Its layer is not here, and not on its way.
    NoLayer,
    /// Its layer has no such frame.
    NoFrame,
}

/// Where a frame is.
enum Place {
    Arriving(Arc<Arriving>),
    /// On its way.
    NotHere,
    /// In the layer, if that is here.
    Layer(PathBuf),
}

impl Arriving {
    fn here(&self) -> MutexGuard<'_, Vec<bool>> {
        // It is changed in single steps, so a panic elsewhere leaves it whole.
        self.here.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Arrival {
    /// The frames of a layer come to this file; those that are not missing are there.
    pub fn new(
        store: &Arc<Inner>,
        diff_id: &Digest,
        (path, file): (&Path, &File),
        (n_frames, missing): (usize, impl Iterator<Item = usize>),
    ) -> io::Result<Self> {
        let mut here = vec![true; n_frames];
        missing.for_each(|idx| here[idx] = false);
        let (path, file, here) = (path.to_owned(), file.try_clone()?, Mutex::new(here));
        let arriving = Arc::new(Arriving { path, file, here });
        let mut layers = store.arrivals.layers();
        layers.retain(|_, arriving| arriving.strong_count() > 0);
        layers.insert(*diff_id, Arc::downgrade(&arriving));
        drop(layers);
        store.arrivals.news.send_replace(());
        Ok(Self { store: Arc::clone(store), diff_id: *diff_id, arriving })
    }

    /// A frame is in its place.
    pub fn mark(&self, idx: usize) {
        self.arriving.here()[idx] = true;
        self.store.arrivals.news.send_replace(());
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        // It has become a layer, which can be looked for, or it never will. Whoever is told must not find it here.
        let mut layers = self.store.arrivals.layers();
        let own = Arc::downgrade(&self.arriving);
        if layers.get(&self.diff_id).is_some_and(|known| known.ptr_eq(&own)) {
            layers.remove(&self.diff_id);
        }
        drop(layers);
        self.store.arrivals.news.send_replace(());
    }
}

impl Arrivals {
    fn layers(&self) -> MutexGuard<'_, HashMap<Digest, Weak<Arriving>>> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ImageStore {
    /// Whether a frame of a layer is here, once it is, or after `patience`.
    pub async fn frame_comes(&self, layer: &Digest, idx: usize, patience: Duration) -> Presence {
        let until = Instant::now() + patience;
        let mut news = self.inner.arrivals.news.subscribe();
        loop {
            news.mark_unchanged();
            let presence = self.inner.presence(layer, idx);
            if let Presence::Here | Presence::NoFrame = presence {
                return presence;
            }
            // The sender lives as long as the store; without news the time is over.
            if tokio::time::timeout_at(until, news.changed()).await.is_err() {
                return presence;
            }
        }
    }

    /// The contents of a frame of a layer; of one that is not here, once it is, and nothing when that takes longer
    /// than `patience`.
    pub async fn frame(
        &self,
        layer: &Digest,
        idx: usize,
        patience: Duration,
    ) -> Result<Option<Bytes>, StoreIoError> {
        let until = Instant::now() + patience;
        let mut news = self.inner.arrivals.news.subscribe();
        loop {
            news.mark_unchanged();
            if let Some(bytes) = self.inner.read_frame(layer, idx).await? {
                return Ok(Some(bytes));
            }
            // The sender lives as long as the store; without news the time is over.
            if tokio::time::timeout_at(until, news.changed()).await.is_err() {
                return Ok(None);
            }
        }
    }
}

impl Inner {
    fn presence(&self, layer: &Digest, idx: usize) -> Presence {
        let arriving = self.arrivals.layers().get(layer).and_then(Weak::upgrade);
        if let Some(arriving) = arriving {
            return match arriving.here().get(idx) {
                Some(true) => Presence::Here,
                Some(false) => Presence::OnItsWay,
                None => Presence::NoFrame,
            };
        }
        let path = self.layer_path(Form::Erofs, layer).join(DATA);
        match std::fs::metadata(path) {
            Ok(meta) if (idx as u64).saturating_mul(FRAME as u64) < meta.len() => Presence::Here,
            Ok(_) => Presence::NoFrame,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Presence::NoLayer,
            // Who reads it says what is wrong.
            Err(_) => Presence::Here,
        }
    }

    async fn read_frame(&self, layer: &Digest, idx: usize) -> Result<Option<Bytes>, StoreIoError> {
        let place = self.place_of(layer, idx);
        if let Place::NotHere = place {
            return Ok(None);
        }
        // Only a shutdown ends it early, or a panic, which has been told.
        tokio::task::spawn_blocking(move || read(place, idx)).await.unwrap_or(Ok(None))
    }

    fn place_of(&self, layer: &Digest, idx: usize) -> Place {
        let arriving = self.arrivals.layers().get(layer).and_then(Weak::upgrade);
        let Some(arriving) = arriving else {
            return Place::Layer(self.layer_path(Form::Erofs, layer).join(DATA));
        };
        let is_here = arriving.here().get(idx) == Some(&true);
        if is_here { Place::Arriving(arriving) } else { Place::NotHere }
    }
}

/// Reads a frame; nothing where there is none.
fn read(place: Place, idx: usize) -> Result<Option<Bytes>, StoreIoError> {
    match place {
        Place::NotHere => Ok(None),
        Place::Arriving(arriving) => read_at(&arriving.file, &arriving.path, idx),
        Place::Layer(path) => match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => read_at(&opened.map_err(StoreIoError::of("opening", &path))?, &path, idx),
        },
    }
}

fn read_at(file: &File, path: &Path, idx: usize) -> Result<Option<Bytes>, StoreIoError> {
    let read = || {
        let from = (idx as u64).saturating_mul(FRAME as u64);
        let n_bytes = file.metadata()?.len().saturating_sub(from).min(FRAME as u64);
        let mut bytes = vec![0; n_bytes as usize];
        file.read_exact_at(&mut bytes, from)?;
        Ok((!bytes.is_empty()).then(|| bytes.into()))
    };
    read().map_err(StoreIoError::of("reading", path))
}
