//! Seeds: whatever goes wrong, budgets hold at every moment, and in the end what should be is.
//!
//! `LONGSHORE_SEED` runs one alone, `LONGSHORE_SEEDS` so many. A failure prints its seed and what happened before.

use longshore_simulation::run;

/// Where the seeds of a run begin.
const FIRST: u64 = 1;
/// How many there are in a short run.
const FEW: u64 = 20;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number, and not {text:?}")))
}

fn check(seed: u64) -> u64 {
    match run(seed) {
        Ok(outcome) => outcome.n_acknowledged,
        Err(failure) => {
            panic!("{}\n{}\nrepeat with LONGSHORE_SEED={seed}", failure.trace, failure.what)
        }
    }
}

#[test]
fn whatever_goes_wrong_budgets_hold_and_what_should_be_comes_about() {
    if std::env::var_os("LONGSHORE_LOG").is_some() {
        tracing_subscriber::fmt()
            .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
            .init();
    }
    let seeds = match number("LONGSHORE_SEED") {
        Some(seed) => seed..seed + 1,
        None => FIRST..FIRST + number("LONGSHORE_SEEDS").unwrap_or(FEW),
    };
    let began = std::time::Instant::now();
    let n_seeds = seeds.end - seeds.start;
    let n_acknowledged: u64 = seeds.map(check).sum();
    println!("{n_seeds} seeds, {n_acknowledged} changes acknowledged, {:?}", began.elapsed());
    // In one alone there may be nobody who leads for most of the time.
    let is_much = n_acknowledged > n_seeds || n_seeds == 1;
    assert!(is_much, "hardly anything was ever done");
}

#[test]
fn a_seed_replays_its_run() {
    let outcome = run(7).map_err(|failure| failure.what).unwrap();
    assert_eq!(run(7).unwrap(), outcome);
    assert_ne!(run(8).unwrap().trace, outcome.trace);
}
