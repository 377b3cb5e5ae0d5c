//! Which images are used, when each was last, and what each takes on the disk.
//!
//! When an image was last used is the time of its record's file: it is there after a restart, costs no write of
//! its own format, and a record that was copied or restored has one as well.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{File, FileTimes};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use longshore_types::{ByteCount, Digest};

use super::{Form, Image, ImageStore, Inner, Known, StoreIoError};

/// What an entry of an archive takes as a file of its own, beside its contents.
const PER_ENTRY: u64 = 4096;

/// An image that must not be removed for as long as this lives.
pub struct HeldImage {
    /// The image.
    pub image: Image,
    store: Arc<Inner>,
}

impl HeldImage {
    /// Notes that it is used now. What cannot be noted makes it look older than it is, which is told in the log.
    pub fn note_use(&self) {
        self.store.note_use(&self.image.digest);
    }
}

impl Drop for HeldImage {
    fn drop(&mut self) {
        let mut state = self.store.state();
        if let Some(count) = state.held.get_mut(&self.image.digest) {
            *count -= 1;
            if *count == 0 {
                state.held.remove(&self.image.digest);
            }
        }
    }
}

/// An image on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stocked {
    /// Its digest.
    pub digest: Digest,
    /// When it was last used, or came.
    pub last_used: SystemTime,
    /// Whether it is held.
    pub held: bool,
    /// What belongs to it alone.
    pub own: ByteCount,
    /// What each layer takes that it has.
    pub layers: BTreeMap<Digest, ByteCount>,
}

impl Stocked {
    /// What it takes with its layers.
    pub fn size(&self) -> ByteCount {
        ByteCount(self.own.0 + self.layers.values().map(|size| size.0).sum::<u64>())
    }
}

impl ImageStore {
    /// The image with this digest, when it is here, which stays until that is dropped.
    pub fn hold(&self, digest: &Digest) -> Option<HeldImage> {
        let mut state = self.inner.state();
        let image = state.images.get(digest).map(Known::image)?;
        *state.held.entry(*digest).or_default() += 1;
        Some(HeldImage { image, store: Arc::clone(&self.inner) })
    }

    /// Every image with what it takes, by digest. Blocks while files are looked at.
    pub fn stock(&self) -> Result<Vec<Stocked>, StoreIoError> {
        let images: Vec<_> = {
            let state = self.inner.state();
            let images = state.images.values();
            images
                .map(|known| (known.stored.clone(), state.held.contains_key(&known.stored.digest)))
                .collect()
        };
        let mut sizes = HashMap::new();
        let mut stock = Vec::with_capacity(images.len());
        for (image, held) in images {
            let record = self.inner.record_path(&image.digest);
            // One that was removed since is none any more.
            let Some(last_used) = found(&record, record.metadata())? else { continue };
            let mut layers = BTreeMap::new();
            for layer in &image.visible_layers {
                let size = match sizes.get(&(image.form, *layer)) {
                    Some(size) => *size,
                    None => self.inner.layer_size(image.form, layer)?,
                };
                sizes.insert((image.form, *layer), size);
                layers.insert(*layer, size);
            }
            let own = match image.has_files_of_its_own() {
                true => size_of(&self.inner.image_path(image.form, &image.digest))?,
                false => ByteCount(0),
            };
            let last_used =
                last_used.modified().map_err(StoreIoError::of("looking at", &record))?;
            stock.push(Stocked { digest: image.digest, last_used, held, own, layers });
        }
        Ok(stock)
    }

    /// The layers that pulls under way count on.
    pub fn pulled_layers(&self) -> BTreeSet<Digest> {
        self.inner.state().pins.keys().copied().collect()
    }
}

impl Inner {
    fn note_use(&self, digest: &Digest) {
        let path = self.record_path(digest);
        let times = FileTimes::new().set_modified(SystemTime::now());
        if let Err(error) = File::open(&path).and_then(|file| file.set_times(times)) {
            tracing::warn!(%error, path = %path.display(), "cannot note the use of an image");
        }
    }

    /// What a layer takes: blocks where it is a few files, an estimate where it is a tree of them, since each of
    /// those would have to be looked at.
    fn layer_size(&self, form: Form, layer: &Digest) -> Result<ByteCount, StoreIoError> {
        let path = self.layer_path(form, layer);
        match form {
            Form::Erofs => size_of(&path),
            // One that has just gone takes nothing.
            Form::Directories if !path.is_dir() => Ok(ByteCount(0)),
            Form::Directories => {
                // One that has just gone, or that a power cut spoilt, must not keep the others here.
                let Ok(report) = self.read_layer_report(form, layer) else {
                    return Ok(ByteCount(0));
                };
                let entries = report.entries.saturating_mul(PER_ENTRY);
                Ok(ByteCount(report.unpacked.0.saturating_add(entries)))
            }
        }
    }
}

/// What a file, or a directory with the files that lie in it, takes; nothing for what is not there.
fn size_of(path: &Path) -> Result<ByteCount, StoreIoError> {
    let Some(metadata) = found(path, path.symlink_metadata())? else { return Ok(ByteCount(0)) };
    let mut blocks = metadata.blocks();
    if metadata.is_dir() {
        let Some(listing) = found(path, std::fs::read_dir(path))? else { return Ok(ByteCount(0)) };
        for entry in listing {
            let entry = entry.map_err(StoreIoError::of("listing", path))?;
            if let Some(metadata) = found(&entry.path(), entry.metadata())? {
                blocks += metadata.blocks();
            }
        }
    }
    Ok(ByteCount(blocks.saturating_mul(512)))
}

/// What was looked at, unless it is not there.
fn found<T>(path: &Path, looked: std::io::Result<T>) -> Result<Option<T>, StoreIoError> {
    match looked {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreIoError::of("looking at", path)(error)),
    }
}
