//! Disks of their own for the stores, which count how often they are told to make sure.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use longshore_e2e::small_disk::SmallDisk;

/// Large enough for what a minute writes.
const MIB: u64 = 8 << 10;
/// Which number of a block device's `stat` counts flushes.
const FLUSHES: usize = 15;

/// An ext4 with its journal on a loop device, in a fresh file.
pub struct Disk {
    disk: SmallDisk,
    device: String,
}

impl Disk {
    /// Makes one.
    pub fn new() -> Result<Self> {
        let disk = SmallDisk::new(MIB)?;
        let path = disk.path().display().to_string();
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let found = fields.find(|fields| fields.get(1) == Some(&path.as_str()));
        let device = found.and_then(|fields| fields.first()?.strip_prefix("/dev/"));
        let device = device.with_context(|| format!("{path} is not mounted from a device"))?;
        Ok(Self { device: device.to_owned(), disk })
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.disk.path()
    }

    /// How often it was told to make sure that what was written is there: once by each fdatasync.
    pub fn flushes(&self) -> Result<u64> {
        let path = format!("/sys/block/{}/stat", self.device);
        let stat = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let count = stat.split_whitespace().nth(FLUSHES);
        let count = count.with_context(|| format!("{path} counts no flushes"))?;
        Ok(count.parse()?)
    }
}
