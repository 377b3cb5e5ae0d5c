//! Signal numbers as images and manifests write them. The enum of `nix` lacks the real-time
//! signals, and images that run systemd stop by one (`SIGRTMIN+3`).

use std::fmt;
use std::str::FromStr;

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

/// The number of a signal, 1 to 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "i32", into = "i32")]
pub struct SignalNumber(i32);

impl SignalNumber {
    /// `SIGHUP`.
    pub const HUP: Self = Self(libc::SIGHUP);
    /// `SIGTERM`.
    pub const TERM: Self = Self(libc::SIGTERM);
    /// `SIGKILL`.
    pub const KILL: Self = Self(libc::SIGKILL);

    /// The number.
    pub fn get(self) -> i32 {
        self.0
    }
}

/// A text or number that names no signal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a signal: give a name such as SIGTERM or SIGRTMIN+3, or a number from 1 to 64"
)]
pub struct SignalProblem(String);

impl TryFrom<i32> for SignalNumber {
    type Error = SignalProblem;
    fn try_from(number: i32) -> Result<Self, SignalProblem> {
        if (1..=64).contains(&number) {
            Ok(Self(number))
        } else {
            Err(SignalProblem(number.to_string()))
        }
    }
}

impl From<SignalNumber> for i32 {
    fn from(signal: SignalNumber) -> i32 {
        signal.0
    }
}

impl FromStr for SignalNumber {
    type Err = SignalProblem;
    fn from_str(text: &str) -> Result<Self, SignalProblem> {
        let refuse = || SignalProblem(text.to_owned());
        if let Ok(number) = text.parse::<i32>() {
            return Self::try_from(number).map_err(|_| refuse());
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let real_time = |rest: &str, base: i32, sign: i32| {
            let offset = if rest.is_empty() { Some(0) } else { rest[1..].parse::<i32>().ok() };
            offset.map(|offset| Self(base + sign * offset)).filter(|s| (34..=64).contains(&s.0))
        };
        if let Some(rest) =
            name.strip_prefix("RTMIN").filter(|r| r.is_empty() || r.starts_with('+'))
        {
            return real_time(rest, 34, 1).ok_or_else(refuse);
        }
        if let Some(rest) =
            name.strip_prefix("RTMAX").filter(|r| r.is_empty() || r.starts_with('-'))
        {
            return real_time(rest, 64, -1).ok_or_else(refuse);
        }
        Signal::from_str(&format!("SIG{name}")).map(|s| Self(s as i32)).map_err(|_| refuse())
    }
}

impl fmt::Display for SignalNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Signal::try_from(self.0) {
            Ok(signal) => f.pad(signal.as_str()),
            Err(_) => write!(f, "signal {}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_names_and_numbers() {
        for (text, number) in [
            ("SIGTERM", 15),
            ("term", 15),
            ("9", 9),
            ("SIGRTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
        ] {
            assert_eq!(text.parse::<SignalNumber>().unwrap().get(), number, "{text}");
        }
        for bad in ["", "0", "65", "-1", "SIGNOPE", "RTMIN+31", "RTMIN+", "RTMAX-99", "RTMIN3"] {
            assert!(bad.parse::<SignalNumber>().is_err(), "{bad}");
        }
    }
}
