//! Which blob has its bytes under which key of an object store, and which objects are to go.
//!
//! ```text
//! object-store              the store that all this is about
//! object-store-mark         JSON: the key of an object by which that is known again, and whether it is there
//! objects/sha256/ab/<hex>   JSON: the key and the size of the bytes of a blob
//! uploads/<id>/object       JSON: the key of an upload, and what of it the store has
//! gone/<id>                 JSON, either of these: an object that nobody knows any more
//! ```
//!
//! A record belongs to an upload, to a blob or to nobody, and moves from one to the next by being
//! renamed. It is on the disk before anything is in the store under its key. So whatever a crash
//! leaves there is known to somebody here: an upload that goes on or is swept, a blob, or what is
//! removed next. A blob's record follows its link, as bytes do, and both are on the disk before the
//! blob is acknowledged: beside what the store takes, that is little.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use longshore_types::{Digest, Repository};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::durable::{self, During as _};
use super::links::{BLOBS, read_json};
use super::{Storage, StorageError};
use crate::objects::Objects;

/// The record of an upload, in its directory.
pub(super) const OBJECT: &str = "object";
/// Which store it is.
const OBJECT_STORE: &str = "object-store";

/// By what it is known again: another store may have a bucket of the same name.
const MARK: &str = "object-store-mark";

/// How long it is looked for at a start; a store that is away need not be another.
const LOOK_AT_START: Duration = Duration::from_secs(5);

/// An object that this registry has put where its blobs are.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Mark {
    key: String,
    /// False until the store has acknowledged it.
    is_there: bool,
}

impl Mark {
    fn read(root: &Path) -> Result<Option<Self>, StorageError> {
        read_json(&root.join(MARK))
    }
}

/// The version of [`Record`] that this code writes.
const VERSION: u32 = 1;

/// Something in an object store.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    version: u32,
    pub(super) key: String,
    /// In bytes; of what is complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) size: Option<u64>,
    /// Of what is sent in parts and is not complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) sent: Option<Sent>,
}

/// The parts that the store has.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Sent {
    /// What the store calls the whole.
    pub(super) upload: String,
    /// The size of each of them, in bytes.
    pub(super) part_size: u64,
    /// What the store calls each.
    pub(super) parts: Vec<String>,
    /// The state of the hash over all of them, in Base64.
    pub(super) hash: String,
}

impl Record {
    /// Of an object that is not there yet.
    pub(super) fn new() -> Self {
        Self { version: VERSION, key: Objects::new_key(), size: None, sent: None }
    }

    /// What is kept in a file, if that is there.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, StorageError> {
        read_json(path)
    }

    /// Puts it in place of what the file has, on the disk.
    pub(super) fn write(&self, tmp: &Path, path: &Path) -> Result<(), StorageError> {
        let text = serde_json::to_vec(self).expect("numbers and texts are valid JSON");
        durable::write(tmp, path, &text)
    }
}

impl Storage {
    /// Makes what is missing for an object store, or refuses another than the one that is known.
    pub(super) fn open_objects(&self) -> Result<(), StorageError> {
        let given = self.objects.as_ref().map(|objects| objects.location().to_string());
        if let Some(known) = Self::known_objects(&self.root)? {
            if given.as_ref() == Some(&known) {
                return Ok(());
            }
            let given = given.unwrap_or_else(|| "this directory".to_owned());
            return Err(io::Error::other(OtherStore { known, given })).during("use", &self.root);
        }
        let Some(given) = given else { return Ok(()) };
        for name in ["objects/sha256", "gone"] {
            durable::ensure_dir(&self.root, &self.root.join(name))?;
        }
        durable::write(&self.tmp(), &self.root.join(OBJECT_STORE), given.as_bytes())
    }

    /// The object store that the registry of a directory has used, if any.
    pub(crate) fn known_objects(root: &Path) -> Result<Option<String>, StorageError> {
        let known = durable::read(&root.join(OBJECT_STORE))?;
        Ok(known.map(|known| String::from_utf8_lossy(&known).into_owned()))
    }

    /// Refuses a store that has not what the registry of a directory once put there; one that is away is not known
    /// to be another.
    pub(crate) async fn check_mark(root: &Path, objects: &Objects) -> Result<(), StorageError> {
        let Some(Mark { key, is_there: true }) = Mark::read(root)? else { return Ok(()) };
        // It has a patience with a store that is away which nobody has at a start.
        match tokio::time::timeout(LOOK_AT_START, objects.has(&key)).await {
            Ok(Ok(false)) => Err(no_mark(objects, key)),
            Ok(Ok(true) | Err(_)) | Err(_) => Ok(()),
        }
    }

    /// Makes sure that the store is the one that it was, and can be known again.
    fn ensure_mark(&self, objects: &Objects) -> Result<(), StorageError> {
        let write = |mark: &Mark| {
            let text = serde_json::to_vec(mark).expect("a text and a truth value are valid JSON");
            durable::write(&self.tmp(), &self.root.join(MARK), &text)
        };
        let mark = match Mark::read(&self.root)? {
            Some(mark) => mark,
            None => {
                let mark =
                    Mark { key: format!("registry-{}", Objects::new_key()), is_there: false };
                write(&mark)?;
                mark
            }
        };
        if !mark.is_there {
            objects.wait(objects.put_mark(&mark.key))?;
            return write(&Mark { is_there: true, ..mark });
        }
        match objects.wait(objects.has(&mark.key))? {
            true => Ok(()),
            false => Err(no_mark(objects, mark.key)),
        }
    }

    fn object_path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.root.join("objects/sha256").join(&hex[..2]).join(hex)
    }

    /// The key and the size in bytes of a blob that is in the object store, whoever it belongs to.
    pub(super) fn object(&self, digest: &Digest) -> Result<Option<(String, u64)>, StorageError> {
        if self.objects.is_none() {
            return Ok(None);
        }
        let record = Record::read(&self.object_path(digest))?;
        Ok(record.and_then(|record| Some((record.key, record.size?))))
    }

    /// Gives the repository a blob whose bytes are here or in the store already; false when they are not.
    pub(crate) fn link_present(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<bool, StorageError> {
        self.leases.touch(repository, digest);
        let _guard = self.digests.lock(digest);
        if self.bytes_size(digest)?.is_none() {
            return Ok(false);
        }
        self.pending.touch(&self.new_link(repository, BLOBS, &digest.hex())?)?;
        Ok(true)
    }

    /// Makes the object of an upload, which is complete, the bytes of a blob of the repository.
    pub(super) fn commit_object(
        &self,
        repository: &Repository,
        digest: &Digest,
        upload: &Path,
    ) -> Result<(), StorageError> {
        self.leases.touch(repository, digest);
        let path = self.object_path(digest);
        let shard = path.parent().expect("it lies in one");
        durable::ensure_dir(&self.root, shard)?;
        let _guard = self.digests.lock(digest);
        let link = self.new_link(repository, BLOBS, &digest.hex())?;
        self.pending.touch(&link)?;
        // Somebody else sent the same meanwhile: then this one goes with the upload.
        if self.bytes_size(digest)?.is_some() {
            return Ok(());
        }
        durable::sync_dir(&self.blob_links_dir(repository))?;
        let record = upload.join(OBJECT);
        fs::rename(&record, &path).during("put in place", &path)?;
        durable::sync_dir(shard)
    }

    /// From now on nobody knows the object of this record, if there is one; it is removed later.
    pub(super) fn drop_object(&self, record: &Path) -> Result<(), StorageError> {
        if self.objects.is_none() {
            return Ok(());
        }
        let gone = self.root.join("gone");
        let path = gone.join(Uuid::new_v4().simple().to_string());
        match fs::rename(record, &path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            moved => {
                moved.during("put away", record)?;
                durable::sync_dir(&gone)
            }
        }
    }

    /// The same for the object of a blob.
    pub(super) fn drop_object_of(&self, digest: &Digest) -> Result<(), StorageError> {
        self.drop_object(&self.object_path(digest))
    }

    /// Removes from the store what nobody knows any more; what the store refuses is tried again with the
    /// next call. Gives how many went.
    pub(crate) fn remove_gone(&self) -> Result<usize, StorageError> {
        let Some(objects) = &self.objects else { return Ok(0) };
        let gone = self.root.join("gone");
        let names = durable::list(&gone)?;
        // What another store has not is not removed by asking that one.
        let has_mark = Mark::read(&self.root)?.is_some_and(|mark| mark.is_there);
        if !names.is_empty() || !has_mark {
            self.ensure_mark(objects)?;
        }
        let remove = |path: &Path| {
            let Some(record) = Record::read(path)? else { return Ok(()) };
            let upload = record.sent.as_ref().map(|sent| sent.upload.as_str());
            objects.wait(objects.remove(&record.key, upload))?;
            durable::remove(path).map(drop)
        };
        let (mut n_removed, mut failed) = (0, None);
        for name in names {
            // What is the matter with one need not be with the next.
            match remove(&gone.join(name)) {
                Ok(()) => n_removed += 1,
                Err(error) => drop(failed.get_or_insert(error)),
            }
        }
        failed.map_or(Ok(n_removed), Err)
    }
}

fn no_mark(objects: &Objects, key: String) -> StorageError {
    let location = objects.location().to_string();
    let error = io::Error::other(NoMark { key });
    StorageError::of_file("use", Path::new(&location), error)
}

/// It is not the store where the blobs are.
#[derive(Debug, thiserror::Error)]
#[error(
    "it has no object {key}, which this registry put beside its blobs: it is another bucket of that name, or one \
     that was emptied (is it the right endpoint? where it surely is, remove object-store-mark from the directory of \
     the images)"
)]
struct NoMark {
    key: String,
}

/// The blobs are where the registry was not told to look.
#[derive(Debug, thiserror::Error)]
#[error("its blobs are in {known}, and it was told to have them in {given}")]
pub(super) struct OtherStore {
    known: String,
    given: String,
}
