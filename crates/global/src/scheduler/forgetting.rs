//! What is no longer needed: apps that were removed, releases that are too many, secrets that nobody names.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use longshore_store::{Compare, Relation, Transaction};
use longshore_types::{LocationName, ProjectName, SecretName, SecretVersion};

use super::{Found, MOST_AT_ONCE, allotment_key_text, app_key_text, release_key_text};
use crate::catalog::{Catalog, Stored};
use crate::records::{Key, SecretRecord};
use crate::reports::{ByLocation, of_app};

/// A version of a secret.
type SecretKey = (ProjectName, SecretName, SecretVersion);

/// The next step in removing an app: take the allotments away, and once every location has
/// acknowledged that and reports no instance any more, forget the app and its releases.
pub(super) fn removal(
    (catalog, reports): (&Catalog, &ByLocation),
    Found { key, held, .. }: &Found<'_>,
) -> Option<Transaction> {
    if !held.is_empty() {
        let take = |change: Transaction, location: &&LocationName| {
            change.delete(allotment_key_text(location, key))
        };
        // The rest next time.
        return Some(held.keys().take(MOST_AT_ONCE).fold(Transaction::new(), take));
    }
    let gone = catalog.locations.keys().all(|location| {
        let report = reports.get(location).map(|received| &received.report);
        report.is_some_and(|report| report.acknowledged.0 >= catalog.changed_at(location).0)
    });
    // Strays of it too, where nothing of it was ever allotted.
    if !gone || of_app(reports, key).next().is_some() {
        return None;
    }
    // The oldest releases first; the rest goes next time.
    let mut releases: Vec<_> = catalog.releases_of(key).take(MOST_AT_ONCE).collect();
    let last = catalog.releases_of(key).count() == releases.len();
    let mut change = Transaction::new();
    for release in releases.drain(..) {
        change = change.delete(release_key_text(key, release.number));
    }
    if last {
        change = change.delete(app_key_text(key));
    }
    Some(change)
}

/// Forgets the oldest releases when there are more than are to be kept, but none that runs or may be taken back. What a
/// location runs that is not heard of nobody knows, so then none is.
pub(super) fn forgetting(
    (catalog, reports): (&Catalog, &ByLocation),
    found: &Found<'_>,
    keep: NonZeroU32,
) -> Option<Transaction> {
    let (Found { key, held, .. }, record) = (found, found.record());
    let keep = usize::try_from(keep.get()).unwrap_or(usize::MAX);
    let surplus = catalog.releases_of(key).count().checked_sub(keep).filter(|n| *n > 0)?;
    if !held.keys().all(|location| reports.is_heard(location)) {
        return None;
    }
    let kept = [Some(record.release), record.beside, record.good, record.failed];
    let allotted = held.values().map(|stored| stored.record.release);
    let running = of_app(reports, key).map(|status| status.release);
    let needed: BTreeSet<_> = kept.into_iter().flatten().chain(allotted).chain(running).collect();
    let oldest = catalog.releases_of(key).take(surplus.min(MOST_AT_ONCE));
    let mut forgotten = oldest.filter(|release| !needed.contains(&release.number)).peekable();
    forgotten.peek()?;
    Some(forgotten.fold(Transaction::new(), |change, release| {
        change.delete(release_key_text(key, release.number))
    }))
}

/// Forgets versions of secrets that are neither the newest nor part of a release that is kept.
pub(super) fn forgetting_secrets(catalog: &Catalog) -> Vec<Transaction> {
    if catalog.secrets.is_empty() {
        return Vec::new();
    }
    let releases = catalog.releases.iter().flat_map(|((project, _, _), release)| {
        release.secrets.iter().map(move |(name, version)| (project, name, *version))
    });
    let needed: BTreeSet<_> = releases.collect();
    // They come in the order of their versions.
    let versions = catalog.secrets.keys();
    let newest: BTreeMap<_, _> = versions.map(|key| ((&key.0, &key.1), key.2)).collect();
    let past = catalog.secrets.iter().filter(|((project, name, version), _)| {
        newest.get(&(project, name)) != Some(version)
            && !needed.contains(&(project, name, *version))
    });
    let forget = |((project, name, version), stored): (&SecretKey, &Stored<SecretRecord>)| {
        let key = Key::Secret(project.clone(), name.clone(), *version).to_string();
        // A deploy that takes it at this moment writes it again.
        let unchanged = Compare::mod_revision(&key, Relation::Equal, stored.revision);
        Transaction::new().when(unchanged).delete(key)
    };
    past.take(MOST_AT_ONCE).map(forget).collect()
}
