//! Where everything goes: pure arithmetic, done before the first byte is written.

use std::collections::BTreeMap;
use std::io;

use super::format::{self, BLOCK, CHUNK_BYTES, DEVICE_BYTES, INODE_SLOT, Payload, Shape};
use super::{Kind, Node, Tree, directory};

/// Most blocks of a file: a chunk says how many they are by a power of two, in five bits.
const MAX_FILE_BLOCKS: u64 = 1 << 31;

/// Where each node of a tree goes.
pub(super) struct Layout {
    /// In the order of the nodes, and ascending.
    pub places: Vec<Place>,
    /// Names of each node; of a directory also `.`, and `..` of those in it.
    pub links: Vec<u32>,
    /// The directory above each directory.
    pub parents: Vec<usize>,
    /// The time that most nodes have.
    pub epoch: (i64, u32),
    /// Length of the whole.
    pub n_blocks: u32,
}

/// Where one node goes.
pub(super) struct Place {
    /// Of its inode, in bytes from the beginning.
    pub position: u64,
    pub shape: Shape,
    /// Bytes of its contents.
    pub size: u64,
    pub payload: Payload,
}

impl Place {
    /// The number of the inode: blocks of inodes begin with the file, so it says where it lies.
    pub fn number(&self) -> u64 {
        self.position / INODE_SLOT
    }
}

impl Layout {
    pub fn of(tree: &Tree<'_>) -> io::Result<Self> {
        let (links, parents) = links_and_parents(tree);
        let epoch = most_frequent_time(tree);
        let mut places = Vec::with_capacity(tree.nodes.len());
        let mut position = format::SUPERBLOCK_AT + (DEVICE_BYTES * (1 + tree.devices.len())) as u64;
        for (idx, node) in tree.nodes.iter().enumerate() {
            let size = match &node.kind {
                Kind::Directory(entries) => {
                    directory::size(&directory::listing(entries, idx, parents[idx]))
                }
                Kind::File { size, .. } => *size,
                Kind::Symlink(target) => target.len() as u64,
            };
            if matches!(node.kind, Kind::File { .. }) && size.div_ceil(BLOCK) > MAX_FILE_BLOCKS {
                return Err(io::Error::new(
                    io::ErrorKind::FileTooLarge,
                    format!("a file of {size} bytes is more than a chunk of EROFS holds"),
                ));
            }
            let shape = shape(node, size, links[idx], epoch);
            let place = place(position, node, size, shape);
            position = end(&place, node);
            places.push(place);
        }
        let mut layout = Self { places, links, parents, epoch, n_blocks: 0 };
        layout.n_blocks = layout.assign_blocks(tree, position)?;
        Ok(layout)
    }

    /// Gives whole blocks of directories and links their places after all inodes; tells the length.
    fn assign_blocks(&mut self, tree: &Tree<'_>, end_of_inodes: u64) -> io::Result<u32> {
        let mut next = end_of_inodes.div_ceil(BLOCK);
        for (place, node) in self.places.iter_mut().zip(&tree.nodes) {
            let n_blocks = match (&mut place.payload, &node.kind) {
                (Payload::Chunk { .. }, _) | (_, Kind::File { .. }) => continue,
                (Payload::Inline { first_block }, _) => {
                    *first_block = next as u32;
                    place.size / BLOCK
                }
                (Payload::Blocks { first_block }, _) => {
                    *first_block = next as u32;
                    place.size.div_ceil(BLOCK)
                }
            };
            next += n_blocks;
            if u32::try_from(next).is_err() {
                return Err(io::Error::new(
                    io::ErrorKind::FileTooLarge,
                    "more blocks than EROFS numbers",
                ));
            }
        }
        Ok(next as u32)
    }
}

fn shape(node: &Node<'_>, size: u64, n_links: u32, epoch: (i64, u32)) -> Shape {
    let attributes = node.attributes;
    let is_small = |number: u32| u16::try_from(number).is_ok();
    let fits = attributes.mtime == epoch
        && is_small(attributes.uid)
        && is_small(attributes.gid)
        && is_small(n_links)
        && u32::try_from(size).is_ok();
    if fits { Shape::Short } else { Shape::Long }
}

/// The place of a node whose inode lies at `position` or somewhat behind.
fn place(position: u64, node: &Node<'_>, size: u64, shape: Shape) -> Place {
    let position = position.next_multiple_of(INODE_SLOT);
    let n_header = shape.n_bytes() + format::xattrs(&node.attributes.xattrs).len() as u64;
    let n_left_in_block = BLOCK - position % BLOCK;
    let (payload, n_together) = match node.kind {
        Kind::File { size: 0, .. } => (Payload::Blocks { first_block: 0 }, shape.n_bytes()),
        Kind::File { size, .. } => {
            let blocks_log2 = size.div_ceil(BLOCK).next_power_of_two().ilog2();
            (Payload::Chunk { blocks_log2 }, shape.n_bytes())
        }
        // What stands beside an inode may not reach over the end of a block, nor be a whole one.
        _ if n_header + size % BLOCK <= BLOCK && !size.is_multiple_of(BLOCK) => {
            (Payload::Inline { first_block: 0 }, n_header + size % BLOCK)
        }
        _ => (Payload::Blocks { first_block: 0 }, shape.n_bytes()),
    };
    let position = match n_together <= n_left_in_block {
        true => position,
        false => position + n_left_in_block,
    };
    Place { position, shape, size, payload }
}

/// Where a node ends, whole blocks left aside.
fn end(place: &Place, node: &Node<'_>) -> u64 {
    let n_xattr_bytes = format::xattrs(&node.attributes.xattrs).len() as u64;
    let header = place.position + place.shape.n_bytes() + n_xattr_bytes;
    match place.payload {
        Payload::Blocks { .. } => header,
        Payload::Inline { .. } => header + place.size % BLOCK,
        Payload::Chunk { .. } => header.next_multiple_of(CHUNK_BYTES) + CHUNK_BYTES,
    }
}

fn links_and_parents(tree: &Tree<'_>) -> (Vec<u32>, Vec<usize>) {
    let mut links = vec![0; tree.nodes.len()];
    // The root is above itself.
    let mut parents = vec![0; tree.nodes.len()];
    links[0] += 1;
    for (idx, node) in tree.nodes.iter().enumerate() {
        let Kind::Directory(entries) = &node.kind else { continue };
        links[idx] += 1;
        for (_, child) in entries {
            links[*child] += 1;
            if let Kind::Directory(_) = tree.nodes[*child].kind {
                links[idx] += 1;
                parents[*child] = idx;
            }
        }
    }
    (links, parents)
}

/// The earliest of several, so that the same tree gives the same bytes. None before 1970, which
/// the superblock of older kernels has no sign for.
fn most_frequent_time(tree: &Tree<'_>) -> (i64, u32) {
    let mut counts = BTreeMap::<_, usize>::new();
    let times = tree.nodes.iter().map(|node| node.attributes.mtime);
    for time in times.filter(|(seconds, _)| *seconds >= 0) {
        *counts.entry(time).or_default() += 1;
    }
    let most = counts.iter().rev().max_by_key(|(_, count)| **count);
    most.map_or((0, 0), |(time, _)| *time)
}
