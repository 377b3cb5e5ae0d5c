//! Points in time and spans as they are stored and shown.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ParseError, text_type};

/// A point in time: milliseconds since the Unix epoch, by the clock of whoever recorded it.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The time from `earlier` to this, zero when the clock went back.
    pub fn since(self, earlier: Self) -> Duration {
        Duration(std::time::Duration::from_millis(self.0.saturating_sub(earlier.0)))
    }

    /// This point moved on by `span`.
    pub fn plus(self, span: Duration) -> Self {
        let millis = u64::try_from(span.0.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(millis))
    }
}

/// A span of time, written `500ms`, `10s`, `5m`, `2h` or `7d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Duration(pub std::time::Duration);

impl Duration {
    /// A span of whole seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(std::time::Duration::from_secs(seconds))
    }

    /// A span of milliseconds.
    pub const fn from_millis(millis: u64) -> Self {
        Self(std::time::Duration::from_millis(millis))
    }
}

const UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl FromStr for Duration {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let refuse = || ParseError::new("duration", text, "a whole number and ms, s, m, h or d");
        let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(refuse)?;
        let (digits, unit) = text.split_at(split);
        let factor = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(refuse)?.1;
        let number: u64 = digits.parse().map_err(|_| refuse())?;
        number.checked_mul(factor).map(Self::from_millis).ok_or_else(refuse)
    }
}

impl fmt::Display for Duration {
    /// The largest unit that shows the span without a fraction.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        let text = match UNITS.iter().find(|(_, factor)| millis.is_multiple_of(u128::from(*factor)))
        {
            _ if millis == 0 => "0s".to_owned(),
            Some((unit, factor)) => format!("{}{unit}", millis / u128::from(*factor)),
            None => format!("{millis}ms"),
        };
        f.pad(&text)
    }
}

text_type!(Duration, { "pattern": "^[0-9]+(ms|s|m|h|d)$" });

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_round_trip() {
        for text in ["500ms", "10s", "5m", "2h", "7d", "0s", "90s"] {
            assert_eq!(text.parse::<Duration>().unwrap().to_string(), text);
        }
        for bad in ["", "10", "s", "1.5s", "-1s", "10 s", "99999999999999999999s"] {
            assert!(bad.parse::<Duration>().is_err(), "{bad}");
        }
    }
}
