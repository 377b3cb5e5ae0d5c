//! Whom a certificate speaks for, as a DNS name below one that is nobody's on the internet.

use std::fmt;
use std::str::FromStr;

use longshore_types::{LocationName, NodeName};

/// Below this are all names of a world. `internal` is kept for private use by ICANN.
const WORLD: &str = "longshore.internal";

/// A role of a world.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Name {
    /// The global control plane.
    Global,
    /// The registry.
    Registry,
    /// A location: its scheduler.
    Location(LocationName),
    /// The ingresses of a location.
    Ingress(LocationName),
    /// A node of a location.
    Node(LocationName, NodeName),
}

impl Name {
    /// The location whose authority signs for this name; the root signs for the others.
    pub fn location(&self) -> Option<&LocationName> {
        match self {
            Self::Global | Self::Registry => None,
            Self::Location(location) | Self::Ingress(location) | Self::Node(location, _) => {
                Some(location)
            }
        }
    }
}

/// What the names of a location end in, and what its authority is held to.
pub(crate) fn subtree(location: &LocationName) -> String {
    format!("{location}.locations.{WORLD}")
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Global => write!(f, "global.{WORLD}"),
            Self::Registry => write!(f, "registry.{WORLD}"),
            Self::Location(location) => f.write_str(&subtree(location)),
            Self::Ingress(location) => write!(f, "ingress.{}", subtree(location)),
            Self::Node(location, node) => write!(f, "{node}.nodes.{}", subtree(location)),
        }
    }
}

/// A text is not the name of a role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the name of a role")]
pub struct ParseNameError(String);

impl FromStr for Name {
    type Err = ParseNameError;

    fn from_str(text: &str) -> Result<Self, ParseNameError> {
        let parse = || {
            let labels: Vec<&str> =
                text.strip_suffix(WORLD)?.strip_suffix('.')?.split('.').collect();
            Some(match labels.as_slice() {
                ["global"] => Self::Global,
                ["registry"] => Self::Registry,
                [location, "locations"] => Self::Location(location.parse().ok()?),
                ["ingress", location, "locations"] => Self::Ingress(location.parse().ok()?),
                [node, "nodes", location, "locations"] => {
                    Self::Node(location.parse().ok()?, node.parse().ok()?)
                }
                _ => return None,
            })
        };
        parse().ok_or_else(|| ParseNameError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_nothing_else_is_one() {
        let ams: LocationName = "ams".parse().unwrap();
        let names = [
            Name::Global,
            Name::Registry,
            Name::Location(ams.clone()),
            Name::Ingress(ams.clone()),
            Name::Node(ams.clone(), "n1".parse().unwrap()),
            // What a node is called makes it nothing else.
            Name::Node(ams, "ingress".parse().unwrap()),
        ];
        for name in names {
            assert_eq!(name.to_string().parse(), Ok(name));
        }
        for text in ["", "global", "x.global.longshore.internal", "n1.nodes.longshore.internal"] {
            text.parse::<Name>().unwrap_err();
        }
    }
}
