use std::fmt;
use std::str::FromStr;

use longshore_types::ParseError;
use serde::{Deserialize, Serialize};

/// What tells the node agents of one kernel apart: six lower-case hexadecimal characters, short
/// enough to be part of the name of a network link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AgentId(u32);

const DIGITS: usize = 6;

impl AgentId {
    /// Makes an id from 24 random bits (the low ones of `random`).
    pub fn mint(random: u32) -> Self {
        Self(random & 0xff_ffff)
    }

    /// The id as a number below 2^24.
    pub(crate) fn number(self) -> u32 {
        self.0
    }
}

impl FromStr for AgentId {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let refused = || ParseError {
            what: "agent id",
            value: text.to_owned(),
            allowed: "six lower-case hexadecimal characters",
        };
        if text.len() != DIGITS || !text.bytes().all(is_digit) {
            return Err(refused());
        }
        u32::from_str_radix(text, 16).map(Self).map_err(|_| refused())
    }
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:06x}", self.0))
    }
}

impl TryFrom<String> for AgentId {
    type Error = ParseError;
    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl From<AgentId> for String {
    fn from(agent: AgentId) -> String {
        agent.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn six_lower_case_hexadecimal_characters() {
        for good in ["000000", "abc123", "ffffff"] {
            assert_eq!(good.parse::<AgentId>().unwrap().to_string(), good);
        }
        for bad in ["", "abc12", "abc1234", "ABC123", "abc12g", "+bc123", "abc-23"] {
            let error = bad.parse::<AgentId>().unwrap_err();
            assert!(error.to_string().contains("six lower-case"), "{error}");
        }
        assert_eq!(AgentId::mint(u32::MAX).to_string(), "ffffff");
    }
}
