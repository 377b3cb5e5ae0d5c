//! Which images leave the disk of a node when room is needed there.
//!
//! What nobody asked for stays as long as there is room, since the next start may want it. Over the high mark of
//! the disk, or before a pull that would find no room, images go that nothing keeps, the least recently used first
//! and no more of them than it takes. What a layer takes is given back with the last image that uses it.

use std::collections::{BTreeMap, BTreeSet};

use longshore_types::{ByteCount, Digest, DiskMarks, HoldReason, ImageHold, Timestamp};

/// An image that is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedImage {
    /// Its digest.
    pub digest: Digest,
    /// When it was last used.
    pub last_used: Timestamp,
    /// What keeps it.
    pub holds: Vec<ImageHold>,
    /// What it takes beside its layers.
    pub own: ByteCount,
    /// What each of its layers takes.
    pub layers: BTreeMap<Digest, ByteCount>,
}

/// The file system that they lie on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskUse {
    /// What it holds in all.
    pub total: ByteCount,
    /// What is in use, by whomever.
    pub used: ByteCount,
}

impl DiskUse {
    /// Whether more is in use than there may be before something goes.
    pub fn is_over(&self, marks: DiskMarks) -> bool {
        self.used > marks.high_of(self.total)
    }
}

/// How much room a pull lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RoomNeed {
    /// Without so much more it fails for sure.
    pub least: ByteCount,
    /// With so much more it is expected to succeed.
    pub likely: ByteCount,
}

impl RoomNeed {
    /// What is still lacking once so much came free.
    pub fn less(self, freed: ByteCount) -> Self {
        let less = |wanted: ByteCount| ByteCount(wanted.0.saturating_sub(freed.0));
        Self { least: less(self.least), likely: less(self.likely) }
    }
}

/// What should go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Collection {
    /// The images, in the order in which they were chosen.
    pub take: Vec<Digest>,
    /// What that frees.
    pub frees: ByteCount,
    /// What should have been freed; more than that where not enough may go.
    pub wanted: ByteCount,
    /// The rest, with why it stays.
    pub stays: BTreeMap<Digest, Stay>,
    /// What would be freed beside all that may go, were nothing pinned.
    pub pinned: ByteCount,
}

/// Why an image stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stay {
    /// Something keeps it.
    Held(Vec<ImageHold>),
    /// There is room enough without it going.
    Room,
}

/// Chooses what goes. `pulled` are layers that pulls under way count on, which are not given back.
pub fn plan_collection(
    images: &[CachedImage],
    pulled: &BTreeSet<Digest>,
    disk: DiskUse,
    marks: DiskMarks,
    need: RoomNeed,
) -> Collection {
    let mut candidates: Vec<_> = images.iter().filter(|image| image.holds.is_empty()).collect();
    candidates.sort_by_key(|image| (image.last_used, image.digest));
    let over = match disk.is_over(marks) {
        true => disk.used.0.saturating_sub(marks.low_of(disk.total).0),
        false => 0,
    };
    let mut all = Sharing::new(images, pulled);
    let most = candidates.iter().map(|image| all.take(image)).sum::<u64>();
    // What cannot succeed anyway is no reason for anything to go.
    let for_pull = if most >= need.least.0 { need.likely.0.min(most) } else { 0 };
    let wanted = over.max(for_pull);
    let pinned = images.iter().filter(|image| is_pinned(image));
    let pinned = ByteCount(pinned.map(|image| all.take(image)).sum());
    let mut plan = Collection { wanted: ByteCount(wanted), pinned, ..Collection::default() };
    let mut sharing = Sharing::new(images, pulled);
    for image in candidates {
        if plan.frees.0 >= wanted {
            break;
        }
        plan.frees.0 += sharing.take(image);
        plan.take.push(image.digest);
    }
    let stays = images.iter().filter(|image| !plan.take.contains(&image.digest));
    plan.stays = stays
        .map(|image| match image.holds.is_empty() {
            true => (image.digest, Stay::Room),
            false => (image.digest, Stay::Held(image.holds.clone())),
        })
        .collect();
    plan
}

/// Whether an image would go for a start, were it not pinned.
fn is_pinned(image: &CachedImage) -> bool {
    let mut reasons = image.holds.iter().map(|hold| hold.reason);
    reasons.clone().any(|reason| reason == HoldReason::Pin)
        && reasons.all(|reason| matches!(reason, HoldReason::Pin | HoldReason::Prewarm))
}

/// How many still need each layer.
struct Sharing(BTreeMap<Digest, usize>);

impl Sharing {
    fn new(images: &[CachedImage], pulled: &BTreeSet<Digest>) -> Self {
        let mut users: BTreeMap<Digest, usize> = BTreeMap::new();
        let layers = images.iter().flat_map(|image| image.layers.keys());
        layers.chain(pulled).for_each(|layer| *users.entry(*layer).or_default() += 1);
        Self(users)
    }

    /// Takes an image away; what that gives back.
    fn take(&mut self, image: &CachedImage) -> u64 {
        let mut freed = image.own.0;
        for (layer, size) in &image.layers {
            if let Some(users) = self.0.get_mut(layer) {
                *users -= 1;
                if *users == 0 {
                    freed += size.0;
                }
            }
        }
        freed
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn digest(n: u8) -> Digest {
        Digest::from_sha256([n; 32])
    }

    fn image(n: u8, last_used: u64, layers: &[u8]) -> CachedImage {
        CachedImage {
            digest: digest(n),
            last_used: Timestamp(last_used),
            holds: Vec::new(),
            own: ByteCount(1),
            layers: layers.iter().map(|layer| (digest(*layer), ByteCount(10))).collect(),
        }
    }

    fn held(image: CachedImage) -> CachedImage {
        let by = "default/web r1".to_owned();
        CachedImage { holds: vec![ImageHold { reason: HoldReason::Release, by }], ..image }
    }

    fn disk(total: u64, used: u64) -> DiskUse {
        DiskUse { total: ByteCount(total), used: ByteCount(used) }
    }

    fn plan(images: &[CachedImage], used: u64, least: u64, likely: u64) -> Vec<Digest> {
        let need = RoomNeed { least: ByteCount(least), likely: ByteCount(likely) };
        let pulled = BTreeSet::new();
        plan_collection(images, &pulled, disk(100, used), DiskMarks::default(), need).take
    }

    #[test]
    fn below_the_high_mark_all_stays_and_above_it_the_oldest_go_until_the_low_one() {
        let images = [image(1, 30, &[101]), image(2, 10, &[102]), image(3, 20, &[103])];
        assert_eq!(plan(&images, 85, 0, 0), []);
        assert_eq!(plan(&images, 86, 0, 0), [digest(2)], "11 bytes bring it to 75");
        assert_eq!(plan(&images, 90, 0, 0), [digest(2), digest(3)]);
        assert_eq!(plan(&images, 100, 0, 0), [digest(2), digest(3), digest(1)]);
    }

    #[test]
    fn what_is_kept_stays_with_its_layers() {
        let images = [held(image(1, 1, &[101, 102])), image(2, 2, &[102, 103]), image(3, 3, &[])];
        let need = RoomNeed::default();
        let pulled = BTreeSet::from([digest(103)]);
        let marks = DiskMarks::default();
        let planned = plan_collection(&images, &BTreeSet::new(), disk(100, 86), marks, need);
        assert_eq!((planned.take, planned.frees), (vec![digest(2)], ByteCount(11)));
        assert!(matches!(&planned.stays[&digest(1)], Stay::Held(holds) if holds.len() == 1));
        assert_eq!(planned.stays[&digest(3)], Stay::Room);
        let planned = plan_collection(&images, &pulled, disk(100, 86), marks, need);
        assert_eq!((planned.take.len(), planned.frees), (2, ByteCount(2)), "a pull needs a layer");
    }

    fn held_for(image: CachedImage, reasons: &[HoldReason]) -> CachedImage {
        let hold = |reason: &HoldReason| ImageHold { reason: *reason, by: "web r1".to_owned() };
        CachedImage { holds: reasons.iter().map(hold).collect(), ..image }
    }

    #[test]
    fn what_is_pinned_goes_for_nothing_and_what_pins_alone_keep_is_told() {
        use HoldReason::{Pin, Prewarm, Release};
        let images = [
            held_for(image(1, 1, &[101, 102]), &[Pin]),
            held_for(image(2, 2, &[103]), &[Prewarm, Pin]),
            held_for(image(3, 3, &[104]), &[Release, Pin]),
            held_for(image(4, 4, &[105]), &[Prewarm]),
            image(5, 5, &[102, 106]),
        ];
        let need = RoomNeed { least: ByteCount(11), likely: ByteCount(60) };
        let (pulled, marks) = (BTreeSet::new(), DiskMarks::default());
        let planned = plan_collection(&images, &pulled, disk(100, 100), marks, need);
        assert_eq!((planned.take, planned.frees), (vec![digest(5)], ByteCount(11)));
        // Of the first with the layer that the last has too, and of the second, whose wish counts for less.
        assert_eq!(planned.pinned, ByteCount(21 + 11));
        let planned = plan_collection(&images[2..], &pulled, disk(100, 100), marks, need);
        assert_eq!(
            planned.pinned,
            ByteCount(0),
            "without a pin they would stay too, or they have none"
        );
    }

    #[test]
    fn a_pull_has_room_made_unless_it_cannot_succeed() {
        let images = [image(1, 1, &[101]), image(2, 2, &[102]), held(image(3, 3, &[103]))];
        assert_eq!(plan(&images, 50, 5, 15), [digest(1), digest(2)]);
        assert_eq!(plan(&images, 50, 5, 11), [digest(1)]);
        assert_eq!(plan(&images, 50, 22, 100), [digest(1), digest(2)], "it may do");
        assert_eq!(plan(&images, 50, 23, 100), [], "all would go for nothing");
    }

    fn images() -> impl Strategy<Value = Vec<CachedImage>> {
        let layers = proptest::collection::btree_set(100_u8..112, 0..5);
        let each = (0_u64..6, any::<bool>(), layers, 0_u64..4);
        proptest::collection::vec(each, 0..12).prop_map(|all| {
            let images = all.into_iter().zip(0_u8..);
            images
                .map(|((last_used, is_held, layers, own), n)| {
                    let layers: Vec<_> = layers.into_iter().collect();
                    let mut image = image(n, last_used, &layers);
                    image.own = ByteCount(own);
                    for (layer, size) in &mut image.layers {
                        *size = ByteCount(u64::from(layer.as_bytes()[0]) % 7 * 5);
                    }
                    if is_held { held(image) } else { image }
                })
                .collect()
        })
    }

    /// What the layers and the images themselves take.
    fn total(images: &[&CachedImage], pulled: &BTreeSet<Digest>, sizes: &[CachedImage]) -> u64 {
        let of_layer = |layer: &Digest| {
            sizes.iter().find_map(|image| image.layers.get(layer)).map_or(0, |size| size.0)
        };
        let layers: BTreeSet<_> =
            images.iter().flat_map(|image| image.layers.keys()).chain(pulled).collect();
        let own: u64 = images.iter().map(|image| image.own.0).sum();
        own + layers.into_iter().map(of_layer).sum::<u64>()
    }

    proptest! {
        #[test]
        fn what_goes_is_right(
            images in images(),
            pulled in proptest::collection::btree_set(100_u8..112, 0..3),
            used in 0_u64..400,
            likely in 0_u64..100,
            share in 0_u64..=100,
        ) {
            let pulled: BTreeSet<Digest> = pulled.into_iter().map(digest).collect();
            let (marks, disk) = (DiskMarks::default(), disk(300, used));
            let need = RoomNeed { least: ByteCount(likely * share / 100), likely: ByteCount(likely) };
            let planned = plan_collection(&images, &pulled, disk, marks, need);
            let mut shuffled = images.clone();
            shuffled.reverse();
            prop_assert_eq!(&planned, &plan_collection(&shuffled, &pulled, disk, marks, need));

            let is_taken = |image: &&CachedImage| planned.take.contains(&image.digest);
            let (taken, kept): (Vec<_>, Vec<_>) = images.iter().partition(is_taken);
            prop_assert!(taken.iter().all(|image| image.holds.is_empty()));
            prop_assert_eq!(taken.len() + planned.stays.len(), images.len());
            let all: Vec<_> = images.iter().collect();
            let freed = total(&all, &pulled, &images) - total(&kept, &pulled, &images);
            prop_assert_eq!(planned.frees.0, freed, "it frees what it says");

            let at = |digest: &Digest| images.iter().find(|image| image.digest == *digest).unwrap();
            let order: Vec<_> = planned.take.iter().map(|one| (at(one).last_used, *one)).collect();
            prop_assert!(order.is_sorted());
            let free: Vec<_> = kept.iter().filter(|image| image.holds.is_empty()).collect();
            let last = order.last();
            let is_later = |image: &&&CachedImage| {
                last.is_none_or(|last| *last < (image.last_used, image.digest))
            };
            prop_assert!(free.iter().all(is_later));
            // Enough, or all that may go.
            prop_assert!(freed >= planned.wanted.0 || free.is_empty());
            let over = used > 255;
            prop_assert!(!over || used.saturating_sub(freed) <= 225 || free.is_empty());
            // And no more than enough.
            if let Some((last, before)) = planned.take.split_last() {
                let rest: Vec<_> =
                    all.iter().copied().filter(|image| !before.contains(&image.digest)).collect();
                let without = total(&all, &pulled, &images) - total(&rest, &pulled, &images);
                prop_assert!(without < planned.wanted.0, "{last} went for nothing");
            } else {
                prop_assert!(planned.wanted.0 == 0 || free.is_empty());
            }
        }
    }
}
