//! Things that are being made and have no name yet.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Inner, StoreIoError, sync_directory};
use crate::steps::{Step, reached};

/// A directory in `staging`, removed with all that is in it unless it was given a name.
pub(crate) struct Staging {
    path: PathBuf,
}

impl Staging {
    pub fn new(store: &Arc<Inner>) -> Result<Self, StoreIoError> {
        let number = store.n_staged.fetch_add(1, Ordering::Relaxed);
        let path = store.directory("staging").join(number.to_string());
        std::fs::create_dir(&path).map_err(StoreIoError::of("creating", &path))?;
        reached(Step::Staged);
        Ok(Self { path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a directory inside and opens it.
    pub fn create_directory(&self, name: &str) -> Result<OwnedFd, StoreIoError> {
        let path = self.path.join(name);
        std::fs::create_dir(&path)
            .and_then(|()| File::open(&path))
            .map(OwnedFd::from)
            .map_err(StoreIoError::of("creating", &path))
    }

    /// Makes an empty file inside, to be read and written.
    pub fn create_file(&self, name: &str) -> Result<File, StoreIoError> {
        let path = self.path.join(name);
        File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(StoreIoError::of("creating", &path))
    }

    /// Writes a file inside.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StoreIoError> {
        let path = self.path.join(name);
        File::create(&path)
            .and_then(|mut file| {
                file.write_all(bytes)?;
                reached(Step::StagedFileWritten);
                file.sync_all()
            })
            .map_err(StoreIoError::of("writing", &path))?;
        reached(Step::StagedFileSynced);
        Ok(())
    }

    /// Puts everything inside on the disk and renames it to `target`. When `target` is there already
    /// it stays: what has a name is whole, and the same name means the same contents.
    pub fn commit(self, target: &Path) -> Result<(), StoreIoError> {
        let directory = File::open(&self.path).map_err(StoreIoError::of("opening", &self.path))?;
        rustix::fs::syncfs(&directory)
            .map_err(|errno| StoreIoError::of("syncing", &self.path)(errno.into()))?;
        self.rename(target)
    }

    /// The same for what was made with [`Staging::write`] and files that the caller has synced: it
    /// waits for no other's writes.
    pub fn commit_synced(self, target: &Path) -> Result<(), StoreIoError> {
        sync_directory(&self.path)?;
        self.rename(target)
    }

    /// Gives a file that was made inside, and synced, its name; one that is there already goes.
    pub fn rename_file(&self, name: &str, target: &Path) -> Result<(), StoreIoError> {
        std::fs::rename(self.path.join(name), target)
            .map_err(StoreIoError::of("renaming to", target))?;
        reached(Step::FileNamed);
        sync_directory(target.parent().expect("names of the store lie in its directories"))?;
        reached(Step::FileNameSynced);
        Ok(())
    }

    fn rename(self, target: &Path) -> Result<(), StoreIoError> {
        reached(Step::StagedSynced);
        match std::fs::rename(&self.path, target) {
            Err(_) if target.is_dir() => return Ok(()),
            result => result.map_err(StoreIoError::of("renaming to", target))?,
        }
        reached(Step::Named);
        sync_directory(target.parent().expect("names of the store lie in its directories"))?;
        reached(Step::NameSynced);
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        match std::fs::remove_dir_all(&self.path) {
            Ok(()) => reached(Step::StagedRemoved),
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                // The next opening of the store removes it.
                tracing::warn!(path = %self.path.display(), %error, "cannot remove a staged directory");
            }
            // It was given a name.
            Err(_) => {}
        }
    }
}
