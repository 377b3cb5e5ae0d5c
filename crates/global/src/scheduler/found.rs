//! What is stored of an app, found once for a look at it.
//!
//! A look asks for the same a dozen times, and of a hundred thousand apps each search takes longer than what is then
//! done with what it found.

use std::sync::Arc;

use longshore_types::{Release, ReleaseNumber};

use super::{Held, held};
use crate::catalog::{AppKey, Catalog, Stored};
use crate::records::AppRecord;

/// What is stored of an app.
pub struct Found<'a> {
    pub key: &'a AppKey,
    pub stored: &'a Stored<AppRecord>,
    /// The release that should run.
    pub release: Option<&'a Arc<Release>>,
    /// What the locations were given of it.
    pub held: Held<'a>,
}

impl<'a> Found<'a> {
    /// That of an app, if there is such a one.
    pub fn new(catalog: &'a Catalog, key: &'a AppKey) -> Option<Self> {
        let stored = catalog.apps.get(key)?;
        let release = catalog.release(key, stored.record.release);
        Some(Self { key, stored, release, held: held(catalog, key) })
    }

    /// What should be of it.
    pub fn record(&self) -> &'a AppRecord {
        &self.stored.record
    }

    /// A release of it.
    pub fn release(&self, catalog: &'a Catalog, number: ReleaseNumber) -> Option<&'a Arc<Release>> {
        let current = self.release.filter(|release| release.number == number);
        current.or_else(|| catalog.release(self.key, number))
    }
}
