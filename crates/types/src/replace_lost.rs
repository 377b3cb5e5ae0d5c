//! When others take the place of what a lost location had.

use std::fmt;
use std::str::FromStr;

use crate::{Duration, ParseError, text_type};

/// How long a location may not be heard of before others start what it had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplaceLost {
    /// So long.
    After(Duration),
    /// For ever.
    Never,
}

impl ReplaceLost {
    /// True after a silence of this length.
    pub fn is_over(self, silence: std::time::Duration) -> bool {
        matches!(self, Self::After(wait) if silence >= wait.0)
    }
}

impl Default for ReplaceLost {
    /// A minute.
    fn default() -> Self {
        Self::After(Duration::from_secs(60))
    }
}

impl FromStr for ReplaceLost {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let refuse =
            || ParseError::new("wait for a lost location", text, "at least 1s, or \"never\"");
        match text {
            "never" => Ok(Self::Never),
            span => match span.parse::<Duration>() {
                Ok(wait) if wait >= Duration::from_secs(1) => Ok(Self::After(wait)),
                _ => Err(refuse()),
            },
        }
    }
}

impl fmt::Display for ReplaceLost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::After(wait) => wait.fmt(f),
            Self::Never => f.write_str("never"),
        }
    }
}

text_type!(ReplaceLost);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_a_span_or_never() {
        for text in ["1s", "60s", "5m", "never"] {
            let read: ReplaceLost = text.parse().unwrap();
            assert_eq!(read.to_string().parse::<ReplaceLost>().unwrap(), read);
        }
        for bad in ["", "0s", "999ms", "Never", "60", "soon"] {
            assert!(bad.parse::<ReplaceLost>().is_err(), "{bad}");
        }
        let minute = ReplaceLost::default();
        let secs = std::time::Duration::from_secs;
        assert!(minute.is_over(secs(60)) && !minute.is_over(secs(59)));
        assert!(!ReplaceLost::Never.is_over(secs(1 << 40)));
    }
}
