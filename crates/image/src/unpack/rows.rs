//! The tree of one layer in memory, its files' contents in one file: what becomes an index.
//!
//! Entries mean here what they mean to a directory of the machine ([`super::tree`]), so that both
//! ways give the same tree and refuse the same archives; a test feeds both with archives made at
//! random. What the kernel does there with paths is done here in a few lines over maps: `..` of the
//! root is the root, an absolute link begins at it, and forty links on the way are too many.
//!
//! Two things differ, for there is no file system that would take part: the attributes of one file
//! may be as large as the limits of an image allow, and what a layer has of names and attributes
//! must fit into memory.

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io::{self, Read};

use rustix::io::Errno;

use super::data::DataFile;
use super::entries::{Attributes, Destination};
use super::stream::classify;
use super::tree::IMPLICIT_MODE;
use super::{EntryProblem, UnpackError};
use crate::erofs::BLOCK;
use crate::index::{self, Directory, LayerTree, Node, NodeId, Origin};
use crate::limits::{LimitExceeded, Limits};
use crate::tar::{EntryPath, TarReader, Xattr};

const ROOT: NodeId = 0;

/// As many symbolic links as the kernel follows in one path.
const LINKS_MAX: u32 = 40;

/// What a name takes in an index beside its bytes and attributes, at most.
const ROW_BYTES: u64 = 64;

pub(super) struct Rows {
    nodes: Vec<Node>,
    /// Of each node; it means something for directories alone.
    places: Vec<Place>,
    data: DataFile,
    /// The directory that the last entry was put into: most entries go where the last one went.
    recent: Option<(Vec<u8>, NodeId)>,
    /// Names that a whiteout spoke of, as hashes of (directory, name).
    whited_out: HashSet<u64>,
    hash: RandomState,
    n_made: u64,
    n_bytes: u64,
    limits: Limits,
}

#[derive(Clone, Copy)]
struct Place {
    parent: NodeId,
    depth: u32,
}

/// Why a path leads to no directory.
enum Stuck {
    Nowhere,
    TooManyLinks,
}

impl Rows {
    /// Takes an empty place for the contents.
    pub fn new(data: DataFile, limits: &Limits) -> Self {
        Self {
            nodes: vec![Node::Directory(undescribed())],
            places: vec![Place { parent: ROOT, depth: 0 }],
            data,
            recent: None,
            whited_out: HashSet::new(),
            hash: RandomState::new(),
            n_made: 1,
            n_bytes: 0,
            limits: limits.clone(),
        }
    }

    /// The directory that a path leads to, links followed.
    fn open(&self, path: &[u8]) -> Result<NodeId, Stuck> {
        self.walk(ROOT, path, &mut 0)
    }

    fn walk(&self, from: NodeId, path: &[u8], n_links: &mut u32) -> Result<NodeId, Stuck> {
        let mut here = if path.starts_with(b"/") { ROOT } else { from };
        for part in path.split(|&byte| byte == b'/') {
            match part {
                b"" | b"." => continue,
                b".." => {
                    here = self.places[here as usize].parent;
                    continue;
                }
                _ => {}
            }
            let id = *self.directory_at(here).entries.get(part).ok_or(Stuck::Nowhere)?;
            here = match &self.nodes[id as usize] {
                Node::Directory(_) => id,
                Node::Symlink { target, .. } => {
                    *n_links += 1;
                    if *n_links > LINKS_MAX {
                        return Err(Stuck::TooManyLinks);
                    }
                    self.walk(here, target, n_links)?
                }
                Node::File { .. } | Node::Whiteout => return Err(Stuck::Nowhere),
            };
        }
        Ok(here)
    }

    /// The directory at a path; missing ones are made, without a description.
    fn ensure_directory(&mut self, path: &[u8]) -> Result<NodeId, UnpackError> {
        if let Some((recent, id)) = &self.recent
            && recent == path
        {
            return Ok(*id);
        }
        let id = match self.open(path) {
            Ok(id) => id,
            Err(Stuck::TooManyLinks) => {
                return Err(UnpackError::entry(path, EntryProblem::ParentLoop));
            }
            Err(Stuck::Nowhere) => {
                let slash = path.iter().rposition(|&byte| byte == b'/');
                let (above, name) = match slash {
                    Some(slash) => (&path[..slash], &path[slash + 1..]),
                    None => (&b""[..], path),
                };
                let parent = self.ensure_directory(above)?;
                match self.find(parent, name).map(|id| self.node(id)) {
                    Some(Node::Symlink { .. }) => {
                        return Err(UnpackError::entry(path, EntryProblem::ParentDangling));
                    }
                    Some(Node::File { .. }) => {
                        return Err(UnpackError::entry(path, EntryProblem::ParentNotDirectory));
                    }
                    Some(Node::Directory(_) | Node::Whiteout) | None => {}
                }
                self.ensure_child(parent, name, path)?
            }
        };
        self.recent = Some((path.to_vec(), id));
        Ok(id)
    }

    /// The directory `name` in `parent`, made in place of whatever else has that name.
    fn ensure_child(
        &mut self,
        parent: NodeId,
        name: &[u8],
        path: &[u8],
    ) -> Result<NodeId, UnpackError> {
        let depth = self.check_depth(parent, path)? + 1;
        if let Some(id) = self.find(parent, name)
            && matches!(self.node(id), Node::Directory(_))
        {
            return Ok(id);
        }
        self.n_made += 1;
        LimitExceeded::check("directories", self.n_made, self.limits.entries)?;
        let mut directory = undescribed();
        directory.is_opaque = self.whited_out.contains(&self.whiteout_key(parent, name));
        let id = self.put(parent, name, Node::Directory(directory))?;
        self.places[id as usize] = Place { parent, depth };
        Ok(id)
    }

    /// The depth of a directory, when more may be put into it. Links make paths shorter than the way
    /// to what they name, so the length of the path is not enough.
    fn check_depth(&self, parent: NodeId, path: &[u8]) -> Result<u32, UnpackError> {
        let (depth, allowed) = (self.places[parent as usize].depth, self.limits.depth);
        match depth > allowed {
            true => Err(UnpackError::entry(path, EntryProblem::Deep { allowed })),
            false => Ok(depth),
        }
    }

    /// The directory and the name that an entry is put at.
    fn place_for<'p>(&mut self, path: &'p EntryPath) -> Result<(NodeId, &'p [u8]), UnpackError> {
        let (above, name) =
            path.split().ok_or_else(|| UnpackError::entry(path, EntryProblem::RootNotDirectory))?;
        let parent = self.ensure_directory(above)?;
        self.check_depth(parent, path.as_bytes())?;
        Ok((parent, name))
    }

    /// Gives a new node a name, in place of whatever has it.
    fn put(&mut self, parent: NodeId, name: &[u8], node: Node) -> Result<NodeId, UnpackError> {
        let attributes = match &node {
            Node::Directory(Directory { attributes, .. }) | Node::File { attributes, .. } => {
                attributes_bytes(attributes)
            }
            Node::Symlink { target, .. } => target.len() as u64,
            Node::Whiteout => 0,
        };
        self.account(name.len() as u64 + ROW_BYTES + attributes)?;
        let id = NodeId::try_from(self.nodes.len()).expect("the limit on bytes is below 4 G");
        self.nodes.push(node);
        self.places.push(Place { parent, depth: 0 });
        self.bind(parent, name, id);
        Ok(id)
    }

    /// Counts what an index is going to hold. Nothing is taken off for what makes way again.
    fn account(&mut self, n_bytes: u64) -> Result<(), UnpackError> {
        self.n_bytes += n_bytes;
        let allowed = self.limits.index_bytes.0;
        Ok(LimitExceeded::check("bytes of names and attributes", self.n_bytes, allowed)?)
    }

    fn bind(&mut self, parent: NodeId, name: &[u8], id: NodeId) {
        if let Some(before) = self.directory_mut(parent).entries.insert(name.to_vec(), id) {
            self.recent = None;
            self.empty(before);
        }
    }

    /// Takes everything out of a directory that has no name any more, so that nothing is found in it.
    fn empty(&mut self, id: NodeId) {
        let mut gone = vec![id];
        while let Some(id) = gone.pop() {
            if let Node::Directory(directory) = &mut self.nodes[id as usize] {
                gone.extend(std::mem::take(&mut directory.entries).into_values());
            }
        }
    }

    fn find(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        self.directory_at(parent).entries.get(name).copied()
    }

    fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize]
    }

    fn directory_at(&self, id: NodeId) -> &Directory {
        match self.node(id) {
            Node::Directory(directory) => directory,
            _ => unreachable!("only directories are walked to and put into"),
        }
    }

    fn directory_mut(&mut self, id: NodeId) -> &mut Directory {
        match &mut self.nodes[id as usize] {
            Node::Directory(directory) => directory,
            _ => unreachable!("only directories are walked to and put into"),
        }
    }

    fn whiteout_key(&self, parent: NodeId, name: &[u8]) -> u64 {
        self.hash.hash_one((parent, name))
    }

    /// Below an opaque directory nothing is left to hide: whiteouts go.
    fn drop_needless_whiteouts(&mut self) {
        let mut stack = vec![(ROOT, false)];
        while let Some((id, is_below_opaque)) = stack.pop() {
            let is_opaque = is_below_opaque || self.directory_at(id).is_opaque;
            let nodes = &self.nodes;
            let is_whiteout = |id: &NodeId| matches!(nodes[*id as usize], Node::Whiteout);
            let directory = self.directory_at(id);
            let needless: Vec<Vec<u8>> = match is_opaque {
                true => {
                    let gone = directory.entries.iter().filter(|(_, id)| is_whiteout(id));
                    gone.map(|(name, _)| name.clone()).collect()
                }
                false => Vec::new(),
            };
            let is_directory = |id: &NodeId| matches!(nodes[*id as usize], Node::Directory(_));
            let children = directory.entries.values().copied().filter(is_directory);
            stack.extend(children.map(|id| (id, is_opaque)));
            let entries = &mut self.directory_mut(id).entries;
            for name in &needless {
                entries.remove(name);
            }
        }
    }
}

impl Destination for Rows {
    type Finished = LayerTree;

    fn directory(
        &mut self,
        path: &EntryPath,
        attributes: &Attributes<'_>,
    ) -> Result<(), UnpackError> {
        let id = match path.split() {
            None => ROOT,
            Some((above, name)) => {
                let parent = self.ensure_directory(above)?;
                self.ensure_child(parent, name, path.as_bytes())?
            }
        };
        let attributes = owned(attributes, path)?;
        self.account(attributes_bytes(&attributes))?;
        let directory = self.directory_mut(id);
        directory.origin = Origin::Entry;
        directory.attributes = attributes;
        Ok(())
    }

    fn file(
        &mut self,
        path: &EntryPath,
        size: u64,
        attributes: &Attributes<'_>,
        contents: &mut TarReader<impl Read>,
    ) -> Result<(), UnpackError> {
        let (parent, name) = self.place_for(path)?;
        let attributes = owned(attributes, path)?;
        let failed = |source| UnpackError::write("writing", path.as_bytes(), source);
        let start = self.data.position();
        let allowed = u64::from(u32::MAX);
        LimitExceeded::check("blocks of contents", (start + size).div_ceil(BLOCK), allowed)?;
        while let Some(chunk) = contents.next_chunk().map_err(classify)? {
            self.data.write_at(start + chunk.offset, chunk.bytes).map_err(failed)?;
        }
        self.data.skip_to(start + size).and_then(|()| self.data.align()).map_err(failed)?;
        let first_block = (start / BLOCK) as u32;
        self.put(parent, name, Node::File { attributes, size, first_block })?;
        Ok(())
    }

    fn symlink(
        &mut self,
        path: &EntryPath,
        target: &[u8],
        attributes: &Attributes<'_>,
    ) -> Result<(), UnpackError> {
        if target.len() > index::TARGET_MAX {
            let error = Errno::NAMETOOLONG.into();
            return Err(UnpackError::write("making the symbolic link", path.as_bytes(), error));
        }
        let (parent, name) = self.place_for(path)?;
        let attributes = index::Attributes { mode: 0o777, ..owned(attributes, path)? };
        self.put(parent, name, Node::Symlink { attributes, target: target.to_vec() })?;
        Ok(())
    }

    fn hard_link(&mut self, path: &EntryPath, target: &EntryPath) -> Result<(), UnpackError> {
        let refuse = |problem: fn(String) -> EntryProblem| {
            UnpackError::entry(path, problem(target.printable()))
        };
        let missing = || refuse(|target| EntryProblem::LinkTargetMissing { target });
        let wrong = || refuse(|target| EntryProblem::LinkTargetNotFile { target });
        let (above, target_name) = target.split().ok_or_else(wrong)?;
        let target_parent = self.open(above).map_err(|_| missing())?;
        let target_id = self.find(target_parent, target_name).ok_or_else(missing)?;
        match self.node(target_id) {
            Node::File { .. } | Node::Symlink { .. } => {}
            Node::Whiteout => return Err(missing()),
            Node::Directory(_) => return Err(wrong()),
        }
        let (above, name) =
            path.split().ok_or_else(|| UnpackError::entry(path, EntryProblem::RootNotDirectory))?;
        let parent = self.ensure_directory(above)?;
        if self.find(parent, name) == Some(target_id) {
            return Ok(());
        }
        self.check_depth(parent, path.as_bytes())?;
        self.account(name.len() as u64 + ROW_BYTES)?;
        self.bind(parent, name, target_id);
        // It lay in a directory that had to make way for the link.
        match self.find(target_parent, target_name) {
            Some(_) => Ok(()),
            None => Err(missing()),
        }
    }

    fn whiteout(&mut self, above: &[u8], name: &[u8]) -> Result<(), UnpackError> {
        let parent = self.ensure_directory(above)?;
        let key = self.whiteout_key(parent, name);
        self.whited_out.insert(key);
        match self.find(parent, name) {
            Some(id) => {
                if let Node::Directory(directory) = &mut self.nodes[id as usize] {
                    directory.is_opaque = true;
                }
            }
            None => {
                self.put(parent, name, Node::Whiteout)?;
            }
        }
        Ok(())
    }

    fn opaque(&mut self, path: &[u8]) -> Result<(), UnpackError> {
        let id = self.ensure_directory(path)?;
        self.directory_mut(id).is_opaque = true;
        Ok(())
    }

    fn finish(mut self) -> Result<LayerTree, UnpackError> {
        self.drop_needless_whiteouts();
        let failed = |source: io::Error| UnpackError::write("writing", b"", source);
        let n_bytes = self.data.finish().map_err(failed)?;
        Ok(LayerTree { nodes: self.nodes, data_blocks: (n_bytes / BLOCK) as u32 })
    }
}

/// What a directory has that no entry describes.
fn undescribed() -> Directory {
    Directory {
        attributes: index::Attributes { mode: IMPLICIT_MODE, ..index::Attributes::default() },
        origin: Origin::Implicit,
        is_opaque: false,
        entries: Default::default(),
    }
}

fn attributes_bytes(attributes: &index::Attributes) -> u64 {
    let xattrs = attributes.xattrs.iter();
    xattrs.map(|xattr| (xattr.name.len() + xattr.value.len() + 4) as u64).sum()
}

/// Attributes as they are kept: in their order, the last of several with one name.
fn owned(attributes: &Attributes<'_>, path: &EntryPath) -> Result<index::Attributes, UnpackError> {
    let Attributes { uid, gid, mode, mtime, xattrs } = attributes;
    let mut kept: Vec<Xattr> = Vec::with_capacity(xattrs.len());
    for xattr in xattrs {
        check_xattr(xattr).map_err(|answer| {
            let name = String::from_utf8_lossy(&xattr.name).into_owned();
            let (n_bytes, answer) = (xattr.value.len(), answer.to_owned());
            UnpackError::entry(path, EntryProblem::Xattr { name, n_bytes, answer })
        })?;
        match kept.binary_search_by(|other| other.name.cmp(&xattr.name)) {
            Ok(idx) => kept[idx] = (*xattr).clone(),
            Err(idx) => kept.insert(idx, (*xattr).clone()),
        }
    }
    Ok(index::Attributes { mode: *mode, uid: *uid, gid: *gid, mtime: *mtime, xattrs: kept })
}

/// What the kernel would say of an attribute that is set.
fn check_xattr(xattr: &Xattr) -> Result<(), &'static str> {
    if xattr.value.len() > usize::from(u16::MAX) {
        return Err("it is longer than 65535 bytes");
    }
    // The kernel takes capabilities of two revisions, each with its length.
    let is_capability = |value: &[u8]| match value {
        [_, _, _, revision @ (2 | 3), ..] => value.len() == if *revision == 2 { 20 } else { 24 },
        _ => false,
    };
    match xattr.name == b"security.capability" && !is_capability(&xattr.value) {
        true => Err("it is no set of capabilities"),
        false => Ok(()),
    }
}
