//! What comes first where there is not room for all.
//!
//! One scale for both schedulers. What has a place keeps it beside whatever matters as much, or hardly more: only
//! for something that stands [`Priority::GAP`] higher may it be made to leave. So two apps never take each other's
//! place in turn, and what one removal sets in motion ends after as many steps as the scale has gaps. Rejected:
//! classes with names that an operator defines, which would have to be the same in every world.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::{Capacity, GpuShares, ParseError};

/// How much an app matters beside others: from 1 to 100, the higher the more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Priority(u8);

impl Priority {
    /// The least.
    pub const LOWEST: u8 = 1;
    /// The most.
    pub const HIGHEST: u8 = 100;
    /// By how much something has to stand higher before others leave for it.
    pub const GAP: u8 = 10;

    /// The priority of this number, if there is one.
    pub fn new(number: u8) -> Option<Self> {
        (Self::LOWEST..=Self::HIGHEST).contains(&number).then_some(Self(number))
    }

    /// The highest priority of what may be made to leave for this; none when nothing may.
    pub fn displaces(self) -> Option<Self> {
        self.0.checked_sub(Self::GAP).and_then(Self::new)
    }
}

impl Default for Priority {
    /// In the middle.
    fn default() -> Self {
        Self(50)
    }
}

impl TryFrom<u8> for Priority {
    type Error = ParseError;
    fn try_from(number: u8) -> Result<Self, ParseError> {
        let refuse = || ParseError::new("priority", number.to_string(), "from 1 to 100");
        Self::new(number).ok_or_else(refuse)
    }
}

impl From<Priority> for u8 {
    fn from(priority: Priority) -> u8 {
        priority.0
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl JsonSchema for Priority {
    fn schema_name() -> Cow<'static, str> {
        "Priority".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": Self::LOWEST, "maximum": Self::HIGHEST })
    }
}

/// Instances of one priority that may be made to leave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Yielding {
    /// Their priority.
    pub priority: Priority,
    /// How many.
    pub instances: u32,
    /// What they were promised.
    pub promised: Capacity,
    /// And of which GPUs.
    #[serde(default, skip_serializing_if = "GpuShares::is_empty")]
    pub gpus: GpuShares,
}

/// Whether others leave for something that has no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RoomMaking {
    /// None was made to: it may not be, or there may be room elsewhere.
    #[default]
    None,
    /// Room was found for it that others still have to leave.
    UnderWay,
    /// Also without all that might be made to leave there is no room.
    InVain,
    /// Something that this version does not know.
    #[serde(other)]
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_a_gap_lower_leaves() {
        let displaces = |number| Priority::new(number).unwrap().displaces().map(u8::from);
        for (number, below) in
            [(1, None), (10, None), (11, Some(1)), (50, Some(40)), (100, Some(90))]
        {
            assert_eq!(displaces(number), below, "{number}");
        }
    }

    #[test]
    fn what_is_not_on_the_scale_is_not_read() {
        for text in ["0", "101", "-1", "50.5", "\"50\"", "256"] {
            assert!(serde_json::from_str::<Priority>(text).is_err(), "{text}");
        }
        let read: Priority = serde_json::from_str("80").unwrap();
        assert_eq!(
            (read.to_string(), serde_json::to_string(&read).unwrap()),
            ("80".into(), "80".into())
        );
        let later: RoomMaking = serde_json::from_str("\"of_a_later_release\"").unwrap();
        assert_eq!(later, RoomMaking::Unknown);
    }
}
