//! Whether a rollout gets anywhere, and what becomes of one that does not.

use std::time::Duration;

use longshore_types::{ReleaseNumber, Rollout};

/// How the rollout of an app stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RolloutState {
    /// The release that should run.
    pub release: ReleaseNumber,
    /// The last release that was complete.
    pub good: Option<ReleaseNumber>,
    /// True when every instance that should run is of the release and healthy, and no other is left.
    pub is_complete: bool,
    /// How long ago one more was healthy, or one less left.
    pub since_progress: Duration,
    /// What the release says of its rollout.
    pub rules: Rollout,
}

/// What is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing yet, or nothing any more: a release that was complete once is not judged again.
    Nothing,
    /// It is complete for the first time.
    Complete,
    /// It has failed, and this release is to run again.
    Revert(ReleaseNumber),
    /// It has failed, and goes on trying: there is nothing to go back to, or it should not be done.
    Failed,
}

/// Judges a rollout.
pub fn judge(state: &RolloutState) -> Verdict {
    let RolloutState { release, good, is_complete, since_progress, rules } = *state;
    match good {
        Some(good) if good == release => Verdict::Nothing,
        _ if is_complete => Verdict::Complete,
        _ if since_progress < rules.deadline.0 => Verdict::Nothing,
        Some(good) if rules.revert => Verdict::Revert(good),
        _ => Verdict::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollout_is_judged_until_it_is_complete_once() {
        let [first, second] = [ReleaseNumber(1), ReleaseNumber(2)];
        let rules = Rollout::default();
        let stay = Rollout { revert: false, ..rules };
        let (early, late) = (Duration::from_secs(299), Duration::from_secs(300));
        for (good, is_complete, since_progress, rules, expected) in [
            (None, false, early, rules, Verdict::Nothing),
            (None, true, late, rules, Verdict::Complete),
            (None, false, late, rules, Verdict::Failed),
            (Some(first), false, early, rules, Verdict::Nothing),
            (Some(first), true, early, rules, Verdict::Complete),
            (Some(first), false, late, rules, Verdict::Revert(first)),
            (Some(first), false, late, stay, Verdict::Failed),
            (Some(second), false, late, rules, Verdict::Nothing),
            (Some(second), true, early, rules, Verdict::Nothing),
        ] {
            let state = RolloutState { release: second, good, is_complete, since_progress, rules };
            assert_eq!(judge(&state), expected, "{state:?}");
        }
    }
}
