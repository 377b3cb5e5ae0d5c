//! The small files beside layers and for images.
//!
//! An image's record keeps the config's exact bytes and is parsed by the same code as one that comes
//! from a registry, so there is one reader of configs.

use std::path::Path;
use std::sync::Arc;

use longshore_types::{ByteCount, Digest};
use serde::{Deserialize, Serialize};

use super::{Inner, Staging, StoreIoError, sync_directory};
use crate::config::ConfigFile;
use crate::unpack::LayerReport;

/// Raised when a file's meaning changes; a file with another number is from a newer release.
const VERSION: u32 = 1;

/// An image as the store knows it.
#[derive(Debug, Clone)]
pub(crate) struct StoredImage {
    pub digest: Digest,
    pub manifest: Digest,
    pub config: ConfigFile,
    pub config_text: String,
    /// DiffIDs of the layers that are mounted, lowest first: those below a layer that hides
    /// everything are left out.
    pub visible_layers: Vec<Digest>,
    pub has_attributes: bool,
}

#[derive(Serialize, Deserialize)]
struct ImageRecord {
    version: u32,
    digest: Digest,
    manifest: Digest,
    layers: Vec<Digest>,
    attributes: bool,
    config: String,
}

#[derive(Serialize, Deserialize)]
struct LayerRecord {
    version: u32,
    entries: u64,
    unpacked: ByteCount,
    whiteouts: u64,
    dropped_devices: u64,
    dropped_xattrs: u64,
    hides_all: bool,
    /// Hexadecimal, because paths need not be UTF-8.
    implicit_directories: Vec<String>,
}

/// Why a record of ours cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("reading it")]
    Io(#[from] std::io::Error),
    #[error("it is not a record of ours")]
    Json(#[from] serde_json::Error),
    #[error("it has the version {0}, this release knows {VERSION}")]
    Version(u32),
    #[error("it has another image's name")]
    Name,
    #[error("its config")]
    Config(#[from] crate::config::ConfigError),
    #[error("its layer {0} is not here")]
    LayerMissing(Digest),
}

impl StoredImage {
    pub fn read(path: &Path) -> Result<Self, RecordError> {
        let record: ImageRecord = serde_json::from_slice(&std::fs::read(path)?)?;
        if record.version != VERSION {
            return Err(RecordError::Version(record.version));
        }
        if path.file_stem() != Some(record.digest.hex().as_ref()) {
            return Err(RecordError::Name);
        }
        Ok(Self {
            digest: record.digest,
            manifest: record.manifest,
            config: ConfigFile::parse(record.config.as_bytes())?,
            config_text: record.config,
            visible_layers: record.layers,
            has_attributes: record.attributes,
        })
    }

    fn to_record(&self) -> ImageRecord {
        ImageRecord {
            version: VERSION,
            digest: self.digest,
            manifest: self.manifest,
            layers: self.visible_layers.clone(),
            attributes: self.has_attributes,
            config: self.config_text.clone(),
        }
    }
}

impl Inner {
    /// Makes an image visible, on the disk first.
    pub fn commit_image(self: &Arc<Self>, image: StoredImage) -> Result<(), StoreIoError> {
        let text = serde_json::to_vec(&image.to_record()).expect("a record has only JSON's types");
        let staging = Staging::new(self)?;
        let staged = staging.write("record", &text)?;
        let path = self.record_path(&image.digest);
        std::fs::rename(&staged, &path).map_err(StoreIoError::of("renaming to", &path))?;
        sync_directory(&self.directory("images"))?;
        self.state().images.insert(image.digest, image);
        Ok(())
    }

    pub fn read_layer_report(&self, diff_id: &Digest) -> Result<LayerReport, StoreIoError> {
        let path = self.layer_path(diff_id).join("report.json");
        read_report(&path)
            .map_err(|error| StoreIoError::of("reading", &path)(std::io::Error::other(error)))
    }
}

/// The file `report.json` of a layer.
pub(crate) fn report_text(report: &LayerReport) -> Vec<u8> {
    let LayerReport {
        entries,
        unpacked,
        whiteouts,
        dropped_devices,
        dropped_xattrs,
        hides_all,
        implicit_directories,
    } = report;
    let record = LayerRecord {
        version: VERSION,
        entries: *entries,
        unpacked: *unpacked,
        whiteouts: *whiteouts,
        dropped_devices: *dropped_devices,
        dropped_xattrs: *dropped_xattrs,
        hides_all: *hides_all,
        implicit_directories: implicit_directories.iter().map(|path| to_hex(path)).collect(),
    };
    serde_json::to_vec(&record).expect("a record has only JSON's types")
}

fn read_report(path: &Path) -> Result<LayerReport, RecordError> {
    let record: LayerRecord = serde_json::from_slice(&std::fs::read(path)?)?;
    if record.version != VERSION {
        return Err(RecordError::Version(record.version));
    }
    let paths = record.implicit_directories.iter();
    Ok(LayerReport {
        entries: record.entries,
        unpacked: record.unpacked,
        whiteouts: record.whiteouts,
        dropped_devices: record.dropped_devices,
        dropped_xattrs: record.dropped_xattrs,
        hides_all: record.hides_all,
        implicit_directories: paths
            .map(|hex| from_hex(hex).ok_or(RecordError::Name))
            .collect::<Result<_, _>>()?,
    })
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}
