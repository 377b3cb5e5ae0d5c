//! What happened, line by line: two runs of a seed have the same.

use std::collections::VecDeque;

/// How many lines are kept for whoever looks into a failure.
const KEPT: usize = 400;

/// The trace of a run.
#[derive(Debug)]
pub struct Trace {
    hash: u64,
    n_lines: u64,
    newest: VecDeque<String>,
    /// `LONGSHORE_TRACE`: every line is shown as it comes.
    is_shown: bool,
}

impl Default for Trace {
    fn default() -> Self {
        let is_shown = std::env::var_os("LONGSHORE_TRACE").is_some();
        Self { hash: 0xcbf2_9ce4_8422_2325, n_lines: 0, newest: VecDeque::new(), is_shown }
    }
}

impl Trace {
    /// Adds a line.
    pub fn add(&mut self, now: u64, line: &str) {
        let line = format!("{:>9.3} {line}", now as f64 / 1000.0);
        // FNV-1a, which is the same everywhere.
        for byte in line.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        self.n_lines += 1;
        if self.is_shown {
            eprintln!("{line}");
        }
        if self.newest.len() == KEPT {
            self.newest.pop_front();
        }
        self.newest.push_back(line);
    }

    /// What tells it from another: a hash, and how many lines it has.
    pub fn hash(&self) -> (u64, u64) {
        (self.hash, self.n_lines)
    }

    /// The newest lines.
    pub fn newest(&self) -> String {
        self.newest.iter().map(|line| format!("{line}\n")).collect()
    }
}
