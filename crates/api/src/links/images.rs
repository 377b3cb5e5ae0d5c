//! What nodes, their location and the global plane tell each other of images.

use std::collections::BTreeMap;

use longshore_types::{Digest, ImageHold};
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
