//! Why something was placed where it is, in words that a user can read.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// One decision of a planner, with everything it weighed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Decision {
    /// When, by the clock value that the planner was given.
    pub at: Timestamp,
    /// The name of the location or node that was chosen; absent when none would do.
    pub chosen: Option<String>,
    /// The reason in one phrase.
    pub why: String,
    /// What was considered, the chosen one included, best first; of hundreds, those that matter most.
    pub candidates: Vec<Candidate>,
}

impl Decision {
    /// The reason with what came nearest to being chosen: `no node has room (n1: refused: ...)`.
    pub fn summary(&self) -> String {
        match self.candidates.first() {
            Some(Candidate { name, why, .. }) => format!("{} ({name}: {why})", self.why),
            None => self.why.clone(),
        }
    }
}

/// One location or node that a planner considered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Candidate {
    /// Its name.
    pub name: String,
    /// How good it was, higher is better; absent when it was refused.
    pub score: Option<i64>,
    /// What was good about it, or why it was refused.
    pub why: String,
    /// What it lacks, when it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lack: Option<Lack>,
}

/// What a location or node lacks that an instance needs.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Lack {
    /// An operator's word that it may have more.
    Cordon,
    /// Its reports.
    Report,
    /// That the app denies it not.
    Deny,
    /// That the app allows it.
    Allow,
    /// A jurisdiction of the app.
    Jurisdiction,
    /// A label.
    Label,
    /// A runtime, or something that it can do.
    Runtime,
    /// A way to an address that has to answer.
    Reach,
    /// That fewer of the app are there.
    Spread,
    /// Processor time.
    Cpu,
    /// Memory.
    Memory,
    /// Room on its disk.
    Disk,
    /// GPUs, or memory of them.
    Gpu,
    /// Something that this version does not know.
    #[serde(other)]
    Unknown,
}

impl Lack {
    /// All that this version knows.
    pub const ALL: [Self; 13] = [
        Self::Cordon,
        Self::Report,
        Self::Deny,
        Self::Allow,
        Self::Jurisdiction,
        Self::Label,
        Self::Runtime,
        Self::Reach,
        Self::Spread,
        Self::Cpu,
        Self::Memory,
        Self::Disk,
        Self::Gpu,
    ];

    /// Whether it is room that lacks.
    pub fn is_room(self) -> bool {
        matches!(self, Self::Cpu | Self::Memory | Self::Disk | Self::Gpu)
    }

    /// What would have to change.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Cordon => "`longshore uncordon` opens it again",
            Self::Report => "it has to report again",
            Self::Deny => "placement.deny of the manifest has to leave it out",
            Self::Allow => "placement.allow of the manifest has to name it",
            Self::Jurisdiction => {
                "placement.jurisdiction of the manifest has to include its country, which --country says"
            }
            Self::Label => {
                "it needs --label, or placement.labels of the manifest has to ask for less"
            }
            Self::Runtime => {
                "the runtime has to be installed there, or the manifest has to choose another"
            }
            Self::Reach => {
                "the address has to answer there, or placement.reach of the manifest has to leave it out"
            }
            Self::Spread => "the manifest has to let more of the app into one place",
            Self::Cpu | Self::Memory | Self::Disk => {
                "something has to leave it, a machine has to join, or resources has to ask for less"
            }
            Self::Gpu => {
                "something has to leave its GPUs, a machine with such a one has to join, or resources.gpu has to ask for less"
            }
            Self::Unknown => "",
        }
    }
}
