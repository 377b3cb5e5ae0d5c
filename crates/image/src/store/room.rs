//! Room on the disk for pulls, looked for before they begin.
//!
//! A manifest says how large layers are as they are packed; what they unpack to is known when they are unpacked.
//! No layer unpacks to less than it is packed, near enough, so a pull for whose packed layers there is no room is
//! refused at once; and room is made for [`UNPACKED`] times as much, which holds for most. What pulls under way
//! have still to fetch counts as taken; as it comes it is seen to be, because less is free.
//!
//! Only a store that is told how room is made does this. Rejected: to refuse what would not fit at that ratio,
//! which is wrong for weights and other packed data.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use futures_util::future::BoxFuture;
use longshore_types::{ByteCount, Digest};

use super::{ImageStore, Inner, StoreIoError};
use crate::pull::PullEvent;

/// How many times larger unpacked layers are taken to be than packed ones.
pub const UNPACKED: u64 = 3;

/// What images leave free: so much, and on a small disk a part of it.
const FLOOR: ByteCount = ByteCount::mib(64);
const FLOOR_PART: u64 = 20;

/// A file system as a pull sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// What it holds in all.
    pub total: ByteCount,
    /// What is free there.
    pub free: ByteCount,
}

impl Space {
    /// What images leave free.
    pub fn floor(self) -> ByteCount {
        FLOOR.min(ByteCount(self.total.0 / FLOOR_PART))
    }
}

/// How much more room a pull needs than there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lack {
    /// Without that it fails for sure; nothing when it may succeed.
    pub least: ByteCount,
    /// With that it is expected to succeed.
    pub likely: ByteCount,
}

/// Makes room on the disk as far as it can. What it answers is said to who finds too little then: why there is no more.
pub type MakeRoom = Box<dyn Fn(Lack) -> BoxFuture<'static, Option<String>> + Send + Sync>;

/// There is no room for the layers of a pull.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "its layers are {packed} as they are packed; {free} are free, of which pulls under way will take {reserved} \
     and {floor} stay free{more}", more = and_more(.kept.as_deref())
)]
pub struct NoRoom {
    /// The layers that are not there.
    pub packed: ByteCount,
    /// What is free.
    pub free: ByteCount,
    /// What other pulls have still to fetch.
    pub reserved: ByteCount,
    /// What images leave free.
    pub floor: ByteCount,
    /// Why no more room was made, as far as who makes it says.
    pub kept: Option<String>,
}

fn and_more(kept: Option<&str>) -> String {
    kept.map(|kept| format!("; {kept}")).unwrap_or_default()
}

/// What pulls under way have still to fetch.
#[derive(Default)]
pub(super) struct Room {
    make: OnceLock<MakeRoom>,
    pulls: Mutex<Pulls>,
}

#[derive(Default)]
struct Pulls {
    next: u64,
    /// For each pull, by its layers.
    left: BTreeMap<u64, BTreeMap<Digest, u64>>,
    /// Layers that were given all their room: as they come, no more is taken.
    given: BTreeSet<Digest>,
}

impl Pulls {
    /// Bytes that are still to come. A layer that several pulls need comes once.
    fn sum(&self) -> u64 {
        let mut blobs: BTreeMap<&Digest, u64> = BTreeMap::new();
        let left = self.left.values().flatten();
        for (blob, left) in left.filter(|(blob, _)| !self.given.contains(blob)) {
            let most = blobs.entry(blob).or_default();
            *most = (*most).max(*left);
        }
        blobs.into_values().fold(0, u64::saturating_add)
    }
}

/// What a pull has still to fetch, until it ends.
pub(crate) struct Reservation {
    store: Arc<Inner>,
    number: u64,
}

impl Reservation {
    /// Something came.
    pub fn note(&self, event: &PullEvent) {
        let (blob, now) = match event {
            PullEvent::LayerProgress { blob, fetched, total } => {
                (blob, total.0.saturating_sub(fetched.0))
            }
            PullEvent::LayerReused { blob } | PullEvent::LayerDone { blob, .. } => (blob, 0),
            PullEvent::Resolved { .. } | PullEvent::LayerPlain { .. } => return,
        };
        let mut pulls = self.store.room.pulls();
        let left = pulls.left.get_mut(&self.number).and_then(|left| left.get_mut(blob));
        if let Some(left) = left {
            *left = now;
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.store.room.pulls().left.remove(&self.number);
    }
}

/// Until this is dropped, a layer has all the room on the disk that it will take.
pub(crate) struct Given {
    store: Arc<Inner>,
    blob: Digest,
}

impl Given {
    /// It was given to it.
    pub fn new(store: &Arc<Inner>, blob: Digest) -> Self {
        store.room.pulls().given.insert(blob);
        Self { store: Arc::clone(store), blob }
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        self.store.room.pulls().given.remove(&self.blob);
    }
}

impl Room {
    fn pulls(&self) -> std::sync::MutexGuard<'_, Pulls> {
        // Each change is a single step.
        self.pulls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ImageStore {
    /// Has pulls look for room before they begin, and ask `make` for some where there is too little. It is said
    /// once.
    pub fn keep_room(&self, make: MakeRoom) {
        if self.inner.room.make.set(make).is_err() {
            tracing::error!("how room is made in an image store was said twice; the first holds");
        }
    }

    /// The file system that the store lies on.
    pub fn space(&self) -> Result<Space, StoreIoError> {
        self.inner.space()
    }
}

impl Inner {
    fn space(&self) -> Result<Space, StoreIoError> {
        let disk = rustix::fs::statvfs(self.root()).map_err(|errno| {
            StoreIoError::of("asking for the room on", self.root())(errno.into())
        })?;
        let bytes = |blocks: u64| ByteCount(blocks.saturating_mul(disk.f_frsize));
        // What only root may use is nobody's: neither free nor a part of the whole, as df has it.
        let used = disk.f_blocks.saturating_sub(disk.f_bfree);
        Ok(Space { total: bytes(used + disk.f_bavail), free: bytes(disk.f_bavail) })
    }

    /// Keeps room for the layers of a pull until that is dropped; makes some where there is too little.
    pub async fn reserve(
        self: &Arc<Self>,
        layers: BTreeMap<Digest, u64>,
    ) -> Result<Result<Option<Reservation>, NoRoom>, StoreIoError> {
        let Some(make) = self.room.make.get() else { return Ok(Ok(None)) };
        let packed = layers.values().copied().fold(0, u64::saturating_add);
        if packed == 0 {
            return Ok(Ok(None));
        }
        let (lack, _) = self.lack(packed)?;
        let kept = if lack.likely > ByteCount(0) { make(lack).await } else { None };
        // Looked at and taken in one step, so that two pulls do not both find the same room.
        let mut pulls = self.room.pulls();
        let (lack, refusal) = self.lack_beside(packed, pulls.sum())?;
        if lack.least > ByteCount(0) {
            return Ok(Err(NoRoom { kept, ..refusal }));
        }
        pulls.next += 1;
        let number = pulls.next;
        pulls.left.insert(number, layers);
        Ok(Ok(Some(Reservation { store: Arc::clone(self), number })))
    }

    fn lack(&self, packed: u64) -> Result<(Lack, NoRoom), StoreIoError> {
        let reserved = self.room.pulls().sum();
        self.lack_beside(packed, reserved)
    }

    fn lack_beside(&self, packed: u64, reserved: u64) -> Result<(Lack, NoRoom), StoreIoError> {
        let space = self.space()?;
        Ok((
            lack(space, packed, reserved),
            NoRoom {
                packed: ByteCount(packed),
                free: space.free,
                reserved: ByteCount(reserved),
                floor: space.floor(),
                kept: None,
            },
        ))
    }
}

/// What there is too little of for layers, beside what others have still to fetch.
fn lack(space: Space, packed: u64, reserved: u64) -> Lack {
    let needs = |times: u64| {
        let layers = packed.saturating_add(reserved).saturating_mul(times);
        let all = layers.saturating_add(space.floor().0);
        ByteCount(all.saturating_sub(space.free.0))
    };
    Lack { least: needs(1), likely: needs(UNPACKED) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_disk_keeps_less_free_and_what_others_fetch_counts() {
        let mib = ByteCount::mib;
        let space = |total, free| Space { total: mib(total), free: mib(free) };
        assert_eq!(space(100_000, 0).floor(), mib(64));
        assert_eq!(space(100, 0).floor(), mib(5));
        let lacks = |free, packed: u64, reserved: u64| {
            let Lack { least, likely } = lack(space(100, free), packed << 20, reserved << 20);
            (least.0 >> 20, likely.0 >> 20)
        };
        assert_eq!(lacks(50, 10, 5), (0, 0), "45 and 5 fit just so");
        assert_eq!(lacks(49, 10, 5), (0, 1));
        assert_eq!(lacks(20, 10, 5), (0, 30));
        assert_eq!(lacks(19, 10, 5), (1, 31));
        let most = lack(space(100, 1), u64::MAX, u64::MAX);
        assert!(most.least > ByteCount(u64::MAX / 2), "no overflow");
    }

    #[test]
    fn a_layer_that_two_pulls_need_is_counted_once() {
        let digest = |n| Digest::from_sha256([n; 32]);
        let left = [
            (1, BTreeMap::from([(digest(1), 10), (digest(2), 5)])),
            (2, BTreeMap::from([(digest(1), 7), (digest(3), 1)])),
        ];
        let mut pulls = Pulls { left: left.into(), ..Pulls::default() };
        assert_eq!(pulls.sum(), 16);
        // What has its room already is not to be taken once more.
        pulls.given.insert(digest(1));
        assert_eq!(pulls.sum(), 6);
    }
}
