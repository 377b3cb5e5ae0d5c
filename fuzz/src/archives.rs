//! Tar archives put together at random, from every feature that tar programs know.

use fastrand::Rng;

use crate::mutate::mend_checksums;

/// An archive of a few entries; most are well-formed.
pub fn random(rng: &mut Rng) -> Vec<u8> {
    let mut archive = Vec::new();
    for _ in 0..rng.usize(1..6) {
        entry(rng, &mut archive);
    }
    if rng.u8(..) < 250 {
        archive.resize(archive.len() + 1024, 0);
    }
    mend_checksums(&mut archive);
    archive
}

fn entry(rng: &mut Rng, archive: &mut Vec<u8>) {
    let kind = *rng.choice(b"00000011225553467\0S").unwrap_or(&b'0');
    let contents: Vec<u8> = match kind {
        b'0' | b'7' | b'\0' | b'S' => {
            let limit = if rng.bool() { 20 } else { 1500 };
            let n_bytes = rng.usize(..limit);
            std::iter::repeat_with(|| rng.u8(..)).take(n_bytes).collect()
        }
        _ => Vec::new(),
    };
    let mut header = header(rng, kind, contents.len());
    if matches!(kind, b'1' | b'2') {
        put(&mut header, 157, &name(rng));
    }
    let choice = rng.u8(..40);
    if choice == 0 {
        // Both, whose order matters to some.
        extension(archive, b'L', &[&name(rng)[..], b"\0"].concat());
    }
    match choice % 10 {
        9 => {
            // Some writers leave out the zero at the end.
            let end: &[u8] = if rng.u8(..8) == 0 { b"" } else { b"\0" };
            extension(archive, b'L', &[&name(rng), end].concat());
        }
        1 if matches!(kind, b'1' | b'2') => {
            extension(archive, b'K', &[name(rng), b"\0".to_vec()].concat());
        }
        0 | 2..=5 => {
            let records = records(rng, contents.len());
            extension(archive, if rng.u8(..) < 12 { b'g' } else { b'x' }, &records);
        }
        _ => {}
    }
    if kind == b'S' {
        sparse(rng, &mut header, contents.len());
    }
    archive.extend(header);
    archive.extend(contents);
    archive.resize(archive.len().next_multiple_of(512), 0);
}

fn header(rng: &mut Rng, kind: u8, size: usize) -> [u8; 512] {
    let mut header = [0; 512];
    put(&mut header, 0, &name(rng));
    put(&mut header, 100, format!("{:07o}", rng.u32(..0o10000)).as_bytes());
    let value = rng.u16(..);
    put(&mut header, 108, &number(rng, 8, value.into()));
    let value = rng.u16(..);
    put(&mut header, 116, &number(rng, 8, value.into()));
    put(&mut header, 124, &number(rng, 12, size as u64));
    let value = rng.u32(..);
    put(&mut header, 136, &number(rng, 12, value.into()));
    header[156] = kind;
    let magic: &[u8] = match (kind, rng.u8(..8)) {
        (b'S', _) | (_, 0..2) => b"ustar  \0",
        // The oldest format has none.
        (_, 2) => b"",
        _ => b"ustar\x0000",
    };
    put(&mut header, 257, magic);
    // Seldom where the format has none.
    if rng.u8(..if magic.starts_with(b"ustar\0") { 8 } else { 80 }) == 0 {
        put(&mut header, 345, &name(rng));
    }
    // By its form it is known as a checksum, and mended.
    put(&mut header, 148, b"000000\0 ");
    header
}

fn put(header: &mut [u8], at: usize, bytes: &[u8]) {
    let n_bytes = bytes.len().min(if at == 345 { 155 } else { 100 });
    header[at..at + n_bytes].copy_from_slice(&bytes[..n_bytes]);
}

/// Octal as most write it, with blanks as some do, or binary as GNU does.
fn number(rng: &mut Rng, width: usize, value: u64) -> Vec<u8> {
    let digits = width - 1;
    match rng.u8(..8) {
        0 => {
            let mut field = vec![0; width];
            field[width - 8.min(width)..].copy_from_slice(&value.to_be_bytes()[8 - 8.min(width)..]);
            field[0] = 0x80;
            field
        }
        1 => format!("{value:>digits$o} ").into_bytes(),
        2 => format!("{value:o}\0").into_bytes(),
        _ => format!("{value:0digits$o}\0").into_bytes(),
    }
}

fn name(rng: &mut Rng) -> Vec<u8> {
    let parts: [&[u8]; 11] = [
        b"a",
        b"b",
        b"dir",
        b".",
        b"",
        b"\xff\xfe",
        b"x y",
        b".wh.a",
        b"n\n",
        b"\xc3\xa9",
        b"long",
    ];
    let mut name = Vec::new();
    for _ in 0..rng.usize(1..5) {
        if !name.is_empty() || rng.u8(..12) == 0 {
            name.push(b'/');
        }
        let part = match rng.u8(..60) {
            0 => &[b'p'; 60][..],
            1 => &b".."[..],
            _ => rng.choice(parts).unwrap_or(b"a"),
        };
        name.extend(part);
    }
    name
}

/// The records of a pax header; now and then all that make a sparse file of one region.
fn records(rng: &mut Rng, size: usize) -> Vec<u8> {
    let mut records = Vec::new();
    if rng.u8(..8) == 0 {
        let real = size + rng.usize(..99);
        records.extend(record(b"GNU.sparse.size", real.to_string().as_bytes()));
        records.extend(record(b"GNU.sparse.map", format!("0,{size}").as_bytes()));
        if rng.bool() {
            records.extend(record(b"GNU.sparse.name", &name(rng)));
        }
    }
    for _ in 0..rng.usize(1..4) {
        let (key, value): (&[u8], Vec<u8>) = match rng.u8(..10) {
            0..3 => (b"path", name(rng)),
            3 => (b"linkpath", name(rng)),
            4 => (b"size", size.to_string().into_bytes()),
            5 => (b"uid", rng.u32(..).to_string().into_bytes()),
            6 => (b"mtime", format!("{}.{:03}", rng.i32(..), rng.u16(..1000)).into_bytes()),
            7 => (b"SCHILY.xattr.user.a", name(rng)),
            8 => (b"gname", name(rng)),
            _ => (b"comment", name(rng)),
        };
        records.extend(record(key, &value));
    }
    records
}

/// `length key=value\n`, the length counting itself.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

fn extension(archive: &mut Vec<u8>, kind: u8, contents: &[u8]) {
    let mut header = [0; 512];
    put(&mut header, 0, b"././@Header");
    put(&mut header, 100, b"0000644\x000000000\x000000000\0");
    put(&mut header, 124, format!("{:011o}\x0000000000000", contents.len()).as_bytes());
    header[156] = kind;
    put(&mut header, 257, if kind == b'x' || kind == b'g' { b"ustar\x0000" } else { b"ustar  \0" });
    archive.extend(header);
    archive.extend(contents);
    archive.resize(archive.len().next_multiple_of(512), 0);
}

/// The map of an old GNU sparse file: what is stored, in up to two pieces with a hole between.
fn sparse(rng: &mut Rng, header: &mut [u8; 512], size: usize) {
    // Mostly whole blocks, as programs write them.
    let first = rng.usize(..=size);
    let first = if rng.u8(..8) == 0 { first } else { first / 512 * 512 };
    let second = first + 512 * rng.usize(..3);
    for (slot, (offset, length)) in [(0, first), (second, size - first)].into_iter().enumerate() {
        put(header, 386 + 24 * slot, format!("{offset:011o}\0{length:011o}\0").as_bytes());
    }
    let real = second + size - first + rng.usize(..2000);
    if rng.bool() {
        put(header, 386 + 48, format!("{real:011o}\0{:011o}\0", 0).as_bytes());
    }
    put(header, 483, format!("{real:011o}\0").as_bytes());
}
