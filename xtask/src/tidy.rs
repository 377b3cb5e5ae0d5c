//! `tidy`: habits that no compiler checks.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::command::{output, program, repository_root};
use crate::metadata;

/// A longer source file has more than one reason to be read.
const MAX_LINES: usize = 700;

/// Names that say nothing about what is inside.
const VAGUE_FILES: &[&str] = &["mod.rs", "util.rs", "utils.rs", "common.rs", "helpers.rs"];

/// Documents that say which test guards a promise.
const PROMISING: &[&str] = &["ARCHITECTURE.md", "SECURITY.md", "SPECIFICATION.md"];

/// Checks every file that git knows or would add, and the lint table of every member.
pub fn run() -> Result<()> {
    let root = repository_root();
    let listed = output(&mut program(
        "git",
        ["ls-files", "-z", "--cached", "--others", "--exclude-standard"],
    ))?;
    let mut faults = Vec::new();
    let mut sources = String::new();
    let mut documents = Vec::new();
    for name in listed.split('\0').filter(|name| !name.is_empty()) {
        // What is not text, or was removed and not committed yet, has no lines to judge.
        if let Ok(text) = std::fs::read_to_string(root.join(name)) {
            check_file(name, &text, root, &mut faults);
            if name.ends_with(".rs") {
                sources.push_str(&text);
            } else if PROMISING.contains(&name) {
                documents.push((name, text));
            }
        }
    }
    for (name, text) in documents {
        for test in missing_tests(&text, &sources) {
            faults.push(format!("{name}: names {test}, which does not exist"));
        }
    }
    for package in metadata::packages()? {
        let text = std::fs::read_to_string(&package.manifest_path)
            .with_context(|| format!("cannot read {}", package.manifest_path))?;
        if !text.contains("[lints]\nworkspace = true") {
            faults.push(format!("{}: does not inherit the workspace's lints", package.name));
        }
    }
    if faults.is_empty() {
        return Ok(());
    }
    bail!("{} untidy places:\n  {}", faults.len(), faults.join("\n  "));
}

fn check_file(name: &str, text: &str, root: &Path, faults: &mut Vec<String>) {
    let is_rust = name.ends_with(".rs");
    let file_name = name.rsplit('/').next().unwrap_or(name);
    if VAGUE_FILES.contains(&file_name) {
        faults.push(format!("{name}: name the file after what it holds"));
    }
    let n_lines = text.lines().count();
    if is_rust && n_lines > MAX_LINES {
        faults.push(format!("{name}: {n_lines} lines; at most {MAX_LINES}"));
    }
    for (idx, line) in text.lines().enumerate() {
        if let Some(fault) = line_fault(line, is_rust, root) {
            faults.push(format!("{name}:{}: {fault}", idx + 1));
        }
    }
}

/// What is wrong with a line, if anything.
fn line_fault(line: &str, is_rust: bool, root: &Path) -> Option<&'static str> {
    // Spelled in two parts, so that this file passes its own check.
    let notes = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
    if notes.iter().any(|note| has_word(line, note)) && !names_issue(line) {
        return Some("a note without the number of an issue, such as (#12)");
    }
    if is_rust
        && (line.contains(concat!("#[al", "low(")) || line.contains(concat!("#![al", "low(")))
    {
        return Some("use #[expect(.., reason = \"..\")], which ends with its cause");
    }
    let here = root.to_string_lossy();
    let homes = [concat!("/ho", "me/"), concat!("/Us", "ers/")];
    if here.len() > 1 && line.contains(&*here) || homes.iter().any(|home| line.contains(home)) {
        return Some("a path of one machine");
    }
    let credits = [concat!("co-authored", "-by:"), concat!("generated ", "with")];
    let lower = line.to_ascii_lowercase();
    credits
        .iter()
        .any(|credit| lower.contains(credit))
        .then_some("a credit; the history has the authors")
}

/// The tests and figures that a document names and no source has. Such a name is in backticks and in
/// lower case, and a sentence: it has two underscores or more, and perhaps its module before it.
fn missing_tests<'a>(document: &'a str, sources: &str) -> Vec<&'a str> {
    let is_name = |text: &str| {
        text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b':')
            && text.bytes().filter(|b| *b == b'_').count() > 1
    };
    let quoted = document.split('`').skip(1).step_by(2);
    quoted
        .filter(|text| is_name(text))
        .filter(|text| {
            let name = text.rsplit("::").next().unwrap_or(text);
            let forms = [format!("fn {name}("), format!("\"{name}\"")];
            !forms.iter().any(|form| sources.contains(form))
        })
        .collect()
}

fn has_word(line: &str, word: &str) -> bool {
    line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(|part| part == word)
}

/// True when `#` and a digit follow each other somewhere in the line.
fn names_issue(line: &str) -> bool {
    line.as_bytes().windows(2).any(|pair| pair[0] == b'#' && pair[1].is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_judged() {
        let note = concat!("TO", "DO");
        let allow = concat!("#[al", "low(dead_code)]");
        for (line, is_rust, fine) in [
            ("let x = 1;".to_owned(), true, true),
            (format!("// {note}: later"), true, false),
            (format!("// {note}(#12): later"), true, true),
            (format!("METHO{note}S"), true, true),
            (allow.to_owned(), true, false),
            (allow.to_owned(), false, true),
            (concat!("/ho", "me/someone").to_owned(), false, false),
            ("see /srv/checkout/crates".to_owned(), false, false),
        ] {
            let fault = line_fault(&line, is_rust, Path::new("/srv/checkout"));
            assert_eq!(fault.is_none(), fine, "{line}: {fault:?}");
        }
    }

    #[test]
    fn tests_that_documents_name_exist() {
        let document = "by `faults::nothing_is_lost` and `all_is_well_here`, not `RESULT` or `a_b`";
        let sources = "#[test]\nfn nothing_is_lost() {}";
        assert_eq!(missing_tests(document, sources), ["all_is_well_here"]);
    }

    #[test]
    fn long_and_vague_files_are_refused() {
        let mut faults = Vec::new();
        let root = Path::new("/srv/checkout");
        check_file("crates/a/src/util.rs", "", root, &mut faults);
        check_file("crates/a/src/long.rs", &"\n".repeat(MAX_LINES + 1), root, &mut faults);
        check_file("docs/long.md", &"\n".repeat(MAX_LINES + 1), root, &mut faults);
        assert_eq!(faults.len(), 2, "{faults:?}");
    }
}
