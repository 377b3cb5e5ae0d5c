//! Files of the machine that a container sees, where another program makes the container.
//!
//! A runtime would find the places for them by their paths, and some make what is missing on the way
//! without looking whether a directory has become a link since (CVE-2024-45310). So it is not asked to:
//! it gets a root file system in which they are mounted, by descriptors and in mounts of its own.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::{DriverProblem, dev_tree};
use crate::rooted::Root;
use crate::spec::ReadOnlyFile;
use crate::view;

pub(super) struct Shown {
    rootfs: PathBuf,
    /// Each with its place in the container, which exists.
    views: Vec<(OwnedFd, String)>,
    /// Where `/dev` is made, and for whom.
    dev: Option<(PathBuf, u32)>,
}

impl Shown {
    pub fn open(
        rootfs: &Path,
        files: &[ReadOnlyFile],
        dev: Option<(PathBuf, u32)>,
    ) -> Result<Self, DriverProblem> {
        let open = |file: &ReadOnlyFile| {
            let view = view::read_only(&file.source, libc::MOUNT_ATTR_NOEXEC);
            let view = view
                .map_err(|source| DriverProblem::Prepare { path: file.source.clone(), source })?;
            Ok((view, file.destination.clone()))
        };
        let views = files.iter().map(open).collect::<Result<_, DriverProblem>>()?;
        if let Some((dir, _)) = &dev {
            fs::create_dir_all(dir)
                .map_err(|source| DriverProblem::Prepare { path: dir.clone(), source })?;
        }
        Ok(Self { rootfs: rootfs.to_owned(), views, dev })
    }

    /// Called in the child that is about to run the runtime.
    pub fn attach(&self) -> io::Result<()> {
        view::unshare_mounts()?;
        let root = Root::open(&self.rootfs)?;
        for (view, destination) in &self.views {
            view::attach(view, &root.open_place(destination)?)?;
        }
        match &self.dev {
            Some((dir, root)) => dev_tree::make(dir, *root),
            None => Ok(()),
        }
    }
}
