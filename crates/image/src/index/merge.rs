//! Makes one tree of an image's layers, by the rules that overlayfs has for a stack of directories.
//!
//! From the top down: the first layer that has a name decides. A whiteout hides it, a file or link
//! is it, a directory is merged with those of that name below, down to one that is opaque or to
//! something else. A directory looks like the topmost layer says that describes it: one that a
//! layer has only for what is in it hides no mode or owner of a lower one.
//!
//! Rejected: a file system for each layer and overlayfs to merge them, which looks up each name in
//! each, stacks 500 of them at most, and cannot know which directories an archive describes.

use std::collections::BTreeMap;

use super::{Directory, LayerTree, Node, NodeId, Origin};
use crate::erofs;

/// The tree that an image's instances see.
#[derive(Debug)]
pub(crate) struct Merged<'a> {
    pub tree: erofs::Tree<'a>,
    /// Which layers' data files the devices of the tree are, by their places among the layers.
    pub devices: Vec<usize>,
}

/// Merges layers, lowest first; there is one at least.
pub(crate) fn merge(layers: &[LayerTree]) -> Merged<'_> {
    let mut merger = Merger {
        layers,
        tree: erofs::Tree::default(),
        places: layers.iter().map(|layer| vec![None; layer.nodes.len()]).collect(),
        devices: vec![None; layers.len()],
        used: Vec::new(),
    };
    let mut roots = Vec::new();
    for (layer_idx, layer) in layers.iter().enumerate().rev() {
        roots.push(Part { layer_idx, directory: layer.root() });
        if layer.root().is_opaque {
            break;
        }
    }
    merger.directory(&roots);
    Merged { tree: merger.tree, devices: merger.used }
}

/// What one layer has of a merged directory.
#[derive(Clone, Copy)]
struct Part<'a> {
    layer_idx: usize,
    directory: &'a Directory,
}

struct Merger<'a> {
    layers: &'a [LayerTree],
    tree: erofs::Tree<'a>,
    /// Where files and links of each layer are in the tree, for their further names.
    places: Vec<Vec<Option<usize>>>,
    /// The device of each layer that has one.
    devices: Vec<Option<usize>>,
    used: Vec<usize>,
}

impl<'a> Merger<'a> {
    /// Adds a directory with all that is in it. The parts come topmost first; there is one at least.
    fn directory(&mut self, parts: &[Part<'a>]) -> usize {
        let described = parts.iter().find(|part| part.directory.origin == Origin::Entry);
        let attributes = &described.unwrap_or(&parts[0]).directory.attributes;
        let place = self.tree.nodes.len();
        // Before what is in it, so that the root comes first.
        let kind = erofs::Kind::Directory(Vec::new());
        self.tree.nodes.push(erofs::Node { attributes, kind });
        let mut candidates = BTreeMap::<&[u8], Vec<(usize, NodeId)>>::new();
        for part in parts {
            for (name, id) in &part.directory.entries {
                candidates.entry(name).or_default().push((part.layer_idx, *id));
            }
        }
        let mut entries = Vec::with_capacity(candidates.len());
        for (name, candidates) in candidates {
            entries.extend(self.entry(&candidates).map(|place| (name, place)));
        }
        self.tree.nodes[place].kind = erofs::Kind::Directory(entries);
        place
    }

    /// Adds what a name leads to; `None` when it is hidden.
    fn entry(&mut self, candidates: &[(usize, NodeId)]) -> Option<usize> {
        let (layer_idx, id) = candidates[0];
        let layers = self.layers;
        match layers[layer_idx].node(id) {
            Node::Whiteout => None,
            Node::Directory(_) => {
                let mut parts = Vec::new();
                for (layer_idx, id) in candidates {
                    let Node::Directory(directory) = layers[*layer_idx].node(*id) else { break };
                    parts.push(Part { layer_idx: *layer_idx, directory });
                    if directory.is_opaque {
                        break;
                    }
                }
                Some(self.directory(&parts))
            }
            Node::File { attributes, size, first_block } => {
                let device = if *size == 0 { 0 } else { self.device(layer_idx) };
                let (size, first_block) = (*size, *first_block);
                let kind = erofs::Kind::File { size, device, first_block };
                Some(self.named(layer_idx, id, erofs::Node { attributes, kind }))
            }
            Node::Symlink { attributes, target } => {
                let kind = erofs::Kind::Symlink(target);
                Some(self.named(layer_idx, id, erofs::Node { attributes, kind }))
            }
        }
    }

    /// Adds a file or link, or finds it under another name.
    fn named(&mut self, layer_idx: usize, id: NodeId, node: erofs::Node<'a>) -> usize {
        let place = &mut self.places[layer_idx][id as usize];
        *place.get_or_insert_with(|| {
            self.tree.nodes.push(node);
            self.tree.nodes.len() - 1
        })
    }

    fn device(&mut self, layer_idx: usize) -> usize {
        let (layers, tree, used) = (self.layers, &mut self.tree, &mut self.used);
        *self.devices[layer_idx].get_or_insert_with(|| {
            tree.devices.push(layers[layer_idx].data_blocks);
            used.push(layer_idx);
            used.len() - 1
        })
    }
}
