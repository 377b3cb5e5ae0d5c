//! How a world is, as it tells those who ask.

use serde::{Deserialize, Serialize};

/// A world at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// What decides what of the wire is chance.
    pub seed: u64,
    /// Its places, the one with the control plane first.
    pub places: Vec<PlaceStatus>,
    /// The way between each two of them.
    pub paths: Vec<PathStatus>,
    /// Its machines.
    pub machines: Vec<MachineStatus>,
}

/// A place of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceStatus {
    /// Its code, which is the name of the location there.
    pub code: String,
    /// Its name.
    pub city: String,
    /// The ISO 3166 code of its country.
    pub country: String,
    /// Where requests to its location come in; absent where only the user is.
    pub ingress: Option<String>,
}

/// The way between two places.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PathStatus {
    /// The one.
    pub a: String,
    /// The other.
    pub b: String,
    /// How long it takes there and back, in milliseconds.
    pub round_trip_ms: f64,
    /// Whether nothing passes.
    pub cut: bool,
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineStatus {
    /// Its name; that of the machine that this runs on is `user`.
    pub name: String,
    /// The code of its place.
    pub place: String,
    /// Its address on the wire.
    pub address: String,
    /// The supervisor that runs on it, while there is one. `/proc/PID/ns/net` is its network.
    pub pid: Option<u32>,
}
