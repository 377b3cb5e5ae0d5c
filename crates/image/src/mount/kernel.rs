//! What of this kernel the trees of images come by.
//!
//! Found out by doing, with an image of one file in the store's own directory, and never by a
//! version: a kernel may lack a module, a file system may lack what EROFS reads it by, a container
//! may lack loop devices.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use longshore_archive::tar::Xattr;
use longshore_types::ImageMount;

use super::{ErofsImage, ImageTree, MountRootfsError, mount_tree, unmount_under};
use crate::erofs::{self, BLOCK};
use crate::index::Attributes;
use crate::steps::{Step, reached};

/// How the kernel comes to the tree of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelPath {
    /// It mounts an image's files as they are, as EROFS.
    File,
    /// It mounts loop devices that are made of them.
    Loop,
    /// It stacks directories of unpacked layers: there is no EROFS.
    Directories,
}

impl fmt::Display for KernelPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        ImageMount::from(*self).fmt(formatter)
    }
}

impl From<KernelPath> for ImageMount {
    fn from(path: KernelPath) -> Self {
        match path {
            KernelPath::File => Self::ErofsFiles,
            KernelPath::Loop => Self::ErofsLoop,
            KernelPath::Directories => Self::Directories,
        }
    }
}

const FILE: &str = "probe";
const CONTENTS: &str = "as it was written";
/// Kernels can be built with an EROFS that shows no attributes, or no capabilities.
const XATTRS: [(&str, &[u8]); 2] = [
    ("security.capability", &[0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ("user.probe", b"kept"),
];

/// The best way that works for images in a directory, an empty one of ours, which is empty again
/// after it. The reasons why better ones do not work go into the log.
pub(crate) fn probe(directory: &Path) -> KernelPath {
    for kernel in [KernelPath::File, KernelPath::Loop] {
        match try_path(kernel, directory) {
            Ok(()) => return kernel,
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::info!(error, "images are not mounted as {kernel}");
            }
        }
    }
    KernelPath::Directories
}

/// Mounts an image of one file as an instance has it, and reads the file with its attributes.
fn try_path(kernel: KernelPath, directory: &Path) -> Result<(), MountRootfsError> {
    let dir = &directory.join("probe");
    fs::create_dir(dir).map_err(super::failed_io("making", dir))?;
    let tried = try_in(kernel, dir);
    if let Err(error) = unmount_under(dir) {
        let error: &dyn std::error::Error = &error;
        tracing::warn!(error, "cannot unmount what was tried");
    }
    fs::remove_dir_all(dir).map_err(super::failed_io("removing", dir))?;
    tried
}

fn try_in(kernel: KernelPath, directory: &Path) -> Result<(), MountRootfsError> {
    let tree = ImageTree::Erofs(Arc::new(write_probe_image(kernel, directory)?));
    let target = directory.join("rootfs");
    mount_tree(&tree, &directory.join("base"), &target, None)?;
    reached(Step::ProbeMounted);
    let file = target.join(FILE);
    let is_right = || -> io::Result<bool> {
        let mut is_right = fs::read(&file)? == CONTENTS.as_bytes();
        for (name, value) in XATTRS {
            let mut read = [0; 32];
            let n_bytes = rustix::fs::getxattr(&file, name, &mut read[..])?;
            is_right &= &read[..n_bytes] == value;
        }
        Ok(is_right)
    };
    match is_right().map_err(super::failed_io("reading", &file))? {
        true => Ok(()),
        false => Err(super::failed_io("reading", &file)(io::ErrorKind::InvalidData.into())),
    }
}

/// Makes an image of one file in a directory.
pub(super) fn write_probe_image(
    kernel: KernelPath,
    directory: &Path,
) -> Result<ErofsImage, MountRootfsError> {
    let (metadata, data) = (directory.join("metadata"), directory.join("data"));
    let mut block = CONTENTS.as_bytes().to_vec();
    block.resize(BLOCK as usize, 0);
    fs::write(&data, block).map_err(super::failed_io("writing", &data))?;
    fs::write(&metadata, probe_metadata()).map_err(super::failed_io("writing", &metadata))?;
    Ok(ErofsImage::new(kernel, metadata, vec![data]))
}

fn probe_metadata() -> Vec<u8> {
    let attributes = Attributes { mode: 0o755, ..Attributes::default() };
    let xattrs = XATTRS.map(|(name, value)| Xattr { name: name.into(), value: value.into() });
    let with_xattrs = Attributes { xattrs: xattrs.to_vec(), ..attributes.clone() };
    let file = erofs::Kind::File { size: CONTENTS.len() as u64, device: 0, first_block: 0 };
    let root = erofs::Kind::Directory(vec![(FILE.as_bytes(), 1)]);
    let root = erofs::Node { attributes: &attributes, kind: root };
    let file = erofs::Node { attributes: &with_xattrs, kind: file };
    let tree = erofs::Tree { nodes: vec![root, file], devices: vec![1] };
    let mut bytes = Vec::new();
    erofs::write(&tree, &mut bytes).expect("memory takes what is written, and one device is few");
    bytes
}
