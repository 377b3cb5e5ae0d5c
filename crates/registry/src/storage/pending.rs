//! Blobs that were acknowledged and may not be on the disk yet.
//!
//! A push of a thousand small blobs that waited for the disk a thousand times would take its time
//! there and nowhere else. The protocol asks nothing of a blob before a manifest needs it: a client
//! must look whether a blob is still there anyway. So the promise is made for the manifest: once
//! that is acknowledged, it and all that it refers to outlive a power cut. A blob alone outlives the
//! death of this process, whose files the kernel keeps, and reaches the disk within seconds.
//!
//! After a power cut a file that was not synced may have any length and any bytes. Such a file is
//! never found under the name of a blob: it lies in `pending` until it is known to be on the disk,
//! and what lies there at the start is hashed before it counts. A batch is synced at once, by one
//! call for the file system when there are many, so concurrent pushes share the wait.
//!
//! Syncing each blob before its acknowledgement, in groups, was measured and rejected: one client
//! that sends one blob at a time makes groups of one. A log of small blobs was rejected because
//! what lies in the directories would no longer be all there is.

use std::collections::HashSet;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use longshore_types::{Digest, Repository};

use super::durable::{self, During as _};
use super::uploads::UploadHash;
use super::{Storage, StorageError};

/// As many files are synced one by one; for more, everything on the file system is at once.
const FEW: usize = 8;

/// What else is known of the files in `pending`, which are themselves the list of pending blobs.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// Directories with links that are not synced.
    dirs: Mutex<HashSet<PathBuf>>,
    /// One batch at a time: who waits for it often finds that it held theirs.
    turn: Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // They guard files, which a panic leaves as they are.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pending {
    /// Makes a link that need not outlive a power cut yet.
    pub(super) fn touch(&self, link: &Path) -> Result<(), StorageError> {
        let dir = link.parent().expect("a link lies in a directory").to_owned();
        // Held while the link appears, so that whoever sees it finds its directory listed too.
        let mut dirs = lock(&self.dirs);
        durable::touch(link)?;
        dirs.insert(dir);
        Ok(())
    }
}

/// A file that is to be settled. A name alone would not do: a blob may be deleted and pushed again
/// while the first file of that name is synced.
#[derive(Debug)]
struct Unsettled {
    digest: Digest,
    identity: (u64, i64, i64),
}

fn identity(file: &Metadata) -> (u64, i64, i64) {
    (file.ino(), file.mtime(), file.mtime_nsec())
}

impl Storage {
    pub(super) fn pending_dir(&self) -> PathBuf {
        self.root.join("pending")
    }

    pub(super) fn pending_path(&self, digest: &Digest) -> PathBuf {
        self.pending_dir().join(digest.hex())
    }

    /// Returns once these blobs of the repository are on the disk. Where that fails they are
    /// dropped, for nobody can say what of them the disk has, and the client must send them again.
    pub(crate) fn settle(
        &self,
        repository: &Repository,
        wanted: impl IntoIterator<Item = Digest>,
    ) -> Result<(), StorageError> {
        let _turn = lock(&self.pending.turn);
        let wanted: HashSet<Digest> = wanted.into_iter().collect();
        let unsettled = self.unsettled(wanted)?;
        if unsettled.len() > FEW {
            return self.settle_together();
        }
        let links = self.blob_links_dir(repository);
        let dirs: HashSet<_> = lock(&self.pending.dirs).take(&links).into_iter().collect();
        self.settle_batch(&unsettled, dirs)
    }

    /// Brings everything that is pending to the disk.
    pub(crate) fn settle_all(&self) -> Result<(), StorageError> {
        let _turn = lock(&self.pending.turn);
        self.settle_together()
    }

    fn settle_together(&self) -> Result<(), StorageError> {
        // The links first: what is found in them afterwards was made after this.
        let dirs = std::mem::take(&mut *lock(&self.pending.dirs));
        let names = durable::list(&self.pending_dir())?;
        let digests = names.iter().filter_map(|name| Digest::from_hex(name).ok());
        self.settle_batch(&self.unsettled(digests)?, dirs)
    }

    fn unsettled(
        &self,
        digests: impl IntoIterator<Item = Digest>,
    ) -> Result<Vec<Unsettled>, StorageError> {
        let mut found = Vec::new();
        for digest in digests {
            let path = self.pending_path(&digest);
            match fs::metadata(&path) {
                Ok(file) => found.push(Unsettled { digest, identity: identity(&file) }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).during("read", &path),
            }
        }
        Ok(found)
    }

    fn settle_batch(
        &self,
        batch: &[Unsettled],
        dirs: HashSet<PathBuf>,
    ) -> Result<(), StorageError> {
        if batch.is_empty() && dirs.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.sync(batch, &dirs) {
            lock(&self.pending.dirs).extend(dirs);
            for unsettled in batch {
                let _guard = self.digests.lock(unsettled.digest);
                if self.is_still_there(unsettled)? {
                    durable::remove(&self.pending_path(&unsettled.digest))?;
                }
            }
            return Err(error);
        }
        for unsettled in batch {
            let _guard = self.digests.lock(unsettled.digest);
            if self.is_still_there(unsettled)? {
                // Not synced: after a power cut it has one name or the other, and the same bytes.
                let path = self.blob_path(&unsettled.digest);
                let pending = self.pending_path(&unsettled.digest);
                fs::rename(pending, &path).during("put in place", &path)?;
            }
        }
        Ok(())
    }

    fn is_still_there(&self, unsettled: &Unsettled) -> Result<bool, StorageError> {
        let path = self.pending_path(&unsettled.digest);
        match fs::metadata(&path) {
            Ok(file) => Ok(identity(&file) == unsettled.identity),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).during("read", &path),
        }
    }

    fn sync(&self, batch: &[Unsettled], dirs: &HashSet<PathBuf>) -> Result<(), StorageError> {
        if batch.len() + dirs.len() > FEW {
            let root = File::open(&self.root).during("open", &self.root)?;
            return rustix::fs::syncfs(root).map_err(io::Error::from).during("sync", &self.root);
        }
        for unsettled in batch {
            let path = self.pending_path(&unsettled.digest);
            match File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                opened => opened.and_then(|file| file.sync_all()).during("sync", &path)?,
            }
        }
        if !batch.is_empty() {
            durable::sync_dir(&self.pending_dir())?;
        }
        dirs.iter().try_for_each(|dir| durable::sync_dir(dir))
    }

    /// At the start: keeps what is whole and belongs to a repository, and removes the rest.
    pub(super) fn recover_pending(&self) -> Result<(), StorageError> {
        let names = durable::list(&self.pending_dir())?;
        if names.is_empty() {
            return Ok(());
        }
        let linked = self.linked()?;
        for name in names {
            let path = self.pending_dir().join(&name);
            let whole =
                linked.contains(&name) && UploadHash::resume(path.clone())?.digest().hex() == name;
            if !whole {
                tracing::warn!(blob = name, "dropped a blob that did not reach the disk");
                fs::remove_file(&path).during("remove", &path)?;
            }
        }
        self.settle_all()
    }
}
