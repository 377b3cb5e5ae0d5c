//! Which program makes the containers of an app, and what it can do on a node.
//!
//! A node reports an [`RuntimeOffer`] for every runtime: a row of the capability table. Whoever has to
//! say no (the API at a deploy, the location's planner for each node) asks the row, and names it.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::lenient::known_keys;
use crate::{ByteCount, ParseError, text_type};

/// The program that makes containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum RuntimeName {
    /// Longshore's own, libcontainer inside the shim: nothing has to be installed.
    #[default]
    Embedded,
    /// `runc`.
    Runc,
    /// `crun`.
    Crun,
    /// `runsc`: gVisor, a kernel of its own for each container.
    Runsc,
}

impl RuntimeName {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 4] = [Self::Embedded, Self::Runc, Self::Crun, Self::Runsc];

    /// The least memory and processes that an instance can be given: a kernel of its own is inside
    /// its limits.
    pub fn least(self) -> (ByteCount, u32) {
        match self {
            Self::Embedded | Self::Runc | Self::Crun => (ByteCount::mib(4), 1),
            Self::Runsc => (ByteCount::mib(64), 64),
        }
    }

    /// The name as a manifest has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Runc => "runc",
            Self::Crun => "crun",
            Self::Runsc => "runsc",
        }
    }
}

impl fmt::Display for RuntimeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for RuntimeName {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let found = Self::ALL.into_iter().find(|runtime| runtime.as_str() == text);
        found.ok_or_else(|| {
            ParseError::new("runtime", text, "one of \"embedded\", \"runc\", \"crun\", \"runsc\"")
        })
    }
}
text_type!(RuntimeName);

/// One thing that a runtime can do, or not: a column of the capability table.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Ability {
    /// Limits on memory, processor time and processes.
    Limits,
    /// The network of an instance, made by the node.
    Network,
    /// A further process in a running container.
    Exec,
    /// Standing still, and going on.
    Freeze,
    /// Writing a running container to disk.
    Checkpoint,
    /// A graphics processor.
    Gpu,
    /// A user namespace.
    UserNamespace,
    /// The system call filter.
    SystemCallFilter,
}

impl Ability {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 8] = [
        Self::Limits,
        Self::Network,
        Self::Exec,
        Self::Freeze,
        Self::Checkpoint,
        Self::Gpu,
        Self::UserNamespace,
        Self::SystemCallFilter,
    ];

    /// What every container needs, whatever its manifest says.
    pub const ALWAYS: [Self; 4] = [Self::Limits, Self::Network, Self::Exec, Self::SystemCallFilter];
}

impl fmt::Display for Ability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Limits => "limits",
            Self::Network => "network",
            Self::Exec => "exec",
            Self::Freeze => "freeze",
            Self::Checkpoint => "checkpoint",
            Self::Gpu => "gpu",
            Self::UserNamespace => "user namespace",
            Self::SystemCallFilter => "system call filter",
        })
    }
}

/// A runtime on a node: a row of the capability table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RuntimeOffer {
    /// Which.
    pub runtime: RuntimeName,
    /// Where its program is; absent for the embedded one, and when it was not found.
    pub path: Option<String>,
    /// What it says of itself.
    pub version: Option<String>,
    /// Why it cannot be used there at all; absent when it can.
    pub unavailable: Option<String>,
    /// What it cannot do there, and why. What is not listed it can.
    #[serde(deserialize_with = "known_keys")]
    pub lacks: BTreeMap<Ability, String>,
}

impl RuntimeOffer {
    /// Why it cannot do all of this, when it cannot; the first reason there is.
    pub fn refusal(&self, needed: &[Ability]) -> Option<String> {
        if let Some(why) = &self.unavailable {
            return Some(format!("no {}: {why}", self.runtime));
        }
        needed.iter().find_map(|ability| {
            let why = self.lacks.get(ability)?;
            Some(format!("{} lacks {ability}: {why}", self.runtime))
        })
    }
}

/// Why none of the offers of a node suits, when none does. A node that reports no offers at all, an
/// older one, has the embedded runtime.
pub fn refusal(
    offers: &[RuntimeOffer],
    runtime: RuntimeName,
    needed: &[Ability],
) -> Option<String> {
    match offers.iter().find(|offer| offer.runtime == runtime) {
        Some(offer) => offer.refusal(needed),
        None if offers.is_empty() && runtime == RuntimeName::Embedded => None,
        None => Some(format!("no {runtime}: the node does not know it")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(runtime: RuntimeName) -> RuntimeOffer {
        RuntimeOffer {
            runtime,
            path: None,
            version: None,
            unavailable: None,
            lacks: BTreeMap::new(),
        }
    }

    #[test]
    fn names_are_what_manifests_have() {
        for runtime in RuntimeName::ALL {
            assert_eq!(runtime.as_str().parse::<RuntimeName>().unwrap(), runtime);
            let json = serde_json::to_string(&runtime).unwrap();
            assert_eq!(json, format!("\"{runtime}\""));
        }
        assert!("docker".parse::<RuntimeName>().is_err());
    }

    #[test]
    fn a_refusal_names_the_row() {
        let needed = Ability::ALWAYS;
        let mut runsc = offer(RuntimeName::Runsc);
        assert_eq!(refusal(&[runsc.clone()], RuntimeName::Runsc, &needed), None);
        runsc.lacks.insert(Ability::Gpu, "it has none".to_owned());
        assert_eq!(runsc.refusal(&needed), None);
        let gpu = runsc.refusal(&[Ability::Exec, Ability::Gpu]).unwrap();
        assert_eq!(gpu, "runsc lacks gpu: it has none");
        runsc.unavailable = Some("not found".to_owned());
        let missing = refusal(&[runsc], RuntimeName::Runsc, &needed).unwrap();
        assert_eq!(missing, "no runsc: not found");
    }

    #[test]
    fn an_older_node_has_the_embedded_runtime_alone() {
        assert_eq!(refusal(&[], RuntimeName::Embedded, &Ability::ALWAYS), None);
        assert!(refusal(&[], RuntimeName::Runc, &Ability::ALWAYS).is_some());
        let other = [offer(RuntimeName::Embedded)];
        assert!(refusal(&other, RuntimeName::Crun, &Ability::ALWAYS).is_some());
    }
}
