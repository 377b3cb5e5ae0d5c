//! The end of a pull: all layers are there, and an image is made of them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::sync::Arc;

use longshore_types::Digest;

use super::Resolved;
use crate::attributes::{LayerView, lost_attributes, visible_layers, write_directories};
use crate::erofs;
use crate::index::{self, LayerTree, merge};
use crate::limits::LimitExceeded;
use crate::steps::{Step, reached};
use crate::store::{Form, INDEX, Inner, Staging, StoreIoError, StoredImage};
use crate::unpack::LayerReport;

/// Why layers did not become an image.
pub(super) enum CommitError {
    Store(StoreIoError),
    Limit(LimitExceeded),
}

impl From<StoreIoError> for CommitError {
    fn from(error: StoreIoError) -> Self {
        Self::Store(error)
    }
}

/// Makes what belongs to the image alone, and then its record.
pub(super) fn commit(
    store: &Arc<Inner>,
    digest: Digest,
    resolved: Resolved,
    reports: &HashMap<Digest, LayerReport>,
) -> Result<(), CommitError> {
    let visible_layers = visible_layers(&resolved.config.diff_ids, reports);
    let mut image = StoredImage {
        digest,
        manifest: resolved.manifest,
        config: resolved.config,
        config_text: resolved.config_text,
        // An image without layers is an empty directory to every kernel.
        form: if visible_layers.is_empty() { Form::Directories } else { store.form() },
        visible_layers,
        devices: Vec::new(),
        has_attributes: false,
    };
    match image.form {
        Form::Directories => {
            image.has_attributes = write_attributes(store, &image, reports)?;
        }
        Form::Erofs => image.devices = write_metadata(store, &image)?,
    }
    Ok(store.commit_image(image)?)
}

/// Writes the attributes of directories that no single layer can hold; false when there are none.
fn write_attributes(
    store: &Arc<Inner>,
    image: &StoredImage,
    reports: &HashMap<Digest, LayerReport>,
) -> Result<bool, StoreIoError> {
    let views = image
        .visible_layers
        .iter()
        .map(|diff_id| {
            let path = store.layer_path(Form::Directories, diff_id).join("fs");
            let root = File::open(&path).map_err(StoreIoError::of("opening", &path))?;
            Ok(LayerView {
                root: root.into(),
                implicit_directories: &reports[diff_id].implicit_directories,
            })
        })
        .collect::<Result<Vec<_>, StoreIoError>>()?;
    let target = store.image_path(Form::Directories, &image.digest);
    let lost = lost_attributes(&views).map_err(StoreIoError::of("merging layers for", &target))?;
    if lost.is_empty() {
        return Ok(false);
    }
    let staging = Staging::new(store)?;
    write_directories(staging.path(), &lost)
        .map_err(StoreIoError::of("writing", staging.path()))?;
    reached(Step::AttributesWritten);
    store.trash(&target)?; // Of an attempt that ended before its record was written.
    staging.commit(&target)?;
    Ok(true)
}

/// Merges the layers and writes the metadata file; gives the layers that it points into.
fn write_metadata(store: &Arc<Inner>, image: &StoredImage) -> Result<Vec<Digest>, CommitError> {
    let mut n_bytes = 0;
    let mut trees = Vec::with_capacity(image.visible_layers.len());
    for diff_id in &image.visible_layers {
        let (tree, n_read) = read_index(store, diff_id)?;
        n_bytes += n_read;
        LimitExceeded::check("bytes of indexes of layers", n_bytes, store.limits.index_bytes.0)
            .map_err(CommitError::Limit)?;
        trees.push(tree);
    }
    let merged = merge::merge(&trees);
    let target = store.image_path(Form::Erofs, &image.digest);
    let staging = Staging::new(store)?;
    let file = staging.create_file("metadata")?;
    let write = || {
        let mut out = BufWriter::with_capacity(1 << 20, &file);
        erofs::write(&merged.tree, &mut out)?;
        out.flush()?;
        reached(Step::MetadataWritten);
        file.sync_all()
    };
    write().map_err(StoreIoError::of("writing", &staging.path().join("metadata")))?;
    reached(Step::MetadataSynced);
    staging.rename_file("metadata", &target)?;
    Ok(merged.devices.into_iter().map(|idx| image.visible_layers[idx]).collect())
}

/// The tree of a layer, and the length of its index. One that cannot be used takes its layer along,
/// so that the next attempt fetches it anew.
fn read_index(store: &Inner, diff_id: &Digest) -> Result<(LayerTree, u64), StoreIoError> {
    let layer = store.layer_path(Form::Erofs, diff_id);
    let path = layer.join(INDEX);
    let bytes = std::fs::read(&path).map_err(StoreIoError::of("reading", &path))?;
    match index::decode(&bytes, store.limits.depth) {
        Ok(tree) => Ok((tree, bytes.len() as u64)),
        Err(error) => {
            store.trash(&layer)?;
            Err(StoreIoError::of("reading", &path)(io::Error::other(error)))
        }
    }
}
