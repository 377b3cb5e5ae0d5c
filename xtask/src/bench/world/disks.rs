//! Disks of their own for the stores, which count how often they are told to make sure.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use longshore_e2e::small_disk::SmallDisk;

/// Large enough for what a minute writes.
const MIB: u64 = 8 << 10;
/// How often it is tried how long a disk takes to make sure.
const TRIES: usize = 200;
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

    /// How long it takes to make sure that 4 KiB more of a file are there, in the middle of many tries.
    pub fn median_fdatasync(&self) -> Result<Duration> {
        let path = self.path().join("tried");
        let mut file = fs::File::create(&path)?;
        let mut times = Vec::with_capacity(TRIES);
        for _ in 0..TRIES {
            let began = Instant::now();
            file.write_all(&[7; 4096])?;
            file.sync_data()?;
            times.push(began.elapsed());
        }
        fs::remove_file(&path)?;
        times.sort_unstable();
        Ok(times[TRIES / 2])
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
