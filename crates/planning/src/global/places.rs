//! The locations among which a planner chooses, and what is worked out of them once for many choices.
//!
//! An app with an instance at each of hundreds of locations is planned one instance at a time: whatever is the same
//! for all of them must not be looked for again for each, nor for each location that is judged.

use std::cell::OnceCell;
use std::collections::BTreeMap;

use longshore_types::LocationName;

use super::constraints::{leaving, only_elsewhere};
use super::users::{Demand, Nearness, UserWays};
use super::{LocationState, Share, WantedApp};

/// All locations, for the planning of one app.
pub(super) struct Places<'a> {
    /// In the order of their names.
    all: &'a [LocationState],
    demand: &'a Demand,
    ways: OnceCell<UserWays<'a>>,
}

impl<'a> Places<'a> {
    /// These, which are in the order of their names, for an app with such users.
    pub fn new(all: &'a [LocationState], demand: &'a Demand) -> Self {
        debug_assert!(all.is_sorted_by(|a, b| a.name < b.name), "in the order of their names");
        Self { all, demand, ways: OnceCell::new() }
    }

    /// All of them.
    pub fn all(&self) -> &'a [LocationState] {
        self.all
    }

    /// The one of this name, if it is known.
    pub fn at(&self, name: &LocationName) -> Option<&'a LocationState> {
        let found = self.all.binary_search_by(|location| location.name.cmp(name));
        found.ok().map(|idx| &self.all[idx])
    }

    /// How far each is from the users of the app.
    pub fn ways(&self) -> &UserWays<'a> {
        self.ways.get_or_init(|| UserWays::between(self.demand, self.all))
    }
}

/// What one more instance of an app is judged by.
pub(super) struct Among<'a, 'p> {
    /// The locations.
    pub places: &'a Places<'p>,
    /// Its users, where these are known and count.
    pub users: Option<Nearness<'a>>,
    /// Whether only a location that has none of it may have one more.
    pub only_elsewhere: bool,
    /// How many each location had, and has by now.
    before: BTreeMap<&'a LocationName, u32>,
    now: BTreeMap<&'a LocationName, u32>,
}

impl<'a, 'p> Among<'a, 'p> {
    /// By what each location will have.
    pub fn of(app: &'a WantedApp, shares: &'a [Share], places: &'a Places<'p>) -> Self {
        let users = Nearness::of(app, shares, places);
        Self { users, ..Self::without_users(app, shares, places) }
    }

    /// The same, whoever the users are.
    pub fn without_users(app: &'a WantedApp, shares: &'a [Share], places: &'a Places<'p>) -> Self {
        let only_elsewhere = only_elsewhere(app, shares, || leaving(app, shares, places));
        let (before, now) = (counts(&app.shares), counts(shares));
        Self { places, users: None, only_elsewhere, before, now }
    }

    /// How many a location had before anything was planned.
    pub fn before(&self, name: &LocationName) -> u32 {
        self.before.get(name).copied().unwrap_or(0)
    }

    /// How many it has by what is planned so far.
    pub fn now(&self, name: &LocationName) -> u32 {
        self.now.get(name).copied().unwrap_or(0)
    }
}

fn counts(shares: &[Share]) -> BTreeMap<&LocationName, u32> {
    let mut counts = BTreeMap::new();
    for share in shares {
        *counts.entry(&share.location).or_default() += share.count;
    }
    counts
}
