//! Opening a store: one owner, no leftovers.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use longshore_types::Digest;
use rustix::fs::FlockOperation;

use super::record::RecordError;
use super::{
    BEGINNING_KEPT, BEGINNINGS, FRAMES, Form, ImageStore, Inner, Known, State, StoreIoError,
    StoredImage, blank,
};
use crate::limits::Limits;
use crate::mount::{KernelPath, UnmountError, probe, unmount_under};
use crate::steps::{Step, reached};

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenStoreError {
    /// Another process, or another store of this one, has it open.
    #[error("the image store {path:?} is open elsewhere", path = .0.display())]
    InUse(PathBuf),
    /// The disk refused.
    #[error("preparing the image store")]
    Io(#[from] StoreIoError),
    /// What a crash left mounted in it cannot be unmounted.
    #[error("preparing the image store")]
    Mounted(#[from] UnmountError),
}

const DIRECTORIES: [&str; 8] =
    ["images", "indexed", "metadata", "layers", "attributes", BEGINNINGS, "staging", "trash"];

impl ImageStore {
    /// Opens the store in `root`, made when it is not there, removes what a crash left behind, and
    /// finds out how images get to the kernel there.
    ///
    /// Only root may enter it: setuid files of images must not be reachable for users of the host.
    pub fn open(root: &Path, limits: Limits) -> Result<Self, OpenStoreError> {
        Self::open_with(root, limits, None)
    }

    /// The same, with the way of images to the kernel said and not found out.
    pub fn open_with(
        root: &Path,
        limits: Limits,
        kernel: Option<KernelPath>,
    ) -> Result<Self, OpenStoreError> {
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
        reached(Step::StoreMade);
        let staging = root.join("staging");
        // Of a crash while it was found out how images get to the kernel.
        unmount_under(&staging)?;
        empty(&staging)?;
        empty(&root.join("trash"))?;
        remove_old_beginnings(&root.join(BEGINNINGS))?;
        // Of who died while it came.
        blank::give_back_in(&root.join(BEGINNINGS), FRAMES)?;
        reached(Step::LeftoversRemoved);
        let kernel = kernel.unwrap_or_else(|| probe(&staging));
        let images = read_images(root, kernel)?;
        reached(Step::RecordsRead);
        remove_orphans(root, &images)?;
        let inner = Inner {
            root: root.to_owned(),
            limits,
            kernel,
            state: Mutex::default(),
            flights: Mutex::default(),
            room: super::room::Room::default(),
            arrivals: super::arriving::Arrivals::default(),
            standings: super::Standings::default(),
            n_staged: AtomicU64::new(0),
            trash_lock: Mutex::default(),
            _lock: lock.into(),
        };
        let known = |stored: StoredImage| {
            let tree = inner.tree(&stored);
            (stored.digest, Known { stored, tree })
        };
        let images = images.into_values().map(known).collect();
        *inner.state() = State { images, ..State::default() };
        Ok(Self { inner: Arc::new(inner) })
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

/// Removes the beginnings of blobs that nobody came back for.
pub(super) fn remove_old_beginnings(directory: &Path) -> Result<(), StoreIoError> {
    let listing = std::fs::read_dir(directory).map_err(StoreIoError::of("listing", directory))?;
    for entry in listing {
        let path = entry.map_err(StoreIoError::of("listing", directory))?.path();
        let changed = path.symlink_metadata().and_then(|metadata| metadata.modified());
        let is_old = match changed {
            // A clock that was set back makes it older than it says, some day.
            Ok(changed) => changed.elapsed().is_ok_and(|age| age > BEGINNING_KEPT),
            // A pull has just ended.
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => return Err(StoreIoError::of("looking at", &path)(error)),
        };
        if is_old {
            match std::fs::remove_file(&path) {
                // A pull has just ended.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                removed => removed.map_err(StoreIoError::of("removing", &path))?,
            }
        }
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
fn read_images(
    root: &Path,
    kernel: KernelPath,
) -> Result<BTreeMap<Digest, StoredImage>, StoreIoError> {
    let directory = root.join("images");
    let mut images = BTreeMap::new();
    let listing = std::fs::read_dir(&directory).map_err(StoreIoError::of("listing", &directory))?;
    for entry in listing {
        let path = entry.map_err(StoreIoError::of("listing", &directory))?.path();
        match StoredImage::read(&path).and_then(|image| check_files(root, kernel, image)) {
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

fn check_files(
    root: &Path,
    kernel: KernelPath,
    image: StoredImage,
) -> Result<StoredImage, RecordError> {
    // Directories are stacked by every kernel.
    if image.form == Form::Erofs && Form::of(kernel) != Form::Erofs {
        return Err(RecordError::Form);
    }
    let layers = root.join(image.form.layers());
    let is_missing = |diff_id: &&Digest| !layers.join(diff_id.hex()).is_dir();
    let mut needed = image.visible_layers.iter().chain(&image.devices);
    if let Some(missing) = needed.find(is_missing) {
        return Err(RecordError::LayerMissing(*missing));
    }
    let own = root.join(image.form.images()).join(image.digest.hex());
    match image.has_files_of_its_own() && !own.exists() {
        true => Err(RecordError::LayerMissing(image.digest)),
        false => Ok(image),
    }
}

/// What belongs to an image alone gets its name just before its record does.
fn remove_orphans(root: &Path, images: &BTreeMap<Digest, StoredImage>) -> Result<(), StoreIoError> {
    for form in Form::ALL {
        let images = images.values();
        let known: HashSet<String> = images
            .filter(|image| image.form == form && image.has_files_of_its_own())
            .map(|image| image.digest.hex())
            .collect();
        let directory = root.join(form.images());
        let listing =
            std::fs::read_dir(&directory).map_err(StoreIoError::of("listing", &directory))?;
        for entry in listing {
            let path = entry.map_err(StoreIoError::of("listing", &directory))?.path();
            let name = path.file_name().and_then(OsStr::to_str);
            if !name.is_some_and(|name| known.contains(name)) {
                remove(&path)?;
            }
        }
    }
    Ok(())
}
