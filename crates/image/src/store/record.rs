//! The small files beside layers and for images.
//!
//! An image's record keeps the config's exact bytes and is parsed by the same code as one that comes
//! from a registry, so there is one reader of configs.

use std::path::Path;
use std::sync::Arc;

use longshore_types::{ByteCount, Digest};
use serde::{Deserialize, Serialize};

use super::{Form, Inner, Known, Staging, StoreIoError};
use crate::config::ConfigFile;
use crate::unpack::LayerReport;

/// Raised when a file's meaning changes; a file with another number is from a newer release.
const VERSION: u32 = 1;
/// The version of a record of an image in EROFS, so that a release that knows directories alone
/// finds it unusable and pulls the image again.
const EROFS_VERSION: u32 = 2;

/// In the directory of a layer, what was found in its archive.
pub(crate) const REPORT: &str = "report.json";

/// An image as the store knows it.
#[derive(Debug, Clone)]
pub(crate) struct StoredImage {
    pub digest: Digest,
    pub manifest: Digest,
    pub config: ConfigFile,
    pub config_text: String,
    pub form: Form,
    /// DiffIDs of the layers that are mounted, lowest first: those below a layer that hides
    /// everything are left out.
    pub visible_layers: Vec<Digest>,
    /// DiffIDs of the layers whose data the metadata file points into, in its order.
    pub devices: Vec<Digest>,
    /// Whether a directory of attributes belongs to it.
    pub has_attributes: bool,
}

#[derive(Serialize, Deserialize)]
struct ImageRecord {
    version: u32,
    digest: Digest,
    manifest: Digest,
    layers: Vec<Digest>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    devices: Vec<Digest>,
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
    #[error("it has the version {0}, this release knows {VERSION} and {EROFS_VERSION}")]
    Version(u32),
    #[error("this machine's kernel does not mount EROFS")]
    Form,
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
        let form = match record.version {
            VERSION => Form::Directories,
            EROFS_VERSION => Form::Erofs,
            other => return Err(RecordError::Version(other)),
        };
        if path.file_stem() != Some(record.digest.hex().as_ref()) {
            return Err(RecordError::Name);
        }
        Ok(Self {
            digest: record.digest,
            manifest: record.manifest,
            config: ConfigFile::parse(record.config.as_bytes())?,
            config_text: record.config,
            form,
            visible_layers: record.layers,
            devices: record.devices,
            has_attributes: record.attributes,
        })
    }

    /// Whether anything but its record and layers belongs to it.
    pub fn has_files_of_its_own(&self) -> bool {
        self.has_attributes || self.form == Form::Erofs
    }

    fn to_record(&self) -> ImageRecord {
        ImageRecord {
            version: match self.form {
                Form::Directories => VERSION,
                Form::Erofs => EROFS_VERSION,
            },
            digest: self.digest,
            manifest: self.manifest,
            layers: self.visible_layers.clone(),
            devices: self.devices.clone(),
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
        staging.write("record", &text)?;
        staging.rename_file("record", &self.record_path(&image.digest))?;
        let known = Known { tree: self.tree(&image), stored: image };
        self.state().images.insert(known.stored.digest, known);
        Ok(())
    }

    pub fn read_layer_report(
        &self,
        form: Form,
        diff_id: &Digest,
    ) -> Result<LayerReport, StoreIoError> {
        let path = self.layer_path(form, diff_id).join(REPORT);
        read_report(&path)
            .map_err(|error| StoreIoError::of("reading", &path)(std::io::Error::other(error)))
    }
}

/// The bytes of that file.
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
