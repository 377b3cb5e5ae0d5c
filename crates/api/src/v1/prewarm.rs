//! Images that should be on nodes before anything starts from them.

use longshore_types::{
    AppName, Digest, ImageReference, ImageState, LocationName, NodeName, PlaceMatch, Repository,
    Timestamp,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Asks for an image on nodes: that of an app's release of now, or one by its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PrewarmRequest {
    /// The app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppName>,
    /// The image, where no app is named. What its tag leads to now is meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageReference>,
    /// Names of locations, and labels of locations or nodes as key=value; all nodes where none is named.
    #[serde(default)]
    pub places: Vec<PlaceMatch>,
    /// Pins it there: it gives way to nothing else until the wish is taken back. Needs an administrator of the
    /// platform, for what is pinned takes room from all. Without it a wish that is pinned stays so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pin: bool,
}

/// A wish that holds until it is taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PrewarmView {
    /// As it was named: `web r3`, `default/web:1`.
    pub image: String,
    /// Where it lies.
    pub repository: Repository,
    /// The image.
    pub digest: Digest,
    /// On which nodes; on all where none is named.
    pub places: Vec<PlaceMatch>,
    /// Since when.
    pub created_at: Timestamp,
    /// By the bearer of which token.
    pub by: AppName,
    /// Whether it is pinned: no other image, instance or mark of the disk takes it from a node.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pinned: bool,
    /// Why it ended by itself, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
}

/// A wish, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PrewarmStatus {
    /// The wish.
    pub wish: PrewarmView,
    /// Each node that it is for.
    pub nodes: Vec<PrewarmedNode>,
}

/// A node that should have an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PrewarmedNode {
    /// Its location.
    pub location: LocationName,
    /// The node.
    pub node: NodeName,
    /// How far the image is there.
    #[serde(flatten)]
    pub state: ImageState,
    /// What stood in the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// True when trying again does not help.
    #[serde(default)]
    pub given_up: bool,
}
