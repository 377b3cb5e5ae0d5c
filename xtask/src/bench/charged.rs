//! The memory that the kernel charges to a platform: a cgroup around everything of it.
//!
//! Summing up what processes say of themselves leaves out what the kernel holds for them: page
//! tables, stacks, namespaces, links, mounts, the cgroups themselves. The kernel charges all of that
//! to the cgroup of who made it. The difference of the machine's free memory would have it too, and
//! what everybody else on the machine did meanwhile. What the kernel does not charge to anyone
//! (some tables of its network) is in neither sum.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use longshore_e2e::Platform;
use longshore_e2e::process::Process;

/// Where the memory controller is: its own hierarchy (v1), or the one of all (v2).
fn hierarchy() -> PathBuf {
    let v1 = Path::new("/sys/fs/cgroup/memory");
    if v1.exists() { v1.to_owned() } else { PathBuf::from("/sys/fs/cgroup") }
}

/// A cgroup with one child for the roles of a platform; the agent makes those of its instances
/// beside that.
pub struct Enclosure(String);

impl Enclosure {
    /// One of its own. Not by the id of this process: in its namespace that is always 1.
    pub fn new() -> Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is not set")?;
        Ok(Self(format!("longshore-bench-{:x}", now.as_micros())))
    }

    /// The line of the platform's config that puts its instances inside.
    pub fn config(&self) -> String {
        format!("cgroup_parent = \"/{}\"\n", self.0)
    }

    fn dir(&self) -> PathBuf {
        hierarchy().join(&self.0)
    }

    fn roles(&self) -> PathBuf {
        self.dir().join("roles")
    }

    /// Moves the supervisor and every role inside. What they took before stays charged to where they
    /// came from, so only what comes later can be measured.
    pub fn take(&self, platform: &Platform) -> Result<()> {
        let roles = self.roles();
        fs::create_dir_all(&roles).with_context(|| format!("cannot make {}", roles.display()))?;
        let supervisor = platform.supervisor_pid()?;
        let all = Process::all()?;
        for process in all.iter().filter(|p| p.pid == supervisor || p.parent == supervisor) {
            let file = roles.join("cgroup.procs");
            fs::write(file, process.pid.to_string()).context("cannot move a role")?;
        }
        Ok(())
    }

    /// What is charged to all of it, in bytes.
    pub fn total(&self) -> Result<u64> {
        charged(&self.dir())
    }

    /// What is charged to the containers: their programs, and what the kernel holds for these.
    pub fn containers(&self) -> Result<u64> {
        let mut sum = 0;
        for agent in directories(&self.dir())? {
            for instance in directories(&agent)? {
                let payload = instance.join("payload");
                if payload.exists() {
                    sum += charged(&payload)?;
                }
            }
        }
        Ok(sum)
    }
}

impl Drop for Enclosure {
    fn drop(&mut self) {
        // The agent made its own in every hierarchy there is. What is not empty stays.
        let hierarchies = directories(Path::new("/sys/fs/cgroup")).unwrap_or_default();
        for hierarchy in hierarchies.into_iter().chain([PathBuf::from("/sys/fs/cgroup")]) {
            for dir in [hierarchy.join(&self.0).join("roles"), hierarchy.join(&self.0)] {
                let _ = fs::remove_dir(dir);
            }
        }
    }
}

/// What is charged to a cgroup and those below, without the page cache, which the kernel drops when
/// anyone wants the memory.
fn charged(dir: &Path) -> Result<u64> {
    let read = |file: &str| {
        let path = dir.join(file);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let is_v1 = dir.join("memory.usage_in_bytes").exists();
    let (file, prefix) =
        if is_v1 { ("memory.usage_in_bytes", "total_") } else { ("memory.current", "") };
    let usage: u64 = read(file)?.trim().parse().context("a usage is a number")?;
    let stat = read("memory.stat")?;
    let field = |name: &str| -> Result<u64> {
        let name = format!("{prefix}{name} ");
        let value = stat.lines().find_map(|line| line.strip_prefix(&name));
        Ok(value.with_context(|| format!("no {name}in memory.stat"))?.parse()?)
    };
    Ok(usage.saturating_sub(field("inactive_file")? + field("active_file")?))
}

fn directories(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    Ok(paths.into_iter().filter(|path| path.is_dir()).collect())
}
