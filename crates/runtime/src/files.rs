//! Small JSON records on disk, replaced atomically.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A record that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileProblem {
    /// The file could not be read.
    #[error("reading {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file could not be written.
    #[error("writing {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file does not hold the record it should.
    #[error("{} is not a valid record", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The record was written by a newer Longshore.
    #[error("{} has version {found}, this program knows {known}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The version found.
        found: u32,
        /// The version known.
        known: u32,
    },
}

/// Whether a record must outlive a power failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// It may be lost with the machine.
    Cached,
    /// It is on disk when the write returns.
    Synced,
}

/// Replaces `path` so that a reader sees the old or the new record, never half of one.
pub(crate) fn replace_json<T: Serialize>(
    path: &Path,
    record: &T,
    durability: Durability,
) -> Result<(), FileProblem> {
    let fail = |source| FileProblem::Write { path: path.to_owned(), source };
    let bytes = serde_json::to_vec(record)
        .map_err(|source| FileProblem::Parse { path: path.to_owned(), source })?;
    // The agent and a shim may both write the record of an exit; each through a file of its own.
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let write = || -> io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(&bytes)?;
        if durability == Durability::Synced {
            file.sync_all()?;
        }
        fs::rename(&temporary, path)?;
        if durability == Durability::Synced
            && let Some(parent) = path.parent()
        {
            File::open(parent)?.sync_all()?;
        }
        Ok(())
    };
    write().map_err(fail)
}

/// Writes a record that its owner alone may read; not replaced in one step, for nobody reads it before
/// the caller says so.
pub(crate) fn write_private_json<T: Serialize>(path: &Path, record: &T) -> Result<(), FileProblem> {
    let bytes = serde_json::to_vec(record)
        .map_err(|source| FileProblem::Parse { path: path.to_owned(), source })?;
    let mut options = fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(&bytes))
        .map_err(|source| FileProblem::Write { path: path.to_owned(), source })
}

/// Reads the record at `path`; absent when there is no such file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, FileProblem> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(FileProblem::Read { path: path.to_owned(), source }),
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|source| FileProblem::Parse { path: path.to_owned(), source })
}

/// Removes a file or a whole directory, if it is there.
pub(crate) fn remove_if_present(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
