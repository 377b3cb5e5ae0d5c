//! What nodes, their location and the global plane tell each other of images.

use std::collections::{BTreeMap, BTreeSet};

use longshore_types::{
    Digest, Epoch, ImageHold, Label, LocationName, NodeName, PlaceMatch, ProjectName, Repository,
};
use serde::{Deserialize, Serialize};

/// Asks a location what keeps images on a node, before that makes room.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HoldsRequest {
    /// The images.
    pub images: Vec<Digest>,
}

/// What keeps images on a node, as its location sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ImageHolds {
    /// By image; one that is missing may go.
    pub holds: BTreeMap<Digest, Vec<ImageHold>>,
}

/// Who else at a location has an image or pulls it, told to a node that pulls it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ImageNeighbours {
    /// Those whose gates can be dialled.
    pub nodes: Vec<ImageNeighbour>,
}

/// A node that may be asked for parts of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageNeighbour {
    /// The node.
    pub node: NodeName,
    /// Where its gate is, as an endpoint of `longshore-link`.
    pub gate: String,
    /// Whether it has the whole image; otherwise it pulls it, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub has_all: bool,
}

/// Says that a node may be given a layer by its neighbours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vouched {
    /// The SHA-256 of the key by which that node is known, in hexadecimal digits.
    pub key: String,
}

/// The images that should be on nodes of a location before anything starts from them, all of them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PrewarmSet {
    /// Of which life of the global store it is; a location refuses an earlier one.
    #[serde(default)]
    pub epoch: Epoch,
    /// What is wished.
    pub wishes: Vec<PrewarmWish>,
}

/// An image that should be on nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrewarmWish {
    /// Whose wish it is.
    pub project: ProjectName,
    /// Where the image lies.
    pub repository: Repository,
    /// The image.
    pub digest: Digest,
    /// As who wished it named it: `web r3`, `default/web:1`.
    pub named: String,
    /// On which nodes; on all where none is named.
    pub places: Vec<PlaceMatch>,
    /// Whether it stays there whatever else needs the room; a location of the release before takes it for a wish.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pinned: bool,
}

impl PrewarmWish {
    /// Whether it is for a node at that location with these labels.
    pub fn is_for(&self, location: &LocationName, labels: &BTreeSet<Label>) -> bool {
        PlaceMatch::any_has(&self.places, location, labels)
    }
}

/// The images that should be on a node, all of them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PrewarmOrders {
    /// By repository and digest.
    pub images: Vec<PrewarmOrder>,
}

/// An image that should be on a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PrewarmOrder {
    /// Where it lies.
    pub repository: Repository,
    /// The image.
    pub digest: Digest,
}
