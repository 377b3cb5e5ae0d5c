//! Archives built byte by byte, so that each test says exactly what it feeds.

use std::io::{self, Read};

use super::*;
use crate::Limits;

/// An archive under construction.
#[derive(Clone, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
}

impl std::fmt::Debug for Archive {
    /// Type, name and link target of every block that looks like a header.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let headers = self.bytes.chunks(512).filter(|block| block[257..262] == *b"ustar");
        let text = |field: &[u8]| String::from_utf8_lossy(field).trim_end_matches('\0').to_owned();
        f.debug_list()
            .entries(
                headers.map(|block| {
                    (char::from(block[156]), text(&block[..100]), text(&block[157..257]))
                }),
            )
            .finish()
    }
}

/// A header with its fields at their places; the checksum is computed when it is appended.
#[derive(Clone)]
pub(crate) struct RawHeader(pub [u8; 512]);

impl RawHeader {
    pub fn new(kind: u8, name: &[u8]) -> Self {
        let mut header = Self([0; 512]);
        header.set(0, name);
        header.octal(100..108, if kind == b'5' { 0o755 } else { 0o644 });
        header.octal(108..116, 0);
        header.octal(116..124, 0);
        header.octal(124..136, 0);
        header.octal(136..148, 1_700_000_000);
        header.0[156] = kind;
        header.set(257, b"ustar\x0000");
        header
    }

    pub fn set(&mut self, at: usize, bytes: &[u8]) -> &mut Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub fn octal(&mut self, field: std::ops::Range<usize>, value: u64) -> &mut Self {
        let width = field.len() - 1;
        self.set(field.start, format!("{value:0width$o}\0").as_bytes())
    }

    pub fn mode(&mut self, mode: u64) -> &mut Self {
        self.octal(100..108, mode)
    }

    pub fn owner(&mut self, uid: u64, gid: u64) -> &mut Self {
        self.octal(108..116, uid).octal(116..124, gid)
    }

    pub fn size(&mut self, size: u64) -> &mut Self {
        self.octal(124..136, size)
    }

    pub fn mtime(&mut self, seconds: u64) -> &mut Self {
        self.octal(136..148, seconds)
    }

    pub fn link(&mut self, target: &[u8]) -> &mut Self {
        self.set(157, target)
    }

    pub fn gnu(&mut self) -> &mut Self {
        self.set(257, b"ustar  \0")
    }
}

impl Archive {
    /// Appends a header, its checksum put right, and contents padded to whole blocks.
    pub fn raw(mut self, header: &RawHeader, contents: &[u8]) -> Self {
        let mut header = header.clone();
        header.set(148, b"        ");
        let sum: u64 = header.0.iter().map(|&byte| u64::from(byte)).sum();
        header.set(148, format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend(header.0);
        self.bytes.extend(contents);
        self.pad()
    }

    fn pad(mut self) -> Self {
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub fn blocks(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend(bytes);
        self.pad()
    }

    pub fn file(self, name: impl AsRef<[u8]>, contents: &[u8]) -> Self {
        let mut header = RawHeader::new(b'0', name.as_ref());
        self.raw(header.size(contents.len() as u64), contents)
    }

    pub fn directory(self, name: impl AsRef<[u8]>) -> Self {
        self.raw(&RawHeader::new(b'5', name.as_ref()), b"")
    }

    pub fn symlink(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.raw(RawHeader::new(b'2', name.as_ref()).link(target.as_ref()), b"")
    }

    pub fn hard_link(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.raw(RawHeader::new(b'1', name.as_ref()).link(target.as_ref()), b"")
    }

    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        self.extension(b'x', &pax_records(records))
    }

    /// A header of headers: `x`, `g`, `L` or `K`.
    pub fn extension(self, kind: u8, contents: &[u8]) -> Self {
        let mut header = RawHeader::new(kind, b"header");
        if matches!(kind, b'L' | b'K') {
            header.gnu();
        }
        self.raw(header.size(contents.len() as u64), contents)
    }

    /// The bytes with the two blocks that end an archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.extend([0; 1024]);
        self.bytes
    }
}

pub(crate) fn pax_records(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut text = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let length = (1..).map(|n| rest + n).find(|l| l.to_string().len() + rest == *l).unwrap();
        text.extend(format!("{length} {key}=").as_bytes());
        text.extend(*value);
        text.push(b'\n');
    }
    text
}

/// Gives at most `most` bytes at a time.
struct Trickle<'a> {
    bytes: &'a [u8],
    most: usize,
}

impl Read for Trickle<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n_bytes = self.most.min(buffer.len());
        self.bytes.read(&mut buffer[..n_bytes])
    }
}

fn read_through(source: impl Read, limits: &Limits) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let mut tar = TarReader::new(source, limits);
    let mut entries = Vec::new();
    while let Some(entry) = tar.next_entry()? {
        let mut contents = Vec::new();
        while let Some(chunk) = tar.next_chunk()? {
            contents.resize(chunk.offset as usize, 0);
            contents.extend(chunk.bytes);
        }
        if let EntryKind::File { size } = entry.kind {
            contents.resize(size as usize, 0);
        }
        entries.push((entry, contents));
    }
    tar.finish()?;
    Ok(entries)
}

fn read_all(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let whole = read_through(bytes, &Limits::default());
    for most in [1, 511, 513] {
        let trickled = read_through(Trickle { bytes, most }, &Limits::default());
        assert_eq!(format!("{whole:?}"), format!("{trickled:?}"), "{most} bytes at a time");
    }
    whole
}

fn only(archive: Archive) -> (Entry, Vec<u8>) {
    let mut entries = read_all(&archive.finish()).unwrap();
    assert_eq!(entries.len(), 1, "{entries:?}");
    entries.remove(0)
}

fn path_of(archive: Archive) -> Vec<u8> {
    only(archive).0.path.as_bytes().to_vec()
}

#[test]
fn kinds() {
    let archive = Archive::default()
        .file("f", b"hello")
        .directory("d/")
        .symlink("s", "../../anything")
        .hard_link("h", "/f")
        .raw(&RawHeader::new(b'3', b"null"), b"")
        .raw(&RawHeader::new(b'6', b"fifo"), b"")
        .raw(RawHeader::new(b'7', b"contiguous").size(1), b"x")
        .raw(RawHeader::new(0, b"old").set(257, &[0; 8]).size(1), b"y")
        .raw(RawHeader::new(0, b"old-directory/").set(257, &[0; 8]), b"");
    let kinds: Vec<EntryKind> =
        read_all(&archive.finish()).unwrap().into_iter().map(|(entry, _)| entry.kind).collect();
    let target = EntryPath::parse(b"f", 10).unwrap();
    assert_eq!(
        kinds,
        [
            EntryKind::File { size: 5 },
            EntryKind::Directory,
            EntryKind::Symlink { target: b"../../anything".to_vec() },
            EntryKind::HardLink { target },
            EntryKind::Special,
            EntryKind::Special,
            EntryKind::File { size: 1 },
            EntryKind::File { size: 1 },
            EntryKind::Directory,
        ]
    );
}

#[test]
fn paths_in_every_encoding_of_them() {
    let long = [b"directory/".repeat(30), b"name".to_vec()].concat();
    let mut prefixed = RawHeader::new(b'0', b"name");
    prefixed.set(345, b"some/prefix");
    let long_nul = [&long[..], b"\0"].concat();
    for (archive, expected) in [
        (Archive::default().file("./a//b/./c", b""), &b"a/b/c"[..]),
        (Archive::default().file("/etc/passwd", b""), b"etc/passwd"),
        (Archive::default().directory("./"), b""),
        (Archive::default().file(b"\xff\xfe", b""), b"\xff\xfe"),
        (Archive::default().raw(&prefixed, b""), b"some/prefix/name"),
        (Archive::default().extension(b'L', &long_nul).file("short", b""), &long),
        (Archive::default().extension(b'L', b"x\0\0\0").file("short", b""), b"x"),
        (Archive::default().pax(&[("path", &long)]).file("short", b""), &long),
        (Archive::default().pax(&[("path", b"\xff")]).file("short", b""), b"\xff"),
    ] {
        assert_eq!(path_of(archive), expected);
    }
    let archive = Archive::default().extension(b'K', &long_nul).symlink("s", "short");
    assert_eq!(only(archive).0.kind, EntryKind::Symlink { target: long.clone() });
    let archive = Archive::default().pax(&[("linkpath", &long)]).symlink("s", "short");
    assert_eq!(only(archive).0.kind, EntryKind::Symlink { target: long });
}

#[test]
fn numbers_and_times() {
    let binary = |at: usize, value: &[u8]| {
        let mut header = RawHeader::new(b'0', b"f");
        header.set(at, value);
        only(Archive::default().raw(&header, b"")).0
    };
    let entry = binary(108, &[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff]);
    assert_eq!(entry.uid, 0x7fff_ffff);
    let minus_two = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe];
    assert_eq!(binary(136, &minus_two).mtime, (-2, 0));
    for (text, expected) in [
        ("12", (12, 0)),
        ("12.5", (12, 500_000_000)),
        ("12.0000000019", (12, 1)),
        ("-12", (-12, 0)),
        ("-12.25", (-13, 750_000_000)),
        ("-0.5", (-1, 500_000_000)),
    ] {
        let archive = Archive::default().pax(&[("mtime", text.as_bytes())]).file("f", b"");
        assert_eq!(only(archive).0.mtime, expected, "{text}");
    }
    let records: [(&str, &[u8]); 4] =
        [("size", b"3"), ("uid", b"4000000000"), ("gid", b"7"), ("SCHILY.xattr.user.a", b"\0=\n")];
    let archive = Archive::default().pax(&records).raw(&RawHeader::new(b'0', b"f"), b"abc");
    let (entry, contents) = only(archive);
    assert_eq!((entry.uid, entry.gid, contents), (4_000_000_000, 7, b"abc".to_vec()));
    let xattr = Xattr { name: b"user.a".to_vec(), value: b"\0=\n".to_vec() };
    assert_eq!(entry.xattrs, [xattr]);
}

/// The four forms of the same file: a block at 2, 2 bytes at 1000, 2000 long.
fn sparse_archives() -> Vec<Archive> {
    let stored = [&[b'a'; 512][..], b"de"].concat();
    let mut gnu = RawHeader::new(b'S', b"f");
    gnu.gnu().size(514).octal(386..398, 2).octal(398..410, 512).octal(483..495, 2000);
    // Only a header without a free slot is followed by more of the map.
    for at in [410, 434, 458] {
        gnu.octal(at..at + 12, 600).octal(at + 12..at + 24, 0);
    }
    gnu.set(482, &[1]);
    let mut more = RawHeader([0; 512]);
    more.octal(0..12, 1000).octal(12..24, 2);
    let mut header = RawHeader::new(b'0', b"ignored");
    header.size(514);
    let mut with_map = header.clone();
    with_map.size(512 + 514);
    let mut map = b"2\n2\n512\n1000\n2\n".to_vec();
    map.resize(512, 0);
    map.extend(&stored);
    let of_0_0: [(&str, &[u8]); 7] = [
        ("GNU.sparse.size", b"2000"),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.offset", b"2"),
        ("GNU.sparse.numbytes", b"512"),
        ("GNU.sparse.offset", b"1000"),
        ("GNU.sparse.numbytes", b"2"),
        ("path", b"f"),
    ];
    let of_0_1: [(&str, &[u8]); 4] = [
        ("GNU.sparse.size", b"2000"),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.map", b"2,512,1000,2"),
        ("GNU.sparse.name", b"f"),
    ];
    let of_1_0: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"f"),
        ("GNU.sparse.realsize", b"2000"),
    ];
    vec![
        Archive::default().raw(&gnu, b"").blocks(&more.0).blocks(&stored),
        Archive::default().pax(&of_0_0).raw(&header, &stored),
        Archive::default().pax(&of_0_1).raw(&header, &stored),
        Archive::default().pax(&of_1_0).raw(&with_map, &map),
    ]
}

#[test]
fn sparse_files_of_every_format() {
    let mut expected = vec![0; 2000];
    expected[2..514].fill(b'a');
    expected[1000..1002].copy_from_slice(b"de");
    for archive in sparse_archives() {
        let entries = read_all(&archive.file("next", b"!").finish()).unwrap();
        assert_eq!(entries[0].0.path.as_bytes(), b"f");
        assert_eq!(entries[0].1, expected);
        assert_eq!(entries[1].1, b"!");
    }
}

fn assert_refused<const N: usize>(archives: [(&str, Archive); N]) {
    for (name, archive) in archives {
        let result = read_all(&archive.finish());
        assert!(result.is_err(), "{name}: {result:?}");
    }
}

#[test]
fn bad_paths_and_kinds_are_refused() {
    let archive = Archive::default;
    assert_refused([
        ("dotdot", archive().file("a/../../b", b"")),
        ("only dotdot", archive().directory("..")),
        ("hard link dotdot", archive().hard_link("a", "../b")),
        ("long part", archive().pax(&[("path", &[b'a'; 256])]).file("f", b"")),
        ("deep", archive().pax(&[("path", &b"a/".repeat(200))]).directory("f")),
        ("nul in pax path", archive().pax(&[("path", b"a\0b")]).file("f", b"")),
        ("nul in gnu path", archive().extension(b'L', b"a\0b\0").file("f", b"")),
        ("no name", archive().file("", b"")),
        ("link without target", archive().symlink("a", "")),
        ("file with slash", archive().file("a/", b"")),
        ("unknown kind", archive().raw(&RawHeader::new(b'V', b"label"), b"")),
    ]);
}

#[test]
fn headers_without_a_single_meaning_are_refused() {
    let with = |at: usize, bytes: &[u8]| {
        Archive::default().raw(RawHeader::new(b'0', b"f").set(at, bytes), b"")
    };
    let mut directory = RawHeader::new(b'5', b"d");
    let mut link = RawHeader::new(b'1', b"b");
    let archive = Archive::default;
    assert_refused([
        ("size above 64 bits", with(124, &[0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])),
        ("size with sign", with(124, b"+0000000000\0")),
        ("size behind a zero", with(124, b"\x000000000010\0")),
        ("mode behind a zero", with(100, b"\x00004755\0")),
        ("device with half a mark", with(329, &[0x90, 0, 0, 0, 0, 0, 0, 1])),
        ("negative owner", with(108, &[0xff; 8])),
        ("directory with contents", archive().raw(directory.size(512), &[0; 512])),
        ("link with contents", archive().file("a", b"").raw(link.link(b"a").size(512), &[0; 512])),
        ("two pax headers", archive().pax(&[("path", b"a")]).pax(&[("path", b"b")]).file("f", b"")),
        (
            "two long names",
            archive().extension(b'L', b"a\0").extension(b'L', b"b\0").file("f", b""),
        ),
        ("nul in pax key", archive().pax(&[("a\0b", b"c")]).file("f", b"")),
        ("another record in a pax key", archive().pax(&[("a\n9 path", b"b")]).file("f", b"")),
        ("headers of nothing", archive().pax(&[("path", b"a")])),
        ("global size", archive().extension(b'g', &pax_records(&[("size", b"1")])).file("f", b"")),
        (
            "global inside",
            archive()
                .pax(&[("path", b"a")])
                .extension(b'g', &pax_records(&[("comment", b"1")]))
                .file("f", b""),
        ),
    ]);
    let comment = archive().extension(b'g', &pax_records(&[("comment", b"1")])).file("f", b"");
    assert_eq!(path_of(comment), b"f");
    // Not even an entry behind a single block of zeros: most programs end there.
    for before in [archive(), archive().file("a", b"x"), archive().pax(&[("path", b"a")])] {
        assert_refused([("a block of zeros", before.blocks(&[0; 512]).file("b", b"x"))]);
    }
    let mut twice = RawHeader::new(b'S', b"f");
    twice.gnu().octal(483..495, 2000);
    let records: [(&str, &[u8]); 1] = [("GNU.sparse.size", b"9")];
    let plain = RawHeader::new(b'S', b"f");
    assert_refused([("a sparse file of nobody's", archive().raw(&plain, b""))]);
    assert_refused([("a map by pax and by GNU", archive().pax(&records).raw(&twice, b""))]);
}

#[test]
fn names_that_are_put_together_differently_are_refused() {
    let archive = Archive::default;
    let header = |magic: &[u8], prefix: &[u8]| {
        archive().raw(RawHeader::new(b'5', b"d").set(257, magic).set(345, prefix), b"")
    };
    let old = |name: &[u8]| RawHeader::new(0, name);
    let star = [&[b'p'; 131][..], &[b'q'; 24], &[0; 8], b"tar\0"].concat();
    assert_eq!(path_of(header(b"ustar\x0000", b"p")), b"p/d");
    assert_eq!(path_of(archive().pax(&[("path", b"d/")]).raw(&old(b"e/"), b"")), b"d");
    assert_refused([
        ("prefix with GNU's magic", header(b"ustar  \0", b"p")),
        ("time with GNU's magic", header(b"ustar  \0", b"14552341377\0")),
        ("prefix without a magic", header(&[0; 8], b"p")),
        ("prefix with another version", header(b"ustar\x0001", b"p")),
        ("prefix of star's", header(b"ustar\x0000", &star)),
        ("file by header", archive().pax(&[("path", b"d/")]).raw(&old(b"f"), b"")),
        ("file by header, GNU", archive().extension(b'L', b"d/\0\0").raw(&old(b"f"), b"")),
        ("directory by header", archive().pax(&[("path", b"f")]).raw(&old(b"d/"), b"")),
    ]);
    let long = |kind| archive().extension(kind, b"a\0");
    let pax = |archive: Archive, key: &str| archive.pax(&[(key, b"b")]);
    assert_eq!(path_of(pax(long(b'L'), "comment").file("f", b"")), b"a");
    assert_refused([
        ("GNU's name and pax's", pax(long(b'L'), "path").file("f", b"")),
        ("pax's name and GNU's", pax(archive(), "path").extension(b'L', b"a\0").file("f", b"")),
        ("GNU's target and pax's", pax(long(b'K'), "linkpath").symlink("f", "c")),
        ("sparse name", {
            let map: [(&str, &[u8]); 3] =
                [("GNU.sparse.size", b"0"), ("GNU.sparse.map", b"0,0"), ("GNU.sparse.name", b"b")];
            long(b'L').pax(&map).file("f", b"")
        }),
    ]);
    let padded = |kind: u8, contents: &[u8], size: u64| {
        let mut header = RawHeader::new(kind, b"header");
        if kind == b'L' {
            header.gnu();
        }
        archive().raw(header.size(size), contents).file("f", b"")
    };
    assert_eq!(path_of(padded(b'L', b"long", 4)), b"long");
    assert_refused([
        ("name behind the long name", padded(b'L', b"longer", 4)),
        ("record behind the pax header", padded(b'x', b"9 path=a\n9 path=b\n", 9)),
        ("record behind the global header", padded(b'g', b"12 comment=\n9 path=b\n", 12)),
    ]);
}

#[test]
fn maps_of_gnu_that_end_in_two_places_are_refused() {
    let map = |slots: &[(u64, u64)]| {
        let mut header = RawHeader::new(b'S', b"f");
        header.gnu().size(slots.iter().map(|slot| slot.1).sum()).octal(483..495, 9999);
        for (at, (offset, length)) in (386..).step_by(24).zip(slots) {
            header.octal(at..at + 12, *offset).octal(at + 12..at + 24, *length);
        }
        header
    };
    let one = || map(&[(2, 512)]);
    let full = || map(&[(0, 0); 4]);
    let ends = |header: &RawHeader| Archive::default().raw(header, b"").blocks(&[b'a'; 512]);
    let goes_on = |header: &RawHeader, flag: u8| {
        let mut more = RawHeader([0; 512]);
        more.octal(0..12, 0).octal(12..24, 512).set(504, &[flag]);
        let mut header = header.clone();
        header.size(512).set(482, &[1]);
        Archive::default().raw(&header, b"").blocks(&more.0).blocks(&[b'a'; 512])
    };
    assert_eq!(only(ends(&one())).1.len(), 9999);
    assert_refused([
        ("behind a free slot", ends(one().set(434, b"00000000600\x0000000000000\0"))),
        ("half a slot", ends(one().set(410, b"00000000600\0"))),
        ("no number in a slot", ends(one().set(410, b"path=a\n"))),
        ("no number as size", ends(one().set(483, b"9999 bytes"))),
        ("a flag of 2", ends(one().set(482, &[2]))),
        ("on behind a free slot", goes_on(&map(&[]), 0)),
        ("the first region behind the header", goes_on(&full(), 0)),
        ("a flag of 2 behind the header", goes_on(&full(), 2)),
    ]);
}

#[test]
fn malformed_pax_headers_are_refused() {
    let pax = |records: &[(&str, &[u8])]| Archive::default().pax(records).file("f", b"");
    let raw = |text: &[u8]| Archive::default().extension(b'x', text).file("f", b"");
    assert_refused([
        ("owner -1", pax(&[("uid", b"4294967295")])),
        ("owner above 32 bits", pax(&[("uid", b"4294967296")])),
        ("size with plus", pax(&[("size", b"+0")])),
        ("size in hex", pax(&[("size", b"0x1")])),
        ("negative size", pax(&[("size", b"-1")])),
        ("empty size", pax(&[("size", b"")])),
        ("time", pax(&[("mtime", b"yesterday")])),
        ("size twice", pax(&[("size", b"0"), ("size", b"512")])),
        ("path twice", pax(&[("path", b"a"), ("path", b"b")])),
        ("length too short", raw(b"5 path=abc\n")),
        ("length too long", raw(b"99 path=abc\n")),
        ("no length", raw(b"path=abc\n")),
        ("no length behind a record", raw(b"12 path=abc\ngarbage\n")),
        ("padded length", raw(b"012 path=ab\n")),
        ("signed length", raw(b"+12 path=ab\n")),
        ("huge length", raw(b"99999999999999999999999 path=abc\n")),
        ("no equals sign", raw(b"8 pathx\n")),
    ]);
}

#[test]
fn wrong_sparse_maps_are_refused() {
    let stored = b"abcde";
    let mut header = RawHeader::new(b'0', b"f");
    header.size(stored.len() as u64);
    let sparse = |records: &[(&str, &[u8])]| Archive::default().pax(records).raw(&header, stored);
    let with_map = |map: &[u8]| sparse(&[("GNU.sparse.size", b"10"), ("GNU.sparse.map", map)]);
    let of_2_0: [(&str, &[u8]); 3] =
        [("GNU.sparse.major", b"2"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.size", b"10")];
    let sized_twice: [(&str, &[u8]); 3] =
        [("GNU.sparse.size", b"10"), ("GNU.sparse.map", b"0,5"), ("size", b"5")];
    assert!(read_all(&with_map(b"3,5").finish()).is_ok());
    assert_refused([
        ("no map", sparse(&[("GNU.sparse.size", b"10")])),
        ("two regions in one block", with_map(b"0,3,5,2")),
        ("overlap", with_map(b"0,3,2,2")),
        ("order", with_map(b"5,2,0,3")),
        ("behind the end", with_map(b"8,5")),
        ("overflow", with_map(b"18446744073709551615,5")),
        ("sum", with_map(b"0,4")),
        ("odd", with_map(b"0,5,1")),
        ("size given twice", sparse(&sized_twice)),
        ("unknown version", sparse(&of_2_0)),
    ]);
}

#[test]
fn limits_hold() {
    let check = |archive: &Archive, limits: Limits| {
        let bytes = archive.clone().finish();
        assert!(read_through(&bytes[..], &Limits::default()).is_ok());
        let result = read_through(&bytes[..], &limits);
        assert!(matches!(result, Err(TarError::Limit(_) | TarError::Header { .. })), "{result:?}");
    };
    let limits = Limits::default;
    let two = Archive::default().file("a", b"1").file("b", b"2");
    check(&two, Limits { entries: 1, ..limits() });
    check(&two, Limits { layer_bytes: longshore_types::ByteCount(1), ..limits() });
    let xattrs: [(&str, &[u8]); 2] = [("SCHILY.xattr.user.a", b"1"), ("SCHILY.xattr.user.b", b"2")];
    let with_xattrs = Archive::default().pax(&xattrs).file("a", b"");
    check(&with_xattrs, Limits { xattrs: 1, ..limits() });
    check(&with_xattrs, Limits { xattr_bytes: 13, ..limits() });
    check(&with_xattrs, Limits { header_bytes: 40, ..limits() });
    let long = Archive::default().pax(&[("path", &[b'a'; 200])]).file("a", b"");
    check(&long, Limits { path_bytes: 199, ..limits() });
    check(
        &sparse_archives()[1],
        Limits { layer_bytes: longshore_types::ByteCount(1999), ..limits() },
    );
    for archive in &sparse_archives() {
        check(archive, Limits { sparse_regions: 1, ..limits() });
    }
}

#[test]
fn an_archive_may_lack_its_end_but_not_end_inside_an_entry() {
    let bytes = Archive::default()
        .pax(&[("path", b"one")])
        .file("x", &[1; 700])
        .extension(b'L', b"two\0")
        .file("x", b"2")
        .finish();
    let whole = read_all(&bytes).unwrap();
    let starts_of_entries = [0, 5 * 512, 9 * 512];
    for end in 0..bytes.len() {
        match read_through(&bytes[..end], &Limits::default()) {
            Ok(entries) => {
                assert!(starts_of_entries.contains(&end) || end == 9 * 512 + 512, "{end}");
                assert_eq!(entries, whole[..entries.len()]);
            }
            Err(TarError::Truncated { .. }) => {}
            Err(error) => panic!("{end}: {error}"),
        }
    }
    // Whatever follows the end is not looked at.
    let trailing = [&bytes[..], &Archive::default().file("three", b"").finish()].concat();
    assert_eq!(read_all(&trailing).unwrap(), whole);
}

proptest::proptest! {
    #[test]
    fn damaged_headers_never_panic(
        which in 0_usize..6,
        damage in proptest::collection::vec((0_usize..8 * 512, proptest::num::u8::ANY), 1..6),
    ) {
        let mut archives = sparse_archives();
        archives.push(Archive::default().pax(&[("path", b"a"), ("size", b"3")]).file("f", b"abc"));
        archives.push(Archive::default().extension(b'L', b"long\0").hard_link("f", "a"));
        let mut bytes = archives[which].clone().file("end", b"e").finish();
        for (at, value) in damage {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        // Right checksums let the damage through to the code behind them.
        for block in bytes.chunks_mut(512) {
            if block[257..262] == *b"ustar" {
                block[148..156].copy_from_slice(b"        ");
                let sum: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        let limits = Limits { layer_bytes: longshore_types::ByteCount::mib(1), ..Limits::default() };
        let _ = read_through(&bytes[..], &limits);
    }
}
