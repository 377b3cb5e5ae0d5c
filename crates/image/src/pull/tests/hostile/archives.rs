//! Archives that two programs read differently, that are too much, or that end too early.

use crate::unpack::tests::gzip;

use super::*;

const GZIP: &str = "+gzip";
const ZSTD: &str = "+zstd";

fn archive() -> Archive {
    Archive::default()
}

pub(super) fn cases() -> Vec<Case> {
    [confusion(), sparse_files(), bombs(), compression(), damage()].into_iter().flatten().collect()
}

fn pax(records: &[(&str, &[u8])]) -> ImageParts {
    layer(archive().pax(records).file("f", b""))
}

fn raw_pax(text: &[u8]) -> ImageParts {
    layer(archive().extension(b'x', text).file("f", b""))
}

fn with(at: usize, bytes: &[u8]) -> ImageParts {
    layer(archive().raw(RawHeader::new(b'0', b"f").set(at, bytes), b""))
}

/// A header inside the contents of a file, whose real size only its pax header tells: a parser that
/// takes the size of the plain header would read the contents as entries.
fn smuggled() -> Archive {
    let contents = [archive().file("smuggled", b"x").finish(), vec![0; 512]].concat();
    let size = contents.len().to_string();
    archive()
        .pax(&[("size", size.as_bytes())])
        .raw(&RawHeader::new(b'0', b"f"), &contents)
        .file("after", b"x")
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn confusion() -> Vec<Case> {
    const AMBIGUOUS: &str = "ambiguous tar header of entry 1";
    const NOT_FILLED: &[&str] = &[AMBIGUOUS, "do not fill it exactly"];
    vec![
        inside(
            "an archive inside a file whose size only pax tells",
            |_| layer(smuggled()),
            |tree| assert_eq!(tree.names(), ["after", "f"]),
        ),
        refused(
            "two pax headers",
            |_| layer(archive().pax(&[("path", b"a")]).pax(&[("path", b"b")]).file("f", b"")),
            &["of entry 1", "duplicate PAX"],
        ),
        refused(
            "two GNU names",
            |_| layer(archive().extension(b'L', b"a\0").extension(b'L', b"b\0").file("f", b"")),
            &["of entry 1", "duplicate GNU long name"],
        ),
        refused(
            "a pax key twice",
            |_| pax(&[("path", b"a"), ("path", b"b")]),
            &[AMBIGUOUS, "\"path\" is given twice"],
        ),
        refused("a size with a sign", |_| with(124, b"+0000000000\0"), &[AMBIGUOUS, "size"]),
        refused(
            "a size above 64 bits",
            |_| with(124, &[0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            &["of entry 1"],
        ),
        refused("a negative size of a file", |_| with(124, &[0xff; 12]), &["of entry 1"]),
        refused("a size that is no number", |_| with(124, b"99999999999\0"), &["of entry 1"]),
        refused(
            "a pax size in hexadecimal",
            |_| pax(&[("size", b"0x0")]),
            &[AMBIGUOUS, "\"size\""],
        ),
        refused("a negative pax size", |_| pax(&[("size", b"-1")]), &[AMBIGUOUS, "\"size\""]),
        refused(
            "a pax time that is none",
            |_| pax(&[("mtime", b"now")]),
            &[AMBIGUOUS, "\"mtime\""],
        ),
        refused("a pax record that is too short", |_| raw_pax(b"5 path=abc\n"), &["of entry 1"]),
        refused("a pax record that is too long", |_| raw_pax(b"99 path=abc\n"), &["of entry 1"]),
        refused("a pax record without a length", |_| raw_pax(b"path=abc\n"), NOT_FILLED),
        refused("bytes behind the pax records", |_| raw_pax(b"12 path=abc\n\0\0\0"), NOT_FILLED),
        refused("a padded pax length", |_| raw_pax(b"012 path=ab\n"), NOT_FILLED),
        refused(
            "a global pax size",
            |_| layer(archive().extension(b'g', b"9 size=1\n").file("f", b"")),
            &[AMBIGUOUS, "global pax header sets \"size\""],
        ),
        refused(
            "a global pax path",
            |_| layer(archive().extension(b'g', b"13 path=../x\n").file("f", b"")),
            &[AMBIGUOUS, "global pax header sets \"path\""],
        ),
        refused(
            "a directory with contents",
            |_| layer(archive().raw(RawHeader::new(b'5', b"d").size(512), &[0; 512])),
            &[AMBIGUOUS, "type '5' claims to have contents"],
        ),
        refused(
            "a symbolic link with contents",
            |_| layer(archive().raw(RawHeader::new(b'2', b"l").link(b"x").size(512), &[0; 512])),
            &[AMBIGUOUS, "type '2' claims to have contents"],
        ),
        refused(
            "a kind that nobody knows",
            |_| layer(archive().raw(&RawHeader::new(b'V', b"label"), b"")),
            &["entry \"label\"", "unknown type 'V'"],
        ),
        refused(
            "headers of nothing",
            |_| layer(archive().pax(&[("path", b"a")])),
            &["of entry 1", "without a following"],
        ),
        refused(
            "a wrong checksum",
            |_| {
                let mut plain = archive().file("f", b"").finish();
                plain[0] = b'g';
                ImageParts::default().layer("", plain.clone(), &plain)
            },
            &["of entry 1", "checksum"],
        ),
        refused(
            "an entry behind a single block of zeros",
            |_| layer(archive().file("f", b"").blocks(&[0; 512]).file("smuggled", b"x")),
            &["ambiguous tar header of entry 2", "a block of zeros"],
        ),
        inside(
            "an archive behind the end of the archive",
            |_| {
                let plain = [archive().file("f", b"").finish(), archive().file("g", b"").finish()];
                let plain = plain.concat();
                ImageParts::default().layer("", plain.clone(), &plain)
            },
            |tree| assert_eq!(tree.names(), ["f"]),
        ),
    ]
}

fn sparse(map: &[u8]) -> ImageParts {
    let mut header = RawHeader::new(b'0', b"f");
    header.size(5);
    let records: [(&str, &[u8]); 2] = [("GNU.sparse.size", b"10"), ("GNU.sparse.map", map)];
    layer(archive().pax(&records).raw(&header, b"abcde"))
}

fn sparse_files() -> Vec<Case> {
    const WRONG: &[&str] =
        &["ambiguous tar header of entry 1", "the map of a sparse file is wrong"];
    vec![
        refused("two regions in one block", |_| sparse(b"0,3,5,2"), WRONG),
        refused("overlapping regions", |_| sparse(b"0,3,2,2"), WRONG),
        refused("regions out of order", |_| sparse(b"5,2,0,3"), WRONG),
        refused("a region behind the end", |_| sparse(b"8,5"), WRONG),
        refused("a region that ends beyond 64 bits", |_| sparse(b"18446744073709551615,5"), WRONG),
        refused("regions that are not all there", |_| sparse(b"0,4"), WRONG),
        refused("half a region", |_| sparse(b"0,5,1"), &["of entry 1"]),
        refused(
            "20,000 regions",
            |_| {
                let map: Vec<String> = (0..20_000).map(|n| format!("{n},0")).collect();
                sparse(map.join(",").as_bytes())
            },
            &["of entry 1", "10000"],
        ),
        refused(
            "a tebibyte of holes by pax",
            |_| pax(&[("GNU.sparse.size", b"1099511627776"), ("GNU.sparse.map", b"0,0")]),
            &["more than 33554432 bytes in files"],
        ),
        refused(
            "a tebibyte of holes by GNU",
            |_| {
                let mut header = RawHeader::new(b'S', b"f");
                header.gnu().octal(483..495, 0o77_777_777_777);
                layer(archive().raw(&header, b""))
            },
            &["more than 33554432 bytes in files"],
        ),
        refused(
            "holes in many files",
            |_| {
                let records: [(&str, &[u8]); 2] =
                    [("GNU.sparse.size", b"20000000"), ("GNU.sparse.map", b"0,0")];
                layer(archive().pax(&records).file("f", b"").pax(&records).file("g", b""))
            },
            &["more than 33554432 bytes in files"],
        ),
    ]
}

fn zeros(n_bytes: usize) -> Vec<u8> {
    archive().file("zeros", &vec![0; n_bytes]).finish()
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn bombs() -> Vec<Case> {
    vec![
        refused(
            "a bomb of gzip by its size",
            |_| {
                let plain = zeros(40 << 20);
                ImageParts::default().layer(GZIP, gzip(&plain), &plain)
            },
            &["unpacking the layer sha256:", "asks for too much"],
        ),
        refused(
            "a bomb of gzip by its ratio",
            |_| {
                let plain = zeros(4 << 20);
                ImageParts::default().layer(GZIP, gzip(&plain), &plain)
            },
            &["more than 100 bytes from each compressed byte"],
        ),
        refused(
            "a bomb of zstd by its ratio",
            |_| {
                let plain = zeros(4 << 20);
                ImageParts::default().layer(ZSTD, zstd::encode_all(&plain[..], 19).unwrap(), &plain)
            },
            &["more than 100 bytes from each compressed byte"],
        ),
        refused(
            "zeros behind the end of the archive",
            |_| {
                let plain = [archive().file("f", b"").finish(), vec![0; 4 << 20]].concat();
                ImageParts::default().layer(GZIP, gzip(&plain), &plain)
            },
            &["more than 100 bytes from each compressed byte"],
        ),
        refused(
            "more entries than a layer may have",
            |_| layer((0..2001).fold(archive(), |made, n| made.file(format!("{n}"), b""))),
            &["more than 2000 entries"],
        ),
        refused(
            "the same entry again and again",
            |_| layer((0..2001).fold(archive(), |made, _| made.file("f", b""))),
            &["more than 2000 entries"],
        ),
        refused(
            "more directories than entries are allowed",
            |_| {
                let made = (0..20).fold(archive(), |made, n| {
                    let path = format!("{n}/{}", "d/".repeat(110));
                    made.pax(&[("path", path.as_bytes())]).directory("x")
                });
                layer(made)
            },
            &["more than 2000 directories"],
        ),
        refused(
            "a pax header of two mebibytes",
            |_| pax(&[("comment", &vec![b'x'; 2 << 20])]),
            &["of entry 1", "limit"],
        ),
        refused(
            "a GNU name of two mebibytes",
            |_| layer(archive().extension(b'L', &vec![b'x'; 2 << 20]).file("f", b"")),
            &["of entry 1", "limit"],
        ),
        refused(
            "a pax header that claims eight gibibytes",
            |_| {
                let header = RawHeader::new(b'x', b"pax").size(0o77_777_777_777).clone();
                layer(archive().raw(&header, b"9 size=1\n"))
            },
            &["of entry 1", "limit"],
        ),
        refused(
            "global headers without end",
            |_| {
                let made =
                    (0..3000).fold(archive(), |made, _| made.extension(b'g', b"13 comment=a\n"));
                layer(made.extension(b'g', &vec![b'x'; 2 << 20]).file("f", b""))
            },
            &["of entry 1", "limit"],
        ),
    ]
}

/// A frame whose header asks for a window of 2 to the power of `log`.
fn zstd_window(log: u8) -> Vec<u8> {
    let raw_last_block_of_one_byte = [0x09, 0, 0, b'x'];
    [&[0x28, 0xb5, 0x2f, 0xfd, 0x00, (log - 10) << 3][..], &raw_last_block_of_one_byte].concat()
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn compression() -> Vec<Case> {
    const BROKEN: &[&str] = &["unpacking the layer sha256:", "decompressing the layer"];
    vec![
        refused(
            "a zstd window of 256 MiB",
            |_| ImageParts::default().layer(ZSTD, zstd_window(28), b"x"),
            BROKEN,
        ),
        refused(
            "a zstd window of 2 TiB",
            |_| ImageParts::default().layer(ZSTD, zstd_window(41), b"x"),
            BROKEN,
        ),
        refused(
            "gzip inside gzip",
            |_| {
                let plain = archive().file("f", b"x").finish();
                ImageParts::default().layer(GZIP, gzip(&gzip(&plain)), &gzip(&plain))
            },
            &["unpacking the layer sha256:", "entry 1"],
        ),
        inside(
            "ten thousand members of gzip",
            |_| {
                let plain = archive().file("f", b"x").finish();
                let blob = [gzip(b"").repeat(10_000), gzip(&plain)].concat();
                ImageParts::default().layer(GZIP, blob, &plain)
            },
            |tree| tree.assert_file("f", b"x"),
        ),
        inside(
            "skippable frames of zstd",
            |_| {
                let plain = archive().file("f", b"x").finish();
                let frame = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 9, 9, 9];
                let blob =
                    [frame.repeat(10_000), zstd::encode_all(&plain[..], 1).unwrap()].concat();
                ImageParts::default().layer(ZSTD, blob, &plain)
            },
            |tree| tree.assert_file("f", b"x"),
        ),
        refused(
            "garbage behind gzip",
            |_| {
                let plain = archive().file("f", b"x").finish();
                ImageParts::default().layer(
                    GZIP,
                    [gzip(&plain), b"garbage".to_vec()].concat(),
                    &plain,
                )
            },
            BROKEN,
        ),
        refused(
            "half of gzip",
            |_| {
                let plain = archive().file("f", &[7; 5000]).finish();
                let blob = gzip(&plain);
                ImageParts::default().layer(GZIP, blob[..blob.len() / 2].to_vec(), &plain)
            },
            BROKEN,
        ),
        refused(
            "a layer that is no archive",
            |_| ImageParts::default().layer("", vec![b'A'; 4096], &[b'A'; 4096]),
            &["unpacking the layer sha256:", "of entry 1"],
        ),
        refused(
            "a layer of one byte",
            |_| ImageParts::default().layer("", vec![b'A'], b"A"),
            &["ends in the middle of entry 1"],
        ),
        inside(
            "a layer without a byte",
            |_| ImageParts::default().layer("", Vec::new(), b""),
            |tree| assert_eq!(tree.names(), [""; 0]),
        ),
        inside(
            "a plain layer that is called gzip",
            |_| {
                let plain = archive().file("f", b"x").finish();
                ImageParts::default().layer(GZIP, plain.clone(), &plain)
            },
            |tree| tree.assert_file("f", b"x"),
        ),
    ]
}

fn cut(n_bytes: usize) -> ImageParts {
    let plain = archive().file("one", &[1; 700]).pax(&[("path", b"two")]).file("x", b"2").finish();
    ImageParts::default().layer("", plain[..n_bytes].to_vec(), &plain[..n_bytes])
}

fn damage() -> Vec<Case> {
    vec![
        refused("cut in a header", |_| cut(100), &["ends in the middle of entry 1"]),
        refused("cut in contents", |_| cut(512 + 300), &["ends in the middle of entry 1"]),
        refused("cut in the padding", |_| cut(512 + 701), &["ends in the middle of entry 1"]),
        refused("cut in a pax header", |_| cut(3 * 512 + 520), &["entry 2"]),
        refused("cut behind a pax header", |_| cut(5 * 512), &["entry 2"]),
        refused_source(
            "a blob with a flipped bit",
            |source| {
                let parts = layer(archive().file("f", &[7; 4096]));
                let digest = parts.clone().publish(source);
                source.replace_blob(&parts.blob(0), |blob| blob[1000] ^= 1);
                digest
            },
            &["unpacking the layer sha256:", "have the digest sha256:"],
        ),
        refused_source(
            "a blob that is cut",
            |source| {
                let parts = layer(archive().file("f", &[7; 4096]));
                let digest = parts.clone().publish(source);
                source.replace_blob(&parts.blob(0), |blob| blob.truncate(1000));
                digest
            },
            &["unpacking the layer sha256:", "has 1000 bytes, not 5632"],
        ),
        refused_source(
            "a blob that does not end",
            |source| {
                let parts = layer(archive().file("f", b"x"));
                let digest = parts.clone().publish(source);
                source.replace_blob(&parts.blob(0), |blob| blob.resize(1 << 20, 0));
                digest
            },
            &["unpacking the layer sha256:", "not 2048"],
        ),
        refused_source(
            "a blob that is not there",
            |source| {
                let parts = layer(archive().file("f", b"x"));
                let digest = parts.clone().publish(source);
                source.remove_blob(&parts.blob(0));
                digest
            },
            &["fetching the layer sha256:", "no such blob"],
        ),
    ]
}
