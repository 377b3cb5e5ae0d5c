//! Images that are a file system of their own: one metadata file, and the data files of their layers.
//!
//! An image is mounted once, when its first instance starts, and attached nowhere: the store holds
//! the mount by a descriptor, each start takes a copy, and overlayfs takes its own from that. So
//! instances of one image share what the kernel has read of it, nothing has to be unmounted, and
//! whatever is killed when, nothing is left. An agent that is started again mounts anew, and shares
//! with the instances that went on only the pages of the files below.
//!
//! The kernel mounts files as they are ([`KernelPath::File`]) or loop devices
//! ([`KernelPath::Loop`]). A copy of what is attached nowhere may be made since 6.15; of a device a
//! second mount is the same file system on every kernel, so there each start mounts.
//!
//! Rejected: a mount that is attached below the run directory, which would have to outlive the
//! agent and be taken away by whoever stops it; a mount for each instance, each with its own pages;
//! the option `directio`, with which a small image is read from the disk a moment after it was
//! written.

use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, open_tree,
};

use longshore_loop::{Access, LoopDevice};

use super::{KernelPath, MountRootfsError, failed, failed_io, with_log};
use crate::erofs::BLOCK;

/// An image as files that the kernel mounts together.
#[derive(Debug)]
pub struct ErofsImage {
    kernel: KernelPath,
    metadata: PathBuf,
    /// In the order in which the metadata file numbers them.
    data: Vec<PathBuf>,
    mounted: Mutex<Option<Mounted>>,
}

/// What is held of an image that was mounted.
#[derive(Debug)]
struct Mounted {
    mount: OwnedFd,
    /// The devices, the metadata first; none where files are mounted as they are.
    devices: Vec<LoopDevice>,
}

/// Two are the same when their files are.
impl PartialEq for ErofsImage {
    fn eq(&self, other: &Self) -> bool {
        (&self.metadata, &self.data) == (&other.metadata, &other.data)
    }
}

impl Eq for ErofsImage {}

impl ErofsImage {
    pub(crate) fn new(kernel: KernelPath, metadata: PathBuf, data: Vec<PathBuf>) -> Self {
        Self { kernel, metadata, data, mounted: Mutex::default() }
    }

    /// The file that is mounted.
    pub(super) fn metadata(&self) -> &Path {
        &self.metadata
    }

    /// All its files, the metadata first.
    #[cfg(test)]
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        std::iter::once(&self.metadata).chain(&self.data).cloned().collect()
    }

    /// A read-only mount of the image, attached nowhere.
    pub(super) fn view(&self) -> Result<OwnedFd, MountRootfsError> {
        let mut mounted = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
        let held = match &mut *mounted {
            Some(held) => held,
            none => none.insert(self.mount()?),
        };
        match held.devices.is_empty() {
            true => {
                let flags = OpenTreeFlags::OPEN_TREE_CLONE
                    | OpenTreeFlags::OPEN_TREE_CLOEXEC
                    | OpenTreeFlags::AT_EMPTY_PATH;
                open_tree(held.mount.as_fd(), "", flags)
                    .map_err(failed("cloning the mount of", &self.metadata))
            }
            false => self.mount_devices(&held.devices),
        }
    }

    fn mount(&self) -> Result<Mounted, MountRootfsError> {
        let paths = std::iter::once(&self.metadata).chain(&self.data);
        let open = |path: &PathBuf| File::open(path).map_err(failed_io("opening", path));
        let files = paths.clone().map(open).collect::<Result<Vec<_>, _>>()?;
        if self.kernel == KernelPath::File {
            // By descriptors, for an option holds 255 bytes at most.
            let name = |file: &File| format!("/proc/self/fd/{}", file.as_raw_fd());
            let mount = self.mount_together(files.iter().map(name))?;
            return Ok(Mounted { mount, devices: Vec::new() });
        }
        let attach = |(file, path): (&File, &PathBuf)| {
            longshore_loop::attach(file, Access::Read, BLOCK as u32)
                .map_err(|source| MountRootfsError::Loop { path: path.clone(), source })
        };
        let devices = files.iter().zip(paths).map(attach).collect::<Result<Vec<_>, _>>()?;
        Ok(Mounted { mount: self.mount_devices(&devices)?, devices })
    }

    fn mount_devices(&self, devices: &[LoopDevice]) -> Result<OwnedFd, MountRootfsError> {
        self.mount_together(devices.iter().map(|device| device.path.to_string_lossy().into_owned()))
    }

    /// Mounts what has these names, the metadata first.
    fn mount_together(
        &self,
        mut names: impl Iterator<Item = String>,
    ) -> Result<OwnedFd, MountRootfsError> {
        let what = &self.metadata;
        let context = match fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC) {
            Err(Errno::NODEV) => return Err(MountRootfsError::NoErofs),
            result => result.map_err(failed("opening a file system for", what))?,
        };
        let set = |key: &str, value: &str| {
            fsconfig_set_string(context.as_fd(), key, value)
                .map_err(|errno| with_log(&context, "describing the mount of", what, errno))
        };
        set("source", &names.next().expect("the metadata comes first"))?;
        names.try_for_each(|name| set("device", &name))?;
        fsconfig_set_flag(context.as_fd(), "ro")
            .map_err(failed("describing the mount of", what))?;
        fsconfig_create(context.as_fd())
            .map_err(|errno| with_log(&context, "mounting", what, errno))?;
        let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV;
        fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
            .map_err(failed("mounting", what))
    }
}
