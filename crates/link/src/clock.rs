//! The one place where services read the wall clock; pure crates are given its value.
//!
//! A simulation gives each of its processes a clock of its own, which may be wrong and jump, by an
//! override for the thread on which it runs all of them. What only passes is measured with
//! [`tokio::time::Instant`], which a simulation pauses. Rejected: a clock that is passed to whoever asks for the time,
//! which every handler and record would have to carry for the sake of tests.

use std::cell::Cell;
use std::time::{SystemTime, UNIX_EPOCH};

use longshore_types::Timestamp;

thread_local! {
    static SIMULATED: Cell<Option<Timestamp>> = const { Cell::new(None) };
}

/// The time now. A clock before 1970 reads as 1970.
pub fn now() -> Timestamp {
    if let Some(simulated) = SIMULATED.get() {
        return simulated;
    }
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

/// From now on [`now`] reads so on this thread; with nothing it is the machine's clock again.
pub fn simulate(clock: Option<Timestamp>) {
    SIMULATED.set(clock);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_simulated_clock_is_read_by_its_thread_alone() {
        simulate(Some(Timestamp(7)));
        assert_eq!(now(), Timestamp(7));
        assert!(std::thread::spawn(now).join().unwrap() > Timestamp(7));
        simulate(None);
        assert!(now() > Timestamp(7));
    }
}
