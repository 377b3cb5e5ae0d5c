//! How far a pull is, for those who show it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use longshore_types::{ByteCount, Digest};

use super::PullEvent;

/// Adds up what every layer tells. A layer that comes converted counts like the one that was pushed, by the part of
/// it that came: so the whole is known from the beginning, and does not change.
#[derive(Debug, Default)]
pub struct PullProgress(Mutex<BTreeMap<Digest, Layer>>);

/// Bytes of a layer as it was pushed.
#[derive(Debug, Clone, Copy)]
struct Layer {
    done: u64,
    size: u64,
}

impl PullProgress {
    /// Something happened in it.
    pub fn note(&self, event: &PullEvent) {
        let mut layers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (blob, done, of) = match event {
            PullEvent::Resolved { layers: all } => {
                let layer =
                    |(blob, size): &(Digest, ByteCount)| (*blob, Layer { done: 0, size: size.0 });
                *layers = all.iter().map(layer).collect();
                return;
            }
            PullEvent::LayerProgress { blob, fetched, total } => (blob, fetched.0, total.0),
            // What came converted is thrown away.
            PullEvent::LayerPlain { blob, .. } => (blob, 0, 1),
            PullEvent::LayerReused { blob } | PullEvent::LayerDone { blob, .. } => (blob, 1, 1),
        };
        if let Some(layer) = layers.get_mut(blob) {
            let done = u128::from(layer.size) * u128::from(done.min(of)) / u128::from(of.max(1));
            // No more than the size, so it fits.
            layer.done = u64::try_from(done).unwrap_or(layer.size);
        }
    }

    /// The bytes that are here, and those of all layers.
    pub fn so_far(&self) -> (ByteCount, ByteCount) {
        let layers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = |of: fn(&Layer) -> u64| ByteCount(layers.values().map(of).sum());
        (sum(|layer| layer.done), sum(|layer| layer.size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_that_are_here_and_parts_of_others_are_added_up() {
        let blob = |n: u8| Digest::from_sha256([n; 32]);
        let progress = PullProgress::default();
        let check = |event, done| {
            progress.note(&event);
            assert_eq!(progress.so_far(), (ByteCount(done), ByteCount(1100)), "{event:?}");
        };
        let part = |n, fetched, total| PullEvent::LayerProgress {
            blob: blob(n),
            fetched: ByteCount(fetched),
            total: ByteCount(total),
        };
        assert_eq!(progress.so_far(), (ByteCount(0), ByteCount(0)));
        let layers = [(1, 100), (2, 400), (3, 600), (4, 0)];
        let layers = layers.map(|(n, size)| (blob(n), ByteCount(size))).to_vec();
        check(PullEvent::Resolved { layers }, 0);
        check(PullEvent::LayerReused { blob: blob(1) }, 100);
        check(part(2, 100, 400), 200);
        // Converted it is a third of its size, of which the half came.
        check(part(3, 100, 200), 500);
        check(PullEvent::LayerPlain { blob: blob(3), why: "damaged".to_owned() }, 200);
        check(part(3, 150, 600), 350);
        check(part(4, 0, 0), 350);
        check(PullEvent::LayerDone { blob: blob(2), unpacked: ByteCount(9000) }, 650);
        check(part(3, 700, 600), 1100);
        check(part(9, 5, 10), 1100);
    }
}
