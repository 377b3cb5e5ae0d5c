//! Parsers of strangers' bytes, fed with what strangers might send.
//!
//! - [`targets`]: one function per parser that runs it and checks what must hold of every answer.
//! - [`mutate`]: changes of an input that keep it close to a valid one.
//! - [`archives`]: tar archives put together at random.
//! - [`opinions`]: the same archive read by us, by the `tar` crate, by Python and by GNU tar.
//!
//! `cargo nextest run -p longshore-fuzz` replays the committed corpus and then a short run of
//! mutations that is the same every time. `cargo xtask fuzz TARGET --seconds N` searches on with
//! libFuzzer, guided by the code that each input reaches, and `cargo xtask fuzz differential` compares
//! opinions on ever new archives. What either finds goes into `corpus/` with its mend.
//!
//! libFuzzer, because it needs nothing but stable Rust: the compiler's own pass marks the code. Its
//! runtime is C++, which the product's build must not need, so it is behind a feature.

pub mod archives;
pub mod mutate;
pub mod opinions;
pub mod targets;

use std::time::{Duration, Instant};

/// Counts the cases of a run: so many at least, and for as long as `LONGSHORE_FUZZ_SECONDS` says.
pub fn cases(least: u64) -> impl Iterator<Item = u64> {
    let text = std::env::var("LONGSHORE_FUZZ_SECONDS");
    let seconds = text.map_or(0, |text| text.parse().expect("LONGSHORE_FUZZ_SECONDS is a number"));
    let began = Instant::now();
    (0..).take_while(move |n| *n < least || began.elapsed() < Duration::from_secs(seconds))
}

/// Where random choices begin: the same in every run, unless `LONGSHORE_SEED` says otherwise.
#[must_use]
pub fn seed() -> u64 {
    let text = std::env::var("LONGSHORE_SEED");
    text.map_or(1, |text| text.parse().expect("LONGSHORE_SEED is a number"))
}
