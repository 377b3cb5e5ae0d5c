//! A place to measure in: network, processes and mounts of its own, and a fresh file system.
//!
//! The bench runs itself again in new namespaces, so that the peers' bridges, firewall rules and
//! mounts are those of a fresh machine, and everything is gone when it ends, also when it is
//! interrupted. All contenders keep their state on one ext4 on a loop device, so that none gains by
//! what it lies on.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use longshore_e2e::image::checked;

use crate::command::{program, target_dir};

/// Set for the second run.
const INSIDE: &str = "LONGSHORE_BENCH_INSIDE";

/// Whether this is the second run, inside the namespaces.
pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Becomes the same program with the same arguments in new namespaces, with a number in the variable
/// `name` when there is one; returns only an error.
pub fn enter(name: &str, number: Option<f64>) -> Result<()> {
    let itself = std::env::current_exe().context("cannot find this program")?;
    let mut unshare = program("unshare", ["--mount", "--net", "--pid", "--fork", "--kill-child"]);
    unshare.args(["--mount-proc", "--propagation", "private", "--"]);
    unshare.arg(itself).args(std::env::args_os().skip(1)).env(INSIDE, "1");
    if let Some(number) = number {
        unshare.env(name, number.to_string());
    }
    let error = unshare.exec();
    bail!("cannot run unshare: {error}");
}

/// The file system.
pub struct Disk {
    image: PathBuf,
    /// Where it is mounted; a short path, for the sockets below it.
    pub dir: PathBuf,
}

impl Disk {
    /// Makes and mounts one of so many bytes, and sets up loopback.
    pub fn make(size: u64) -> Result<Self> {
        checked(&mut program("ip", ["link", "set", "lo", "up"]))?;
        let id = std::process::id();
        let image = target_dir().join(format!("bench-{id}.img"));
        let dir = std::env::temp_dir().join(format!("lsb-{id}"));
        let disk = Self { image, dir };
        let file = fs::File::create(&disk.image)
            .with_context(|| format!("cannot create {}", disk.image.display()))?;
        file.set_len(size)?;
        checked(program("mkfs.ext4", ["-q", "-F"]).arg(&disk.image))?;
        fs::create_dir_all(&disk.dir)?;
        checked(program("mount", ["-o", "loop"]).arg(&disk.image).arg(&disk.dir))?;
        Ok(disk)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The mount would go with its namespace; the directory under it only without the mount.
        let _ = checked(program("umount", ["--lazy"]).arg(&self.dir));
        let _ = fs::remove_dir(&self.dir);
        let _ = fs::remove_file(&self.image);
    }
}
