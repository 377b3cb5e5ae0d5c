//! Changes to files that a crash or a power cut either finds done or not begun.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::time::{Duration, SystemTime};

use uuid::Uuid;

use super::StorageError;

/// Says what was being done when an I/O error came.
pub(super) trait During<T> {
    /// Turns the error into one that names the action and the path.
    fn during(self, action: &'static str, path: &Path) -> Result<T, StorageError>;
}

impl<T> During<T> for io::Result<T> {
    fn during(self, action: &'static str, path: &Path) -> Result<T, StorageError> {
        self.map_err(|source| StorageError { action, path: path.to_owned(), source })
    }
}

/// Makes the names in a directory last through a power cut.
pub(super) fn sync_dir(path: &Path) -> Result<(), StorageError> {
    File::open(path).and_then(|dir| dir.sync_all()).during("sync", path)
}

fn sync_parent(path: &Path) -> Result<(), StorageError> {
    sync_dir(path.parent().expect("every path here lies below the root"))
}

/// Makes `path` and its parents below `root`.
pub(super) fn ensure_dir(root: &Path, path: &Path) -> Result<(), StorageError> {
    if path == root || path.is_dir() {
        return Ok(());
    }
    ensure_dir(root, path.parent().expect("path lies below root"))?;
    match fs::create_dir(path) {
        // Another request made it a moment ago.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.during("make", path),
    }?;
    sync_parent(path)
}

/// Writes a file under a passing name in `tmp` and renames it to `path`, over what was there.
pub(super) fn write(tmp: &Path, path: &Path, bytes: &[u8]) -> Result<(), StorageError> {
    let passing = tmp.join(Uuid::new_v4().simple().to_string());
    let written = File::create_new(&passing).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    let moved = written
        .during("write", &passing)
        .and_then(|()| fs::rename(&passing, path).during("put in place", path));
    if moved.is_err() {
        // Removed at the next start if not now; the error worth telling is the first.
        let _ = fs::remove_file(&passing);
    }
    moved?;
    sync_parent(path)
}

/// Makes an empty file, unless it is there. Its name may be lost in a power cut.
pub(super) fn touch(path: &Path) -> Result<(), StorageError> {
    match File::create_new(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map(drop).during("make", path),
    }
}

/// Removes a file; false when there was none.
pub(super) fn remove(path: &Path) -> Result<bool, StorageError> {
    match fs::remove_file(path) {
        Ok(()) => sync_parent(path).map(|()| true),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(error).during("remove", path),
    }
}

/// Reads a small file, if there is one.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, StorageError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error).during("read", path),
    }
}

/// The size of a file in bytes, if there is one.
pub(super) fn size(path: &Path) -> Result<Option<u64>, StorageError> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata.len())),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error).during("read", path),
    }
}

/// Since a file was written or renewed, by the machine's clock; `None` when there is none.
pub(super) fn age(path: &Path) -> Result<Option<Duration>, StorageError> {
    match fs::metadata(path).and_then(|metadata| metadata.modified()) {
        // A clock that was put back makes things young, and nothing goes for that.
        Ok(at) => Ok(Some(SystemTime::now().duration_since(at).unwrap_or_default())),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error).during("read", path),
    }
}

/// Makes a file, if there is one, as if it were written now. A power cut may undo that.
pub(super) fn renew(path: &Path) -> Result<(), StorageError> {
    match File::open(path).and_then(|file| file.set_modified(SystemTime::now())) {
        Err(error) if is_absent(&error) => Ok(()),
        renewed => renewed.during("change", path),
    }
}

/// The names in a directory, in order; none when it does not exist.
pub(super) fn list(path: &Path) -> Result<Vec<String>, StorageError> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if is_absent(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error).during("list", path),
    };
    let mut names = entries
        .map(|entry| entry.map(|entry| entry.file_name()))
        .filter_map(|name| name.map(|name| name.into_string().ok()).transpose())
        .collect::<io::Result<Vec<_>>>()
        .during("list", path)?;
    names.sort_unstable();
    Ok(names)
}

fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}
