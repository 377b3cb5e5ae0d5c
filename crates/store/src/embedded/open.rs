//! Opening the file and its journal: made if absent, refused if held by another process or written by a newer
//! release, and never left half made. What the journal has and the file lacks is done once more.
//!
//! The journal is there before the file says that it has one, and a file that was not closed is not opened
//! without it: what was acknowledged last is there alone.

use std::error::Error;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use redb::backends::FileBackend;
use redb::{Builder, Database, ReadableDatabase, StorageBackend};

use super::apply::Tables;
use super::fault;
use super::journal::{Journal, JournalError};
use super::tables::{
    CURRENT, FORMAT_VERSION, LEASE_KEYS, LEASES, LOG, META, META_BATCH, META_CLOSED, META_FORMAT,
    META_NEXT_LEASE, META_REVISION, META_STORE, TOMBSTONES,
};
use crate::error::StoreError;

/// The name of the journal is that of the file, and this.
const JOURNAL: &str = ".journal";
/// That of a journal that was put aside is longer by this.
const ASIDE: &str = ".before";
/// The format that had no journal.
const WITHOUT_JOURNAL: u64 = 1;

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
    /// The store was not closed, and its journal is not beside it.
    #[error(
        "the store at {} was not closed, and what it had last is in {}, which is not there: put it back, or \
         make an empty file of that name to go on without", path.display(), journal.display()
    )]
    WithoutJournal {
        /// The file.
        path: PathBuf,
        /// Where its journal belongs.
        journal: PathBuf,
    },
    /// What the journal has cannot be taken from it.
    #[error("could not read the journal {}", path.display())]
    Journal {
        /// The journal.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<dyn Error + Send + Sync>,
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

/// A store that is open.
pub struct Opened {
    pub database: Database,
    pub journal: Journal,
}

/// How a journal is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    IfThere,
    OrMade,
    /// What is there is of a store that is not here any more, and may come back: it is put aside.
    Anew,
}

/// A file, when there is one.
type Found = io::Result<Option<Box<dyn StorageBackend>>>;

/// Opens the store's file with a cache of so many bytes.
pub fn open(path: &Path, cache_bytes: usize) -> Result<Opened, OpenStoreError> {
    let file = lock(path)?;
    let unusable = |source| OpenStoreError::Open { path: path.to_owned(), source };
    if is_unfinished(&file).map_err(unusable)? {
        file.set_len(0).map_err(unusable)?;
    }
    sync_directory_of(path).map_err(unusable)?;
    let backend = FileBackend::new(file).map_err(|error| unreadable(path)(error.into()))?;
    open_backend(path, backend, |how| open_journal(path, how), cache_bytes)
}

/// Opens the store that `backend` keeps, with the journal that `journal` gives; `path` is for the errors.
pub fn open_backend(
    path: &Path,
    backend: impl StorageBackend,
    journal: impl Fn(How) -> Found,
    cache_bytes: usize,
) -> Result<Opened, OpenStoreError> {
    let database = Builder::new()
        .set_cache_size(cache_bytes)
        .create_with_backend(backend)
        .map_err(|error| match error {
            redb::DatabaseError::DatabaseAlreadyOpen => {
                OpenStoreError::Held { path: path.to_owned() }
            }
            other => unreadable(path)(other.into()),
        })?;
    let journal = ensure_format(path, &database, &journal)?;
    Ok(Opened { database, journal })
}

/// Where the journal of a store is.
pub fn journal_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(JOURNAL);
    name.into()
}

/// Opens the journal of a store, readable by its owner only.
fn open_journal(path: &Path, how: How) -> Found {
    let (path, makes) = (journal_of(path), how != How::IfThere);
    if how == How::Anew && std::fs::metadata(&path).is_ok_and(|found| found.len() > 0) {
        let mut aside = path.as_os_str().to_owned();
        aside.push(ASIDE);
        std::fs::rename(&path, &aside)?;
        tracing::warn!(path = %aside.display(), "a new store begins; the journal of one before is there");
    }
    let mut options = OpenOptions::new();
    let opened = options.read(true).write(true).create(makes).mode(0o600).open(&path);
    let file = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !makes => return Ok(None),
        opened => opened?,
    };
    if makes {
        sync_directory_of(&path)?;
    }
    Ok(Some(Box::new(FileBackend::new(file).map_err(io::Error::other)?)))
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

fn ensure_format(
    path: &Path,
    database: &Database,
    journal: &impl Fn(How) -> Found,
) -> Result<Journal, OpenStoreError> {
    let failed = |source: redb::Error| unreadable(path)(source.into());
    match format_of(database).map_err(failed)? {
        Format::Empty => {
            let journal = begin_journal(path, journal)?;
            initialise(database, journal.store()).map_err(failed)?;
            Ok(journal)
        }
        Format::Version(WITHOUT_JOURNAL) => {
            let journal = begin_journal(path, journal)?;
            write_numbers(database, journal.store()).map_err(failed)?;
            Ok(journal)
        }
        Format::Version(FORMAT_VERSION) => resume(path, database, journal),
        Format::Version(found) if found > FORMAT_VERSION => {
            Err(OpenStoreError::Newer { path: path.to_owned(), found, supported: FORMAT_VERSION })
        }
        Format::Version(_) | Format::Foreign => {
            Err(OpenStoreError::NotAStore { path: path.to_owned() })
        }
    }
}

/// A journal with nothing in it, for a store that has none yet, which gets its number by that.
fn begin_journal(path: &Path, journal: &impl Fn(How) -> Found) -> Result<Journal, OpenStoreError> {
    let begun = || {
        let file = journal(How::Anew)?.ok_or(io::ErrorKind::NotFound)?;
        let mut journal = Journal::new(file, fastrand::u64(1..))?;
        journal.clear()?;
        Ok(journal)
    };
    begun().map_err(|source: io::Error| unusable_journal(path)(source.into()))
}

/// Does what the journal has and the store lacks, and has the store say that it is open.
fn resume(
    path: &Path,
    database: &Database,
    journal: &impl Fn(How) -> Found,
) -> Result<Journal, OpenStoreError> {
    let numbers = numbers_of(database).map_err(|error| unreadable(path)(error.into()))?;
    let Numbers { store, batch, is_closed } = numbers;
    let unusable = |error: io::Error| unusable_journal(path)(error.into());
    if is_closed {
        let file = journal(How::OrMade).map_err(unusable)?;
        let file = file.ok_or_else(|| unusable(io::ErrorKind::NotFound.into()))?;
        let mut journal = Journal::new(file, store).map_err(unusable)?;
        // A copy that was put back lies beside the journal of what was there before.
        if !journal.after(batch).is_ok_and(|records| records.is_empty()) {
            journal.clear().map_err(unusable)?;
        }
        replay(database, &[]).map_err(|error| unreadable(path)(error.into()))?;
        return Ok(journal);
    }
    let Some(file) = journal(How::IfThere).map_err(unusable)? else {
        let (path, journal) = (path.to_owned(), journal_of(path));
        return Err(OpenStoreError::WithoutJournal { path, journal });
    };
    let journal = Journal::new(file, store).map_err(unusable)?;
    let records = journal.after(batch).map_err(|error| match error {
        JournalError::Read(source) => unusable(source),
        other => unusable_journal(path)(other.into()),
    })?;
    if !records.is_empty() {
        tracing::info!(batches = records.len(), "did once more what only the journal had");
        replay(database, &records).map_err(|error| unusable_journal(path)(error.into()))?;
    }
    Ok(journal)
}

/// Does batches once more, and puts that and that the store is open on the disk.
fn replay(database: &Database, records: &[(u64, Vec<u8>)]) -> Result<(), StoreError> {
    let transaction = database.begin_write().map_err(fault("beginning to write"))?;
    let mut tables = Tables::begin(&transaction)?;
    for (number, record) in records {
        tables.replay(*number, record)?;
    }
    tables.finish(false)?;
    transaction.commit().map_err(fault("committing"))
}

/// What a store says of itself and its journal.
struct Numbers {
    store: u64,
    batch: u64,
    is_closed: bool,
}

fn numbers_of(database: &Database) -> Result<Numbers, redb::Error> {
    let meta = database.begin_read()?.open_table(META)?;
    let number = |name| Ok::<_, redb::Error>(meta.get(name)?.map_or(0, |number| number.value()));
    Ok(Numbers {
        store: number(META_STORE)?,
        batch: number(META_BATCH)?,
        is_closed: number(META_CLOSED)? == 1,
    })
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

fn initialise(database: &Database, store: u64) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut meta = transaction.open_table(META)?;
        meta.insert(META_FORMAT, FORMAT_VERSION)?;
        meta.insert(META_STORE, store)?;
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

/// Makes a file of the first format one of this.
fn write_numbers(database: &Database, store: u64) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut meta = transaction.open_table(META)?;
        meta.insert(META_FORMAT, FORMAT_VERSION)?;
        meta.insert(META_STORE, store)?;
    }
    Ok(transaction.commit()?)
}

fn unusable_journal(
    path: &Path,
) -> impl FnOnce(Box<dyn Error + Send + Sync>) -> OpenStoreError + use<> {
    let path = journal_of(path);
    move |source| OpenStoreError::Journal { path, source }
}

fn unreadable(path: &Path) -> impl FnOnce(Box<dyn Error + Send + Sync>) -> OpenStoreError {
    let path = path.to_owned();
    move |source| OpenStoreError::Read { path, source }
}
