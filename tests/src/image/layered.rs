//! Images put together entry by entry, for what no builder would make.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use super::{Layout, architecture, descriptor, document, sha256_of};

/// The layers of an image and how it wants to be run.
pub struct Layered {
    config: Value,
    layers: Vec<Entries>,
}

impl Layered {
    /// An image without layers; `config` is the part of the image config that says how to run it.
    pub fn new(config: Value) -> Self {
        Self { config, layers: Vec::new() }
    }

    /// One more layer on top.
    #[must_use]
    pub fn layer(mut self, entries: Entries) -> Self {
        self.layers.push(entries);
        self
    }

    /// Writes it as an OCI image layout.
    pub fn write(self, dir: &Path) -> Result<Layout> {
        let blobs = dir.join("blobs/sha256");
        std::fs::create_dir_all(&blobs)?;
        let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
        for entries in self.layers {
            let path = dir.join("layer.tar");
            std::fs::write(&path, entries.0.into_inner()?)?;
            diff_ids.push(format!("sha256:{}", sha256_of(&path)?));
            layers.push(descriptor(&path, &blobs, "application/vnd.oci.image.layer.v1.tar")?);
        }
        let config = json!({
            "architecture": architecture()?,
            "os": "linux",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = document(&config, dir, &blobs, "application/vnd.oci.image.config.v1+json")?;
        super::write_index(dir, &blobs, &config, &layers)
    }
}

/// The entries of one layer in the order they are added, owned by root, all of the same time.
pub struct Entries(Builder<Vec<u8>>);

impl Default for Entries {
    fn default() -> Self {
        Self(Builder::new(Vec::new()))
    }
}

impl Entries {
    /// A regular file.
    #[must_use]
    pub fn file(mut self, path: &str, mode: u32, contents: &[u8]) -> Self {
        let mut header = header(EntryType::Regular, mode);
        header.set_size(contents.len() as u64);
        self.0.append_data(&mut header, path, contents).expect(IN_MEMORY);
        self
    }

    /// A copy of a program of this machine, executable.
    pub fn program(self, path: &str, of: &Path) -> Result<Self> {
        let program = std::fs::read(of).with_context(|| format!("cannot read {}", of.display()))?;
        Ok(self.file(path, 0o755, &program))
    }

    /// A directory.
    #[must_use]
    pub fn directory(mut self, path: &str, mode: u32) -> Self {
        let mut header = header(EntryType::Directory, mode);
        self.0.append_data(&mut header, path, std::io::empty()).expect(IN_MEMORY);
        self
    }

    /// A symbolic link, whatever it leads to.
    #[must_use]
    pub fn symlink(mut self, path: &str, target: &str) -> Self {
        let mut header = header(EntryType::Symlink, 0o777);
        self.0.append_link(&mut header, path, target).expect(IN_MEMORY);
        self
    }

    /// A fifo.
    #[must_use]
    pub fn fifo(mut self, path: &str) -> Self {
        let mut header = header(EntryType::Fifo, 0o644);
        self.0.append_data(&mut header, path, std::io::empty()).expect(IN_MEMORY);
        self
    }
}

const IN_MEMORY: &str = "an archive in memory takes any relative path";

fn header(kind: EntryType, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header.set_size(0);
    header
}
