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

/// One location or node that a planner considered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Candidate {
    /// Its name.
    pub name: String,
    /// How good it was, higher is better; absent when it was refused.
    pub score: Option<i64>,
    /// What was good about it, or why it was refused and what would have to change.
    pub why: String,
}
