//! The stages of a long command: each with a budget that is printed beside the time it took.
//!
//! A stage over its budget is reported and does not fail: a machine under load must not turn a good
//! change red. The budgets of `test` sum to less than CI may take on two cores, so the report shows
//! which stage grew. What is made beside other stages is no part of the sum: it counts where it is
//! waited for.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// The stages done so far.
pub struct Stages {
    began: Instant,
    done: Vec<Done>,
}

struct Done {
    name: &'static str,
    budget: Duration,
    took: Duration,
}

impl Stages {
    /// None yet.
    pub fn new() -> Self {
        Self { began: Instant::now(), done: Vec::new() }
    }

    /// Runs one stage; its budget is in seconds.
    pub fn run<T>(
        &mut self,
        name: &'static str,
        budget: u64,
        stage: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let budget = Duration::from_secs(budget);
        eprintln!("\n== {name} (budget {})", minutes(budget));
        let began = Instant::now();
        let outcome = stage();
        let took = began.elapsed();
        self.done.push(Done { name, budget, took });
        eprintln!("== {name}: {}{}", minutes(took), remark(took, budget));
        outcome.with_context(|| format!("stage {name:?} failed"))
    }

    /// Prints all stages with their times.
    pub fn print_summary(&self) {
        eprintln!("\n{:<28} {:>8} {:>8}", "stage", "budget", "took");
        for Done { name, budget, took } in &self.done {
            let (shown_budget, shown_took) = (minutes(*budget), minutes(*took));
            let remark = remark(*took, *budget);
            eprintln!("{name:<28} {shown_budget:>8} {shown_took:>8}{remark}");
        }
        let budget = self.done.iter().map(|stage| stage.budget).sum();
        let total = minutes(self.began.elapsed());
        eprintln!("{:<28} {:>8} {total:>8}", "all", minutes(budget));
    }
}

fn remark(took: Duration, budget: Duration) -> &'static str {
    if took > budget { "  over its budget" } else { "" }
}

fn minutes(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}m{:02}s", seconds / 60, seconds % 60)
}
