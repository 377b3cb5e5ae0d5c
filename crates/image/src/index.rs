//! What a layer holds, without the contents of its files: names, attributes, links, whiteouts.
//!
//! Names of a stranger's archive become keys of a map and are never paths of a system call. The
//! tree of a layer is made once, from its archive, and kept in a file beside the contents
//! ([`encode`], [`decode`]); [`merge`] makes of those of an image's layers the one tree that its
//! instances see.
//!
//! A tree lies in an arena: a node is a number, and has several names where there are hard links.

mod codec;
pub(crate) mod merge;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use longshore_archive::tar::Xattr;

pub use codec::IndexError;
pub(crate) use codec::{TARGET_MAX, decode, encode};

/// The place of a node in the arena of its tree.
pub(crate) type NodeId = u32;

/// Owner, mode, time and extended attributes; the latter in the order of their names, and only such
/// as an image may have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Attributes {
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since the epoch, and nanoseconds above them.
    pub mtime: (i64, u32),
    pub xattrs: Vec<Xattr>,
}

/// The tree of one layer. The root is node 0, a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LayerTree {
    pub nodes: Vec<Node>,
    /// Length of the layer's data file, in blocks of [`crate::erofs::BLOCK`].
    pub data_blocks: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    Directory(Directory),
    File {
        attributes: Attributes,
        /// In bytes.
        size: u64,
        /// Where its contents begin in the data file; they lie there in one piece.
        first_block: u32,
    },
    Symlink {
        attributes: Attributes,
        target: Vec<u8>,
    },
    /// A name of lower layers that is gone.
    Whiteout,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Directory {
    pub attributes: Attributes,
    pub origin: Origin,
    /// Whether it hides what lower layers have in it.
    pub is_opaque: bool,
    pub entries: BTreeMap<Vec<u8>, NodeId>,
}

/// Where the attributes of a directory come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// An entry describes it.
    Entry,
    /// It had to be there for an entry below it; a lower layer may describe it.
    Implicit,
}

impl LayerTree {
    pub fn root(&self) -> &Directory {
        match &self.nodes[0] {
            Node::Directory(root) => root,
            _ => unreachable!("the first node is made a directory, and read as one"),
        }
    }

    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize]
    }
}
