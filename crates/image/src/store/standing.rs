//! Which neighbours are left alone for a while, of whatever pull they spoilt a part.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long a neighbour is asked for nothing that lied, failed or was too slow.
const PENALTY: Duration = Duration::from_secs(60);

/// Until when neighbours are left alone, by their names.
#[derive(Debug, Default)]
pub(crate) struct Standings(Mutex<BTreeMap<String, Instant>>);

impl Standings {
    /// Has a neighbour left alone from now on.
    pub fn penalise(&self, name: &str, now: Instant) {
        self.until().insert(name.to_owned(), now + PENALTY);
    }

    /// Whether a neighbour may be asked.
    pub fn may_be_asked(&self, name: &str, now: Instant) -> bool {
        let mut until = self.until();
        until.retain(|_, until| *until > now);
        !until.contains_key(name)
    }

    fn until(&self) -> MutexGuard<'_, BTreeMap<String, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_spoilt_something_is_left_alone_for_a_minute() {
        let (standings, now) = (Standings::default(), Instant::now());
        assert!(standings.may_be_asked("n1", now));
        standings.penalise("n1", now);
        let after = |secs| standings.may_be_asked("n1", now + Duration::from_secs(secs));
        assert_eq!((after(0), after(59), standings.may_be_asked("n2", now)), (false, false, true));
        assert!(after(60));
        standings.penalise("n1", now);
        standings.penalise("n1", now + Duration::from_secs(30));
        assert_eq!((after(89), after(90)), (false, true), "the last one counts");
    }
}
