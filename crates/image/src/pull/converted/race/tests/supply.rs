//! The source of a world, over lines of several kinds.

use std::ops::Range;
use std::time::Duration;

/// How many runs share what the source gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// All alike, over a thin line.
    Shared,
    /// Run after run, whoever asks.
    InTurn,
    /// Each has as much as one alone.
    Each,
}

struct Run {
    me: usize,
    frames: Range<usize>,
    /// How long its next frame would still take alone.
    left: Duration,
}

pub struct Supply {
    line: Line,
    per_frame: Duration,
    runs: Vec<Run>,
    /// Until when what is left of the runs is known.
    at: Duration,
}

impl Supply {
    pub fn new(line: Line, per_frame: Duration) -> Self {
        Self { line, per_frame, runs: Vec::new(), at: Duration::ZERO }
    }

    pub fn ask(&mut self, now: Duration, me: usize, frames: Range<usize>) {
        self.go_on(now);
        self.runs.push(Run { me, frames, left: self.per_frame });
    }

    /// When it gives the next frame, and of which run.
    pub fn next(&self) -> Option<(Duration, usize)> {
        let due = |nth: usize| Some((self.at + self.runs[nth].left * self.slowness(nth)?, nth));
        (0..self.runs.len()).filter_map(due).min()
    }

    /// Gives a frame of a run: to whom, which, and whether it was the last.
    pub fn give(&mut self, now: Duration, nth: usize) -> (usize, usize, bool) {
        self.go_on(now);
        let run = &mut self.runs[nth];
        run.left = self.per_frame;
        let (me, frame, is_through) = (run.me, run.frames.next().unwrap(), run.frames.is_empty());
        if is_through {
            self.runs.remove(nth);
        }
        (me, frame, is_through)
    }

    /// How many times longer a run takes than alone; nothing while it waits.
    fn slowness(&self, nth: usize) -> Option<u32> {
        match self.line {
            Line::Shared => Some(self.runs.len() as u32),
            Line::InTurn => (nth == 0).then_some(1),
            Line::Each => Some(1),
        }
    }

    fn go_on(&mut self, now: Duration) {
        let passed = now - self.at;
        for nth in 0..self.runs.len() {
            if let Some(slowness) = self.slowness(nth) {
                let left = &mut self.runs[nth].left;
                *left = left.saturating_sub(passed / slowness);
            }
        }
        self.at = now;
    }
}
