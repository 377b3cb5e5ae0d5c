//! Ranges of user and group ids of a machine.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The ids of the machine that the users and groups of an instance are: 65,536 in a row, of which
/// the first is root inside.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "u32", into = "u32")]
pub struct IdRange {
    first: u32,
}

impl IdRange {
    /// How many ids an instance has: enough for every id that a distribution hands out, `nobody`
    /// (65534) among them.
    pub const LEN: u32 = 65_536;

    /// The range that begins at `first`. None when that is one of the machine's own first 65,536
    /// ids, or when the range would hold the last id, by which the kernel means "none".
    pub fn new(first: u32) -> Option<Self> {
        let last = first.checked_add(Self::LEN - 1)?;
        (first >= Self::LEN && last != u32::MAX).then_some(Self { first })
    }

    /// The machine's id of root inside.
    pub fn first(self) -> u32 {
        self.first
    }

    /// The last id of the machine that belongs to the range.
    pub fn last(self) -> u32 {
        self.first + (Self::LEN - 1)
    }

    /// What an id inside is on the machine; none when there is no such id inside.
    pub fn on_machine(self, inside: u32) -> Option<u32> {
        (inside < Self::LEN).then(|| self.first + inside)
    }
}

impl fmt::Display for IdRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.first, self.last())
    }
}

impl From<IdRange> for u32 {
    fn from(range: IdRange) -> u32 {
        range.first
    }
}

impl TryFrom<u32> for IdRange {
    type Error = String;
    fn try_from(first: u32) -> Result<Self, String> {
        Self::new(first).ok_or_else(|| format!("no range of ids begins at {first}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_inside_are_told_from_those_of_the_machine() {
        let range = IdRange::new(0x2800_0000).unwrap();
        assert_eq!(range.on_machine(0), Some(range.first()));
        assert_eq!(range.on_machine(33), Some(0x2800_0021));
        assert_eq!(range.on_machine(65_535), Some(range.last()));
        assert_eq!(range.on_machine(65_536), None);
        assert_eq!(range.to_string(), "671088640 to 671154175");
    }

    #[test]
    fn no_range_holds_an_id_with_a_meaning_of_its_own() {
        for bad in [0, 1, 65_535, u32::MAX - 65_535, u32::MAX] {
            assert_eq!(IdRange::new(bad), None, "{bad}");
            assert!(serde_json::from_str::<IdRange>(&bad.to_string()).is_err(), "{bad}");
        }
        let last = IdRange::new(u32::MAX - 65_536).unwrap();
        let text = serde_json::to_string(&last).unwrap();
        assert_eq!(serde_json::from_str::<IdRange>(&text).unwrap(), last);
    }
}
