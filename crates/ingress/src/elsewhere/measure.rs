//! What is known of the way to a location, and of how much it has to do.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The part of a new round trip in the smoothed one: one slow answer moves little, and a way that has become
/// slow is known for that after a few probes.
const NEW_PART: f64 = 0.25;

/// What an ingress answers to a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Told {
    /// Requests and upgraded connections under way with its instances, from anywhere.
    pub requests: usize,
    /// Its instances that take requests.
    pub instances: usize,
}

/// What probes found.
#[derive(Debug, Default)]
pub(super) struct Measure {
    smoothed: Option<Duration>,
    /// What it had to do, less what was under way from here then.
    others: usize,
    instances: usize,
}

impl Measure {
    /// A probe was answered after `took`, while `own` requests were under way from here.
    pub fn note(&mut self, took: Duration, told: Told, own: usize) {
        self.smoothed = Some(match self.smoothed {
            Some(before) => before.mul_f64(1.0 - NEW_PART) + took.mul_f64(NEW_PART),
            None => took,
        });
        self.others = told.requests.saturating_sub(own);
        self.instances = told.instances;
    }

    /// The smoothed round trip, once there was one.
    pub fn round_trip(&self) -> Option<Duration> {
        self.smoothed
    }

    /// Requests under way there for each of its instances, with `own` from here now.
    pub fn load(&self, own: usize) -> f64 {
        let requests = self.others.saturating_add(own);
        requests as f64 / self.instances.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slow_answer_moves_little_and_many_do() {
        let millis = Duration::from_millis;
        let mut measure = Measure::default();
        assert_eq!(measure.round_trip(), None);
        measure.note(millis(20), Told::default(), 0);
        assert_eq!(measure.round_trip(), Some(millis(20)));
        measure.note(millis(100), Told::default(), 0);
        assert_eq!(measure.round_trip(), Some(millis(40)));
        (0..40).for_each(|_| measure.note(millis(100), Told::default(), 0));
        assert!(measure.round_trip().unwrap() > millis(99));
    }

    #[test]
    fn load_is_what_others_have_there_and_what_we_have_now() {
        let mut measure = Measure::default();
        assert_eq!(measure.load(3), 3.0);
        measure.note(Duration::ZERO, Told { requests: 12, instances: 4 }, 2);
        assert_eq!(measure.load(2), 3.0);
        assert_eq!(measure.load(10), 5.0);
        // More than it says is under way from here: some came back meanwhile.
        measure.note(Duration::ZERO, Told { requests: 1, instances: 1 }, 5);
        assert_eq!(measure.load(0), 0.0);
    }
}
