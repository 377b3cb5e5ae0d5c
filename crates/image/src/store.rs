//! The images on a node's disk.
//!
//! ```text
//! lock               held while a store is open: one process per directory
//! images/<digest>.json  its time is when the image was last used
//! indexed/<DiffID>/  data (the contents of a layer's files), index (the rest) and report.json
//! metadata/<digest>  an image as EROFS, whose files lie in the data of its layers
//! layers/<DiffID>/   the same layer for a kernel without EROFS: fs/, a lower directory of overlayfs
//! attributes/<digest>/  directory attributes of such an image that no single layer can hold
//! beginnings/<blob>  what came of a large layer whose pull ended; for a day
//! staging/ trash/    emptied when the store is opened
//! ```
//!
//! The directory is the truth; there is no database beside it. A layer is written to `staging`, synced
//! and renamed to its name; an image's record is renamed into place after all its layers. So whatever
//! has a name is whole and on the disk, and a crash leaves only what the next opening throws away.
//! Layers are named by the digest of their uncompressed archive and shared by all images.

mod arriving;
pub(crate) mod blank;
mod collect;
mod form;
mod open;
mod record;
mod room;
mod staging;
mod standing;
#[cfg(test)]
mod tests;
mod used;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use longshore_types::Digest;
use rustix::fd::OwnedFd;

use crate::config::ImageConfig;
use crate::limits::Limits;
use crate::mount::{IdMap, ImageTree, KernelPath, MountRootfsError, mount_tree};

pub(crate) use arriving::Arrival;
pub use arriving::Presence;
pub use collect::{CollectError, Collected};
pub(crate) use form::{DATA, Form, INDEX};
pub use open::OpenStoreError;
pub(crate) use record::{REPORT, StoredImage, report_text};
pub(crate) use room::{Given, Reservation};
pub use room::{Lack, MakeRoom, NoRoom, Space, UNPACKED};
pub(crate) use staging::Staging;
pub(crate) use standing::Standings;
pub use used::{HeldImage, Stocked};

/// The directory of beginnings of blobs.
const BEGINNINGS: &str = "beginnings";

/// What a file there ends with that a layer's frames come to.
pub(crate) const FRAMES: &str = "data";

/// For how long a beginning of a blob is kept that nobody adds to.
const BEGINNING_KEPT: Duration = Duration::from_secs(24 * 3600);

/// The images of a node. Cheap to clone; all clones are one store.
#[derive(Clone)]
pub struct ImageStore {
    pub(crate) inner: Arc<Inner>,
}

/// An image that is whole and on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The digest by which it was pulled: of a manifest or an index.
    pub digest: Digest,
    /// The digest of the manifest that an index led to on this machine, else `digest` again.
    pub manifest: Digest,
    /// How it wants to be run.
    pub config: ImageConfig,
    /// What is mounted of it.
    pub tree: ImageTree,
}

impl Image {
    /// Mounts it at `target`, writable.
    ///
    /// What is written goes to `base/upper`; `base` must lie on one file system and be used for this
    /// mount only. `base` and `target` are made when they are not there; both belong in a directory that
    /// only root may enter. Devices in the tree do nothing (`nodev`). When the same root file system is
    /// mounted there already, nothing is done.
    ///
    /// With `ids` every file belongs to the id of the machine that its owner is in that range, on disk
    /// too for what is written; a file of an id that has none there is nobody's and cannot be changed.
    /// The image is mounted for a moment in a directory `lower` beside `target`.
    pub fn mount(
        &self,
        base: &Path,
        target: &Path,
        ids: Option<IdMap<'_>>,
    ) -> Result<(), MountRootfsError> {
        mount_tree(&self.tree, base, target, ids)
    }
}

pub(crate) struct Inner {
    root: PathBuf,
    pub limits: Limits,
    kernel: KernelPath,
    state: Mutex<State>,
    flights: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
    room: room::Room,
    arrivals: arriving::Arrivals,
    /// How neighbours did that were asked for frames.
    pub standings: Standings,
    n_staged: AtomicU64,
    /// Held by who deletes the files in the trash.
    trash_lock: Mutex<()>,
    /// Locked for as long as the store is open; the kernel lets go when the process dies.
    _lock: OwnedFd,
}

/// An image, with what is held of it while it is mounted.
struct Known {
    stored: StoredImage,
    tree: ImageTree,
}

#[derive(Default)]
struct State {
    images: BTreeMap<Digest, Known>,
    /// Layers that pulls in progress need, with how many need each.
    pins: HashMap<Digest, usize>,
    /// Images that somebody uses, with how many do.
    held: HashMap<Digest, usize>,
}

impl ImageStore {
    /// The image with this digest, when it is here.
    pub fn image(&self, digest: &Digest) -> Option<Image> {
        let state = self.inner.state();
        state.images.get(digest).map(Known::image)
    }

    /// How images get to the kernel here.
    pub fn kernel_path(&self) -> KernelPath {
        self.inner.kernel
    }

    /// Every image, by digest.
    pub fn list_images(&self) -> Vec<Image> {
        let state = self.inner.state();
        state.images.values().map(Known::image).collect()
    }
}

impl Known {
    fn image(&self) -> Image {
        let Self { stored, tree } = self;
        Image {
            digest: stored.digest,
            manifest: stored.manifest,
            config: stored.config.run.clone(),
            tree: tree.clone(),
        }
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        // The state is changed in single steps, so a panic elsewhere leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// DiffIDs of an image's layers as its config has them, and the form that they have; none when
    /// the image is not here.
    pub fn layers_of(&self, image: &Digest) -> (Form, Vec<Digest>) {
        let state = self.state();
        match state.images.get(image) {
            Some(Known { stored, .. }) => (stored.form, stored.config.diff_ids.clone()),
            None => (self.form(), Vec::new()),
        }
    }

    /// The directory of the store.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn directory(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn record_path(&self, image: &Digest) -> PathBuf {
        self.directory("images").join(format!("{}.json", image.hex()))
    }

    /// Where the beginning of a blob is kept whose pull may end before it does.
    pub fn beginning_path(&self, blob: &Digest) -> PathBuf {
        self.directory(BEGINNINGS).join(blob.hex())
    }

    /// The lock that lets one pull at a time fetch what has this digest; the others wait and then find
    /// it there.
    pub fn flight(&self, digest: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        flights.retain(|_, flight| flight.strong_count() > 0);
        if let Some(flight) = flights.get(digest).and_then(Weak::upgrade) {
            return flight;
        }
        let flight = Arc::default();
        flights.insert(*digest, Arc::downgrade(&flight));
        flight
    }

    /// Keeps layers from being collected until the guard is dropped.
    pub fn pin(self: &Arc<Self>, diff_ids: &[Digest]) -> Pins {
        let mut state = self.state();
        for diff_id in diff_ids {
            *state.pins.entry(*diff_id).or_default() += 1;
        }
        Pins { store: Arc::clone(self), diff_ids: diff_ids.to_vec() }
    }
}

/// Layers that must not be collected for as long as this lives.
pub(crate) struct Pins {
    store: Arc<Inner>,
    diff_ids: Vec<Digest>,
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut state = self.store.state();
        for diff_id in &self.diff_ids {
            if let Some(count) = state.pins.get_mut(diff_id) {
                *count -= 1;
                if *count == 0 {
                    state.pins.remove(diff_id);
                }
            }
        }
    }
}

/// A file system operation of the store that failed.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path:?}", path = .path.display())]
pub struct StoreIoError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl StoreIoError {
    pub(crate) fn of(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { action, path, source }
    }
}

/// Puts a directory's entries on the disk.
fn sync_directory(path: &Path) -> Result<(), StoreIoError> {
    std::fs::File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(StoreIoError::of("syncing", path))
}
