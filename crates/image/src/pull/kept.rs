//! What came of a large layer, kept on the disk until the layer is there.
//!
//! A pull that ends in the middle, because the agent was killed or restarted or the network stayed away,
//! has fetched bytes that the next one need not fetch again. They are nothing but the beginning of the
//! blob: unpacked anew, and by its digest as little trusted as what the source gives then. When that
//! finds something wrong, they go, as they do with the layer that they became; those that nobody came
//! back for go after a day. Nothing waits for them to be on the disk, so a power cut may spoil them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::{FlockOperation, flock, fstatvfs};

use super::blocking;
use crate::erofs::BLOCK;
use crate::steps::{Step, reached};
use crate::store::{Inner, StoreIoError};
use crate::unpack::{DataFile, LayerIdentity};

/// A layer of fewer bytes is fetched again rather than kept.
pub(super) const FROM: u64 = if cfg!(test) { 2 << 20 } else { 64 << 20 };

/// Nothing is kept on a disk with less room than the layer so many times: it has to take what it
/// unpacks to as well.
const ROOM: u64 = 4;

/// After so many bytes it is looked again whether there is room.
const LOOK: u64 = 4 << 20;

/// Bytes that are read at once.
const READ: usize = 1 << 20;

/// What an earlier pull left of a blob.
pub(super) struct Beginning {
    file: Arc<File>,
    n_bytes: u64,
}

/// Where this one leaves what comes.
pub(super) struct Keeper {
    path: PathBuf,
    /// `None` once it could not be written.
    data: Option<DataFile>,
    /// Bytes of the blob that came by, and of the whole.
    n_seen: u64,
    size: u64,
    /// Held by who keeps it.
    alone: File,
}

/// Looks for the beginning of a large layer, and goes on keeping it. `None` of a small one, and where
/// that cannot be done, which only makes the next pull longer.
pub(super) fn open(store: &Inner, layer: &LayerIdentity) -> Option<(Beginning, Keeper)> {
    if layer.size.0 < FROM {
        return None;
    }
    match try_open(store, layer) {
        Ok(opened) => opened,
        Err(error) => {
            tracing::warn!(%error, blob = %layer.blob, "what comes of a layer is not kept");
            None
        }
    }
}

fn try_open(store: &Inner, layer: &LayerIdentity) -> io::Result<Option<(Beginning, Keeper)>> {
    let path = store.beginning_path(&layer.blob);
    let file = File::options().create(true).truncate(false).read(true).write(true).open(&path)?;
    // A second layer that is said to come of the same blob.
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(None);
    }
    let room = free(&file)?;
    let length = file.metadata()?.len();
    // The disk was asked for whole blocks.
    let n_bytes = if length > layer.size.0 { 0 } else { length - length % BLOCK };
    if room.saturating_add(n_bytes) < layer.size.0.saturating_mul(ROOM) {
        std::fs::remove_file(&path)?;
        return Ok(None);
    }
    file.set_len(n_bytes)?;
    // One of its own to write by: how it is written is a matter of the open file.
    let writing = File::options().write(true).open(&path)?;
    let beginning = Beginning { file: Arc::new(File::open(&path)?), n_bytes };
    let data = Some(DataFile::from_block(writing, n_bytes));
    reached(Step::BeginningOpened);
    Ok(Some((beginning, Keeper { path, data, n_seen: 0, size: layer.size.0, alone: file })))
}

/// Removes what is kept of a layer that is there: who brought it died before that.
pub(super) fn forget(store: &Inner, layer: &LayerIdentity) -> Result<(), StoreIoError> {
    let path = store.beginning_path(&layer.blob);
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened.map_err(StoreIoError::of("opening", &path))?,
    };
    // Somebody may keep it for another layer that is said to come of the same blob.
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(());
    }
    match std::fs::remove_file(&path) {
        // It was old, or its keeper was faster.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(StoreIoError::of("removing", &path)),
    }
}

/// The room on the disk of a file, in bytes.
fn free(file: &File) -> io::Result<u64> {
    let disk = fstatvfs(file)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

impl Beginning {
    /// The bytes behind the first so many; `None` at the end.
    pub async fn read(&self, from: u64) -> Option<Bytes> {
        let n_bytes = usize::try_from(self.n_bytes.checked_sub(from)?).unwrap_or(READ).min(READ);
        let file = Arc::clone(&self.file);
        let read = blocking(move || {
            let mut bytes = vec![0; n_bytes];
            file.read_exact_at(&mut bytes, from).map(|()| bytes)
        });
        match read.await {
            Ok(Ok(bytes)) if !bytes.is_empty() => Some(bytes.into()),
            Ok(Err(error)) => {
                tracing::debug!(%error, "cannot read what was kept of a layer");
                None
            }
            Ok(Ok(_)) | Err(_) => None,
        }
    }
}

impl Keeper {
    /// Keeps the next piece of the blob, when it is not there yet.
    pub fn keep(&mut self, piece: &[u8]) {
        let from = self.n_seen;
        self.n_seen += piece.len() as u64;
        let Some(data) = &mut self.data else { return };
        let n_kept = data.position().saturating_sub(from).min(piece.len() as u64);
        if let Err(error) = data.write_at(from + n_kept, &piece[n_kept as usize..]) {
            tracing::debug!(%error, "what comes of a layer is kept no more");
            self.data = None;
        } else if from / LOOK != self.n_seen / LOOK && !self.has_room() {
            // What it unpacks to needs the room more.
            self.data = None;
            let _ = self.alone.set_len(0);
        }
    }

    fn has_room(&self) -> bool {
        free(&self.alone).is_ok_and(|room| room >= self.size)
    }

    /// Nobody will come back for it.
    pub fn remove(mut self) {
        self.data = None;
        match std::fs::remove_file(&self.path) {
            Ok(()) => reached(Step::BeginningRemoved),
            // It grows old and goes.
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "cannot remove what was kept of a layer");
            }
        }
    }
}
