//! Writable layers on this machine's kernel, as root. Each test works in a directory of its own and
//! ends by looking for what it may have left.

#![expect(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

#[path = "support/filling.rs"]
mod filling;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use filling::{fill, obey_quotas};
use longshore_disk::{Means, WritableLayers};
use longshore_types::ByteCount;

const LIMIT: ByteCount = ByteCount::mib(32);

/// A directory on a file system of this machine, with one instance's directory in it.
struct Bed {
    dir: tempfile::TempDir,
    layers: WritableLayers,
}

impl Bed {
    fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "mounts need root");
        let dir = tempfile::Builder::new().prefix("lsd-").tempdir().unwrap();
        let layers = WritableLayers::probe(dir.path()).unwrap();
        Self { dir, layers }
    }

    fn instance(&self, name: &str) -> PathBuf {
        let dir = self.dir.path().join(name);
        fs::create_dir_all(&dir).unwrap();
        dir
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        for entry in fs::read_dir(self.dir.path()).unwrap().flatten() {
            self.layers.remove(&entry.path()).unwrap();
            self.layers.release(&entry.path()).unwrap();
        }
        let mark = self.dir.path().display().to_string();
        eventually("no mount and no loop device is left", || traces(&mark).is_empty());
    }
}

fn traces(mark: &str) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut found: Vec<_> =
        mounts.lines().filter(|line| line.contains(mark)).map(str::to_owned).collect();
    for entry in fs::read_dir("/sys/block").unwrap().flatten() {
        let file = fs::read_to_string(entry.path().join("loop/backing_file"));
        found.extend(file.ok().filter(|file| file.contains(mark)));
    }
    found
}

fn eventually(what: &str, mut look: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !look() {
        assert!(Instant::now() < deadline, "{what}: not in 30 s");
        thread::sleep(Duration::from_millis(10));
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

#[test]
fn a_layer_takes_its_limit_and_no_more_and_the_next_one_does_not_notice() {
    let bed = Bed::new();
    let (full, other) = (bed.instance("full"), bed.instance("other"));
    let base = bed.layers.make(&full, LIMIT).unwrap();
    let other_base = bed.layers.make(&other, LIMIT).unwrap();
    obey_quotas();
    let (written, error) = fill(&base.join("file"));
    assert!(is_full(&error), "{error}");
    assert!((LIMIT.0 * 93 / 100..=LIMIT.0).contains(&written), "{written} of {}", LIMIT.0);
    fs::write(other_base.join("file"), "fits").unwrap();
    let usage = bed.layers.usage(&full).unwrap().unwrap();
    assert!(usage.used.0 >= written && usage.used <= usage.limit, "{usage:?}");
    assert!(usage.limit <= LIMIT, "{usage:?}");
    bed.layers.remove(&full).unwrap();
    assert_eq!(bed.layers.usage(&full).unwrap(), None);
    assert!(fs::read_dir(&full).unwrap().all(|e| e.unwrap().file_name() == "project"));
}

#[test]
fn small_files_run_into_the_limit_too() {
    let bed = Bed::new();
    let instance = bed.instance("files");
    let base = bed.layers.make(&instance, ByteCount::mib(8)).unwrap();
    obey_quotas();
    let error =
        (0..10_000).find_map(|number| fs::File::create(base.join(number.to_string())).err());
    assert!(is_full(&error.unwrap()));
}

#[test]
fn freed_space_is_given_back() {
    let bed = Bed::new();
    if bed.layers.means() == Means::ProjectQuota {
        eprintln!("skipped: a quota has no image that could keep space");
        return;
    }
    let instance = bed.instance("web");
    let base = bed.layers.make(&instance, LIMIT).unwrap();
    let file = base.join("file");
    obey_quotas();
    fill(&file);
    fs::File::open(&file).unwrap().sync_all().unwrap();
    fs::remove_file(&file).unwrap();
    rustix::fs::sync();
    let before = bed.layers.usage(&instance).unwrap().unwrap();
    assert!(before.to_give_back() > ByteCount::mib(16), "{before:?}");
    bed.layers.trim(&instance).unwrap();
    let after = bed.layers.usage(&instance).unwrap().unwrap();
    assert!(after.to_give_back() < ByteCount::mib(2), "{after:?}");
}

#[test]
fn a_new_layer_is_empty_whatever_was_left() {
    let bed = Bed::new();
    let instance = bed.instance("web");
    let base = bed.layers.make(&instance, LIMIT).unwrap();
    fs::write(base.join("old"), "old").unwrap();
    // As after an agent that was killed: mounted, and nobody unmounted it.
    let base = bed.layers.make(&instance, LIMIT).unwrap();
    assert!(!base.join("old").exists());
    // As after a reboot: the files are there, the mount is not; and as by another means.
    bed.layers.remove(&instance).unwrap();
    fs::create_dir_all(base.join("upper/old")).unwrap();
    fs::write(instance.join("writable.ext4"), "half an image").unwrap();
    let base = bed.layers.make(&instance, LIMIT).unwrap();
    assert!(!base.join("upper").exists());
}

#[test]
fn an_image_costs_little_before_it_is_used() {
    let bed = Bed::new();
    if bed.layers.means() == Means::ProjectQuota {
        eprintln!("skipped: a quota has no image");
        return;
    }
    let instance = bed.instance("web");
    bed.layers.make(&instance, ByteCount::gib(100)).unwrap();
    let metadata = fs::metadata(instance.join("writable.ext4")).unwrap();
    assert_eq!(metadata.len(), ByteCount::gib(100).0);
    rustix::fs::sync();
    let metadata = fs::metadata(instance.join("writable.ext4")).unwrap();
    assert!(metadata.blocks() * 512 < ByteCount::mib(1).0, "{}", metadata.blocks());
}

#[test]
fn many_are_made_at_once() {
    let bed = Bed::new();
    let instances: Vec<_> = (0..40).map(|number| bed.instance(&format!("i{number}"))).collect();
    thread::scope(|scope| {
        for instance in &instances {
            scope.spawn(|| {
                let base = bed.layers.make(instance, LIMIT).unwrap();
                fs::write(base.join("name"), instance.as_os_str().as_encoded_bytes()).unwrap();
            });
        }
    });
    for instance in &instances {
        let name = fs::read(instance.join("writable/name")).unwrap();
        assert_eq!(name, instance.as_os_str().as_encoded_bytes());
    }
}

/// Runs this test binary again as a process that makes and removes layers until it is killed.
const CHILD: &str = "LONGSHORE_DISK_TEST_CHILD";

#[test]
fn kill_9_at_any_moment_leaves_nothing_that_the_next_does_not_remove() {
    if let Some(dir) = std::env::var_os(CHILD) {
        let dir = PathBuf::from(dir);
        let layers = WritableLayers::probe(dir.parent().unwrap()).unwrap();
        loop {
            layers.make(&dir, LIMIT).unwrap();
            layers.remove(&dir).unwrap();
        }
    }
    let bed = Bed::new();
    let instance = bed.instance("web");
    let test = "kill_9_at_any_moment_leaves_nothing_that_the_next_does_not_remove";
    for round in 0..20 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(CHILD, &instance)
            .spawn()
            .unwrap();
        let mark = instance.join("writable");
        eventually("the child works", || mark.exists());
        thread::sleep(Duration::from_micros(round * 700));
        child.kill().unwrap();
        child.wait().unwrap();
        bed.layers.remove(&instance).unwrap();
        assert!(!mark.exists() && !instance.join("writable.ext4").exists());
    }
}
