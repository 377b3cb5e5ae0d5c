//! Manifests and indexes as registries store them, parsed into what a pull needs.

use longshore_types::{ByteCount, Digest, ParseError};
use serde::Deserialize;

use crate::compression::Compression;
use crate::config::host_architecture;
use crate::wire::{LookalikeKey, Shape, short};

/// Media types of an image's manifest.
pub const MANIFEST_TYPES: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// Media types of a list of manifests, one per platform.
pub const INDEX_TYPES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// As many platforms as an error lists.
const MAX_OFFERED: usize = 20;

const CONFIG_TYPES: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// Why a manifest or index is refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is not JSON of the expected shape.
    #[error("it is neither an image manifest nor an index")]
    Json(#[from] serde_json::Error),
    /// It has one meaning for us and another for programs that read keys without regard to case.
    #[error("it can be read in two ways")]
    Ambiguous(#[from] LookalikeKey),
    /// It is stored as something else than it says it is, or could be read as either.
    #[error("it is stored as {stated:?} but says that it is {found:?}")]
    TypeConfusion {
        /// By the source.
        stated: String,
        /// In the document.
        found: String,
    },
    /// Neither a manifest nor an index that we know.
    #[error("the media type {0:?} is not one of an image")]
    MediaType(String),
    /// The config is not an image's: a chart, a signature, a policy.
    #[error("its config has the media type {0:?}, so it is not a container image")]
    NotAnImage(String),
    /// A layer that is not a file system.
    #[error("a layer has the media type {0:?}")]
    LayerType(String),
    /// A digest of another algorithm, or none.
    #[error("a descriptor's digest")]
    Digest(#[from] ParseError),
    /// The index has nothing for this machine.
    #[error("there is no image for linux/{host}; there are {offered:?}")]
    NoPlatform {
        /// This machine's architecture.
        host: &'static str,
        /// What the index has, as `os/architecture`; the first of them.
        offered: Vec<String>,
    },
}

/// A blob or manifest that a document points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// Of its bytes.
    pub digest: Digest,
    /// How many they are.
    pub size: ByteCount,
}

/// What a digest can stand for.
#[derive(Debug, PartialEq, Eq)]
pub enum Document {
    /// A manifest of one image.
    Manifest {
        /// The image config.
        config: Descriptor,
        /// Lowest first.
        layers: Vec<Descriptor>,
    },
    /// The one entry of an index that is for this machine.
    Index(Descriptor),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireDocument {
    media_type: Option<String>,
    config: Option<WireDescriptor>,
    layers: Option<Vec<WireDescriptor>>,
    manifests: Option<Vec<WireDescriptor>>,
}

/// The keys of a document that we read.
static DOCUMENT: Shape = Shape::Object(&[
    ("mediaType", Shape::Any),
    ("config", DESCRIPTOR),
    ("layers", Shape::List(&DESCRIPTOR)),
    ("manifests", Shape::List(&DESCRIPTOR)),
]);

const DESCRIPTOR: Shape = Shape::Object(&[
    ("mediaType", Shape::Any),
    ("digest", Shape::Any),
    ("size", Shape::Any),
    ("platform", Shape::Object(&[("os", Shape::Any), ("architecture", Shape::Any)])),
]);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<WirePlatform>,
}

#[derive(Deserialize)]
struct WirePlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
}

impl WireDescriptor {
    fn check(&self) -> Result<Descriptor, ManifestError> {
        Ok(Descriptor { digest: self.digest.parse()?, size: ByteCount(self.size) })
    }
}

impl Document {
    /// Parses a document; `stated` is the media type by the source, parameters and all.
    ///
    /// A document with both layers and manifests, or one that contradicts the source, is refused:
    /// two programs would run two different images (CVE-2021-41190).
    pub fn parse(bytes: &[u8], stated: &str) -> Result<Self, ManifestError> {
        let wire: WireDocument = serde_json::from_slice(bytes)?;
        DOCUMENT.check(bytes)?;
        let stated = stated.split(';').next().unwrap_or_default().trim();
        let own = wire.media_type.as_deref().unwrap_or(stated);
        let confusion = |found: &str| ManifestError::TypeConfusion {
            stated: short(stated),
            found: short(found),
        };
        if own != stated {
            return Err(confusion(own));
        }
        match (&wire.manifests, &wire.config, &wire.layers) {
            (Some(manifests), None, None) if INDEX_TYPES.contains(&stated) => {
                choose(manifests).map(Self::Index)
            }
            (None, Some(config), layers) if MANIFEST_TYPES.contains(&stated) => {
                manifest(config, layers.as_deref().unwrap_or_default())
            }
            _ if !INDEX_TYPES.contains(&stated) && !MANIFEST_TYPES.contains(&stated) => {
                Err(ManifestError::MediaType(short(stated)))
            }
            (Some(_), _, _) => Err(confusion("an index")),
            (None, _, _) => Err(confusion("a manifest")),
        }
    }
}

fn manifest(config: &WireDescriptor, layers: &[WireDescriptor]) -> Result<Document, ManifestError> {
    if !CONFIG_TYPES.contains(&config.media_type.as_str()) {
        return Err(ManifestError::NotAnImage(short(&config.media_type)));
    }
    for layer in layers {
        if Compression::declared_by(&layer.media_type).is_none() {
            return Err(ManifestError::LayerType(short(&layer.media_type)));
        }
    }
    Ok(Document::Manifest {
        config: config.check()?,
        layers: layers.iter().map(WireDescriptor::check).collect::<Result<_, _>>()?,
    })
}

/// The first entry for this machine. An index of one entry without a platform means any.
fn choose(manifests: &[WireDescriptor]) -> Result<Descriptor, ManifestError> {
    let host = host_architecture();
    let fits = |entry: &&WireDescriptor| match &entry.platform {
        Some(platform) => platform.os == "linux" && platform.architecture == host,
        None => manifests.len() == 1,
    };
    let Some(chosen) = manifests.iter().find(fits) else {
        let platforms = manifests.iter().filter_map(|entry| entry.platform.as_ref());
        let offered = platforms.map(|p| short(&format!("{}/{}", p.os, p.architecture)));
        let offered = offered.take(MAX_OFFERED).collect();
        return Err(ManifestError::NoPlatform { host, offered });
    };
    if !MANIFEST_TYPES.contains(&chosen.media_type.as_str()) {
        return Err(ManifestError::MediaType(short(&chosen.media_type)));
    }
    chosen.check()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const OCI_MANIFEST: &str = MANIFEST_TYPES[0];
    const OCI_INDEX: &str = INDEX_TYPES[0];

    fn digest(of: u8) -> Digest {
        Digest::from_sha256([of; 32])
    }

    fn parse(document: &serde_json::Value, stated: &str) -> Result<Document, ManifestError> {
        Document::parse(document.to_string().as_bytes(), stated)
    }

    fn descriptor(media_type: &str, of: u8) -> serde_json::Value {
        json!({ "mediaType": media_type, "digest": digest(of), "size": u64::from(of) })
    }

    #[test]
    fn manifests_of_both_families() {
        for (own, config, layer) in [
            (OCI_MANIFEST, CONFIG_TYPES[0], "application/vnd.oci.image.layer.v1.tar+gzip"),
            (
                MANIFEST_TYPES[1],
                CONFIG_TYPES[1],
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
            ),
        ] {
            let document = json!({
                "schemaVersion": 2, "mediaType": own,
                "config": descriptor(config, 1), "layers": [descriptor(layer, 2)],
            });
            let expect = |of| Descriptor { digest: digest(of), size: ByteCount(of.into()) };
            let expected = Document::Manifest { config: expect(1), layers: vec![expect(2)] };
            assert_eq!(parse(&document, own).unwrap(), expected);
            assert_eq!(parse(&document, &format!("{own}; charset=utf-8")).unwrap(), expected);
            assert!(matches!(
                parse(&document, OCI_INDEX),
                Err(ManifestError::TypeConfusion { .. })
            ));
        }
    }

    #[test]
    fn an_index_gives_the_entry_for_this_machine() {
        let entry = |os, arch, of| {
            let mut entry = descriptor(OCI_MANIFEST, of);
            entry["platform"] = json!({ "os": os, "architecture": arch });
            entry
        };
        let index = |entries: Vec<serde_json::Value>| json!({ "manifests": entries });
        let host = host_architecture();
        let both = index(vec![
            entry("unknown", "unknown", 1),
            entry("windows", host, 2),
            entry("linux", host, 3),
        ]);
        let chosen = Descriptor { digest: digest(3), size: ByteCount(3) };
        assert_eq!(parse(&both, OCI_INDEX).unwrap(), Document::Index(chosen));
        let other = index(vec![entry("linux", "z80", 1)]);
        match parse(&other, OCI_INDEX) {
            Err(ManifestError::NoPlatform { offered, .. }) => assert_eq!(offered, ["linux/z80"]),
            other => panic!("{other:?}"),
        }
        let nested = index(vec![descriptor(OCI_INDEX, 1)]);
        assert!(matches!(parse(&nested, OCI_INDEX), Err(ManifestError::MediaType(_))));
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let config = || descriptor(CONFIG_TYPES[0], 1);
        for (document, stated) in [
            (json!({ "config": config(), "layers": [], "manifests": [] }), OCI_MANIFEST),
            (json!({ "config": config(), "layers": [], "manifests": [] }), OCI_INDEX),
            (json!({ "config": config(), "layers": [] }), OCI_INDEX),
            (json!({ "manifests": [] }), OCI_MANIFEST),
            (json!({ "config": config(), "layers": [] }), "text/plain"),
            (json!({ "config": descriptor("application/x.chart", 1), "layers": [] }), OCI_MANIFEST),
            (json!({ "config": config(), "layers": [descriptor("text/plain", 2)] }), OCI_MANIFEST),
            (
                json!({ "config": { "mediaType": CONFIG_TYPES[0], "digest": "sha512:00", "size": 1 } }),
                OCI_MANIFEST,
            ),
            (json!([]), OCI_MANIFEST),
        ] {
            assert!(parse(&document, stated).is_err(), "{document} as {stated}");
        }
    }
}
