//! An operator's wish that nothing new goes to a node or a location.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{AppName, Timestamp};

/// Such a wish. It holds until it is taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cordon {
    /// Since when.
    pub since: Timestamp,
    /// By the bearer of which token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<AppName>,
    /// True when what is there should be somewhere else.
    #[serde(default)]
    pub drains: bool,
    /// True of a node that was removed: it is told to end what it has, and not listened to.
    #[serde(default)]
    pub removed: bool,
}

impl Cordon {
    /// Why nothing new goes there.
    pub fn refusal(&self) -> String {
        let Self { since, drains, removed, .. } = self;
        let what = match (removed, drains) {
            (true, _) => "removed",
            (false, true) => "drained",
            (false, false) => "cordoned",
        };
        format!("refused: {what} by an operator since {since}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_was_wished_and_since_when() {
        let cordon = |drains, removed| Cordon {
            since: Timestamp(1_795_761_790_000),
            by: None,
            drains,
            removed,
        };
        for (cordon, word) in [
            (cordon(false, false), "cordoned"),
            (cordon(true, false), "drained"),
            (cordon(true, true), "removed"),
        ] {
            let expected = format!("refused: {word} by an operator since 2026-11-27T06:43:10Z");
            assert_eq!(cordon.refusal(), expected);
        }
    }
}
