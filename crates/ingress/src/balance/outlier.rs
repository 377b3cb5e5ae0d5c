//! Outlier ejection: what is remembered of an endpoint's answers, and when it is left out for them.
//!
//! The words and numbers are those that Envoy made known. An endpoint is ejected by `consecutive_5xx`
//! failures in a row, or when in one interval it failed far more often than its siblings together;
//! for `base_ejection_time` times the number of its ejections, at most ten times; that
//! number falls by one for each such time without another. Envoy's second rule measures against the
//! mean of at least five hosts; ours compares with the siblings, so that it works with two.

use std::time::Duration;

use tokio::time::Instant;

/// Failures in a row that eject.
pub(crate) const CONSECUTIVE: u32 = 5;
/// An ejection lasts at most so many times the base time.
const MAX_TIMES: u32 = 10;
/// Requests within an interval without which an endpoint is not compared.
const MIN_REQUESTS: u32 = 20;
/// The least part of its requests that must have failed, in percent.
const MIN_FAILED_PERCENT: u64 = 20;
/// By how much that must be above the part of its siblings' requests that failed.
const FAR_ABOVE: u64 = 4;

/// The times of outlier ejection, which tests shorten.
#[derive(Debug, Clone)]
pub(crate) struct Times {
    /// How long the first ejection lasts.
    pub base: Duration,
    /// How long requests are counted before siblings are compared.
    pub interval: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self { base: Duration::from_secs(30), interval: Duration::from_secs(10) }
    }
}

/// How a request ended at an endpoint. A user who went away is neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was answered whole, and not with a failure.
    Answered,
    /// A status of 500 or above, a connection that broke, or silence.
    Failed,
}

/// Requests that ended within an interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Window {
    /// All.
    pub requests: u32,
    /// Those that failed.
    pub failed: u32,
}

/// What is remembered of an endpoint.
#[derive(Debug, Clone, Default)]
pub(crate) struct Record {
    failed_in_a_row: u32,
    window: Window,
    last: Option<Ejection>,
}

#[derive(Debug, Clone, Copy)]
struct Ejection {
    since: Instant,
    until: Instant,
    /// How many times the base time it lasts.
    nth: u32,
}

impl Record {
    /// A request ended. Says for how long the endpoint is ejected now, if it is for this.
    pub fn note(&mut self, outcome: Outcome, now: Instant, times: &Times) -> Option<Duration> {
        if self.out_since(now).is_some() {
            // What was under way then ends badly too, and says nothing of how it will come back.
            return None;
        }
        self.window.requests = self.window.requests.saturating_add(1);
        if outcome == Outcome::Answered {
            self.failed_in_a_row = 0;
            return None;
        }
        self.window.failed = self.window.failed.saturating_add(1);
        self.failed_in_a_row = self.failed_in_a_row.saturating_add(1);
        if self.failed_in_a_row < CONSECUTIVE { None } else { self.eject(now, times) }
    }

    /// Ejects the endpoint, unless it is already.
    pub fn eject(&mut self, now: Instant, times: &Times) -> Option<Duration> {
        if self.out_since(now).is_some() {
            return None;
        }
        let nth = (self.still_counted(now, times) + 1).min(MAX_TIMES);
        let time = times.base * nth;
        self.last = Some(Ejection { since: now, until: now + time, nth });
        self.failed_in_a_row = 0;
        self.window = Window::default();
        Some(time)
    }

    /// Since when it has been ejected, if it is now.
    pub fn out_since(&self, now: Instant) -> Option<Instant> {
        self.last.filter(|ejection| now < ejection.until).map(|ejection| ejection.since)
    }

    /// When the last ejection ended, or will.
    pub fn back_at(&self) -> Option<Instant> {
        self.last.map(|ejection| ejection.until)
    }

    /// The requests of the interval that ends now; the next one begins.
    pub fn take_window(&mut self) -> Window {
        std::mem::take(&mut self.window)
    }

    /// How many ejections still count.
    fn still_counted(&self, now: Instant, times: &Times) -> u32 {
        let Some(Ejection { until, nth, .. }) = self.last else { return 0 };
        let good = now.saturating_duration_since(until).as_millis() / times.base.as_millis().max(1);
        nth.saturating_sub(u32::try_from(good).unwrap_or(u32::MAX))
    }
}

/// Which endpoints failed far more often in an interval than their siblings together.
pub(crate) fn far_above(windows: &[Window]) -> Vec<usize> {
    let sum = |part: fn(&Window) -> u32| windows.iter().map(|w| u64::from(part(w))).sum::<u64>();
    let (requests, failed) = (sum(|w| w.requests), sum(|w| w.failed));
    let stands_out = |window: &Window| {
        let (own, own_failed) = (u64::from(window.requests), u64::from(window.failed));
        let (others, others_failed) = (requests - own, failed - own_failed);
        let enough = |n: u64| n >= u64::from(MIN_REQUESTS);
        let often = own_failed * 100 >= own * MIN_FAILED_PERCENT;
        // Parts are compared by crossing them: own_failed / own >= FAR_ABOVE * others_failed / others.
        let above = own_failed.saturating_mul(others)
            >= FAR_ABOVE.saturating_mul(others_failed).saturating_mul(own);
        enough(own) && enough(others) && often && above
    };
    (0..windows.len()).filter(|idx| stands_out(&windows[*idx])).collect()
}
