//! What agent, shim and exec process say to each other: JSON lines with a version.
//!
//! A shim outlives the agent that started it and may meet a newer one, so both sides ignore fields
//! that they do not know, and a shim answers a version or request that it does not know with
//! [`Reply::Refused`] instead of going away. Two kinds of connection speak it: the descriptor 0 that
//! a fresh shim or exec process inherits (one [`Start`] line per stage), and the shim's socket.

use std::collections::BTreeMap;
use std::path::Path;

use longshore_types::Timestamp;
use serde::{Deserialize, Serialize};

use crate::SignalNumber;
use crate::record::ExitRecord;
use crate::spec::TerminalSize;
use crate::user::ResolvedUser;

/// The version of every message here.
pub(crate) const VERSION: u32 = 1;
/// The name of the shim's socket in the instance's run directory.
pub(crate) const SOCKET: &str = "shim.sock";
/// The name of the file that the shim holds locked while it lives.
pub(crate) const LOCK: &str = "lock";
/// The longest line that either side takes.
pub(crate) const MAX_LINE: usize = 1 << 20;

/// A message with its version.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Versioned<T> {
    pub v: u32,
    #[serde(flatten)]
    pub message: T,
}

/// One message as the line that is sent.
pub(crate) fn line<T: Serialize>(message: T) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(&Versioned { v: VERSION, message })
        .expect("messages have string keys only");
    bytes.push(b'\n');
    bytes
}

/// What the agent asks a running shim.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(crate) enum Request {
    /// How is it?
    State,
    /// Send the first process a signal.
    Signal { signal: SignalNumber },
    /// Send the stop signal, and after the grace end everything.
    Stop { grace_ms: u64 },
    /// End everything now.
    Kill,
    /// Answer when it has ended.
    Wait,
    /// From here on this connection is that of the client, which speaks and is spoken to as with an
    /// exec process: [`Start::Running`] comes with the descriptors, [`Start::Failed`] instead of it,
    /// [`Start::Ended`] at the end; [`ExecMessage`]s go the other way. The descriptors are the master
    /// of the terminal and a pipe from which a copy of its output is read; or two such pipes, of the
    /// output and the errors, and a pipe to the input, if it is wanted and nobody took it before.
    Attach {
        /// How large the client's terminal is, if it has one.
        terminal: Option<TerminalSize>,
        /// Whether the program reads what the client sends, or nothing. A terminal is always read.
        input: bool,
    },
}

/// What the shim answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub(crate) enum Reply {
    State { pid: i32, started_at: Timestamp, stopping: bool },
    Done,
    Exited { record: ExitRecord },
    Refused { why: String },
}

/// What the agent asks an exec process while the process inside runs. The end of the connection is
/// the end of that.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "exec", rename_all = "snake_case")]
pub(crate) enum ExecMessage {
    /// Send the process and its group a signal.
    Signal { signal: SignalNumber },
    /// Only of who is attached: the process goes on without.
    Detach,
}

/// How a start went, told on the descriptor that the process inherited.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "start", rename_all = "snake_case")]
pub(crate) enum Start {
    Running {
        pid: i32,
        started_at: Timestamp,
        timings: Vec<Timing>,
    },
    Failed {
        why: String,
    },
    /// Only of an exec, and of who is attached: the process ended.
    Ended {
        code: i32,
    },
}

/// How long one stage of a start took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// The stage.
    pub stage: String,
    /// Microseconds.
    pub micros: u64,
}

/// A process to run inside a running container, as the exec process is told. With the line comes
/// the descriptor that the process reads from, if there is one; with the answer
/// [`Start::Running`], the master of the terminal, if one was asked for.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ExecOrder {
    pub args: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub cwd: String,
    pub user: ResolvedUser,
    #[serde(default)]
    pub terminal: Option<TerminalSize>,
}

/// What to do with files of a running container, as the archive process is told. The archive goes over
/// its descriptor 1.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ArchiveOrder {
    /// The container's first process.
    pub pid: i32,
    pub work: ArchiveWork,
}

/// A copy, out of or into a container.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ArchiveWork {
    Pack { path: String },
    Unpack { path: String, as_cp: bool, keep_owners: bool },
}

/// What the archive process says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "archive", rename_all = "snake_case")]
pub(crate) enum ArchiveMessage {
    /// What is to be read was found, or what is sent will be unpacked.
    Begun {},
    /// All of it was.
    Done {},
    /// It was not.
    Failed { kind: ArchiveFailure, why: String },
}

/// Whose fault it is that a copy failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ArchiveFailure {
    /// There is nothing at the path.
    Missing,
    /// What was sent cannot be unpacked.
    BadArchive,
    /// Something else.
    Other,
}

/// A socket's path by way of the directory's descriptor: the kernel takes 107 bytes at most, and
/// data directories may lie deep.
pub(crate) fn short_socket_path(dir: &impl std::os::fd::AsRawFd, name: &str) -> std::path::PathBuf {
    Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_stable() {
        let text = String::from_utf8(line(Request::Stop { grace_ms: 5 })).unwrap();
        assert_eq!(text, "{\"v\":1,\"op\":\"stop\",\"grace_ms\":5}\n");
        let newer = r#"{"v":1,"op":"wait","colour":"blue"}"#;
        let parsed: Versioned<Request> = serde_json::from_str(newer).unwrap();
        assert!(matches!(parsed.message, Request::Wait));
        assert!(serde_json::from_str::<Versioned<Request>>(r#"{"v":1,"op":"fly"}"#).is_err());
    }
}
