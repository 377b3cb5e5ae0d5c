//! Opening the file: made if absent, refused if held by another process or written by a newer
//! release, and never left half made.

use std::error::Error;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use redb::backends::FileBackend;
use redb::{Builder, Database, ReadableDatabase, StorageBackend};

use super::tables::{
    CURRENT, FORMAT_VERSION, LEASE_KEYS, LEASES, LOG, META, META_FORMAT, META_NEXT_LEASE,
    META_REVISION, TOMBSTONES,
};

/// The revision of an empty store, as in etcd.
const FIRST_REVISION: u64 = 1;
/// redb sizes a new file at once and writes its magic number last, so a kill in between leaves a
/// file of zeros behind its first page. None of them is larger than this.
const MAX_UNFINISHED_BYTES: u64 = 64 << 20;
const MAGIC_BYTES: usize = 9;
const FIRST_PAGE_BYTES: usize = 4096;

/// Why a store's file could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenStoreError {
    /// The file or its directory cannot be used.
    #[error("could not open the store at {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another process, or another handle in this one, has the store open.
    #[error("the store at {} is in use by another process", path.display())]
    Held {
        /// The file.
        path: PathBuf,
    },
    /// A newer release wrote the store.
    #[error(
        "the store at {} has format version {found}, written by a newer release; this one reads \
         up to version {supported}", path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format version.
        found: u64,
        /// The newest that this release reads.
        supported: u64,
    },
    /// The file is a database, but not one of Longshore's.
    #[error("{} is not a Longshore store", path.display())]
    NotAStore {
        /// The file.
        path: PathBuf,
    },
    /// The file is no database, is damaged, or could not be read.
    #[error("could not read the store at {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

/// Opens the store's file with a cache of so many bytes.
pub fn open(path: &Path, cache_bytes: usize) -> Result<Database, OpenStoreError> {
    let file = lock(path)?;
    let unusable = |source| OpenStoreError::Open { path: path.to_owned(), source };
    if is_unfinished(&file).map_err(unusable)? {
        file.set_len(0).map_err(unusable)?;
    }
    sync_directory_of(path).map_err(unusable)?;
    let backend = FileBackend::new(file).map_err(|error| unreadable(path)(error.into()))?;
    open_backend(path, backend, cache_bytes)
}

/// Opens the store that `backend` keeps; `path` is for the errors.
pub fn open_backend(
    path: &Path,
    backend: impl StorageBackend,
    cache_bytes: usize,
) -> Result<Database, OpenStoreError> {
    let database = Builder::new()
        .set_cache_size(cache_bytes)
        .create_with_backend(backend)
        .map_err(|error| match error {
            redb::DatabaseError::DatabaseAlreadyOpen => {
                OpenStoreError::Held { path: path.to_owned() }
            }
            other => unreadable(path)(other.into()),
        })?;
    ensure_format(path, &database)?;
    Ok(database)
}

/// Opens the file, readable by its owner only, and locks it before anything looks inside. redb takes
/// the same lock again on the same handle.
fn lock(path: &Path) -> Result<File, OpenStoreError> {
    let unusable = |source| OpenStoreError::Open { path: path.to_owned(), source };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(unusable)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenStoreError::Held { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(unusable(source)),
    }
}

/// Whether a process was killed while it made this file; nothing was ever stored in it then.
fn is_unfinished(file: &File) -> io::Result<bool> {
    let length = file.metadata()?.len();
    if length == 0 || length > MAX_UNFINISHED_BYTES {
        return Ok(false);
    }
    let mut content = Vec::new();
    let mut reader = file;
    reader.read_to_end(&mut content)?;
    let is_zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    let magic = &content[..MAGIC_BYTES.min(content.len())];
    let pages = content.get(FIRST_PAGE_BYTES..).unwrap_or_default();
    Ok(is_zero(magic) && is_zero(pages))
}

/// Makes the file's name as durable as its content.
fn sync_directory_of(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    File::open(parent)?.sync_all()
}

fn ensure_format(path: &Path, database: &Database) -> Result<(), OpenStoreError> {
    let failed = |source: redb::Error| unreadable(path)(source.into());
    match format_of(database).map_err(failed)? {
        Format::Empty => initialise(database).map_err(failed),
        Format::Version(FORMAT_VERSION) => Ok(()),
        Format::Version(found) if found > FORMAT_VERSION => {
            Err(OpenStoreError::Newer { path: path.to_owned(), found, supported: FORMAT_VERSION })
        }
        Format::Version(_) | Format::Foreign => {
            Err(OpenStoreError::NotAStore { path: path.to_owned() })
        }
    }
}

/// What a database holds.
enum Format {
    Empty,
    Version(u64),
    /// Tables of another program.
    Foreign,
}

fn format_of(database: &Database) -> Result<Format, redb::Error> {
    let transaction = database.begin_read()?;
    if transaction.list_tables()?.next().is_none() {
        return Ok(Format::Empty);
    }
    let meta = match transaction.open_table(META) {
        Ok(meta) => meta,
        Err(redb::TableError::Storage(error)) => return Err(error.into()),
        Err(_) => return Ok(Format::Foreign),
    };
    let version = meta.get(META_FORMAT)?.map(|version| version.value());
    Ok(version.map_or(Format::Foreign, Format::Version))
}

fn initialise(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut meta = transaction.open_table(META)?;
        meta.insert(META_FORMAT, FORMAT_VERSION)?;
        meta.insert(META_REVISION, FIRST_REVISION)?;
        meta.insert(META_NEXT_LEASE, 1)?;
        // Reading needs no "if the table exists" when all of them always do.
        transaction.open_table(CURRENT)?;
        transaction.open_table(TOMBSTONES)?;
        transaction.open_table(LOG)?;
        transaction.open_table(LEASES)?;
        transaction.open_table(LEASE_KEYS)?;
    }
    Ok(transaction.commit()?)
}

fn unreadable(path: &Path) -> impl FnOnce(Box<dyn Error + Send + Sync>) -> OpenStoreError {
    let path = path.to_owned();
    move |source| OpenStoreError::Read { path, source }
}
