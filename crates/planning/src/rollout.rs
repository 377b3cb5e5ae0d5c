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
    /// While nothing but the release's command may run: what came of it, and how long that has been.
    pub command: Option<(CommandOutcome, Duration)>,
    /// True while only canaries of the release should run, beside the last complete one.
    pub is_canary: bool,
    /// True when every instance that should run is of the release and healthy, and no other is left;
    /// of canaries, when all are healthy.
    pub is_complete: bool,
    /// For how long that has been so.
    pub complete_for: Duration,
    /// True when every instance that should run is of the release and healthy, and what is left of
    /// others is on its way out, which takes as long as its requests may.
    pub is_served: bool,
    /// How long ago one more was healthy, or one less left.
    pub since_progress: Duration,
    /// What the release says of its rollout.
    pub rules: Rollout,
}

/// What came of a release's command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandOutcome {
    /// It is on its way, and may take so long in all.
    Pending {
        /// The limit.
        timeout: Duration,
    },
    /// It ended with 0.
    Succeeded,
    /// It ended with something else, or could not be started.
    Failed,
}

/// What is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing yet, or nothing any more: a release that was complete once is not judged again.
    Nothing,
    /// It is complete for the first time.
    Complete,
    /// Its command succeeded: its instances may be started.
    Proceed,
    /// Its canaries were healthy for long enough: it is to take over.
    Promote,
    /// It has failed, and this release is to run again.
    Revert(ReleaseNumber),
    /// It has failed, and goes on trying: there is nothing to go back to, or it should not be done.
    Failed,
}

/// Judges a rollout.
pub fn judge(state: &RolloutState) -> Verdict {
    let RolloutState { release, good, is_complete, since_progress, rules, .. } = *state;
    let given_up = || match good {
        Some(good) if rules.revert => Verdict::Revert(good),
        _ => Verdict::Failed,
    };
    if let Some((outcome, since)) = state.command {
        return match outcome {
            CommandOutcome::Succeeded => Verdict::Proceed,
            CommandOutcome::Pending { timeout } if since < timeout => Verdict::Nothing,
            CommandOutcome::Pending { .. } | CommandOutcome::Failed => given_up(),
        };
    }
    match good {
        Some(good) if good == release => Verdict::Nothing,
        _ if is_complete && state.is_canary => match rules.canary_wait {
            Some(wait) if state.complete_for >= wait.0 => Verdict::Promote,
            _ => Verdict::Nothing,
        },
        _ if is_complete => Verdict::Complete,
        _ if state.is_served => Verdict::Nothing,
        _ if since_progress < rules.deadline.0 => Verdict::Nothing,
        _ => given_up(),
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
            let (is_canary, complete_for, is_served) = (false, Duration::ZERO, false);
            let state = RolloutState {
                release: second,
                good,
                command: None,
                is_canary,
                is_complete,
                complete_for,
                is_served,
                since_progress,
                rules,
            };
            assert_eq!(judge(&state), expected, "{state:?}");
            if expected != Verdict::Complete {
                let served = RolloutState { is_served: true, ..state };
                assert_eq!(judge(&served), Verdict::Nothing, "the last requests may take longer");
            }
        }
    }

    #[test]
    fn canaries_take_over_after_their_wait_and_never_without_one() {
        let wait = Some(longshore_types::Duration::from_secs(600));
        let by_itself = Rollout { canary_wait: wait, ..Rollout::default() };
        let by_hand = Rollout::default();
        let late = Duration::from_secs(900);
        for (is_complete, complete_for, rules, expected) in [
            (true, Duration::from_secs(599), by_itself, Verdict::Nothing),
            (true, Duration::from_secs(600), by_itself, Verdict::Promote),
            (true, late, by_hand, Verdict::Nothing),
            (false, Duration::ZERO, by_itself, Verdict::Revert(ReleaseNumber(1))),
            (false, Duration::ZERO, by_hand, Verdict::Revert(ReleaseNumber(1))),
        ] {
            let state = RolloutState {
                release: ReleaseNumber(2),
                good: Some(ReleaseNumber(1)),
                command: None,
                is_canary: true,
                is_complete,
                complete_for,
                is_served: false,
                since_progress: late,
                rules,
            };
            assert_eq!(judge(&state), expected, "{state:?}");
        }
    }

    #[test]
    fn a_release_goes_on_after_its_command_and_not_without() {
        let (early, late) = (Duration::from_secs(9), Duration::from_secs(10));
        let pending = CommandOutcome::Pending { timeout: late };
        let back = Verdict::Revert(ReleaseNumber(1));
        for (outcome, since, has_good, revert, expected) in [
            (pending, early, true, true, Verdict::Nothing),
            (pending, late, true, true, back),
            (CommandOutcome::Succeeded, late, true, true, Verdict::Proceed),
            (CommandOutcome::Failed, early, true, true, back),
            (CommandOutcome::Failed, early, true, false, Verdict::Failed),
            (CommandOutcome::Failed, early, false, true, Verdict::Failed),
        ] {
            let state = RolloutState {
                release: ReleaseNumber(2),
                good: has_good.then_some(ReleaseNumber(1)),
                command: Some((outcome, since)),
                is_canary: false,
                is_complete: false,
                complete_for: Duration::ZERO,
                is_served: false,
                since_progress: Duration::ZERO,
                rules: Rollout { revert, ..Rollout::default() },
            };
            assert_eq!(judge(&state), expected, "{state:?}");
        }
    }
}
