//! Indexes as files: what is read is what was written, and hostile bytes are a tree or an error.

use sha2::{Digest as _, Sha256};

use super::*;
use crate::limits::Limits;
use crate::tar::tests::{Archive, RawHeader};
use crate::unpack::tests::identity;

const DEPTH: u32 = 128;

fn tree_of(archive: Archive) -> LayerTree {
    let plain = archive.finish();
    let data = tempfile::tempfile().unwrap();
    let (_, tree) =
        crate::unpack::index(&plain[..], &identity(&plain, &plain), data, &Limits::default())
            .unwrap();
    tree
}

fn everything() -> LayerTree {
    tree_of(
        Archive::default()
            .raw(RawHeader::new(b'5', b"d").mode(0o1777).owner(5, 70_000).mtime(5), b"")
            .pax(&[("SCHILY.xattr.user.note", b"kept"), ("SCHILY.xattr.user.a", b"")])
            .file("d/f", &[1; 5000])
            .hard_link("d/g", "d/f")
            .hard_link("h", "d/f")
            .symlink("l", "d/f")
            .hard_link("m", "l")
            .file("d/.wh.gone", b"")
            .file("o/.wh..wh..opq", b"")
            .file("implied/deep/empty", b"")
            .file("replaced", b"x")
            .directory("replaced"),
    )
}

#[test]
fn what_is_read_is_what_was_written() {
    let tree = everything();
    let bytes = encode(&tree);
    let read = decode(&bytes, DEPTH).unwrap();
    assert_eq!(encode(&read), bytes);
    assert!(read.nodes.len() < tree.nodes.len(), "what was replaced is gone");
    assert_eq!(read.data_blocks, 3);
    let (merged, again) = (merge::merge(std::slice::from_ref(&tree)), [read]);
    let mut written = [Vec::new(), Vec::new()];
    crate::erofs::write(&merged.tree, &mut written[0]).unwrap();
    crate::erofs::write(&merge::merge(&again).tree, &mut written[1]).unwrap();
    assert_eq!(written[0], written[1]);
}

#[test]
fn damage_is_found() {
    let bytes = encode(&everything());
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x20;
        decode(&damaged, DEPTH).unwrap_err();
        decode(&bytes[..at], DEPTH).unwrap_err();
    }
    let mut longer = bytes.clone();
    longer.insert(bytes.len() - 32, 0);
    assert_eq!(decode(&sealed(&longer[..bytes.len() - 31]), DEPTH), Err(IndexError::Trailing(1)));
}

/// Gives bytes the checksum that they should have.
fn sealed(body: &[u8]) -> Vec<u8> {
    [body, &Sha256::digest(body)].concat()
}

/// Whatever the bytes say, what comes of them is a tree whose files lie in the data, or an error.
#[test]
fn hostile_bytes_are_a_tree_or_an_error() {
    let bytes = encode(&everything());
    let body = &bytes[..bytes.len() - 32];
    let mut random = fastrand::Rng::with_seed(7);
    let mut n_read = 0;
    for _ in 0..20_000 {
        let mut hostile = body.to_vec();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(12..hostile.len());
            let any = random.u8(..);
            hostile[at] = random.choice([0, 1, 2, 5, 0x7f, 0xff, any]).unwrap();
        }
        hostile.truncate(body.len() - random.usize(..body.len()) * usize::from(random.u8(..) < 20));
        let Ok(tree) = decode(&sealed(&hostile), DEPTH) else { continue };
        n_read += 1;
        for node in &tree.nodes {
            if let Node::File { size, first_block, .. } = node {
                let end = u64::from(*first_block) * 4096 + size;
                assert!(end <= u64::from(tree.data_blocks) * 4096);
            }
        }
        crate::erofs::write(&merge::merge(&[tree]).tree, &mut std::io::sink()).unwrap();
    }
    assert!(n_read > 100, "{n_read}");
}

#[test]
fn what_no_archive_could_say_is_refused() {
    let file =
        |size, first_block| Node::File { attributes: Attributes::default(), size, first_block };
    let root = |entries: &[(&[u8], NodeId)]| {
        Node::Directory(Directory {
            attributes: Attributes::default(),
            origin: Origin::Entry,
            is_opaque: false,
            entries: entries.iter().map(|(name, id)| (name.to_vec(), *id)).collect(),
        })
    };
    let with = |attributes| Node::File { attributes, size: 0, first_block: 0 };
    let xattr = |name: &str| Attributes {
        xattrs: vec![Xattr { name: name.into(), value: vec![] }],
        ..Attributes::default()
    };
    let link =
        |target: &[u8]| Node::Symlink { attributes: Attributes::default(), target: target.into() };
    let one = |name: &[u8], node: Node| vec![root(&[(name, 1)]), node];
    let bad = [
        one(b"f", file(1, 10)),
        one(b"f", file(4096 * 10 + 1, 0)),
        one(b"f", file(u64::MAX, 1)),
        one(b"..", file(0, 0)),
        one(b"a/b", file(0, 0)),
        one(b"", file(0, 0)),
        one(b"a\0", file(0, 0)),
        one(b"l", link(b"")),
        one(b"l", link(b"a\0b")),
        one(b"l", link(&[b'x'; 4096])),
        one(b"f", with(Attributes { mode: 0o10_0644, ..Attributes::default() })),
        one(b"f", with(Attributes { mtime: (0, 1_000_000_000), ..Attributes::default() })),
        one(b"f", with(xattr("trusted.overlay.opaque"))),
        one(b"f", with(xattr("user."))),
        vec![file(0, 0)],
        // A directory with two names.
        vec![root(&[(b"a", 1), (b"b", 1)]), root(&[])],
    ];
    for (idx, nodes) in bad.into_iter().enumerate() {
        let result = decode(&encode(&LayerTree { nodes, data_blocks: 10 }), DEPTH);
        assert!(matches!(result, Err(IndexError::Invalid(_))), "{idx}: {result:?}");
    }
    decode(&encode(&LayerTree { nodes: one(b"f", file(4096 * 10, 0)), data_blocks: 10 }), DEPTH)
        .unwrap();
    let deep: Vec<Node> = (1..=10).map(|id| root(&[(b"d", id)])).chain([root(&[])]).collect();
    let deep = encode(&LayerTree { nodes: deep, data_blocks: 0 });
    decode(&deep, 10).unwrap();
    decode(&deep, 8).unwrap_err();
}
