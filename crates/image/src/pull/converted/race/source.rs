//! The source of a race: what it is asked for, and how fast it gives that.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

#[derive(Debug, Default)]
pub(super) struct Source {
    /// What it is asked for next.
    pub queue: BTreeSet<usize>,
    /// Runs that it is asked for now.
    pub n_runs: usize,
    /// Frames that it was asked for.
    pub n_asked: usize,
    /// When it was asked for what it has not given yet.
    owed: BTreeMap<usize, Duration>,
    /// The longest that it took for a frame since it rested last.
    took: Duration,
    /// Frames that it gave.
    n_gave: u128,
    /// How long it was busy, without the time since then.
    busy: Duration,
    busy_since: Option<Duration>,
}

impl Source {
    /// It is asked for a run.
    pub fn ask(&mut self, frames: Range<usize>, now: Duration) {
        self.n_asked += frames.len();
        self.n_runs += 1;
        self.owed.extend(frames.map(|frame| (frame, now)));
        if self.busy_since.is_none() {
            (self.busy_since, self.took) = (Some(now), Duration::ZERO);
        }
    }

    /// It gave a frame.
    pub fn gave(&mut self, frame: usize, now: Duration) {
        self.n_gave += 1;
        if let Some(since) = self.owed.remove(&frame) {
            self.took = self.took.max(now.saturating_sub(since));
        }
    }

    /// A run is through.
    pub fn run_ended(&mut self, now: Duration) {
        self.n_runs -= 1;
        if self.n_runs == 0 {
            self.busy = self.busy(now);
            self.busy_since = None;
        }
    }

    /// How many frames it is asked for and has not given.
    pub fn n_owed(&self) -> usize {
        self.owed.len()
    }

    /// Whether it was asked then or before for something that it has not given yet.
    pub fn owes_since(&self, at: Duration) -> bool {
        self.owed.values().any(|since| *since <= at)
    }

    /// The longest that it took for a frame of late.
    pub fn took(&self) -> Duration {
        self.took
    }

    /// How many frames it brings in that time; nothing as long as nothing is known.
    pub fn brings(&self, time: Duration, now: Duration) -> Option<u128> {
        (self.n_gave * time.as_nanos()).checked_div(self.busy(now).as_nanos())
    }

    /// How long it takes for so many frames.
    pub fn takes(&self, n_frames: u128, now: Duration) -> Option<Duration> {
        let nanos = (n_frames * self.busy(now).as_nanos()).checked_div(self.n_gave)?;
        Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    fn busy(&self, now: Duration) -> Duration {
        let since = self.busy_since.map_or(Duration::ZERO, |since| now.saturating_sub(since));
        self.busy + since
    }
}
