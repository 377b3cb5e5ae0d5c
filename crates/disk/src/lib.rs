//! The writable layer of an instance, and the limit on it.
//!
//! What a container writes goes to a directory that the overlay has on top, and that directory must
//! not be able to fill the machine's disk. Two means, chosen once by what the data directory's file
//! system has:
//!
//! - a **project quota** ([`Means::ProjectQuota`]): the directory is a project with a limit. Nothing
//!   is mounted and nothing is lost to tables. ext4 with the features `project` and `quota`, mounted
//!   with `prjquota`; XFS mounted with `pquota`.
//! - an **image** ([`Means::Image`]): a sparse file with an ext4 of the limit's size, attached to a
//!   loop device and mounted. Works on every file system. Space that was freed inside is given back
//!   by [`WritableLayers::trim`].
//!
//! Everything lies in the instance's own directory, and each start begins with an empty layer:
//! nothing in it survives an end, so nothing in it has to survive a crash. Whatever is killed when,
//! the next [`WritableLayers::make`] or [`WritableLayers::remove`] begins from there.
//!
//! Rejected: `discard` as a mount option, which makes the removal of a file wait for the disk below
//! (measured: 2.6 ms for each small file, against 0.1); a journal, which would guard what the next
//! start throws away.
//!
//! Test as root: `cargo nextest run -p longshore-disk`.

#![deny(missing_docs)]

mod ext4;
mod image;
mod quota;
mod tree;

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use longshore_types::ByteCount;

pub use longshore_loop::AttachError;

use quota::Quota;

/// The directory of a layer in the directory of its instance.
const BASE: &str = "writable";
/// The image that is mounted there.
const IMAGE: &str = "writable.ext4";
/// The number of the project that it is.
const PROJECT: &str = "project";

/// By which means layers are limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Means {
    /// Project quotas of the file system.
    ProjectQuota,
    /// An image on a loop device for each instance.
    Image,
}

/// Why layers cannot be limited, or a layer not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// A file or directory of it.
    #[error("{doing} {}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The image did not become a block device.
    #[error("making a disk of {}", path.display())]
    Attach {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: AttachError,
    },
}

impl LayerError {
    fn is_full_disk(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull)
    }
}

/// What a layer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerUsage {
    /// What its files take.
    pub used: ByteCount,
    /// The most they can take.
    pub limit: ByteCount,
    /// What it takes on the data directory's file system.
    pub allocated: ByteCount,
}

impl LayerUsage {
    /// What [`WritableLayers::trim`] would give back, about.
    pub fn to_give_back(&self) -> ByteCount {
        ByteCount(self.allocated.0.saturating_sub(self.used.0))
    }
}

/// Makes and removes writable layers below one directory.
#[derive(Debug)]
pub struct WritableLayers {
    quota: Option<Quota>,
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LayerError {
    let path = path.to_owned();
    move |source| LayerError::Io { doing, path, source }
}

/// True when layers below `dir` can be limited, as far as that shows without trying. Nothing is
/// changed, and who may not look is not refused.
pub fn may_limit(dir: &Path) -> bool {
    matches!(Quota::probe(dir), Ok(Some(_))) || longshore_loop::may_be_had()
}

impl WritableLayers {
    /// Finds out by which means layers below `dir` can be limited, and that it works. `dir` holds the
    /// directories of the instances; a name below it that no instance has is used for a moment. On a
    /// full disk nothing can be tried: then the starts of instances tell, once there is room.
    pub fn probe(dir: &Path) -> Result<Self, LayerError> {
        let quota = Quota::probe(dir).map_err(failed("looking for project quotas of", dir))?;
        let layers = Self { quota };
        // A name that no instance can have. What an agent that was killed left here goes first.
        match layers.try_one(&dir.join(".trial")) {
            Err(error) if !error.is_full_disk() => Err(error),
            _ => Ok(layers),
        }
    }

    fn try_one(&self, trial: &Path) -> Result<(), LayerError> {
        self.remove(trial)?;
        make_directory(trial)?;
        let made = self.make(trial, ByteCount::mib(4));
        self.remove(trial)?;
        self.release(trial)?;
        fs::remove_dir(trial).map_err(failed("removing", trial))?;
        made.map(drop)
    }

    /// The means that was found.
    pub fn means(&self) -> Means {
        if self.quota.is_some() { Means::ProjectQuota } else { Means::Image }
    }

    /// Makes an empty layer in the directory of an instance in place of what is there, and gives the
    /// directory in which the overlay can have its own.
    pub fn make(&self, instance: &Path, limit: ByteCount) -> Result<PathBuf, LayerError> {
        self.remove(instance)?;
        let base = instance.join(BASE);
        make_directory(&base)?;
        match &self.quota {
            Some(quota) => quota
                .limit(&base, &instance.join(PROJECT), limit)
                .map_err(failed("setting the quota of", &base))?,
            None => image::mount(&instance.join(IMAGE), &base, limit)?,
        }
        Ok(base)
    }

    /// Removes the layer of an instance with all that was written to it, by whatever means it was
    /// limited. The overlay above must be unmounted. A layer that is not there is fine.
    pub fn remove(&self, instance: &Path) -> Result<(), LayerError> {
        let base = instance.join(BASE);
        image::unmount(&base).map_err(failed("unmounting", &base))?;
        let image = instance.join(IMAGE);
        image::remove(&image).map_err(failed("removing", &image))?;
        tree::remove(&base).map_err(failed("removing", &base))
    }

    /// Gives back what outlives a layer: to be called once the instance goes for good, its layer
    /// removed.
    pub fn release(&self, instance: &Path) -> Result<(), LayerError> {
        let note = instance.join(PROJECT);
        match &self.quota {
            Some(quota) => quota.release(&note).map_err(failed("releasing", &note)),
            None => Ok(()),
        }
    }

    /// What the layer of an instance holds; absent when there is none.
    pub fn usage(&self, instance: &Path) -> io::Result<Option<LayerUsage>> {
        let base = instance.join(BASE);
        let Some(of_base) = present(fs::metadata(&base))? else { return Ok(None) };
        let is_mounted = of_base.dev() != fs::metadata(instance)?.dev();
        let image = present(fs::metadata(instance.join(IMAGE)))?;
        if !is_mounted && !instance.join(PROJECT).exists() {
            return Ok(None);
        }
        let space = rustix::fs::statvfs(&base)?;
        let used = ByteCount((space.f_blocks - space.f_bfree) * space.f_frsize);
        let limit = ByteCount(space.f_blocks * space.f_frsize);
        let allocated = image.map_or(used, |image| ByteCount(image.blocks() * 512));
        Ok(Some(LayerUsage { used, limit, allocated }))
    }

    /// Gives the space that was freed inside a layer back to the file system below.
    pub fn trim(&self, instance: &Path) -> io::Result<()> {
        if self.quota.is_some() { Ok(()) } else { image::trim(&instance.join(BASE)) }
    }
}

fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn make_directory(path: &Path) -> Result<(), LayerError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(failed("making", path))
}
