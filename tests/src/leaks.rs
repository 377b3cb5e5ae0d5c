//! What a platform left on the machine, found by what only its own things carry: its directories
//! and the id of its agent.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::process::Process;

/// What is looked for.
#[derive(Debug, Clone)]
pub struct Marks {
    /// A path below which a platform keeps everything that is its own.
    pub dir: String,
    /// The id of its agent, which is part of every name it gives to a kernel object; absent when it
    /// never ran.
    pub agent: Option<String>,
}

/// Everything found that should not be there, one line each.
pub fn find(marks: &Marks) -> Vec<String> {
    let mut leaks = Vec::new();
    leaks.extend(processes(marks));
    leaks.extend(mounts(marks));
    leaks.extend(loop_devices(marks));
    if let Some(agent) = &marks.agent {
        leaks.extend(named(Path::new("/sys/class/net"), agent, 1, "link"));
        leaks.extend(named(Path::new("/run/netns"), agent, 1, "network namespace"));
        leaks.extend(named(Path::new("/run"), agent, 2, "run directory"));
        leaks.extend(named(Path::new("/sys/fs/cgroup"), agent, 4, "cgroup"));
        leaks.extend(nft_tables(agent));
    }
    leaks
}

fn processes(marks: &Marks) -> Vec<String> {
    let own = std::process::id().cast_signed();
    let all = Process::all().unwrap_or_default();
    all.iter()
        .filter(|process| process.pid != own && process.mentions(&marks.dir))
        .map(|process| format!("process {}: {}", process.pid, process.arguments.join(" ")))
        .collect()
}

fn mounts(marks: &Marks) -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines().filter(|line| carries(line, marks)).map(|line| format!("mount {line}")).collect()
}

fn carries(line: &str, marks: &Marks) -> bool {
    line.contains(&marks.dir) || marks.agent.as_ref().is_some_and(|agent| line.contains(agent))
}

fn loop_devices(marks: &Marks) -> Vec<String> {
    let Ok(entries) = fs::read_dir("/sys/block") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let file = fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
            let name = entry.file_name();
            carries(&file, marks).then(|| format!("{} for {}", name.display(), file.trim()))
        })
        .collect()
}

/// Entries down to `depth` whose name has the mark in it.
fn named(dir: &Path, mark: &str, depth: u32, kind: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_name().to_string_lossy().contains(mark) {
            found.push(format!("{kind} {}", path.display()));
        } else if depth > 1 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(named(&path, mark, depth - 1, kind));
        }
    }
    found
}

fn nft_tables(agent: &str) -> Vec<String> {
    let Ok(output) = Command::new("nft").args(["list", "tables"]).output() else {
        return vec!["nft cannot be run; is the package nftables installed?".to_owned()];
    };
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|line| line.contains(agent))
        .map(|line| format!("nft {line}"))
        .collect()
}
