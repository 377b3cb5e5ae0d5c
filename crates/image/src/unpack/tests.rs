//! Layers unpacked into fresh directories beside a directory that must never change.
//!
//! These tests need root (owners, whiteouts, trusted xattrs), GNU tar and Python.

mod hostile;
pub(crate) mod listing;
mod second_opinion;

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use longshore_types::ByteCount;
use sha2::{Digest as _, Sha256};

use super::*;
use crate::tar::tests::{Archive, RawHeader};
use listing::{Node, list};

pub(crate) fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_sha256(Sha256::digest(bytes).into())
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn identity(blob: &[u8], plain: &[u8]) -> LayerIdentity {
    LayerIdentity {
        blob: digest_of(blob),
        size: ByteCount(blob.len() as u64),
        diff_id: digest_of(plain),
    }
}

/// A directory with the place of a layer and, beside it, files that no layer may touch.
pub(crate) struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests need root");
        let directory = tempfile::tempdir().unwrap();
        for name in ["layer", "outside"] {
            std::fs::create_dir(directory.path().join(name)).unwrap();
        }
        std::fs::write(directory.path().join("outside/secret"), "secret").unwrap();
        Self { directory }
    }

    pub fn layer(&self) -> PathBuf {
        self.directory.path().join("layer")
    }

    pub fn outside(&self) -> PathBuf {
        self.directory.path().join("outside")
    }

    pub fn unpack(&self, plain: &[u8], limits: &Limits) -> Result<LayerReport, UnpackError> {
        let root = std::fs::File::open(self.layer()).unwrap().into();
        let before = list(&self.outside());
        let result = unpack(plain, &identity(plain, plain), root, limits);
        assert_eq!(list(&self.outside()), before, "the layer changed something outside");
        result
    }
}

pub(super) fn unpacked(archive: Archive) -> (Place, LayerReport) {
    let place = Place::new();
    let report = place
        .unpack(&archive.finish(), &Limits::default())
        .unwrap_or_else(|error| panic!("{error:?}"));
    (place, report)
}

fn names(place: &Place) -> Vec<String> {
    let names = list(&place.layer()).into_keys().filter(|path| !path.is_empty());
    names.map(|path| String::from_utf8_lossy(&path).into_owned()).collect()
}

fn node(place: &Place, path: &str) -> Node {
    list(&place.layer()).remove(path.as_bytes()).unwrap_or_else(|| panic!("{path} is missing"))
}

fn is_whiteout(node: &Node) -> bool {
    node.kind == 'c' && node.device == 0
}

fn is_opaque(node: &Node) -> bool {
    node.xattrs.get(OPAQUE_XATTR.as_bytes()).is_some_and(|value| value == b"y")
}

#[test]
fn attributes_are_kept() {
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let xattrs: [(&str, &[u8]); 6] = [
        ("SCHILY.xattr.user.note", b"kept"),
        ("SCHILY.xattr.security.capability", &capability),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.security.selinux", b"x"),
        ("SCHILY.xattr.security.ima", b"x"),
        ("mtime", b"1600000000.123456789"),
    ];
    let mut program = RawHeader::new(b'0', b"bin/program");
    program.mode(0o6755).owner(0, 5).size(2);
    let mut directory = RawHeader::new(b'5', b"bin");
    directory.mode(0o1777).owner(3, 4).mtime(1_500_000_000);
    let mut link = RawHeader::new(b'2', b"bin/link");
    link.link(b"/nowhere").owner(6, 7).mtime(1_400_000_000);
    let archive = Archive::default()
        .raw(&directory, b"")
        .pax(&xattrs)
        .raw(&program, b"hi")
        .pax(&[("SCHILY.xattr.user.note", b"dropped")])
        .raw(&link, b"");
    let (place, report) = unpacked(archive);
    let program = node(&place, "bin/program");
    assert_eq!((program.mode, program.uid, program.gid), (0o6755, 0, 5));
    assert_eq!(program.mtime, (1_600_000_000, 123_456_789));
    assert_eq!(program.xattrs.len(), 2);
    assert_eq!(program.xattrs[&b"security.capability"[..]], capability);
    let directory = node(&place, "bin");
    assert_eq!((directory.mode, directory.uid, directory.gid), (0o1777, 3, 4));
    assert_eq!(directory.mtime, (1_500_000_000, 0), "set after what is inside was made");
    assert!(directory.xattrs.is_empty());
    let link = node(&place, "bin/link");
    assert_eq!((link.uid, link.gid, link.mtime), (6, 7, (1_400_000_000, 0)));
    assert_eq!(link.target.as_deref(), Some(&b"/nowhere"[..]));
    assert_eq!(report.dropped_xattrs, 4);
    assert_eq!(report.implicit_directories, [b"".to_vec()]);
}

#[test]
fn directories_without_entries_are_the_same_everywhere() {
    let (place, report) = unpacked(Archive::default().file("a/b/f", b""));
    for path in ["a", "a/b"] {
        let node = node(&place, path);
        assert_eq!((node.mode, node.uid, node.mtime), (0o755, 0, (0, 0)));
    }
    let implicit = [&b"a/b"[..], b"a", b""].map(<[u8]>::to_vec);
    assert_eq!(report.implicit_directories, implicit);
    let described = Archive::default().file("a/f", b"").directory("a").directory("./");
    assert!(unpacked(described).1.implicit_directories.is_empty());
}

#[test]
fn hard_links() {
    let archive = Archive::default()
        .file("a", b"x")
        .hard_link("d/b", "a")
        .symlink("s", "a")
        .hard_link("t", "./s")
        .hard_link("a", "a");
    let (place, _) = unpacked(archive);
    let inode = |name| place.layer().join(name).symlink_metadata().unwrap().ino();
    assert_eq!(inode("a"), inode("d/b"));
    assert_eq!(inode("s"), inode("t"));
    assert_eq!(node(&place, "t").target.as_deref(), Some(&b"a"[..]));
    for archive in [
        Archive::default().hard_link("b", "missing"),
        Archive::default().hard_link("b", "b"),
        Archive::default().directory("d").hard_link("b", "d"),
        Archive::default().hard_link("b", "/"),
        Archive::default().file(".wh.a", b"").hard_link("b", "a"),
        Archive::default().file("d/a", b"").hard_link("d", "d/a"),
    ] {
        let result = Place::new().unpack(&archive.finish(), &Limits::default());
        assert!(matches!(result, Err(UnpackError::Entry { .. } | UnpackError::Write { .. })));
    }
}

#[test]
fn later_entries_win() {
    let archive = Archive::default()
        .file("file", b"old")
        .file("file", b"new!")
        .file("becomes-directory", b"")
        .directory("becomes-directory")
        .file("becomes-directory/inside", b"")
        .file("becomes-file/gone", b"")
        .file("becomes-file", b"now")
        .symlink("link", "file")
        .file("link", b"not through the link")
        .symlink("link-to-directory", "kept")
        .file("kept/inside", b"")
        .directory("link-to-directory")
        .pax(&[("SCHILY.xattr.user.a", b"1")])
        .directory("kept")
        .raw(RawHeader::new(b'5', b"kept").mode(0o700), b"");
    let (place, _) = unpacked(archive);
    let read = |name| std::fs::read(place.layer().join(name)).unwrap();
    assert_eq!(read("file"), b"new!");
    assert_eq!(read("becomes-file"), b"now");
    assert_eq!(read("link"), b"not through the link");
    let expected = [
        "becomes-directory",
        "becomes-directory/inside",
        "becomes-file",
        "file",
        "kept",
        "kept/inside",
        "link",
        "link-to-directory",
    ];
    assert_eq!(names(&place), expected);
    assert_eq!(node(&place, "kept").mode, 0o700);
    assert!(node(&place, "kept").xattrs.is_empty());
}

#[test]
fn links_above_an_entry_are_followed_inside_the_layer() {
    let archive = Archive::default()
        .directory("usr/lib")
        .symlink("lib", "usr/lib")
        .symlink("absolute", "/usr")
        .symlink("climbing", "../../../../usr")
        .file("lib/a", b"")
        .file("absolute/lib/b", b"")
        .file("climbing/new/c", b"")
        .hard_link("d", "lib/a")
        .file("lib/.wh.gone", b"");
    let (place, _) = unpacked(archive);
    for path in ["usr/lib/a", "usr/lib/b", "usr/new/c", "d"] {
        assert_eq!(node(&place, path).kind, '-');
    }
    assert!(is_whiteout(&node(&place, "usr/lib/gone")));
    for (archive, expected) in [
        (Archive::default().symlink("a", "b").file("a/f", b""), EntryProblem::ParentDangling),
        (Archive::default().symlink("a", "a").file("a/f", b""), EntryProblem::ParentLoop),
        (Archive::default().file("a", b"").file("a/f", b""), EntryProblem::ParentNotDirectory),
        (
            Archive::default().file("b", b"").symlink("a", "b").file("a/f", b""),
            EntryProblem::ParentDangling,
        ),
        (Archive::default().file("/", b""), EntryProblem::RootNotDirectory),
    ] {
        match Place::new().unpack(&archive.finish(), &Limits::default()) {
            Err(UnpackError::Entry { problem, .. }) => assert_eq!(problem, expected),
            Err(UnpackError::Archive(TarError::Path { .. })) => {
                assert_eq!(expected, EntryProblem::RootNotDirectory);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn depth_is_bounded_also_through_links() {
    let limits = Limits { depth: 4, ..Limits::default() };
    let archive = Archive::default().directory("a/b/c").symlink("s", "a/b/c").directory("s/d/e");
    Place::new().unpack(&archive.clone().finish(), &limits).unwrap();
    let archive = archive.symlink("t", "s/d/e").directory("t/f/g");
    match Place::new().unpack(&archive.finish(), &limits) {
        Err(UnpackError::Entry { problem, .. }) => {
            assert_eq!(problem, EntryProblem::Deep { allowed: 4 });
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn whiteouts_act_on_lower_layers_whatever_their_order() {
    let archive = Archive::default()
        .file("d/.wh.gone", b"")
        .file("before", b"stays")
        .file(".wh.before", b"")
        .file(".wh.after", b"")
        .file("after", b"stays")
        .file(".wh.implied", b"")
        .file("implied/inside", b"")
        .file(".wh.directory", b"")
        .directory("directory")
        .file("directory/inside", b"")
        .directory("directory-before")
        .file("directory-before/inside", b"")
        .file(".wh.directory-before", b"")
        .file(".wh.two-steps", b"")
        .file("two-steps", b"")
        .directory("two-steps")
        .file("opaque/before", b"")
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/after", b"")
        .file("opaque/deep/er/.wh.needless", b"")
        .file(".wh..wh.plnk", b"")
        .file(".wh..wh.plnk/12.34", b"")
        .symlink(".wh.odd-kind", "x");
    let (place, report) = unpacked(archive);
    for path in ["d/gone", "odd-kind"] {
        assert!(is_whiteout(&node(&place, path)), "{path}");
    }
    for path in ["before", "after", "implied/inside", "directory/inside", "directory-before/inside"]
    {
        assert_eq!(node(&place, path).kind, '-', "{path}");
    }
    for path in ["implied", "directory", "directory-before", "two-steps", "opaque"] {
        assert!(is_opaque(&node(&place, path)), "{path}");
    }
    assert_eq!(node(&place, "opaque/before").kind, '-');
    assert_eq!(node(&place, "opaque/after").kind, '-');
    assert!(!is_opaque(&node(&place, "d")));
    assert!(names(&place).iter().all(|name| !name.contains(".wh.")));
    assert_eq!(std::fs::read_dir(place.layer().join("opaque/deep/er")).unwrap().count(), 0);
    assert_eq!(report.whiteouts, 10);
    assert!(!report.hides_all);
    assert!(unpacked(Archive::default().file(".wh..wh..opq", b"")).1.hides_all);
    for name in [".wh.", ".wh..", ".wh...", "a/.wh.b/c"] {
        let result =
            Place::new().unpack(&Archive::default().file(name, b"").finish(), &Limits::default());
        assert!(
            matches!(result, Err(UnpackError::Entry { problem: EntryProblem::Whiteout, .. })),
            "{name}: {result:?}"
        );
    }
}

#[test]
fn devices_are_dropped_and_counted() {
    let archive = Archive::default()
        .raw(&RawHeader::new(b'3', b"dev/null"), b"")
        .raw(&RawHeader::new(b'4', b"dev/disk"), b"")
        .raw(&RawHeader::new(b'6', b"dev/fifo"), b"")
        .hard_link("dev/again", "dev/null")
        .file("f", b"");
    let (place, report) = unpacked(archive);
    assert_eq!(names(&place), ["f"]);
    assert_eq!(report.dropped_devices, 4);
    assert_eq!(report.entries, 5);
}

#[test]
fn every_compression_and_every_wrong_digest() {
    let plain = Archive::default().file("f", &[7; 100_000]).finish();
    let (first, second) = plain.split_at(3000);
    let zstd = |bytes| zstd::encode_all(bytes, 1).unwrap();
    for blob in [
        plain.clone(),
        gzip(&plain),
        [gzip(first), gzip(second)].concat(),
        zstd(&plain[..]),
        [zstd(first), zstd(second)].concat(),
    ] {
        let unpack = |bytes: &[u8], identity: &LayerIdentity| {
            let place = Place::new();
            let root = std::fs::File::open(place.layer()).unwrap().into();
            unpack(bytes, identity, root, &Limits::default())
        };
        let right = identity(&blob, &plain);
        let report = unpack(&blob, &right).unwrap();
        assert_eq!(report.unpacked, ByteCount(plain.len() as u64));
        let wrong = LayerIdentity { diff_id: digest_of(b""), ..right };
        assert!(matches!(unpack(&blob, &wrong), Err(UnpackError::DiffId { .. })));
        let wrong = LayerIdentity { blob: digest_of(b""), ..right };
        assert!(matches!(unpack(&blob, &wrong), Err(UnpackError::BlobDigest { .. })));
        for size in [right.size.0 - 1, right.size.0 + 1] {
            let wrong = LayerIdentity { size: ByteCount(size), ..right };
            assert!(matches!(unpack(&blob, &wrong), Err(UnpackError::BlobSize { .. })));
        }
        // Damaged on the way: the digest says so, whatever the decoder made of it.
        for at in (0..blob.len()).step_by(blob.len() / 40 + 1) {
            let mut damaged = blob.clone();
            damaged[at] ^= 0x10;
            let result = unpack(&damaged, &right);
            assert!(matches!(result, Err(UnpackError::BlobDigest { .. })), "{at}: {result:?}");
        }
        for end in (0..blob.len()).step_by(512) {
            let result = unpack(&blob[..end], &right);
            assert!(matches!(result, Err(UnpackError::BlobSize { .. })), "{end}: {result:?}");
        }
    }
}

#[test]
fn bombs_are_refused() {
    let limits = Limits {
        layer_bytes: ByteCount::mib(4),
        ratio: 50,
        ratio_from: ByteCount::mib(1),
        entries: 100,
        ..Limits::default()
    };
    let sparse: [(&str, &[u8]); 2] =
        [("GNU.sparse.size", b"1099511627776"), ("GNU.sparse.map", b"0,0")];
    let refused = |plain: &[u8], blob: &[u8]| {
        let place = Place::new();
        let root = std::fs::File::open(place.layer()).unwrap().into();
        let result = unpack(blob, &identity(blob, plain), root, &limits);
        assert!(matches!(result, Err(UnpackError::Limit(_))), "{result:?}");
    };
    for plain in [
        Archive::default().file("f", &vec![0; 5 << 20]).finish(),
        Archive::default().file("f", &vec![0; 2 << 20]).finish(),
        // Zeros behind the end of the archive are bytes as well.
        [Archive::default().finish(), vec![0; 5 << 20]].concat(),
    ] {
        refused(&plain, &gzip(&plain));
    }
    let plain = Archive::default().pax(&sparse).file("f", b"").finish();
    refused(&plain, &plain);
    let many = (0..101).fold(Archive::default(), |archive, n| archive.file(format!("{n}"), b""));
    let plain = many.finish();
    refused(&plain, &plain);
    // Two entries, but more directories than entries are allowed.
    let path = |first: &str| format!("{first}/{}", "d/".repeat(60));
    let plain = Archive::default()
        .pax(&[("path", path("a").as_bytes())])
        .directory("x")
        .pax(&[("path", path("b").as_bytes())])
        .directory("x")
        .finish();
    refused(&plain, &plain);
    let place = Place::new();
    assert_eq!(list(Path::new(&place.layer())).len(), 1);
}
