//! Whether converted layers are what they should be, now and then of one.
//!
//! What is converted nodes believe, so a mistake in it would be everybody's. A layer that is due is read as it is
//! stored, by its digests, and converted once more from what was pushed. Bytes that a disk changed are thrown away,
//! and the images get their form anew. Where everything has its digest and the conversion gives something else,
//! the converter is wrong or was, or a memory: then nobody can say what else it got wrong, and the layer
//! stays as it was pushed for good. One bad read is neither: what follows does so once a second look found the same.
//!
//! Nothing is said of a layer before all has been done that follows. So what a crash interrupts is found once more: first
//! the forms go that name the layer's parts, then the bytes, or the belief that it can be converted. Whatever a
//! crash leaves between these is an image like one that was never converted, with parts that are still due.
//!
//! Rejected: to compare what is stored byte for byte, which another version of zstd need not repeat; to choose by
//! chance, which leaves some layers for years; to remember the checks beside the outcomes, of which the
//! time of the file says enough.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::io;
use std::time::Duration;

use longshore_image::Limits;
use longshore_image::converted::artifact::ConvertedLayer;
use longshore_image::converted::{Converted, StoredFrames, Table, convert};
use longshore_image::manifest::Descriptor;
use longshore_image::source::Retry;
use longshore_image::unpack::{LayerIdentity, UnpackError};
use longshore_types::{ByteCount, Digest, Repository, chain};
use sha2::{Digest as _, Sha256};

use super::pieces::Pieces;
use super::{ConvertError, Image, Work};
use crate::metrics::Check;
use crate::storage::{Made, Outcome, Pushed, Storage, StorageError};

/// What a check found.
#[derive(Debug)]
pub(super) enum Verdict {
    Same,
    /// This part of it has other bytes than its digest says.
    Damaged(Descriptor),
    /// The layer becomes something else.
    Different(String),
    /// What was pushed has other bytes than its digest says, so it cannot be told.
    OriginalDamaged(String),
}

/// The layers that are to be checked, in that order: those that nobody looked at for so long, for longest first; what is
/// put off comes last.
fn due(mut made: Vec<Made>, again: Duration, put_off: &HashSet<Pushed>) -> Vec<Made> {
    made.retain(|made| made.age >= again);
    made.sort_by_key(|made| (put_off.contains(&made.layer), Reverse(made.age), made.layer));
    made
}

/// The layer that is to be checked next, and where it lies.
pub(super) fn find(
    storage: &Storage,
    again: Duration,
    put_off: &HashSet<Pushed>,
) -> Result<Option<(Made, Repository)>, StorageError> {
    for made in due(storage.made()?, again, put_off) {
        match storage.home_of(&made) {
            Ok(Some(home)) => return Ok(Some((made, home))),
            Ok(None) => {}
            // The others are looked after all the same.
            Err(error) => super::tell(&error, "cannot find where a converted layer lies"),
        }
    }
    Ok(None)
}

/// Looks at a layer, and once more where something would follow of it; changes nothing.
pub(super) fn check_twice(
    work: Work<'_>,
    home: &Repository,
    made: &Made,
) -> Result<Verdict, ConvertError> {
    let first = check(work, home, made)?;
    confirmed(first, || check(work, home, made))
}

/// A verdict of which something follows counts when the next one is the same.
fn confirmed(
    first: Verdict,
    again: impl FnOnce() -> Result<Verdict, ConvertError>,
) -> Result<Verdict, ConvertError> {
    if matches!(first, Verdict::Same | Verdict::OriginalDamaged(_)) {
        return Ok(first);
    }
    let second = again()?;
    let is_steady = match (&first, &second) {
        (_, Verdict::Same | Verdict::OriginalDamaged(_))
        | (Verdict::Different(_), Verdict::Different(_)) => true,
        (Verdict::Damaged(first), Verdict::Damaged(second)) => first == second,
        _ => false,
    };
    if is_steady { Ok(second) } else { Err(ConvertError::Unsteady) }
}

/// Reads what is stored of a layer and converts it again.
fn check(work: Work<'_>, home: &Repository, made: &Made) -> Result<Verdict, ConvertError> {
    let ConvertedLayer { index, frames, table } = &made.parts;
    let mut bytes = Vec::new();
    if !read_stored(work, home, table, |piece| bytes.extend_from_slice(piece))? {
        return Ok(Verdict::Damaged(*table));
    }
    if !read_stored(work, home, index, |_| ())? {
        return Ok(Verdict::Damaged(*index));
    }
    let kept = match Table::decode(&bytes, &Limits::default()) {
        Ok(kept) => kept,
        Err(error) => return Ok(Verdict::Different(format!("its table: {}", chain(&error)))),
    };
    if kept.index != *index {
        let why = format!("its table names the index {}, not {}", kept.index.digest, index.digest);
        return Ok(Verdict::Different(why));
    }
    let stored = StoredFrames::new(&kept);
    let mut stored = stored.map_err(|error| StorageError::reading(&frames.digest, error))?;
    if !read_stored(work, home, frames, |piece| stored.take(piece))? {
        return Ok(Verdict::Damaged(*frames));
    }
    if let Some(difference) = stored.finish() {
        return Ok(Verdict::Different(difference.to_string()));
    }
    derive(work, home, made, &kept)
}

/// Whether a part has its digest; `each` gets its bytes.
fn read_stored(
    work: Work<'_>,
    home: &Repository,
    part: &Descriptor,
    mut each: impl FnMut(&[u8]),
) -> Result<bool, ConvertError> {
    let Some((bytes, size)) = work.storage.open_blob(home, &part.digest)? else {
        return Err(ConvertError::Gone(part.digest));
    };
    if size != part.size.0 {
        return Ok(false);
    }
    let mut pieces = Pieces::new(bytes, size, work.is_ending);
    let mut hasher = Sha256::new();
    loop {
        match pieces.read_piece() {
            Ok(Some(piece)) => {
                hasher.update(&piece);
                each(&piece);
            }
            Ok(None) => break,
            Err(_) if work.is_ending() => return Err(ConvertError::Ends),
            Err(error) => return Err(StorageError::reading(&part.digest, error).into()),
        }
    }
    Ok(Digest::from_sha256(hasher.finalize().into()) == part.digest)
}

/// Converts a layer again and compares.
fn derive(
    work: Work<'_>,
    home: &Repository,
    made: &Made,
    kept: &Table,
) -> Result<Verdict, ConvertError> {
    let Pushed { blob, diff_id } = made.layer;
    let Some((bytes, size)) = work.storage.open_blob(home, &blob)? else {
        return Err(ConvertError::Gone(blob));
    };
    let of = LayerIdentity { blob, size: ByteCount(size), diff_id };
    let mut pieces = Pieces::new(bytes, size, work.is_ending);
    match convert(&mut pieces, &of, &Limits::default(), io::sink()) {
        Ok(Converted { table, .. }) => Ok(match kept.difference(&table) {
            None => Verdict::Same,
            Some(difference) => Verdict::Different(difference.to_string()),
        }),
        Err(_) if work.is_ending() => Err(ConvertError::Ends),
        Err(error) if pieces.has_failed() => Err(ConvertError::Layer(blob, error)),
        Err(error) => {
            // What is damaged may fail before all of it was read and its digest is known.
            let original = Descriptor { digest: blob, size: of.size };
            if !read_stored(work, home, &original, |_| ())? {
                return Ok(Verdict::OriginalDamaged(chain(&error)));
            }
            let was_damaged =
                matches!(error, UnpackError::BlobDigest { .. } | UnpackError::BlobSize { .. });
            if was_damaged || error.retry() == Retry::CanHelp {
                return Err(ConvertError::Layer(blob, error));
            }
            Ok(Verdict::Different(format!("it cannot be converted: {}", chain(&error))))
        }
    }
}

/// Does what follows of it, and gives the images that are to be converted again.
pub(super) fn act(
    work: Work<'_>,
    home: &Repository,
    made: &Made,
    verdict: Verdict,
) -> Result<Vec<Image>, ConvertError> {
    let Work { storage, metrics, .. } = work;
    let (layer, parts) = (made.layer, &made.parts);
    match verdict {
        Verdict::Same => {
            storage.note_right(layer)?;
            tracing::debug!(layer = %layer.blob, "a converted layer is what it should be");
            metrics.checked(Check::Same);
            Ok(Vec::new())
        }
        Verdict::OriginalDamaged(why) => {
            tracing::error!(layer = %layer.blob, why, "a layer as it was pushed is damaged");
            storage.note_right(layer)?;
            metrics.checked(Check::OriginalDamaged);
            Ok(Vec::new())
        }
        Verdict::Damaged(part) => {
            tracing::warn!(
                layer = %layer.blob, part = %part.digest,
                "what is stored of a converted layer is damaged; it is converted again"
            );
            let images = storage.drop_forms(&part.digest)?;
            // Good ones may have been pushed since.
            storage.discard(home, &part.digest, || read_stored(work, home, &part, |_| ()))?;
            metrics.checked(Check::Damaged);
            Ok(images)
        }
        Verdict::Different(why) => {
            tracing::error!(
                layer = %layer.blob, diff_id = %layer.diff_id, table = %parts.table.digest, why,
                "a converted layer is not what it becomes when it is converted again; nodes have it as it was \
                 pushed from now on. Please report this: the converter or the memory of this machine is wrong"
            );
            let images = storage.drop_forms(&parts.table.digest)?;
            refuse(storage, parts, &why)?;
            metrics.checked(Check::Different);
            Ok(images)
        }
    }
}

/// From now on nobody gets these parts for any layer that became them: what was pushed in several compressions becomes
/// the same.
fn refuse(storage: &Storage, parts: &ConvertedLayer, why: &str) -> Result<(), StorageError> {
    let outcome = Outcome::Refused(format!("a check found something else: {why}"));
    for made in storage.made()? {
        if made.parts.table == parts.table {
            storage.keep_outcome(made.layer, &outcome)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn layer(n: u8) -> Pushed {
        let digest = Digest::from_sha256([n; 32]);
        Pushed { blob: digest, diff_id: digest }
    }

    fn made(n: u8, age: Duration) -> Made {
        let part = Descriptor { digest: Digest::from_sha256([n; 32]), size: ByteCount(1) };
        let parts = ConvertedLayer { index: part, frames: part, table: part };
        Made { layer: layer(n), parts, age }
    }

    #[test]
    fn one_bad_read_decides_nothing() {
        let part = |n: u8| made(n, DAY).parts.table;
        let damaged = |n: u8| Verdict::Damaged(part(n));
        let different = || Verdict::Different("something".to_owned());
        let original = || Verdict::OriginalDamaged("something".to_owned());
        let is = |first, second| confirmed(first, || Ok(second));
        assert!(matches!(is(damaged(1), Verdict::Same), Ok(Verdict::Same)));
        assert!(matches!(is(different(), Verdict::Same), Ok(Verdict::Same)));
        assert!(matches!(is(different(), original()), Ok(Verdict::OriginalDamaged(_))));
        assert!(
            matches!(is(damaged(1), damaged(1)), Ok(Verdict::Damaged(found)) if found == part(1))
        );
        assert!(matches!(is(different(), different()), Ok(Verdict::Different(_))));
        for (first, second) in
            [(damaged(1), damaged(2)), (damaged(1), different()), (different(), damaged(1))]
        {
            assert!(matches!(is(first, second), Err(ConvertError::Unsteady)));
        }
        for first in [Verdict::Same, original()] {
            confirmed(first, || panic!("nothing follows of it")).unwrap();
        }
    }

    #[test]
    fn what_was_not_looked_at_for_longest_is_checked_first() {
        let days: [(u8, u32); 6] = [(1, 8), (2, 30), (3, 6), (4, 7), (5, 8), (6, 400)];
        let all: Vec<Made> = days.into_iter().map(|(n, days)| made(n, days * DAY)).collect();
        let order = |put_off: &[u8], again: u32| {
            let put_off = put_off.iter().map(|n| layer(*n)).collect();
            let due = due(all.clone(), again * DAY, &put_off);
            due.iter().map(|made| made.layer.blob.as_bytes()[0]).collect::<Vec<_>>()
        };
        assert_eq!(order(&[], 7), [6, 2, 1, 5, 4], "3 was checked within the week");
        assert_eq!(order(&[6, 1], 7), [2, 5, 4, 6, 1]);
        assert_eq!(order(&[], 0), [6, 2, 1, 5, 4, 3]);
        assert_eq!(order(&[], 401), [0; 0]);
    }
}
