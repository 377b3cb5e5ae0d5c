//! Programs of a newer Debian: what the tests need and Debian 12 does not have yet.
//!
//! Each package is downloaded with an apt configuration of our own, so the machine's sources and
//! its installed packages stay as they are, and laid out under `target/newer-debian/PACKAGE`. The
//! signatures are checked by the keyring that Debian 12 ships, the mirror is the machine's own.
//! Nothing is asked of the network when all is there.
//!
//! Tests find a program at `$LONGSHORE_NEWER_DEBIAN/PACKAGE/usr/bin/PROGRAM`. `cargo xtask test`
//! sets the variable; a test run by hand takes `target/newer-debian` of the repository.
//!
//! Installing with a pinned second source was rejected: it changes what the machine's next
//! `apt-get install` chooses. So was unpacking each program's libraries beside it: they are Go
//! programs that ask for no newer libc than Debian 12's, and one that did would fail here by name.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use longshore_e2e::debian;

use crate::command::{output, program, run, target_dir};

/// A package, the program in it that tests run, the arguments that prove that it runs, and its use.
struct Package {
    name: &'static str,
    proof: &'static [&'static str],
    purpose: &'static str,
}

const PACKAGES: &[Package] = &[
    Package { name: "crane", proof: &["--help"], purpose: "a client of registries" },
    Package { name: "oras", proof: &["version"], purpose: "a client that pushes artifacts" },
    Package { name: "runsc", proof: &["--version"], purpose: "gVisor, a runtime that is driven" },
];

/// The suites to take packages from; the first that has one wins.
const SUITES: [&str; 2] = ["trixie", "sid"];
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The variable that tells the tests where the packages lie.
pub const VARIABLE: &str = "LONGSHORE_NEWER_DEBIAN";

/// Where the packages lie.
pub fn dir() -> PathBuf {
    target_dir().join("newer-debian")
}

/// The newest suite, for peers that only it has.
const NEWEST: &str = "sid";

/// A root with these packages of the newest Debian and all that they need, made once and kept; its programs run
/// in it by chroot. Unpacked and not installed: no script of theirs is run.
pub fn ensure_root(packages: &[&str]) -> Result<PathBuf> {
    let root = target_dir().join("newest-debian").join(packages.join("-"));
    if root.exists() {
        return Ok(root);
    }
    let mirror = debian::mirror()?;
    let (partial, archives) = (root.with_extension("partial"), root.with_extension("archives"));
    for old in [&partial, &archives] {
        if old.exists() {
            fs::remove_dir_all(old).context("cannot remove what a killed run left")?;
        }
    }
    fs::create_dir_all(&partial).context("cannot make a root for a newer Debian")?;
    let mut download = program("debootstrap", ["--download-only", "--variant=minbase"]);
    download.arg(format!("--include={}", packages.join(",")));
    run(download.arg(NEWEST).arg(&archives).arg(mirror))?;
    for entry in fs::read_dir(archives.join("var/cache/apt/archives"))? {
        let archive = entry?.path();
        if archive.extension().is_some_and(|extension| extension == "deb") {
            output(program("dpkg-deb", ["-x"]).arg(&archive).arg(&partial))?;
        }
    }
    fs::remove_dir_all(&archives).context("cannot remove the archives")?;
    fs::rename(&partial, &root).context("cannot put the root in its place")?;
    Ok(root)
}

/// Fetches and unpacks the packages that are not there.
pub fn ensure_fetched() -> Result<()> {
    let dir = dir();
    let missing: Vec<&Package> =
        PACKAGES.iter().filter(|package| !dir.join(package.name).exists()).collect();
    if missing.is_empty() {
        eprintln!("all {} packages of a newer Debian are there", PACKAGES.len());
        return Ok(());
    }
    for package in &missing {
        eprintln!("{} is missing: {}", package.name, package.purpose);
    }
    let apt = Apt::prepare(&dir.join("apt"))?;
    apt.download(&missing)?;
    for package in &missing {
        unpack(&apt.archive(package)?, &dir.join(package.name), package)?;
    }
    fs::remove_dir_all(&apt.dir).context("cannot remove the package lists")
}

/// Lays a package out, under its name only once its program has run.
fn unpack(archive: &Path, destination: &Path, package: &Package) -> Result<()> {
    let partial = destination.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial).context("cannot remove what a killed run left")?;
    }
    run(Command::new("dpkg-deb").arg("-x").arg(archive).arg(&partial))?;
    let binary = partial.join("usr/bin").join(package.name);
    output(Command::new(&binary).args(package.proof))
        .with_context(|| format!("{} of a newer Debian does not run here", package.name))?;
    fs::rename(&partial, destination).context("cannot put the package in its place")
}

/// An apt with its own sources, lists and cache.
struct Apt {
    dir: PathBuf,
}

impl Apt {
    fn prepare(dir: &Path) -> Result<Self> {
        if dir.exists() {
            fs::remove_dir_all(dir).context("cannot remove what a killed run left")?;
        }
        for part in ["lists/partial", "cache/archives/partial", "archives"] {
            fs::create_dir_all(dir.join(part)).context("cannot make a directory for apt")?;
        }
        ensure!(
            Path::new(KEYRING).exists(),
            "{KEYRING} is missing; install the package debian-archive-keyring"
        );
        let mirror = debian::mirror()?;
        let sources =
            SUITES.map(|suite| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n"));
        fs::write(dir.join("sources.list"), sources.concat()).context("cannot write sources")?;
        let apt = Self { dir: dir.to_owned() };
        run(&mut apt.get(&["update"]))?;
        Ok(apt)
    }

    fn download(&self, packages: &[&Package]) -> Result<()> {
        let mut download = self.get(&["download"]);
        download.args(packages.iter().map(|package| package.name));
        run(download.current_dir(self.dir.join("archives")))
    }

    /// The downloaded archive of a package: `NAME_VERSION_ARCHITECTURE.deb`.
    fn archive(&self, package: &Package) -> Result<PathBuf> {
        let prefix = format!("{}_", package.name);
        for entry in fs::read_dir(self.dir.join("archives")).context("cannot list archives")? {
            let path = entry.context("cannot list archives")?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)) {
                return Ok(path);
            }
        }
        bail!("apt downloaded no archive of {}", package.name)
    }

    fn get(&self, arguments: &[&str]) -> Command {
        let mut command = program("apt-get", ["-q"]);
        let own = |name: &str| self.dir.join(name).display().to_string();
        for (option, value) in [
            ("Dir::State::lists", own("lists")),
            ("Dir::State::status", "/dev/null".to_owned()),
            ("Dir::Cache", own("cache")),
            ("Dir::Etc::sourcelist", own("sources.list")),
            ("Dir::Etc::sourceparts", "/dev/null".to_owned()),
            ("Dir::Etc::preferences", "/dev/null".to_owned()),
            ("Dir::Etc::preferencesparts", "/dev/null".to_owned()),
            ("APT::Default-Release", SUITES[0].to_owned()),
            ("APT::Sandbox::User", "root".to_owned()),
            ("Acquire::Languages", "none".to_owned()),
            ("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", "false".to_owned()),
        ] {
            command.arg("-o").arg(format!("{option}={value}"));
        }
        command.args(arguments);
        command
    }
}
