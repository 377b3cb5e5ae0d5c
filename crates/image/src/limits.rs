//! How much an image may ask of a node.
//!
//! Whoever pushes an image chooses every byte of it. Each limit is far above what images that people
//! use need, and low enough that a hostile one is refused before it fills memory or a disk.

pub use longshore_archive::LimitExceeded;
use longshore_archive::TarLimits;
use longshore_types::ByteCount;

/// What a pull accepts; past any of these the layer or image is refused and nothing of it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Entries in one layer, whiteouts and dropped devices included. Default 1,000,000.
    pub entries: u64,
    /// Decompressed bytes of one layer, and bytes of its files with the holes of sparse files counted
    /// as if written. Default 128 GiB.
    pub layer_bytes: ByteCount,
    /// Decompressed bytes for each compressed byte, checked once a layer has given
    /// [`Limits::ratio_from`]. Default 1000.
    pub ratio: u64,
    /// Below this many decompressed bytes any ratio is accepted: a small file of zeros is no attack.
    /// Default 1 GiB.
    pub ratio_from: ByteCount,
    /// Extended headers (pax, GNU long names) of one entry. Default 1 MiB.
    pub header_bytes: u32,
    /// Regions of data in one sparse file. Default 10,000.
    pub sparse_regions: usize,
    /// Length of a path or link target in bytes. Default 4095, the kernel's own.
    pub path_bytes: u32,
    /// Directories above an entry, symbolic links resolved. Default 128: a tree this deep can be
    /// walked and deleted with one open directory per level.
    pub depth: u32,
    /// Extended attributes of one entry. Default 64.
    pub xattrs: usize,
    /// Names and values of the extended attributes of one entry together. Default 64 KiB.
    pub xattr_bytes: usize,
    /// Names, link targets and extended attributes of one layer together, with 64 bytes for each name,
    /// and the indexes of an image's layers together. They are held in memory while an image is made
    /// of them. Default 256 MiB: some two million files.
    pub index_bytes: ByteCount,
    /// Window of a zstd stream as a power of two. Default 27: 128 MiB.
    pub zstd_window_log: u32,
    /// A manifest or index. Default 4 MiB, as registries have it.
    pub manifest_bytes: ByteCount,
    /// An image config. Default 4 MiB.
    pub config_bytes: ByteCount,
    /// Layers of one image. Default 499: overlayfs stacks at most 500 lower directories, and one is
    /// kept for the image's directory attributes.
    pub layers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 1_000_000,
            layer_bytes: ByteCount::gib(128),
            ratio: 1000,
            ratio_from: ByteCount::gib(1),
            header_bytes: 1 << 20,
            sparse_regions: 10_000,
            path_bytes: 4095,
            depth: 128,
            xattrs: 64,
            xattr_bytes: 64 << 10,
            index_bytes: ByteCount::mib(256),
            zstd_window_log: 27,
            manifest_bytes: ByteCount::mib(4),
            config_bytes: ByteCount::mib(4),
            layers: 499,
        }
    }
}

impl From<&Limits> for TarLimits {
    fn from(limits: &Limits) -> Self {
        Self {
            entries: limits.entries,
            file_bytes: limits.layer_bytes.0,
            header_bytes: limits.header_bytes,
            sparse_regions: limits.sparse_regions,
            path_bytes: limits.path_bytes,
            depth: limits.depth,
            xattrs: limits.xattrs,
            xattr_bytes: limits.xattr_bytes,
        }
    }
}
