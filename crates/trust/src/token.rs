//! What lets a machine join: a text that is good once.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use longshore_types::LocationName;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::Fingerprint;

/// Marks a text as a join token of ours, for people and for secret scanners.
const PREFIX: &str = "lsj_";

/// What joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JoinRole {
    /// A machine of a location.
    #[default]
    Node,
    /// A location itself, with its first machine.
    Location,
    /// The registry.
    Registry,
}

impl fmt::Display for JoinRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Node => "node",
            Self::Location => "location",
            Self::Registry => "registry",
        })
    }
}

/// As what a machine joins, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RoleAndPlace", into = "RoleAndPlace")]
pub enum JoinAs {
    /// As a node of this location.
    Node(LocationName),
    /// As this location.
    Location(LocationName),
    /// As the registry, of which a world has one.
    Registry,
}

impl JoinAs {
    /// As what alone.
    pub fn role(&self) -> JoinRole {
        match self {
            Self::Node(_) => JoinRole::Node,
            Self::Location(_) => JoinRole::Location,
            Self::Registry => JoinRole::Registry,
        }
    }
}

impl fmt::Display for JoinAs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(location) => write!(f, "a node of {location}"),
            Self::Location(location) => write!(f, "location {location}"),
            Self::Registry => f.write_str("the registry"),
        }
    }
}

/// The same as it is written.
#[derive(Serialize, Deserialize)]
struct RoleAndPlace {
    role: JoinRole,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    location: Option<LocationName>,
}

impl From<JoinAs> for RoleAndPlace {
    fn from(joins: JoinAs) -> Self {
        let role = joins.role();
        let location = match joins {
            JoinAs::Node(location) | JoinAs::Location(location) => Some(location),
            JoinAs::Registry => None,
        };
        Self { role, location }
    }
}

impl TryFrom<RoleAndPlace> for JoinAs {
    type Error = String;

    fn try_from(RoleAndPlace { role, location }: RoleAndPlace) -> Result<Self, String> {
        match (role, location) {
            (JoinRole::Node, Some(location)) => Ok(Self::Node(location)),
            (JoinRole::Location, Some(location)) => Ok(Self::Location(location)),
            (JoinRole::Registry, None) => Ok(Self::Registry),
            (role, None) => Err(format!("a {role} joins with the name of a location")),
            (JoinRole::Registry, Some(_)) => Err("a registry joins no location".to_owned()),
        }
    }
}

/// A join token: as what, where, and by which secret. It is shown to who is asked to let its bearer in only
/// once that one has shown a certificate that goes back to the right root.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// As what its bearer joins, and where.
    #[serde(flatten)]
    pub joins: JoinAs,
    /// `host:port` of who lets it in.
    pub address: String,
    /// The root of the world.
    pub root: Fingerprint,
    /// 256 random bits, in hexadecimal digits.
    pub secret: Zeroizing<String>,
    /// True when its bearer takes the place of the location that there is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recovers: bool,
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({} at {})", self.joins, self.address)
    }
}

impl JoinToken {
    /// The token as text.
    pub fn text(&self) -> Zeroizing<String> {
        let json = serde_json::to_vec(self).expect("a token has no failing serializers");
        Zeroizing::new(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(Zeroizing::new(json))))
    }
}

impl FromStr for JoinToken {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // The text is a secret and not repeated.
        let refuse =
            || format!("this is not a join token: one begins with {PREFIX} and is copied whole");
        let encoded = text.trim().strip_prefix(PREFIX).ok_or_else(refuse)?;
        let json = Zeroizing::new(URL_SAFE_NO_PAD.decode(encoded).map_err(|_| refuse())?);
        serde_json::from_slice(&json).map_err(|_| refuse())
    }
}
