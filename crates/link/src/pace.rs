//! Spacing out what is done again whenever something changed.

use std::time::Duration;

use tokio::time::Instant;

/// After work that took some time, a rest in proportion to that: the work as a whole takes a bounded
/// share of the machine, whatever its size and however often there is cause for it, and what comes
/// alone is not delayed. A fixed pause would be too long for little work and too short for much.
#[derive(Debug)]
pub struct Pace {
    /// How many times as long as the work took.
    rest: u32,
    until: Instant,
}

impl Pace {
    /// No rest is longer than this: what took so long was not work but waiting.
    const LONGEST: Duration = Duration::from_millis(500);

    /// With rests that are this many times as long as the work before them.
    pub fn new(rest: u32) -> Self {
        Self { rest, until: Instant::now() }
    }

    /// Work that began then has ended.
    pub fn worked_since(&mut self, began: Instant) {
        let now = Instant::now();
        let rest = now.duration_since(began).saturating_mul(self.rest);
        self.until = now + rest.min(Self::LONGEST);
    }

    /// How much of the rest is left.
    pub fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// Waits for the end of the rest. Cancel safe.
    pub async fn rest(&self) {
        tokio::time::sleep_until(self.until).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rest_grows_with_the_work_and_has_an_end() {
        let mut pace = Pace::new(4);
        let now = Instant::now();
        assert!(pace.until <= now, "the first work waits for nothing");
        pace.worked_since(now - Duration::from_millis(20));
        assert!(pace.until >= now + Duration::from_millis(80));
        pace.worked_since(now - Duration::from_secs(20));
        assert!(pace.until <= Instant::now() + Pace::LONGEST);
    }
}
