//! Mounts that are attached for the moment in which overlayfs takes its own copies of them.
//!
//! Until 6.15 overlayfs looks only at mounts that are attached somewhere. They are read-only:
//! should a crash leave one there, nobody who tidies up can reach through it and take layers away.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, move_mount};

use super::{MountRootfsError, create_directory, failed, failed_io, unmount_rootfs};

/// Mounts that are taken away again when this is dropped.
#[derive(Default)]
pub(super) struct Attached {
    points: Vec<PathBuf>,
}

impl Attached {
    /// Attaches a mount at `point`, which is made.
    pub fn attach(&mut self, view: &OwnedFd, point: PathBuf) -> Result<&Path, MountRootfsError> {
        create_directory(&point, 0o700)?;
        // What a crash left.
        unmount_rootfs(&point)
            .map_err(|error| failed_io("freeing", &point)(io::Error::other(error)))?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(view.as_fd(), "", CWD, &point, flags)
            .map_err(failed("attaching layers at", &point))?;
        self.points.push(point);
        Ok(self.points.last().expect("it was just pushed"))
    }

    /// Takes them away again; what overlayfs has of them stays.
    pub fn detach(mut self) -> Result<(), MountRootfsError> {
        for point in self.points.drain(..) {
            unmount_rootfs(&point).map_err(|error| {
                failed_io("detaching layers at", &point)(io::Error::other(error))
            })?;
        }
        Ok(())
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        for point in &self.points {
            // Something failed before and is being told; the next mount there tries again.
            let _ = unmount_rootfs(point);
        }
    }
}
