//! Removing images and the layers that no image needs any more.
//!
//! Whatever goes is renamed to `trash` first, which takes it out of sight in one step; deleting the
//! files can then take its time, and a crash on the way leaves nothing that has a name.

use std::collections::{BTreeSet, HashSet};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use longshore_types::Digest;

use super::open::{remove, remove_old_beginnings};
use super::{BEGINNINGS, Form, ImageStore, Inner, State, StoreIoError, sync_directory};
use crate::steps::{Step, reached};

/// Why images or layers could not be removed.
#[derive(Debug, thiserror::Error)]
#[error("collecting images")]
pub struct CollectError(#[from] StoreIoError);

/// What a collection removed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Collected {
    /// Images, by digest.
    pub images: Vec<Digest>,
    /// Layers, by DiffID.
    pub layers: Vec<Digest>,
}

impl ImageStore {
    /// Removes these images, except those that are held, and every layer that neither an image nor a pull in
    /// progress needs any more. Blocks while files are deleted.
    pub fn collect(&self, take: &[Digest]) -> Result<Collected, CollectError> {
        let mut collected = Collected::default();
        {
            // Held while things are renamed, so that neither a pull nor a start can begin to use any of it.
            let mut state = self.inner.state();
            for digest in take {
                if !state.held.contains_key(digest) && self.inner.forget(&mut state, digest)? {
                    collected.images.push(*digest);
                }
            }
            if !collected.images.is_empty() {
                // Before their layers go. Of a record that a power cut brings back without those nothing is used.
                sync_directory(&self.inner.directory("images"))?;
                reached(Step::RecordsSynced);
            }
            collected.layers = self.inner.trash_unused_layers(&state)?;
        }
        self.inner.empty_trash()?;
        Ok(collected)
    }

    /// Removes what came of layers that nobody came back for. Blocks.
    pub fn remove_old_beginnings(&self) -> Result<(), CollectError> {
        Ok(remove_old_beginnings(&self.inner.directory(BEGINNINGS))?)
    }
}

impl Inner {
    /// Removes an image's record, then what belongs to it alone.
    fn forget(&self, state: &mut State, digest: &Digest) -> Result<bool, StoreIoError> {
        let Some(known) = state.images.get(digest) else {
            return Ok(false);
        };
        let path = self.record_path(digest);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            result => result.map_err(StoreIoError::of("removing", &path))?,
        }
        reached(Step::RecordRemoved);
        if known.stored.has_files_of_its_own() {
            self.trash(&self.image_path(known.stored.form, digest))?;
        }
        state.images.remove(digest);
        Ok(true)
    }

    fn trash_unused_layers(&self, state: &State) -> Result<Vec<Digest>, StoreIoError> {
        let mut trashed = BTreeSet::new();
        for form in Form::ALL {
            let images = state.images.values().filter(|known| known.stored.form == form);
            let used: HashSet<Digest> = images
                .flat_map(|known| known.stored.visible_layers.iter().copied())
                .chain(state.pins.keys().copied())
                .collect();
            let directory = self.directory(form.layers());
            let listing =
                std::fs::read_dir(&directory).map_err(StoreIoError::of("listing", &directory))?;
            for entry in listing {
                let path = entry.map_err(StoreIoError::of("listing", &directory))?.path();
                let name = path.file_name().and_then(std::ffi::OsStr::to_str);
                let diff_id = name.and_then(|name| Digest::from_hex(name).ok());
                if diff_id.is_some_and(|diff_id| used.contains(&diff_id)) {
                    continue;
                }
                self.trash(&path)?;
                trashed.extend(diff_id);
            }
        }
        Ok(trashed.into_iter().collect())
    }

    pub(crate) fn trash(&self, path: &Path) -> Result<(), StoreIoError> {
        let number = self.n_staged.fetch_add(1, Ordering::Relaxed);
        let target = self.directory("trash").join(number.to_string());
        match std::fs::rename(path, &target) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            result => {
                result.map_err(StoreIoError::of("discarding", path))?;
                reached(Step::Trashed);
                Ok(())
            }
        }
    }

    fn empty_trash(&self) -> Result<(), StoreIoError> {
        // Two at once would each find things gone that they had just seen.
        let _alone = self.trash_lock.lock().unwrap_or_else(PoisonError::into_inner);
        let trash = self.directory("trash");
        for entry in std::fs::read_dir(&trash).map_err(StoreIoError::of("listing", &trash))? {
            let path = entry.map_err(StoreIoError::of("listing", &trash))?.path();
            remove(&path)?;
            reached(Step::TrashRemoved);
        }
        Ok(())
    }
}
