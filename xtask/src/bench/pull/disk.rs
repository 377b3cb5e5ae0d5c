//! A file system that nobody wrote to: each pull gets one, for ext4 takes longer to make files where it
//! removed some a moment before, and what a peer left would be in the way of the next.

use std::fs::{self, File};
use std::path::PathBuf;

use anyhow::{Context, Result};
use longshore_e2e::image::checked;
use rustix::fs::FallocateFlags;

use crate::command::{output, program, target_dir};

/// One that is mounted; dropping it leaves nothing.
pub struct FreshDisk {
    /// Where it is mounted; a short path, for the sockets below it.
    pub dir: PathBuf,
    opened: Option<File>,
}

impl FreshDisk {
    /// Makes one of so many bytes. All of it is allocated, and nothing is left to be done in the background.
    pub fn make(size: u64) -> Result<Self> {
        let size = size.next_multiple_of(1 << 20);
        let image = target_dir().join(format!("bench-pull-{:08x}.img", fastrand::u32(..)));
        let file =
            File::create(&image).with_context(|| format!("cannot create {}", image.display()))?;
        let made = Self::mount(&file, size, &image);
        // The loop device holds the file from here on, and the kernel drops both when the bench is killed.
        fs::remove_file(&image)?;
        made
    }

    fn mount(file: &File, size: u64, image: &std::path::Path) -> Result<Self> {
        rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size)
            .with_context(|| format!("no room for a file system of {} MiB", size >> 20))?;
        let mut mkfs = program("mkfs.ext4", ["-q", "-F", "-E"]);
        checked(mkfs.arg("lazy_itable_init=0,lazy_journal_init=0").arg(image))?;
        let mut attach = program("losetup", ["--direct-io=on", "--find", "--show"]);
        let device = output(attach.arg(image))?.trim().to_owned();
        let dir = std::env::temp_dir().join(format!("lsp-{:08x}", fastrand::u32(..)));
        let mounted = fs::create_dir_all(&dir)
            .map_err(anyhow::Error::from)
            .and_then(|()| checked(program("mount", [&device]).arg(&dir)));
        // Once it is mounted it goes with its last mount.
        checked(&mut program("losetup", ["--detach", &device]))?;
        mounted?;
        let opened = Some(File::open(&dir)?);
        Ok(Self { dir, opened })
    }

    /// Waits until all that was written is on the disk.
    pub fn sync(&self) -> Result<()> {
        let opened = self.opened.as_ref().context("it is mounted")?;
        rustix::fs::syncfs(opened).context("cannot sync")
    }

    /// Bytes that are used.
    pub fn used(&self) -> Result<u64> {
        let stat = rustix::fs::statvfs(&self.dir)?;
        Ok((stat.f_blocks - stat.f_bfree) * stat.f_frsize)
    }
}

impl Drop for FreshDisk {
    fn drop(&mut self) {
        self.opened = None;
        let _ = checked(program("umount", ["--recursive"]).arg(&self.dir))
            .or_else(|_| checked(program("umount", ["--lazy"]).arg(&self.dir)));
        let _ = fs::remove_dir(&self.dir);
    }
}
