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

impl fmt::Display for Timestamp {
    /// Its second, in UTC, as RFC 3339 has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, second) = (self.0 / 86_400_000, self.0 / 1000 % 86_400);
        // Years that begin in March end with the odd day; 400 of them have always as many days.
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * from_march + 2) / 5 + 1;
        let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
        let year = era * 400 + year_of_era + u64::from(month <= 2);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
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
    fn points_are_shown_to_the_second() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399_999, "2000-02-28T23:59:59Z"),
            (951_782_400_000, "2000-02-29T00:00:00Z"),
            (1_795_761_790_123, "2026-11-27T06:43:10Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(Timestamp(millis).to_string(), text);
        }
    }

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
