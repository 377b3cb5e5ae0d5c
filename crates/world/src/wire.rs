//! What becomes of packets on their way: pure, with the clock passed in.
//!
//! A *path* leads from one place to another; the way back is a path of its own. A packet waits for
//! its turn at the path's rate, then for as long as the distance takes. What of it is chance comes
//! from a generator of the path's own: the same packets meet the same fate whatever goes on
//! elsewhere. Machines may be cut off from each other besides, those of one place too.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::num::NonZeroU64;
use std::time::Duration;

use crate::place::Place;

/// Which place of a world.
pub type PlaceIdx = usize;

/// A path holds this much, in bytes: 10 Gbit/s from here to the antipodes. What comes then is lost.
const MOST_IN_FLIGHT: usize = 256 << 20;
/// For its turn at the rate of a slow path, a packet waits at most this long. What would wait longer
/// is lost, as in a router.
const LONGEST_WAIT: Duration = Duration::from_millis(250);

/// What is done to a path beside the distance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Slowness {
    /// Added to each way.
    pub delay: Duration,
    /// How many of a million packets are lost.
    pub loss_ppm: u32,
    /// How many bytes a second pass; all without it.
    pub bytes_per_s: Option<NonZeroU64>,
}

/// One direction between two places, as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathView {
    /// Whether nothing passes.
    pub is_cut: bool,
    /// What is done to it beside the distance.
    pub slowness: Slowness,
    /// How long it takes, with what is added.
    pub one_way: Duration,
    /// How many packets came out of it.
    pub n_carried: u64,
    /// How many never did.
    pub n_dropped: u64,
}

/// What became of a packet that was given to the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is on its way.
    Carried,
    /// Chance took it.
    Lost,
    /// There is no way now.
    Cut,
    /// The path is full.
    Full,
}

/// One direction between two places.
#[derive(Debug)]
struct Path {
    distance: Duration,
    slowness: Slowness,
    is_cut: bool,
    /// When the last packet that was taken will have passed at the rate.
    busy_until: Duration,
    bytes_in_flight: usize,
    random: fastrand::Rng,
    n_carried: u64,
    n_dropped: u64,
}

/// A packet on its way. The first field decides, then the order in which they came.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct InFlight {
    due: Duration,
    number: u64,
    path: usize,
    from: usize,
    to: usize,
    packet: Vec<u8>,
}

/// All paths of a world, and what is under way on them. Points in time are spans since it began.
#[derive(Debug)]
pub struct Wire {
    n_places: usize,
    /// From the first place to each, then from the second, and so on.
    paths: Vec<Path>,
    /// Where each machine is.
    machines: Vec<PlaceIdx>,
    /// Those between which nothing passes whatever their path is, the lower number first.
    apart: BTreeSet<(usize, usize)>,
    in_flight: BinaryHeap<Reverse<InFlight>>,
    n_taken: u64,
}

impl Wire {
    /// A wire between machines at these places.
    ///
    /// # Panics
    /// When a machine is at a place that there is not.
    pub fn new(places: &[&Place], machines: Vec<PlaceIdx>, seed: u64) -> Self {
        assert!(machines.iter().all(|place| *place < places.len()), "every machine is somewhere");
        let mut seeds = fastrand::Rng::with_seed(seed);
        let pairs = places.iter().flat_map(|from| places.iter().map(move |to| (from, to)));
        let paths = pairs.map(|(from, to)| Path {
            distance: from.one_way_to(to),
            slowness: Slowness::default(),
            is_cut: false,
            busy_until: Duration::ZERO,
            bytes_in_flight: 0,
            random: seeds.fork(),
            n_carried: 0,
            n_dropped: 0,
        });
        let paths = paths.collect();
        let (apart, in_flight) = (BTreeSet::new(), BinaryHeap::new());
        Self { n_places: places.len(), paths, machines, apart, in_flight, n_taken: 0 }
    }

    /// Takes a packet from one machine for another.
    ///
    /// # Panics
    /// When there are no such machines.
    pub fn offer(&mut self, now: Duration, from: usize, to: usize, packet: Vec<u8>) -> Outcome {
        let idx = self.machines[from] * self.n_places + self.machines[to];
        let are_apart = self.are_apart(from, to);
        let path = &mut self.paths[idx];
        let admitted = if are_apart { Err(Outcome::Cut) } else { path.admit(now, packet.len()) };
        match admitted {
            Ok(due) => {
                let number = self.n_taken;
                self.n_taken += 1;
                self.in_flight.push(Reverse(InFlight { due, number, path: idx, from, to, packet }));
                Outcome::Carried
            }
            Err(outcome) => {
                path.n_dropped += 1;
                outcome
            }
        }
    }

    /// The next packet whose time has come, with the machine that it is for.
    pub fn take_due(&mut self, now: Duration) -> Option<(usize, Vec<u8>)> {
        while self.next_due().is_some_and(|due| due <= now) {
            let Reverse(InFlight { path, from, to, packet, .. }) = self.in_flight.pop()?;
            let are_apart = self.are_apart(from, to);
            let path = &mut self.paths[path];
            path.bytes_in_flight -= packet.len();
            // What was under way when the path was cut is as lost as what came later: once a cut is
            // told, nothing passes.
            if path.is_cut || are_apart {
                path.n_dropped += 1;
                continue;
            }
            path.n_carried += 1;
            return Some((to, packet));
        }
        None
    }

    /// When the next packet is to be delivered.
    pub fn next_due(&self) -> Option<Duration> {
        self.in_flight.peek().map(|Reverse(next)| next.due)
    }

    /// Cuts both ways between two places, or mends them. What slows them down stays.
    pub fn set_cut(&mut self, a: PlaceIdx, b: PlaceIdx, is_cut: bool) {
        self.change(a, b, |path| path.is_cut = is_cut);
    }

    /// Cuts both ways between two machines, or mends them; what is cut between their places stays.
    pub fn set_apart(&mut self, a: usize, b: usize, are_apart: bool) {
        let pair = (a.min(b), a.max(b));
        match are_apart {
            true => self.apart.insert(pair),
            false => self.apart.remove(&pair),
        };
    }

    /// Whether the ways between two machines are cut beside those between their places.
    pub fn are_apart(&self, a: usize, b: usize) -> bool {
        self.apart.contains(&(a.min(b), a.max(b)))
    }

    /// Where each machine is.
    pub fn machines(&self) -> &[PlaceIdx] {
        &self.machines
    }

    /// Slows down both ways between two places; [`Slowness::default`] ends that.
    pub fn set_slowness(&mut self, a: PlaceIdx, b: PlaceIdx, slowness: Slowness) {
        self.change(a, b, |path| path.slowness = slowness);
    }

    fn change(&mut self, a: PlaceIdx, b: PlaceIdx, change: impl Fn(&mut Path)) {
        for (from, to) in [(a, b), (b, a)] {
            change(&mut self.paths[from * self.n_places + to]);
        }
    }

    /// How the way from one place to another is now.
    pub fn path(&self, from: PlaceIdx, to: PlaceIdx) -> PathView {
        let path = &self.paths[from * self.n_places + to];
        let Path { distance, slowness, is_cut, n_carried, n_dropped, .. } = *path;
        PathView { is_cut, slowness, one_way: distance + slowness.delay, n_carried, n_dropped }
    }
}

impl Path {
    /// When a packet that comes now will be there, or why it will not.
    fn admit(&mut self, now: Duration, n_bytes: usize) -> Result<Duration, Outcome> {
        if self.is_cut {
            return Err(Outcome::Cut);
        }
        let Slowness { delay, loss_ppm, bytes_per_s } = self.slowness;
        if loss_ppm > 0 && self.random.u32(..1_000_000) < loss_ppm {
            return Err(Outcome::Lost);
        }
        let starts = self.busy_until.max(now);
        if self.bytes_in_flight + n_bytes > MOST_IN_FLIGHT || starts - now > LONGEST_WAIT {
            return Err(Outcome::Full);
        }
        let passes = bytes_per_s.map_or(Duration::ZERO, |rate| {
            let nanos = (n_bytes as u128 * 1_000_000_000).div_ceil(u128::from(rate.get()));
            Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
        });
        self.busy_until = starts + passes;
        self.bytes_in_flight += n_bytes;
        Ok(self.busy_until + self.distance + delay)
    }
}

#[cfg(test)]
mod tests;
