//! The life of an instance as everyone names it.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ByteCount;

/// Where an instance is in its life. Only ever moves down this list, save that `Backoff` returns to
/// `Pulling` when its wait is over.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum InstancePhase {
    /// Assigned to a node that has not begun.
    Pending,
    /// Its image is on the way to the node.
    Pulling,
    /// Its container is being made.
    Creating,
    /// Its process runs; its health check has not passed yet.
    Starting,
    /// Its process runs and its health check passes.
    Healthy,
    /// Its process runs and its health check fails.
    Unhealthy,
    /// It ended or could not start, and will be started again after a wait.
    Backoff,
    /// It was told to end.
    Stopping,
    /// It ended and stays ended.
    Exited,
}

impl InstancePhase {
    /// The phase as it is shown and sent.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Pulling => "pulling",
            Self::Creating => "creating",
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Backoff => "backoff",
            Self::Stopping => "stopping",
            Self::Exited => "exited",
        }
    }

    /// True when a process of the instance may be running.
    pub fn may_run(self) -> bool {
        matches!(
            self,
            Self::Creating | Self::Starting | Self::Healthy | Self::Unhealthy | Self::Stopping
        )
    }
}

impl fmt::Display for InstancePhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why a container is no longer running.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ExitReason {
    /// Its first process exited by itself.
    Exited {
        /// The exit status.
        code: i32,
    },
    /// Its first process was ended by a signal that Longshore did not send.
    Signalled {
        /// The number of the signal.
        signal: i32,
    },
    /// The kernel ended it because it went over its memory limit.
    OutOfMemory {
        /// The most memory that it used, where the kernel keeps that.
        #[serde(default)]
        peak: Option<ByteCount>,
        /// Its limit.
        #[serde(default)]
        limit: Option<ByteCount>,
    },
    /// Longshore stopped it.
    Stopped,
    /// Its health check failed too often, so Longshore ended it.
    Unhealthy,
    /// Its shim died; the container was ended with it.
    ShimDied,
    /// The machine went down while it ran.
    NodeRestarted,
    /// It could not be started.
    StartFailed {
        /// What failed, with every cause.
        message: String,
    },
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited { code } => write!(f, "exited with code {code}"),
            Self::Signalled { signal } => write!(f, "ended by signal {signal}"),
            Self::OutOfMemory { peak, limit } => match (peak, limit) {
                (Some(peak), Some(limit)) => write!(f, "out of memory: used {peak} of {limit}"),
                (None, Some(limit)) => write!(f, "out of memory: its limit is {limit}"),
                (_, None) => f.write_str("out of memory"),
            },
            Self::Stopped => f.write_str("stopped"),
            Self::Unhealthy => f.write_str("health check failed"),
            Self::ShimDied => f.write_str("shim died"),
            Self::NodeRestarted => f.write_str("node restarted"),
            Self::StartFailed { message } => write!(f, "could not start: {message}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_out_of_memory_says_what_was_used_of_what() {
        let limit = Some(ByteCount::mib(64));
        for (peak, limit, text) in [
            (limit, limit, "out of memory: used 64 MiB of 64 MiB"),
            (None, limit, "out of memory: its limit is 64 MiB"),
            (None, None, "out of memory"),
        ] {
            assert_eq!(ExitReason::OutOfMemory { peak, limit }.to_string(), text);
        }
        let old: ExitReason = serde_json::from_str(r#"{"kind":"out_of_memory"}"#).unwrap();
        assert_eq!(old, ExitReason::OutOfMemory { peak: None, limit: None });
    }
}
