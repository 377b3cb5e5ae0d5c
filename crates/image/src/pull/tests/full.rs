//! Disks that are full at every write of a pull, one write after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;

use rustix::mount::{MountFlags, UnmountFlags};

use crate::unpack::tests::listing::{Node, list};

use super::*;

/// A file system in memory whose size can be changed; gone when it is dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let none = Option::<&std::ffi::CStr>::None;
        rustix::mount::mount("tmpfs", directory.path(), "tmpfs", MountFlags::empty(), none)
            .unwrap();
        Self(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn resize(&self, options: &str) {
        let options = CString::new(options).unwrap();
        rustix::mount::mount_remount(self.path(), MountFlags::empty(), &*options).unwrap();
    }

    fn with_room_for(&self, what: Room, n: u64) {
        let disk = rustix::fs::statvfs(self.path()).unwrap();
        let (n_files, n_pages) = (disk.f_files - disk.f_ffree, disk.f_blocks - disk.f_bfree);
        self.resize(&match what {
            Room::Files => format!("nr_inodes={}", n_files + n),
            Room::Pages => format!("size={}", (n_pages + n).max(1) * disk.f_frsize),
        });
    }

    fn with_room(&self) {
        self.resize("nr_inodes=100000,size=100m");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        rustix::mount::unmount(self.path(), UnmountFlags::DETACH).unwrap();
    }
}

#[derive(Clone, Copy)]
enum Room {
    Files,
    Pages,
}

/// With every kind of thing that a pull writes: files, links, whiteouts, attributes of directories.
fn parts() -> ImageParts {
    let base = Archive::default()
        .raw(RawHeader::new(b'5', b"tmp").mode(0o1777), b"")
        .file("etc/a", &[1; 9000])
        .hard_link("etc/b", "etc/a")
        .symlink("link", "etc");
    let top = Archive::default().file("tmp/file", &[2; 5000]).file("etc/.wh.a", b"").directory("d");
    ImageParts::default().gzip(base).zstd(top)
}

type Trees = Vec<BTreeMap<Vec<u8>, Node>>;

fn trees(image: &Image) -> Trees {
    let mut trees: Trees = image.layers.iter().map(|layer| list(layer)).collect();
    // Nobody sees the time of a whiteout.
    for node in trees.iter_mut().flat_map(BTreeMap::values_mut).filter(|node| node.kind == 'c') {
        node.mtime = (0, 0);
    }
    trees
}

/// Pulls with room for nothing, then for ever more until it succeeds, and tells where each failed.
async fn failures(what: Room, expected: &Trees) -> BTreeSet<String> {
    let disk = SmallDisk::new();
    let source = Arc::new(FakeSource::default());
    let digest = parts().publish(&source);
    let mut failures = BTreeSet::new();
    for n in 0.. {
        disk.with_room();
        let root = disk.path().join(n.to_string());
        let store = open(&root);
        disk.with_room_for(what, n);
        let pulled = pull(&store, &source, &digest).await;
        let Err(error) = pulled else { break };
        assert_eq!(error.retry(), Retry::CanHelp);
        let PullImageError::DiskFull { directory, source: cause } = error else {
            panic!("{n}: {error:?}");
        };
        assert_eq!(directory, root);
        failures.insert(super::hostile::chain(cause.as_ref()));
        assert_eq!(store.list_images(), [], "{n}");
        assert_eq!(entries(&root, "images"), [""; 0], "{n}");
        eventually(|| entries(&root, "staging").is_empty()).await;

        disk.with_room();
        let (image, _) = pull(&store, &source, &digest).await.unwrap();
        assert_eq!(trees(&image), *expected, "{n}");
        drop(store);
        assert_eq!(open(&root).image(&digest), Some(image), "{n}");
        std::fs::remove_dir_all(&root).unwrap();
    }
    failures
}

#[tokio::test]
async fn a_full_disk_is_told_and_the_same_pull_succeeds_when_there_is_room() {
    let root = tempfile::tempdir().unwrap();
    let source = Arc::new(FakeSource::default());
    let digest = parts().publish(&source);
    let (image, _) = pull(&open(root.path()), &source, &digest).await.unwrap();
    let expected = trees(&image);
    assert_eq!(expected.len(), 3, "two layers and the attributes of a directory");

    let mut told = failures(Room::Files, &expected).await;
    told.extend(failures(Room::Pages, &expected).await);
    // Every path on which a pull writes was met.
    for (what, path) in [
        ("creating", "/staging/"),
        ("creating", "/fs\""),
        ("making the directory", "\"etc\""),
        ("creating", "\"etc/a\""),
        ("writing", "\"etc/a\""),
        ("making the symbolic link", "\"link\""),
        ("making the whiteout", "\"a\""),
        ("writing", "/report.json\""),
        ("writing", "/record\""),
    ] {
        let is_it = |told: &&String| told.contains(what) && told.contains(path);
        assert!(told.iter().any(|told| is_it(&told)), "{what} {path} is not among {told:#?}");
    }
    assert!(told.iter().all(|told| told.contains("No space left on device")), "{told:#?}");
}
