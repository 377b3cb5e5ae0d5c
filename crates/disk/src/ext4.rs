//! An empty ext4 file system, written in six small pieces.
//!
//! A writable layer is made at each start and thrown away at the end, so it needs no journal and no
//! copy of its superblock, and what it needs beside that is little: the superblock, the group
//! descriptors, two bitmaps, the root's inode and its directory. Every other group is marked as not
//! yet used (`uninit_bg`), which the kernel takes as it is; its tables read as zeros from the holes
//! of the image. So a file system of any size is there after some 30 KiB of writes.
//!
//! Rejected: `mkfs.ext4`, which is a program to be installed and a process for each start; and a
//! prepared template for each size, which is state to be kept, pruned and trusted after a crash.
//! `e2fsck` is the second opinion in the tests.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use longshore_types::ByteCount;

/// The block size, and with it that of a bitmap, which limits a group.
pub(crate) const BLOCK: u32 = 4096;
const BLOCKS_PER_GROUP: u32 = BLOCK * 8;
/// One inode for 8 KiB: a file with content takes a block at least, so that room for content and
/// room for names run out at about the same time. The tables are holes until they are used.
const INODES_PER_GROUP: u32 = BLOCKS_PER_GROUP / 2;
const INODE_SIZE: u32 = 256;
const DESCRIPTOR_SIZE: u32 = 32;
const ROOT_INODE: u32 = 2;
/// The inodes up to this one are reserved; the root is one of them.
const LAST_RESERVED_INODE: u32 = 10;
/// A last group with fewer usable blocks than this is left away.
const LEAST_USABLE: u32 = 8;

const NO_INODES_IN_USE: u16 = 1;
const NO_BLOCKS_IN_USE: u16 = 2;
const TABLE_IS_ZERO: u16 = 4;

/// How a file system is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Geometry {
    blocks: u32,
    groups: u32,
    inodes_per_group: u32,
    /// Blocks of one group's inode table.
    table_blocks: u32,
    /// Blocks of all descriptors, behind the superblock.
    descriptor_blocks: u32,
}

impl Geometry {
    fn new(size: ByteCount) -> Self {
        let blocks = u32::try_from(size.0 / u64::from(BLOCK)).unwrap_or(u32::MAX);
        let groups = blocks.div_ceil(BLOCKS_PER_GROUP);
        let inodes_per_group = match groups {
            // Inodes come in whole blocks of 16.
            0 | 1 => (blocks / 2).next_multiple_of(BLOCK / INODE_SIZE),
            _ => INODES_PER_GROUP,
        };
        let table_blocks = inodes_per_group * INODE_SIZE / BLOCK;
        let last = blocks - groups.saturating_sub(1) * BLOCKS_PER_GROUP;
        let mut geometry =
            Self { blocks, groups, inodes_per_group, table_blocks, descriptor_blocks: 0 };
        if groups > 1 && last < 2 + table_blocks + LEAST_USABLE {
            geometry.groups -= 1;
            geometry.blocks = geometry.groups * BLOCKS_PER_GROUP;
        }
        geometry.descriptor_blocks = (geometry.groups * DESCRIPTOR_SIZE).div_ceil(BLOCK);
        geometry
    }

    fn blocks_of(&self, group: u32) -> u32 {
        (self.blocks - group * BLOCKS_PER_GROUP).min(BLOCKS_PER_GROUP)
    }

    /// The block of a group's bitmap of blocks; that of inodes and the table follow it.
    fn bitmaps_of(&self, group: u32) -> u32 {
        group * BLOCKS_PER_GROUP + if group == 0 { 1 + self.descriptor_blocks } else { 0 }
    }

    /// The block of the root directory: the first behind the tables of the first group.
    fn root_block(&self) -> u32 {
        self.bitmaps_of(0) + 2 + self.table_blocks
    }

    /// How many blocks at the beginning of a group are in use.
    fn used_of(&self, group: u32) -> u32 {
        match group {
            0 => self.root_block() + 1,
            _ => 2 + self.table_blocks,
        }
    }

    fn free_blocks(&self) -> u32 {
        (0..self.groups).map(|group| self.blocks_of(group) - self.used_of(group)).sum()
    }

    /// A bitmap of blocks is written where the kernel cannot work it out: in the first group, which
    /// holds the root, and in a last one that is cut short.
    fn has_bitmap(&self, group: u32) -> bool {
        group == 0 || self.blocks_of(group) < BLOCKS_PER_GROUP
    }
}

/// Writes an empty file system of `size` to `device`, which must read as zeros. `now` is in seconds
/// since the epoch.
pub(crate) fn format(device: &File, size: ByteCount, now: u32) -> io::Result<()> {
    let geometry = Geometry::new(size);
    let id: [u8; 16] = std::array::from_fn(|_| fastrand::u8(..));
    let block = |number: u32| u64::from(number) * u64::from(BLOCK);
    device.write_all_at(&superblock(&geometry, &id, now), 1024)?;
    device.write_all_at(&descriptors(&geometry, &id), block(1))?;
    for group in (0..geometry.groups).filter(|group| geometry.has_bitmap(*group)) {
        let bitmap = bitmap(geometry.used_of(group), geometry.blocks_of(group));
        device.write_all_at(&bitmap, block(geometry.bitmaps_of(group)))?;
    }
    let inodes = geometry.bitmaps_of(0) + 1;
    let bitmap = bitmap(LAST_RESERVED_INODE, geometry.inodes_per_group);
    device.write_all_at(&bitmap, block(inodes))?;
    let root = block(inodes + 1) + u64::from((ROOT_INODE - 1) * INODE_SIZE);
    device.write_all_at(&root_inode(geometry.root_block(), now), root)?;
    device.write_all_at(&root_directory(), block(geometry.root_block()))
}

/// A block with the first `used` bits set, and those from `end` on, which do not exist.
fn bitmap(used: u32, end: u32) -> Vec<u8> {
    let bit = |idx: u32| u8::from(idx < used || idx >= end);
    (0..BLOCK).map(|byte| (0..8).fold(0, |bits, idx| bits | bit(byte * 8 + idx) << idx)).collect()
}

fn put<const N: usize>(buffer: &mut [u8], offset: usize, bytes: [u8; N]) {
    buffer[offset..offset + N].copy_from_slice(&bytes);
}

fn superblock(geometry: &Geometry, id: &[u8; 16], now: u32) -> Vec<u8> {
    const EXT_ATTR: u32 = 0x8;
    const DIR_INDEX: u32 = 0x20;
    const SPARSE_SUPER2: u32 = 0x200; // With no copies named below: none.
    const FILETYPE: u32 = 0x2;
    const EXTENTS: u32 = 0x40;
    const LARGE_FILE: u32 = 0x2;
    const HUGE_FILE: u32 = 0x8;
    const UNINIT_BG: u32 = 0x10;
    const DIR_NLINK: u32 = 0x20;
    const EXTRA_ISIZE: u32 = 0x40;
    let inodes = geometry.groups * geometry.inodes_per_group;
    let mut bytes = vec![0; 1024];
    let mut word = |offset, value: u32| put(&mut bytes, offset, value.to_le_bytes());
    word(0x00, inodes);
    word(0x04, geometry.blocks);
    word(0x0c, geometry.free_blocks());
    word(0x10, inodes - LAST_RESERVED_INODE);
    word(0x18, BLOCK.trailing_zeros() - 10);
    word(0x1c, BLOCK.trailing_zeros() - 10);
    word(0x20, BLOCKS_PER_GROUP);
    word(0x24, BLOCKS_PER_GROUP);
    word(0x28, geometry.inodes_per_group);
    word(0x30, now);
    word(0x40, now);
    word(0x4c, 1); // Revision: inodes have a size of their own.
    word(0x54, LAST_RESERVED_INODE + 1);
    word(0x5c, EXT_ATTR | DIR_INDEX | SPARSE_SUPER2);
    word(0x60, FILETYPE | EXTENTS);
    word(0x64, LARGE_FILE | HUGE_FILE | UNINIT_BG | DIR_NLINK | EXTRA_ISIZE);
    word(0x108, now);
    word(0x160, 2); // Names are hashed as unsigned characters.
    let mut half = |offset, value: u16| put(&mut bytes, offset, value.to_le_bytes());
    half(0x36, u16::MAX); // No check after some number of mounts.
    half(0x38, 0xef53);
    half(0x3a, 1); // Clean.
    half(0x3c, 1); // On errors: go on.
    half(0x58, INODE_SIZE as u16);
    half(0x15c, 32);
    half(0x15e, 32);
    bytes[0x68..0x78].copy_from_slice(id);
    bytes[0xec..0xfc].copy_from_slice(id); // The seed of the hashes of names.
    bytes[0xfc] = 1; // Half MD4.
    bytes
}

fn descriptors(geometry: &Geometry, id: &[u8; 16]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity((geometry.groups * DESCRIPTOR_SIZE) as usize);
    for group in 0..geometry.groups {
        let bitmaps = geometry.bitmaps_of(group);
        let free_blocks = geometry.blocks_of(group) - geometry.used_of(group);
        let reserved = if group == 0 { LAST_RESERVED_INODE } else { 0 };
        let free_inodes = (geometry.inodes_per_group - reserved) as u16;
        let mut flags = TABLE_IS_ZERO;
        if group > 0 {
            flags |= NO_INODES_IN_USE;
        }
        if !geometry.has_bitmap(group) {
            flags |= NO_BLOCKS_IN_USE;
        }
        let mut descriptor = [0; DESCRIPTOR_SIZE as usize];
        put(&mut descriptor, 0x00, bitmaps.to_le_bytes());
        put(&mut descriptor, 0x04, (bitmaps + 1).to_le_bytes());
        put(&mut descriptor, 0x08, (bitmaps + 2).to_le_bytes());
        put(&mut descriptor, 0x0c, (free_blocks as u16).to_le_bytes());
        put(&mut descriptor, 0x0e, free_inodes.to_le_bytes());
        put(&mut descriptor, 0x10, u16::from(group == 0).to_le_bytes());
        put(&mut descriptor, 0x12, flags.to_le_bytes());
        // The end of the table that was never used.
        put(&mut descriptor, 0x1c, free_inodes.to_le_bytes());
        let checksum = crc16(crc16(u16::MAX, id), &group.to_le_bytes());
        let checksum = crc16(checksum, &descriptor[..0x1e]);
        put(&mut descriptor, 0x1e, checksum.to_le_bytes());
        bytes.extend(descriptor);
    }
    bytes
}

fn root_inode(block: u32, now: u32) -> Vec<u8> {
    const EXTENTS_FLAG: u32 = 0x8_0000;
    let mut bytes = vec![0; INODE_SIZE as usize];
    put(&mut bytes, 0x00, 0o040_700_u16.to_le_bytes());
    put(&mut bytes, 0x04, BLOCK.to_le_bytes());
    for time in [0x08, 0x0c, 0x10] {
        put(&mut bytes, time, now.to_le_bytes());
    }
    put(&mut bytes, 0x1a, 2_u16.to_le_bytes()); // Links: "." and "..".
    put(&mut bytes, 0x1c, (BLOCK / 512).to_le_bytes());
    put(&mut bytes, 0x20, EXTENTS_FLAG.to_le_bytes());
    // One extent of one block, in the inode itself, which has room for four.
    put(&mut bytes, 0x28, 0xf30a_u16.to_le_bytes());
    put(&mut bytes, 0x2a, 1_u16.to_le_bytes());
    put(&mut bytes, 0x2c, 4_u16.to_le_bytes());
    put(&mut bytes, 0x38, 1_u16.to_le_bytes());
    put(&mut bytes, 0x3c, block.to_le_bytes());
    put(&mut bytes, 0x80, 32_u16.to_le_bytes());
    bytes
}

fn root_directory() -> Vec<u8> {
    const DIRECTORY: u8 = 2;
    let mut bytes = vec![0; BLOCK as usize];
    for (offset, length, name) in [(0, 12, &b"."[..]), (12, BLOCK as u16 - 12, b"..")] {
        put(&mut bytes, offset, ROOT_INODE.to_le_bytes());
        put(&mut bytes, offset + 4, length.to_le_bytes());
        bytes[offset + 6] = name.len() as u8;
        bytes[offset + 7] = DIRECTORY;
        bytes[offset + 8..offset + 8 + name.len()].copy_from_slice(name);
    }
    bytes
}

/// The CRC-16 of group descriptors.
fn crc16(start: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(start, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0xa001 } else { 0 }
        })
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Sizes at every corner: one group, one that is full, a last group that is cut short, one that
    /// is too short to be used, descriptors in more than one block.
    const SIZES: [u64; 8] = [
        4 << 20,
        (7 << 20) + 12_345,
        128 << 20,
        (128 << 20) + (4 << 20),
        (128 << 20) + (5 << 20),
        1 << 30,
        5_000_000_000,
        100 << 30,
    ];

    #[test]
    fn e2fsck_finds_nothing_wrong() {
        let dir = tempfile::tempdir().unwrap();
        for size in SIZES {
            let path = dir.path().join("image");
            let file = File::create(&path).unwrap();
            file.set_len(size).unwrap();
            format(&file, ByteCount(size), 1_700_000_000).unwrap();
            let output = Command::new("e2fsck").arg("-fn").arg(&path).output();
            let output = output.expect("e2fsck runs; its package is e2fsprogs");
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{size}: {text}");
        }
    }

    #[test]
    fn little_is_lost_to_the_file_system_itself() {
        for size in SIZES {
            let geometry = Geometry::new(ByteCount(size));
            let free = u64::from(geometry.free_blocks()) * u64::from(BLOCK);
            assert!(free * 100 >= size * 93, "{free} of {size}: {geometry:?}");
            let inodes = u64::from(geometry.groups * geometry.inodes_per_group);
            assert!(inodes >= size / 8192 * 95 / 100, "{inodes}: {geometry:?}");
        }
    }

    #[test]
    fn the_checksum_is_the_usual_one() {
        assert_eq!(crc16(0, b"123456789"), 0xbb3d);
    }
}
