//! Which runtimes this machine has, and what each can do here: the capability table.
//!
//! What a runtime can do at all is written down; what depends on the machine is asked for: whether the
//! program is there, its version and what it was built with, the kind of cgroups, criu, a graphics
//! driver. crun refuses some machines altogether and says so only when it makes a container, so
//! it is made to try, with a program that is not there: when that is all it complains about, it
//! works. Answers are kept in a file, by the program's place, size and time, so that an agent that
//! starts again asks nobody.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use longshore_types::{Ability, RuntimeName, RuntimeOffer};
use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::cgroup::{CgroupKind, CgroupTree};
use crate::files::{self, Durability};
use crate::process::{PATH, wait_within};
use crate::spec::RuntimeKind;

/// How long a program may take to say what it is.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// A program that no root file system has.
const NO_PROGRAM: &str = "/longshore-tries-this-runtime";
/// Where the answers are kept.
const FILE: &str = "runtimes.json";

/// Where the programs of the runtimes are. One that is absent is looked for in the usual places.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuntimePrograms {
    /// `runc`.
    pub runc: Option<PathBuf>,
    /// `crun`.
    pub crun: Option<PathBuf>,
    /// `runsc`.
    pub runsc: Option<PathBuf>,
}

impl RuntimePrograms {
    /// The runtime and its program, or why there is none.
    pub fn find(&self, runtime: RuntimeName) -> Result<RuntimeKind, String> {
        let (given, kind): (_, fn(PathBuf) -> RuntimeKind) = match runtime {
            RuntimeName::Embedded => return Ok(RuntimeKind::Embedded),
            RuntimeName::Runc => (&self.runc, RuntimeKind::Runc),
            RuntimeName::Crun => (&self.crun, RuntimeKind::Crun),
            RuntimeName::Runsc => (&self.runsc, RuntimeKind::Runsc),
        };
        let is_program = |path: &PathBuf| {
            path.metadata().is_ok_and(|found| found.is_file() && found.mode() & 0o111 != 0)
        };
        if let Some(path) = given {
            let refused = || format!("{} is not a program", path.display());
            return Some(path.clone()).filter(is_program).map(kind).ok_or_else(refused);
        }
        let mut places = PATH.split(':').map(|dir| Path::new(dir).join(runtime.as_str()));
        places.find(is_program).map(kind).ok_or_else(|| {
            format!("not found in {PATH}: install it, or set {runtime} in the node's configuration")
        })
    }
}

fn program(kind: &RuntimeKind) -> Option<&Path> {
    match kind {
        RuntimeKind::Embedded => None,
        RuntimeKind::Runc(path) | RuntimeKind::Crun(path) | RuntimeKind::Runsc(path) => Some(path),
    }
}

/// What the machine has, whatever the runtime.
struct Machine {
    freezer: bool,
    /// Whether this process has CAP_SYS_RESOURCE, which it often lacks in a container.
    raises_limits: bool,
    criu: bool,
    nvidia: bool,
}

impl Machine {
    fn look() -> Self {
        let freezer = match CgroupTree::probe("").map(|tree| tree.kind()) {
            Ok(CgroupKind::V1) => Path::new("/sys/fs/cgroup/freezer").exists(),
            Ok(CgroupKind::V2) | Err(_) => true,
        };
        let criu = PATH.split(':').any(|dir| Path::new(dir).join("criu").exists());
        let raises_limits = rustix::thread::capabilities(None)
            .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_RESOURCE));
        Self {
            freezer,
            raises_limits,
            criu,
            nvidia: Path::new("/proc/driver/nvidia/version").exists(),
        }
    }
}

/// The table: a row for each runtime, in order. Takes as long as the programs take to answer, a tenth
/// of a second or so, unless `cache_dir` has the answers. Blocks.
pub fn probe(programs: &RuntimePrograms, cache_dir: &Path) -> Vec<RuntimeOffer> {
    let cache = cache_dir.join(FILE);
    let known = files::read_json::<Kept>(&cache).ok().flatten().unwrap_or_default();
    let machine = Machine::look();
    let rows = RuntimeName::ALL.map(|runtime| (runtime, programs.find(runtime)));
    let answers = thread::scope(|scope| {
        let asked = rows.iter().map(|(_, found)| {
            let known = &known;
            scope.spawn(move || {
                let program = program(found.as_ref().ok()?)?;
                let mark = mark(program)?;
                let kept = known.0.get(&mark).cloned();
                Some((mark, kept.unwrap_or_else(|| ask(program, found.as_ref().ok()))))
            })
        });
        let asked: Vec<_> = asked.collect();
        // Nothing in there panics; were it to, the row says that nothing is known.
        asked.into_iter().map(|thread| thread.join().unwrap_or(None)).collect::<Vec<_>>()
    });
    let kept = Kept(answers.iter().flatten().cloned().collect());
    if kept != known {
        // Then the next agent asks again.
        let _ = files::replace_json(&cache, &kept, Durability::Cached);
    }
    let rows = rows.into_iter().zip(answers);
    rows.map(|((runtime, found), answer)| {
        row(runtime, found, answer.map(|(_, answer)| answer), &machine)
    })
    .collect()
}

/// What programs answered, by what marks them.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Kept(BTreeMap<String, Answer>);

/// What one program answered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Answer {
    version: Option<String>,
    /// Why it cannot be used.
    unavailable: Option<String>,
    filter: bool,
    criu: bool,
}

/// Changes when another program lies at the path, and with every boot: kernels differ.
fn mark(program: &Path) -> Option<String> {
    let found = program.metadata().ok()?;
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let (size, time) = (found.len(), found.mtime());
    Some(format!("{} {size} {time} {}", program.display(), boot.trim()))
}

fn ask(program: &Path, kind: Option<&RuntimeKind>) -> Answer {
    let said = match output(Command::new(program).arg("--version")) {
        Ok(text) => text,
        Err(why) => return Answer { unavailable: Some(why), ..Answer::default() },
    };
    let version = said.lines().next().and_then(|line| line.split_once("version "));
    let version = version.map(|(_, version)| version.trim().to_owned());
    let mut answer = Answer { version, unavailable: None, filter: true, criu: true };
    match kind {
        Some(RuntimeKind::Runc(_)) => {
            // Older ones do not know this; then the first start tells.
            let features = output(Command::new(program).arg("features")).unwrap_or_default();
            let features: Value = serde_json::from_str(&features).unwrap_or_default();
            answer.filter = features["linux"]["seccomp"]["enabled"] != json!(false);
        }
        Some(RuntimeKind::Crun(_)) => {
            answer.filter = said.contains("+SECCOMP");
            answer.criu = said.contains("+CRIU");
            answer.unavailable = try_crun(program).err();
        }
        _ => {}
    }
    answer
}

/// Has crun make a container whose program is not there.
fn try_crun(program: &Path) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("it could not be tried: {error}");
    let dir = std::env::temp_dir().join(format!("longshore-crun-{}", std::process::id()));
    let try_in = |dir: &Path| {
        for place in ["proc", "dev", "sys"] {
            fs::create_dir_all(dir.join("rootfs").join(place)).map_err(failed)?;
        }
        let config = json!({
            "ociVersion": "1.0.0",
            "process": {"user": {"uid": 0, "gid": 0}, "args": [NO_PROGRAM], "cwd": "/"},
            "root": {"path": "rootfs"},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]},
        });
        fs::write(dir.join("config.json"), config.to_string()).map_err(failed)?;
        let mut command = Command::new(program);
        command.arg("--cgroup-manager=disabled").arg("--root").arg(dir.join("state"));
        command.arg("create").arg("--bundle").arg(dir).arg("longshore-tries");
        match output(&mut command) {
            Err(said) if !said.contains(NO_PROGRAM) => Err(said),
            _ => Ok(()),
        }
    };
    let tried = try_in(&dir);
    files::remove_if_present(&dir).map_err(failed)?;
    tried
}

/// What a command prints, or what it says is wrong.
fn output(command: &mut Command) -> Result<String, String> {
    let name = Path::new(command.get_program()).display().to_string();
    command.env_clear().env("PATH", PATH).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("{name} cannot be run: {error}"))?;
    let status =
        wait_within(&mut child, ANSWER_DEADLINE).map_err(|error| format!("{name}: {error}"))?;
    let (mut said, mut complained) = (String::new(), String::new());
    // Both are a few lines, which the pipes held.
    let read = child.stdout.take().map(|mut out| out.read_to_string(&mut said));
    let read_too = child.stderr.take().map(|mut err| err.read_to_string(&mut complained));
    match (read, read_too) {
        (Some(Ok(_)), Some(Ok(_))) if status.success() => Ok(said),
        (Some(Ok(_)), Some(Ok(_))) if !complained.trim().is_empty() => {
            Err(complained.trim().to_owned())
        }
        _ => Err(format!("{name} ended without an answer: {status}")),
    }
}

/// One row of the table.
fn row(
    runtime: RuntimeName,
    found: Result<RuntimeKind, String>,
    answer: Option<Answer>,
    machine: &Machine,
) -> RuntimeOffer {
    let path = found.as_ref().ok().and_then(program).map(|path| path.display().to_string());
    let answer = answer.unwrap_or_default();
    let mut lacks: BTreeMap<Ability, String> = BTreeMap::new();
    let mut lack = |is_so: bool, ability, why: &str| {
        if is_so {
            lacks.entry(ability).or_insert_with(|| why.to_owned());
        }
    };
    let (embedded, runsc) = (runtime == RuntimeName::Embedded, runtime == RuntimeName::Runsc);
    lack(!machine.freezer, Ability::Freeze, "the freezer cgroup is not mounted");
    lack(embedded, Ability::Checkpoint, "libcontainer cannot restore what it wrote");
    let by_criu = matches!(runtime, RuntimeName::Runc | RuntimeName::Crun);
    lack(by_criu && !answer.criu, Ability::Checkpoint, "it was built without criu");
    lack(by_criu && !machine.criu, Ability::Checkpoint, "criu is not installed");
    lack(runsc, Ability::Gpu, "its kernel passes no graphics processor on");
    lack(!machine.nvidia, Ability::Gpu, "this machine has no NVIDIA driver");
    // It sets the limits of the first process, which is in there already, from outside.
    lack(
        runtime == RuntimeName::Runc && !machine.raises_limits,
        Ability::UserNamespace,
        "it wants CAP_SYS_RESOURCE, which this agent lacks",
    );
    lack(
        runsc,
        Ability::UserNamespace,
        "its kernel has one of its own making; say user_namespace = false",
    );
    lack(!embedded && !answer.filter, Ability::SystemCallFilter, "it was built without seccomp");
    let version = match runtime {
        RuntimeName::Embedded => Some(env!("CARGO_PKG_VERSION").to_owned()),
        _ => answer.version,
    };
    RuntimeOffer { runtime, path, version, unavailable: found.err().or(answer.unavailable), lacks }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn script(dir: &Path, name: &str, text: &str) -> PathBuf {
        let path = dir.join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn by_name(offers: &[RuntimeOffer], runtime: RuntimeName) -> RuntimeOffer {
        offers.iter().find(|offer| offer.runtime == runtime).unwrap().clone()
    }

    #[test]
    fn every_runtime_has_a_row_with_what_it_said_and_lacks() {
        let dir = tempfile::tempdir().unwrap();
        let features = r#"case $1 in features) echo '{"linux":{"seccomp":{"enabled":false}}}';; *) echo 'runc version 9.1+x'; echo more;; esac"#;
        let crun = "case $1 in --version) echo 'crun version 8'; echo '+SECCOMP';; \
                    *) echo 'no cgroups here' >&2; exit 1;; esac";
        let programs = RuntimePrograms {
            runc: Some(script(dir.path(), "runc", features)),
            crun: Some(script(dir.path(), "crun", crun)),
            runsc: Some(dir.path().join("none")),
        };
        let offers = probe(&programs, dir.path());
        assert_eq!(offers.iter().map(|offer| offer.runtime).collect::<Vec<_>>(), RuntimeName::ALL);
        let embedded = by_name(&offers, RuntimeName::Embedded);
        assert_eq!(embedded.refusal(&Ability::ALWAYS), None);
        let runc = by_name(&offers, RuntimeName::Runc);
        assert_eq!(runc.version.as_deref(), Some("9.1+x"));
        let why = runc.refusal(&Ability::ALWAYS).unwrap();
        assert_eq!(why, "runc lacks system call filter: it was built without seccomp");
        let crun = by_name(&offers, RuntimeName::Crun);
        assert_eq!(crun.unavailable.as_deref(), Some("no cgroups here"));
        assert!(crun.lacks.contains_key(&Ability::Checkpoint));
        let runsc = by_name(&offers, RuntimeName::Runsc).refusal(&[]).unwrap();
        assert!(runsc.ends_with("/none is not a program"), "{runsc}");
    }

    #[test]
    fn a_program_is_asked_once_until_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let asked = dir.path().join("asked");
        let text = format!("echo x >> {}; echo 'runc version 1'", asked.display());
        let programs = RuntimePrograms {
            runc: Some(script(dir.path(), "runc", &text)),
            crun: Some("/none".into()),
            runsc: Some("/none".into()),
        };
        let n_asked = || fs::read_to_string(&asked).unwrap().lines().count();
        let first = probe(&programs, dir.path());
        let once = n_asked();
        assert_eq!((probe(&programs, dir.path()), n_asked()), (first, once));
        script(dir.path(), "runc", &format!("{text}; echo longer"));
        probe(&programs, dir.path());
        assert_eq!(n_asked(), 2 * once);
    }

    #[test]
    fn a_crun_that_only_misses_the_program_can_be_used() {
        let dir = tempfile::tempdir().unwrap();
        let text = format!("echo 'executable file `{NO_PROGRAM}` not found' >&2; exit 1");
        assert_eq!(try_crun(&script(dir.path(), "crun", &text)), Ok(()));
    }
}
