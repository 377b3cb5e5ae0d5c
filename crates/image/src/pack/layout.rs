//! Writing an OCI layout, as a directory or as a tar, so that the output is the old image or the new
//! one and never half of either.

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use longshore_types::Digest;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::layer::{self, LayerCompression};
use super::tree::{Content, Node, Tree};
use super::{During as _, PackError, PackOutput};

pub(super) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const BLOBS: &str = "blobs/sha256";

/// A blob of the layout.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blob {
    pub(super) digest: Digest,
    /// In bytes.
    pub(super) size: u64,
}

/// The layer of the image.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layer {
    pub(super) blob: Blob,
    pub(super) diff_id: Digest,
    /// In bytes.
    pub(super) unpacked_size: u64,
}

/// A layout in the making, in a directory beside the output that goes away if it is not finished.
pub(super) struct Layout {
    dir: TempDir,
}

impl Layout {
    pub(super) fn begin(output: &PackOutput) -> Result<Self, PackError> {
        let path = match output {
            PackOutput::Layout(path) | PackOutput::Archive(path) => path,
        };
        if !may_replace(output) {
            return Err(PackError::Occupied { path: path.clone() });
        }
        let parent = parent(path);
        let dir = tempfile::Builder::new()
            .prefix(".longshore-pack-")
            .tempdir_in(parent)
            .during("make a directory in", parent)?;
        let blobs = dir.path().join(BLOBS);
        fs::create_dir_all(&blobs).during("make", &blobs)?;
        Ok(Self { dir })
    }

    pub(super) fn add_layer(
        &mut self,
        tree: &Tree,
        compression: LayerCompression,
    ) -> Result<Layer, PackError> {
        // Its name is known when it is written.
        let path = self.dir.path().join(BLOBS).join("layer");
        let file = File::create(&path).during("make", &path)?;
        let written = layer::write(tree, compression, file, &path)?;
        let named = self.blob_path(&written.digest);
        fs::rename(&path, &named).during("rename to", &named)?;
        Ok(Layer {
            blob: Blob { digest: written.digest, size: written.size },
            diff_id: written.diff_id,
            unpacked_size: written.unpacked_size,
        })
    }

    pub(super) fn add_blob(&mut self, bytes: &[u8]) -> Result<Blob, PackError> {
        let digest = Digest::from_sha256(Sha256::digest(bytes).into());
        let path = self.blob_path(&digest);
        fs::write(&path, bytes).during("write", &path)?;
        Ok(Blob { digest, size: bytes.len() as u64 })
    }

    /// Names the image and puts the layout in its place.
    pub(super) fn finish(
        self,
        output: &PackOutput,
        name: &str,
        manifest: &Blob,
    ) -> Result<(), PackError> {
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [{
                "mediaType": MANIFEST_TYPE,
                "digest": manifest.digest,
                "size": manifest.size,
                "annotations": {"org.opencontainers.image.ref.name": name},
            }],
        });
        let marker = json!({"imageLayoutVersion": "1.0.0"});
        for (name, document) in [("index.json", index), ("oci-layout", marker)] {
            let path = self.dir.path().join(name);
            fs::write(&path, document.to_string()).during("write", &path)?;
        }
        match output {
            PackOutput::Layout(path) => self.replace_directory(path),
            PackOutput::Archive(path) => self.replace_archive(path),
        }
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.path().join(BLOBS).join(digest.hex())
    }

    fn replace_directory(self, path: &Path) -> Result<(), PackError> {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(self.dir.path(), mode).during("open up", self.dir.path())?;
        if path.exists() {
            // Both names change at once; the old layout goes away under the new one's old name.
            use rustix::fs::{CWD, RenameFlags, renameat_with};
            renameat_with(CWD, self.dir.path(), CWD, path, RenameFlags::EXCHANGE)
                .map_err(io::Error::from)
                .during("replace", path)?;
        } else {
            fs::rename(self.dir.path(), path).during("make", path)?;
        }
        Ok(())
    }

    fn replace_archive(self, path: &Path) -> Result<(), PackError> {
        let mut tree = Tree::default();
        tree.copy(self.dir.path(), Path::new("/layout"))?;
        let part = tempfile::NamedTempFile::new_in(parent(path)).during("make", path)?;
        let mut tar = tar::Builder::new(BufWriter::new(part));
        for (name, node) in &tree.nodes {
            let Node::File { content: Content::Host(host), .. } = node else {
                continue;
            };
            let name = name.strip_prefix("layout").expect("all lies below it");
            let file = File::open(host).during("open", host)?;
            let size = file.metadata().during("read", host)?.len();
            let mut header = layer::header(tar::EntryType::Regular, 0o644, size);
            tar.append_data(&mut header, name, file).during("write", path)?;
        }
        let buffered = tar.into_inner().during("write", path)?;
        let part = buffered.into_inner().map_err(io::IntoInnerError::into_error);
        let part = part.during("write", path)?;
        part.as_file().sync_all().during("write", path)?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        part.as_file().set_permissions(mode).during("open up", path)?;
        part.persist(path).map(drop).map_err(|error| error.error).during("make", path)
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// True when nothing of another kind is at the output.
fn may_replace(output: &PackOutput) -> bool {
    match output {
        PackOutput::Layout(path) => match fs::read_dir(path) {
            Ok(mut entries) => path.join("oci-layout").is_file() || entries.next().is_none(),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        },
        PackOutput::Archive(path) => path.is_file() || !path.exists(),
    }
}
