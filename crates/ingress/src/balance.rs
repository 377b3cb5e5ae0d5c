//! Which of an app's endpoints gets the next request: pure decisions over what is known of them.
//!
//! Three things come together. **Least outstanding requests** first, by chance among equals.
//! **Slow start**: an endpoint that is new beside others gets a share that grows with its weight.
//! **Outlier ejection**: an endpoint whose requests fail is left out for a while (`outlier`).
//!
//! How many may be left out is looked at with each pick, over the endpoints that there are then,
//! and not when one is ejected: so the last one is never left out, also not when its siblings
//! leave the table after it was ejected. Rejected: weights of a round robin, which know nothing of
//! requests that take long.

mod outlier;
#[cfg(test)]
mod tests;

use std::time::Duration;

use tokio::time::Instant;

pub(crate) use outlier::{Outcome, Record, Times, Window, far_above};

/// The least share of an endpoint in its slow start, by that of its siblings. Without one it would
/// never warm up.
const MIN_WEIGHT: f64 = 0.1;

/// An endpoint as a pick sees it.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    /// Requests in flight.
    pub outstanding: usize,
    /// This request was not taken by it already.
    pub untried: bool,
    /// Connections to it failed just now.
    pub aside: bool,
    /// Since when it has been ejected, if it is now.
    pub out_since: Option<Instant>,
    /// Its share by that of a sibling that has its whole one: above 0, at most 1.
    pub weight: f64,
}

/// The weight of an endpoint that was `age` ago new, or back, with a slow start of `window`.
pub(crate) fn weight(age: Duration, window: Duration) -> f64 {
    match window.is_zero() {
        true => 1.0,
        false => (age.as_secs_f64() / window.as_secs_f64()).clamp(MIN_WEIGHT, 1.0),
    }
}

/// How many of `n` endpoints may be left out for their failures: half, and never the last.
pub(crate) fn most_left_out(n: usize) -> usize {
    n / 2
}

/// Picks an endpoint; none when all were tried. Endpoints that are left out are taken only when
/// no other is left, and those put aside only when there is nothing else at all.
pub(crate) fn pick(candidates: &[Candidate], rng: &mut fastrand::Rng) -> Option<usize> {
    let out = left_out(candidates);
    let is_out = |idx: &usize| out.contains(idx);
    let tier = |holds: &dyn Fn(usize) -> bool| -> Vec<usize> {
        (0..candidates.len()).filter(|idx| candidates[*idx].untried && holds(*idx)).collect()
    };
    let tiers: [&dyn Fn(usize) -> bool; 3] =
        [&|idx| !candidates[idx].aside && !is_out(&idx), &|idx| !candidates[idx].aside, &|_| true];
    let eligible = tiers.iter().map(|holds| tier(holds)).find(|tier| !tier.is_empty())?;
    // Where all are new, as after a first deploy, nobody has to be spared.
    let heaviest = eligible.iter().map(|idx| candidates[*idx].weight).fold(0.0, f64::max);
    let weighed = eligible.into_iter().map(|idx| (idx, candidates[idx].weight / heaviest));
    // By chance: its share of few requests. By the score: its share of those in flight of many.
    let drawn: Vec<_> = weighed.filter(|(_, weight)| rng.f64() < *weight).collect();
    let score = |(idx, weight): &(usize, f64)| candidates[*idx].outstanding as f64 / weight;
    let fewest = drawn.iter().map(score).fold(f64::INFINITY, f64::min);
    let equals: Vec<_> = drawn.iter().filter(|one| score(one) <= fewest).collect();
    rng.choice(equals).map(|(idx, _)| *idx)
}

/// The ejected ones that stay out: those that have been longest, as many as may be.
pub(crate) fn left_out(candidates: &[Candidate]) -> Vec<usize> {
    let since = |(idx, one): (usize, &Candidate)| one.out_since.map(|since| (since, idx));
    let mut ejected: Vec<_> = candidates.iter().enumerate().filter_map(since).collect();
    ejected.sort_unstable();
    ejected.truncate(most_left_out(candidates.len()));
    ejected.into_iter().map(|(_, idx)| idx).collect()
}
