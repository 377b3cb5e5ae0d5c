//! A minimal Debian 12 in which the product is built and its demo run as a new user would: with
//! rustup's toolchain, gcc and make and nothing else, so that a prerequisite that crept in shows.
//!
//! It is a directory made by debootstrap once and kept under the target directory. Commands run in
//! it by `pivot_root` in a mount namespace of their own: unlike in a chroot, user namespaces and
//! `pivot_root` itself work there as on a machine, and every mount is gone when the command ends,
//! also when it was killed. The repository, cargo's and rustup's homes are seen at their usual
//! paths, so what is built there is what the later stages test; nothing is compiled twice.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use longshore_e2e::debian::{self, SUITE};

use crate::command::{program, repository_root, target_dir};

/// What the README asks for beside what debootstrap installs by itself; `libc6-dev` comes with gcc
/// when apt installs it, but debootstrap leaves recommended packages out.
const PACKAGES: &str = "gcc,make,libc6-dev";

/// Enters the root given as `$1` and runs the rest of the arguments. `$binds` names the directories
/// that are seen from inside, one in a line.
const ENTER: &str = r#"
set -eu
root=$1; shift
mount --bind "$root" "$root"
cd "$root"
printf '%s\n' "$binds" | while IFS= read -r dir; do
    mkdir -p ".$dir"
    mount --bind "$dir" ".$dir"
done
for dir in /proc /sys /dev; do
    mount --rbind "$dir" ".$dir"
done
mount -t tmpfs tmpfs ./run
mkdir -p ./outside
pivot_root . ./outside
cd "$repository"
umount --lazy /outside
exec "$@"
"#;

/// A minimal Debian that is complete.
pub struct MinimalDebian {
    root: PathBuf,
}

impl MinimalDebian {
    /// Makes it, unless it is there already.
    pub fn ensure() -> Result<Self> {
        let dir = target_dir().join("minimal-debian");
        let root = dir.join(format!("{SUITE} {PACKAGES}").replace([' ', ','], "-"));
        if root.exists() {
            return Ok(Self { root });
        }
        // What an earlier list of packages or a killed run left.
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        }
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        debian::debootstrap(&root, &[], PACKAGES)?;
        Ok(Self { root })
    }

    /// A command that runs in the repository inside of it, with an environment of its own.
    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        let home = home()?;
        let cargo_home = env_path("CARGO_HOME").unwrap_or_else(|| home.join(".cargo"));
        let rustup_home = env_path("RUSTUP_HOME").unwrap_or_else(|| home.join(".rustup"));
        let binds = [repository_root(), &target_dir(), &cargo_home, &rustup_home]
            .map(|dir| dir.display().to_string())
            .join("\n");
        let path = format!("{}/bin:/usr/sbin:/usr/bin:/sbin:/bin", cargo_home.display());
        let mut command =
            program("unshare", ["--mount", "--propagation", "private", "sh", "-c", ENTER, "enter"]);
        command
            .arg(&self.root)
            .args(arguments)
            .env_clear()
            .env("PATH", path)
            .env("HOME", home)
            .env("CARGO_HOME", cargo_home)
            .env("RUSTUP_HOME", rustup_home)
            .env("CARGO_TARGET_DIR", target_dir())
            .env("repository", repository_root())
            .env("binds", binds);
        Ok(command)
    }
}

fn home() -> Result<PathBuf> {
    env_path("HOME").context("HOME is not set")
}

fn env_path(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from)
}
