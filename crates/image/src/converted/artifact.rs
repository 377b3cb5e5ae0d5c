//! The document that names the converted layers of an image: an artifact of OCI whose subject is the
//! image's manifest, with three blobs for each layer that was converted.

use std::collections::BTreeMap;

use longshore_types::{ByteCount, DIFF_ID_ANNOTATION, Digest, ParseError};
use serde::{Deserialize, Serialize};

use crate::manifest::{Descriptor, MANIFEST_TYPES};

/// The type of the artifact. A registry of ours takes it from nobody.
pub const ARTIFACT_TYPE: &str = "application/vnd.longshore.image.converted.v1";

/// The config that an artifact has which has none.
pub const EMPTY_CONFIG: &[u8] = b"{}";
/// The type of that.
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";

/// The types of the parts of a layer, in their order.
const PART_TYPES: [&str; 3] = [
    "application/vnd.longshore.image.layer.index.v1",
    "application/vnd.longshore.image.layer.frames.v1",
    "application/vnd.longshore.image.layer.table.v1",
];

/// The blobs of a converted layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvertedLayer {
    /// Its tree.
    pub index: Descriptor,
    /// The contents of its files.
    pub frames: Descriptor,
    /// What the frames are.
    pub table: Descriptor,
}

impl ConvertedLayer {
    /// All three.
    pub fn blobs(&self) -> [Descriptor; 3] {
        [self.index, self.frames, self.table]
    }
}

/// Converted layers by DiffID.
pub type ConvertedLayers = BTreeMap<Digest, ConvertedLayer>;

/// Why bytes do not name converted layers.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// It is not JSON of the expected shape.
    #[error("it is no artifact")]
    Json(#[from] serde_json::Error),
    /// It is another artifact.
    #[error("it has the type {0:?}, not {ARTIFACT_TYPE}")]
    Type(String),
    /// It is about another image.
    #[error("it is about {found}, not {expected}")]
    Subject {
        /// The image's manifest.
        expected: Digest,
        /// The subject that it names.
        found: String,
    },
    /// A digest of another algorithm, or none.
    #[error("a digest of it")]
    Digest(#[from] ParseError),
    /// A layer without one of its parts, or with one twice.
    #[error("a layer does not have an index, frames and a table, in that order")]
    Parts,
    /// A layer twice.
    #[error("it names the layer {0} twice")]
    Twice(Digest),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireArtifact {
    schema_version: u32,
    media_type: String,
    artifact_type: String,
    config: WireDescriptor,
    layers: Vec<WireDescriptor>,
    subject: WireDescriptor,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireDescriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

impl WireDescriptor {
    fn new(media_type: &str, Descriptor { digest, size }: Descriptor) -> Self {
        let annotations = BTreeMap::new();
        Self {
            media_type: media_type.to_owned(),
            digest: digest.to_string(),
            size: size.0,
            annotations,
        }
    }

    fn of_layer(media_type: &str, part: Descriptor, diff_id: &Digest) -> Self {
        let annotations = [(DIFF_ID_ANNOTATION.to_owned(), diff_id.to_string())].into();
        Self { annotations, ..Self::new(media_type, part) }
    }

    /// The layer that this is a part of, and the part.
    fn read(&self, media_type: &str) -> Result<(Digest, Descriptor), ArtifactError> {
        let diff_id = self.annotations.get(DIFF_ID_ANNOTATION);
        let diff_id = diff_id.filter(|_| self.media_type == media_type);
        let diff_id = diff_id.ok_or(ArtifactError::Parts)?.parse()?;
        Ok((diff_id, Descriptor { digest: self.digest.parse()?, size: ByteCount(self.size) }))
    }
}

/// The media type of an artifact.
pub const MEDIA_TYPE: &str = MANIFEST_TYPES[0];

/// Writes the artifact about an image, whose manifest has a media type; `config` is [`EMPTY_CONFIG`]. The
/// same layers give the same bytes.
pub fn encode(
    subject: (&str, Descriptor),
    config: Descriptor,
    layers: &ConvertedLayers,
) -> Vec<u8> {
    let parts = layers.iter().flat_map(|(diff_id, layer)| {
        let of = PART_TYPES.into_iter().zip(layer.blobs());
        of.map(|(media_type, part)| WireDescriptor::of_layer(media_type, part, diff_id))
    });
    let artifact = WireArtifact {
        schema_version: 2,
        media_type: MEDIA_TYPE.to_owned(),
        artifact_type: ARTIFACT_TYPE.to_owned(),
        config: WireDescriptor::new(EMPTY_TYPE, config),
        layers: parts.collect(),
        subject: WireDescriptor::new(subject.0, subject.1),
    };
    serde_json::to_vec(&artifact).expect("texts and numbers are valid JSON")
}

/// Reads the artifact about the image with this manifest.
pub fn decode(bytes: &[u8], subject: &Digest) -> Result<ConvertedLayers, ArtifactError> {
    let artifact: WireArtifact = serde_json::from_slice(bytes)?;
    if artifact.artifact_type != ARTIFACT_TYPE {
        return Err(ArtifactError::Type(crate::wire::short(&artifact.artifact_type)));
    }
    if artifact.subject.digest != subject.to_string() {
        let found = crate::wire::short(&artifact.subject.digest);
        return Err(ArtifactError::Subject { expected: *subject, found });
    }
    let (layers, rest) = artifact.layers.as_chunks::<3>();
    if !rest.is_empty() {
        return Err(ArtifactError::Parts);
    }
    let mut found = ConvertedLayers::new();
    for [index, frames, table] in layers {
        let (diff_id, index) = index.read(PART_TYPES[0])?;
        let (of_frames, frames) = frames.read(PART_TYPES[1])?;
        let (of_table, table) = table.read(PART_TYPES[2])?;
        if (of_frames, of_table) != (diff_id, diff_id) {
            return Err(ArtifactError::Parts);
        }
        if found.insert(diff_id, ConvertedLayer { index, frames, table }).is_some() {
            return Err(ArtifactError::Twice(diff_id));
        }
    }
    Ok(found)
}
