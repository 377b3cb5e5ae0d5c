//! An image in files: which manifests it has, in the order in which a registry takes them, and where
//! the bytes of its blobs are.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use longshore_types::Digest;
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::archive::{Archive, OpenArchiveError};
use crate::client::{BlobSource, RegistryClientError};

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// How deep indexes may lie in indexes.
const MAX_DEPTH: usize = 4;
/// The largest JSON document that is read, in bytes.
const MAX_DOCUMENT: u64 = 4 << 20;

/// Why files are not an image that can be pushed.
#[derive(Debug, thiserror::Error)]
pub enum LocalImageError {
    /// The files cannot be read.
    #[error(transparent)]
    Archive(#[from] OpenArchiveError),
    /// A file of the image cannot be read.
    #[error(transparent)]
    Read(#[from] RegistryClientError),
    /// There is nothing that we know.
    #[error(
        "{path} is no OCI layout (it has no index.json) and no docker archive (it has no manifest.json)"
    )]
    Unknown {
        /// What was opened.
        path: String,
    },
    /// A file that the image names is not there.
    #[error("the image lacks {0}")]
    Missing(String),
    /// A document cannot be understood.
    #[error("{name} is malformed")]
    Malformed {
        /// The document.
        name: String,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// A document is larger than any manifest.
    #[error("{0} is larger than 4 MiB")]
    TooLarge(String),
    /// Indexes lie in indexes without end.
    #[error("indexes lie in indexes more than {MAX_DEPTH} deep")]
    TooDeep,
    /// The choice among several images is the caller's.
    #[error("there are {} images; choose one of: {}", names.len(), names.join(", "))]
    Several {
        /// Their names.
        names: Vec<String>,
    },
    /// No image has the wanted name.
    #[error("there is no image named {wanted:?}; there are: {}", names.join(", "))]
    NoSuchName {
        /// The name.
        wanted: String,
        /// The names that there are.
        names: Vec<String>,
    },
}

/// A blob and where its bytes are.
#[derive(Debug, Clone)]
pub struct Blob {
    /// Its digest, as the image states it; the registry checks it.
    pub digest: Digest,
    /// Its bytes.
    pub source: BlobSource,
}

/// A manifest or index of the image.
#[derive(Debug, Clone)]
pub struct LocalManifest {
    /// The digest of `bytes`.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Its bytes.
    pub bytes: Bytes,
}

/// An image that lies in files.
#[derive(Debug)]
pub struct LocalImage {
    blobs: Vec<Blob>,
    manifests: Vec<LocalManifest>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    #[serde(default)]
    urls: Vec<String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// A layer that its licence keeps elsewhere is named by URL and is in no archive.
    fn is_elsewhere(&self) -> bool {
        let foreign = ["nondistributable", "foreign"];
        !self.urls.is_empty() && foreign.iter().any(|word| self.media_type.contains(word))
    }
}

/// What is read of manifests and indexes alike.
#[derive(Deserialize)]
struct Document {
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

/// An image of a docker archive.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl LocalImage {
    /// Opens an OCI layout, an OCI archive or a docker archive, and chooses the image named `wanted`
    /// when there are several. Reads documents and, for a docker archive, hashes layers: blocks.
    pub fn open(path: &Path, wanted: Option<&str>) -> Result<Self, LocalImageError> {
        let archive = Archive::open(path)?;
        // Newer dockers save both forms in one file; the OCI one keeps its digests.
        if let Some(index) = archive.find("index.json")? {
            return Self::from_oci(&archive, &index, wanted);
        }
        if let Some(list) = archive.find("manifest.json")? {
            return Self::from_docker(&archive, &list, wanted);
        }
        Err(LocalImageError::Unknown { path: path.display().to_string() })
    }

    /// The blobs, each once.
    pub fn blobs(&self) -> &[Blob] {
        &self.blobs
    }

    /// The manifests in the order in which they must be pushed; the last is the image.
    pub fn manifests(&self) -> &[LocalManifest] {
        &self.manifests
    }

    fn from_oci(
        archive: &Archive,
        index: &BlobSource,
        wanted: Option<&str>,
    ) -> Result<Self, LocalImageError> {
        let document: Document = parse("index.json", &read(index, "index.json")?)?;
        let names = |image: &Descriptor| -> Vec<String> {
            let name = image.annotations.get(REF_NAME).cloned();
            name.into_iter().chain([image.digest.to_string()]).collect()
        };
        let image = choose(&document.manifests, wanted, names)?;
        let mut found = Self { blobs: Vec::new(), manifests: Vec::new() };
        found.add_manifest(archive, image, MAX_DEPTH)?;
        Ok(found)
    }

    fn add_manifest(
        &mut self,
        archive: &Archive,
        descriptor: &Descriptor,
        depth: usize,
    ) -> Result<(), LocalImageError> {
        let depth = depth.checked_sub(1).ok_or(LocalImageError::TooDeep)?;
        let digest = descriptor.digest;
        let name = blob_name(&digest);
        let bytes = read(&find(archive, &name)?, &name)?;
        let document: Document = parse(&name, &bytes)?;
        if [OCI_INDEX, DOCKER_LIST].contains(&descriptor.media_type.as_str()) {
            for child in &document.manifests {
                self.add_manifest(archive, child, depth)?;
            }
        }
        for blob in document.config.iter().chain(&document.layers) {
            if !blob.is_elsewhere() {
                let source = find(archive, &blob_name(&blob.digest))?;
                self.add_blob(blob.digest, source);
            }
        }
        if self.manifests.iter().all(|known| known.digest != digest) {
            self.manifests.push(LocalManifest {
                digest,
                media_type: descriptor.media_type.clone(),
                bytes,
            });
        }
        Ok(())
    }

    fn add_blob(&mut self, digest: Digest, source: BlobSource) {
        if self.blobs.iter().all(|known| known.digest != digest) {
            self.blobs.push(Blob { digest, source });
        }
    }

    fn from_docker(
        archive: &Archive,
        list: &BlobSource,
        wanted: Option<&str>,
    ) -> Result<Self, LocalImageError> {
        let images: Vec<DockerImage> = parse("manifest.json", &read(list, "manifest.json")?)?;
        // One without a tag is known by its config.
        let names = |image: &DockerImage| match image.repo_tags.as_deref() {
            None | Some([]) => vec![image.config.clone()],
            Some(tags) => tags.to_vec(),
        };
        let image = choose(&images, wanted, names)?;
        let mut found = Self { blobs: Vec::new(), manifests: Vec::new() };
        let mut add = |name: &str, media_type: &str| {
            let source = find(archive, name)?;
            let digest = hash(&source)?;
            let descriptor = json!({
                "mediaType": media_type, "digest": digest, "size": source.length(),
            });
            found.add_blob(digest, source);
            Ok::<_, LocalImageError>(descriptor)
        };
        let config = add(&image.config, "application/vnd.oci.image.config.v1+json")?;
        let layers = image
            .layers
            .iter()
            .map(|layer| add(layer, "application/vnd.oci.image.layer.v1.tar"))
            .collect::<Result<Vec<_>, _>>()?;
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers,
        });
        let bytes = Bytes::from(manifest.to_string());
        found.manifests.push(LocalManifest {
            digest: Digest::from_sha256(Sha256::digest(&bytes).into()),
            media_type: OCI_MANIFEST.to_owned(),
            bytes,
        });
        Ok(found)
    }
}

/// The image with the wanted name, or the only one.
fn choose<'a, T>(
    images: &'a [T],
    wanted: Option<&str>,
    names: impl Fn(&T) -> Vec<String>,
) -> Result<&'a T, LocalImageError> {
    let all = || images.iter().flat_map(&names).collect();
    match (wanted, images) {
        (None, [image]) => Ok(image),
        (None, _) => Err(LocalImageError::Several { names: all() }),
        (Some(wanted), images) => images
            .iter()
            .find(|image| names(image).iter().any(|name| name == wanted))
            .ok_or_else(|| LocalImageError::NoSuchName { wanted: wanted.to_owned(), names: all() }),
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn find(archive: &Archive, name: &str) -> Result<BlobSource, LocalImageError> {
    archive.find(name)?.ok_or_else(|| LocalImageError::Missing(name.to_owned()))
}

fn read(source: &BlobSource, name: &str) -> Result<Bytes, LocalImageError> {
    if source.length() > MAX_DOCUMENT {
        return Err(LocalImageError::TooLarge(name.to_owned()));
    }
    Ok(source.read(0)?)
}

fn parse<T: serde::de::DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T, LocalImageError> {
    serde_json::from_slice(bytes)
        .map_err(|source| LocalImageError::Malformed { name: name.to_owned(), source })
}

fn hash(source: &BlobSource) -> Result<Digest, LocalImageError> {
    let mut hasher = Sha256::new();
    let mut at = 0;
    while at < source.length() {
        let chunk = source.read(at)?;
        hasher.update(&chunk);
        at += chunk.len() as u64;
    }
    Ok(Digest::from_sha256(hasher.finalize().into()))
}
