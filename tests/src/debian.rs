//! A Debian of our own in a directory, from the mirror that this machine's apt uses.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::image::checked;

/// The release of Debian that the README promises to work on.
pub const SUITE: &str = "bookworm";

/// Makes one at `root` with further packages, joined by commas. A killed run leaves nothing at
/// `root`, only beside it.
pub fn debootstrap(root: &Path, options: &[&str], packages: &str) -> Result<()> {
    let partial = root.with_extension("partial");
    for old in [root, &partial] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| format!("cannot remove {}", old.display()))?;
        }
    }
    let mirror = mirror()?;
    let mut command = Command::new("debootstrap");
    command.args(options).arg(format!("--include={packages}"));
    checked(command.arg(SUITE).arg(&partial).arg(mirror))?;
    fs::rename(&partial, root).context("cannot put the finished root in its place")
}

/// Where `cargo xtask packages` puts a program of a newer Debian.
pub fn newer_path(package: &str) -> PathBuf {
    let dir = std::env::var_os("LONGSHORE_NEWER_DEBIAN").map(PathBuf::from).unwrap_or_else(|| {
        let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(target).join("newer-debian")
    });
    dir.join(package).join("usr/bin").join(package)
}

/// The same, when it is there.
pub fn newer_program(package: &str) -> Result<PathBuf> {
    let program = newer_path(package);
    if !program.exists() {
        bail!("{} is missing; run cargo xtask packages", program.display());
    }
    Ok(program)
}

/// The mirror from which this machine's apt takes [`SUITE`].
pub fn mirror() -> Result<String> {
    let apt = Path::new("/etc/apt");
    let mut files = vec![apt.join("sources.list")];
    if let Ok(entries) = fs::read_dir(apt.join("sources.list.d")) {
        files.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
    }
    files.sort();
    for file in &files {
        let Ok(text) = fs::read_to_string(file) else {
            continue;
        };
        let is_stanzas = file.extension().is_some_and(|extension| extension == "sources");
        let found = if is_stanzas { mirror_in_stanzas(&text) } else { mirror_in_lines(&text) };
        if let Some(mirror) = found {
            return Ok(mirror);
        }
    }
    bail!("no source of Debian's {SUITE} in {}", apt.display());
}

/// From the one-line format: `deb [options] URI suite components`.
fn mirror_in_lines(text: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let words: Vec<&str> = line.strip_prefix("deb ")?.split_whitespace().collect();
        let uri = words.iter().position(|word| word.contains("://"))?;
        (*words.get(uri + 1)? == SUITE).then(|| words[uri].to_owned())
    })
}

/// From the stanza format: `URIs:` and `Suites:` fields.
fn mirror_in_stanzas(text: &str) -> Option<String> {
    text.split("\n\n").find_map(|stanza| {
        let field = |name: &str| stanza.lines().find_map(|line| line.strip_prefix(name));
        let offers = field("Suites:")?.split_whitespace().any(|suite| suite == SUITE);
        let uri = field("URIs:")?.split_whitespace().next()?;
        offers.then(|| uri.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_read_from_either_format() {
        let lines = "# comment\ndeb-src http://a.test/debian bookworm main\n\
            deb [signed-by=/x] http://b.test/security bookworm-security main\n\
            deb [signed-by=/x] http://c.test/debian bookworm main contrib\n";
        assert_eq!(mirror_in_lines(lines).unwrap(), "http://c.test/debian");
        let stanzas = "Types: deb\nURIs: http://a.test/security\nSuites: bookworm-security\n\n\
            Types: deb\n# comment\nURIs: http://b.test/debian\nSuites: bookworm bookworm-updates\n";
        assert_eq!(mirror_in_stanzas(stanzas).unwrap(), "http://b.test/debian");
        assert_eq!(mirror_in_lines("deb http://c.test/debian trixie main"), None);
        assert_eq!(mirror_in_stanzas("URIs: http://c.test/\nSuites: trixie"), None);
    }
}
