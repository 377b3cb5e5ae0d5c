//! When an instance that ended is started again.

use longshore_types::{Duration, ExitReason, RestartPolicy};

/// The wait before the first restart; it doubles with each further one.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// The longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// An instance that ran this long is trusted again: its next wait is the first one.
const TRUSTED_AFTER: Duration = Duration::from_secs(60);

/// What to do with an instance that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// Start it again after a wait.
    After(Duration),
    /// Leave it ended.
    Never,
}

/// Decides by the app's policy, why the instance ended, how long it ran, and how many times in a
/// row it ended sooner than an instance that is trusted.
pub fn plan_restart(
    policy: RestartPolicy,
    reason: &ExitReason,
    ran: Duration,
    quick_ends: u32,
) -> (Restart, u32) {
    let ended_well = matches!(reason, ExitReason::Exited { code: 0 });
    let again = match policy {
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => !ended_well,
        // What the platform itself caused is not the end that the user meant.
        RestartPolicy::Never => matches!(reason, ExitReason::ShimDied | ExitReason::NodeRestarted),
    };
    if !again {
        return (Restart::Never, quick_ends);
    }
    let quick_ends = if ran >= TRUSTED_AFTER { 0 } else { quick_ends };
    let factor = 1_u32.checked_shl(quick_ends.min(16)).unwrap_or(u32::MAX);
    let wait = Duration(FIRST_WAIT.0.saturating_mul(factor)).min(LONGEST_WAIT);
    (Restart::After(wait), quick_ends + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OOM: ExitReason = ExitReason::OutOfMemory { peak: None, limit: None };

    const QUICK: Duration = Duration::from_secs(1);

    #[test]
    fn the_policy_decides_with_the_reason() {
        let (well, badly) = (ExitReason::Exited { code: 0 }, ExitReason::Exited { code: 1 });
        for (policy, reason, again) in [
            (RestartPolicy::Always, &well, true),
            (RestartPolicy::OnFailure, &well, false),
            (RestartPolicy::OnFailure, &badly, true),
            (RestartPolicy::OnFailure, &OOM, true),
            (RestartPolicy::Never, &badly, false),
            (RestartPolicy::Never, &ExitReason::ShimDied, true),
        ] {
            let (restart, _) = plan_restart(policy, reason, QUICK, 0);
            assert_eq!(restart != Restart::Never, again, "{policy:?} {reason:?}");
        }
    }

    #[test]
    fn waits_double_up_to_a_minute_and_start_over_after_a_long_run() {
        let mut quick_ends = 0;
        let mut waits = Vec::new();
        for _ in 0..10 {
            let reason = OOM;
            let (restart, next) = plan_restart(RestartPolicy::Always, &reason, QUICK, quick_ends);
            let Restart::After(wait) = restart else { panic!("must restart") };
            waits.push(wait.0.as_millis());
            quick_ends = next;
        }
        assert_eq!(waits, [250, 500, 1000, 2000, 4000, 8000, 16000, 32000, 60000, 60000]);
        let long = Duration::from_secs(60);
        let (restart, _) = plan_restart(RestartPolicy::Always, &OOM, long, 9);
        assert_eq!(restart, Restart::After(FIRST_WAIT));
    }
}
