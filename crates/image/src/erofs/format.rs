//! The structures of EROFS as bytes, little endian, by the kernel's `fs/erofs/erofs_fs.h`.

use longshore_archive::tar::Xattr;

use super::Kind;
use crate::index::Attributes;

/// A block is a page of the machines that there are, so that every kernel takes it.
const BLOCK_LOG2: u32 = 12;
/// Bytes of a block.
pub(crate) const BLOCK: u64 = 1 << BLOCK_LOG2;

/// Where the superblock lies.
pub(super) const SUPERBLOCK_AT: u64 = 1024;
const SUPERBLOCK_BYTES: usize = 128;
/// A slot in the table of devices, which follows the superblock.
pub(super) const DEVICE_BYTES: usize = 128;
/// Inodes begin at multiples of this, and are numbered by it.
pub(super) const INODE_SLOT: u64 = 32;
/// An entry of a directory without its name.
pub(super) const DIRENT_BYTES: u64 = 12;
/// Where a chunk of a file lies.
pub(super) const CHUNK_BYTES: u64 = 8;

const MAGIC: u32 = 0xe0f5_e1e2;
/// Inodes have times of change of the contents.
const COMPATIBLE_MTIME: u32 = 2;
const NEEDS_CHUNKS: u32 = 4;
const NEEDS_DEVICES: u32 = 8;

const LAYOUT_BLOCKS: u16 = 0;
const LAYOUT_INLINE: u16 = 2;
const LAYOUT_CHUNKS: u16 = 4;
/// Chunks are said by device and block, not by block alone.
const CHUNK_INDEXES: u32 = 0x20;

pub(super) const DIRENT_FILE: u8 = 1;
pub(super) const DIRENT_DIRECTORY: u8 = 2;
pub(super) const DIRENT_SYMLINK: u8 = 7;

/// Namespaces of extended attributes that are stored as a number; images have no others.
const XATTR_PREFIXES: [(&[u8], u8); 2] = [(b"user.", 1), (b"security.", 6)];
const XATTR_HEADER: usize = 12;

pub(super) struct Superblock {
    /// The number of the root's inode, which must be small.
    pub root: u64,
    pub n_inodes: u64,
    /// The time of all short inodes.
    pub epoch: (i64, u32),
    pub n_blocks: u32,
    pub n_devices: u16,
}

pub(super) fn superblock(superblock: &Superblock) -> [u8; SUPERBLOCK_BYTES] {
    let Superblock { root, n_inodes, epoch, n_blocks, n_devices } = superblock;
    let (needs_devices, device_slot) = match n_devices {
        0 => (0, 0),
        _ => (NEEDS_DEVICES, (SUPERBLOCK_AT as usize + SUPERBLOCK_BYTES) / DEVICE_BYTES),
    };
    let mut out = Fields::<SUPERBLOCK_BYTES>::default();
    out.u32(0, MAGIC)
        .u32(8, COMPATIBLE_MTIME)
        .u8(12, BLOCK_LOG2 as u8)
        .u16(14, *root as u16)
        .u64(16, *n_inodes)
        .u64(24, epoch.0.cast_unsigned())
        .u32(32, epoch.1)
        .u32(36, *n_blocks)
        .u32(80, NEEDS_CHUNKS | needs_devices)
        .u16(86, *n_devices)
        .u16(88, device_slot as u16);
    out.0
}

/// The slot of a data file. It has no name: who mounts says which file it is.
pub(super) fn device_slot(n_blocks: u32) -> [u8; DEVICE_BYTES] {
    let mut out = Fields::<DEVICE_BYTES>::default();
    out.u32(64, n_blocks);
    out.0
}

/// How an inode is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// 32 bytes: small numbers, and the time of the file system.
    Short,
    /// 64 bytes.
    Long,
}

impl Shape {
    pub fn n_bytes(self) -> u64 {
        match self {
            Self::Short => 32,
            Self::Long => 64,
        }
    }
}

/// Where the contents of an inode are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Payload {
    /// In whole blocks; of nothing when the size is 0.
    Blocks { first_block: u32 },
    /// In whole blocks, and the rest beside the inode.
    Inline { first_block: u32 },
    /// In one chunk of this many blocks as a power of two, on a device.
    Chunk { blocks_log2: u32 },
}

pub(super) struct Inode<'a> {
    pub shape: Shape,
    pub kind: &'a Kind<'a>,
    pub attributes: &'a Attributes,
    pub n_links: u32,
    pub n_xattr_bytes: usize,
    /// What programs of 32 bits see as its number.
    pub serial: u32,
    pub size: u64,
    pub payload: Payload,
}

pub(super) fn inode(inode: &Inode<'_>) -> Vec<u8> {
    let Inode { shape, kind, attributes, n_links, n_xattr_bytes, serial, size, payload } = inode;
    let kind_bits = match kind {
        Kind::File { .. } => libc::S_IFREG,
        Kind::Directory(_) => libc::S_IFDIR,
        Kind::Symlink(_) => libc::S_IFLNK,
    };
    let mode = (kind_bits | attributes.mode) as u16;
    let (layout, place) = match payload {
        Payload::Blocks { first_block } => (LAYOUT_BLOCKS, *first_block),
        Payload::Inline { first_block } => (LAYOUT_INLINE, *first_block),
        Payload::Chunk { blocks_log2 } => (LAYOUT_CHUNKS, CHUNK_INDEXES | blocks_log2),
    };
    // The header counts as one, like four bytes of what follows.
    let n_xattr_words = match n_xattr_bytes {
        0 => 0,
        n_bytes => (n_bytes - XATTR_HEADER) / 4 + 1,
    };
    let (uid, gid) = (attributes.uid, attributes.gid);
    match shape {
        Shape::Short => {
            let mut out = Fields::<32>::default();
            out.u16(0, layout << 1)
                .u16(2, n_xattr_words as u16)
                .u16(4, mode)
                .u16(6, *n_links as u16)
                .u32(8, *size as u32)
                .u32(16, place)
                .u32(20, *serial)
                .u16(24, uid as u16)
                .u16(26, gid as u16);
            out.0.to_vec()
        }
        Shape::Long => {
            let mut out = Fields::<64>::default();
            out.u16(0, layout << 1 | 1)
                .u16(2, n_xattr_words as u16)
                .u16(4, mode)
                .u64(8, *size)
                .u32(16, place)
                .u32(20, *serial)
                .u32(24, uid)
                .u32(28, gid)
                .u64(32, attributes.mtime.0.cast_unsigned())
                .u32(40, attributes.mtime.1)
                .u32(44, *n_links);
            out.0.to_vec()
        }
    }
}

/// Where the one chunk of a file is; device 0 is the file system itself.
pub(super) fn chunk(device: u16, block: u32) -> [u8; CHUNK_BYTES as usize] {
    let mut out = Fields::<{ CHUNK_BYTES as usize }>::default();
    out.u16(2, device).u32(4, block);
    out.0
}

pub(super) fn dirent(number: u64, name_at: u16, kind: u8) -> [u8; DIRENT_BYTES as usize] {
    let mut out = Fields::<{ DIRENT_BYTES as usize }>::default();
    out.u64(0, number).u16(8, name_at).u8(10, kind);
    out.0
}

/// The attributes of an inode as they follow it; nothing when there are none.
pub(super) fn xattrs(xattrs: &[Xattr]) -> Vec<u8> {
    if xattrs.is_empty() {
        return Vec::new();
    }
    let mut bytes = vec![0; XATTR_HEADER];
    for xattr in xattrs {
        let (rest, prefix) = XATTR_PREFIXES
            .iter()
            .find_map(|(prefix, number)| Some((xattr.name.strip_prefix(*prefix)?, *number)))
            .expect("an index lets through attributes of these namespaces alone");
        bytes.extend([rest.len() as u8, prefix]);
        bytes.extend((xattr.value.len() as u16).to_le_bytes());
        bytes.extend_from_slice(rest);
        bytes.extend_from_slice(&xattr.value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// A structure that is zero but for the fields that are set.
struct Fields<const N: usize>([u8; N]);

impl<const N: usize> Default for Fields<N> {
    fn default() -> Self {
        Self([0; N])
    }
}

impl<const N: usize> Fields<N> {
    fn set(&mut self, at: usize, bytes: &[u8]) -> &mut Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn u8(&mut self, at: usize, value: u8) -> &mut Self {
        self.set(at, &[value])
    }

    fn u16(&mut self, at: usize, value: u16) -> &mut Self {
        self.set(at, &value.to_le_bytes())
    }

    fn u32(&mut self, at: usize, value: u32) -> &mut Self {
        self.set(at, &value.to_le_bytes())
    }

    fn u64(&mut self, at: usize, value: u64) -> &mut Self {
        self.set(at, &value.to_le_bytes())
    }
}
