//! What the registry keeps on disk, and in which order, so that a crash at any moment leaves
//! nothing half done.
//!
//! ```text
//! blobs/sha256/ab/<hex>                 the bytes of blobs and manifests, once each
//! repositories/<name>/_blobs/<hex>      empty: the repository has this blob
//! repositories/<name>/_manifests/<hex>  JSON: the repository has this manifest, of this media type
//! repositories/<name>/_tags/<tag>       the digest that the tag names
//! repositories/<name>/_converted/<hex of an image>
//!                                       the digest of the artifact that names what was converted of it, or
//!                                       "unpulled" when that is gone because nobody pulled it
//! repositories/<name>/_retention        JSON: what of it goes by itself
//! repositories/<name>/_upstream         the name of the registry that it is one of
//! repositories/<name>/_referrers/<hex of the subject>/<hex>
//!                                       JSON: the descriptor of a manifest about the subject
//! pending/<hex>                         bytes of blobs that may not be on the disk yet
//! converted/<hex>-<hex of a DiffID>      JSON: what the registry made of a layer
//! conversion-uses-noted                 empty: since its time it is noted who asks for what was converted
//! token-key                             signs passing tokens
//! uploads/<id>/{repository,data}        an upload that is not finished
//! tmp/<id>                              a file about to be renamed into place, or a blob that is fetched; emptied
//!                                       at start
//! ```
//!
//! Where the bytes of blobs are in an object store, those of manifests and all else are here, and so is
//! what says under which key of the store a blob is ([`objects`]). Blobs that were here before stay here.
//!
//! Directory contents are the truth; there is no database that could disagree with them. A part of a
//! repository's name never begins with `_`, so names and our directories cannot collide.
//!
//! A repository has a blob when **both** its link and the bytes exist. The bytes come to lie in
//! `pending` before the link is made and move into place after it, and on deletion they go before the
//! link. So bytes in their place always have a link; what is pending without one is removed at the
//! next start; a crash within a deletion leaves at most an empty link, which means nothing; and bytes
//! that did not make it are still an upload, which a client may finish or the sweep removes. What is
//! promised when is in [`pending`].
//!
//! Embedded files were preferred to a table in redb because every state can be seen and repaired
//! with `ls`, and because a blob's rename and its link would be two commits in any case.
//!
//! All functions here block; they are called through `Registry::blocking`.

mod collect;
mod converted;
mod durable;
mod fetched;
mod forms;
mod leases;
mod links;
mod objects;
mod parts;
mod pending;
mod retention;
mod uploads;

use std::fs::{self, File};
use std::hash::{BuildHasher, Hash, RandomState};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use longshore_types::{Digest, Repository};
use rustix::fs::FlockOperation;

use crate::manifest::ManifestError;
use crate::objects::{self as store, Objects};
pub(crate) use converted::{Made, Outcome, Pushed};
use durable::During as _;
pub(crate) use forms::{Form, Standing};
pub(crate) use leases::Lease;
use leases::Leases;
pub(crate) use links::{BlobBytes, Referrer, StoredManifest};
use pending::Pending;
pub(crate) use retention::FoundTag;
pub(crate) use uploads::{UploadHash, UploadId};

/// The disk, or the object store, refused an operation.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct StorageError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl StorageError {
    /// A complete blob could not be read.
    pub(crate) fn reading(digest: &Digest, source: io::Error) -> Self {
        Self { action: "read", path: digest.hex().into(), source }
    }

    /// The object store refused something about an object.
    pub(crate) fn of_objects(
        action: &'static str,
        path: PathBuf,
        source: object_store::Error,
    ) -> Self {
        let kind = match &source {
            object_store::Error::NotFound { .. } => io::ErrorKind::NotFound,
            _ => io::ErrorKind::Other,
        };
        Self { action, path, source: io::Error::new(kind, source) }
    }

    /// The disk refused something about a file.
    pub(crate) fn of_file(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self { action, path: path.to_owned(), source }
    }

    /// A manifest that was kept is none any more.
    pub(crate) fn unreadable(digest: &Digest, source: ManifestError) -> Self {
        let source = io::Error::new(io::ErrorKind::InvalidData, source);
        Self { action: "understand", path: digest.hex().into(), source }
    }

    /// True when the disk, or the quota on it, is full.
    pub fn is_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }

    /// True when it was the object store and not the disk.
    pub fn is_of_objects(&self) -> bool {
        store::is_of_objects(&self.source)
    }

    /// True when the store does not know any more what it was asked about.
    pub(crate) fn is_unknown_object(&self) -> bool {
        self.is_of_objects() && self.source.kind() == io::ErrorKind::NotFound
    }

    /// As an error of what reads and writes.
    pub(crate) fn into_io(self) -> io::Error {
        io::Error::new(self.source.kind(), self)
    }

    /// True when another process holds the directory.
    pub fn is_locked(&self) -> bool {
        self.source.kind() == io::ErrorKind::WouldBlock
    }
}

/// The directory of a registry, held by this process alone.
#[derive(Debug)]
pub(crate) struct Storage {
    root: PathBuf,
    /// Serialise, per digest, making a link with removing the last one.
    digests: Stripes,
    /// Serialise, per repository, checking what a manifest refers to with removing that.
    repositories: Stripes,
    pending: Pending,
    leases: Leases,
    /// Where the bytes of blobs are, when not here.
    objects: Option<Objects>,
    /// Held for the life of the process; the kernel gives it back however that ends.
    _lock: OwnedFd,
}

impl Storage {
    /// Takes the directory, makes what is missing in it and removes what a crash left.
    pub(crate) fn open(
        root: &Path,
        upload_age: Duration,
        objects: Option<Objects>,
    ) -> Result<Self, StorageError> {
        fs::create_dir_all(root).during("make", root)?;
        let lock_path = root.join("lock");
        let lock = File::create(&lock_path).during("make", &lock_path)?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(io::Error::from)
            .during("lock", &lock_path)?;
        let storage = Self {
            root: root.to_owned(),
            digests: Stripes::default(),
            repositories: Stripes::default(),
            pending: Pending::default(),
            leases: Leases::default(),
            objects,
            _lock: lock.into(),
        };
        storage.empty_tmp()?;
        for name in ["repositories", "uploads", "pending"] {
            durable::ensure_dir(root, &root.join(name))?;
        }
        // All 256 at once, so that no commit of a blob has to make and sync one.
        let shards = root.join("blobs/sha256");
        durable::ensure_dir(root, &shards)?;
        for shard in 0..=u8::MAX {
            let path = shards.join(format!("{shard:02x}"));
            if !path.exists() {
                fs::create_dir(&path).during("make", &path)?;
            }
        }
        durable::sync_dir(&shards)?;
        storage.open_objects()?;
        storage.recover_pending()?;
        storage.sweep_uploads(upload_age)?;
        storage.remove_own_uploads()?;
        storage.note_uses_from_now()?;
        Ok(storage)
    }

    fn empty_tmp(&self) -> Result<(), StorageError> {
        let tmp = self.tmp();
        // Uploads that were put away, and of which a crash left what is in an object store.
        for name in durable::list(&tmp)? {
            let dir = tmp.join(name);
            if dir.is_dir() {
                self.drop_object(&dir.join(objects::OBJECT))?;
            }
        }
        match fs::remove_dir_all(&tmp) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).during("empty", &tmp)
            }
            _ => fs::create_dir(&tmp).during("make", &tmp),
        }
    }

    /// Where the bytes of a blob lie once it is complete.
    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.root.join("blobs/sha256").join(&hex[..2]).join(hex)
    }

    /// Where they may lie now. A blob moves from the second to the first, so a look at one after the
    /// other may miss it; a look back does not.
    fn bytes_paths(&self, digest: &Digest) -> [PathBuf; 3] {
        [self.blob_path(digest), self.pending_path(digest), self.blob_path(digest)]
    }

    /// The size in bytes of what lies there, or in the object store, whoever it belongs to.
    fn bytes_size(&self, digest: &Digest) -> Result<Option<u64>, StorageError> {
        for path in self.bytes_paths(digest) {
            if let Some(size) = durable::size(&path)? {
                return Ok(Some(size));
            }
        }
        Ok(self.object(digest)?.map(|(_, size)| size))
    }

    fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// While this is held, nothing that a manifest of the repository refers to is removed.
    pub(crate) fn lock_repository(&self, repository: &Repository) -> MutexGuard<'_, ()> {
        self.repositories.lock(repository)
    }
}

/// Locks by key: as many as stripes can be held at once, without a table that grows.
#[derive(Debug)]
struct Stripes {
    locks: [Mutex<()>; 64],
    hasher: RandomState,
}

impl Default for Stripes {
    fn default() -> Self {
        Self { locks: std::array::from_fn(|_| Mutex::new(())), hasher: RandomState::new() }
    }
}

impl Stripes {
    fn lock(&self, key: impl Hash) -> MutexGuard<'_, ()> {
        let stripe = self.hasher.hash_one(key) as usize % self.locks.len();
        // The lock guards files, not memory: a panic leaves nothing to distrust.
        self.locks[stripe].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
