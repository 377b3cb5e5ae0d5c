//! What a world is told while it runs, and what it tells: a JSON document in a line each.

use std::num::NonZeroU64;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::place::{Place, UnknownPlace, suggestion};
use crate::wire::{PlaceIdx, Slowness, Wire};

/// What this machine is called among the others.
const THIS_MACHINE: &str = "user";

/// What is asked of a world. Places are given by code or name, machines by name; what has the name of
/// both is the place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "lowercase")]
pub enum Command {
    /// Nothing but how it is.
    Status,
    /// Nothing passes between two places or machines any more, nor between one and all others.
    Cut {
        /// The one.
        a: String,
        /// The other; all others when absent.
        b: Option<String>,
    },
    /// Everything is as far as it is, and no more than that: everywhere, for one place or machine, or
    /// between two.
    Heal {
        /// The one; all when absent.
        a: Option<String>,
        /// The other; all others when absent.
        b: Option<String>,
    },
    /// What passes between places is slowed down, in place of how it was slowed down before.
    Slow {
        /// The one.
        a: String,
        /// The other; all others when absent.
        b: Option<String>,
        /// How much longer each way takes, in milliseconds.
        #[serde(default)]
        delay_ms: u64,
        /// How many of a hundred packets are lost, 0 to 100.
        #[serde(default)]
        loss_percent: f64,
        /// How many kilobits pass in a second, at least 1; all without it.
        kbit_per_s: Option<u64>,
    },
}

/// What a world answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// How it is, once what was asked is done.
    Status(Status),
    /// Why it was not done.
    Error(String),
}

/// A world cannot do what it was told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// It has no such place, nor such a machine where that may be meant.
    #[error("{field} = {given:?}: not a {what} of this world{}; it has {has}", suggestion(*nearest))]
    NotHere {
        /// Which field.
        field: &'static str,
        /// What it may be.
        what: &'static str,
        /// What it was.
        given: String,
        /// The code of the one that was probably meant.
        nearest: Option<&'static str>,
        /// The codes or names of those that it has.
        has: String,
    },
    /// The two are one.
    #[error("a and b are both {0}: name two, or one to mean it and all others")]
    Same(String),
    /// A number is out of its range.
    #[error("{field} = {given}: {allowed}")]
    Number {
        /// Which field.
        field: &'static str,
        /// What it was.
        given: String,
        /// What it may be.
        allowed: &'static str,
    },
}

/// A world at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// What decides what of the wire is chance.
    pub seed: u64,
    /// The code of the place that this machine is at.
    pub user_at: String,
    /// Its locations, the one with the control plane first.
    pub locations: Vec<LocationStatus>,
    /// The way between each two places.
    pub paths: Vec<PathStatus>,
    /// Its machines.
    pub machines: Vec<MachineStatus>,
}

/// A location of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LocationStatus {
    /// Its name, which is the code of its place.
    pub name: String,
    /// The name of that place.
    pub city: String,
    /// The ISO 3166 code of its country.
    pub country: String,
    /// Where requests come in, as this machine reaches it.
    pub ingress: String,
}

/// The way between two places.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PathStatus {
    /// The one.
    pub a: String,
    /// The other.
    pub b: String,
    /// How long it takes there and back, in milliseconds, with what is added.
    pub round_trip_ms: f64,
    /// Whether nothing passes.
    pub cut: bool,
    /// How much longer than by distance each way takes, in milliseconds.
    pub delay_ms: u64,
    /// How many of a hundred packets are lost.
    pub loss_percent: f64,
    /// How many kilobits pass in a second; all without it.
    pub kbit_per_s: Option<u64>,
    /// How many packets passed, both ways.
    pub n_carried: u64,
    /// How many did not, for whatever reason.
    pub n_dropped: u64,
}

/// A machine of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MachineStatus {
    /// Its name.
    pub name: String,
    /// The code of its place.
    pub place: String,
    /// Its address on the wire.
    pub address: String,
    /// Where what runs there keeps everything.
    pub dir: String,
    /// The supervisor that runs there, while there is one; `/proc/PID/ns/net` is its network.
    pub pid: Option<u32>,
    /// The machines that it is cut off from, beside what is cut between places; `user` is this one.
    #[serde(default)]
    pub cut_from: Vec<String>,
}

/// How the places and machines of a world are called, in the order of its wire.
#[derive(Debug, Clone, Copy)]
pub struct Names<'a> {
    /// The places.
    pub places: &'a [&'static Place],
    /// The machines but this one, which is the last on the wire.
    pub machines: &'a [&'a str],
}

/// What somebody named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Place(PlaceIdx),
    Machine(usize),
}

/// Does to the wire what is asked.
pub fn apply(wire: &mut Wire, names: Names<'_>, command: &Command) -> Result<(), ControlError> {
    match command {
        Command::Status => Ok(()),
        Command::Cut { a, b } => {
            let ends = names.ends(Some(a), b.as_deref())?;
            if ends.iter().any(|end| matches!(end, Some(End::Machine(_)))) {
                for (a, b) in pairs_of_machines(wire, ends) {
                    wire.set_apart(a, b, true);
                }
            }
            for (a, b) in pairs_of_places(names.places.len(), ends) {
                wire.set_cut(a, b, true);
            }
            Ok(())
        }
        Command::Heal { a, b } => {
            let ends = names.ends(a.as_deref(), b.as_deref())?;
            for (a, b) in pairs_of_machines(wire, ends) {
                wire.set_apart(a, b, false);
            }
            for (a, b) in pairs_of_places(names.places.len(), ends) {
                wire.set_cut(a, b, false);
                wire.set_slowness(a, b, Slowness::default());
            }
            Ok(())
        }
        Command::Slow { a, b, delay_ms, loss_percent, kbit_per_s } => {
            let slowness = slowness(*delay_ms, *loss_percent, *kbit_per_s)?;
            let ends = Names { machines: &[], ..names }.ends(Some(a), b.as_deref())?;
            for (a, b) in pairs_of_places(names.places.len(), ends) {
                wire.set_slowness(a, b, slowness);
            }
            Ok(())
        }
    }
}

/// The machines that one is cut off from, beside what is cut between places.
pub fn cut_from(wire: &Wire, names: Names<'_>, machine: usize) -> Vec<String> {
    let others = (0..wire.machines().len()).filter(|other| wire.are_apart(machine, *other));
    let name = |other: usize| names.machines.get(other).copied().unwrap_or(THIS_MACHINE);
    others.map(|other| name(other).to_owned()).collect()
}

/// The way between each two places.
pub fn paths(wire: &Wire, places: &[&'static Place]) -> Vec<PathStatus> {
    all_pairs(places.len())
        .map(|(a, b)| {
            let (there, back) = (wire.path(a, b), wire.path(b, a));
            PathStatus {
                a: places[a].code.to_owned(),
                b: places[b].code.to_owned(),
                round_trip_ms: (there.one_way + back.one_way).as_secs_f64() * 1000.0,
                cut: there.is_cut,
                delay_ms: u64::try_from(there.slowness.delay.as_millis()).unwrap_or(u64::MAX),
                loss_percent: f64::from(there.slowness.loss_ppm) / 10_000.0,
                kbit_per_s: there.slowness.bytes_per_s.map(|rate| rate.get() * 8 / 1000),
                n_carried: there.n_carried + back.n_carried,
                n_dropped: there.n_dropped + back.n_dropped,
            }
        })
        .collect()
}

fn slowness(
    delay_ms: u64,
    loss_percent: f64,
    kbit_per_s: Option<u64>,
) -> Result<Slowness, ControlError> {
    const LONGEST_DELAY: u64 = 60_000;
    const FASTEST: u64 = 100_000_000;
    let refuse = |field, given: &dyn std::fmt::Display, allowed| ControlError::Number {
        field,
        given: given.to_string(),
        allowed,
    };
    if delay_ms > LONGEST_DELAY {
        return Err(refuse("delay_ms", &delay_ms, "at most 60000"));
    }
    if !(0.0..=100.0).contains(&loss_percent) {
        return Err(refuse("loss_percent", &loss_percent, "0 to 100"));
    }
    let bytes_per_s = match kbit_per_s {
        None => None,
        Some(kbit @ 1..=FASTEST) => NonZeroU64::new(kbit * 1000 / 8),
        Some(kbit) => return Err(refuse("kbit_per_s", &kbit, "1 to 100000000")),
    };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to a million")]
    let loss_ppm = (loss_percent * 10_000.0).round() as u32;
    Ok(Slowness { delay: Duration::from_millis(delay_ms), loss_ppm, bytes_per_s })
}

impl Names<'_> {
    /// What is meant by none, one or two names.
    fn ends(self, a: Option<&str>, b: Option<&str>) -> Result<[Option<End>; 2], ControlError> {
        let find =
            |field, given: Option<&str>| given.map(|name| self.find(field, name)).transpose();
        match [find("a", a)?, find("b", b)?] {
            [Some(a), Some(b)] if a == b => Err(ControlError::Same(self.name(a).to_owned())),
            ends => Ok(ends),
        }
    }

    fn find(self, field: &'static str, given: &str) -> Result<End, ControlError> {
        let Self { places, machines } = self;
        let machine = machines.iter().position(|name| name.eq_ignore_ascii_case(given));
        match (Place::find_among(places.iter().copied(), given), machine) {
            (Ok((place, _)), _) => Ok(End::Place(place)),
            (Err(_), Some(machine)) => Ok(End::Machine(machine)),
            (Err(UnknownPlace { given, nearest }), None) => {
                let codes: Vec<_> = places.iter().map(|place| place.code).collect();
                let others = machines.iter().filter(|name| !codes.contains(*name));
                let has: Vec<_> = codes.iter().chain(others).copied().collect();
                let what = if machines.is_empty() { "place" } else { "place or machine" };
                Err(ControlError::NotHere { field, what, given, nearest, has: has.join(", ") })
            }
        }
    }

    fn name(&self, end: End) -> &str {
        match end {
            End::Place(place) => self.places[place].code,
            End::Machine(machine) => self.machines[machine],
        }
    }
}

/// The pairs of places that are meant; none where one of the two is a machine.
fn pairs_of_places(n_places: usize, ends: [Option<End>; 2]) -> Vec<(PlaceIdx, PlaceIdx)> {
    match ends {
        [None, None] => all_pairs(n_places).collect(),
        [Some(End::Place(a)), Some(End::Place(b))] => vec![(a, b)],
        [Some(End::Place(a)), None] | [None, Some(End::Place(a))] => {
            (0..n_places).filter(|b| *b != a).map(|b| (a, b)).collect()
        }
        _ => Vec::new(),
    }
}

/// The pairs of machines that are meant, where a place is all that are there.
fn pairs_of_machines(wire: &Wire, [a, b]: [Option<End>; 2]) -> Vec<(usize, usize)> {
    let machines = wire.machines();
    let is_of = |end, machine: usize| match end {
        None => true,
        Some(End::Place(place)) => machines[machine] == place,
        Some(End::Machine(named)) => machine == named,
    };
    let all = 0..machines.len();
    let of_a = all.clone().filter(|machine| is_of(a, *machine));
    let pairs = of_a.flat_map(|one| all.clone().map(move |other| (one, other)));
    pairs.filter(|(one, other)| one != other && is_of(b, *other)).collect()
}

fn all_pairs(n_places: usize) -> impl Iterator<Item = (PlaceIdx, PlaceIdx)> {
    (0..n_places).flat_map(move |a| (a + 1..n_places).map(move |b| (a, b)))
}

#[cfg(test)]
mod tests;
