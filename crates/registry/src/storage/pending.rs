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
//! and what lies there at the start is hashed before it counts. Many are synced by one call for the
//! file system, whose wait concurrent pushes share; few one by one and without a turn, for the
//! kernel joins what waits for its journal at the same moment.
//!
//! Syncing each blob before its acknowledgement, in groups, was measured and rejected: one client
//! that sends one blob at a time makes groups of one. A log of small blobs was rejected because
//! what lies in the directories would no longer be all there is.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use longshore_types::{Digest, Repository};

use super::durable::{self, During as _};
use super::uploads::UploadHash;
use super::{Storage, StorageError};

/// As many files are synced one by one; for more, everything on the file system is at once.
const FEW: usize = 8;

/// What else is known of the files in `pending`, which are themselves the list of pending blobs.
#[derive(Debug, Default)]
pub(super) struct Pending {
    dirs: Mutex<Dirs>,
    /// One call for the file system at a time: who waits for it often finds that it held theirs.
    turn: Mutex<()>,
    claims: Claims,
}

/// Directories with links that are not synced.
#[derive(Debug, Default)]
struct Dirs {
    /// How many links were made, ever.
    n_made: u64,
    /// For each directory its newest link, by its place among all that were made.
    newest: HashMap<PathBuf, u64>,
}

impl Dirs {
    /// Forgets directories that were synced, but for those that have got a link since.
    fn forget(&mut self, synced: &HashMap<PathBuf, u64>) {
        for (dir, newest) in synced {
            if self.newest.get(dir) == Some(newest) {
                self.newest.remove(dir);
            }
        }
    }
}

/// Blobs that are being brought to the disk, each by one caller. Two could not both learn that it
/// failed: the kernel tells whoever asks first.
#[derive(Debug, Default)]
struct Claims {
    claimed: Mutex<HashSet<Digest>>,
    freed: Condvar,
}

#[derive(Debug)]
struct Claim<'a> {
    claims: &'a Claims,
    digests: HashSet<Digest>,
}

impl Claims {
    /// Waits until nobody else has any of these, and takes all.
    fn claim(&self, digests: HashSet<Digest>) -> Claim<'_> {
        let mut claimed = lock(&self.claimed);
        while !claimed.is_disjoint(&digests) {
            claimed = self.freed.wait(claimed).unwrap_or_else(PoisonError::into_inner);
        }
        claimed.extend(&digests);
        Claim { claims: self, digests }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        lock(&self.claims.claimed).retain(|digest| !self.digests.contains(digest));
        self.claims.freed.notify_all();
    }
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
        dirs.n_made += 1;
        let made = dirs.n_made;
        dirs.newest.insert(dir, made);
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

    /// Returns once these blobs, which the repository has, are on the disk. Where that fails they
    /// are dropped, for nobody can say what of them the disk has, and the client must send them
    /// again.
    pub(crate) fn settle(
        &self,
        repository: &Repository,
        wanted: impl IntoIterator<Item = Digest>,
    ) -> Result<(), StorageError> {
        let wanted: HashSet<Digest> = wanted.into_iter().collect();
        if self.unsettled(&wanted)?.len() > FEW {
            let _turn = lock(&self.pending.turn);
            if self.unsettled(&wanted)?.len() > FEW {
                self.settle_together()?;
            }
        }
        let links = self.blob_links_dir(repository);
        let newest = lock(&self.pending.dirs).newest.get(&links).copied();
        let dirs = newest.map(|newest| (links, newest)).into_iter().collect();
        let claim = self.pending.claims.claim(wanted);
        self.settle_batch(&claim, &dirs)?;
        // Someone else may have tried before, and dropped what failed.
        for digest in &claim.digests {
            let path = self.blob_path(digest);
            // What is in an object store was on the disk before it was acknowledged.
            if durable::size(&path)?.is_none() && self.object(digest)?.is_none() {
                return Err(io::Error::other("it was lost on the way")).during("sync", &path);
            }
        }
        Ok(())
    }

    /// Brings everything that is pending to the disk.
    pub(crate) fn settle_all(&self) -> Result<(), StorageError> {
        let _turn = lock(&self.pending.turn);
        self.settle_together()
    }

    fn settle_together(&self) -> Result<(), StorageError> {
        // The links first: what is found in them afterwards was made after this.
        let dirs = lock(&self.pending.dirs).newest.clone();
        let names = durable::list(&self.pending_dir())?;
        let digests = names.iter().filter_map(|name| Digest::from_hex(name).ok());
        let claim = self.pending.claims.claim(digests.collect());
        self.settle_batch(&claim, &dirs)
    }

    fn unsettled(&self, digests: &HashSet<Digest>) -> Result<Vec<Unsettled>, StorageError> {
        let mut found = Vec::new();
        for digest in digests {
            let path = self.pending_path(digest);
            match fs::metadata(&path) {
                Ok(file) => found.push(Unsettled { digest: *digest, identity: identity(&file) }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).during("read", &path),
            }
        }
        Ok(found)
    }

    fn settle_batch(
        &self,
        claim: &Claim<'_>,
        dirs: &HashMap<PathBuf, u64>,
    ) -> Result<(), StorageError> {
        let batch = &self.unsettled(&claim.digests)?;
        if batch.is_empty() && dirs.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.sync(batch, dirs) {
            for unsettled in batch {
                let _guard = self.digests.lock(unsettled.digest);
                if self.is_still_there(unsettled)? {
                    durable::remove(&self.pending_path(&unsettled.digest))?;
                }
            }
            return Err(error);
        }
        lock(&self.pending.dirs).forget(dirs);
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

    fn sync(&self, batch: &[Unsettled], dirs: &HashMap<PathBuf, u64>) -> Result<(), StorageError> {
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
        dirs.keys().try_for_each(|dir| durable::sync_dir(dir))
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
                linked.contains(&name) && UploadHash::of_file(path.clone())?.digest().hex() == name;
            if !whole {
                tracing::warn!(blob = name, "dropped a blob that did not reach the disk");
                fs::remove_file(&path).during("remove", &path)?;
            }
        }
        self.settle_all()
    }
}
