//! A reader of EROFS that believes nothing: for what a kernel is given to mount.
//!
//! It is written after the kernel's description of the format (`fs/erofs/erofs_fs.h`) and shares nothing
//! with what writes our images. It reads what those use of the format and refuses the rest.

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
    /// Names of files, directories and links.
    pub n_names: usize,
}

struct Reader<'a> {
    bytes: &'a [u8],
    devices: Vec<u64>,
    /// How many names lead to each inode, and how many it says that there are.
    links: BTreeMap<u64, (u64, u64)>,
    n_names: usize,
}

struct Inode {
    kind: Kind,
    layout: u64,
    n_links: u64,
    size: u64,
    place: u64,
    /// Where its attributes end.
    end: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    Directory,
    Symlink,
}

/// Reads a file system, all of it.
pub fn read(bytes: &[u8]) -> Result<FileSystem, String> {
    let mut reader = Reader { bytes, devices: Vec::new(), links: BTreeMap::new(), n_names: 0 };
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
    reader.walk(root)?;
    for (number, (n_found, n_said)) in &reader.links {
        check(n_found == n_said, &format!("the links of {number}: {n_found}, not {n_said}"))?;
    }
    Ok(FileSystem { devices: reader.devices, n_names: reader.n_names })
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
        let kind = match self.number(at + 4, 2)? & 0o170_000 {
            0o100_000 => Kind::File,
            0o040_000 => Kind::Directory,
            0o120_000 => Kind::Symlink,
            other => return Err(format!("an inode is {other:o}")),
        };
        let (n_links, size) = match is_long {
            true => (self.number(at + 44, 4)?, self.number(at + 8, 8)?),
            false => (self.number(at + 6, 2)?, self.number(at + 8, 4)?),
        };
        Ok(Inode { kind, layout, n_links, size, place: self.number(at + 16, 4)?, end })
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

    /// Whether all of a file lies on its devices.
    fn check_file(&self, inode: &Inode) -> Result<(), String> {
        if inode.size == 0 {
            return check(inode.layout == 0, "the layout of an empty file");
        }
        check(inode.layout == 4 && inode.place & !0x1f == 0x20, "the layout of a file")?;
        let chunk_blocks = 1_u64 << (inode.place & 0x1f);
        let n_blocks = inode.size.div_ceil(BLOCK);
        let chunks = inode.end.next_multiple_of(8);
        for idx in 0..n_blocks.div_ceil(chunk_blocks) {
            let at = chunks + idx * 8;
            let (device, first) = (self.number(at + 2, 2)?, self.number(at + 4, 4)?);
            let idx_of_device =
                usize::try_from(device).ok().and_then(|device| device.checked_sub(1));
            let device = idx_of_device.and_then(|idx| self.devices.get(idx));
            let n_left = (n_blocks - idx * chunk_blocks).min(chunk_blocks);
            let fits = device.is_some_and(|n_blocks| first + n_left <= *n_blocks);
            check(fits, "a file that reaches out of its device")?;
        }
        Ok(())
    }

    fn walk(&mut self, root: u64) -> Result<(), String> {
        let mut directories = vec![(root, root)];
        check(self.inode(root)?.kind == Kind::Directory, "the root")?;
        while let Some((number, above)) = directories.pop() {
            let contents = self.contents(&self.inode(number)?)?;
            let entries = entries(&contents)?;
            check(entries.is_sorted_by(|one, next| one.name < next.name), "the order of names")?;
            let of = |name: &[u8]| {
                let found = entries.iter().find(|entry| entry.name == name);
                found.map(|entry| entry.number)
            };
            check(of(b".") == Some(number) && of(b"..") == Some(above), "a directory's own name")?;
            for Entry { number: child, kind, name } in &entries {
                self.name(*child, *kind)?;
                if *kind == Kind::Directory && ![&b"."[..], b".."].contains(name) {
                    directories.push((*child, number));
                }
            }
            // Each takes some bytes of its own.
            check(self.n_names <= self.bytes.len(), "a circle of directories")?;
        }
        Ok(())
    }

    /// Takes note of a name that leads to an inode.
    fn name(&mut self, number: u64, kind: Kind) -> Result<(), String> {
        self.n_names += 1;
        let inode = self.inode(number)?;
        check(inode.kind == kind, "the kind of an entry")?;
        match kind {
            Kind::Directory => {}
            Kind::File => self.check_file(&inode)?,
            Kind::Symlink => {
                let target = self.contents(&inode)?;
                let is_target = (1..BLOCK as usize).contains(&target.len());
                check(is_target && !target.contains(&0), "the target of a link")?;
            }
        }
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
