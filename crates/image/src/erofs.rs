//! Writes the metadata of an image as an EROFS file system, which the kernel mounts.
//!
//! The file holds names, attributes and links; contents stay in the layers' data files, to which
//! each regular file points by a device and a block. So it has some 100 bytes for each file of the
//! image, is written in one go, and no byte of a layer is written twice.
//!
//! ```text
//! block 0    superblock, a slot for each data file
//! then       inodes with their attributes, and the ends of directories and links that fit beside them
//! then       whole blocks of directories
//! ```
//!
//! What is used of the format is as old as 5.16: inodes in chunks, and further devices. A file is
//! one chunk, as large as it takes, because its contents lie in one piece. An inode takes 32 bytes
//! where its time is the most frequent of the image, as in images that are built reproducibly, else
//! 64. Extended attributes stand with their inode: those that several files share are too rare to
//! be worth a second place for them.
//!
//! Rejected: `mkfs.erofs`, a program to install whose input would be a tree or a tar archive again;
//! one file system for each layer, which leaves merging to overlayfs, with a lookup in each.

mod directory;
mod format;
mod layout;
#[cfg(test)]
pub(crate) mod tests;

use std::io::{self, Write};

use crate::index::Attributes;

pub(crate) use format::BLOCK;

use format::{Inode, Payload};
use layout::Layout;

/// Most data files that a file system can point into: behind more slots the root would have too
/// high a number.
const MAX_DEVICES: usize = 16_000;

/// A tree to be written. It borrows from the layers that it was merged from.
#[derive(Debug, Default)]
pub(crate) struct Tree<'a> {
    /// The root comes first, and is a directory.
    pub nodes: Vec<Node<'a>>,
    /// Blocks of each data file.
    pub devices: Vec<u32>,
}

/// A file, directory or symbolic link, whatever its names.
#[derive(Debug)]
pub(crate) struct Node<'a> {
    pub attributes: &'a Attributes,
    pub kind: Kind<'a>,
}

#[derive(Debug)]
pub(crate) enum Kind<'a> {
    /// Names and the places of their nodes in the tree, in the order of the names' bytes.
    Directory(Vec<(&'a [u8], usize)>),
    File {
        size: u64,
        /// The place of its data file in the list; without meaning for an empty file.
        device: usize,
        /// Its first block there.
        first_block: u32,
    },
    Symlink(&'a [u8]),
}

/// Writes the tree. The same tree gives the same bytes.
pub(crate) fn write(tree: &Tree<'_>, out: &mut impl Write) -> io::Result<()> {
    if tree.devices.len() > MAX_DEVICES {
        let message = format!("{} data files are more than EROFS takes", tree.devices.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let layout = Layout::of(tree)?;
    let mut out = Positioned { out, position: 0 };
    out.pad_to(format::SUPERBLOCK_AT)?;
    out.write(&format::superblock(&format::Superblock {
        root: layout.places[0].number(),
        n_inodes: tree.nodes.len() as u64,
        epoch: layout.epoch,
        n_blocks: layout.n_blocks,
        n_devices: tree.devices.len() as u16,
    }))?;
    for n_blocks in &tree.devices {
        out.write(&format::device_slot(*n_blocks))?;
    }
    for idx in 0..tree.nodes.len() {
        write_inode(&mut out, tree, &layout, idx)?;
    }
    for idx in 0..tree.nodes.len() {
        write_blocks(&mut out, tree, &layout, idx)?;
    }
    out.pad_to(u64::from(layout.n_blocks) * BLOCK)
}

/// Writes an inode with its attributes and what stands beside them.
fn write_inode(
    out: &mut Positioned<'_, impl Write>,
    tree: &Tree<'_>,
    layout: &Layout,
    idx: usize,
) -> io::Result<()> {
    let (node, place) = (&tree.nodes[idx], &layout.places[idx]);
    let xattrs = format::xattrs(&node.attributes.xattrs);
    out.pad_to(place.position)?;
    out.write(&format::inode(&Inode {
        shape: place.shape,
        kind: &node.kind,
        attributes: node.attributes,
        n_links: layout.links[idx],
        n_xattr_bytes: xattrs.len(),
        serial: idx as u32 + 1,
        size: place.size,
        payload: place.payload,
    }))?;
    out.write(&xattrs)?;
    match (&node.kind, place.payload) {
        (Kind::File { device, first_block, .. }, Payload::Chunk { .. }) => {
            out.pad_to(out.position.next_multiple_of(format::CHUNK_BYTES))?;
            // The file system itself is device 0.
            out.write(&format::chunk(*device as u16 + 1, *first_block))
        }
        (Kind::Directory(entries), Payload::Inline { .. }) => {
            let listing = directory::listing(entries, idx, layout.parents[idx]);
            let last = directory::blocks(&listing).last().unwrap_or_default();
            out.write(&directory::encode(last, tree, layout))
        }
        (Kind::Symlink(target), Payload::Inline { .. }) => out.write(target),
        _ => Ok(()),
    }
}

/// Writes what of a directory or link does not stand beside its inode.
fn write_blocks(
    out: &mut Positioned<'_, impl Write>,
    tree: &Tree<'_>,
    layout: &Layout,
    idx: usize,
) -> io::Result<()> {
    let place = &layout.places[idx];
    let (Payload::Inline { first_block } | Payload::Blocks { first_block }) = place.payload else {
        return Ok(());
    };
    let n_whole = match place.payload {
        Payload::Inline { .. } => place.size / BLOCK,
        _ => place.size.div_ceil(BLOCK),
    };
    if n_whole == 0 {
        return Ok(());
    }
    out.pad_to(u64::from(first_block) * BLOCK)?;
    match &tree.nodes[idx].kind {
        Kind::File { .. } => Ok(()),
        Kind::Symlink(target) => out.write(target),
        Kind::Directory(entries) => {
            let listing = directory::listing(entries, idx, layout.parents[idx]);
            for block in directory::blocks(&listing).take(n_whole as usize) {
                out.pad_to(out.position.next_multiple_of(BLOCK))?;
                out.write(&directory::encode(block, tree, layout))?;
            }
            Ok(())
        }
    }
}

/// A writer that knows where it is.
struct Positioned<'a, W> {
    out: &'a mut W,
    position: u64,
}

impl<W: Write> Positioned<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.position += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    /// Writes zeros up to a position that lies ahead.
    fn pad_to(&mut self, position: u64) -> io::Result<()> {
        const ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];
        while self.position < position {
            let n_bytes = (position - self.position).min(BLOCK);
            self.write(&ZEROS[..n_bytes as usize])?;
        }
        Ok(())
    }
}
