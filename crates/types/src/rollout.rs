//! How a new release takes the place of the old one.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Duration, ParseError, text_type};

/// A number of instances, or a part of those that should run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Portion {
    /// So many.
    Count(u32),
    /// So many of a hundred.
    Percent(u32),
}

impl Portion {
    /// True when it is none of however many.
    pub fn is_none(self) -> bool {
        matches!(self, Self::Count(0) | Self::Percent(0))
    }

    fn of(self, count: u32, round: fn(u64) -> u64) -> u32 {
        match self {
            Self::Count(n) => n,
            Self::Percent(percent) => {
                let hundredths = u64::from(count) * u64::from(percent);
                u32::try_from(round(hundredths)).unwrap_or(u32::MAX)
            }
        }
    }
}

impl FromStr for Portion {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong = || {
            ParseError::new("portion", text, "a whole number from 0 to 10000, or from 0% to 100%")
        };
        let (digits, most) = match text.strip_suffix('%') {
            Some(digits) => (digits, 100),
            None => (text, 10_000),
        };
        let number = digits.parse().ok().filter(|_| digits.bytes().all(|b| b.is_ascii_digit()));
        let number = number.filter(|number| *number <= most).ok_or_else(wrong)?;
        Ok(if text.ends_with('%') { Self::Percent(number) } else { Self::Count(number) })
    }
}

impl fmt::Display for Portion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(n) => write!(f, "{n}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

text_type!(Portion);

/// How far a rollout may go from what should run, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Rollout {
    /// How many instances may run beyond those that should; a part is rounded up.
    pub max_surge: Portion,
    /// How many of those that should serve may be missing; a part is rounded down.
    pub max_unavailable: Portion,
    /// How long it may go without one more healthy or one less left before it has failed.
    pub deadline: Duration,
    /// Whether the last release that was complete takes the place of one that failed.
    pub revert: bool,
    /// How many instances of a new release run at first, beside all of the last complete one; a part
    /// is rounded up, none goes without.
    pub canary: Portion,
    /// How long all of those have to be healthy before the release takes over by itself; without,
    /// somebody has to say so.
    pub canary_wait: Option<Duration>,
    /// Whether one location has the release first, then more and more, each wave once the one before serves
    /// it; else all at the same time.
    pub waves: bool,
}

impl Default for Rollout {
    /// One more at a time, and never one less; back after five minutes; no canaries; location after
    /// location.
    fn default() -> Self {
        Self {
            max_surge: Portion::Count(1),
            max_unavailable: Portion::Count(0),
            deadline: Duration::from_secs(300),
            revert: true,
            canary: Portion::Count(0),
            canary_wait: None,
            waves: true,
        }
    }
}

impl Rollout {
    /// The most that may run beyond `count`.
    pub fn surge(&self, count: u32) -> u32 {
        self.max_surge.of(count, |hundredths| hundredths.div_ceil(100))
    }

    /// How many instances of a new release run at first when `count` of the last one do.
    pub fn canaries(&self, count: u32) -> u32 {
        self.canary.of(count, |hundredths| hundredths.div_ceil(100)).min(count)
    }

    /// The most of `count` that may be missing. One where parts of a small count come to nothing
    /// both ways, for then nothing could ever be replaced.
    pub fn unavailable(&self, count: u32) -> u32 {
        let unavailable = self.max_unavailable.of(count, |hundredths| hundredths / 100);
        let least = u32::from(self.surge(count) == 0);
        unavailable.max(least).min(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portions_are_counts_or_parts() {
        for (text, portion) in [
            ("0", Portion::Count(0)),
            ("10000", Portion::Count(10_000)),
            ("25%", Portion::Percent(25)),
            ("100%", Portion::Percent(100)),
        ] {
            let read: Portion = text.parse().unwrap();
            assert_eq!((read, read.to_string().as_str()), (portion, text));
        }
        for bad in ["", "%", "-1", "+1", "10001", "101%", "1.5", "25 %", "%25", "x"] {
            let error = bad.parse::<Portion>().unwrap_err();
            assert!(error.to_string().contains("0% to 100%"), "{bad}: {error}");
        }
    }

    #[test]
    fn parts_are_rounded_to_the_careful_side_and_something_can_always_be_replaced() {
        let rollout = |surge: &str, unavailable: &str| Rollout {
            max_surge: surge.parse().unwrap(),
            max_unavailable: unavailable.parse().unwrap(),
            ..Rollout::default()
        };
        for (surge, unavailable, count, expected) in [
            ("1", "0", 10, (1, 0)),
            ("25%", "25%", 10, (3, 2)),
            ("25%", "25%", 3, (1, 0)),
            ("0", "25%", 3, (0, 1)),
            ("0", "100%", 3, (0, 3)),
            ("3", "5", 2, (3, 2)),
            ("100%", "0", 4, (4, 0)),
            ("0", "1", 0, (0, 0)),
        ] {
            let rollout = rollout(surge, unavailable);
            let found = (rollout.surge(count), rollout.unavailable(count));
            assert_eq!(found, expected, "{surge} {unavailable} of {count}");
        }
        for (canary, count, expected) in
            [("0", 10, 0), ("0%", 10, 0), ("1%", 10, 1), ("25%", 10, 3), ("4", 2, 2), ("1", 0, 0)]
        {
            let rollout = Rollout { canary: canary.parse().unwrap(), ..Rollout::default() };
            assert_eq!(rollout.canaries(count), expected, "{canary} of {count}");
        }
    }
}
