//! Waiting for something to become true. The only place of the tests that sleeps.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// The time between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// How long anything may take on a machine under load. A test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// [`PATIENCE`], as many times as long as `LONGSHORE_SLOWNESS` says: an emulated processor is slower
/// than any load makes a real one.
pub fn patience() -> Duration {
    let slowness = std::env::var("LONGSHORE_SLOWNESS").ok().and_then(|text| text.parse().ok());
    PATIENCE * slowness.unwrap_or(1)
}

/// Looks again until there is an answer; the error names what was waited for, and the last cause.
pub fn eventually<T>(what: &str, look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    eventually_within(patience(), what, look)
}

/// The same for what may take longer, or must not take as long.
pub fn eventually_within<T>(
    patience: Duration,
    what: &str,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        let outcome = look();
        if let Ok(Some(found)) = outcome {
            return Ok(found);
        }
        if Instant::now() > deadline {
            match outcome.err() {
                Some(cause) => return Err(cause.context(format!("{what}: not in {patience:?}"))),
                None => bail!("{what}: not in {patience:?}"),
            }
        }
        std::thread::sleep(PAUSE);
    }
}

/// Looks for the whole of `period` and fails at the first look that does: for what must not happen.
pub fn holds(period: Duration, mut look: impl FnMut() -> Result<()>) -> Result<()> {
    let end = Instant::now() + period;
    while Instant::now() < end {
        look()?;
        std::thread::sleep(PAUSE);
    }
    Ok(())
}
