//! Trees made at random, written, and read by the kernel and by `fsck.erofs`, whose code is not the
//! kernel's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use longshore_archive::tar::Xattr;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

use super::*;
use crate::mount::tests::Scratch;
use crate::mount::{ErofsImage, ImageTree, KernelPath, mount_tree};
use crate::unpack::tests::listing::{Node as Seen, list};

/// A tree that owns what it is made of.
#[derive(Debug, Clone)]
struct Made {
    attributes: Attributes,
    kind: MadeKind,
}

#[derive(Debug, Clone)]
enum MadeKind {
    Directory(BTreeMap<Vec<u8>, Made>),
    File { size: u64, device: usize, first_block: u32 },
    Symlink(Vec<u8>),
}

const DEVICE_BLOCKS: u32 = 40;
const N_DEVICES: usize = 2;

/// Every block of a device holds a byte of its own.
fn device_bytes(device: usize) -> Vec<u8> {
    let blocks = (0..DEVICE_BLOCKS as usize).map(|block| [(device * 100 + block) as u8 + 1; 4096]);
    blocks.flatten().collect()
}

fn attributes() -> impl Strategy<Value = Attributes> {
    let small = any::<u16>().prop_map(u32::from);
    let id = prop_oneof![small, any::<u32>().prop_map(|id| id % u32::MAX)];
    let mtime = prop_oneof![
        3 => Just((1_700_000_000, 5)),
        1 => (-1_000_000_000_i64..4_000_000_000, 0_u32..1_000_000_000),
    ];
    let lengths = prop_oneof![9 => 0_usize..40, 1 => 3000_usize..9000];
    let xattrs = btree_map("user\\.[a-z]{1,200}", lengths, 0..4);
    let xattrs = prop_oneof![2 => Just(BTreeMap::new()), 1 => xattrs];
    (0_u32..=0o7777, id.clone(), id, mtime, xattrs).prop_map(|(mode, uid, gid, mtime, xattrs)| {
        let xattr = |(name, n): (String, usize)| Xattr { name: name.into(), value: vec![7; n] };
        Attributes { mode, uid, gid, mtime, xattrs: xattrs.into_iter().map(xattr).collect() }
    })
}

fn leaf() -> impl Strategy<Value = Made> {
    let blocks = 0..DEVICE_BLOCKS;
    let file = (attributes(), 0..N_DEVICES, blocks, any::<u64>()).prop_map(
        |(attributes, device, first_block, size)| {
            let most = u64::from(DEVICE_BLOCKS - first_block) * BLOCK;
            let kind = MadeKind::File { size: size % (most + 1), device, first_block };
            Made { attributes, kind }
        },
    );
    let target = prop_oneof![4 => vec(1_u8..=255, 1..60), 1 => vec(1_u8..=255, 3900..4096)];
    let link = (attributes(), target).prop_map(|(attributes, target)| Made {
        attributes: Attributes { mode: 0o777, xattrs: Vec::new(), ..attributes },
        kind: MadeKind::Symlink(target),
    });
    prop_oneof![2 => file, 1 => link]
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![Just(b'.'), Just(b'-'), 1_u8..=255].prop_map(|byte| match byte {
        b'/' => b'!',
        byte => byte,
    });
    let name = prop_oneof![5 => vec(byte.clone(), 1..20), 1 => vec(byte, 200..=255)];
    name.prop_filter("not a name", |name| !matches!(&name[..], b"." | b".."))
}

fn directory() -> impl Strategy<Value = Made> {
    leaf().prop_recursive(3, 60, 12, |inner| {
        let entries = btree_map(name(), inner, 0..12);
        (attributes(), entries).prop_map(|(attributes, entries)| Made {
            attributes,
            kind: MadeKind::Directory(entries),
        })
    })
}

fn root() -> impl Strategy<Value = Made> {
    (attributes(), btree_map(name(), directory(), 0..8))
        .prop_map(|(attributes, entries)| Made { attributes, kind: MadeKind::Directory(entries) })
}

/// Adds a node with all that is in it, and what should be seen of it.
fn add<'a>(
    made: &'a Made,
    path: Vec<u8>,
    tree: &mut Tree<'a>,
    seen: &mut BTreeMap<Vec<u8>, Seen>,
    devices: &[Vec<u8>],
) -> usize {
    let place = tree.nodes.len();
    let attributes = &made.attributes;
    let (kind, size, target, contents) = match &made.kind {
        MadeKind::Directory(_) => ('d', 0, None, None),
        MadeKind::Symlink(target) => ('l', 0, Some(target.clone()), None),
        MadeKind::File { size, device, first_block } => {
            let start = *first_block as usize * BLOCK as usize;
            let bytes = &devices[*device][start..start + *size as usize];
            ('-', *size, None, Some(Sha256::digest(bytes).to_vec()))
        }
    };
    let xattrs = attributes.xattrs.iter().map(|x| (x.name.clone(), x.value.clone())).collect();
    let node = Seen {
        kind,
        mode: attributes.mode,
        uid: attributes.uid,
        gid: attributes.gid,
        size,
        mtime: (attributes.mtime.0, attributes.mtime.1.into()),
        device: 0,
        links: 1,
        xattrs,
        target,
        contents,
    };
    seen.insert(path.clone(), node);
    tree.nodes.push(Node { attributes, kind: Kind::Directory(Vec::new()) });
    tree.nodes[place].kind = match &made.kind {
        MadeKind::Directory(entries) => {
            let mut places = Vec::new();
            for (name, made) in entries {
                let separator: &[u8] = if path.is_empty() { b"" } else { b"/" };
                let path = [&path[..], separator, name].concat();
                places.push((&name[..], add(made, path, tree, seen, devices)));
            }
            Kind::Directory(places)
        }
        MadeKind::File { size, device, first_block } => {
            Kind::File { size: *size, device: *device, first_block: *first_block }
        }
        MadeKind::Symlink(target) => Kind::Symlink(target),
    };
    place
}

/// Writes a tree with its devices into a directory; gives the files, the metadata first.
pub(crate) fn write_files(tree: &Tree<'_>, devices: &[Vec<u8>], dir: &Path) -> Vec<PathBuf> {
    let metadata = dir.join("metadata");
    let mut bytes = Vec::new();
    write(tree, &mut bytes).unwrap();
    assert!(bytes.len().is_multiple_of(BLOCK as usize));
    std::fs::write(&metadata, bytes).unwrap();
    let mut files = vec![metadata];
    for (idx, bytes) in devices.iter().enumerate() {
        files.push(dir.join(format!("data{idx}")));
        std::fs::write(files.last().unwrap(), bytes).unwrap();
    }
    files
}

/// What `fsck.erofs` says is right and takes out.
pub(crate) fn fsck(files: &[PathBuf], into: &Path) {
    let devices = files[1..].iter().map(|file| format!("--device={}", file.display()));
    let output = Command::new("fsck.erofs")
        .args(devices)
        .arg(format!("--extract={}", into.display()))
        .arg(&files[0])
        .output()
        .expect("fsck.erofs is of the package erofs-utils");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stdout));
}

fn mounted(kernel: KernelPath, files: &[PathBuf]) -> BTreeMap<Vec<u8>, Seen> {
    let scratch = Scratch::new();
    let image = ErofsImage::new(kernel, files[0].clone(), files[1..].to_vec());
    let target = scratch.path().join("rootfs");
    let tree = ImageTree::Erofs(Arc::new(image));
    mount_tree(&tree, &scratch.path().join("base"), &target, None).unwrap();
    list(&target)
}

/// The root that is seen is made with the mount, with the mode and owner of the image's.
fn without_root_time(mut nodes: BTreeMap<Vec<u8>, Seen>) -> BTreeMap<Vec<u8>, Seen> {
    let root = nodes.get_mut(&b""[..]).unwrap();
    (root.mtime, root.xattrs) = ((0, 0), BTreeMap::new());
    nodes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_what_is_read(root in root()) {
        let devices: Vec<Vec<u8>> = (0..N_DEVICES).map(device_bytes).collect();
        let mut tree = Tree { nodes: Vec::new(), devices: vec![DEVICE_BLOCKS; N_DEVICES] };
        let mut seen = BTreeMap::new();
        add(&root, Vec::new(), &mut tree, &mut seen, &devices);
        let seen = without_root_time(seen);
        let dir = tempfile::tempdir().unwrap();
        let files = write_files(&tree, &devices, dir.path());
        prop_assert_eq!(&without_root_time(mounted(KernelPath::Loop, &files)), &seen);
        if KernelPath::File == crate::mount::tests::best() {
            prop_assert_eq!(&without_root_time(mounted(KernelPath::File, &files)), &seen);
        }
    }
}

#[test]
fn names_of_one_file_lead_to_one_inode_and_empty_trees_are_trees() {
    let attributes = Attributes { mode: 0o755, ..Attributes::default() };
    let node = |kind| Node { attributes: &attributes, kind };
    let dir = tempfile::tempdir().unwrap();
    let empty = Tree { nodes: vec![node(Kind::Directory(vec![]))], devices: vec![] };
    let files = write_files(&empty, &[], dir.path());
    assert_eq!(mounted(KernelPath::Loop, &files).len(), 1);
    let names: Vec<(&[u8], usize)> = vec![(b"a", 1), (b"b", 1), (b"d", 2)];
    let file = Kind::File { size: 5000, device: 0, first_block: 3 };
    let nodes =
        vec![node(Kind::Directory(names)), node(file), node(Kind::Directory(vec![(b"c", 1)]))];
    let tree = Tree { nodes, devices: vec![DEVICE_BLOCKS] };
    let files = write_files(&tree, &[device_bytes(0)], dir.path());
    let seen = mounted(KernelPath::Loop, &files);
    for name in [&b"a"[..], b"b", b"d/c"] {
        assert_eq!((seen[name].links, seen[name].size), (3, 5000));
    }
    let out = dir.path().join("out");
    fsck(&files, &out);
    assert_eq!(std::fs::read(out.join("d/c")).unwrap(), [[4; 4096].as_slice(), &[5; 904]].concat());
}

#[test]
fn more_data_files_than_the_format_takes_are_refused() {
    let attributes = Attributes::default();
    let root = Node { attributes: &attributes, kind: Kind::Directory(vec![]) };
    let tree = Tree { nodes: vec![root], devices: vec![1; MAX_DEVICES + 1] };
    let error = write(&tree, &mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("16001 data files"), "{error}");
}

/// A chunk has five bits for its size, and one of 2^32 blocks would be read as one of a single block.
#[test]
fn a_file_of_more_blocks_than_a_chunk_has_is_refused() {
    let attributes = Attributes::default();
    let written = |n_blocks: u64| {
        let node = |kind| Node { attributes: &attributes, kind };
        let file = Kind::File { size: n_blocks * BLOCK, device: 0, first_block: 0 };
        let nodes = vec![node(Kind::Directory(vec![(b"f", 1)])), node(file)];
        write(&Tree { nodes, devices: vec![u32::MAX] }, &mut std::io::sink())
    };
    written(1 << 31).unwrap();
    let error = written((1 << 31) + 1).unwrap_err();
    assert!(error.to_string().contains("more than a chunk of EROFS holds"), "{error}");
}
