//! The users of an app: where they are, how far its instances are from there, and how many are near enough.
//!
//! A location stands for the users whose requests come in there. What lies between two locations their ingresses
//! measure; where none did, it is estimated by the map, as the median of what is measured between cities. So a goal
//! means the same on the first day as later, and a place that nobody asked yet is not taken for one that is near.
//!
//! Where the next instance goes is a greedy choice, one at a time: the location that brings most users within the
//! goal, and of these the one that makes the way shortest on average. Greedy, because each choice has to have a
//! reason that a person can read, and must not undo the one before; for what is asked here it is proven to be within
//! a constant factor of the best. Rejected: solving for all instances at once, which moves half of them for
//! one percent; a model of load, for what an instance can take is not known here, and count is the user's.

use std::collections::BTreeMap;

use longshore_types::{Coordinates, Duration, LatencyGoal, LocationName, Placement};
use serde::{Deserialize, Serialize};

use super::constraints::leaving;
use super::rebalance::Moving;
use super::{KM_PENALTY, LocationState, Places, Share, WantedApp};

/// Below so many requests an hour nobody knows where the users of an app are: it may be one who tried it.
const LEAST_REQUESTS: u64 = 12;
/// Users at so many locations are looked at, those with most of them.
const MOST_LOCATIONS: usize = 64;
/// A way counts as this that nobody knows anything of, in milliseconds; also the longest that there is.
const UNKNOWN: u32 = 2000;
/// What the first and the last kilometre take of a round trip, and what each of those between takes, in microseconds:
/// light in glass, on ways that are some twice as long as the shortest.
const AT_THE_ENDS: u32 = 2000;
const PER_KM: u32 = 21;
/// A thousandth of the users within the goal weighs more than any way.
const GOAL_BONUS: i64 = 1 << 36;
/// What the way of users who have an instance already counts less than that of the others.
const SECOND: u32 = 16;

/// Where the users of an app are, and what is on its way for them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Demand {
    /// Of a thousand, how many come in at each location; nobody where that is not known.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub users: BTreeMap<LocationName, u32>,
    /// The instance that moves to be nearer to them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moving: Option<Moving>,
}

impl Demand {
    /// By how many requests came in where, an hour.
    pub fn of(requests: impl IntoIterator<Item = (LocationName, u64)>) -> Self {
        let mut all: Vec<_> = requests.into_iter().filter(|(_, requests)| *requests > 0).collect();
        let sum = |all: &[(LocationName, u64)]| {
            all.iter().fold(0_u64, |sum, (_, requests)| sum.saturating_add(*requests))
        };
        if sum(&all) < LEAST_REQUESTS {
            return Self::default();
        }
        all.sort_by(|(a, most), (b, other)| other.cmp(most).then_with(|| a.cmp(b)));
        all.truncate(MOST_LOCATIONS);
        let total = u128::from(sum(&all));
        let permille = |requests: u64| {
            u32::try_from(u128::from(requests) * 1000 / total).expect("a part of the total")
        };
        let users = all.into_iter().map(|(name, requests)| (name, permille(requests)));
        Self { users: users.filter(|(_, users)| *users > 0).collect(), moving: None }
    }
}

/// What is known of the ways between locations.
#[derive(Debug, Clone, Default)]
pub struct Ways<'a>(BTreeMap<&'a LocationName, Place<'a>>);

#[derive(Debug, Clone, Copy)]
struct Place<'a> {
    coordinates: Option<Coordinates>,
    round_trips: &'a BTreeMap<LocationName, Duration>,
}

impl<'a> Ways<'a> {
    /// By where each of some locations is, and what it measured.
    pub fn of(
        locations: impl Iterator<
            Item = (&'a LocationName, Option<Coordinates>, &'a BTreeMap<LocationName, Duration>),
        >,
    ) -> Self {
        let places = locations
            .map(|(name, coordinates, round_trips)| (name, Place { coordinates, round_trips }));
        Self(places.collect())
    }

    fn between(locations: &'a [LocationState]) -> Self {
        Self::of(locations.iter().map(|one| (&one.name, one.coordinates, &one.round_trips)))
    }

    /// The round trip between two of them in milliseconds, as it was measured by either, else by the map.
    fn millis(&self, from: &LocationName, to: &LocationName) -> Option<u32> {
        if from == to {
            return Some(0);
        }
        let (here, there) = (self.0.get(from)?, self.0.get(to)?);
        let measured = here.round_trips.get(to).or_else(|| there.round_trips.get(from));
        let estimate = || {
            let micros = AT_THE_ENDS + PER_KM * here.coordinates?.km_to(there.coordinates?);
            Some(micros.div_ceil(1000))
        };
        let measured = measured.map(|way| u32::try_from(way.0.as_millis()).unwrap_or(u32::MAX));
        measured.or_else(estimate).map(|millis| millis.min(UNKNOWN))
    }
}

/// How far locations are from the users of an app, in milliseconds: worked out once, and then looked at for each
/// instance and each place where it could be.
#[derive(Debug, Clone)]
pub(super) struct UserWays<'a> {
    /// Of a thousand users, how many are at each location that is known.
    users: Vec<u32>,
    /// The ways from there to a location, in the same order.
    to: BTreeMap<&'a LocationName, Vec<u32>>,
    /// Those to a location of which nothing is known.
    unknown: Vec<u32>,
}

impl<'a> UserWays<'a> {
    /// Those to all of these locations.
    pub fn between(demand: &Demand, locations: &'a [LocationState]) -> Self {
        Self::new(demand, &Ways::between(locations), locations.iter().map(|one| &one.name))
    }

    fn new(
        demand: &Demand,
        ways: &Ways<'_>,
        names: impl Iterator<Item = &'a LocationName>,
    ) -> Self {
        // Users of a location that was removed come in elsewhere by now.
        let known = demand.users.iter().filter(|(at, _)| ways.0.contains_key(at));
        let (at, users): (Vec<_>, Vec<_>) = known.map(|(at, users)| (at, *users)).unzip();
        let to = |name| {
            let way = |at: &&LocationName| ways.millis(at, name).unwrap_or(UNKNOWN);
            (name, at.iter().map(way).collect())
        };
        Self { to: names.map(to).collect(), unknown: vec![UNKNOWN; at.len()], users }
    }

    fn to(&self, name: &LocationName) -> &[u32] {
        self.to.get(name).unwrap_or(&self.unknown)
    }
}

/// How near the instances of an app are to its users.
#[derive(Debug)]
pub(super) struct Nearness<'a> {
    goal: Option<LatencyGoal>,
    /// Whether something else says which place is best.
    has_place: bool,
    ways: &'a UserWays<'a>,
    groups: Vec<Group>,
}

/// The users at a location.
#[derive(Debug, Clone, Copy)]
struct Group {
    users: u32,
    /// The way to the nearest instance, in milliseconds.
    way: u32,
    /// How many instances are as near as that.
    n_near: u32,
    /// The way to the nearest of those that are farther.
    next: u32,
}

impl Group {
    fn add(&mut self, way: u32, count: u32) {
        if way < self.way {
            (self.way, self.n_near, self.next) = (way, count, self.way);
        } else if way == self.way {
            self.n_near += count;
        } else {
            self.next = self.next.min(way);
        }
    }

    /// The way to the nearest without one that is so far.
    fn without(&self, way: u32) -> u32 {
        if way == self.way && self.n_near <= 1 { self.next } else { self.way }
    }
}

/// A figure for how well users are off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Figure {
    /// Of a thousand, how many are within the goal.
    pub within: u32,
    /// The way on average, in tenths of a millisecond.
    pub way: u32,
}

impl<'a> Nearness<'a> {
    /// By what stays of these shares and is heard of; nothing where nobody knows who the users are.
    pub fn of(app: &WantedApp, shares: &[Share], places: &'a Places<'_>) -> Option<Self> {
        if app.demand.users.is_empty() {
            return None;
        }
        let leaving = leaving(app, shares, places);
        let staying = shares.iter().zip(leaving).filter(|(share, _)| !share.lost);
        let staying = staying.map(|(share, gone)| (&share.location, share.count - gone));
        Self::new(&app.placement, staying, places.ways())
    }

    fn new<'b>(
        placement: &Placement,
        instances: impl Iterator<Item = (&'b LocationName, u32)>,
        ways: &'a UserWays<'a>,
    ) -> Option<Self> {
        let group = |users: &u32| Group { users: *users, way: UNKNOWN, n_near: 0, next: UNKNOWN };
        let groups: Vec<_> = ways.users.iter().map(group).collect();
        if groups.is_empty() {
            return None;
        }
        let mut nearness =
            Self { goal: placement.goal(), has_place: placement.near.is_some(), ways, groups };
        for (name, count) in instances.filter(|(_, count)| *count > 0) {
            nearness.add(name, count);
        }
        Some(nearness)
    }

    fn add(&mut self, name: &LocationName, count: u32) {
        for (group, way) in self.groups.iter_mut().zip(self.ways.to(name)) {
            group.add(*way, count);
        }
    }

    /// As it is.
    pub fn figure(&self) -> Figure {
        self.sum(self.groups.iter().map(|group| (group.users, group.way)))
    }

    /// As it would be with one more instance there.
    pub fn with(&self, name: &LocationName) -> Figure {
        self.sum(self.each(name).map(|(group, way)| (group.users, group.way.min(way))))
    }

    /// As it would be with that one alone.
    fn alone(&self, name: &LocationName) -> Figure {
        self.sum(self.each(name).map(|(group, way)| (group.users, way)))
    }

    /// As it would be with one less there, where one is.
    pub fn without(&self, name: &LocationName) -> Figure {
        self.sum(self.each(name).map(|(group, way)| (group.users, group.without(way))))
    }

    /// As it would be with one less there, where one is, and one more elsewhere.
    pub fn moved(&self, from: &LocationName, to: &LocationName) -> Figure {
        let each = self.each(from).zip(self.ways.to(to));
        self.sum(each.map(|((group, from), to)| (group.users, group.without(from).min(*to))))
    }

    /// The groups, and how far each is from a location.
    fn each(&self, name: &LocationName) -> impl Iterator<Item = (&Group, u32)> {
        self.groups.iter().zip(self.ways.to(name).iter().copied())
    }

    /// Over all groups, each with a weight and a way.
    fn sum(&self, each: impl Iterator<Item = (u32, u32)>) -> Figure {
        let goal = self.goal.map(|goal| goal.within.0.as_millis());
        let (mut total, mut within, mut way) = (0_u64, 0_u64, 0_u64);
        for (weight, millis) in each {
            let weight = u64::from(weight);
            total += weight;
            way += weight * u64::from(millis) * 10;
            if goal.is_some_and(|goal| u128::from(millis) <= goal) {
                within += weight;
            }
        }
        let part = |sum: u64| u32::try_from(sum / total.max(1)).unwrap_or(u32::MAX);
        Figure { within: part(within * 1000), way: part(way) }
    }

    /// The part of the goal that a figure is, none of it counted twice.
    pub fn worth(&self, figure: Figure) -> u32 {
        self.goal.map_or(0, |goal| figure.within.min(goal.users.permille()))
    }

    /// What one more instance there is worth, and in words.
    pub fn judge(&self, name: &LocationName) -> (i64, String) {
        let (with, alone) = (self.with(name), self.alone(name));
        let gain = i64::from(self.worth(with)) - i64::from(self.worth(self.figure()));
        let mut score = gain * GOAL_BONUS;
        if !self.has_place {
            // Where all have an instance that is as near as can be, the next goes to those who share one with most.
            let weight = |group: &Group| group.users * 1000 / (1 + group.n_near);
            let shared = self.sum(self.each(name).map(|(group, way)| (weight(group), way)));
            score -= i64::from(with.way + shared.way / SECOND) * KM_PENALTY;
        }
        let words = match self.goal {
            None => format!(", {} ms from its users on average", alone.way.div_ceil(10)),
            Some(goal) => {
                let of_here = format!(
                    ", {} % of its users are within {} of here",
                    alone.within / 10,
                    goal.within
                );
                match with.within == alone.within {
                    true => of_here,
                    false => format!("{of_here}, {} % with the others", with.within / 10),
                }
            }
        };
        (score, words)
    }
}

/// Of a thousand users, how many are within the goal with so many instances there; nothing without a goal, or
/// where nobody knows who the users are.
pub fn reached<'b>(
    placement: &Placement,
    demand: &Demand,
    instances: impl Iterator<Item = (&'b LocationName, u32)>,
    ways: Ways<'_>,
) -> Option<u32> {
    placement.goal()?;
    let instances: Vec<_> = instances.collect();
    let ways = UserWays::new(demand, &ways, instances.iter().map(|(name, _)| *name));
    Some(Nearness::new(placement, instances.into_iter(), &ways)?.figure().within)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> LocationName {
        text.parse().unwrap()
    }

    #[test]
    fn a_few_requests_say_nothing_of_where_the_users_are() {
        let of = |requests: &[(&str, u64)]| {
            Demand::of(requests.iter().map(|(at, n)| (name(at), *n))).users
        };
        assert!(of(&[("ams", 7), ("sin", 4)]).is_empty());
        let users = of(&[("ams", 9), ("sin", 3), ("nyc", 0)]);
        assert_eq!(users, BTreeMap::from([(name("ams"), 750), (name("sin"), 250)]));
        let many = (0..100).map(|idx| (name(&format!("loc{idx}")), 100 + idx));
        let users = Demand::of(many).users;
        assert_eq!(users.len(), MOST_LOCATIONS);
        assert!(users.contains_key(&name("loc99")) && !users.contains_key(&name("loc0")));
        assert_eq!(of(&[("ams", u64::MAX), ("sin", u64::MAX)])[&name("ams")], 1000);
    }
}
