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
    /// How many frames it gave, and how long it was busy with them, without the time since it is busy.
    known: Known,
    /// The same of the time before it rested last.
    before: Known,
    state: State,
}

#[derive(Debug, Clone, Copy, Default)]
struct Known {
    n_gave: u128,
    busy: Duration,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Busy {
        since: Duration,
    },
    /// After so many frames that came of anyone.
    Rests {
        since: Duration,
        n_came: u128,
    },
}

impl Default for State {
    fn default() -> Self {
        Self::Rests { since: Duration::MAX, n_came: 0 }
    }
}

impl Source {
    /// It is asked for a run.
    pub fn ask(&mut self, frames: Range<usize>, now: Duration) {
        self.n_asked += frames.len();
        self.n_runs += 1;
        self.owed.extend(frames.map(|frame| (frame, now)));
        if let State::Rests { .. } = self.state {
            self.state = State::Busy { since: now };
            (self.before, self.took) = (self.known, Duration::ZERO);
        }
    }

    /// It gave a frame.
    pub fn gave(&mut self, frame: usize, now: Duration) {
        self.known.n_gave += 1;
        if let Some(since) = self.owed.remove(&frame) {
            self.took = self.took.max(now.saturating_sub(since));
        }
    }

    /// A run is through, after so many frames that came of anyone.
    pub fn run_ended(&mut self, now: Duration, n_came: u128) {
        self.n_runs -= 1;
        if self.n_runs > 0 {
            return;
        }
        self.known.busy = self.busy(now);
        self.state = State::Rests { since: now, n_came };
        let of_late = Known {
            n_gave: self.known.n_gave - self.before.n_gave,
            busy: self.known.busy.saturating_sub(self.before.busy),
        };
        // It may have had more to do before, for others.
        if of_late.n_gave * self.known.busy.as_nanos() > self.known.n_gave * of_late.busy.as_nanos()
        {
            self.known = of_late;
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
        (self.known.n_gave * time.as_nanos()).checked_div(self.busy(now).as_nanos())
    }

    /// How long it takes for so many frames.
    pub fn takes(&self, n_frames: u128, now: Duration) -> Option<Duration> {
        let nanos = (n_frames * self.busy(now).as_nanos()).checked_div(self.known.n_gave)?;
        Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    /// When what is known of it is to be renewed: once it has rested for as long as the pull went on before, and
    /// would have brought more meanwhile than the frames that came, of which there are so many now.
    pub fn renew_at(&self, n_came_now: u128, now: Duration) -> Option<Duration> {
        let State::Rests { since, n_came } = self.state else { return None };
        let overtakes = self.takes(n_came_now.saturating_sub(n_came) + 1, now)?;
        since.checked_add(since.max(overtakes))
    }

    fn busy(&self, now: Duration) -> Duration {
        match self.state {
            State::Busy { since } => self.known.busy + now.saturating_sub(since),
            State::Rests { .. } => self.known.busy,
        }
    }
}
