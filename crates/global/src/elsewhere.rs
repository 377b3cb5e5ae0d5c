//! What is served where, told to each location, so that its ingresses can pass requests on.
//!
//! Of each app a location is told the few nearest other locations that serve it: all of them would be the
//! product of apps and locations, for every location. Which are the nearest is only guessed here, by the map;
//! ingresses measure. What is told changes when an app's first instance somewhere becomes ready or its last one
//! goes, not with each instance.
//!
//! An app that has to stay in a jurisdiction is told of there alone: elsewhere its requests are not even taken in to
//! be passed on, for they would be read where they may not be.
//!
//! A control plane that has just begun knows nothing of locations that did not report yet, and what it said
//! would take away what they serve. So it says nothing until all have, or have had the time for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::response::Response;
use futures_util::StreamExt as _;
use longshore_api::links::{AppRef, ElsewhereChange, Peering, Places, ServedElsewhere};
use longshore_link::{Pace, json_lines, watch_lines};
use longshore_types::jurisdiction::is_within;
use longshore_types::{Coordinates, Country, HostName, Jurisdiction, LocationName};
use tokio::time::Instant;

use crate::catalog::{AppKey, Catalog};
use crate::reports::{ByLocation, Received};
use crate::{Plane, links, views};

/// To how many locations the requests for an app may go from one that has none of its instances.
const MOST_PLACES: usize = 8;
/// How long locations have to report to a control plane that has just begun.
const ALL_REPORT_WITHIN: Duration = Duration::from_secs(60);
/// How often to look without a change: locations fall silent without one.
const INTERVAL: Duration = Duration::from_secs(5);
/// How long to rest after a look at all instances, in looks.
const REST: u32 = 4;

/// What is served where.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Served {
    places: BTreeMap<LocationName, Place>,
    apps: BTreeMap<AppKey, Arc<ServedApp>>,
}

/// A location whose ingresses others know.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    peering: Peering,
    coordinates: Option<Coordinates>,
    country: Option<Country>,
    /// It has not reported for a while. Others may reach it all the same.
    silent: bool,
}

#[derive(Debug, PartialEq, Eq)]
struct ServedApp {
    hosts: Vec<HostName>,
    /// Where its requests may be taken in; anywhere when empty.
    jurisdiction: BTreeSet<Jurisdiction>,
    at: BTreeSet<LocationName>,
}

impl Served {
    /// By what is stored and reported. What is as before is shared with that.
    fn of(catalog: &Catalog, reports: &ByLocation, domain: &str, before: Option<&Self>) -> Self {
        let places: BTreeMap<_, _> = catalog
            .locations
            .iter()
            .filter_map(|(name, record)| {
                let received = reports.get(name);
                let authority = record.authority.map(|key| key.to_string());
                Some((name.clone(), Place::of(received, authority)?))
            })
            .collect();
        let mut at: BTreeMap<AppKey, BTreeSet<LocationName>> = BTreeMap::new();
        for (name, received) in reports.iter() {
            if places.get(name).is_none_or(|place| !place.peering.is_reachable()) {
                continue;
            }
            for status in received.instances() {
                if !views::is_ready(status) || status.is_command {
                    continue;
                }
                let (project, app) = (status.project.clone(), status.app.clone());
                // It could say that it has what it was never given, and would get the requests for that.
                let allotment = (name.clone(), project, app);
                if catalog.allotments.contains_key(&allotment) {
                    let (name, project, app) = allotment;
                    at.entry((project, app)).or_default().insert(name);
                }
            }
        }
        let app = |(key, at): (AppKey, BTreeSet<LocationName>)| {
            let manifest = &catalog.current_release(&key)?.manifest;
            manifest.port?;
            let jurisdiction = manifest.placement.jurisdiction.clone();
            let app = ServedApp { hosts: views::hosts(manifest, domain), jurisdiction, at };
            let known = before.and_then(|before| before.apps.get(&key));
            let same = known.filter(|known| ***known == app).cloned();
            Some((key, same.unwrap_or_else(|| Arc::new(app))))
        };
        Self { apps: at.into_iter().filter_map(app).collect(), places }
    }

    /// What a location has to be told that was told of `before`.
    fn change(&self, before: Option<&Self>, to: &LocationName) -> ElsewhereChange {
        let nothing = Self::default();
        let known = before.unwrap_or(&nothing);
        let mut change = ElsewhereChange { whole: before.is_none(), ..ElsewhereChange::default() };
        for (name, place) in self.places.iter().filter(|(name, _)| *name != to) {
            if known.places.get(name).is_none_or(|before| before.peering != place.peering) {
                change.peers.insert(name.clone(), place.peering.clone());
            }
        }
        let gone = known.places.keys().filter(|name| !self.places.contains_key(*name));
        change.peers_gone = gone.cloned().collect();
        let same_places = known.places == self.places;
        for (key, app) in &self.apps {
            let was = known.apps.get(key);
            if same_places && was.is_some_and(|was| Arc::ptr_eq(was, app)) {
                continue;
            }
            let (now, was) =
                (self.seen_from(to, app), was.and_then(|was| known.seen_from(to, was)));
            match now {
                Some(now) if was.as_ref() != Some(&now) => {
                    change.apps.push(ServedElsewhere::new(&app_ref(key), &now));
                }
                None if was.is_some() => change.apps_gone.push(app_ref(key)),
                _ => {}
            }
        }
        let gone = known.apps.iter().filter(|(key, _)| !self.apps.contains_key(*key));
        let gone = gone.filter(|(_, was)| known.seen_from(to, was).is_some());
        change.apps_gone.extend(gone.map(|(key, _)| app_ref(key)));
        change
    }

    /// Whether a location is in one of these, where there are any. One whose country nobody said is in none.
    fn is_within(&self, jurisdiction: &BTreeSet<Jurisdiction>, name: &LocationName) -> bool {
        is_within(jurisdiction, self.places.get(name).and_then(|place| place.country))
    }

    /// Where an app is served, for one of the locations.
    fn seen_from(&self, from: &LocationName, app: &ServedApp) -> Option<Places> {
        if !self.is_within(&app.jurisdiction, from) {
            return None;
        }
        let here = self.places.get(from).and_then(|place| place.coordinates);
        let distance = |place: &Place| match (here, place.coordinates) {
            (Some(here), Some(there)) => here.kilometres_to(there),
            _ => f64::INFINITY,
        };
        let others = app.at.iter().filter(|name| *name != from);
        let others = others.filter(|name| self.is_within(&app.jurisdiction, name));
        let mut others: Vec<_> = others
            .filter_map(|name| Some((name, self.places.get(name)?)))
            .map(|(name, place)| (place.silent, distance(place), mixed(from, name), name))
            .collect();
        others.sort_by(|a, b| {
            a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then((a.2, a.3).cmp(&(b.2, b.3)))
        });
        let at: Vec<_> = others.into_iter().take(MOST_PLACES).map(|one| one.3.clone()).collect();
        (!at.is_empty()).then(|| Places { hosts: app.hosts.clone(), at })
    }
}

impl Place {
    /// One that joined is known by the key that it joined with, one of this machine by what it says.
    fn of(received: Option<&Received>, authority: Option<String>) -> Option<Self> {
        let said = received.and_then(|received| received.report.peering.clone());
        let mut peering = match (authority, said) {
            (Some(authority), Some(said)) => Peering { authority, ..said },
            (Some(authority), None) => Peering { address: None, authority, relays: Vec::new() },
            (None, said) => said?,
        };
        peering.relays.truncate(Peering::MOST_RELAYS);
        let coordinates = received.and_then(|received| received.report.coordinates);
        let country = received.and_then(|received| received.report.traits.country);
        let silent = received.is_none_or(|received| !received.reachable());
        Some(Self { peering, coordinates, country, silent })
    }
}

/// An order that is another one for each location, so that where the map says nothing not all go to the
/// same.
fn mixed(from: &LocationName, to: &LocationName) -> u64 {
    let bytes = from.as_str().bytes().chain([0]).chain(to.as_str().bytes());
    // FNV-1a, which is the same everywhere.
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn app_ref((project, app): &AppKey) -> AppRef {
    AppRef { project: project.clone(), app: app.clone() }
}

/// Works out what is served where, for ever.
pub async fn keep(plane: Arc<Plane>) {
    let began = Instant::now();
    let (mut catalog, mut reports) = (plane.catalog.subscribe(), plane.reports.subscribe());
    let mut pace = Pace::new(REST);
    loop {
        pace.rest().await;
        let looked = Instant::now();
        let (stored, reported) = (catalog.borrow_and_update().clone(), reports.borrow_and_update());
        let all_reported = stored.locations.keys().all(|name| reported.contains_key(name));
        let known = plane.served.borrow().clone();
        if known.is_some() || all_reported || began.elapsed() >= ALL_REPORT_WITHIN {
            let domain = &plane.public.domain;
            let served = Served::of(&stored, &reported, domain, known.as_ref().as_ref());
            if known.as_ref().as_ref() != Some(&served) {
                plane.served.send_replace(Arc::new(Some(served)));
            }
        }
        pace.worked_since(looked);
        let news = async {
            tokio::select! {
                changed = catalog.changed() => changed,
                changed = reports.changed() => changed,
            }
        };
        // Without news it is looked at all the same. An error means that the control plane ends.
        if tokio::time::timeout(INTERVAL, news).await.is_ok_and(|news| news.is_err()) {
            return;
        }
    }
}

/// What is served elsewhere, for a location: the whole, then what changes.
pub async fn elsewhere(
    State(plane): State<Arc<Plane>>,
    Path(location): Path<LocationName>,
) -> Response {
    let removed = links::removed(plane.catalog.subscribe(), location.clone());
    let mut told: Arc<Option<Served>> = Arc::default();
    let changes = watch_lines(plane.served.subscribe()).filter_map(move |served| {
        let change =
            served.as_ref().as_ref().map(|now| now.change(told.as_ref().as_ref(), &location));
        told = served;
        // The first says that it is the whole, so it is never empty.
        std::future::ready(change.filter(|change| !change.is_empty()))
    });
    json_lines(changes.take_until(removed), plane.service.shutdown())
}

#[cfg(test)]
mod tests;
