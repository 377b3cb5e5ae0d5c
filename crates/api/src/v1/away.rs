//! Locations that are not heard of.

use longshore_types::{LocationName, ReleaseNumber, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A location that is not heard of, with its part of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AwayView {
    /// The location.
    pub location: LocationName,
    /// How many instances should run there.
    pub count: u32,
    /// When it was last heard of; absent when the control plane does not know that since it was started.
    pub silent_since: Option<Timestamp>,
    /// The newest release that ran there then, as far as that is known.
    pub release: Option<ReleaseNumber>,
}

impl AwayView {
    /// The same in words: `sin (cut off for 14 min, running r41)`.
    pub fn text(&self, now: Timestamp) -> String {
        let minutes = self.silent_since.map(|since| now.0.saturating_sub(since.0) / 60_000);
        let silent = match minutes {
            None => "not heard of".to_owned(),
            Some(0) => "cut off".to_owned(),
            Some(minutes @ 1..100) => format!("cut off for {minutes} min"),
            Some(minutes) => format!("cut off for {} h", minutes / 60),
        };
        let running =
            self.release.map_or_else(String::new, |release| format!(", running {release}"));
        format!("{} ({silent}{running})", self.location)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_for_how_long_and_what_runs_there() {
        let minute = 60_000;
        let now = Timestamp(10_000 * minute);
        let text = |minutes: Option<u64>, release: Option<u64>| {
            let silent_since = minutes.map(|minutes| Timestamp(now.0 - minutes * minute));
            let (location, release) = ("sin".parse().unwrap(), release.map(ReleaseNumber));
            AwayView { location, count: 1, silent_since, release }.text(now)
        };
        assert_eq!(text(Some(14), Some(41)), "sin (cut off for 14 min, running r41)");
        assert_eq!(text(Some(0), Some(41)), "sin (cut off, running r41)");
        assert_eq!(text(Some(99), None), "sin (cut off for 99 min)");
        assert_eq!(text(Some(100), None), "sin (cut off for 1 h)");
        assert_eq!(text(Some(9_999), Some(1)), "sin (cut off for 166 h, running r1)");
        assert_eq!(text(None, None), "sin (not heard of)");
        assert_eq!(text(None, Some(41)), "sin (not heard of, running r41)");
        // A clock that was set back.
        let later = AwayView {
            location: "sin".parse().unwrap(),
            count: 1,
            silent_since: Some(Timestamp(now.0 + 1)),
            release: None,
        };
        assert_eq!(later.text(now), "sin (cut off)");
    }
}
