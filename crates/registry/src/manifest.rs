//! What the registry must understand of a manifest: its kind, and what it refers to.

use longshore_types::Digest;
use serde::Deserialize;

/// The largest manifest that is taken, in bytes; the specification asks for at least this.
pub(crate) const MAX_MANIFEST: usize = 4 << 20;

/// The kinds of manifest that a registry of ours keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    OciManifest,
    OciIndex,
    DockerManifest,
    DockerList,
}

impl Kind {
    const ALL: [Self; 4] =
        [Self::OciManifest, Self::OciIndex, Self::DockerManifest, Self::DockerList];

    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Self::OciManifest => "application/vnd.oci.image.manifest.v1+json",
            Self::OciIndex => "application/vnd.oci.image.index.v1+json",
            Self::DockerManifest => "application/vnd.docker.distribution.manifest.v2+json",
            Self::DockerList => "application/vnd.docker.distribution.manifest.list.v2+json",
        }
    }

    fn from_media_type(text: &str) -> Result<Self, ManifestError> {
        let essence = text.split(';').next().unwrap_or_default().trim();
        Self::ALL
            .into_iter()
            .find(|kind| kind.media_type() == essence)
            .ok_or_else(|| ManifestError::MediaType(text.to_owned()))
    }
}

/// Why bytes are no manifest that the registry keeps.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ManifestError {
    #[error("the media type {0:?} is not one of OCI's or Docker's (version 2, schema 2)")]
    MediaType(String),
    #[error("a Content-Type or a mediaType in the body must say which kind of manifest this is")]
    NoMediaType,
    #[error("the Content-Type is {header} and the body's mediaType {body}; they must be equal")]
    MediaTypesDiffer { header: String, body: String },
    #[error("the body is not a manifest: {0}")]
    Json(String),
    #[error("schemaVersion is {0}; it must be 2")]
    SchemaVersion(u32),
    #[error("{kind} must have {must} and must not have {must_not}")]
    Shape { kind: &'static str, must: &'static str, must_not: &'static str },
    #[error("{0:?} is not a digest of the form sha256:<64 hexadecimal digits>")]
    Digest(String),
}

/// Something that a manifest refers to, which must be there first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reference {
    pub(crate) digest: Digest,
    /// In bytes, as the manifest states it.
    pub(crate) size: u64,
}

/// What a manifest says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) kind: Kind,
    /// Config and layers.
    pub(crate) blobs: Vec<Reference>,
    /// The manifests of an index.
    pub(crate) manifests: Vec<Reference>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: u32,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    // What `subject` names need not exist; it is read only so that a malformed one is refused.
    subject: Option<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    urls: Vec<String>,
}

impl Descriptor {
    fn reference(&self) -> Result<Reference, ManifestError> {
        let digest = self.digest.parse().map_err(|_| ManifestError::Digest(self.digest.clone()))?;
        Ok(Reference { digest, size: self.size })
    }

    /// A layer that its licence keeps elsewhere is named by URL and not pushed.
    fn is_elsewhere(&self) -> bool {
        let foreign = ["nondistributable", "foreign"];
        !self.urls.is_empty() && foreign.iter().any(|word| self.media_type.contains(word))
    }
}

impl Manifest {
    /// Reads a manifest that was sent with this `Content-Type`.
    ///
    /// The two must agree, and a body must have the fields of its kind and not those of the other:
    /// bytes that one client reads as an image and another as an index (CVE-2021-41190) are refused.
    pub(crate) fn parse(content_type: Option<&str>, bytes: &[u8]) -> Result<Self, ManifestError> {
        let document: Document = serde_json::from_slice(bytes)
            .map_err(|error| ManifestError::Json(error.to_string()))?;
        if document.schema_version != 2 {
            return Err(ManifestError::SchemaVersion(document.schema_version));
        }
        let header = content_type.map(Kind::from_media_type).transpose()?;
        let body = document.media_type.as_deref().map(Kind::from_media_type);
        let kind = match (header, body.transpose()?) {
            (Some(header), Some(body)) if header != body => {
                return Err(ManifestError::MediaTypesDiffer {
                    header: header.media_type().to_owned(),
                    body: body.media_type().to_owned(),
                });
            }
            (Some(kind), _) | (None, Some(kind)) => kind,
            (None, None) => return Err(ManifestError::NoMediaType),
        };
        if let Some(subject) = &document.subject {
            subject.reference()?;
        }
        document.references(kind)
    }
}

impl Document {
    fn references(self, kind: Kind) -> Result<Manifest, ManifestError> {
        match (kind, self.config, self.layers, self.manifests) {
            (Kind::OciManifest | Kind::DockerManifest, Some(config), Some(layers), None) => {
                let stored = layers.iter().filter(|layer| !layer.is_elsewhere());
                let blobs = std::iter::once(&config).chain(stored);
                Ok(Manifest {
                    kind,
                    blobs: blobs.map(Descriptor::reference).collect::<Result<_, _>>()?,
                    manifests: Vec::new(),
                })
            }
            (Kind::OciIndex | Kind::DockerList, None, None, Some(manifests)) => Ok(Manifest {
                kind,
                blobs: Vec::new(),
                manifests: manifests.iter().map(Descriptor::reference).collect::<Result<_, _>>()?,
            }),
            (Kind::OciManifest | Kind::DockerManifest, ..) => Err(ManifestError::Shape {
                kind: "an image manifest",
                must: "config and layers",
                must_not: "manifests",
            }),
            (Kind::OciIndex | Kind::DockerList, ..) => Err(ManifestError::Shape {
                kind: "an index",
                must: "manifests",
                must_not: "config or layers",
            }),
        }
    }
}

#[cfg(test)]
mod tests;
