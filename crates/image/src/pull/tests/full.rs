//! Disks that are full at every write of a pull, one write after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;

use rustix::mount::{MountFlags, UnmountFlags};

use crate::converted::tests::noise;
use crate::store::NoRoom;
use crate::unpack::tests::listing::{Node, list};

use super::*;

/// A file system in memory whose size can be changed; gone when it is dropped.
pub(super) struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let none = Option::<&std::ffi::CStr>::None;
        rustix::mount::mount("tmpfs", directory.path(), "tmpfs", MountFlags::empty(), none)
            .unwrap();
        Self(directory)
    }

    pub fn path(&self) -> &Path {
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

/// One layer with every kind of thing that unpacking writes.
fn one_layer() -> ImageParts {
    let all = Archive::default()
        .file("etc/a", &[1; 9000])
        .hard_link("etc/b", "etc/a")
        .symlink("link", "etc")
        .file("etc/.wh.gone", b"");
    ImageParts::default().gzip(all)
}

/// Two layers that together need attributes of a directory. Both are unpacked at once, so which of
/// them meets the end of the disk first is not said.
fn two_layers() -> ImageParts {
    let base = Archive::default().raw(RawHeader::new(b'5', b"tmp").mode(0o1777), b"");
    ImageParts::default().gzip(base).zstd(Archive::default().file("tmp/file", &[2; 5000]))
}

type Trees = Vec<BTreeMap<Vec<u8>, Node>>;

fn trees(image: &Image) -> Trees {
    let ImageTree::Directories(layers) = &image.tree else {
        return vec![forms::Seen::of(image).nodes];
    };
    let mut trees: Trees = layers.iter().map(|layer| list(layer)).collect();
    // Nobody sees the time of a whiteout.
    for node in trees.iter_mut().flat_map(BTreeMap::values_mut).filter(|node| node.kind == 'c') {
        node.mtime = (0, 0);
    }
    trees
}

/// Pulls with room for nothing, then for ever more until it succeeds, and tells where each failed.
async fn failures(
    kernel: KernelPath,
    what: Room,
    parts: fn() -> ImageParts,
    expected: &Trees,
) -> BTreeSet<String> {
    let disk = SmallDisk::new();
    let source = Arc::new(FakeSource::default());
    let digest = parts().publish(&source);
    let mut failures = BTreeSet::new();
    for n in 0.. {
        disk.with_room();
        let root = disk.path().join(n.to_string());
        let store = open_by(&root, kernel);
        disk.with_room_for(what, n);
        let pulled = pull(&store, &source, &digest).await;
        let Err(error) = pulled else { break };
        assert_eq!(error.retry(), Retry::CanHelp);
        let PullImageError::DiskFull { directory, source: cause } = error else {
            panic!("{n}: {error:?}");
        };
        assert_eq!(directory, root);
        failures.insert(longshore_types::chain(cause.as_ref()));
        assert_eq!(store.list_images(), [], "{n}");
        assert_eq!(entries(&root, "images"), [""; 0], "{n}");
        eventually(|| entries(&root, "staging").is_empty()).await;

        disk.with_room();
        let (image, _) = pull(&store, &source, &digest).await.unwrap();
        assert_eq!(trees(&image), *expected, "{n}");
        drop(store);
        assert_eq!(open_by(&root, kernel).image(&digest), Some(image), "{n}");
        std::fs::remove_dir_all(&root).unwrap();
    }
    failures
}

#[tokio::test]
async fn a_full_disk_is_told_and_the_same_pull_succeeds_when_there_is_room() {
    // A file system in memory is none that EROFS reads a file of as it is.
    for kernel in [KernelPath::Directories, KernelPath::Loop] {
        fill_disks(kernel).await;
    }
}

async fn fill_disks(kernel: KernelPath) {
    let mut told = BTreeSet::new();
    for (parts, n_layers) in [(one_layer as fn() -> ImageParts, 1), (two_layers, 3)] {
        let root = tempfile::tempdir().unwrap();
        let source = Arc::new(FakeSource::default());
        let digest = parts().publish(&source);
        let (image, _) = pull(&open_by(root.path(), kernel), &source, &digest).await.unwrap();
        let expected = trees(&image);
        if kernel == KernelPath::Directories {
            assert_eq!(expected.len(), n_layers, "the attributes of a directory are one more");
        }
        // A thread of the last attempt may give its room back late, and then a step is passed over.
        for _ in 0..5 {
            told.extend(failures(kernel, Room::Files, parts, &expected).await);
            told.extend(failures(kernel, Room::Pages, parts, &expected).await);
            if missing(kernel, &told).is_empty() {
                break;
            }
        }
    }
    let missing = missing(kernel, &told);
    assert!(missing.is_empty(), "{missing:?} are not among {told:#?}");
    assert!(told.iter().all(|told| told.contains("No space left on device")), "{told:#?}");
}

/// The paths on which a pull writes and where it never failed.
fn missing(kernel: KernelPath, told: &BTreeSet<String>) -> Vec<(&'static str, &'static str)> {
    let both = [("creating", "/staging/"), ("writing", "/report.json\""), ("writing", "/record\"")];
    let of_form: &[(&str, &str)] = match kernel {
        KernelPath::Directories => &[
            ("creating", "/fs\""),
            ("making the directory", "\"etc\""),
            ("creating", "\"etc/a\""),
            ("writing", "\"etc/a\""),
            ("making the symbolic link", "\"link\""),
            ("linking", "\"etc/b\""),
            ("making the whiteout", "\"gone\""),
        ],
        _ => &[
            ("creating", "/data\""),
            ("writing", "\"\""),
            ("writing", "/index\""),
            ("creating", "/metadata\""),
            ("writing", "/metadata\""),
        ],
    };
    let is_told = |(what, path): &(&str, &str)| {
        told.iter().any(|told| told.contains(what) && told.contains(path))
    };
    both.into_iter().chain(of_form.iter().copied()).filter(|step| !is_told(step)).collect()
}

/// An image of one layer of so many bytes that nothing packs.
fn unpackable(seed: u64, length: usize) -> ImageParts {
    ImageParts::default().plain(Archive::default().file("a", &noise(length, seed)))
}

/// What a pull was refused for.
fn no_room(pulled: Result<(Image, PullReport), PullImageError>) -> NoRoom {
    match pulled {
        Err(error @ PullImageError::NoRoom { .. }) => {
            assert_eq!(error.retry(), Retry::CanHelp);
            let PullImageError::NoRoom { source, .. } = error else { unreachable!() };
            source
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_pull_looks_for_room_before_it_begins_beside_what_others_will_take() {
    let disk = SmallDisk::new();
    disk.resize("size=18m");
    let store = open_by(&disk.path().join("store"), KernelPath::Directories);
    let asked = Arc::new(Mutex::new((Vec::new(), Vec::new())));
    let (told, cleared) = (Arc::clone(&asked), store.clone());
    store.keep_room(Box::new(move |lack| {
        let mut asked = told.lock().unwrap();
        asked.0.push(lack);
        cleared.collect(&asked.1).unwrap();
        let kept = asked.1.is_empty().then(|| "all of it is needed".to_owned());
        Box::pin(std::future::ready(kept))
    }));
    let source = Arc::new(FakeSource::default());
    let (first, second) = (unpackable(1, 4 << 20), unpackable(2, 14 << 20));
    let (one, two) = (first.clone().publish(&source), second.clone().publish(&source));
    source.fault(&first.blob(0), Fault::HangsAt(100_000));
    let beside = async {
        eventually(|| !entries(&disk.path().join("store"), "staging").is_empty()).await;
        let refused = no_room(pull(&store, &source, &two).await);
        source.heal();
        refused
    };
    let (pulled, refused) = tokio::join!(pull(&store, &source, &one), beside);
    pulled.unwrap();
    assert_eq!(refused.packed.0, second.blob_size(0));
    assert_eq!(refused.reserved.0 >> 20, 3, "{refused}");
    assert_eq!(refused.floor.0, (18 << 20) / 20);
    assert_eq!(entries(&disk.path().join("store"), "staging"), [""; 0]);
    assert_eq!(asked.lock().unwrap().0.len(), 1, "the first had room for what it may unpack to");

    // It is on the disk by now, and in the way until it may go.
    let refused = no_room(pull(&store, &source, &two).await);
    assert_eq!(refused.reserved, ByteCount(0));
    assert!(refused.to_string().ends_with(" stay free; all of it is needed"), "{refused}");
    asked.lock().unwrap().1.push(one);
    pull(&store, &source, &two).await.unwrap();
    assert_eq!(store.list_images().len(), 1);
    let lacks = std::mem::take(&mut asked.lock().unwrap().0);
    assert!(lacks.iter().all(|lack| lack.likely > lack.least), "{lacks:?}");
    // What is here needs no room.
    disk.resize("size=15m");
    pull(&store, &source, &two).await.unwrap();
    assert_eq!(asked.lock().unwrap().0, []);
}

/// A source of an image of one converted layer of 5 MiB; the image, and the blob of the layer's frames.
fn five_frames() -> (Arc<FakeSource>, Digest, Digest) {
    let parts = unpackable(5, 5 << 20);
    let source = Arc::new(FakeSource::default());
    let digest = parts.clone().publish(&source);
    let frames = converted::convert(&parts, &source, &digest)[0].frames.digest;
    (source, digest, frames)
}

#[tokio::test]
async fn a_disk_without_room_for_a_converted_layer_says_so_before_its_frames_are_fetched() {
    let (source, digest, frames) = five_frames();
    let disk = SmallDisk::new();
    let store = open_by(disk.path(), KernelPath::Loop);
    disk.resize("size=4m");
    let error = pull(&store, &source, &digest).await.unwrap_err();
    assert!(matches!(error, PullImageError::DiskFull { .. }), "{error:?}");
    assert_eq!(source.n_bytes_given(&frames), 0);
    assert_no_leftovers(disk.path());
    assert_eq!(entries(disk.path(), "beginnings"), [""; 0]);

    disk.with_room();
    let (_, report) = pull(&store, &source, &digest).await.unwrap();
    assert_eq!(report.converted_layers, 1);
}

#[tokio::test]
async fn frames_that_do_not_come_keep_no_room_from_the_layer_as_it_was_pushed() {
    let (source, digest, frames) = five_frames();
    source.remove_blob(&frames);
    let disk = SmallDisk::new();
    let store = open_by(disk.path(), KernelPath::Loop);
    // The layer, and what is kept of it as it was pushed until it is there.
    disk.resize("size=12m");
    let (_, report) = pull(&store, &source, &digest).await.unwrap();
    assert_eq!((report.converted_layers, report.why_plain.len()), (0, 1));
    assert_no_leftovers(disk.path());
}
