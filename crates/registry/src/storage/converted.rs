//! What the registry itself made of the layers of images.
//!
//! What became of a layer is kept by the blob that it was made of **and** its DiffID, never by the DiffID
//! alone: the config that names one is anybody's, and who has no right to a layer must not get what was
//! made of it by naming it. A repository that has the blob was given it by somebody who has its bytes.
//!
//! Which artifacts are the registry's own, and what becomes of them, is in [`super::forms`].

use std::path::PathBuf;
use std::time::Duration;

use longshore_image::converted::artifact::ConvertedLayer;
use longshore_image::manifest::Descriptor;
use longshore_types::{ByteCount, Digest, Repository};
use serde::{Deserialize, Serialize};

use super::durable::{self, During as _};
use super::links::read_json;
use super::uploads::UploadHash;
use super::{Storage, StorageError, UploadId};

/// What became of layers.
const OUTCOMES: &str = "converted";

/// Whose uploads those of the converter are: no repository has such a name.
pub(super) const CONVERTER: &str = "_converter";

/// What is left free of the largest disk, in bytes.
const ENOUGH_FREE: u64 = 10 << 30;

/// Raised when what a layer becomes changes, or what is refused.
const VERSION: u32 = 1;

/// A layer as it was pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Pushed {
    pub(crate) blob: Digest,
    pub(crate) diff_id: Digest,
}

impl Pushed {
    fn name(self) -> String {
        format!("{}-{}", self.blob.hex(), self.diff_id.hex())
    }

    fn of_name(name: &str) -> Option<Self> {
        let (blob, diff_id) = name.split_once('-')?;
        let (blob, diff_id) = (Digest::from_hex(blob).ok()?, Digest::from_hex(diff_id).ok()?);
        Some(Self { blob, diff_id })
    }
}

/// A layer that is converted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Made {
    pub(crate) layer: Pushed,
    pub(crate) parts: ConvertedLayer,
    /// Since it was made, or last found to be right.
    pub(crate) age: Duration,
}

/// What became of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Converted(ConvertedLayer),
    /// It never can be, for this reason.
    Refused(String),
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    converted: Option<Parts>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Parts {
    index: Part,
    frames: Part,
    table: Part,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Part {
    digest: Digest,
    size: u64,
}

impl From<Descriptor> for Part {
    fn from(Descriptor { digest, size }: Descriptor) -> Self {
        Self { digest, size: size.0 }
    }
}

impl From<Part> for Descriptor {
    fn from(Part { digest, size }: Part) -> Self {
        Self { digest, size: ByteCount(size) }
    }
}

impl Storage {
    fn outcome_path(&self, layer: Pushed) -> PathBuf {
        self.root.join(OUTCOMES).join(layer.name())
    }

    /// What became of a layer before, when that is known.
    pub(crate) fn outcome(&self, layer: Pushed) -> Result<Option<Outcome>, StorageError> {
        let record: Option<Record> = read_json(&self.outcome_path(layer))?;
        let record = record.filter(|record| record.version == VERSION);
        Ok(record.and_then(|Record { version: _, converted, refused }| match converted {
            Some(Parts { index, frames, table }) => Some(Outcome::Converted(ConvertedLayer {
                index: index.into(),
                frames: frames.into(),
                table: table.into(),
            })),
            None => refused.map(Outcome::Refused),
        }))
    }

    /// Remembers what became of a layer.
    pub(crate) fn keep_outcome(
        &self,
        layer: Pushed,
        outcome: &Outcome,
    ) -> Result<(), StorageError> {
        let (converted, refused) = match outcome {
            Outcome::Converted(ConvertedLayer { index, frames, table }) => {
                let (index, frames) = ((*index).into(), (*frames).into());
                (Some(Parts { index, frames, table: (*table).into() }), None)
            }
            Outcome::Refused(why) => (None, Some(why.clone())),
        };
        let record = Record { version: VERSION, converted, refused };
        let record = serde_json::to_vec(&record).expect("texts and numbers are valid JSON");
        let path = self.outcome_path(layer);
        durable::ensure_dir(&self.root, &self.root.join(OUTCOMES))?;
        durable::write(&self.tmp(), &path, &record)
    }

    /// Forgets what became of layers that nobody has any more.
    pub(crate) fn forget_outcomes(&self) -> Result<(), StorageError> {
        let directory = self.root.join(OUTCOMES);
        for name in durable::list(&directory)? {
            let size = Pushed::of_name(&name).map(|layer| self.bytes_size(&layer.blob));
            match size.transpose() {
                Ok(size) if size.flatten().is_none() => {
                    durable::remove(&directory.join(name))?;
                }
                Ok(_) => {}
                // The others are looked after all the same.
                Err(error) => {
                    let error = longshore_types::chain(&error);
                    tracing::warn!(layer = name, error, "whether a layer is there is not known");
                }
            }
        }
        Ok(())
    }

    /// The layers that are converted, in order, without those of which a part is gone.
    pub(crate) fn made(&self) -> Result<Vec<Made>, StorageError> {
        let mut made = Vec::new();
        for name in durable::list(&self.root.join(OUTCOMES))? {
            let Some(layer) = Pushed::of_name(&name) else { continue };
            match self.made_of(layer) {
                Ok(found) => made.extend(found),
                // The others are looked after all the same.
                Err(error) => {
                    let error = longshore_types::chain(&error);
                    tracing::warn!(layer = name, error, "what became of a layer is not known");
                }
            }
        }
        Ok(made)
    }

    fn made_of(&self, layer: Pushed) -> Result<Option<Made>, StorageError> {
        let Some(Outcome::Converted(parts)) = self.outcome(layer)? else { return Ok(None) };
        if !self.has_parts(&parts)? {
            return Ok(None);
        }
        let age = durable::age(&self.outcome_path(layer))?;
        Ok(age.map(|age| Made { layer, parts, age }))
    }

    fn has_parts(&self, parts: &ConvertedLayer) -> Result<bool, StorageError> {
        for part in parts.blobs() {
            if self.bytes_size(&part.digest)?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A repository that has a layer as it was pushed and what it became.
    pub(crate) fn home_of(&self, made: &Made) -> Result<Option<Repository>, StorageError> {
        let parts = made.parts.blobs().map(|part| part.digest);
        for repository in self.repositories()? {
            if self.has_blobs(&repository, [&made.layer.blob].into_iter().chain(&parts))? {
                return Ok(Some(repository));
            }
        }
        Ok(None)
    }

    /// Remembers that what a layer became was found to be right.
    pub(crate) fn note_right(&self, layer: Pushed) -> Result<(), StorageError> {
        durable::renew(&self.outcome_path(layer))
    }

    /// Gives the repository what a layer of it became; false when that is not there any more.
    pub(crate) fn link_converted(
        &self,
        repository: &Repository,
        layer: &ConvertedLayer,
    ) -> Result<bool, StorageError> {
        for blob in layer.blobs() {
            if !self.link_present(repository, &blob.digest)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether so much more leaves a tenth of the disk free, or what is enough on a large one, which pushes and
    /// whoever shares it need. Of an object store nobody knows.
    pub(crate) fn has_room(&self, most: u64) -> Result<bool, StorageError> {
        if self.objects.is_some() {
            return Ok(true);
        }
        self.has_local_room(most)
    }

    /// The same of the disk itself, which also has what passes on its way to an object store.
    pub(crate) fn has_local_room(&self, most: u64) -> Result<bool, StorageError> {
        let disk = rustix::fs::statvfs(&self.root).map_err(std::io::Error::from);
        let disk = disk.during("look at", &self.root)?;
        let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
        Ok(bytes(disk.f_bavail)
            >= most.saturating_add((bytes(disk.f_blocks) / 10).min(ENOUGH_FREE)))
    }

    /// Begins an upload that no request can name.
    pub(crate) fn begin_own_upload(&self) -> Result<(UploadId, UploadHash), StorageError> {
        self.begin_upload_of(CONVERTER)
    }

    /// Removes what a crash left of such, and of those that it left before they were anybody's.
    pub(super) fn remove_own_uploads(&self) -> Result<(), StorageError> {
        for (dir, owner) in self.uploads()? {
            if owner.is_empty() || owner == CONVERTER.as_bytes() {
                self.remove_upload_dir(&dir)?;
            }
        }
        Ok(())
    }
}
