//! How much a mirror may take, and what goes when it would take more.

use std::time::SystemTime;

use longshore_types::{ByteCount, MirrorSize};

/// Of a hundred parts of the disk so many stay free. When fewer do, nodes begin to clear theirs of images, and no
/// image of a node is to go for what the mirror keeps.
const SPARE: u64 = 15;

/// The disk, as `df` has it: what only root may use is no part of it.
#[derive(Debug, Clone, Copy)]
pub struct Space {
    pub total: ByteCount,
    pub free: ByteCount,
}

/// What a mirror takes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Taken {
    /// By what is kept.
    pub kept: u64,
    /// By what is on its way, as if all of it had come.
    pub coming: u64,
}

/// How many bytes too many there are once so many more are taken.
pub fn excess(size: MirrorSize, space: Space, taken: Taken, more: u64) -> u64 {
    let coming = taken.coming.saturating_add(more);
    let over = taken.kept.saturating_add(coming).saturating_sub(size.of(space.total).0);
    let spare = space.total.0 / 100 * SPARE;
    // Some of what comes is on the disk already, so this errs on the side of those who share it.
    over.max(spare.saturating_add(coming).saturating_sub(space.free.0))
}

/// Which of what is kept go so that so many bytes less are, the least recently used first, and whether that is
/// enough.
pub fn plan_room<K>(
    kept: impl Iterator<Item = (K, u64, SystemTime)>,
    excess: u64,
) -> (Vec<K>, bool) {
    let mut kept: Vec<_> = kept.collect();
    kept.sort_by_key(|(_, _, used)| *used);
    let (mut goes, mut freed) = (Vec::new(), 0_u64);
    for (key, size, _) in kept {
        if freed >= excess {
            break;
        }
        freed = freed.saturating_add(size);
        goes.push(key);
    }
    (goes, freed >= excess)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn space(total: u64, free: u64) -> Space {
        Space { total: ByteCount(total), free: ByteCount(free) }
    }

    #[test]
    fn a_mirror_takes_no_more_than_it_may_and_leaves_a_part_of_the_disk_free() {
        let tenth = MirrorSize::default();
        let taken = |kept, coming| Taken { kept, coming };
        for (space, taken, more, expected) in [
            (space(1000, 900), taken(0, 0), 100, 0),
            (space(1000, 900), taken(0, 0), 101, 1),
            (space(1000, 900), taken(60, 30), 20, 10),
            (space(1000, 150), taken(0, 0), 1, 1),
            (space(1000, 200), taken(0, 40), 20, 10),
            (space(1000, 100), taken(90, 0), 0, 50),
            (space(0, 0), taken(0, 0), 1, 1),
            (space(u64::MAX, u64::MAX), taken(u64::MAX, u64::MAX), u64::MAX, u64::MAX / 10 * 9 + 5),
        ] {
            let found = excess(tenth, space, taken, more);
            assert_eq!(found, expected, "{space:?} {taken:?} {more}");
        }
        let all = "90%".parse().unwrap();
        assert_eq!(excess(all, space(1000, 1000), taken(0, 0), 900), 50, "whatever is allowed");
        assert_eq!(excess(MirrorSize::NONE, space(1000, 1000), taken(0, 0), 1), 1);
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first_and_no_more_than_is_needed() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let kept = [("b", 10, at(2)), ("a", 10, at(1)), ("c", 10, at(3))];
        for (excess, expected) in [
            (0, (vec![], true)),
            (1, (vec!["a"], true)),
            (10, (vec!["a"], true)),
            (11, (vec!["a", "b"], true)),
            (31, (vec!["a", "b", "c"], false)),
        ] {
            assert_eq!(plan_room(kept.into_iter(), excess), expected, "{excess}");
        }
    }
}
