//! Blobs that are whole, on the disk of a location.
//!
//! ```text
//! blobs/DIGEST               the bytes: they had this digest, and were on the disk, before they had this name
//! links/DIGEST.REPOSITORY    empty: the registry gives that blob of this repository (named by a hash)
//! documents/                 manifests and the like
//! coming/                    what is not whole; gone at the next start
//! ```
//!
//! A blob lies there once, and counts for a repository once the registry said that it has it: by its digest alone a
//! manifest could name what is another's. What a disk changed since it was written is found out when a blob is first
//! asked for, and each day from then on, while it is given: the node sees it at once, and asks again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use longshore_types::{ByteCount, Digest, MirrorSize, Repository};
use prometheus_client::metrics::gauge::Gauge;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::disk::{self, During as _, MirrorError};
use super::documents::{Documents, Of, file_part};
use super::room::{Space, Taken, excess, plan_room};

/// How long bytes that were looked at are taken for right.
const LOOKED_FOR: Duration = Duration::from_secs(24 * 3600);

/// A use is noted on the disk when the last one that was is older.
const NOTED_EACH: Duration = Duration::from_secs(3600);

/// Bytes that are hashed at once.
const PIECE: usize = 1 << 20;

/// What is kept, and where.
#[derive(Debug)]
pub struct Shelf {
    dir: PathBuf,
    size: MirrorSize,
    index: Mutex<Index>,
    /// What it takes, for operators.
    taken: Gauge,
    pub documents: Documents,
}

#[derive(Debug, Default)]
struct Index {
    blobs: BTreeMap<Digest, Kept>,
    /// The bytes of all of them.
    kept: u64,
    /// Those of what comes, as if all of it had come.
    coming: u64,
    n_passing: u64,
}

#[derive(Debug)]
struct Kept {
    size: u64,
    used: SystemTime,
    /// The use that the disk knows of.
    noted: SystemTime,
    /// Of which repositories, by their names in files.
    repositories: BTreeSet<String>,
    /// When its bytes were last found to be right.
    looked: Option<Instant>,
}

/// A blob that is whole.
#[derive(Debug)]
pub struct Whole {
    pub file: File,
    pub size: u64,
    /// Whether nobody knows that its bytes are still right.
    pub is_due: bool,
}

/// A file for a blob that comes.
#[derive(Debug)]
pub struct Passing {
    pub file: File,
    pub path: PathBuf,
}

/// Why a blob is not kept.
#[derive(Debug, thiserror::Error)]
pub enum NotKept {
    /// It would take too much.
    #[error("it has {size}, and there is no room for that in the mirror")]
    Room {
        /// How much.
        size: ByteCount,
    },
    /// The disk refuses.
    #[error(transparent)]
    Disk(#[from] MirrorError),
}

impl Shelf {
    /// What lies in a directory; removes what a crash left of blobs that were coming.
    pub fn open(dir: PathBuf, size: MirrorSize, taken: Gauge) -> Result<Self, MirrorError> {
        let coming = dir.join("coming");
        disk::remove_all(&coming)?;
        for part in ["blobs", "links", "documents", "coming"] {
            let path = dir.join(part);
            fs::create_dir_all(&path).during("make", &path)?;
        }
        let documents = Documents::new(dir.join("documents"), coming);
        let index = Mutex::new(Index::read(&dir)?);
        let shelf = Self { dir, size, index, taken, documents };
        shelf.tell(&shelf.index());
        Ok(shelf)
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, index: &Index) {
        self.taken.set(i64::try_from(index.kept).unwrap_or(i64::MAX));
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs").join(digest.hex())
    }

    fn link(&self, digest: &Digest, repository: &str) -> PathBuf {
        self.dir.join("links").join(format!("{}.{repository}", digest.hex()))
    }

    /// Whether a blob is here, and for this repository.
    pub fn find(&self, digest: &Digest, repository: &Repository) -> Option<bool> {
        let index = self.index();
        let kept = index.blobs.get(digest)?;
        Some(kept.repositories.contains(&file_part(repository)))
    }

    /// Has a blob that is here count for one more repository, for which the registry gives it.
    pub fn add(&self, digest: &Digest, repository: &Repository) -> Result<(), MirrorError> {
        let repository = file_part(repository);
        self.write_link(digest, &repository)?;
        if let Some(kept) = self.index().blobs.get_mut(digest) {
            kept.repositories.insert(repository);
        }
        Ok(())
    }

    fn write_link(&self, digest: &Digest, repository: &str) -> Result<(), MirrorError> {
        let path = self.link(digest, repository);
        File::create(&path).map(drop).during("make", &path)
    }

    /// A blob to be read, if it is here as it was kept. From then on it was used.
    pub fn open_blob(&self, digest: &Digest) -> Option<Whole> {
        let path = self.blob(digest);
        let (size, is_due, is_to_note) = {
            let mut index = self.index();
            let kept = index.blobs.get_mut(digest)?;
            let now = SystemTime::now();
            kept.used = now;
            let is_to_note = now.duration_since(kept.noted).is_ok_and(|age| age > NOTED_EACH);
            if is_to_note {
                kept.noted = now;
            }
            let is_due = kept.looked.is_none_or(|at| at.elapsed() > LOOKED_FOR);
            // Whoever is told so looks, and nobody else.
            kept.looked = Some(Instant::now());
            (kept.size, is_due, is_to_note)
        };
        let opened = File::open(&path).and_then(|file| Ok((file.metadata()?.len(), file)));
        match opened {
            Ok((found, file)) if found == size => {
                if is_to_note {
                    // Where that fails it goes sooner, and comes again.
                    let _ = file.set_modified(SystemTime::now());
                }
                Some(Whole { file, size, is_due })
            }
            opened => {
                let found = opened.map(|(found, _)| found).ok();
                tracing::warn!(%digest, size, ?found, "a blob of the mirror is damaged");
                self.forget(digest);
                None
            }
        }
    }

    /// Keeps a blob no longer. Those who read it do so to its end.
    pub fn forget(&self, digest: &Digest) {
        let gone = {
            let mut index = self.index();
            let gone = index.blobs.remove(digest);
            index.kept -= gone.as_ref().map_or(0, |kept| kept.size);
            self.tell(&index);
            gone
        };
        let Some(gone) = gone else { return };
        // First what makes it count.
        let links = gone.repositories.iter().map(|repository| self.link(digest, repository));
        for path in links.chain([self.blob(digest)]) {
            if let Err(error) = disk::remove(&path) {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "what the mirror is to lose stays on the disk");
            }
        }
    }

    /// A file for a blob of this size, and room that is kept for it until [`Self::release`]; what was not used for
    /// longest goes for it.
    pub fn begin(&self, digest: &Digest, size: u64) -> Result<Passing, NotKept> {
        let (goes, number) = {
            let mut index = self.index();
            let excess = self.excess(&index, size)?;
            let (goes, is_enough) = plan_room(index.in_use_order(), excess);
            if !is_enough {
                return Err(NotKept::Room { size: ByteCount(size) });
            }
            index.coming = index.coming.saturating_add(size);
            index.n_passing += 1;
            (goes, index.n_passing)
        };
        goes.iter().for_each(|digest| self.forget(digest));
        let path = self.dir.join("coming").join(format!("{}.{number}", digest.hex()));
        let file = File::options().read(true).write(true).create_new(true).open(&path);
        match file.during("make", &path) {
            Ok(file) => Ok(Passing { file, path }),
            Err(error) => {
                self.release(size);
                Err(error.into())
            }
        }
    }

    fn excess(&self, index: &Index, more: u64) -> Result<u64, MirrorError> {
        let disk = rustix::fs::statvfs(&self.dir).map_err(io::Error::from);
        let disk = disk.during("ask for the room on", &self.dir)?;
        let bytes = |blocks: u64| ByteCount(blocks.saturating_mul(disk.f_frsize));
        let used = disk.f_blocks.saturating_sub(disk.f_bfree);
        let space = Space { total: bytes(used + disk.f_bavail), free: bytes(disk.f_bavail) };
        let taken = Taken { kept: index.kept, coming: index.coming };
        Ok(excess(self.size, space, taken, more))
    }

    /// Gives back the room for a blob that comes no more.
    pub fn release(&self, size: u64) {
        let mut index = self.index();
        index.coming = index.coming.saturating_sub(size);
    }

    /// Whether it takes too much, or too little of the disk is free. Not when that cannot be said.
    pub fn lacks_room(&self) -> bool {
        self.excess(&self.index(), 0).is_ok_and(|excess| excess > 0)
    }

    /// Has go what is too much, as when others fill the disk.
    pub fn clear(&self) -> Result<(), MirrorError> {
        let goes = {
            let index = self.index();
            plan_room(index.in_use_order(), self.excess(&index, 0)?).0
        };
        goes.iter().for_each(|digest| self.forget(digest));
        Ok(())
    }

    /// Keeps what came, in the room that was kept for it, when it has this digest; gives the one that it has
    /// otherwise.
    pub fn keep(
        &self,
        (repository, digest): &Of,
        size: u64,
        Passing { file, path }: &Passing,
    ) -> Result<Option<Digest>, MirrorError> {
        let found = hash(file).during("read", path)?;
        if found != *digest {
            return Ok(Some(found));
        }
        file.sync_all().during("sync", path)?;
        let repository = file_part(repository);
        self.write_link(digest, &repository)?;
        let place = self.blob(digest);
        fs::rename(path, &place).during("put in place", &place)?;
        disk::sync_dir(&self.dir.join("links"))?;
        disk::sync_dir(&self.dir.join("blobs"))?;
        let now = SystemTime::now();
        let looked = Some(Instant::now());
        let mut repositories = BTreeSet::from([repository]);
        let mut index = self.index();
        // It may have come for another repository meanwhile: then it is here once, for both.
        if let Some(before) = index.blobs.remove(digest) {
            index.kept -= before.size;
            repositories.extend(before.repositories);
        }
        let kept = Kept { size, used: now, noted: now, repositories, looked };
        // In one step, so that nobody counts it twice.
        index.coming = index.coming.saturating_sub(size);
        index.kept += size;
        index.blobs.insert(*digest, kept);
        self.tell(&index);
        Ok(None)
    }

    /// Whether the bytes of a blob are still those that were kept.
    pub fn is_right(&self, digest: &Digest) -> Result<bool, MirrorError> {
        let path = self.blob(digest);
        let found = File::open(&path).and_then(|file| hash(&file));
        Ok(found.during("read", &path)? == *digest)
    }
}

impl Index {
    fn read(dir: &Path) -> Result<Self, MirrorError> {
        let mut index = Self::default();
        for entry in disk::list(&dir.join("blobs"))? {
            let Ok(digest) = Digest::from_hex(&entry.name) else { continue };
            let size = entry.metadata.len();
            let used = entry.metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let repositories = BTreeSet::new();
            index.kept += size;
            let kept = Kept { size, used, noted: used, repositories, looked: None };
            index.blobs.insert(digest, kept);
        }
        for entry in disk::list(&dir.join("links"))? {
            let name = entry.name.split_once('.');
            let of = name.and_then(|(hex, to)| Some((Digest::from_hex(hex).ok()?, to.to_owned())));
            let kept = of.and_then(|(of, to)| Some((index.blobs.get_mut(&of)?, to)));
            match kept {
                Some((kept, repository)) => drop(kept.repositories.insert(repository)),
                // Of a blob that went, or never came.
                None => disk::remove(&dir.join("links").join(&entry.name))?,
            }
        }
        Ok(index)
    }

    fn in_use_order(&self) -> impl Iterator<Item = (Digest, u64, SystemTime)> {
        self.blobs.iter().map(|(digest, kept)| (*digest, kept.size, kept.used))
    }
}

fn hash(file: &File) -> io::Result<Digest> {
    let (mut hasher, mut at, mut piece) = (Sha256::new(), 0, vec![0; PIECE]);
    loop {
        let n_bytes = file.read_at(&mut piece, at)?;
        if n_bytes == 0 {
            return Ok(Digest::from_sha256(hasher.finalize().into()));
        }
        hasher.update(&piece[..n_bytes]);
        at += n_bytes as u64;
    }
}

#[cfg(test)]
mod tests;
