//! What is carried into the machine: test executables without their debug information, the binary
//! that end-to-end tests drive, the files that tests read, and the list of tests, on a disk of its
//! own. The executables are those that `cargo test --workspace` built for this machine.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::Binary;
use super::chosen::{CHOSEN, Chosen, LEFT_OUT, LeftOut, Place};
use crate::command::{cargo, output, program, release_binary, repository_root, run, target_dir};
use crate::metadata;

/// How long one test may take in the machine, in seconds.
pub const TIME_LIMIT: u32 = 600;

/// How many times as long tests wait there before they give up.
const SLOWNESS: u32 = 4;

/// A test as the machine runs it.
#[derive(Debug)]
pub struct Test {
    /// The package's name without `longshore-`.
    pub package: String,
    /// Its path in its executable.
    pub name: String,
    /// The cgroup in which it runs.
    pub place: Place,
    /// The directory in which it runs.
    pub directory: PathBuf,
    /// The executable that has it.
    pub executable: PathBuf,
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match self.place {
            Place::Root => "",
            Place::Unit => " (in a delegated cgroup)",
        };
        write!(f, "{} {}{place}", self.package, self.name)
    }
}

/// A disk with the tests.
pub struct Carried {
    /// The image.
    pub disk: PathBuf,
    tests: Vec<Test>,
    skipped: Vec<String>,
}

impl Carried {
    /// Builds the tests and packs those whose name contains `filter`, which also reaches what is left
    /// out of the whole. `binary` is what the end-to-end tests drive.
    pub fn pack(binary: Binary, filter: &str) -> Result<Self> {
        let built = build()?;
        let (mut tests, mut skipped) = (Vec::new(), Vec::new());
        for chosen in CHOSEN {
            let n_before = tests.len() + skipped.len();
            for executable in
                built.iter().filter(|built| built.is_test && built.package == chosen.package)
            {
                choose(chosen, executable, filter, &mut tests, &mut skipped)?;
            }
            let n_found = tests.len() + skipped.len() - n_before;
            ensure!(
                n_found > 0,
                "no test of {} is chosen by {:?}",
                chosen.package,
                chosen.beginnings
            );
        }
        for LeftOut { name, why } in left_out(filter) {
            let n_tests = skipped.iter().filter(|test: &&String| test.starts_with(name)).count();
            ensure!(n_tests > 0, "{name} is left out and does not exist, or is not chosen");
            eprintln!("skipped: {n_tests} tests {name}: {why}");
        }
        tests.retain(|test| test.to_string().contains(filter));
        ensure!(!tests.is_empty(), "no test of the machine has {filter:?} in its name");

        let dir = target_dir().join("vm/carried");
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        }
        let files = dir.join("files");
        let is_needed = |path: &Path| tests.iter().any(|test| test.executable == path);
        for executable in built.iter().filter(|built| !built.is_test || is_needed(&built.path)) {
            strip(&executable.path, &files)?;
        }
        let binary = match binary {
            Binary::Release => release_binary(),
            Binary::Dev => target_dir().join("debug/longshore"),
        };
        strip(&binary, &files)?;
        copy_sources(&files)?;
        fs::write(dir.join("environment"), environment(&binary)?)?;
        fs::write(dir.join("tests"), list(&tests))?;
        fs::write(dir.join("guest.sh"), include_str!("guest.sh"))?;
        let disk = dir.with_extension("ext4");
        // Left over, it would be taken for a file system to be kept.
        if disk.exists() {
            fs::remove_file(&disk).with_context(|| format!("cannot remove {}", disk.display()))?;
        }
        run(program("mkfs.ext4", ["-q", "-d"]).arg(&dir).arg(&disk).arg("4G"))?;
        Ok(Self { disk, tests, skipped })
    }

    /// The tests that are run.
    pub fn tests(&self) -> &[Test] {
        &self.tests
    }

    /// The tests that are left out.
    pub fn skipped(&self) -> &[String] {
        &self.skipped
    }
}

/// What is left out: nothing, when somebody asks for tests by name.
fn left_out(filter: &str) -> &'static [LeftOut] {
    if filter.is_empty() { LEFT_OUT } else { &[] }
}

/// Sorts the tests of an executable into what is run and what is left out.
fn choose(
    chosen: &Chosen,
    built: &Built,
    filter: &str,
    tests: &mut Vec<Test>,
    skipped: &mut Vec<String>,
) -> Result<()> {
    let path = built.path.to_str().context("the target directory is not UTF-8")?;
    let listed = output(&mut program(path, ["--list", "--format", "terse"]))?;
    for name in listed.lines().filter_map(|line| line.strip_suffix(": test")) {
        let is_chosen = chosen.beginnings.is_empty()
            || chosen.beginnings.iter().any(|beginning| name.starts_with(beginning));
        if !is_chosen {
            continue;
        }
        let test = Test {
            package: built.package.clone(),
            name: name.to_owned(),
            place: chosen.place,
            directory: built.directory.clone(),
            executable: built.path.clone(),
        };
        let shown = test.to_string();
        if left_out(filter).iter().any(|left_out| shown.starts_with(left_out.name)) {
            skipped.push(shown);
        } else {
            tests.push(test);
        }
    }
    Ok(())
}

/// An executable that cargo made.
struct Built {
    package: String,
    directory: PathBuf,
    path: PathBuf,
    is_test: bool,
}

/// What cargo says of each thing it made.
#[derive(Deserialize)]
struct Message {
    manifest_path: Option<PathBuf>,
    executable: Option<PathBuf>,
    profile: Option<Profile>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// Builds what the stage of unit and end-to-end tests builds, and nothing else: another choice of
/// packages would mean other features and a second build.
fn build() -> Result<Vec<Built>> {
    let names: HashMap<PathBuf, String> = metadata::packages()?
        .into_iter()
        .map(|package| (package.manifest_path.into(), package.name))
        .collect();
    let arguments = ["test", "--no-run", "--workspace", "--locked", "--lib", "--bins", "--tests"];
    let messages = output(cargo(arguments).arg("--message-format=json-render-diagnostics"))?;
    let mut built = Vec::new();
    for line in messages.lines() {
        let message: Message = serde_json::from_str(line).context("cannot read cargo's output")?;
        let Message {
            manifest_path: Some(manifest),
            executable: Some(path),
            profile: Some(profile),
        } = message
        else {
            continue;
        };
        let Some(name) = names.get(&manifest) else {
            continue;
        };
        let package = name.strip_prefix("longshore-").unwrap_or(name).to_owned();
        let directory = manifest.parent().context("a manifest lies in a directory")?.to_owned();
        if CHOSEN.iter().any(|chosen| chosen.package == package) {
            built.push(Built { package, directory, path, is_test: profile.test });
        }
    }
    Ok(built)
}

/// Copies an executable below `files`, where it lies as it does here.
fn strip(path: &Path, files: &Path) -> Result<()> {
    let copy = below(files, path);
    if let Some(dir) = copy.parent() {
        fs::create_dir_all(dir)?;
    }
    run(program("strip", ["-o"]).arg(copy).arg(path))
}

fn below(files: &Path, path: &Path) -> PathBuf {
    files.join(path.strip_prefix("/").unwrap_or(path))
}

/// Copies the files of the repository: some tests read what lies beside them.
fn copy_sources(files: &Path) -> Result<()> {
    let listed = output(&mut program("git", ["ls-files", "-z"]))?;
    for name in listed.split_terminator('\0') {
        let (from, to) =
            (repository_root().join(name), below(files, &repository_root().join(name)));
        if let Some(dir) = to.parent() {
            fs::create_dir_all(dir)?;
        }
        fs::copy(&from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    Ok(())
}

/// Variables for the script in the machine, and for the tests.
fn environment(binary: &Path) -> Result<String> {
    let (repository, target) = (repository_root(), target_dir());
    let mut directories = vec![repository];
    if !target.starts_with(repository) {
        directories.push(&target);
    }
    let mut text = String::new();
    let mut shown = Vec::new();
    for dir in directories {
        let dir = dir.to_str().context("a path of the repository is not UTF-8")?;
        ensure!(!dir.contains([' ', '\'']), "the tests cannot be carried: {dir:?} has a space");
        shown.push(dir);
    }
    let terminal = |name: &str| std::env::var(name).unwrap_or_default();
    for (name, value) in [
        ("DIRECTORIES", shown.join(" ")),
        ("REPOSITORY", shown[0].to_owned()),
        ("TIME_LIMIT", TIME_LIMIT.to_string()),
        ("ROWS", terminal("LINES")),
        ("COLUMNS", terminal("COLUMNS")),
    ] {
        writeln!(text, "{name}='{value}'")?;
    }
    writeln!(text, "export LONGSHORE_SLOWNESS={SLOWNESS}")?;
    writeln!(text, "export LONGSHORE_BIN='{}'", binary.display())?;
    Ok(text)
}

/// A test in a line, for the script: number, place, directory, executable, name.
fn list(tests: &[Test]) -> String {
    let mut text = String::new();
    for (number, test) in tests.iter().enumerate() {
        let place = match test.place {
            Place::Root => "root",
            Place::Unit => "unit",
        };
        let (directory, executable) = (test.directory.display(), test.executable.display());
        let name = &test.name;
        text.push_str(&format!("{number} {place} {directory} {executable} {name}\n"));
    }
    text
}
