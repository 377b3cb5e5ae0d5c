//! Images put together in memory.

use longshore_types::{ByteCount, Digest};
use serde_json::json;

use super::fake::FakeSource;
use crate::config::host_architecture;
use crate::tar::tests::Archive;
use crate::unpack::LayerIdentity;
use crate::unpack::tests::{digest_of, gzip};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(super) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const INDEX: &str = "application/vnd.oci.image.index.v1+json";

#[derive(Clone, Default)]
pub(super) struct ImageParts {
    layers: Vec<(String, Vec<u8>)>,
    diff_ids: Vec<Digest>,
    architecture: Option<&'static str>,
    edit_config: Option<Edit>,
    edit_manifest: Option<Edit>,
}

/// What becomes of a document that was right.
type Edit = fn(&str) -> Vec<u8>;

impl ImageParts {
    /// A layer of any bytes; `plain` is what they unpack to.
    pub fn layer(mut self, suffix: &str, blob: Vec<u8>, plain: &[u8]) -> Self {
        self.layers.push((format!("{LAYER}{suffix}"), blob));
        self.diff_ids.push(digest_of(plain));
        self
    }

    pub fn plain(self, archive: Archive) -> Self {
        let plain = archive.finish();
        self.layer("", plain.clone(), &plain)
    }

    pub fn gzip(self, archive: Archive) -> Self {
        let plain = archive.finish();
        self.layer("+gzip", gzip(&plain), &plain)
    }

    pub fn zstd(self, archive: Archive) -> Self {
        let plain = archive.finish();
        self.layer("+zstd", zstd::encode_all(&plain[..], 1).unwrap(), &plain)
    }

    pub fn diff_ids(mut self, diff_ids: &[Digest]) -> Self {
        self.diff_ids = diff_ids.to_vec();
        self
    }

    pub fn edit_config(mut self, edit: Edit) -> Self {
        self.edit_config = Some(edit);
        self
    }

    pub fn edit_manifest(mut self, edit: Edit) -> Self {
        self.edit_manifest = Some(edit);
        self
    }

    pub fn architecture(mut self, architecture: &'static str) -> Self {
        self.architecture = Some(architecture);
        self
    }

    pub fn blob(&self, idx: usize) -> Digest {
        digest_of(&self.layers[idx].1)
    }

    pub fn blob_size(&self, idx: usize) -> u64 {
        self.layers[idx].1.len() as u64
    }

    pub fn bytes(&self, idx: usize) -> &[u8] {
        &self.layers[idx].1
    }

    pub fn identity(&self, idx: usize) -> LayerIdentity {
        let (blob, size) = (self.blob(idx), ByteCount(self.blob_size(idx)));
        LayerIdentity { blob, size, diff_id: self.diff_ids[idx] }
    }

    pub fn n_layers(&self) -> usize {
        self.layers.len()
    }

    fn config(&self) -> Vec<u8> {
        let config = json!({
            "architecture": self.architecture.unwrap_or(host_architecture()),
            "os": "linux",
            "config": { "Cmd": ["/bin/sh"], "Env": null },
            "rootfs": { "type": "layers", "diff_ids": self.diff_ids },
            "history": null,
        });
        edited(&config, self.edit_config)
    }

    pub fn config_digest(&self) -> Digest {
        digest_of(&self.config())
    }

    /// Puts everything into a source and gives the manifest's digest.
    pub fn publish(self, source: &FakeSource) -> Digest {
        let describe = |media_type: &str, bytes: &[u8]| json!({ "mediaType": media_type, "digest": digest_of(bytes), "size": bytes.len() });
        let config = self.config();
        let layers: Vec<_> = self.layers.iter().map(|(kind, blob)| describe(kind, blob)).collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": describe(CONFIG, &config),
            "layers": layers,
        });
        for (_, blob) in self.layers {
            source.add_layer(blob);
        }
        source.add_blob(config);
        source.add_manifest(MANIFEST, edited(&manifest, self.edit_manifest))
    }
}

fn edited(document: &serde_json::Value, edit: Option<Edit>) -> Vec<u8> {
    let text = document.to_string();
    edit.map_or_else(|| text.clone().into_bytes(), |edit| edit(&text))
}
