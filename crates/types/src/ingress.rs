//! How requests reach the instances of an app.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Duration;

/// What the ingress has to know of an app beside its names: the table `[ingress]` of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct IngressRules {
    /// What the instances speak.
    pub protocol: AppProtocol,
    /// How long a newly healthy instance takes to get its whole share of the requests, while others
    /// have theirs. Nothing for at once.
    pub slow_start: Duration,
    /// Whether an instance that answers with errors is left out for a while.
    pub outlier_ejection: bool,
}

impl IngressRules {
    /// What fills the caches of most programs and delays no rollout by much.
    pub const DEFAULT_SLOW_START: Duration = Duration::from_secs(10);
    /// Longer than this nobody waits for a share, and a slip of the finger is more likely.
    pub const MAX_SLOW_START: Duration = Duration::from_secs(3600);
}

impl Default for IngressRules {
    fn default() -> Self {
        Self {
            protocol: AppProtocol::default(),
            slow_start: Self::DEFAULT_SLOW_START,
            outlier_ejection: true,
        }
    }
}

/// What an instance speaks on its port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AppProtocol {
    /// HTTP/1.1, with upgrades such as WebSocket.
    #[default]
    Http1,
    /// HTTP/2 in the clear from the first byte ("prior knowledge"), as gRPC servers have it.
    H2c,
}

impl AppProtocol {
    /// All, with the words of a manifest.
    pub const ALL: [(&str, Self); 2] = [("http1", Self::Http1), ("h2c", Self::H2c)];
}
