//! The two forms in which a store keeps layers and images; both may be in one store.
//!
//! An agent that mounts EROFS goes on using what an earlier one unpacked into directories, and takes
//! new images in the other form. A layer in one form is nothing for an image in the other.

use longshore_types::Digest;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Inner, StoredImage};
use crate::mount::{ErofsImage, ImageTree, KernelPath};

/// How a layer or image lies on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Form {
    /// A layer is a directory, an image a stack of them.
    Directories,
    /// A layer is a file of contents and an index, an image a metadata file.
    Erofs,
}

impl Form {
    pub const ALL: [Self; 2] = [Self::Directories, Self::Erofs];

    /// The form in which a kernel path takes images.
    pub fn of(kernel: KernelPath) -> Self {
        match kernel {
            KernelPath::File | KernelPath::Loop => Self::Erofs,
            KernelPath::Directories => Self::Directories,
        }
    }

    /// The directory of the store with its layers.
    pub fn layers(self) -> &'static str {
        match self {
            Self::Directories => "layers",
            Self::Erofs => "indexed",
        }
    }

    /// The directory of the store with what belongs to an image alone.
    pub fn images(self) -> &'static str {
        match self {
            Self::Directories => "attributes",
            Self::Erofs => "metadata",
        }
    }
}

/// In the directory of a layer, the contents of its files.
pub(crate) const DATA: &str = "data";
/// In the directory of a layer, its tree.
pub(crate) const INDEX: &str = "index";

impl Inner {
    pub fn layer_path(&self, form: Form, diff_id: &Digest) -> PathBuf {
        self.directory(form.layers()).join(diff_id.hex())
    }

    /// What belongs to an image alone: a directory of attributes, or the metadata file.
    pub fn image_path(&self, form: Form, image: &Digest) -> PathBuf {
        self.directory(form.images()).join(image.hex())
    }

    /// Whether a layer is whole and on the disk, in the form that this store takes.
    pub fn has_layer(&self, diff_id: &Digest) -> bool {
        self.layer_path(self.form(), diff_id).is_dir()
    }

    /// The form in which this store takes images.
    pub fn form(&self) -> Form {
        Form::of(self.kernel)
    }

    /// What is mounted of an image.
    pub fn tree(&self, stored: &StoredImage) -> ImageTree {
        match stored.form {
            Form::Directories => {
                let layers = stored.visible_layers.iter();
                let mut layers: Vec<PathBuf> = layers
                    .map(|diff_id| self.layer_path(Form::Directories, diff_id).join("fs"))
                    .collect();
                if stored.has_attributes {
                    layers.push(self.image_path(Form::Directories, &stored.digest));
                }
                ImageTree::Directories(layers)
            }
            Form::Erofs => {
                let metadata = self.image_path(Form::Erofs, &stored.digest);
                let data = stored.devices.iter();
                let data = data.map(|diff_id| self.layer_path(Form::Erofs, diff_id).join(DATA));
                let image = ErofsImage::new(self.kernel, metadata, data.collect());
                ImageTree::Erofs(Arc::new(image))
            }
        }
    }
}
