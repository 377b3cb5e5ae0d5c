//! How long a repository of images keeps what no release needs.

use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Duration;

/// What of a repository goes by itself. Nothing goes that a release needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Retention {
    /// So many tags stay, those that were pushed last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_tags: Option<NonZeroU32>,
    /// Every tag stays that was pushed in this time. Without this and `keep_tags` every tag stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_tagged: Option<Duration>,
    /// How long a manifest stays that no tag and no release names; what the registry says when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_untagged: Option<Duration>,
}

impl Retention {
    /// Whether a tag goes that was pushed so long ago, when so many were pushed after it.
    pub fn lets_go(&self, n_newer: usize, age: Duration) -> bool {
        let is_among = self.keep_tags.is_some_and(|keep| n_newer < keep.get() as usize);
        let is_young = self.keep_tagged.is_some_and(|keep| age < keep);
        let says_something = self.keep_tags.is_some() || self.keep_tagged.is_some();
        says_something && !is_among && !is_young
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_goes_when_nothing_keeps_it() {
        let (day, week) = (Duration::from_secs(86_400), Duration::from_secs(7 * 86_400));
        for (keep_tags, keep_tagged, n_newer, age, goes) in [
            (None, None, 1000, week, false),
            (Some(3), None, 2, week, false),
            (Some(3), None, 3, day, true),
            (None, Some(week), 1000, day, false),
            (None, Some(week), 0, week, true),
            (Some(3), Some(week), 2, week, false),
            (Some(3), Some(week), 3, day, false),
            (Some(3), Some(week), 3, week, true),
        ] {
            let keep_tags = keep_tags.and_then(NonZeroU32::new);
            let retention = Retention { keep_tags, keep_tagged, keep_untagged: None };
            assert_eq!(retention.lets_go(n_newer, age), goes, "{retention:?} {n_newer} {age}");
        }
    }

    #[test]
    fn what_is_not_said_is_not_written_and_what_is_unknown_refused() {
        assert_eq!(serde_json::to_string(&Retention::default()).unwrap(), "{}");
        let text = r#"{"keep_tags":3,"keep_tagged":"7d","keep_untagged":"1h"}"#;
        let retention: Retention = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&retention).unwrap(), text);
        for bad in
            [r#"{"keep_tags":0}"#, r#"{"keep_tags":-1}"#, r#"{"keep_tagged":"7"}"#, r#"{"keep":1}"#]
        {
            assert!(serde_json::from_str::<Retention>(bad).is_err(), "{bad}");
        }
    }
}
