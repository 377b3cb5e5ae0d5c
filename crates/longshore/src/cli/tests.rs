use std::fmt::Write as _;
use std::path::Path;

use super::*;

/// The environment variable that makes the test write the reference in place of comparing it.
const UPDATE: &str = "UPDATE_CLI_REFERENCE";

#[test]
fn the_definition_is_consistent() {
    definition().debug_assert();
}

#[test]
fn the_reference_is_what_the_commands_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli_reference.txt");
    let mut reference = format!(
        "The whole command line as `--help` shows it, made by a test.\n\
         Write it anew with: {UPDATE}=1 cargo nextest run -p longshore the_reference\n"
    );
    write_help(definition(), "longshore", &mut reference);
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(&path, &reference).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = reference.lines().zip(committed.lines()).find(|(new, old)| new != old);
    assert!(
        reference == committed,
        "the help differs from {}, first in {differs:?}; if that is meant, run the test with {UPDATE}=1",
        path.display()
    );
}

/// Writes the long help of a command and of all below it, 80 columns wide, without the values
/// that the environment of the test happens to have.
fn write_help(command: clap::Command, path: &str, reference: &mut String) {
    let mut command = command.term_width(80).mut_args(|arg| arg.hide_env_values(true));
    let help = command.clone().bin_name(path).render_long_help().to_string();
    writeln!(reference, "\n=== {path}\n").unwrap();
    for line in help.lines() {
        writeln!(reference, "{}", line.trim_end()).unwrap();
    }
    let below: Vec<_> = command.get_subcommands_mut().map(|inner| inner.clone()).collect();
    for inner in below.into_iter().filter(|inner| !inner.is_hide_set()) {
        let path = format!("{path} {}", inner.get_name());
        write_help(inner, &path, reference);
    }
}

#[test]
fn every_verb_has_a_short_and_a_long_help_that_fit() {
    let mut reference = String::new();
    write_help(definition(), "longshore", &mut reference);
    // What a usage line says is one word to clap, which never breaks it.
    for line in reference.lines().filter(|line| !line.starts_with("Usage:")) {
        assert!(line.chars().count() <= 80, "{line}");
    }
}

#[test]
fn an_unknown_verb_suggests_the_nearest() {
    let error = Cli::try_parse_from(["longshore", "deploi"]).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("'deploy'"), "{error}");
}
