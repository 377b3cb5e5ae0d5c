//! Other locations: where a request goes for which there is no instance here.
//!
//! It goes to the ingress of another location, which has one: the nearest, by the round trips that are
//! measured from here and by the requests under way there (`choose`). That one answers with an instance of its
//! own or refuses, and never passes it on again: what comes in at the door for other locations is looked for
//! among local instances alone. So there is no header that says how far a request has come, which a user could
//! forge, and no loop, however old the tables are.
//!
//! What is served where comes from the global plane by way of the location (`follow`), and is kept on disk. It
//! may be old. A location that takes no connection is passed over until a probe finds it (`probe`); one that
//! refuses a request for want of an instance is passed over for that app for a while.
//!
//! - `choose`: which location gets a request, decided without effects.
//! - `measure`: what is known of the way there. `probe`: finds it out.
//! - `way`: how an ingress elsewhere is known. `paths`: by which path it is reached. `door`: who may come in.
//! - `relays`: through whom this location is reached by those that cannot dial it.
//! - `follow`: where the table comes from.

mod choose;
mod door;
mod follow;
mod measure;
mod paths;
mod probe;
mod relays;
mod way;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use longshore_api::links::{AppRef, Elsewhere, ElsewhereChange, Peering, Places};
use longshore_link::{Reverse, Reverses};
use longshore_trust::{Fingerprint, Name, Peer};
use longshore_types::LocationName;
use tokio::sync::watch;
use tokio::time::Instant;

pub(crate) use door::{Came, Door, Guest, Visit, Visitor};
pub(crate) use follow::follow;
pub(crate) use measure::Told;
pub(crate) use probe::probe;
pub(crate) use relays::keep as keep_relays;
pub(crate) use way::Way;

use crate::balance::Times;
use crate::metrics::{AppLabels, Metrics, PeerCensus};
use crate::router::App;
use crate::upstream::{InFlight, Site, Upstream};
use choose::Candidate;
use measure::Measure;
use paths::Paths;

/// For how long a location gets no requests for an app after it refused one for want of an instance. What is
/// served where is told within a second or two, when there is somebody to tell it.
const REFUSED_FOR: Duration = Duration::from_secs(5);

/// The other locations, shared by all requests.
#[derive(Debug, Default)]
pub(crate) struct Others {
    times: Times,
    metrics: Metrics,
    table: RwLock<Table>,
    /// Raised when something was told of who the others are.
    news: watch::Sender<u64>,
    /// Connections that other locations opened, by which they can be reached.
    opened: Reverses,
    /// The locations to which such are open from here.
    relays: watch::Sender<Vec<LocationName>>,
}

#[derive(Debug, Default)]
struct Table {
    known: Elsewhere,
    by_host: HashMap<String, Arc<Served>>,
    locations: BTreeMap<LocationName, Arc<Location>>,
}

/// An app that is served elsewhere.
#[derive(Debug)]
struct Served {
    app: AppRef,
    /// The nearest on the map first.
    at: Vec<LocationName>,
    /// Until when a location gets none of its requests.
    refused: Mutex<BTreeMap<LocationName, Instant>>,
}

/// A location that takes requests from this one.
#[derive(Debug)]
pub(crate) struct Location {
    pub way: Way,
    pub upstream: Arc<Upstream>,
    measure: Mutex<Measure>,
    paths: Mutex<Paths>,
}

impl Location {
    fn new(way: Way, now: Instant) -> Self {
        let upstream = Arc::new(Upstream::new(Site::Location(way.clone()), now));
        Self { way, upstream, measure: Mutex::default(), paths: Mutex::new(Paths::new(now)) }
    }

    fn candidate(&self, untried: bool, passed_over: bool) -> Candidate {
        let measure = lock(&self.measure);
        Candidate {
            round_trip: measure.round_trip(),
            load: measure.load(self.upstream.outstanding()),
            passed_over: passed_over || self.upstream.takes_no_connection(),
            untried,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Others {
    /// Nothing is known yet.
    pub fn new(times: Times, metrics: Metrics) -> Self {
        Self { times, metrics, ..Self::default() }
    }

    /// Takes over what was told; returns the apps that are served elsewhere no more. Requests that are under way
    /// go on to their end.
    pub fn take(&self, change: ElsewhereChange) -> Vec<AppLabels> {
        let now = Instant::now();
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let Elsewhere { peers: before, apps } = table.known.clone();
        table.known.take(change);
        let gone = table.rebuild(now);
        let peers = &table.known.peers;
        let left = before.keys().filter(|name| !peers.contains_key(*name));
        left.for_each(|name| self.metrics.forget_peer(name));
        let changed = before != *peers;
        let served = &table.known.apps;
        let apps_gone = apps.keys().filter(|app| !served.contains_key(app)).map(labels).collect();
        let without_relay = table.without_relay();
        drop(table);
        gone.iter().for_each(|location| location.upstream.retire());
        without_relay.iter().for_each(|location| location.leave_relay());
        if changed {
            self.opened.retain(
                |name| matches!(name, Name::Ingress(location) if self.key_of(location).is_some()),
            );
            self.news.send_modify(|number| *number += 1);
        }
        apps_gone
    }

    /// What is known, as it is kept on disk.
    pub fn whole(&self) -> ElsewhereChange {
        self.table.read().unwrap_or_else(PoisonError::into_inner).known.whole()
    }

    /// Picks a location for a request to `host` that none of `tried` took, and counts the request there.
    pub fn pick(&self, host: &str, tried: &BTreeSet<LocationName>) -> Option<InFlight> {
        let now = Instant::now();
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let served = table.by_host.get(host)?;
        let at = served.at.iter().filter_map(|name| table.locations.get(name));
        let at: Vec<_> = at.collect();
        let candidates: Vec<_> = at
            .iter()
            .map(|location| {
                let name = &location.way.location;
                location.candidate(!tried.contains(name), served.is_refused(name, now))
            })
            .collect();
        let chosen = at[choose::choose(&candidates)?];
        let labels = served.labels();
        // The name of an app that may have no instance here for long: looked up when it is needed.
        let metrics = self.metrics.of_app(&labels);
        let app = Arc::new(App::elsewhere(served.app.app.clone(), labels, metrics));
        Some(InFlight::begin(&chosen.upstream, &app, &self.times))
    }

    /// A location refused a request to `host` for want of an instance.
    pub fn note_refused(&self, host: &str, location: &LocationName) {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(served) = table.by_host.get(host) {
            lock(&served.refused).insert(location.clone(), Instant::now() + REFUSED_FOR);
        }
    }

    /// The app of a host that is served elsewhere.
    pub fn app(&self, host: &str) -> Option<AppRef> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.by_host.get(host).map(|served| served.app.clone())
    }

    /// The location that a peer speaks for as one of its ingresses, when it is one of this world's that has not
    /// been removed.
    pub fn recognize(&self, peer: &Peer) -> Option<LocationName> {
        let Peer::Known { name: Name::Ingress(location), authority: Some(key), .. } = peer else {
            return None;
        };
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let known = table.known.peers.get(location)?;
        (known.authority.parse() == Ok(*key)).then(|| location.clone())
    }

    /// What a location opened to be reached over, and by which key it is known; none when it is no location of this
    /// world.
    pub fn opened_by(&self, location: &LocationName) -> Option<(Reverse, Fingerprint)> {
        let key = self.key_of(location)?;
        Some((self.opened.of(&Name::Ingress(location.clone()), key), key))
    }

    /// Waits until a location is not known by this key any more.
    pub async fn left(&self, location: &LocationName, key: Fingerprint) {
        let mut news = self.news.subscribe();
        // The sender lives as long as this.
        let _ = news.wait_for(|_| self.key_of(location) != Some(key)).await;
    }

    fn key_of(&self, location: &LocationName) -> Option<Fingerprint> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.known.peers.get(location)?.authority.parse().ok()
    }

    fn location(&self, name: &LocationName) -> Option<Arc<Location>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.locations.get(name).cloned()
    }

    /// Waits until a peer that was recognized would not be any more.
    pub async fn removed(&self, peer: &Peer) {
        let mut news = self.news.subscribe();
        // The sender lives as long as this.
        let _ = news.wait_for(|_| self.recognize(peer).is_none()).await;
    }

    /// Every location that takes requests, those that are named first by apps first.
    pub fn locations(&self) -> Vec<Arc<Location>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let mut ranks: BTreeMap<&LocationName, usize> = BTreeMap::new();
        for served in table.by_host.values() {
            for (rank, name) in served.at.iter().enumerate() {
                let best = ranks.entry(name).or_insert(rank);
                *best = rank.min(*best);
            }
        }
        let rank = |name: &LocationName| ranks.get(name).copied().unwrap_or(usize::MAX);
        let mut all: Vec<_> = table.locations.values().cloned().collect();
        all.sort_by_key(|location| rank(&location.way.location));
        all
    }

    /// How the ways to other locations are.
    pub fn census(&self) -> Vec<PeerCensus> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let one = |location: &Arc<Location>| PeerCensus {
            to: location.way.location.clone(),
            round_trip: lock(&location.measure).round_trip(),
            in_flight: location.upstream.outstanding(),
            passed_over: location.upstream.takes_no_connection(),
            relayed: location.relay().is_some(),
        };
        table.locations.values().map(one).collect()
    }
}

impl Table {
    /// Makes what requests look up from what is known; returns the locations that are gone, or reached
    /// otherwise.
    fn rebuild(&mut self, now: Instant) -> Vec<Arc<Location>> {
        let Self { known, by_host, locations } = self;
        let before = std::mem::take(locations);
        for (name, peering) in &known.peers {
            let Some(way) = way_to(name, peering) else { continue };
            let kept = before.get(name).filter(|kept| kept.way == way).cloned();
            let location = kept.unwrap_or_else(|| Arc::new(Location::new(way, now)));
            locations.insert(name.clone(), location);
        }
        let stays = |one: &Arc<Location>| {
            locations.get(&one.way.location).is_some_and(|kept| Arc::ptr_eq(kept, one))
        };
        let gone = before.into_values().filter(|one| !stays(one)).collect();
        let served_before = std::mem::take(by_host);
        for (app, Places { hosts, at }) in &known.apps {
            let same = |served: &&Arc<Served>| served.app == *app && served.at == *at;
            let kept = hosts.first().and_then(|host| served_before.get(host.as_str()));
            let served = kept.filter(same).cloned().unwrap_or_else(|| {
                Arc::new(Served { app: app.clone(), at: at.clone(), refused: Mutex::default() })
            });
            for host in hosts {
                // The first of two apps with one host has it, as here.
                by_host.entry(host.as_str().to_owned()).or_insert_with(|| Arc::clone(&served));
            }
        }
        gone
    }

    /// Locations that are reached through another one which they have connections open to no more.
    fn without_relay(&self) -> Vec<Arc<Location>> {
        let has_left = |location: &&Arc<Location>| {
            let name = &location.way.location;
            let relays = self.known.peers.get(name).map(|peering| &*peering.relays);
            let relay = location.relay().filter(|relay| relay != name);
            relay.is_some_and(|relay| !relays.unwrap_or_default().contains(&relay))
        };
        self.locations.values().filter(has_left).cloned().collect()
    }
}

fn labels(app: &AppRef) -> AppLabels {
    AppLabels::new(&app.project, &app.app)
}

/// The way to the ingress of a location that has one for others.
fn way_to(location: &LocationName, peering: &Peering) -> Option<Way> {
    let authority: Fingerprint = peering.authority.parse().ok()?;
    let address = peering.address.clone();
    peering.is_reachable().then(|| Way { location: location.clone(), address, authority })
}

impl Served {
    fn labels(&self) -> AppLabels {
        labels(&self.app)
    }

    fn is_refused(&self, location: &LocationName, now: Instant) -> bool {
        lock(&self.refused).get(location).is_some_and(|until| now < *until)
    }
}
