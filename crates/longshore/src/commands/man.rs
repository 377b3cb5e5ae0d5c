//! `longshore man`

use std::path::PathBuf;

use crate::cli;
use crate::failure::{Failure, Kind, OrFail};
use crate::output::say;

/// Write manual pages, one for each verb
///
/// For instance into /usr/local/share/man/man1; then `man longshore-deploy` shows one.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The directory; made when it is missing
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// Writes them.
pub fn run(options: &Options) -> Result<(), Failure> {
    let dir = options.dir.display();
    let write = || {
        std::fs::create_dir_all(&options.dir)?;
        clap_mangen::generate_to(cli::definition(), &options.dir)
    };
    write().or_fail(Kind::Other, format!("cannot write manual pages into {dir}"))?;
    say(format!("manual pages are in {dir}"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_has_a_page() {
        let dir = tempfile::tempdir().unwrap();
        let pages = dir.path().join("man1");
        run(&Options { dir: pages.clone() }).unwrap();
        for (page, text) in [
            ("longshore.1", "longshore\\-deploy"),
            ("longshore-deploy.1", "Deploy an app"),
            ("longshore-secret-set.1", "standard input"),
        ] {
            let written = std::fs::read_to_string(pages.join(page)).unwrap();
            assert!(written.contains(text), "{page}: {written}");
        }
    }
}
