//! Tests that find only when they run that this machine lacks something.

use std::fs;
use std::io::Write as _;

/// Says that a test does nothing here, also to whoever counts: one line for each in the file that
/// `cargo xtask test` names.
///
/// # Panics
/// When it cannot be counted.
pub fn note_skip(why: &str) {
    eprintln!("skipped: {why}");
    if let Some(path) = std::env::var_os("LONGSHORE_SKIPPED") {
        let file = fs::OpenOptions::new().append(true).create(true).open(path);
        let line = format!("{why}\n");
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("the skip is counted");
    }
}
