//! Machines that join, and the registry, which may be one.

use longshore_types::{Country, LocationName, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A machine is to join.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinTokenRequest {
    /// Which location; a new one when it is a location that joins, and none when it is the registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<LocationName>,
    /// As what.
    #[serde(default)]
    pub role: JoinTokenRole,
    /// True to have it take the place of the location of that name, which lost its machine: as `location` alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recover: bool,
    /// The country in which the location is to be, with role location: from then on it counts as in no other, whatever
    /// it says of itself. Without one it is where it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub country: Option<Country>,
}

/// As what a machine joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum JoinTokenRole {
    /// As a node of a location that there is.
    #[default]
    Node,
    /// As a new location, with that machine as its first node.
    Location,
    /// As the registry, where the platform runs none of its own.
    Registry,
}

/// The registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RegistryView {
    /// Whether it is one that joins from another machine.
    pub joins: bool,
    /// When it joined, once it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joined_at: Option<Timestamp>,
    /// The host and port by which the control plane and locations call it, once it said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The host and port by which users do, as it stands in names of images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public: Option<String>,
    /// Whether users speak to it by TLS.
    #[serde(default)]
    pub public_secure: bool,
    /// Whether it answered the control plane just now.
    pub answers: bool,
    /// Why it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent: Option<String>,
}

/// What lets one machine join, once. Its text is shown this once; only a hash is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JoinTokenCreated {
    /// The text to be kept secret.
    pub token: String,
    /// From when on it is of no use.
    pub expires_at: Timestamp,
}
