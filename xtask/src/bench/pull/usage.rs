//! What a group of processes takes of the processors, by a cgroup around it: in cgroup v1 of the controller for
//! that, in v2 of any. Unlike what `wait` tells, it has daemons in it, and children of which nobody waits.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use longshore_e2e::process::Process;

use crate::command::program;

const V1: &str = "/sys/fs/cgroup/cpuacct";
const V2: &str = "/sys/fs/cgroup";
/// Goes into the cgroup `$0` and becomes the rest of the arguments.
const ENTER: &str = r#"echo $$ > "$0/cgroup.procs" && exec "$@""#;

/// A cgroup of the bench's own.
pub struct Group {
    dir: PathBuf,
}

impl Group {
    /// One with this name, beside those of other runs.
    pub fn new(name: &str) -> Result<Self> {
        let parent = if Path::new(V1).exists() { V1 } else { V2 };
        let id = fastrand::u32(..);
        let dir = Path::new(parent).join(format!("longshore-bench-{name}-{id:08x}"));
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Self { dir })
    }

    /// A program that runs in it.
    pub fn command(&self, name: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = program("sh", ["-c", ENTER]);
        command.arg(&self.dir).arg(name);
        command
    }

    /// Moves a process into it; what it took before does not count.
    pub fn take(&self, pid: i32) -> Result<()> {
        let file = self.dir.join("cgroup.procs");
        fs::write(&file, pid.to_string()).with_context(|| format!("cannot move {pid} into it"))
    }

    /// Moves every process into it that has a text among its arguments.
    pub fn take_all(&self, text: &str) -> Result<()> {
        let processes = Process::all()?;
        let mut processes = processes.iter().filter(|process| process.mentions(text));
        processes.try_for_each(|process| self.take(process.pid))
    }

    /// What its processes took so far, those that ended included.
    pub fn cpu(&self) -> Result<Duration> {
        let read = |name: &str| {
            let file = self.dir.join(name);
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))
        };
        if self.dir.join("cpuacct.usage").exists() {
            return Ok(Duration::from_nanos(read("cpuacct.usage")?.trim().parse()?));
        }
        let stat = read("cpu.stat")?;
        let micros = stat.lines().find_map(|line| line.strip_prefix("usage_usec "));
        Ok(Duration::from_micros(micros.context("no usage_usec in cpu.stat")?.parse()?))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // One that is not empty yet stays until its processes end with the namespaces of the bench; an empty
        // cgroup costs nothing.
        let _ = longshore_e2e::eventually("the cgroup is empty", || {
            Ok(fs::remove_dir(&self.dir).is_ok().then_some(()))
        });
    }
}
