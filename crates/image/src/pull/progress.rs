//! How far a pull is, for those who show it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use longshore_types::{ByteCount, Digest};

use super::PullEvent;

/// Adds up what every layer that is under way tells.
#[derive(Debug, Default)]
pub struct PullProgress(Mutex<Came>);

#[derive(Debug, Default)]
struct Came {
    of: ByteCount,
    blobs: BTreeMap<Digest, u64>,
}

impl PullProgress {
    /// Something happened in it.
    pub fn note(&self, event: &PullEvent) {
        let mut came = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            PullEvent::Resolved { bytes, .. } => came.of = *bytes,
            PullEvent::LayerProgress { blob, fetched, .. } => {
                came.blobs.insert(*blob, fetched.0);
            }
            PullEvent::LayerReused { .. }
            | PullEvent::LayerPlain { .. }
            | PullEvent::LayerDone { .. } => {}
        }
    }

    /// The bytes that came, and those of all layers.
    pub fn so_far(&self) -> (ByteCount, ByteCount) {
        let came = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (ByteCount(came.blobs.values().sum()), came.of)
    }
}
