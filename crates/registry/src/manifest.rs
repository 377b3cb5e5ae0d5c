//! What the registry must understand of a manifest: its kind, and what it refers to.

use std::collections::BTreeMap;

use longshore_image::converted::artifact::ARTIFACT_TYPE;
use longshore_types::Digest;
use serde::{Deserialize, Serialize};

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
    /// The manifest that this one is about: a signature of it, say. It need not exist.
    pub(crate) subject: Option<Digest>,
    /// What kind of thing it is, for those who look for what is about a manifest.
    artifact_type: Option<String>,
    annotations: Option<Annotations>,
}

type Annotations = BTreeMap<String, String>;

/// A manifest as the list of those about its subject shows it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Referrer<'a> {
    media_type: &'static str,
    digest: &'a Digest,
    size: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    artifact_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<&'a Annotations>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: u32,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    subject: Option<Descriptor>,
    artifact_type: Option<String>,
    annotations: Option<Annotations>,
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
        document.read_as(kind)
    }

    /// Whether it is what the registry makes itself, and takes from nobody.
    pub(crate) fn is_converted(&self) -> bool {
        self.artifact_type.as_deref() == Some(ARTIFACT_TYPE)
    }

    /// The descriptor of this manifest for the list of those about its subject, in JSON.
    pub(crate) fn as_referrer(&self, digest: &Digest, size: usize) -> Vec<u8> {
        let referrer = Referrer {
            media_type: self.kind.media_type(),
            digest,
            size,
            artifact_type: self.artifact_type.as_deref(),
            annotations: self.annotations.as_ref(),
        };
        serde_json::to_vec(&referrer).expect("texts and numbers are valid JSON")
    }
}

impl Document {
    fn read_as(self, kind: Kind) -> Result<Manifest, ManifestError> {
        let (blobs, manifests) = match (kind, &self.config, &self.layers, &self.manifests) {
            (Kind::OciManifest | Kind::DockerManifest, Some(config), Some(layers), None) => {
                let stored = layers.iter().filter(|layer| !layer.is_elsewhere());
                (references(std::iter::once(config).chain(stored))?, Vec::new())
            }
            (Kind::OciIndex | Kind::DockerList, None, None, Some(manifests)) => {
                (Vec::new(), references(manifests)?)
            }
            (Kind::OciManifest | Kind::DockerManifest, ..) => {
                return Err(ManifestError::Shape {
                    kind: "an image manifest",
                    must: "config and layers",
                    must_not: "manifests",
                });
            }
            (Kind::OciIndex | Kind::DockerList, ..) => {
                return Err(ManifestError::Shape {
                    kind: "an index",
                    must: "manifests",
                    must_not: "config or layers",
                });
            }
        };
        let subject = self.subject.as_ref().map(Descriptor::reference).transpose()?;
        // Before there was a field for it, the type of the config told what an artifact is.
        let by_config = self.config.map(|config| config.media_type);
        Ok(Manifest {
            kind,
            blobs,
            manifests,
            subject: subject.map(|subject| subject.digest),
            artifact_type: self.artifact_type.filter(|kind| !kind.is_empty()).or(by_config),
            annotations: self.annotations,
        })
    }
}

fn references<'a>(
    descriptors: impl IntoIterator<Item = &'a Descriptor>,
) -> Result<Vec<Reference>, ManifestError> {
    descriptors.into_iter().map(Descriptor::reference).collect()
}

#[cfg(test)]
mod tests;
