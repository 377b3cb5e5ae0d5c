//! What a store holds, as a file.
//!
//! A backup is of one revision. What has a lease is no part of it: that is of processes, not of the state.
//! Neither are revisions, which another store counts anew.
//!
//! The file is a line that says what it is, a head in JSON with its length before it, each key and value
//! with their lengths before them, and the SHA-256 of all that. It is read whole and checked before
//! anything of it is used, so a torn or altered one is refused and nothing is done. Rejected: redb's own
//! file, which only an embedded store could be restored from; JSON, for values are bytes.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::key_value::Revision;
use crate::store::{Page, Store};
use crate::world::{WORLD, World, WorldError};

/// What such a file begins with.
const MAGIC: &[u8] = b"longshore store backup\n";
/// The version that is written, and the newest that is read.
const VERSION: u32 = 1;
const HASH_BYTES: usize = 32;

/// The keys and values of a store at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    /// Which life of the store it was taken of.
    pub epoch: u64,
    /// At which revision of that.
    pub revision: Revision,
    /// When, in milliseconds since 1970.
    pub taken_at: u64,
    /// In the order of the keys.
    pub items: Vec<(String, Bytes)>,
}

#[derive(Serialize, Deserialize)]
struct Head {
    version: u32,
    epoch: u64,
    revision: u64,
    taken_at: u64,
    n_keys: usize,
}

/// The version alone, which is read first: the rest of a newer one may have any shape.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// Why a file is no backup that can be used.
#[derive(Debug, thiserror::Error)]
pub enum BadBackup {
    /// Another kind of file.
    #[error("this is not a backup of a Longshore store")]
    Foreign,
    /// Its sum does not fit.
    #[error("the backup is torn or was altered: its checksum does not fit")]
    Torn,
    /// A newer release wrote it.
    #[error("the backup has version {found}, of a newer release; this one reads up to {VERSION}")]
    Newer {
        /// Its version.
        found: u32,
    },
    /// Its sum fits, and yet it is not what it should be.
    #[error("the backup cannot be understood")]
    Malformed,
}

/// Why a backup cannot be written to or read from a file.
#[derive(Debug, thiserror::Error)]
pub enum BackupFileError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It is of no use.
    #[error("cannot use {}", path.display())]
    Bad {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: BadBackup,
    },
}

impl Backup {
    /// What a store holds at its newest revision, at a time in milliseconds since 1970.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub async fn take(store: &dyn Store, now: u64) -> Result<Self, WorldError> {
        let listing = store.list("/", Page::default()).await?;
        let world = listing.items.iter().find(|item| item.key == WORLD);
        let world = world.map_or(Ok(World::FIRST), |stored| stored.decode())?;
        let kept = listing.items.into_iter().filter(|item| item.lease.is_none());
        Ok(Self {
            epoch: world.epoch,
            revision: listing.revision,
            taken_at: now,
            items: kept.map(|item| (item.key, item.value)).collect(),
        })
    }

    /// As it is in a file.
    pub fn encode(&self) -> Vec<u8> {
        let head = Head {
            version: VERSION,
            epoch: self.epoch,
            revision: self.revision.0,
            taken_at: self.taken_at,
            n_keys: self.items.len(),
        };
        let head = serde_json::to_vec(&head).expect("numbers can be written as JSON");
        let mut file = MAGIC.to_vec();
        put(&mut file, &head);
        for (key, value) in &self.items {
            put(&mut file, key.as_bytes());
            put(&mut file, value);
        }
        let hash = Sha256::digest(&file);
        file.extend(hash);
        file
    }

    /// From the bytes of a file.
    ///
    /// # Errors
    ///
    /// When they are not exactly what was written.
    pub fn decode(file: &[u8]) -> Result<Self, BadBackup> {
        if !file.starts_with(MAGIC) {
            return Err(BadBackup::Foreign);
        }
        let (content, hash) = file.split_last_chunk::<HASH_BYTES>().ok_or(BadBackup::Torn)?;
        if Sha256::digest(content).as_slice() != hash {
            return Err(BadBackup::Torn);
        }
        let mut rest = content.strip_prefix(MAGIC).ok_or(BadBackup::Torn)?;
        let head = take(&mut rest)?;
        let Version { version } = serde_json::from_slice(head).map_err(|_| BadBackup::Malformed)?;
        if version > VERSION {
            return Err(BadBackup::Newer { found: version });
        }
        let head: Head = serde_json::from_slice(head).map_err(|_| BadBackup::Malformed)?;
        let mut items = Vec::new();
        while !rest.is_empty() {
            let key = std::str::from_utf8(take(&mut rest)?).map_err(|_| BadBackup::Malformed)?;
            items.push((key.to_owned(), Bytes::copy_from_slice(take(&mut rest)?)));
        }
        if items.len() != head.n_keys {
            return Err(BadBackup::Malformed);
        }
        let Head { epoch, revision, taken_at, .. } = head;
        Ok(Self { epoch, revision: Revision(revision), taken_at, items })
    }

    /// Reads a file.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or is no backup that can be used.
    pub fn read(path: &Path) -> Result<Self, BackupFileError> {
        let file = fs::read(path)
            .map_err(|source| BackupFileError::Read { path: path.to_owned(), source })?;
        Self::decode(&file).map_err(|source| BackupFileError::Bad { path: path.to_owned(), source })
    }

    /// Writes a file that only its owner reads. It has its name once all of it is on the disk.
    ///
    /// # Errors
    ///
    /// When it cannot be written; a file of that name is as it was then.
    pub fn write(&self, path: &Path) -> Result<(), BackupFileError> {
        write_whole(path, &self.encode())
            .map_err(|source| BackupFileError::Write { path: path.to_owned(), source })
    }
}

fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let temporary = path.with_file_name(name);
    let written = (|| {
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    if let Err(error) = written {
        // What is left of it is of no use, and may not be there at all.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    fs::File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

/// Bytes with their length before them.
fn put(file: &mut Vec<u8>, bytes: &[u8]) {
    file.extend((bytes.len() as u64).to_le_bytes());
    file.extend(bytes);
}

fn take<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], BadBackup> {
    let (length, tail) = rest.split_first_chunk().ok_or(BadBackup::Malformed)?;
    let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| BadBackup::Malformed)?;
    let (bytes, tail) = tail.split_at_checked(length).ok_or(BadBackup::Malformed)?;
    *rest = tail;
    Ok(bytes)
}
