//! What locations go on with although the store, which was restored, does not place it there.
//!
//! Of an app that the store does not know at all nothing is decided here: the backup may be older than the
//! app. That is told, and users deploy it again or remove it. An app that the store knows, though, has its
//! instances where the store says; what else there is of it goes once enough of those are ready.

use std::collections::BTreeSet;

use longshore_api::links::AppRef;
use longshore_link::now;
use longshore_store::{Compare, Transaction};
use longshore_types::LocationName;

use crate::catalog::{AppKey, Catalog};
use crate::events::{Who, with_event};
use crate::records::{Key, LetGoRecord, encode};
use crate::reports::ByLocation;
use crate::{PublicNames, views};

/// Remembers of which strays it was told.
#[derive(Debug, Default)]
pub struct Strays(BTreeSet<(LocationName, AppRef)>);

impl Strays {
    /// What is to be written: which of them are let go, and which are new.
    pub fn changes(
        &mut self,
        catalog: &Catalog,
        reports: &ByLocation,
        public: &PublicNames,
    ) -> Vec<Transaction> {
        let mut changes = finished(catalog, reports);
        let all = all(reports);
        self.0.retain(|known| all.contains(known));
        for (location, stray) in all {
            let key = (stray.project.clone(), stray.app.clone());
            let at = (location.clone(), key.0.clone(), key.1.clone());
            if catalog.let_go.contains_key(&at) || catalog.allotments.contains_key(&at) {
                continue;
            }
            if may_go(catalog, reports, public, &key) {
                let change = let_go(&location, &key);
                let subject = format!("{} at {location}: enough of it runs elsewhere", key.1);
                changes.push(with_event(change, &Who::PLATFORM, Some(&key.0), "let-go", subject));
            } else if self.0.insert((location.clone(), stray)) {
                let subject = format!(
                    "{} at {location}, which the restored store does not place there: a deploy takes it \
                     over, `longshore rm` ends it",
                    key.1
                );
                let event = Transaction::new();
                changes.push(with_event(event, &Who::PLATFORM, Some(&key.0), "keep", subject));
            }
        }
        changes
    }
}

fn all(reports: &ByLocation) -> BTreeSet<(LocationName, AppRef)> {
    let each = reports.iter().flat_map(|(location, received)| {
        received.report.strays.iter().map(|stray| (location.clone(), stray.clone()))
    });
    each.collect()
}

/// Where an app is a stray.
pub fn of<'a>(reports: &'a ByLocation, key: &'a AppKey) -> impl Iterator<Item = &'a LocationName> {
    let has = |stray: &AppRef| (&stray.project, &stray.app) == (&key.0, &key.1);
    let at = reports.iter().filter(move |(_, received)| received.report.strays.iter().any(has));
    at.map(|(location, _)| location)
}

/// Tells a location to let an app go.
pub fn let_go(location: &LocationName, key: &AppKey) -> Transaction {
    let record = Key::LetGo(location.clone(), key.0.clone(), key.1.clone()).to_string();
    Transaction::new().put(record, encode(&LetGoRecord { at: now() }))
}

/// Whether nothing is lost with the strays of an app.
fn may_go(catalog: &Catalog, reports: &ByLocation, public: &PublicNames, key: &AppKey) -> bool {
    let Some(app) = catalog.apps.get(key) else { return false };
    if app.record.removing || app.record.count == 0 {
        return true;
    }
    let strays: BTreeSet<_> = of(reports, key).collect();
    let mut others = reports.clone();
    others.retain(|location, _| !strays.contains(location));
    views::app(catalog, &others, key, public).is_some_and(|app| app.ready >= app.count)
}

/// Forgets what was to be let go and is.
fn finished(catalog: &Catalog, reports: &ByLocation) -> Vec<Transaction> {
    let over = catalog.let_go.iter().filter(|((location, project, app), revision)| {
        let Some(received) = reports.get(location) else { return false };
        let is_it = |stray: &AppRef| (&stray.project, &stray.app) == (project, app);
        let report = &received.report;
        report.acknowledged.0 >= revision.0 && !report.strays.iter().any(is_it)
    });
    let forget = |((location, project, app), _): (&(_, _, _), &_)| {
        let key = Key::LetGo(Clone::clone(location), Clone::clone(project), Clone::clone(app));
        let key = key.to_string();
        Transaction::new().when(Compare::exists(&key)).delete(key)
    };
    over.map(forget).collect()
}
