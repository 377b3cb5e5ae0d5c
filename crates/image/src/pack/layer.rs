//! From a tree to a compressed tar with its two digests.

use std::fs::File;
use std::io::{self, BufWriter, Read as _, Write};
use std::path::Path;

use flate2::write::GzEncoder;
use longshore_types::Digest;
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

use super::tree::{Content, Node, Tree};
use super::{During as _, PackError};

const ZSTD_LEVEL: i32 = 3;

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LayerCompression {
    /// Understood by everything, docker 20.10 included.
    #[default]
    Gzip,
    /// Smaller and several times faster to open; docker from 23.0 on.
    Zstd,
}

impl LayerCompression {
    /// The media type of such a layer.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// Counts and hashes what passes through.
pub(super) struct Hashing<W> {
    inner: W,
    hasher: Sha256,
    n_bytes: u64,
}

impl<W: Write> Hashing<W> {
    pub(super) fn new(inner: W) -> Self {
        Self { inner, hasher: Sha256::new(), n_bytes: 0 }
    }

    /// What was written to, its digest and its size in bytes.
    pub(super) fn finish(self) -> (W, Digest, u64) {
        let digest = Digest::from_sha256(self.hasher.finalize().into());
        (self.inner, digest, self.n_bytes)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.n_bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// A written layer.
pub(super) struct Written {
    pub(super) digest: Digest,
    pub(super) size: u64,
    /// The digest before compression.
    pub(super) diff_id: Digest,
    pub(super) unpacked_size: u64,
}

/// Writes the tree to `file` at `path`.
pub(super) fn write(
    tree: &Tree,
    compression: LayerCompression,
    file: File,
    path: &Path,
) -> Result<Written, PackError> {
    let out = Hashing::new(BufWriter::new(file));
    let ((out, digest, size), (diff_id, unpacked_size)) = match compression {
        LayerCompression::Gzip => {
            // A header without name and time: the same bytes give the same digest.
            let encoder = GzEncoder::new(out, flate2::Compression::default());
            let (encoder, diff_id, unpacked) = write_tar(tree, encoder, path)?;
            let out = encoder.finish().during("write", path)?;
            (out.finish(), (diff_id, unpacked))
        }
        LayerCompression::Zstd => {
            let encoder = zstd::Encoder::new(out, ZSTD_LEVEL).during("write", path)?;
            let (encoder, diff_id, unpacked) = write_tar(tree, encoder, path)?;
            let out = encoder.finish().during("write", path)?;
            (out.finish(), (diff_id, unpacked))
        }
    };
    let file = out.into_inner().map_err(io::IntoInnerError::into_error);
    file.and_then(|file| file.sync_all()).during("write", path)?;
    Ok(Written { digest, size, diff_id, unpacked_size })
}

fn write_tar<W: Write>(
    tree: &Tree,
    encoder: W,
    path: &Path,
) -> Result<(W, Digest, u64), PackError> {
    let mut tar = tar::Builder::new(Hashing::new(encoder));
    for (name, node) in &tree.nodes {
        append(&mut tar, name, node, path)?;
    }
    Ok(tar.into_inner().during("write", path)?.finish())
}

fn append<W: Write>(
    tar: &mut tar::Builder<W>,
    name: &Path,
    node: &Node,
    layer: &Path,
) -> Result<(), PackError> {
    let written = match node {
        Node::Directory { mode } => {
            let mut header = header(EntryType::Directory, *mode, 0);
            tar.append_data(&mut header, name, io::empty())
        }
        Node::Link { target } => {
            let mut header = header(EntryType::Symlink, 0o777, 0);
            tar.append_link(&mut header, name, target)
        }
        Node::File { content: Content::Text(text), mode } => {
            let mut header = header(EntryType::Regular, *mode, text.len() as u64);
            tar.append_data(&mut header, name, text.as_bytes())
        }
        Node::File { content: Content::Host(host), mode } => {
            let file = File::open(host).during("open", host)?;
            let size = file.metadata().during("read", host)?.len();
            let mut header = header(EntryType::Regular, *mode, size);
            let mut counted = Counting { inner: file.take(size), n_bytes: 0 };
            let written = tar.append_data(&mut header, name, &mut counted);
            if written.is_ok() && counted.n_bytes != size {
                return Err(PackError::Changed { path: host.clone() });
            }
            written
        }
    };
    written.during("write", layer)
}

pub(super) fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

struct Counting<R> {
    inner: R,
    n_bytes: u64,
}

impl<R: io::Read> io::Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.n_bytes += read as u64;
        Ok(read)
    }
}
