//! What a world is told while it runs, and what it tells: a JSON document in a line each.

use std::num::NonZeroU64;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::place::{Place, UnknownPlace, suggestion};
use crate::wire::{PlaceIdx, Slowness, Wire};

/// What is asked of a world. Places are given by code or name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "lowercase")]
pub enum Command {
    /// Nothing but how it is.
    Status,
    /// Nothing passes between two places any more, nor between one and all others.
    Cut {
        /// The one.
        a: String,
        /// The other; all others when absent.
        b: Option<String>,
    },
    /// Everything is as far as it is, and no more than that: everywhere, for one place, or between two.
    Heal {
        /// The one; all when absent.
        a: Option<String>,
        /// The other; all others when absent.
        b: Option<String>,
    },
    /// What passes is slowed down, in place of how it was slowed down before.
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
    /// It has no such place.
    #[error("{field} = {given:?}: not a place of this world{}; it has {has}", suggestion(*nearest))]
    NotHere {
        /// Which field.
        field: &'static str,
        /// What it was.
        given: String,
        /// The code of the one that was probably meant.
        nearest: Option<&'static str>,
        /// The codes of those that it has.
        has: String,
    },
    /// The two places are one.
    #[error("a and b are both {0}: name two places, or one to mean it and all others")]
    Same(&'static str),
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
}

/// Does to the wire what is asked.
pub fn apply(
    wire: &mut Wire,
    places: &[&'static Place],
    command: &Command,
) -> Result<(), ControlError> {
    match command {
        Command::Status => Ok(()),
        Command::Cut { a, b } => {
            for (a, b) in pairs(places, Some(a), b.as_deref())? {
                wire.set_cut(a, b, true);
            }
            Ok(())
        }
        Command::Heal { a, b } => {
            for (a, b) in pairs(places, a.as_deref(), b.as_deref())? {
                wire.set_cut(a, b, false);
                wire.set_slowness(a, b, Slowness::default());
            }
            Ok(())
        }
        Command::Slow { a, b, delay_ms, loss_percent, kbit_per_s } => {
            let slowness = slowness(*delay_ms, *loss_percent, *kbit_per_s)?;
            for (a, b) in pairs(places, Some(a), b.as_deref())? {
                wire.set_slowness(a, b, slowness);
            }
            Ok(())
        }
    }
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

/// The pairs that are meant by none, one or two places.
fn pairs(
    places: &[&'static Place],
    a: Option<&str>,
    b: Option<&str>,
) -> Result<Vec<(PlaceIdx, PlaceIdx)>, ControlError> {
    let at = |field, given| find(places, field, given);
    let (a, b) = match (a, b) {
        (None, None) => return Ok(all_pairs(places.len()).collect()),
        (Some(a), Some(b)) => (at("a", a)?, Some(at("b", b)?)),
        (Some(a), None) => (at("a", a)?, None),
        (None, Some(b)) => (at("b", b)?, None),
    };
    match b {
        Some(b) if b == a => Err(ControlError::Same(places[a].code)),
        Some(b) => Ok(vec![(a, b)]),
        None => Ok((0..places.len()).filter(|b| *b != a).map(|b| (a, b)).collect()),
    }
}

fn all_pairs(n_places: usize) -> impl Iterator<Item = (PlaceIdx, PlaceIdx)> {
    (0..n_places).flat_map(move |a| (a + 1..n_places).map(move |b| (a, b)))
}

fn find(
    places: &[&'static Place],
    field: &'static str,
    given: &str,
) -> Result<PlaceIdx, ControlError> {
    let place = Place::find_among(places.iter().copied(), given);
    place.map(|(idx, _)| idx).map_err(|UnknownPlace { given, nearest }| {
        let codes: Vec<_> = places.iter().map(|place| place.code).collect();
        ControlError::NotHere { field, given, nearest, has: codes.join(", ") }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world() -> (Wire, Vec<&'static Place>) {
        let places: Vec<_> =
            ["ams", "nyc", "sin"].iter().map(|code| Place::find(code).unwrap()).collect();
        (Wire::new(&places, vec![0, 1, 2], 1), places)
    }

    /// Each path as `a-b` with what is wrong with it, after these commands in JSON.
    fn after(commands: &[&str]) -> Vec<String> {
        let (mut wire, places) = world();
        for command in commands {
            let command = serde_json::from_str(command).unwrap();
            apply(&mut wire, &places, &command).unwrap();
        }
        let paths = paths(&wire, &places);
        let show = |path: &PathStatus| {
            let PathStatus { a, b, cut, delay_ms, loss_percent, kbit_per_s, .. } = path;
            let cut = if *cut { " cut" } else { "" };
            format!("{a}-{b}{cut} {delay_ms} {loss_percent} {kbit_per_s:?}")
        };
        paths.iter().map(show).collect()
    }

    #[test]
    fn pairs_places_and_all_are_cut_slowed_and_mended() {
        let usual = ["ams-nyc 0 0 None", "ams-sin 0 0 None", "nyc-sin 0 0 None"];
        assert_eq!(after(&[r#"{"do": "status"}"#]), usual);
        let pair = r#"{"do": "cut", "a": "sin", "b": "New York"}"#;
        assert_eq!(after(&[pair]), [usual[0], usual[1], "nyc-sin cut 0 0 None"]);
        let place = r#"{"do": "cut", "a": "SIN"}"#;
        assert_eq!(after(&[place]), [usual[0], "ams-sin cut 0 0 None", "nyc-sin cut 0 0 None"]);
        let slow = r#"{"do": "slow", "a": "ams", "b": "nyc", "delay_ms": 300, "loss_percent": 1.5, "kbit_per_s": 800}"#;
        assert_eq!(after(&[slow])[0], "ams-nyc 300 1.5 Some(800)");
        let lossy = r#"{"do": "slow", "a": "ams", "loss_percent": 2}"#;
        assert_eq!(after(&[slow, lossy])[0], "ams-nyc 0 2 None", "the last word counts");
        assert_eq!(after(&[place, slow, r#"{"do": "heal"}"#]), usual);
        let near = r#"{"do": "heal", "a": "ams", "b": "sin"}"#;
        assert_eq!(after(&[place, near]), [usual[0], usual[1], "nyc-sin cut 0 0 None"]);
    }

    #[test]
    fn what_is_added_is_part_of_the_round_trip() {
        let (mut wire, places) = world();
        let before = paths(&wire, &places)[0].round_trip_ms;
        assert!((before - 125.0).abs() < 5.0, "{before}");
        let slow = r#"{"do": "slow", "a": "ams", "delay_ms": 50}"#;
        apply(&mut wire, &places, &serde_json::from_str(slow).unwrap()).unwrap();
        let after = paths(&wire, &places)[0].round_trip_ms;
        assert!((after - before - 100.0).abs() < 0.01, "{before} {after}");
    }

    #[test]
    fn what_makes_no_sense_names_the_field_and_changes_nothing() {
        for (command, texts) in [
            (r#"{"do": "cut", "a": "par"}"#, &["a = \"par\"", "ams, nyc, sin"][..]),
            (r#"{"do": "cut", "a": "sni"}"#, &["did you mean sin?"]),
            (r#"{"do": "cut", "a": "ams", "b": "moon"}"#, &["b = \"moon\""]),
            (r#"{"do": "heal", "b": "moon"}"#, &["b = \"moon\""]),
            (r#"{"do": "cut", "a": "ams", "b": "Amsterdam"}"#, &["both ams"]),
            (
                r#"{"do": "slow", "a": "ams", "loss_percent": 101}"#,
                &["loss_percent = 101", "0 to 100"],
            ),
            (r#"{"do": "slow", "a": "ams", "delay_ms": 60001}"#, &["delay_ms = 60001"]),
            (r#"{"do": "slow", "a": "ams", "kbit_per_s": 0}"#, &["kbit_per_s = 0", "1 to"]),
        ] {
            let (mut wire, places) = world();
            let before = paths(&wire, &places);
            let command = serde_json::from_str(command).unwrap();
            let error = apply(&mut wire, &places, &command).unwrap_err().to_string();
            for text in texts {
                assert!(error.contains(text), "{error}");
            }
            assert_eq!(paths(&wire, &places), before);
        }
    }
}
