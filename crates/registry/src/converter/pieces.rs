//! A blob of the registry as a layer's bytes.

use std::io::{self, Read as _};
use std::sync::atomic::{AtomicBool, Ordering};

use axum::body::{BodyDataStream, Bytes};
use futures_util::StreamExt as _;
use longshore_image::unpack::Blob;

use crate::objects::{Objects, of_object};
use crate::storage::{BlobBytes, StorageError};

/// Bytes that are read at once.
const PIECE: usize = 64 << 10;

/// The bytes of a blob, until somebody says that the registry ends.
pub(super) struct Pieces<'a> {
    bytes: Opened,
    is_ending: &'a AtomicBool,
    has_failed: bool,
}

enum Opened {
    Here(std::fs::File),
    /// Not asked for yet.
    Object(Objects, String, u64),
    Coming(Objects, BodyDataStream),
}

impl<'a> Pieces<'a> {
    pub(super) fn new(bytes: BlobBytes, size: u64, is_ending: &'a AtomicBool) -> Self {
        let bytes = match bytes {
            BlobBytes::Here(file) => Opened::Here(file),
            BlobBytes::Object(objects, key) => Opened::Object(objects, key, size),
        };
        Self { bytes, is_ending, has_failed: false }
    }

    /// All of a small one.
    pub(super) fn read_all(&mut self) -> io::Result<Vec<u8>> {
        let mut whole = Vec::new();
        while let Some(piece) = self.read_piece()? {
            whole.extend_from_slice(&piece);
        }
        Ok(whole)
    }

    /// Whether some of it could not be read.
    pub(super) fn has_failed(&self) -> bool {
        self.has_failed
    }

    /// The next bytes; nothing at the end.
    pub(super) fn read_piece(&mut self) -> io::Result<Option<Bytes>> {
        if self.is_ending.load(Ordering::Relaxed) {
            return Err(io::Error::other("the registry ends"));
        }
        if let Opened::Object(objects, key, size) = &self.bytes {
            let (objects, size) = (objects.clone(), *size);
            let body = of_object(objects.clone(), (key.clone(), size), 0..size);
            let body = objects.wait(body).map_err(StorageError::into_io)?;
            self.bytes = Opened::Coming(objects, body.into_data_stream());
        }
        match &mut self.bytes {
            Opened::Here(file) => {
                let mut piece = vec![0; PIECE];
                let n_bytes = file.read(&mut piece)?;
                piece.truncate(n_bytes);
                Ok((n_bytes > 0).then(|| piece.into()))
            }
            Opened::Coming(objects, body) => {
                objects.wait(body.next()).transpose().map_err(io::Error::other)
            }
            Opened::Object(..) => unreachable!("it was asked for"),
        }
    }
}

impl Blob for &mut Pieces<'_> {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        let piece = self.read_piece();
        self.has_failed |= piece.is_err();
        piece
    }

    fn is_ready(&self) -> bool {
        true
    }

    fn lifeline(&mut self) -> Box<dyn Send> {
        Box::new(())
    }
}
