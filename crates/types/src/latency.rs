//! How near its users an app should be.

use std::fmt;
use std::str::FromStr;

use crate::{Duration, ParseError, text_type};

/// So many of a hundred, at least one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Percent(u8);

impl Percent {
    /// What a text of one looks like.
    pub const ALLOWED: &str = "a whole number from 1% to 100%";

    /// The same in thousandths.
    pub fn permille(self) -> u32 {
        u32::from(self.0) * 10
    }
}

impl FromStr for Percent {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let refuse = || ParseError::new("share", text, Self::ALLOWED);
        let digits = text.strip_suffix('%').ok_or_else(refuse)?;
        let number = digits.parse().ok().filter(|_| digits.bytes().all(|b| b.is_ascii_digit()));
        number.filter(|number| (1..=100).contains(number)).map(Self).ok_or_else(refuse)
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

text_type!(Percent, { "pattern": "^(100|[1-9][0-9]?)%$" });

/// How many of the users of an app should have an instance how near.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LatencyGoal {
    /// The longest round trip that is near enough.
    pub within: Duration,
    /// How many of the users should have no longer one.
    pub users: Percent,
}

impl LatencyGoal {
    /// How many users a goal is for that does not say so.
    pub const USERS: Percent = Percent(95);
    /// The shortest and the longest round trip that may be a goal: what is asked for within a machine room, and
    /// what is beyond any way on Earth.
    pub const WITHIN: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(10));
}

impl fmt::Display for LatencyGoal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of users within {}", self.users, self.within)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_users_is_written_as_it_is_read() {
        for text in ["1%", "95%", "100%"] {
            assert_eq!(text.parse::<Percent>().unwrap().to_string(), text);
        }
        for bad in ["", "95", "0%", "101%", "256%", "+5%", "-5%", "9.5%", "%", "95 %"] {
            assert!(bad.parse::<Percent>().is_err(), "{bad}");
        }
        assert_eq!(LatencyGoal::USERS.permille(), 950);
    }
}
