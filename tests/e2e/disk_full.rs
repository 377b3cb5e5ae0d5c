//! A disk that is full while an image comes: the instance says so, everything else goes on, and the
//! same pull succeeds once there is room.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::ensure;
use longshore_e2e::image::{Entries, Layered, checked};
use longshore_e2e::{Platform, UpOptions, eventually};
use longshore_types::InstancePhase;
use rustix::fs::FallocateFlags;
use serde_json::json;
use tempfile::TempDir;

use crate::odd_images::{base, shell};
use crate::scene::{busybox, page, web};

const MIB: u64 = 1 << 20;

/// A file system of its own size, unmounted when it is dropped.
struct SmallDisk {
    dir: TempDir,
}

impl SmallDisk {
    fn new(size: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // The users of instances pass through.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let image = dir.path().join("image");
        File::create(&image).unwrap().set_len(size).unwrap();
        checked(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image)).unwrap();
        let disk = Self { dir };
        fs::create_dir(disk.path()).unwrap();
        checked(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(disk.path())).unwrap();
        disk
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    /// Takes all room but this.
    fn leave(&self, n_bytes: u64) -> PathBuf {
        let disk = rustix::fs::statvfs(self.path()).unwrap();
        let filler = self.path().join("filler");
        let file = File::create(&filler).unwrap();
        let n_free = disk.f_bfree * disk.f_frsize;
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, n_free - n_bytes).unwrap();
        filler
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Err(error) = checked(Command::new("umount").arg("--lazy").arg(self.path())) {
            eprintln!("{error:#}");
        }
    }
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

#[test]
fn a_pull_onto_a_full_disk_says_so_and_succeeds_when_there_is_room() {
    let disk = SmallDisk::new(256 * MIB);
    let platform =
        Platform::start_with(&UpOptions { parent: Some(disk.path()), ..UpOptions::default() })
            .unwrap();
    platform.push(&busybox(&platform, "one"), "default/web:1").unwrap();
    platform.deploy(&web("web", 1)).unwrap();
    let before = platform.instances("web").unwrap().remove(0);

    let contents = vec![b'x'; usize::try_from(30 * MIB).unwrap()];
    let large = Entries::default().file("large", 0o644, &contents);
    let large =
        Layered::new(shell("ls -l /large; while sleep 1; do :; done")).layer(base()).layer(large);
    let layout = platform.dir().join("large");
    platform.push(&large.write(&layout).unwrap(), "default/large:1").unwrap();
    fs::remove_dir_all(&layout).unwrap();

    let filler = disk.leave(12 * MIB);
    let manifest = json!({
        "app": "large",
        "image": "default/large:1",
        "resources": {"memory": "32MiB", "cpu": "0.1"},
    });
    platform.deploy_only(&manifest).unwrap();
    let store = platform.data_dir().join("node/images");
    let place = format!("{:?}", store.display());
    platform
        .wait_for_instance("large", "says that the disk is full", |instance| {
            let note = instance.observed.note.clone().unwrap_or_default();
            let last = instance.observed.last_exit.as_ref().map(ToString::to_string);
            let told = format!("{note} {}", last.unwrap_or_default());
            told.contains("the disk is full below") && told.contains(&place)
        })
        .unwrap();
    // What runs does not notice, and the platform answers.
    assert_eq!(page(&platform, "web"), "one");
    platform.run(&["ps"]).ok();

    fs::remove_file(filler).unwrap();
    platform
        .wait_for_instance("large", "runs", |one| one.observed.phase == InstancePhase::Healthy)
        .unwrap();
    let log = platform.run(&["logs", "large"]).ok();
    assert!(log.contains(&(30 * MIB).to_string()), "{log}");
    eventually("nothing half is left", || {
        ensure!(is_empty(&store.join("staging")) && is_empty(&store.join("trash")), "something is");
        Ok(Some(()))
    })
    .unwrap();
    let after = platform.instances("web").unwrap().remove(0);
    assert_eq!(after.id(), before.id());
    assert_eq!(after.observed.restarts, before.observed.restarts);
    assert_eq!(after.observed.started_at, before.observed.started_at);
    platform.finish();
}
