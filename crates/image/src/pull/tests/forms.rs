//! One image, each way to the kernel: what is seen must be the same, whatever the layers are.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;

use longshore_erofs_reader::{Kind, Piece};
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

use crate::mount::tests::{Scratch, best};
use crate::mount::{ImageTree, KernelPath};
use crate::unpack::tests::listing::{Node, list};

use super::*;

/// The ways that this kernel has. Loop devices it must have.
pub(super) fn ways() -> Vec<KernelPath> {
    let mut ways = vec![KernelPath::Directories, KernelPath::Loop];
    match best() {
        KernelPath::File => ways.push(KernelPath::File),
        other => println!("this kernel mounts no files as they are, at best {other}"),
    }
    ways
}

/// All nodes, and the first name of each file that has several.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub nodes: BTreeMap<Vec<u8>, Node>,
    first_names: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Seen {
    /// Mounts an image and looks at it.
    pub fn of(image: &Image) -> Self {
        let scratch = Scratch::new();
        let target = scratch.path().join("rootfs");
        image.mount(&scratch.path().join("base"), &target, None).unwrap();
        Self::at(&target)
    }

    fn at(target: &Path) -> Self {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt as _;
        let mut nodes = list(target);
        // The root is made with the mount.
        nodes.get_mut(&b""[..]).unwrap().mtime = (0, 0);
        let (mut by_inode, mut first_names) = (BTreeMap::new(), BTreeMap::new());
        for (path, node) in nodes.iter_mut().filter(|(_, node)| node.kind != 'd') {
            // A name that a higher layer hides counts in a directory, and not in a file system of
            // its own.
            node.links = 0;
            let inode = target.join(OsStr::from_bytes(path)).symlink_metadata().unwrap();
            let first: &mut Vec<u8> =
                by_inode.entry((inode.dev(), inode.ino())).or_insert_with(|| path.clone());
            first_names.insert(path.clone(), first.clone());
        }
        Self { nodes, first_names }
    }
}

pub(super) async fn pull_by(
    kernel: KernelPath,
    source: &Arc<FakeSource>,
    digest: &Digest,
) -> Result<Seen, String> {
    let root = tempfile::tempdir().unwrap();
    let store = open_by(root.path(), kernel);
    match pull(&store, source, digest).await {
        Ok((image, _)) => {
            let is_right = matches!(
                (&image.tree, kernel),
                (ImageTree::Directories(_), KernelPath::Directories)
                    | (ImageTree::Erofs(_), KernelPath::File | KernelPath::Loop)
            );
            assert!(is_right, "{kernel}: {:?}", image.tree);
            let seen = Seen::of(&image);
            if let ImageTree::Erofs(erofs) = &image.tree {
                assert_eq!(read_by_another(&erofs.files()), seen, "{kernel}");
            }
            Ok(seen)
        }
        Err(error) => {
            // The thread of another layer may still be at work.
            eventually(|| entries(root.path(), "staging").is_empty()).await;
            Err(longshore_types::chain(&error))
        }
    }
}

/// Every corner that a layer can have.
pub(super) fn corners() -> ImageParts {
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let many = (0..400).fold(Archive::default().directory("many"), |archive, n| {
        let name = format!("many/{n}-{}", "n".repeat(n % 200));
        archive.pax(&[("path", name.as_bytes())]).file("long", &vec![n as u8; n * 11])
    });
    let long = "x/".repeat(2047);
    let base = many
        .raw(RawHeader::new(b'5', b"./").mode(0o711).owner(0, 9), b"")
        .raw(RawHeader::new(b'5', b"tmp").mode(0o1777).owner(5, 6).mtime(1_234_567), b"")
        .pax(&[
            ("SCHILY.xattr.security.capability", &capability),
            ("mtime", b"1600000000.123456789"),
        ])
        .raw(RawHeader::new(b'0', b"bin/program").mode(0o6755).owner(0, 5).size(2), b"hi")
        .raw(RawHeader::new(b'3', b"dev/null").mode(0o666), b"")
        .pax(&[("SCHILY.xattr.user.note", b"kept"), ("SCHILY.xattr.trusted.overlay.opaque", b"y")])
        .raw(RawHeader::new(b'5', b"noted").mode(0o700), b"")
        .file("empty", b"")
        .file("linked", &[5; 100_000])
        .hard_link("d/again", "linked")
        .hard_link("hidden-name", "linked")
        .symlink("link", "/nowhere/at/all")
        .hard_link("link-again", "link")
        .pax(&[("linkpath", long.as_bytes())])
        .symlink("long", "short")
        .file("d/lower", b"lower")
        .file("gone", b"")
        .file("becomes-directory", b"")
        .file("becomes-file/inside", b"")
        .file("hidden/old", b"")
        .file("replaced/old", b"");
    let sparse: [(&str, &[u8]); 2] =
        [("GNU.sparse.size", b"5000001"), ("GNU.sparse.map", b"512,512,4000000,700")];
    let middle = Archive::default()
        .pax(&sparse)
        .raw(RawHeader::new(b'0', b"sparse").size(1212), &[9; 1212])
        .file("tmp/in", b"")
        .file("d/upper", b"upper")
        .file(".wh.gone", b"")
        .file(".wh.hidden-name", b"")
        .file("hidden/.wh..wh..opq", b"")
        .file("hidden/new", b"")
        .file(".wh.replaced", b"")
        .file("replaced/new", b"")
        .file("becomes-directory/inside", b"")
        .file("becomes-file", b"now");
    let top = Archive::default()
        .raw(RawHeader::new(b'5', b"d").mode(0o750).mtime(99), b"")
        .file("gone", b"back again")
        .file("d/.wh.lower", b"");
    ImageParts::default().gzip(base).zstd(middle).plain(top)
}

#[tokio::test]
async fn every_way_to_the_kernel_shows_the_same_tree() {
    let source = Arc::new(FakeSource::default());
    let digest = corners().publish(&source);
    let expected = pull_by(KernelPath::Directories, &source, &digest).await.unwrap();
    assert!(expected.nodes.len() > 410);
    assert_eq!(expected.nodes[&b"sparse"[..]].size, 5_000_001);
    for kernel in ways() {
        let seen = pull_by(kernel, &source, &digest).await.unwrap();
        for (path, node) in &expected.nodes {
            let path_text = String::from_utf8_lossy(path);
            assert_eq!(seen.nodes.get(path), Some(node), "{kernel}: {path_text}");
        }
        assert_eq!(seen, expected, "{kernel}");
    }
}

/// A reader that shares no code with the kernel takes the image out as an ordinary directory.
#[tokio::test]
async fn another_reader_of_erofs_sees_the_same() {
    let source = Arc::new(FakeSource::default());
    let digest = corners().publish(&source);
    let root = tempfile::tempdir().unwrap();
    let store = open_by(root.path(), KernelPath::Loop);
    let (image, _) = pull(&store, &source, &digest).await.unwrap();
    let out = tempfile::tempdir().unwrap();
    let target = out.path().join("tree");
    let ImageTree::Erofs(erofs) = &image.tree else { panic!("{image:?}") };
    crate::erofs::tests::fsck(&erofs.files(), &target);
    let (mut taken_out, mut seen) = (Seen::at(&target), Seen::of(&image));
    // It keeps no extended attributes, makes a file for each name, and sets the owner after the mode,
    // by which setuid is lost.
    for node in taken_out.nodes.values_mut().chain(seen.nodes.values_mut()) {
        node.xattrs.clear();
        if node.kind == '-' {
            node.mode &= 0o1777;
        }
    }
    assert_eq!(taken_out.nodes, seen.nodes);
}

/// What a reader finds that shares no code with what writes images, nor with the kernel: first the file with the
/// metadata, then one with the contents of each layer.
fn read_by_another(files: &[PathBuf]) -> Seen {
    let metadata = std::fs::read(&files[0]).unwrap();
    let read = longshore_erofs_reader::read(&metadata).unwrap();
    let devices: Vec<_> = files[1..].iter().map(|file| std::fs::read(file).unwrap()).collect();
    assert_eq!(read.devices.len(), devices.len());
    let (mut nodes, mut first_names, mut by_number) =
        (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    // In the order of a listing, in which a directory comes before what is in it.
    for (path, found) in read.nodes {
        let contents = (found.kind == Kind::File).then(|| {
            let mut hash = Sha256::new();
            for Piece { device, at, n_bytes } in &found.pieces {
                let (at, n_bytes) = (*at as usize, *n_bytes as usize);
                hash.update(&devices[*device][at..at + n_bytes]);
            }
            hash.finalize().to_vec()
        });
        let (kind, links) = match found.kind {
            Kind::File => ('-', 0),
            Kind::Directory => ('d', 1),
            Kind::Symlink => ('l', 0),
        };
        if kind != 'd' {
            let first = by_number.entry(found.number).or_insert_with(|| path.clone());
            first_names.insert(path.clone(), first.clone());
        }
        // The root is made with the mount.
        let mtime = if path.is_empty() { (0, 0) } else { (found.mtime.0, found.mtime.1.into()) };
        let node = Node {
            kind,
            mode: found.mode,
            uid: found.uid,
            gid: found.gid,
            size: found.size,
            mtime,
            device: 0,
            links,
            xattrs: found.xattrs,
            target: found.target,
            contents,
        };
        nodes.insert(path, node);
    }
    Seen { nodes, first_names }
}

/// Names, times, owners, modes, attributes, contents, and which names are of one file.
#[tokio::test]
async fn a_reader_that_shares_nothing_with_the_writer_sees_all_that_the_kernel_shows() {
    let source = Arc::new(FakeSource::default());
    let digest = corners().publish(&source);
    let root = tempfile::tempdir().unwrap();
    let store = open_by(root.path(), KernelPath::Loop);
    let (image, _) = pull(&store, &source, &digest).await.unwrap();
    let ImageTree::Erofs(erofs) = &image.tree else { panic!("{image:?}") };
    let (read, seen) = (read_by_another(&erofs.files()), Seen::of(&image));
    for (path, node) in &seen.nodes {
        assert_eq!(read.nodes.get(path), Some(node), "{}", String::from_utf8_lossy(path));
    }
    assert!(seen.nodes.values().any(|node| !node.xattrs.is_empty()));
    assert!(seen.nodes.values().any(|node| node.mode & 0o6000 == 0o6000));
    assert_eq!(read, seen);
}

/// One step of an archive.
#[derive(Debug, Clone)]
enum Step {
    Directory(String, u32),
    File(String, Vec<u8>),
    Symlink(String, String),
    HardLink(String, String),
    Whiteout(String),
    Opaque(String),
}

/// Few names, so that they meet.
fn path() -> impl Strategy<Value = String> {
    let part = prop_oneof![Just("a"), Just("b"), Just("c")];
    proptest::collection::vec(part, 1..4).prop_map(|parts| parts.join("/"))
}

fn step() -> impl Strategy<Value = Step> {
    let target = prop_oneof![
        path(),
        path().prop_map(|path| format!("/{path}")),
        path().prop_map(|path| format!("../{path}")),
        path().prop_map(|path| format!("{path}/..")),
    ];
    prop_oneof![
        3 => (path(), 0_u32..0o7777).prop_map(|(path, mode)| Step::Directory(path, mode)),
        4 => (path(), proptest::collection::vec(any::<u8>(), 0..20))
            .prop_map(|(path, bytes)| Step::File(path, bytes)),
        1 => (path(), target).prop_map(|(path, target)| Step::Symlink(path, target)),
        2 => (path(), path()).prop_map(|(path, target)| Step::HardLink(path, target)),
        2 => path().prop_map(Step::Whiteout),
        1 => path().prop_map(Step::Opaque),
    ]
}

fn archive(steps: &[Step]) -> Archive {
    steps.iter().fold(Archive::default(), |archive, step| match step {
        Step::Directory(path, mode) => {
            archive.raw(RawHeader::new(b'5', path.as_bytes()).mode(u64::from(*mode)).mtime(77), b"")
        }
        Step::File(path, bytes) => archive.file(path, bytes),
        Step::Symlink(path, target) => archive.symlink(path, target),
        Step::HardLink(path, target) => archive.hard_link(path, target),
        Step::Whiteout(path) => {
            let (above, name) = path.rsplit_once('/').unwrap_or((".", path));
            archive.file(format!("{above}/.wh.{name}"), b"")
        }
        Step::Opaque(path) => archive.file(format!("{path}/.wh..wh..opq"), b""),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 300, ..ProptestConfig::default() })]

    /// What overlayfs makes of directories is what we make of indexes, and what one form refuses the
    /// other does, in the same words.
    #[test]
    fn layers_made_at_random_are_merged_as_overlayfs_does(
        layers in proptest::collection::vec(proptest::collection::vec(step(), 1..9), 1..4),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let source = Arc::new(FakeSource::default());
            let parts = layers.iter().fold(ImageParts::default(), |parts, steps| {
                parts.plain(archive(steps))
            });
            let digest = parts.publish(&source);
            let expected = pull_by(KernelPath::Directories, &source, &digest).await;
            let way = *ways().last().unwrap();
            let seen = pull_by(way, &source, &digest).await;
            match (&expected, &seen) {
                // Of several layers that are refused, either may be the first.
                (Err(_), Err(_)) if layers.len() > 1 => {}
                _ => assert_eq!(seen, expected),
            }
        });
    }
}

#[tokio::test]
async fn both_forms_live_in_one_store() {
    let root = tempfile::tempdir().unwrap();
    let source = Arc::new(FakeSource::default());
    let first = three_layers().publish(&source);
    let second = three_layers().plain(Archive::default().file("more", b"x")).publish(&source);
    let way = *ways().last().unwrap();
    let store = open_by(root.path(), KernelPath::Directories);
    let (before, _) = pull(&store, &source, &first).await.unwrap();
    drop(store);

    // A release that mounts EROFS uses what an earlier one unpacked.
    let store = open_by(root.path(), way);
    assert_eq!(store.image(&first), Some(before.clone()));
    let (image, report) = pull(&store, &source, &second).await.unwrap();
    assert_eq!(report.reused_layers, 0, "directories are nothing for the other form");
    assert!(matches!(image.tree, ImageTree::Erofs(_)));
    assert!(Seen::of(&image).nodes.contains_key(&b"more"[..]));
    assert_eq!(Seen::of(&before).nodes.len() + 1, Seen::of(&image).nodes.len());
    assert_eq!(store.collect(&[]).unwrap(), Default::default());
    drop(store);
    let store = open_by(root.path(), way);
    assert_eq!(store.image(&second), Some(image.clone()));
    let collected = store.collect(&[first]).unwrap();
    assert_eq!((collected.images, collected.layers.len()), (vec![first], 3));
    assert_eq!(Seen::of(&image).nodes.len(), 6);
    drop(store);

    // On a kernel without, it is pulled anew.
    let store = open_by(root.path(), KernelPath::Directories);
    assert_eq!(store.list_images(), []);
    let (image, _) = pull(&store, &source, &second).await.unwrap();
    assert!(matches!(image.tree, ImageTree::Directories(_)));
    store.collect(&[]).unwrap();
    assert_eq!(
        (entries(root.path(), "indexed"), entries(root.path(), "metadata")),
        (vec![], vec![])
    );
}

#[tokio::test]
async fn an_index_that_is_damaged_brings_its_layer_again() {
    let root = tempfile::tempdir().unwrap();
    let source = Arc::new(FakeSource::default());
    let base = || ImageParts::default().plain(Archive::default().file("base", &[1; 10_000]));
    let first = base().publish(&source);
    let second = base().plain(Archive::default().file("more", b"")).publish(&source);
    let store = open_by(root.path(), KernelPath::Loop);
    pull(&store, &source, &first).await.unwrap();
    let layers = root.path().join("indexed");
    let index = layers.join(&entries(root.path(), "indexed")[0]).join("index");
    let mut bytes = std::fs::read(&index).unwrap();
    bytes[20] ^= 1;
    std::fs::write(&index, bytes).unwrap();
    let error = pull(&store, &source, &second).await.unwrap_err();
    assert!(longshore_types::chain(&error).contains("its bytes are damaged"), "{error:?}");
    assert_eq!(error.retry(), Retry::CanHelp);
    let (image, _) = pull(&store, &source, &second).await.unwrap();
    assert_eq!(Seen::of(&image).nodes[&b"base"[..]].size, 10_000);
}

#[tokio::test]
async fn more_names_than_memory_should_hold_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let limits = Limits { index_bytes: ByteCount(10_000), ..Limits::default() };
    let store = ImageStore::open_with(root.path(), limits, Some(KernelPath::Loop)).unwrap();
    let source = Arc::new(FakeSource::default());
    let layer = |n: u32| {
        (0..n).fold(Archive::default(), |archive, m| archive.file(format!("{n}-{m}"), b""))
    };
    for parts in [
        ImageParts::default().plain(layer(150)),
        (100..110).fold(ImageParts::default(), |parts, n| parts.plain(layer(n))),
    ] {
        let error = pull(&store, &source, &parts.publish(&source)).await.unwrap_err();
        assert_eq!(error.retry(), Retry::Pointless);
        assert!(longshore_types::chain(&error).contains("10000"), "{error:?}");
    }
    pull(&store, &source, &ImageParts::default().plain(layer(100)).publish(&source)).await.unwrap();
}
