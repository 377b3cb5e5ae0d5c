//! The file that the tree of a layer is kept in.
//!
//! ```text
//! magic, version, blocks of the data file, the root and in it everything else, SHA-256 of all before
//! ```
//!
//! The checksum finds a damaged file, and every number is looked at nevertheless: whatever the
//! bytes are, what was read is a tree, its names can be names, and its files lie inside of the data
//! file. So nothing later has to ask, above all not the kernel, which is to mount what is made of
//! it.
//!
//! Rejected: JSON, whose strings cannot hold every name; a format with offsets, which could lead
//! anywhere.

use std::collections::BTreeMap;

use longshore_archive::tar::Xattr;
use sha2::{Digest as _, Sha256};

use super::{Attributes, Directory, LayerTree, Node, NodeId, Origin};
use crate::erofs::BLOCK;
use crate::unpack::is_allowed_xattr;

const MAGIC: &[u8; 8] = b"LSINDEX\n";
/// Raised when the meaning of a file changes.
const VERSION: u32 = 1;
const HASH_BYTES: usize = 32;

const DIRECTORY: u8 = 1;
const FILE: u8 = 2;
const SYMLINK: u8 = 3;
const WHITEOUT: u8 = 4;
/// A further name of a node before.
const LINK: u8 = 5;

const IS_OPAQUE: u8 = 1;
const IS_IMPLICIT: u8 = 2;

/// The longest target of a symbolic link in Linux, in bytes.
pub(crate) const TARGET_MAX: usize = 4095;
/// Most bytes of the extended attributes of one inode that EROFS counts, with room for headers.
pub(crate) const XATTR_BYTES_MAX: usize = 128 << 10;

/// Why bytes are not the index of a layer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// They are something else.
    #[error("it is not the index of a layer")]
    Magic,
    /// They were written by a later release.
    #[error("it has the version {0}, this release knows {VERSION}")]
    Version(u32),
    /// They are not those that were written.
    #[error("its bytes are damaged")]
    Checksum,
    /// They end in the middle of something.
    #[error("it ends too early")]
    Truncated,
    /// More follows.
    #[error("{0} bytes follow its end")]
    Trailing(usize),
    /// They say what no layer is.
    #[error("{0}")]
    Invalid(&'static str),
}

/// The bytes of a tree. Nodes that no name leads to are left out.
pub(crate) fn encode(tree: &LayerTree) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(MAGIC);
    out.extend(VERSION.to_le_bytes());
    out.extend(tree.data_blocks.to_le_bytes());
    let mut encoder = Encoder { tree, numbers: vec![None; tree.nodes.len()], n_nodes: 0, out };
    encoder.node(0);
    let mut out = encoder.out;
    let hash = Sha256::digest(&out);
    out.extend_from_slice(&hash);
    out
}

struct Encoder<'a> {
    tree: &'a LayerTree,
    /// The number of each node that is written, in the order of writing.
    numbers: Vec<Option<NodeId>>,
    n_nodes: NodeId,
    out: Vec<u8>,
}

impl Encoder<'_> {
    fn node(&mut self, id: NodeId) {
        if let Some(number) = self.numbers[id as usize] {
            self.out.push(LINK);
            self.out.extend(number.to_le_bytes());
            return;
        }
        self.numbers[id as usize] = Some(self.n_nodes);
        self.n_nodes += 1;
        match self.tree.node(id) {
            Node::Directory(directory) => self.directory(directory),
            Node::File { attributes, size, first_block } => {
                self.out.push(FILE);
                self.attributes(attributes);
                self.out.extend(size.to_le_bytes());
                self.out.extend(first_block.to_le_bytes());
            }
            Node::Symlink { attributes, target } => {
                self.out.push(SYMLINK);
                self.attributes(attributes);
                self.bytes16(target);
            }
            Node::Whiteout => self.out.push(WHITEOUT),
        }
    }

    fn directory(&mut self, directory: &Directory) {
        let is_implicit = directory.origin == Origin::Implicit;
        let flags = if directory.is_opaque { IS_OPAQUE } else { 0 };
        self.out.extend([DIRECTORY, flags | if is_implicit { IS_IMPLICIT } else { 0 }]);
        self.attributes(&directory.attributes);
        self.out.extend((directory.entries.len() as u32).to_le_bytes());
        for (name, id) in &directory.entries {
            self.bytes8(name);
            self.node(*id);
        }
    }

    fn attributes(&mut self, attributes: &Attributes) {
        let Attributes { mode, uid, gid, mtime: (seconds, nanos), xattrs } = attributes;
        self.out.extend((*mode as u16).to_le_bytes());
        self.out.extend(uid.to_le_bytes());
        self.out.extend(gid.to_le_bytes());
        self.out.extend(seconds.to_le_bytes());
        self.out.extend(nanos.to_le_bytes());
        self.out.push(xattrs.len() as u8);
        for xattr in xattrs {
            self.bytes8(&xattr.name);
            self.bytes16(&xattr.value);
        }
    }

    fn bytes8(&mut self, bytes: &[u8]) {
        self.out.push(bytes.len() as u8);
        self.out.extend_from_slice(bytes);
    }

    fn bytes16(&mut self, bytes: &[u8]) {
        self.out.extend((bytes.len() as u16).to_le_bytes());
        self.out.extend_from_slice(bytes);
    }
}

/// Reads a tree with at most so many directories above a name.
pub(crate) fn decode(bytes: &[u8], depth: u32) -> Result<LayerTree, IndexError> {
    let n_hashed = bytes.len().checked_sub(HASH_BYTES).ok_or(IndexError::Truncated)?;
    let (body, hash) = bytes.split_at(n_hashed);
    let mut decoder = Decoder { rest: body, nodes: Vec::new(), data_blocks: 0, max_depth: depth };
    if decoder.take(MAGIC.len())? != MAGIC {
        return Err(IndexError::Magic);
    }
    match decoder.u32()? {
        VERSION => {}
        other => return Err(IndexError::Version(other)),
    }
    if Sha256::digest(body).as_slice() != hash {
        return Err(IndexError::Checksum);
    }
    decoder.data_blocks = decoder.u32()?;
    decoder.node(0)?;
    if !matches!(decoder.nodes.first(), Some(Node::Directory(_))) {
        return Err(IndexError::Invalid("its root is not a directory"));
    }
    match decoder.rest.len() {
        0 => Ok(LayerTree { nodes: decoder.nodes, data_blocks: decoder.data_blocks }),
        n_bytes => Err(IndexError::Trailing(n_bytes)),
    }
}

struct Decoder<'a> {
    rest: &'a [u8],
    nodes: Vec<Node>,
    data_blocks: u32,
    max_depth: u32,
}

impl<'a> Decoder<'a> {
    /// Reads a node with so many directories above it, and all in it.
    fn node(&mut self, depth: u32) -> Result<NodeId, IndexError> {
        let id = NodeId::try_from(self.nodes.len())
            .map_err(|_| IndexError::Invalid("it has more nodes than numbers"))?;
        let node = match self.u8()? {
            DIRECTORY => return self.directory(id, depth),
            LINK => return self.link(),
            FILE => self.file()?,
            SYMLINK => self.symlink()?,
            WHITEOUT => Node::Whiteout,
            _ => return Err(IndexError::Invalid("a node is of no known kind")),
        };
        self.nodes.push(node);
        Ok(id)
    }

    fn link(&mut self) -> Result<NodeId, IndexError> {
        let target = self.u32()?;
        match self.nodes.get(target as usize) {
            Some(Node::File { .. } | Node::Symlink { .. }) => Ok(target),
            _ => Err(IndexError::Invalid("a hard link leads to no file before it")),
        }
    }

    fn directory(&mut self, id: NodeId, depth: u32) -> Result<NodeId, IndexError> {
        // One more than the names have above them: a directory is also there without any in it.
        if depth > self.max_depth.saturating_add(1) {
            return Err(IndexError::Invalid("it is too deep"));
        }
        let flags = self.u8()?;
        if flags & !(IS_OPAQUE | IS_IMPLICIT) != 0 {
            return Err(IndexError::Invalid("a directory has an unknown flag"));
        }
        let attributes = self.attributes()?;
        // Its number is before those of what is in it.
        self.nodes.push(Node::Whiteout);
        let n_entries = self.u32()?;
        let mut entries = BTreeMap::new();
        for _ in 0..n_entries {
            let name = self.name()?;
            let is_ascending = entries.last_key_value().is_none_or(|(last, _)| *last < name);
            if !is_ascending {
                return Err(IndexError::Invalid("names of a directory are not in their order"));
            }
            let entry = self.node(depth + 1)?;
            entries.insert(name, entry);
        }
        self.nodes[id as usize] = Node::Directory(Directory {
            attributes,
            origin: if flags & IS_IMPLICIT == 0 { Origin::Entry } else { Origin::Implicit },
            is_opaque: flags & IS_OPAQUE != 0,
            entries,
        });
        Ok(id)
    }

    fn file(&mut self) -> Result<Node, IndexError> {
        let attributes = self.attributes()?;
        let (size, first_block) = (self.u64()?, self.u32()?);
        let end = u64::from(first_block).checked_add(size.div_ceil(BLOCK));
        if end.is_none_or(|end| end > u64::from(self.data_blocks)) {
            return Err(IndexError::Invalid("a file reaches out of the layer's data"));
        }
        Ok(Node::File { attributes, size, first_block })
    }

    fn symlink(&mut self) -> Result<Node, IndexError> {
        let attributes = self.attributes()?;
        let target = self.bytes16()?;
        let is_target = (1..=TARGET_MAX).contains(&target.len()) && !target.contains(&0);
        match is_target && attributes.xattrs.is_empty() {
            true => Ok(Node::Symlink { attributes, target }),
            false => Err(IndexError::Invalid("a symbolic link is none")),
        }
    }

    fn attributes(&mut self) -> Result<Attributes, IndexError> {
        let mode = u32::from(self.u16()?);
        let (uid, gid) = (self.u32()?, self.u32()?);
        let mtime = (self.u64()?.cast_signed(), self.u32()?);
        if mode > 0o7777 || mtime.1 >= 1_000_000_000 {
            return Err(IndexError::Invalid("a mode or time is none"));
        }
        let n_xattrs = self.u8()?;
        let mut xattrs: Vec<Xattr> = Vec::new();
        let mut n_bytes = 0;
        for _ in 0..n_xattrs {
            let xattr = Xattr { name: self.bytes8()?, value: self.bytes16()? };
            n_bytes += xattr.name.len() + xattr.value.len();
            let is_ascending = xattrs.last().is_none_or(|last| last.name < xattr.name);
            if !is_allowed_xattr(&xattr.name) || xattr.name.contains(&0) || !is_ascending {
                return Err(IndexError::Invalid("an extended attribute may not be there"));
            }
            xattrs.push(xattr);
        }
        if n_bytes > XATTR_BYTES_MAX {
            return Err(IndexError::Invalid("there are too many extended attributes"));
        }
        Ok(Attributes { mode, uid, gid, mtime, xattrs })
    }

    fn name(&mut self) -> Result<Vec<u8>, IndexError> {
        let name = self.bytes8()?;
        let is_name = !matches!(&name[..], b"" | b"." | b"..")
            && !name.iter().any(|byte| matches!(byte, 0 | b'/'));
        if is_name { Ok(name) } else { Err(IndexError::Invalid("a name is none")) }
    }

    fn take(&mut self, n_bytes: usize) -> Result<&'a [u8], IndexError> {
        let (taken, rest) = self.rest.split_at_checked(n_bytes).ok_or(IndexError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], IndexError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u8(&mut self) -> Result<u8, IndexError> {
        self.array().map(u8::from_le_bytes)
    }

    fn u16(&mut self) -> Result<u16, IndexError> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, IndexError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, IndexError> {
        self.array().map(u64::from_le_bytes)
    }

    fn bytes8(&mut self) -> Result<Vec<u8>, IndexError> {
        let n_bytes = self.u8()?;
        self.take(n_bytes.into()).map(<[u8]>::to_vec)
    }

    fn bytes16(&mut self) -> Result<Vec<u8>, IndexError> {
        let n_bytes = self.u16()?;
        self.take(n_bytes.into()).map(<[u8]>::to_vec)
    }
}
