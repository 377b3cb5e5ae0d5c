//! The disk of the machine and its kernel: a Debian 12 made by debootstrap, kept as long as its
//! recipe stays the same.
//!
//! The kernel comes with its modules from Debian's package, which is unpacked into that root and never
//! installed on this machine. It has NVMe and ext4 built in, so it boots from the disk without an
//! initramfs. The file system keeps project quotas.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use longshore_e2e::debian::{self, SUITE};

use crate::command::{program, run, target_dir};

const KERNEL: &str = "linux-image-cloud-amd64";

/// What is in it: Debian's kernel and init, and what the tests use.
const PACKAGES: &[&str] = &[
    KERNEL,
    "attr",
    "busybox-static",
    "crun",
    "e2fsprogs",
    "iproute2",
    "iptables",
    "kmod",
    "libcap2-bin",
    "netavark",
    "nftables",
    "procps",
    "python3",
    "runc",
    "skopeo",
    "systemd-sysv",
    "udev",
    "xfsprogs",
];

/// Quotas need a module, so they begin when systemd remounts the root to be written to.
const FSTAB: &str = "/dev/nvme0n1 / ext4 defaults,prjquota 0 0\n";

/// Runs the script of the second disk in a cgroup that is delegated to it, as the product's own unit
/// is, with the second serial line as its terminal; the machine ends with it.
const UNIT: &str = "\
[Unit]
Description=Tests of Longshore

[Service]
Type=oneshot
Delegate=yes
TasksMax=infinity
LimitNOFILE=1048576
ExecStartPre=/bin/mount -o ro /dev/nvme0n2 /mnt
ExecStart=/bin/sh /mnt/guest.sh
ExecStopPost=/bin/systemctl --no-block --force poweroff
StandardInput=tty
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS1

[Install]
WantedBy=multi-user.target
";

const UNIT_NAME: &str = "longshore-tests.service";

/// Timers and terminals that would only take time from the tests.
const MASKED: &[&str] = &[
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "getty@tty1.service",
    "serial-getty@ttyS0.service",
    "systemd-timesyncd.service",
];

/// Sparse: what is written to it in a run lands in a copy that goes with the run.
const SIZE: &str = "16G";

/// A bootable disk.
pub struct Disk {
    /// The kernel's image.
    pub kernel: PathBuf,
    /// The root file system, raw.
    pub root: PathBuf,
}

impl Disk {
    /// Makes it, unless it is there already.
    pub fn ensure() -> Result<Self> {
        let all = target_dir().join("vm/disks");
        let dir = all.join(format!("{:016x}", recipe()));
        let disk = Self { kernel: dir.join("vmlinuz"), root: dir.join("root.ext4") };
        if dir.exists() {
            return Ok(disk);
        }
        // What an earlier recipe or a killed run left.
        if all.exists() {
            fs::remove_dir_all(&all).with_context(|| format!("cannot remove {}", all.display()))?;
        }
        let partial = all.join("partial");
        fs::create_dir_all(&partial)
            .with_context(|| format!("cannot make {}", partial.display()))?;
        make(&partial)?;
        fs::rename(&partial, &dir).context("cannot put the finished disk in its place")?;
        Ok(disk)
    }
}

/// A number that changes with anything that the disk is made from.
fn recipe() -> u64 {
    let mut hasher = DefaultHasher::new();
    // This file is the recipe.
    (SUITE, include_str!("disk.rs")).hash(&mut hasher);
    hasher.finish()
}

fn make(dir: &Path) -> Result<()> {
    let tree = dir.join("tree");
    debian::debootstrap(&tree, &["--variant=minbase"], &PACKAGES.join(","))?;
    fs::copy(tree.join("vmlinuz"), dir.join("vmlinuz")).context("cannot copy the kernel")?;
    let units = tree.join("etc/systemd/system");
    fs::write(tree.join("etc/fstab"), FSTAB)?;
    fs::write(units.join(UNIT_NAME), UNIT)?;
    let wants = units.join("multi-user.target.wants");
    fs::create_dir_all(&wants)?;
    symlink(format!("../{UNIT_NAME}"), wants.join(UNIT_NAME))?;
    for unit in MASKED {
        symlink("/dev/null", units.join(unit)).with_context(|| format!("cannot mask {unit}"))?;
    }
    // Downloads, and the initramfs that nothing boots from.
    for dir in ["var/cache/apt/archives", "boot"] {
        fs::remove_dir_all(tree.join(dir)).with_context(|| format!("cannot remove {dir}"))?;
    }
    let features = ["-O", "quota,project", "-E", "quotatype=prjquota"];
    run(program("mkfs.ext4", ["-q", "-d"])
        .arg(&tree)
        .args(features)
        .arg(dir.join("root.ext4"))
        .arg(SIZE))?;
    fs::remove_dir_all(&tree).context("cannot remove the tree that the disk was made from")
}
