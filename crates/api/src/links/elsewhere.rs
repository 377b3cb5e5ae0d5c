//! What other locations serve, as the global plane tells a location and the location its ingresses.
//!
//! The whole of it goes with a world's apps and would be sent to every location at each change; so the
//! first line of a stream is the whole, and each after it says only what changed since the line before.
//! A stream that breaks begins anew with the whole, so nothing that was lost stays lost.

use std::collections::BTreeMap;

use longshore_types::{AppName, HostName, LocationName, ProjectName};
use serde::{Deserialize, Serialize};

use super::AppRef;

/// What other locations serve, and how they are known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Elsewhere {
    /// The other locations, those included that serve nothing.
    pub peers: BTreeMap<LocationName, Peering>,
    /// What is served there.
    pub apps: BTreeMap<AppRef, Places>,
}

/// How the ingresses of a location are reached and known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peering {
    /// `host:port` where they take requests from other locations; absent where they take none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The SHA-256 of the key of the location's authority, in hexadecimal digits.
    pub authority: String,
    /// The locations to whose ingresses its own keep connections open, over which those that cannot dial it reach
    /// it. It names them itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub relays: Vec<LocationName>,
}

impl Peering {
    /// The most relays of a location that count: one, and another for when that dies.
    pub const MOST_RELAYS: usize = 2;

    /// Whether others have any way to it.
    pub fn is_reachable(&self) -> bool {
        self.address.is_some() || !self.relays.is_empty()
    }
}

/// Where an app can be reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Places {
    /// The host names that lead to it.
    pub hosts: Vec<HostName>,
    /// Locations with an instance that takes requests, the nearest on the map first; not all when there
    /// are many.
    pub at: Vec<LocationName>,
}

/// A line of the stream: what is different from what there was before.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ElsewhereChange {
    /// True when there is nothing besides what is said here; so begins each stream.
    #[serde(default)]
    pub whole: bool,
    /// Locations that are new or known otherwise.
    #[serde(default)]
    pub peers: BTreeMap<LocationName, Peering>,
    /// Locations that are none any more.
    #[serde(default)]
    pub peers_gone: Vec<LocationName>,
    /// Apps that are new or served otherwise.
    #[serde(default)]
    pub apps: Vec<ServedElsewhere>,
    /// Apps that are served nowhere else any more.
    #[serde(default)]
    pub apps_gone: Vec<AppRef>,
}

/// An app and where it can be reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedElsewhere {
    /// The owner.
    pub project: ProjectName,
    /// The app.
    pub app: AppName,
    /// Where.
    #[serde(flatten)]
    pub places: Places,
}

impl ServedElsewhere {
    /// As a line has it.
    pub fn new(app: &AppRef, places: &Places) -> Self {
        let AppRef { project, app } = app.clone();
        Self { project, app, places: places.clone() }
    }
}

impl ElsewhereChange {
    /// True when nothing differs.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Elsewhere {
    /// The first line of a stream.
    pub fn whole(&self) -> ElsewhereChange {
        ElsewhereChange { whole: true, ..self.since(&Self::default()) }
    }

    /// What differs from what there was.
    pub fn since(&self, before: &Self) -> ElsewhereChange {
        let news = |(app, places): &(&AppRef, &Places)| before.apps.get(app) != Some(places);
        let apps = self.apps.iter().filter(news);
        let is_new =
            |(name, peer): &(&LocationName, &Peering)| before.peers.get(name) != Some(peer);
        let peers = self.peers.iter().filter(is_new);
        let peers_gone = before.peers.keys().filter(|name| !self.peers.contains_key(name));
        let apps_gone = before.apps.keys().filter(|app| !self.apps.contains_key(app));
        ElsewhereChange {
            whole: false,
            peers: peers.map(|(name, peer)| (name.clone(), peer.clone())).collect(),
            peers_gone: peers_gone.cloned().collect(),
            apps: apps.map(|(app, places)| ServedElsewhere::new(app, places)).collect(),
            apps_gone: apps_gone.cloned().collect(),
        }
    }

    /// Takes a line over.
    pub fn take(&mut self, change: ElsewhereChange) {
        let ElsewhereChange { whole, peers, peers_gone, apps, apps_gone } = change;
        if whole {
            *self = Self::default();
        }
        peers_gone.iter().for_each(|name| _ = self.peers.remove(name));
        self.peers.extend(peers);
        apps_gone.iter().for_each(|app| _ = self.apps.remove(app));
        self.apps.extend(
            apps.into_iter()
                .map(|ServedElsewhere { project, app, places }| (AppRef { project, app }, places)),
        );
    }
}

/// What an ingress tells its location of the ways to others.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MeasuredWays {
    /// The smoothed round trips, in microseconds.
    pub round_trip_micros: BTreeMap<LocationName, u64>,
    /// The locations to whose ingresses it has connections open by which it can be reached.
    #[serde(default)]
    pub relays: Vec<LocationName>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn anything() -> impl Strategy<Value = Elsewhere> {
        let peers = proptest::collection::btree_map("[a-c]", proptest::option::of(0..3_u8), 0..4);
        let apps = proptest::collection::btree_map(
            "[p-r]",
            proptest::collection::vec("[a-c]", 0..3),
            0..4,
        );
        (peers, apps).prop_map(|(peers, apps)| Elsewhere {
            peers: peers
                .into_iter()
                .map(|(name, at)| (name.parse().unwrap(), peering(at)))
                .collect(),
            apps: apps.into_iter().map(|(app, at)| (app_ref(&app), places(&app, &at))).collect(),
        })
    }

    fn peering(at: Option<u8>) -> Peering {
        let relays = at.iter().map(|at| format!("r{at}").parse().unwrap()).collect();
        Peering { address: at.map(|at| format!("h:{at}")), authority: String::new(), relays }
    }

    fn app_ref(app: &str) -> AppRef {
        AppRef { project: ProjectName::default(), app: app.parse().unwrap() }
    }

    fn places(app: &str, at: &[String]) -> Places {
        let hosts = vec![format!("{app}.test").parse().unwrap()];
        Places { hosts, at: at.iter().map(|name| name.parse().unwrap()).collect() }
    }

    proptest! {
        #[test]
        fn who_takes_every_line_knows_the_whole(
            states in proptest::collection::vec(anything(), 1..6),
            stale in anything(),
        ) {
            // Whatever was known before a stream began counts no more.
            let (mut known, mut told) = (stale, None::<Elsewhere>);
            for state in states {
                let line = match &told {
                    Some(told) => state.since(told),
                    None => state.whole(),
                };
                let line = serde_json::from_slice(&serde_json::to_vec(&line).unwrap()).unwrap();
                known.take(line);
                prop_assert_eq!(&known, &state);
                prop_assert!(state.since(&state).is_empty());
                told = Some(state);
            }
        }
    }
}
