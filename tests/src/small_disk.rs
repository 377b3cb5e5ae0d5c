//! A small disk that a test may fill.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use tempfile::TempDir;

use crate::image::checked;

/// An ext4 of its own on a loop device, unmounted and gone when it is dropped.
pub struct SmallDisk {
    dir: TempDir,
}

impl SmallDisk {
    /// A disk of so many MiB.
    pub fn new(mib: u64) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("lsd-").tempdir()?;
        let image = dir.path().join("image");
        File::create(&image)?.set_len(mib << 20)?;
        // No part is kept for root, as whom everything here runs.
        checked(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image))
            .context("is the package e2fsprogs installed?")?;
        let disk = Self { dir };
        fs::create_dir(disk.path())?;
        checked(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(disk.path()))?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }

    /// Leaves not a single block free.
    pub fn fill(&self) -> Result<()> {
        let mut file = File::create(self.ballast())?;
        for size in [1 << 20, 4096] {
            let block = vec![1; size];
            loop {
                match file.write_all(&block) {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => bail!("cannot fill a disk: {error}"),
                }
            }
        }
        // Blocks that were only promised are taken now, so that nobody else gets them.
        Ok(file.sync_all()?)
    }

    /// Leaves so many MiB free, or less when others write meanwhile.
    pub fn leave(&self, mib: u64) -> Result<()> {
        let disk = rustix::fs::statvfs(self.path())?;
        let taken = (disk.f_bfree * disk.f_frsize).saturating_sub(mib << 20);
        let file = File::create(self.ballast())?;
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, taken) {
            // It took all there was before that came to an end.
            Ok(()) | Err(Errno::NOSPC) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes room again.
    pub fn empty(&self) -> Result<()> {
        Ok(fs::remove_file(self.ballast())?)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = checked(Command::new("umount").arg(self.path()));
        if let Err(error) = unmounted {
            eprintln!("something still uses the disk: {error:#}");
            let _ = checked(Command::new("umount").arg("--lazy").arg(self.path()));
        }
    }
}
