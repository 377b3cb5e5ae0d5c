//! What a registry holds that nobody needs.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ByteCount, Digest, Duration, Repository, Tag};

/// What was removed from a registry, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Garbage {
    /// False when nothing was touched.
    pub removed: bool,
    /// How many manifests.
    pub manifests: u64,
    /// How many blobs.
    pub blobs: u64,
    /// How much room on the disk; what another repository also has takes none more.
    pub bytes: ByteCount,
    /// Which, in order of their repositories; of very many the first ones.
    pub items: Vec<GarbageItem>,
    /// The tags that the retention of their repositories lets go. What they name counts as untagged from
    /// then on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<GarbageTag>,
    /// The images of which nobody pulled what the registry converted of them; they themselves stay. Of very many the
    /// first ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub converted: Vec<GarbageForm>,
}

/// What was converted of an image and nobody pulled; a manifest, whose blobs go with it where no other one names them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GarbageForm {
    /// Where it is.
    pub repository: Repository,
    /// The manifest of the image.
    pub image: Digest,
    /// For how long nobody asked.
    pub unused: Duration,
}

/// A tag that its repository need not keep.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GarbageTag {
    /// Where it is.
    pub repository: Repository,
    /// The tag.
    pub tag: Tag,
    /// What it names.
    pub digest: Digest,
    /// How many tags were pushed after it.
    pub n_newer: u64,
    /// For how long it has been there.
    pub age: Duration,
}

/// One thing that nobody needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GarbageItem {
    /// Where it lies.
    pub repository: Repository,
    /// Its digest.
    pub digest: Digest,
    /// Its size, in bytes.
    pub size: ByteCount,
    /// Why nobody needs it.
    pub reason: GarbageReason,
}

/// Why nobody needs something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GarbageReason {
    /// A manifest that no tag, no release and no index has named for long.
    Untagged,
    /// A manifest about another one that is not there.
    SubjectGone,
    /// A blob that no manifest of its repository names.
    Unreferenced,
}

impl GarbageReason {
    /// As a sentence about it goes on.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Untagged => "no tag, no release",
            Self::SubjectGone => "what it is about is gone",
            Self::Unreferenced => "no manifest names it",
        }
    }

    /// True of a manifest.
    pub fn is_of_manifest(self) -> bool {
        self != Self::Unreferenced
    }
}

/// A manifest of a repository, and why it is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeptManifest {
    /// Its digest.
    pub digest: Digest,
    /// The tags that name it, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<Tag>,
    /// Its own size, in bytes, without what it names.
    pub size: ByteCount,
    /// All that keeps it; nothing when it goes with the next collection.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<KeptReason>,
}

/// What keeps a manifest in a registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "because", rename_all = "snake_case")]
pub enum KeptReason {
    /// A release may run it.
    Release {
        /// Of which app, and which one: `web r3`.
        release: String,
    },
    /// A tag names it.
    Tagged,
    /// Somebody pushed or asked for it a moment ago.
    Asked,
    /// It was pushed, lost a tag or was used not long ago.
    Young {
        /// For how long that keeps it yet.
        left: Duration,
    },
    /// An index that is kept names it.
    PartOf {
        /// Which one.
        manifest: Digest,
    },
    /// It is about a manifest that is kept.
    About {
        /// Which one.
        manifest: Digest,
    },
}
