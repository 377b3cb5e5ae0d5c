//! That a pull begins on a machine that does nothing else, and what came over its loopback.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// So much of one processor may be in use by others when a pull begins.
pub const AT_MOST: f64 = 0.5;
/// How long is looked at: 25 of the ticks in which the kernel counts.
const LOOK: Duration = Duration::from_millis(250);

/// Waits until the processors have nothing to do, but no longer than `most`; gives how many are in use then.
/// Whoever waits does nothing meanwhile, so that it is others who use them.
pub fn wait(most: Duration) -> Result<f64> {
    let began = Instant::now();
    loop {
        let before = stat()?;
        sleep(LOOK);
        let in_use = in_use(&before, &stat()?).context("/proc/stat has no processors")?;
        if in_use <= AT_MOST || began.elapsed() >= most {
            return Ok(in_use);
        }
    }
}

fn stat() -> Result<String> {
    fs::read_to_string("/proc/stat").context("cannot read /proc/stat")
}

/// How many processors were in use between two readings.
fn in_use(before: &str, after: &str) -> Option<f64> {
    let n_processors =
        after.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu ")).count();
    let ([busy, total], [busy_now, total_now]) = (ticks(before)?, ticks(after)?);
    let (busy, total) = (busy_now.checked_sub(busy)?, total_now.checked_sub(total)?);
    (total > 0).then(|| busy as f64 / total as f64 * n_processors as f64)
}

/// The ticks in which all processors together did something, and all ticks.
fn ticks(stat: &str) -> Option<[u64; 2]> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    // user nice system idle iowait irq softirq steal; what guests took is in user.
    let ticks: Option<Vec<u64>> =
        line.split_whitespace().take(8).map(|ticks| ticks.parse().ok()).collect();
    let ticks = ticks?;
    let total = ticks.iter().sum();
    let idle = ticks.get(3)? + ticks.get(4)?;
    Some([total - idle, total])
}

/// Bytes that came over the loopback of this network namespace so far, which nobody but registries and their
/// clients use: requests and acknowledgements too, less than a thousandth of a large layer.
pub fn received() -> Result<u64> {
    // Not below /sys, which shows the namespace that it was mounted in.
    let text = fs::read_to_string("/proc/net/dev").context("cannot read /proc/net/dev")?;
    came_over(&text, "lo").context("/proc/net/dev has no loopback")
}

fn came_over(text: &str, link: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.trim().strip_prefix(link)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_the_disk_is_not_in_use() {
        let stat = |user: u64, idle: u64, waits: u64| {
            format!("cpu  {user} 5 100 {idle} {waits} 0 7 1 900 0\ncpu0 1\ncpu1 1\nintr 12\n")
        };
        let before = stat(1000, 5000, 70);
        assert_eq!(in_use(&before, &stat(1050, 5050, 70)), Some(1.0));
        assert_eq!(in_use(&before, &stat(1025, 5025, 120)), Some(0.5));
        assert_eq!(in_use(&before, &stat(1100, 5000, 70)), Some(2.0));
        assert_eq!(in_use(&before, &before), None);
        assert_eq!(in_use("intr 12\n", "intr 12\n"), None);
    }

    #[test]
    fn the_bytes_of_a_link_are_its_first_number() {
        let text =
            "Inter-|   Receive\n face |bytes    packets\n    lo: 123456     789 0\n  lo1: 5 6\n";
        assert_eq!(came_over(text, "lo"), Some(123_456));
        assert_eq!(came_over(text, "eth0"), None);
        assert!(received().is_ok());
    }
}
