//! Project quotas, on small file systems that have them. A kernel without quotas is skipped: which
//! it has is decided where it is built.

#![expect(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

#[path = "support/filling.rs"]
mod filling;

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;

use filling::{fill, obey_quotas};
use longshore_disk::{Means, WritableLayers};
use longshore_types::ByteCount;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

const LIMIT: ByteCount = ByteCount::mib(16);

/// A file system with project quotas, on a loop device.
struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    /// Absent when this kernel has no such quotas.
    fn new(mkfs: &[&str], options: &str) -> Option<Self> {
        let dir = tempfile::Builder::new().prefix("lsq-").tempdir().unwrap();
        let image = dir.path().join("image");
        File::create(&image).unwrap().set_len(ByteCount::mib(512).0).unwrap();
        let made = Command::new(mkfs[0]).args(&mkfs[1..]).arg(&image).output();
        let made = made.unwrap_or_else(|error| panic!("{} cannot be run: {error}", mkfs[0]));
        assert!(made.status.success(), "{made:?}");
        let disk = Self { dir };
        fs::create_dir(disk.path()).unwrap();
        let mut mount = Command::new("mount");
        let mounted = mount.args(["-o", options]).arg(&image).arg(disk.path()).output().unwrap();
        mounted.status.success().then_some(disk)
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("disk")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Where it was never mounted, there is nothing to unmount.
        let _ = unmount(self.path(), UnmountFlags::DETACH);
    }
}

/// What an instance would do, through an overlay as it has.
fn check(disk: &Disk) {
    let root = disk.path();
    let layers = WritableLayers::probe(&root).unwrap();
    assert_eq!(layers.means(), Means::ProjectQuota);
    let [full, other] = ["full", "other"].map(|name| root.join(name));
    for dir in [&full, &other] {
        fs::create_dir(dir).unwrap();
    }
    let base = layers.make(&full, LIMIT).unwrap();
    let beside = layers.make(&other, LIMIT).unwrap();
    let [lower, upper, work, merged] =
        [root.join("lower"), base.join("upper"), base.join("work"), root.join("merged")];
    for dir in [&lower, &upper, &work, &merged] {
        fs::create_dir(dir).unwrap();
    }
    fs::write(lower.join("below"), "from the image").unwrap();
    let (lower, upper, work) = (lower.display(), upper.display(), work.display());
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work},index=off");
    let options = CString::new(options).unwrap();
    mount("overlay", &merged, "overlay", MountFlags::empty(), &*options).unwrap();

    // A file of the image is copied up, which renames it from one directory to the other.
    File::options().append(true).open(merged.join("below")).unwrap().write_all(b"!").unwrap();
    let (written, error) = fill(&merged.join("file"));
    assert!(matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)), "{error}");
    assert!((LIMIT.0 * 93 / 100..=LIMIT.0).contains(&written), "{written}");
    fs::write(beside.join("file"), vec![1; 1 << 20]).unwrap();
    let usage = layers.usage(&full).unwrap().unwrap();
    assert!(usage.limit == LIMIT && usage.used.0 >= written, "{usage:?}");
    obey_quotas();
    let names = (0..10_000).find_map(|name| File::create(beside.join(name.to_string())).err());
    assert!(names.is_some(), "names are limited too");

    // The number is kept over starts and given back at the end.
    unmount(&merged, UnmountFlags::empty()).unwrap();
    let number = fs::read_to_string(full.join("project")).unwrap();
    layers.make(&full, LIMIT).unwrap();
    assert_eq!(fs::read_to_string(full.join("project")).unwrap(), number);
    for dir in [&full, &other] {
        layers.remove(dir).unwrap();
        layers.release(dir).unwrap();
        fs::remove_dir(dir).unwrap();
    }
}

#[test]
fn project_quotas_of_ext4_limit_a_layer() {
    let mkfs = ["mkfs.ext4", "-q", "-O", "project,quota", "-E", "quotatype=prjquota"];
    match Disk::new(&mkfs, "loop,prjquota") {
        Some(disk) => check(&disk),
        None => eprintln!("skipped: this kernel has no project quotas for ext4"),
    }
}

#[test]
fn project_quotas_of_xfs_limit_a_layer() {
    match Disk::new(&["mkfs.xfs", "-q"], "loop,pquota") {
        Some(disk) => check(&disk),
        None => eprintln!("skipped: this kernel has no project quotas for XFS"),
    }
}
