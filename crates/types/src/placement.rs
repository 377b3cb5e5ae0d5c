//! Where an app may run and where it would best, and what a place says of itself.
//!
//! Nothing is said by default, and then an app runs anywhere. What is said only ever takes places away or
//! puts them in order; no app names a place that it needs.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Coordinates, Country, Duration, Jurisdiction, LatencyGoal, LocationName, ParseError, Percent,
    ReachAddress, text_type,
};

/// Something that an operator says of a location or a node, `key=value`. A key may have several values.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label {
    text: String,
    key_len: usize,
}

impl Label {
    /// What a text of one looks like.
    pub const ALLOWED: &str =
        "key=value, each of 1 to 63 letters, digits, '-', '_' and '.', such as disk=nvme";

    /// What it speaks of.
    pub fn key(&self) -> &str {
        &self.text[..self.key_len]
    }

    /// What it says of that.
    pub fn value(&self) -> &str {
        &self.text[self.key_len + 1..]
    }
}

impl FromStr for Label {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let is_word = |word: &str| {
            (1..=63).contains(&word.len())
                && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        };
        let found = text.split_once('=').filter(|(key, value)| is_word(key) && is_word(value));
        let (key, _) = found.ok_or_else(|| ParseError::new("label", text, Self::ALLOWED))?;
        Ok(Self { text: text.to_owned(), key_len: key.len() })
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

text_type!(Label, { "pattern": "^[A-Za-z0-9._-]{1,63}=[A-Za-z0-9._-]{1,63}$" });

/// What an operator says of a location or a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Traits {
    /// The country whose law holds there; unknown when nobody said it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub country: Option<Country>,
    /// What else is said of it.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub labels: BTreeSet<Label>,
}

impl Traits {
    /// Those of a node at a location with `self`: its own country where it says one, and the labels of both.
    pub fn of_node(&self, node: &Self) -> Self {
        Self {
            country: node.country.or(self.country),
            labels: self.labels.union(&node.labels).cloned().collect(),
        }
    }
}

/// Locations: one by its name, or all with a label.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum PlaceMatch {
    /// The location of this name.
    Location(LocationName),
    /// Those with this label.
    Label(Label),
}

impl PlaceMatch {
    /// What a text of one looks like.
    pub const ALLOWED: &str = "the name of a location, or a label of locations as key=value";

    /// Whether a place is one of some, which are all places where none is named.
    pub fn any_has(all: &[Self], name: &LocationName, labels: &BTreeSet<Label>) -> bool {
        all.is_empty() || all.iter().any(|place| place.has(name, labels))
    }

    /// Whether a location is one of them.
    pub fn has(&self, name: &LocationName, labels: &BTreeSet<Label>) -> bool {
        match self {
            Self::Location(own) => own == name,
            Self::Label(label) => labels.contains(label),
        }
    }
}

impl FromStr for PlaceMatch {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let refuse = |_| ParseError::new("place", text, Self::ALLOWED);
        match text.contains('=') {
            true => text.parse().map(Self::Label).map_err(refuse),
            false => text.parse().map(Self::Location).map_err(refuse),
        }
    }
}

impl fmt::Display for PlaceMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Location(name) => name.fmt(f),
            Self::Label(label) => label.fmt(f),
        }
    }
}

text_type!(PlaceMatch);

/// Where the best place is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Near {
    /// Where a location is.
    Location(LocationName),
    /// There.
    Coordinates(Coordinates),
}

impl Near {
    /// What a text of one looks like.
    pub const ALLOWED: &str =
        "the name of a location, or latitude and longitude in degrees such as \"52.37, 4.90\"";
}

impl FromStr for Near {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let refuse = |_| ParseError::new("place", text, Self::ALLOWED);
        match text.contains(',') {
            true => text.parse().map(Self::Coordinates).map_err(refuse),
            false => text.parse().map(Self::Location).map_err(refuse),
        }
    }
}

impl fmt::Display for Near {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Location(name) => name.fmt(f),
            Self::Coordinates(place) => place.fmt(f),
        }
    }
}

text_type!(Near);

/// How the instances of an app keep apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Spread {
    /// Each goes where the fewest are.
    Soft,
    /// The same, and never more than so many in one place.
    AtMost(u32),
}

impl Spread {
    /// The most that may be in one place.
    pub fn most(self) -> Option<u32> {
        match self {
            Self::Soft => None,
            Self::AtMost(most) => Some(most),
        }
    }
}

/// Where the instances of an app may be, and where they would best be.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Placement {
    /// Only these locations; any when empty.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub allow: BTreeSet<PlaceMatch>,
    /// None of these locations.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub deny: BTreeSet<PlaceMatch>,
    /// Only locations and nodes in one of these; anywhere when empty. One whose country nobody said is in
    /// none.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub jurisdiction: BTreeSet<Jurisdiction>,
    /// Only nodes that have each of these, or whose location has.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub labels: BTreeSet<Label>,
    /// How they keep apart between locations; by free memory when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spread_locations: Option<Spread>,
    /// The most of one release that may be on a node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_per_node: Option<u32>,
    /// At how many locations they have to be at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_locations: Option<u32>,
    /// Only where each of these takes connections, as far as what starts anew goes: what runs stays.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub reach: BTreeSet<ReachAddress>,
    /// The nearer to this the better.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub near: Option<Near>,
    /// The longest round trip that is near enough to users; no goal when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency: Option<Duration>,
    /// How many users should have an instance that near; 95% when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub users: Option<Percent>,
}

impl Placement {
    /// How near the users of the app it should be, if it says so.
    pub fn goal(&self) -> Option<LatencyGoal> {
        let users = self.users.unwrap_or(LatencyGoal::USERS);
        self.latency.map(|within| LatencyGoal { within, users })
    }

    /// True when nothing is said, as of most apps.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_places_are_read_and_written_back() {
        let label: Label = "disk.type=NVMe-2".parse().unwrap();
        assert_eq!((label.key(), label.value()), ("disk.type", "NVMe-2"));
        for text in ["", "a", "=", "a=", "=b", "a=b=c", "a b=c", "a=b c", "a=\u{e4}"] {
            assert!(text.parse::<Label>().is_err(), "{text}");
        }
        for text in ["ams", "tier=edge"] {
            assert_eq!(text.parse::<PlaceMatch>().unwrap().to_string(), text);
        }
        for text in ["", "Ams", "tier=", "a=b=c"] {
            assert!(text.parse::<PlaceMatch>().is_err(), "{text}");
        }
        assert_eq!("52.37, 4.9".parse::<Near>().unwrap().to_string(), "52.37,4.9");
        assert!("ams".parse::<Near>().is_ok() && "91,0".parse::<Near>().is_err());
    }

    #[test]
    fn a_node_has_the_labels_of_its_location_and_perhaps_a_country_of_its_own() {
        let traits = |country: &str, labels: &[&str]| Traits {
            country: country.parse().ok(),
            labels: labels.iter().map(|label| label.parse().unwrap()).collect(),
        };
        let location = traits("NL", &["tier=edge"]);
        assert_eq!(location.of_node(&traits("", &[])), location);
        let both = traits("DE", &["disk=nvme", "tier=edge"]);
        assert_eq!(location.of_node(&traits("DE", &["disk=nvme"])), both);
    }

    #[test]
    fn what_nobody_said_is_not_stored() {
        assert_eq!(serde_json::to_string(&Placement::default()).unwrap(), "{}");
        let said = r#"{"allow":["ams","tier=edge"],"jurisdiction":["eu"],"spread_locations":{"at_most":2}}"#;
        let read: Placement = serde_json::from_str(said).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), said);
        assert_eq!(read.spread_locations.and_then(Spread::most), Some(2));
    }
}
