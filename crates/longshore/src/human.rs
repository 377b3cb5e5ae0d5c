//! Times as a person reads them at a glance.

use longshore_types::{Duration, Timestamp};

/// How long ago `then` was, in its largest whole unit: `42s`, `3m`, `5h`, `9d`.
pub fn age(now: Timestamp, then: Timestamp) -> String {
    let seconds = now.since(then).0.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..86_400 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// The point in time by the clock of UTC, to the second: `2026-11-26T22:48:03Z`.
pub fn utc(at: Timestamp) -> String {
    let time = i64::try_from(at.0).ok().and_then(chrono::DateTime::from_timestamp_millis);
    time.map_or_else(|| "-".to_owned(), |time| time.format("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// A span of microseconds with three digits that matter: `850 µs`, `12.3 ms`, `1.24 s`.
pub fn micros(micros: u64) -> String {
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..1_000_000 => decimal(micros, 1_000, "ms"),
        _ => decimal(micros, 1_000_000, "s"),
    }
}

fn decimal(value: u64, unit: u64, name: &str) -> String {
    let (whole, rest) = (value / unit, value % unit);
    match whole {
        0..10 => format!("{whole}.{:02} {name}", rest * 100 / unit),
        10..100 => format!("{whole}.{} {name}", rest * 10 / unit),
        _ => format!("{whole} {name}"),
    }
}

/// The beginning of a digest, enough to tell images apart: `sha256:2241001de6ce`.
pub fn short_digest(digest: &str) -> &str {
    const SHORT: usize = "sha256:".len() + 12;
    digest.get(..SHORT).unwrap_or(digest)
}

/// A time of which nobody wants to read the milliseconds: whole days, hours, minutes or seconds.
pub fn coarse(time: Duration) -> Duration {
    let seconds = time.0.as_secs();
    let unit = [86_400, 3600, 60, 1].into_iter().find(|unit| seconds >= *unit).unwrap_or(1);
    Duration::from_secs(seconds / unit * unit)
}

/// A count with its noun: `1 instance`, `2 instances`.
pub fn count(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_use_the_largest_unit() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (60, "1m"), (7_199, "1h"), (200_000, "2d")]
        {
            let then = Timestamp(1_000);
            assert_eq!(age(Timestamp(1_000 + seconds * 1_000), then), text);
        }
        assert_eq!(age(Timestamp(0), Timestamp(5_000)), "0s", "clock went back");
    }

    #[test]
    fn digests_are_cut_only_when_longer() {
        assert_eq!(short_digest(&format!("sha256:{}", "a".repeat(64))), "sha256:aaaaaaaaaaaa");
        assert_eq!(short_digest("sha256:a"), "sha256:a");
    }

    #[test]
    fn spans_keep_three_digits() {
        for (value, text) in [
            (850, "850 µs"),
            (1_000, "1.00 ms"),
            (12_345, "12.3 ms"),
            (123_456, "123 ms"),
            (1_240_000, "1.24 s"),
            (75_000_000, "75.0 s"),
        ] {
            assert_eq!(micros(value), text);
        }
    }
}
