//! What the tests in the machine say over its second serial line, as `guest.sh` prints it.

use crate::counts::Counts;
use crate::vm::carried::Test;

/// How the tests ended so far.
pub struct Report<'a> {
    tests: &'a [Test],
    passed: Vec<bool>,
    n_ended: usize,
    n_skipped: usize,
    booted: bool,
    /// Whether all of the list have been run.
    pub done: bool,
}

impl<'a> Report<'a> {
    /// None has ended yet.
    pub fn new(tests: &'a [Test]) -> Self {
        let passed = vec![false; tests.len()];
        Self { tests, passed, n_ended: 0, n_skipped: 0, booted: false, done: false }
    }

    /// Takes in a line and gives what to show of it.
    pub fn read(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["@booted", uptime, kernel] => {
                self.booted = true;
                format!("booted {kernel} in {uptime} s; {} tests", self.tests.len())
            }
            ["@passed", number, began, ended] => {
                let took = seconds_between(began, ended);
                self.ended(number, true, &format!("PASS [{took:7.2}s]"))
            }
            ["@failed", number, began, ended, status] => {
                let took = seconds_between(began, ended);
                let verdict = if ["124", "137"].contains(status) { "TIMEOUT" } else { "FAIL" };
                self.ended(number, false, &format!("{verdict} [{took:7.2}s]"))
            }
            ["@skipped", number, why @ ..] => {
                self.n_skipped += 1;
                format!("{}: {}", self.ended(number, true, "SKIP"), why.join(" "))
            }
            ["@end"] => String::new(),
            ["@done"] => {
                self.done = true;
                String::new()
            }
            _ => line.to_owned(),
        }
    }

    fn ended(&mut self, number: &str, passed: bool, verdict: &str) -> String {
        let number: usize = number.parse().unwrap_or(usize::MAX);
        let Some(test) = self.tests.get(number) else {
            return format!("a test that is not in the list ended: {number}");
        };
        self.n_ended += 1;
        self.passed[number] = passed;
        format!("{verdict:>22} ({}/{}) {test}", self.n_ended, self.tests.len())
    }

    /// The tests that did not pass, those included that were not reached.
    pub fn unpassed(&self) -> Vec<String> {
        let tests = self.tests.iter().zip(&self.passed);
        tests.filter(|(_, passed)| !**passed).map(|(test, _)| test.to_string()).collect()
    }

    /// Adds the tests that were run or should have been.
    pub fn add_to(&self, counts: &mut Counts) {
        let n_failed = self.unpassed().len();
        counts.failed += n_failed as u64;
        counts.skipped += self.n_skipped as u64;
        counts.passed += (self.tests.len() - n_failed - self.n_skipped) as u64;
    }

    /// Whether the machine came as far as the tests.
    pub fn booted(&self) -> bool {
        self.booted
    }
}

/// Between two times since the boot, as the kernel prints them.
fn seconds_between(began: &str, ended: &str) -> f64 {
    let seconds = |text: &str| text.parse::<f64>().unwrap_or(f64::NAN);
    seconds(ended) - seconds(began)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::chosen::Place;

    #[test]
    fn a_test_passes_only_when_it_says_so() {
        let names = ["a::passes", "b::fails", "c::hangs", "d::is_not_reached", "e::skips"];
        let tests = names.map(|name| Test {
            package: "box".to_owned(),
            name: name.to_owned(),
            place: Place::Root,
            directory: "/".into(),
            executable: "/bin/true".into(),
        });
        let mut report = Report::new(&tests);
        let shown: Vec<String> = [
            "@booted 9.80 6.1.0-1-cloud-amd64",
            "@passed 0 10.00 11.50",
            "@failed 1 10.00 12.00 101",
            "|assertion failed: 1 == 2",
            "@end",
            "@failed 2 12.00 132.00 124",
            "@passed 9 1 2",
            "@skipped 4 no crun: it says so",
        ]
        .map(|line| report.read(line))
        .into();
        assert!(report.booted());
        assert_eq!(shown[0], "booted 6.1.0-1-cloud-amd64 in 9.80 s; 5 tests");
        assert_eq!(shown[1], "       PASS [   1.50s] (1/5) box a::passes");
        assert_eq!(shown[2], "       FAIL [   2.00s] (2/5) box b::fails");
        assert_eq!(shown[3], "|assertion failed: 1 == 2");
        assert_eq!(shown[5], "    TIMEOUT [ 120.00s] (3/5) box c::hangs");
        assert_eq!(shown[7], "                  SKIP (4/5) box e::skips: no crun: it says so");
        assert!(!report.done);
        assert_eq!(report.unpassed(), ["box b::fails", "box c::hangs", "box d::is_not_reached"]);
        let mut counts = Counts::default();
        report.add_to(&mut counts);
        assert_eq!(counts, Counts { passed: 1, failed: 3, skipped: 1 });
    }
}
