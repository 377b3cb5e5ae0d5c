//! `longshore completions`

use clap_complete::Shell;

use crate::cli;
use crate::failure::Failure;
use crate::output::{Format, Output};

/// Write the completions for a shell to standard output
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The shell
    shell: Shell,
}

/// Writes the completions.
pub fn run(options: &Options) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut cli::definition(), "longshore", &mut script);
    Output::new(Format::Text).raw(&script)
}
