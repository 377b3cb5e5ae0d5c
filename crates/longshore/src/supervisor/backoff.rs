//! How soon a role that died is started again.

use std::time::Duration;

/// A role that ran this long has shown that it can; its earlier deaths are forgotten.
const PROVEN: Duration = Duration::from_secs(10);
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Counts the deaths of one role.
#[derive(Debug, Default)]
pub struct Backoff {
    n_deaths: u32,
}

impl Backoff {
    /// The role died after it ran for `lived`: how long to wait before it is started again. Not at
    /// all after a death out of the blue; longer and longer when it dies again and again.
    pub fn after_death(&mut self, lived: Duration) -> Duration {
        if lived >= PROVEN {
            self.n_deaths = 0;
        }
        self.n_deaths = self.n_deaths.saturating_add(1);
        match self.n_deaths {
            1 => Duration::ZERO,
            n => LONGEST_WAIT.min(FIRST_WAIT * 2u32.saturating_pow((n - 2).min(16))),
        }
    }

    /// How often it died since it last ran for long.
    pub fn n_deaths(&self) -> u32 {
        self.n_deaths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_death_costs_nothing_and_the_wait_has_an_end() {
        let mut backoff = Backoff::default();
        let soon = Duration::from_millis(5);
        let waits: Vec<_> = (0..9).map(|_| backoff.after_death(soon).as_millis()).collect();
        assert_eq!(waits, [0, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(backoff.after_death(PROVEN), Duration::ZERO);
        assert_eq!(backoff.n_deaths(), 1);
        for _ in 0..100 {
            assert!(backoff.after_death(soon) <= LONGEST_WAIT);
        }
    }
}
