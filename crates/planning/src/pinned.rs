//! What is not started elsewhere when its node or location is drained.

use serde::{Deserialize, Serialize};

/// Why it is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pinned {
    /// A client is attached to it, and would not be to another.
    Attached,
    /// It has ended for good, as its app may; another would do its work once more.
    Ended,
}

impl Pinned {
    /// In words.
    pub fn why(self) -> &'static str {
        match self {
            Self::Attached => "is there for the client that is attached to it, and ends with that",
            Self::Ended => "has ended for good, and elsewhere it would run once more",
        }
    }

    /// Whether it leaves by itself.
    pub fn leaves(self) -> bool {
        self == Self::Attached
    }
}
