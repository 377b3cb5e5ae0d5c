//! A reader of EROFS that believes nothing: a judge of what a kernel is given to mount.
//!
//! It is written after the kernel's description of the format (`fs/erofs/erofs_fs.h`) and shares nothing
//! with what writes our images. It reads what those use of the format and refuses the rest. Tests of
//! images compare what it finds with what a kernel shows, and fuzzing asks it whether all numbers are
//! right; the product has no use for it.

use std::collections::BTreeMap;

const BLOCK: u64 = 4096;
const SUPERBLOCK: u64 = 1024;
/// Files in chunks, and further devices.
const KNOWN_FEATURES: u64 = 4 | 8;
const DIRENT: usize = 12;

/// What was read.
#[derive(Debug, Default)]
pub struct FileSystem {
    /// Blocks of each further device.
    pub devices: Vec<u64>,
    /// By path; the root is the empty one.
    pub nodes: BTreeMap<Vec<u8>, Node>,
}

/// What lies under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The same for all names of a file.
    pub number: u64,
    /// What kind of node it is.
    pub kind: Kind,
    /// The lower twelve bits.
    pub mode: u32,
    /// The number of the user.
    pub uid: u32,
    /// The number of the group.
    pub gid: u32,
    /// Bytes of a file.
    pub size: u64,
    /// Seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    /// By their whole names.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Where a link leads.
    pub target: Option<Vec<u8>>,
    /// Where the contents of a file lie, one after the other.
    pub pieces: Vec<Piece>,
}

/// A part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Of [`FileSystem::devices`].
    pub device: usize,
    /// Bytes before it there.
    pub at: u64,
    /// Bytes of it.
    pub n_bytes: u64,
}

/// Kinds of nodes that images have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// With contents.
    File,
    /// With names.
    Directory,
    /// With a target.
    Symlink,
}

struct Reader<'a> {
    bytes: &'a [u8],
    devices: Vec<u64>,
    /// How many names lead to each inode, and how many it says that there are.
    links: BTreeMap<u64, (u64, u64)>,
    /// What a short inode says of its time.
    built: (i64, u32),
    nodes: BTreeMap<Vec<u8>, Node>,
    n_names: usize,
}

struct Inode {
    at: u64,
    is_long: bool,
    kind: Kind,
    mode: u32,
    layout: u64,
    n_links: u64,
    size: u64,
    place: u64,
    n_xattr_bytes: u64,
    /// Where its attributes end.
    end: u64,
}

/// Reads a file system, all of it.
pub fn read(bytes: &[u8]) -> Result<FileSystem, String> {
    let mut reader = Reader {
        bytes,
        devices: Vec::new(),
        links: BTreeMap::new(),
        built: (0, 0),
        nodes: BTreeMap::new(),
        n_names: 0,
    };
    let superblock = |at, n_bytes| reader.number(SUPERBLOCK + at, n_bytes);
    check(superblock(0, 4)? == 0xe0f5_e1e2, "the magic number")?;
    check(superblock(12, 1)? == 12, "the size of blocks")?;
    check(superblock(36, 4)?.checked_mul(BLOCK) == Some(bytes.len() as u64), "the length")?;
    check(superblock(40, 4)? == 0, "the first block of inodes")?;
    check(superblock(80, 4)? & !KNOWN_FEATURES == 0, "a feature")?;
    let (root, n_devices) = (superblock(14, 2)?, superblock(86, 2)?);
    let slots = superblock(88, 2)? * 128;
    for idx in 0..n_devices {
        let n_blocks = reader.number(slots + idx * 128 + 64, 4)?;
        reader.devices.push(n_blocks);
    }
    reader.built = time(reader.number(SUPERBLOCK + 24, 8)?, reader.number(SUPERBLOCK + 32, 4)?)?;
    reader.walk(root)?;
    for (number, (n_found, n_said)) in &reader.links {
        check(n_found == n_said, &format!("the links of {number}: {n_found}, not {n_said}"))?;
    }
    Ok(FileSystem { devices: reader.devices, nodes: reader.nodes })
}

fn time(seconds: u64, nanoseconds: u64) -> Result<(i64, u32), String> {
    check(nanoseconds < 1_000_000_000, "the nanoseconds of a time")?;
    let nanoseconds = u32::try_from(nanoseconds).map_err(|error| error.to_string())?;
    Ok((seconds.cast_signed(), nanoseconds))
}

fn check(is_right: bool, what: &str) -> Result<(), String> {
    if is_right { Ok(()) } else { Err(format!("{what} is wrong")) }
}

impl<'a> Reader<'a> {
    fn take(&self, at: u64, n_bytes: u64) -> Result<&'a [u8], String> {
        let range = usize::try_from(at).ok().zip(usize::try_from(n_bytes).ok());
        range
            .and_then(|(at, n_bytes)| self.bytes.get(at..at.checked_add(n_bytes)?))
            .ok_or_else(|| format!("{n_bytes} bytes at {at} lie outside"))
    }

    fn number(&self, at: u64, n_bytes: u64) -> Result<u64, String> {
        let bytes = self.take(at, n_bytes)?.iter().rev();
        Ok(bytes.fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn inode(&self, number: u64) -> Result<Inode, String> {
        let at = number.saturating_mul(32);
        let format = self.number(at, 2)?;
        let (is_long, layout) = (format & 1 == 1, format >> 1 & 7);
        check(format >> 4 == 0, "the format of an inode")?;
        let n_bytes = if is_long { 64 } else { 32 };
        check(at % BLOCK + n_bytes <= BLOCK, "the place of an inode")?;
        let n_words = self.number(at + 2, 2)?;
        let n_xattr_bytes = if n_words == 0 { 0 } else { 12 + (n_words - 1) * 4 };
        let end = at + n_bytes + n_xattr_bytes;
        self.take(at, end - at)?;
        let mode = self.number(at + 4, 2)?;
        let kind = match mode & 0o170_000 {
            0o100_000 => Kind::File,
            0o040_000 => Kind::Directory,
            0o120_000 => Kind::Symlink,
            other => return Err(format!("an inode is {other:o}")),
        };
        let (n_links, size) = match is_long {
            true => (self.number(at + 44, 4)?, self.number(at + 8, 8)?),
            false => (self.number(at + 6, 2)?, self.number(at + 8, 4)?),
        };
        let place = self.number(at + 16, 4)?;
        let mode = (mode & 0o7777) as u32;
        Ok(Inode { at, is_long, kind, mode, layout, n_links, size, place, n_xattr_bytes, end })
    }

    /// All that is said of a node but its names.
    fn node(&self, number: u64) -> Result<Node, String> {
        let inode = self.inode(number)?;
        let at = |at, n_bytes| self.number(inode.at + at, n_bytes);
        let id = |id: u64| u32::try_from(id).map_err(|error| error.to_string());
        let (uid, gid, mtime) = match inode.is_long {
            true => (at(24, 4)?, at(28, 4)?, time(at(32, 8)?, at(40, 4)?)?),
            false => (at(24, 2)?, at(26, 2)?, self.built),
        };
        let (target, pieces) = match inode.kind {
            Kind::Directory => (None, Vec::new()),
            Kind::File => (None, self.pieces(&inode)?),
            Kind::Symlink => {
                let target = self.contents(&inode)?;
                let is_target = (1..BLOCK as usize).contains(&target.len());
                check(is_target && !target.contains(&0), "the target of a link")?;
                (Some(target), Vec::new())
            }
        };
        Ok(Node {
            number,
            kind: inode.kind,
            mode: inode.mode,
            uid: id(uid)?,
            gid: id(gid)?,
            size: if inode.kind == Kind::File { inode.size } else { 0 },
            mtime,
            xattrs: self.xattrs(&inode)?,
            target,
            pieces,
        })
    }

    /// Attributes, all of which stand beside their inode.
    fn xattrs(&self, inode: &Inode) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, String> {
        let mut xattrs = BTreeMap::new();
        if inode.n_xattr_bytes == 0 {
            return Ok(xattrs);
        }
        let mut at = inode.end - inode.n_xattr_bytes;
        check(self.number(at + 4, 1)? == 0, "an attribute that is shared")?;
        at += 12;
        while at < inode.end {
            let (n_name, n_value) = (self.number(at, 1)?, self.number(at + 2, 2)?);
            let prefix: &[u8] = match self.number(at + 1, 1)? {
                1 => b"user.",
                2 => b"system.posix_acl_access",
                3 => b"system.posix_acl_default",
                4 => b"trusted.",
                6 => b"security.",
                other => return Err(format!("an attribute has the prefix {other}")),
            };
            let next = at + (4 + n_name + n_value).next_multiple_of(4);
            check(next <= inode.end, "the length of an attribute")?;
            let name = [prefix, self.take(at + 4, n_name)?].concat();
            let value = self.take(at + 4 + n_name, n_value)?.to_vec();
            check(xattrs.insert(name, value).is_none(), "an attribute that is there twice")?;
            at = next;
        }
        Ok(xattrs)
    }

    /// The contents of a directory or link.
    fn contents(&self, inode: &Inode) -> Result<Vec<u8>, String> {
        let n_beside = match inode.layout {
            0 => 0,
            2 => inode.size % BLOCK,
            other => return Err(format!("the layout {other} of a directory or link")),
        };
        check(
            inode.end % BLOCK + n_beside <= BLOCK || n_beside == 0,
            "what stands beside an inode",
        )?;
        let in_blocks = self.take(inode.place * BLOCK, inode.size - n_beside);
        // Of nothing the place means nothing.
        let in_blocks = if inode.size == n_beside { &[][..] } else { in_blocks? };
        Ok([in_blocks, self.take(inode.end, n_beside)?].concat())
    }

    /// Where a file lies, all of it on its devices.
    fn pieces(&self, inode: &Inode) -> Result<Vec<Piece>, String> {
        let mut pieces = Vec::new();
        if inode.size == 0 {
            check(inode.layout == 0, "the layout of an empty file")?;
            return Ok(pieces);
        }
        check(inode.layout == 4 && inode.place & !0x1f == 0x20, "the layout of a file")?;
        let chunk_blocks = 1_u64 << (inode.place & 0x1f);
        let n_blocks = inode.size.div_ceil(BLOCK);
        let chunks = inode.end.next_multiple_of(8);
        for idx in 0..n_blocks.div_ceil(chunk_blocks) {
            let at = chunks + idx * 8;
            let (device, first) = (self.number(at + 2, 2)?, self.number(at + 4, 4)?);
            let device = usize::try_from(device).ok().and_then(|device| device.checked_sub(1));
            let n_left = (n_blocks - idx * chunk_blocks).min(chunk_blocks);
            let holds = |device: &usize| {
                self.devices.get(*device).is_some_and(|n_blocks| first + n_left <= *n_blocks)
            };
            let device = device.filter(holds);
            let device = device.ok_or("a file reaches out of its device, which is wrong")?;
            let before = idx * chunk_blocks * BLOCK;
            let n_bytes = (n_left * BLOCK).min(inode.size - before);
            pieces.push(Piece { device, at: first * BLOCK, n_bytes });
        }
        Ok(pieces)
    }

    fn walk(&mut self, root: u64) -> Result<(), String> {
        let mut directories = vec![(root, root, Vec::new())];
        check(self.inode(root)?.kind == Kind::Directory, "the root")?;
        self.nodes.insert(Vec::new(), self.node(root)?);
        while let Some((number, above, path)) = directories.pop() {
            let contents = self.contents(&self.inode(number)?)?;
            let entries = entries(&contents)?;
            check(entries.is_sorted_by(|one, next| one.name < next.name), "the order of names")?;
            let of = |name: &[u8]| {
                let found = entries.iter().find(|entry| entry.name == name);
                found.map(|entry| entry.number)
            };
            check(of(b".") == Some(number) && of(b"..") == Some(above), "a directory's own name")?;
            for Entry { number: child, kind, name } in &entries {
                self.count(*child, *kind)?;
                if [&b"."[..], b".."].contains(name) {
                    continue;
                }
                let slash = if path.is_empty() { &b""[..] } else { b"/" };
                let path = [&path, slash, name].concat();
                self.nodes.insert(path.clone(), self.node(*child)?);
                if *kind == Kind::Directory {
                    directories.push((*child, number, path));
                }
            }
            // Each takes some bytes of its own.
            check(self.n_names <= self.bytes.len(), "a circle of directories")?;
        }
        Ok(())
    }

    /// Takes note of a name that leads to an inode.
    fn count(&mut self, number: u64, kind: Kind) -> Result<(), String> {
        self.n_names += 1;
        let inode = self.inode(number)?;
        check(inode.kind == kind, "the kind of an entry")?;
        let links = self.links.entry(number).or_insert((0, inode.n_links));
        links.0 += 1;
        Ok(())
    }
}

struct Entry<'a> {
    number: u64,
    kind: Kind,
    name: &'a [u8],
}

/// The entries of all blocks of a directory.
fn entries(contents: &[u8]) -> Result<Vec<Entry<'_>>, String> {
    let mut entries = Vec::new();
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte));
    for block in contents.chunks(BLOCK as usize) {
        let outside = || "an entry reaches out of its block".to_owned();
        let name_at = |idx: usize| {
            let bytes = block.get(idx * DIRENT + 8..idx * DIRENT + 10)?;
            usize::try_from(number(bytes)).ok()
        };
        let names = name_at(0).ok_or_else(outside)?;
        check(names > 0 && names % DIRENT == 0, "the place of the names")?;
        let n_entries = names / DIRENT;
        for idx in 0..n_entries {
            let dirent = block.get(idx * DIRENT..(idx + 1) * DIRENT).ok_or_else(outside)?;
            let end = if idx + 1 < n_entries { name_at(idx + 1) } else { Some(block.len()) };
            let name = name_at(idx).zip(end).and_then(|(from, to)| block.get(from..to));
            // Behind the last name of a whole block there are zeros.
            let name = name.ok_or_else(outside)?;
            let n_zeros = name.iter().rev().take_while(|byte| **byte == 0).count();
            let name = &name[..name.len() - n_zeros];
            let is_name =
                (1..=255).contains(&name.len()) && !name.iter().any(|b| b"/\0".contains(b));
            check(is_name, "a name")?;
            let kind = match dirent[10] {
                1 => Kind::File,
                2 => Kind::Directory,
                7 => Kind::Symlink,
                other => return Err(format!("an entry is of kind {other}")),
            };
            entries.push(Entry { number: number(&dirent[..8]), kind, name });
        }
    }
    Ok(entries)
}
