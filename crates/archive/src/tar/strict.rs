//! What the header parser lets pass and other tar programs read differently.
//!
//! Scanners, builders and nodes must see the same files in a layer. The parser is right about
//! well-formed archives; for malformed ones it has its own idea, as every program has: it drops the
//! high bytes of large binary numbers, stops silently at a pax record without a length, lets the last
//! of several sparse maps win. Each of these is looked for here on the raw bytes and refused.
//!
//! `fuzz/tests/differential.rs` compares what is left with other readers.

use std::collections::HashSet;

use tar_core::parse::ParsedEntry;
use tar_core::{EntryType, Header, PaxExtensions};

use super::BLOCK;
use super::entry::SparseMap;

/// A header that has no single meaning.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ambiguity {
    /// A numeric field that is not plain octal nor a binary number of 64 bits.
    #[error("the header's {0} is not a plain number")]
    Number(&'static str),
    /// Something lies between the records of a pax header.
    #[error("the records of a pax header do not fill it exactly")]
    PaxRecords,
    /// A pax value that is not what its key asks for.
    #[error("the pax value of {key:?} is not allowed: {value:?}")]
    PaxValue {
        /// The key.
        key: String,
        /// The value, made printable.
        value: String,
    },
    /// Go refuses the one, and programs that read a pax header line by line see another key at the
    /// other.
    #[error("the pax key {0:?} has a zero byte or an end of a line in it")]
    PaxKey(String),
    /// Two pax records of the same key.
    #[error("the pax key {0:?} is given twice")]
    PaxTwice(String),
    /// A name in a header of GNU's and in one of pax: Go takes the former, GNU tar the latter, Python
    /// that of the first header.
    #[error("its {0} is given both by a pax header and by one of GNU's")]
    GivenTwice(&'static str),
    /// A global pax header that some programs apply and others do not.
    #[error("a global pax header sets {0:?}")]
    PaxGlobal(String),
    /// A global header between an entry and its own headers.
    #[error("a global pax header stands inside another entry's headers")]
    GlobalInside,
    /// Some programs would skip the bytes, others read them as the next header.
    #[error("an entry of type {0:?} claims to have contents")]
    ContentsWithoutFile(char),
    /// Some programs end the archive at the first block of zeros, others at the second.
    #[error("a block of zeros stands before it")]
    LoneZeros,
    /// Python reads on behind the end, to the end of the block.
    #[error("a header of headers is followed by more than zeros")]
    BehindExtension,
    /// Python puts the field before the name whatever the format, others where it is one of the format.
    #[error("the header has a prefix of the name that its format does not have")]
    Prefix,
    /// An entry of the oldest format, where a slash at the end of the name makes a directory.
    #[error("one of its short and its long name is a directory's, the other a file's")]
    OldDirectory,
    /// A sparse map that does not describe the file.
    #[error("the map of a sparse file is wrong: {0}")]
    SparseMap(&'static str),
}

/// The fields of an entry that are read here and not by the parser.
pub(super) struct Fields {
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
}

/// Checks a global pax header. Comments (git writes one) are harmless; anything that names an
/// attribute is applied by GNU tar and Python, and ignored by the Go programs.
pub(super) fn check_global(consumed: &[u8], pax: &[u8]) -> Result<(), Ambiguity> {
    let own_size = BLOCK + (pax.len() as u64).next_multiple_of(BLOCK);
    if consumed.len() as u64 != own_size {
        return Err(Ambiguity::GlobalInside);
    }
    consumed.first_chunk().map_or(Ok(()), check_octal)?;
    check_padding(&consumed[BLOCK as usize + pax.len()..])?;
    for (key, _) in pax_records(pax)? {
        if key != b"comment" {
            return Err(Ambiguity::PaxGlobal(printable(key)));
        }
    }
    Ok(())
}

/// Checks the headers of one entry, `consumed`, against what the parser made of them.
pub(super) fn check_entry(
    consumed: &[u8],
    entry: &ParsedEntry<'_>,
    sparse: Option<&SparseMap>,
) -> Result<Fields, Ambiguity> {
    let long = check_headers(consumed)?;
    check_prefix(entry.header)?;
    let raw = entry.header.as_ustar();
    check_plain("owner", &raw.uid)?;
    check_plain("group", &raw.gid)?;
    check_plain("mode", &raw.mode)?;
    let mut mtime = (header_time(&raw.mtime)?.unwrap_or(entry.mtime as i64), 0);
    let (mut sized_by_pax, mut sparse_by_pax) = (false, false);
    for (key, value) in pax_records(entry.pax.unwrap_or_default())? {
        check_pax_value(key, value)?;
        match key {
            b"mtime" => mtime = pax_time(value).ok_or_else(|| bad_value(key, value))?,
            b"size" => sized_by_pax = true,
            b"path" | b"GNU.sparse.name" if long.name => return Err(Ambiguity::GivenTwice("name")),
            b"linkpath" if long.target => return Err(Ambiguity::GivenTwice("link target")),
            _ => sparse_by_pax |= key.starts_with(b"GNU.sparse."),
        }
    }
    check_old_directory(entry)?;
    let sparse_by_header = raw.typeflag[0] == b'S';
    if sparse_by_header && !entry.header.is_gnu() {
        return Err(Ambiguity::SparseMap("its header is not one of GNU's"));
    }
    match sparse {
        Some(_) if sparse_by_pax && sparse_by_header => {
            return Err(Ambiguity::SparseMap("there are two"));
        }
        // Python passes over a region at the beginning of the file in the blocks behind the header.
        Some(map) if sparse_by_header && map.regions.iter().skip(4).any(|r| r.offset == 0) => {
            return Err(Ambiguity::SparseMap("its first region is not in the header"));
        }
        None if sparse_by_pax => return Err(Ambiguity::SparseMap("there is none")),
        Some(_) if sized_by_pax => return Err(Ambiguity::SparseMap("the size is given twice")),
        _ => {}
    }
    check_contents(entry, sparse)?;
    Ok(Fields {
        uid: id(entry.uid).ok_or(Ambiguity::Number("owner"))?,
        gid: id(entry.gid).ok_or(Ambiguity::Number("group"))?,
        mtime,
    })
}

/// What headers of GNU's say about the entry that follows them.
#[derive(Default)]
struct LongNames {
    name: bool,
    target: bool,
}

/// Walks the extension headers before an entry and the entry's own: a size that two programs read
/// differently makes them disagree on everything after it.
fn check_headers(consumed: &[u8]) -> Result<LongNames, Ambiguity> {
    let mut long = LongNames::default();
    let mut rest = consumed;
    while let Some(block) = rest.first_chunk::<{ BLOCK as usize }>() {
        let header = Header::from_bytes(block);
        rest = &rest[block.len()..];
        if header.is_empty() {
            return Err(Ambiguity::LoneZeros);
        }
        check_plain("size", &header.as_ustar().size)?;
        check_octal(block)?;
        let is_extension = (header.is_gnu() || header.is_ustar())
            && matches!(
                header.entry_type(),
                EntryType::GnuLongName | EntryType::GnuLongLink | EntryType::XHeader
            );
        if !is_extension {
            if header.entry_type() == EntryType::GnuSparse {
                check_gnu_map(block, rest)?;
            }
            break;
        }
        long.name |= header.entry_type() == EntryType::GnuLongName;
        long.target |= header.entry_type() == EntryType::GnuLongLink;
        let size = header.entry_size().map_err(|_| Ambiguity::Number("size"))?;
        let padded = size.next_multiple_of(BLOCK) as usize;
        let (own, next) = rest.split_at_checked(padded).ok_or(Ambiguity::Number("size"))?;
        check_padding(&own[size as usize..])?;
        rest = next;
    }
    Ok(long)
}

/// What fills up the last block of an extension header.
fn check_padding(padding: &[u8]) -> Result<(), Ambiguity> {
    let is_zero = padding.iter().all(|&byte| byte == 0);
    if is_zero { Ok(()) } else { Err(Ambiguity::BehindExtension) }
}

/// Only headers of POSIX have a prefix. GNU's keep other times there, which GNU tar writes for backups
/// alone; some releases of Go wrote prefixes there. In star's variant of POSIX it is shorter.
fn check_prefix(header: &Header) -> Result<(), Ambiguity> {
    let raw = header.as_ustar();
    let is_right = if header.is_ustar() {
        let is_star = header.as_bytes().ends_with(b"tar\0");
        !is_star || raw.prefix[..131].contains(&0)
    } else {
        raw.prefix[0] == 0 || raw.typeflag[0] == b'S'
    };
    if is_right { Ok(()) } else { Err(Ambiguity::Prefix) }
}

/// Python takes the header's word for what is a directory, others that of the name in the end.
fn check_old_directory(entry: &ParsedEntry<'_>) -> Result<(), Ambiguity> {
    let raw = entry.header.as_ustar();
    let name = raw.name.split(|&byte| byte == 0).next().unwrap_or_default();
    let last = entry.path.iter().rfind(|&&byte| byte != 0);
    let agree = name.ends_with(b"/") == (last == Some(&b'/'));
    if raw.typeflag[0] != 0 || agree { Ok(()) } else { Err(Ambiguity::OldDirectory) }
}

/// The map in a header of GNU's and in the blocks behind it, `more`: some programs end it at the first
/// free slot, others at the last, and what is in them counts only for some.
fn check_gnu_map(block: &[u8; BLOCK as usize], more: &[u8]) -> Result<(), Ambiguity> {
    check_plain("real size", &block[483..495])?;
    let behind = more.chunks_exact(BLOCK as usize).map(|block| (&block[..504], block[504]));
    let mut ended = false;
    for (slots, goes_on) in std::iter::once((&block[386..482], block[482])).chain(behind) {
        for slot in slots.chunks_exact(24) {
            let (offset, length) = slot.split_at(12);
            if slot.iter().all(|&byte| byte == 0) {
                ended = true;
            } else if ended || offset[0] == 0 || length[0] == 0 {
                return Err(Ambiguity::SparseMap("something stands in or behind a free slot"));
            }
            check_plain("sparse map", offset)?;
            check_plain("sparse map", length)?;
        }
        if goes_on > 1 || (goes_on == 1 && ended) {
            return Err(Ambiguity::SparseMap("it goes on behind its end"));
        }
    }
    Ok(())
}

/// Numbers that are read by some programs in every header, also where they mean nothing: Python ends
/// an archive at a header that has one it cannot read.
fn check_octal(block: &[u8; BLOCK as usize]) -> Result<(), Ambiguity> {
    for (what, field) in [
        ("mode", &block[100..108]),
        ("owner", &block[108..116]),
        ("group", &block[116..124]),
        ("size", &block[124..136]),
        ("time", &block[136..148]),
        ("device", &block[329..337]),
        ("device", &block[337..345]),
    ] {
        check_form(what, field)?;
    }
    Ok(())
}

/// A number that is octal digits or marked as binary. Go and GNU tar pass over zeros before the
/// digits; to others the number ends there.
fn check_form(what: &'static str, field: &[u8]) -> Result<(), Ambiguity> {
    let text = field.split(|&byte| byte == 0).next().unwrap_or_default();
    let plain = match field[0] {
        0 => field.iter().all(|&byte| byte == 0),
        0x80 | 0xff => true,
        _ => text.trim_ascii().iter().all(|byte| (b'0'..=b'7').contains(byte)),
    };
    if plain { Ok(()) } else { Err(Ambiguity::Number(what)) }
}

/// Plain octal digits, or a binary number whose bytes above 64 bits are zero.
fn check_plain(what: &'static str, field: &[u8]) -> Result<(), Ambiguity> {
    check_form(what, field)?;
    let n_high = field.len().saturating_sub(9);
    let is_short = field[0] == 0x80 && field[1..=n_high].iter().all(|&byte| byte == 0);
    if field[0] & 0x80 == 0 || is_short { Ok(()) } else { Err(Ambiguity::Number(what)) }
}

/// The time of a header when it is binary, which may be negative; `None` when it is octal.
fn header_time(field: &[u8; 12]) -> Result<Option<i64>, Ambiguity> {
    if field[0] & 0x80 == 0 {
        return check_plain("time", field).map(|()| None);
    }
    // The first bit marks the number as binary; the second is its sign.
    let first = field[0] & 0x7f;
    let start = if first & 0x40 == 0 { i128::from(first) } else { i128::from(first) - 0x80 };
    let value = field[1..].iter().fold(start, |value, &byte| value << 8 | i128::from(byte));
    i64::try_from(value).map(Some).map_err(|_| Ambiguity::Number("time"))
}

/// A record of a pax header.
type KeyValue<'a> = (&'a [u8], &'a [u8]);

/// The records of a pax header, each key once.
fn pax_records(pax: &[u8]) -> Result<Vec<KeyValue<'_>>, Ambiguity> {
    let mut records = Vec::new();
    let mut keys = HashSet::new();
    let mut end = 0;
    for record in PaxExtensions::new(pax) {
        let record = record.map_err(|_| Ambiguity::PaxRecords)?;
        let (key, value) = (record.key_bytes(), record.value_bytes());
        if key.iter().any(|byte| matches!(byte, 0 | b'\n')) {
            return Err(Ambiguity::PaxKey(printable(key)));
        }
        // A record is `length key=value\n`; the parser hides the length, so it is looked for between
        // the end of the record before and this key.
        let key_start = key.as_ptr().addr() - pax.as_ptr().addr();
        let length = pax[end..key_start].strip_suffix(b" ").unwrap_or_default();
        if !length.iter().all(u8::is_ascii_digit) || length.starts_with(b"0") {
            return Err(Ambiguity::PaxRecords);
        }
        end = key_start + key.len() + value.len() + 2;
        // Format 0.0 of sparse files is the one thing that repeats keys.
        let may_repeat = matches!(key, b"GNU.sparse.offset" | b"GNU.sparse.numbytes");
        if !keys.insert(key) && !may_repeat {
            return Err(Ambiguity::PaxTwice(printable(key)));
        }
        records.push((key, value));
    }
    // The parser's iterator just ends at a record whose length it cannot read.
    if end == pax.len() { Ok(records) } else { Err(Ambiguity::PaxRecords) }
}

fn check_pax_value(key: &[u8], value: &[u8]) -> Result<(), Ambiguity> {
    let is_number = || !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let is_u64 = || is_number() && value.len() <= 19;
    let valid = match key {
        b"path" | b"linkpath" | b"GNU.sparse.name" => !value.is_empty() && !value.contains(&0),
        b"size" | b"uid" | b"gid" => is_u64(),
        b"GNU.sparse.map" => true, // The parser is strict about this one.
        _ if key.starts_with(b"GNU.sparse.") => is_u64(),
        _ => match key.strip_prefix(b"SCHILY.xattr.") {
            Some(name) => (1..=255).contains(&name.len()) && !name.contains(&0),
            None => true,
        },
    };
    if valid { Ok(()) } else { Err(bad_value(key, value)) }
}

fn bad_value(key: &[u8], value: &[u8]) -> Ambiguity {
    Ambiguity::PaxValue { key: printable(key), value: printable(&value[..value.len().min(200)]) }
}

/// `-12.345` as seconds and the nanoseconds above them.
fn pax_time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let negative = whole.starts_with('-');
    if !digits(whole.strip_prefix('-').unwrap_or(whole)) || !digits(fraction) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let nanos: u32 = format!("{fraction:0<9}")[..9].parse().ok()?;
    match (negative, nanos) {
        (true, 1..) => Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos)),
        _ => Some((seconds, nanos)),
    }
}

/// Only files have contents, and a sparse file has exactly what its map says.
fn check_contents(entry: &ParsedEntry<'_>, sparse: Option<&SparseMap>) -> Result<(), Ambiguity> {
    let is_file = matches!(
        entry.entry_type,
        EntryType::Regular | EntryType::Continuous | EntryType::GnuSparse
    );
    if !is_file && entry.size != 0 {
        let kind = char::from(entry.entry_type.to_byte());
        return Err(Ambiguity::ContentsWithoutFile(kind));
    }
    let Some(map) = sparse else { return Ok(()) };
    let refuse = |what| Err(Ambiguity::SparseMap(what));
    if !is_file {
        return refuse("the entry is not a file");
    }
    let (mut end, mut stored) = (0_u64, 0_u64);
    for region in &map.regions {
        // GNU tar looks for each region at the beginning of a block, others right behind the last.
        if region.length > 0 && !stored.is_multiple_of(BLOCK) {
            return refuse("a region does not begin with a block");
        }
        if region.offset < end {
            return refuse("its regions overlap or are out of order");
        }
        let Some(next) = region.offset.checked_add(region.length) else {
            return refuse("a region ends beyond any file");
        };
        end = next;
        stored += region.length;
    }
    if end > map.real_size {
        return refuse("a region lies behind the end of the file");
    }
    if stored != entry.size {
        return refuse("its regions do not add up to what is stored");
    }
    Ok(())
}

/// An owner that Linux can store; the highest number means "leave it".
fn id(value: u64) -> Option<u32> {
    u32::try_from(value).ok().filter(|&id| id != u32::MAX)
}

fn printable(bytes: &[u8]) -> String {
    super::entry::printable(bytes)
}
