//! Looking at the processes of this machine, and ending our own.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A process and how it was called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Its parent's id.
    pub parent: i32,
    /// Its arguments, the program first.
    pub arguments: Vec<String>,
}

impl Process {
    /// Every process that can be read now, kernel threads and zombies left out.
    pub fn all() -> Result<Vec<Self>> {
        let entries = fs::read_dir("/proc").context("cannot list /proc")?;
        Ok(entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter_map(Self::read)
            .collect())
    }

    /// The process with this id, unless it is gone, a zombie or a kernel thread.
    pub fn read(pid: i32) -> Option<Self> {
        let dir = Path::new("/proc").join(pid.to_string());
        let command_line = fs::read_to_string(dir.join("cmdline")).ok()?;
        let stat = fs::read_to_string(dir.join("stat")).ok()?;
        // The name in parentheses may hold anything, also parentheses.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let state = fields.next()?;
        let parent = fields.next()?.parse().ok()?;
        let arguments: Vec<String> =
            command_line.split_terminator('\0').map(str::to_owned).collect();
        (state != "Z" && !arguments.is_empty()).then_some(Self { pid, parent, arguments })
    }

    /// True when any argument has the text in it.
    pub fn mentions(&self, text: &str) -> bool {
        self.arguments.iter().any(|argument| argument.contains(text))
    }

    /// Ends it at once, as the kernel does when memory runs out.
    pub fn kill(&self) -> Result<()> {
        signal(self.pid, Signal::KILL)
    }

    /// True while it runs. An id that was taken over by another program is not it.
    pub fn is_alive(&self) -> bool {
        Self::read(self.pid).is_some_and(|now| now.arguments == self.arguments)
    }
}

/// Does something on another network, on a thread of its own, which then is there for good with all that it starts.
pub fn on_network<T: Send>(network: &File, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let working = scope.spawn(|| {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        });
        working.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Sends a signal.
pub fn signal(pid: i32, signal: Signal) -> Result<()> {
    let id = Pid::from_raw(pid).context("0 is not the id of a process")?;
    kill_process(id, signal).with_context(|| format!("cannot send {signal:?} to {pid}"))
}

/// The value of a field of `/proc/PID/FILE` in KiB, such as `VmRSS:` of `status`.
pub fn memory_field(pid: i32, file: &str, field: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/{file}");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .with_context(|| format!("{path} has no {field}"))?;
    let number = line.split_whitespace().next().unwrap_or_default();
    number.parse().with_context(|| format!("{path}: {field} {line}"))
}
