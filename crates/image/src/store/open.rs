//! Opening a store: one owner, no leftovers.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use longshore_types::Digest;
use rustix::fs::FlockOperation;

use super::record::RecordError;
use super::{ImageStore, Inner, State, StoreIoError, StoredImage};
use crate::limits::Limits;

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenStoreError {
    /// Another process, or another store of this one, has it open.
    #[error("the image store {path:?} is open elsewhere", path = .0.display())]
    InUse(PathBuf),
    /// The disk refused.
    #[error("preparing the image store")]
    Io(#[from] StoreIoError),
}

const DIRECTORIES: [&str; 5] = ["layers", "images", "attributes", "staging", "trash"];

impl ImageStore {
    /// Opens the store in `root`, made when it is not there, and removes what a crash left behind.
    ///
    /// Only root may enter it: setuid files of images must not be reachable for users of the host.
    pub fn open(root: &Path, limits: Limits) -> Result<Self, OpenStoreError> {
        for path in [root.to_owned()].into_iter().chain(DIRECTORIES.map(|name| root.join(name))) {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(StoreIoError::of("creating", &path))?;
        }
        std::fs::set_permissions(root, PermissionsExt::from_mode(0o700))
            .map_err(StoreIoError::of("closing to others", root))?;
        let lock = lock(root)?;
        empty(&root.join("staging"))?;
        empty(&root.join("trash"))?;
        let images = read_images(root)?;
        remove_orphaned_attributes(root, &images)?;
        Ok(Self {
            inner: Arc::new(Inner {
                root: root.to_owned(),
                limits,
                state: Mutex::new(State { images, ..State::default() }),
                flights: Mutex::default(),
                n_staged: AtomicU64::new(0),
                trash_lock: Mutex::default(),
                _lock: lock.into(),
            }),
        })
    }
}

fn lock(root: &Path) -> Result<File, OpenStoreError> {
    let path = root.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(StoreIoError::of("opening", &path))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenStoreError::InUse(root.to_owned())),
        Err(errno) => Err(StoreIoError::of("locking", &path)(errno.into()).into()),
    }
}

/// Removes everything in a directory of ours.
fn empty(path: &Path) -> Result<(), StoreIoError> {
    for entry in std::fs::read_dir(path).map_err(StoreIoError::of("listing", path))? {
        let entry = entry.map_err(StoreIoError::of("listing", path))?;
        remove(&entry.path())?;
    }
    Ok(())
}

/// Removes a file or a directory with all that is in it.
pub(super) fn remove(path: &Path) -> Result<(), StoreIoError> {
    let metadata = path.symlink_metadata().map_err(StoreIoError::of("looking at", path))?;
    match metadata.is_dir() {
        true => std::fs::remove_dir_all(path),
        false => std::fs::remove_file(path),
    }
    .map_err(StoreIoError::of("removing", path))
}

/// Reads the records of images. One that cannot be used is removed: the image is pulled again when
/// it is needed, which repairs whatever was wrong.
fn read_images(root: &Path) -> Result<BTreeMap<Digest, StoredImage>, StoreIoError> {
    let directory = root.join("images");
    let mut images = BTreeMap::new();
    let listing = std::fs::read_dir(&directory).map_err(StoreIoError::of("listing", &directory))?;
    for entry in listing {
        let path = entry.map_err(StoreIoError::of("listing", &directory))?.path();
        match StoredImage::read(&path).and_then(|image| check_layers(root, image)) {
            Ok(image) => {
                images.insert(image.digest, image);
            }
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(path = %path.display(), error, "removing an unusable image record");
                remove(&path)?;
            }
        }
    }
    Ok(images)
}

fn check_layers(root: &Path, image: StoredImage) -> Result<StoredImage, RecordError> {
    let layers = root.join("layers");
    let is_missing = |diff_id: &&Digest| !layers.join(diff_id.hex()).is_dir();
    if let Some(missing) = image.visible_layers.iter().find(is_missing) {
        return Err(RecordError::LayerMissing(*missing));
    }
    if image.has_attributes && !root.join("attributes").join(image.digest.hex()).is_dir() {
        return Err(RecordError::LayerMissing(image.digest));
    }
    Ok(image)
}

/// The attributes of an image get their name just before its record does.
fn remove_orphaned_attributes(
    root: &Path,
    images: &BTreeMap<Digest, StoredImage>,
) -> Result<(), StoreIoError> {
    let with_attributes = images.values().filter(|image| image.has_attributes);
    let known: HashSet<String> = with_attributes.map(|image| image.digest.hex()).collect();
    let directory = root.join("attributes");
    let listing = std::fs::read_dir(&directory).map_err(StoreIoError::of("listing", &directory))?;
    for entry in listing {
        let path = entry.map_err(StoreIoError::of("listing", &directory))?.path();
        let name = path.file_name().and_then(OsStr::to_str);
        if !name.is_some_and(|name| known.contains(name)) {
            remove(&path)?;
        }
    }
    Ok(())
}
