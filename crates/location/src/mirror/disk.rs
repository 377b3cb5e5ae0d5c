//! Files of a mirror: made so that a crash or a power cut finds each of them whole or not at all.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;

/// A file of the mirror cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}")]
pub struct MirrorError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Says what was being done when an I/O error came.
pub trait During<T> {
    /// Turns the error into one that names the action and the path.
    fn during(self, action: &'static str, path: &Path) -> Result<T, MirrorError>;
}

impl<T> During<T> for io::Result<T> {
    fn during(self, action: &'static str, path: &Path) -> Result<T, MirrorError> {
        self.map_err(|source| MirrorError { action, path: path.to_owned(), source })
    }
}

/// Makes the names in a directory last through a power cut.
pub fn sync_dir(path: &Path) -> Result<(), MirrorError> {
    File::open(path).and_then(|dir| dir.sync_all()).during("sync", path)
}

/// Removes a file, if it is there.
pub fn remove(path: &Path) -> Result<(), MirrorError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.during("remove", path),
    }
}

/// Removes a directory with all that is in it, if it is there.
pub fn remove_all(dir: &Path) -> Result<(), MirrorError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.during("remove", dir),
    }
}

/// Reads these bytes of a file, which must have them. They are not many.
pub fn read(file: &File, part: Range<u64>) -> io::Result<Bytes> {
    let n_bytes = usize::try_from(part.end - part.start).map_err(io::Error::other)?;
    let mut bytes = vec![0; n_bytes];
    file.read_exact_at(&mut bytes, part.start)?;
    Ok(bytes.into())
}

/// A file of a directory.
pub struct Entry {
    pub name: String,
    pub metadata: fs::Metadata,
}

/// The files in a directory, those with names of others left out.
pub fn list(dir: &Path) -> Result<Vec<Entry>, MirrorError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).during("list", dir)? {
        let entry = entry.during("list", dir)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        match entry.metadata() {
            Ok(metadata) => found.push(Entry { name, metadata }),
            // It went meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).during("look at", &entry.path()),
        }
    }
    Ok(found)
}

/// Runs what waits for the disk where nobody else waits for it.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        // Ends its caller as if the panic had happened there.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
