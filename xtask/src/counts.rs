//! How many tests ended how, over all runners.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// How many tests ended how.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub passed: u64,
    pub failed: u64,
    pub skipped: u64,
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { passed, failed, skipped } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

impl Counts {
    /// Runs a test runner, shows what it prints and adds what it counts.
    pub fn add(&mut self, command: &mut Command) -> Result<()> {
        // Both runners print their counts on different streams; the shell joins them in order.
        let mut joined = Command::new("sh");
        joined.args(["-c", "exec \"$@\" 2>&1", "sh"]).arg(command.get_program());
        joined.args(command.get_args());
        for (name, value) in command.get_envs() {
            joined.env(name, value.unwrap_or_default());
        }
        let mut child = joined.stdout(Stdio::piped()).spawn().context("cannot run the tests")?;
        let output = child.stdout.take().expect("its output is piped");
        for line in BufReader::new(output).lines() {
            let line = line.context("cannot read what the tests print")?;
            eprintln!("{line}");
            self.read(&line);
        }
        let status = child.wait().context("cannot wait for the tests")?;
        if !status.success() {
            bail!("tests failed: {status}");
        }
        Ok(())
    }

    /// Takes tests that passed because they did nothing for skipped ones: a line for each, which says
    /// why. Each reason is shown once.
    pub fn skipped_inside(&mut self, lines: &str) {
        let reasons: BTreeSet<&str> = lines.lines().collect();
        for reason in reasons {
            let n_tests = lines.lines().filter(|line| *line == reason).count();
            eprintln!("skipped: {n_tests} tests: {reason}");
            let n_tests = u64::try_from(n_tests).unwrap_or(u64::MAX);
            self.skipped += n_tests;
            self.passed = self.passed.saturating_sub(n_tests);
        }
    }

    /// Adds a summary line of nextest (`27 tests run: 26 passed (1 slow), 1 failed, 2 skipped`) or
    /// of cargo's own runner (`test result: ok. 3 passed; 0 failed; 1 ignored; ...`). What is indented
    /// is what nextest quotes of a test that failed, which it has counted.
    fn read(&mut self, line: &str) {
        let summary = line.split_once(" tests run: ").or_else(|| line.split_once(" test run: "));
        let Some((_, counts)) = summary.or_else(|| Some(("", line.strip_prefix("test result: ")?)))
        else {
            return;
        };
        let words: Vec<&str> = counts.split([' ', ',', ';', '(', ')']).collect();
        for pair in words.windows(2) {
            let Ok(number) = pair[0].parse::<u64>() else {
                continue;
            };
            match pair[1] {
                "passed" => self.passed += number,
                "failed" | "timed" => self.failed += number,
                "skipped" | "ignored" => self.skipped += number,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_runners_are_counted() {
        let mut counts = Counts::default();
        for line in [
            "running 3 tests",
            "    test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 7 filtered out",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 7 filtered out; finished",
            "     Summary [   1.2s] 27 tests run: 24 passed (1 slow), 2 failed, 1 timed out, 2 skipped",
        ] {
            counts.read(line);
        }
        let expected = Counts { passed: 27, failed: 3, skipped: 3 };
        assert_eq!(counts, expected);
        assert_eq!(counts.to_string(), "27 passed, 3 failed, 3 skipped");
        counts.skipped_inside("no crun: it says so\nno crun: it says so\nno disk\n");
        assert_eq!(counts.to_string(), "24 passed, 3 failed, 6 skipped");
    }
}
