//! What a location stores.

use std::collections::BTreeMap;

use longshore_api::links::{Allotment, Intent};
use longshore_store::Record;
use longshore_types::{Cordon, Decision, Generation, InstanceId, NodeName, Release, Timestamp};
use serde::{Deserialize, Serialize};

/// Below this, one record per instance.
pub const INSTANCES: &str = "/instances/";
/// Below this, one record per app that was allotted.
pub const ALLOTMENTS: &str = "/allotments/";
/// What operators wish of the nodes.
pub const CORDONS: &str = "/cordons";
/// The generation of the set of allotments.
pub const ALLOTMENTS_GENERATION: &str = "/allotments-generation";

/// An instance that was assigned to a node and is not gone yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRecord {
    /// Its id.
    pub instance: InstanceId,
    /// What it runs.
    pub release: Release,
    /// True when it runs the command of the release; then `release` has that command's manifest.
    #[serde(default)]
    pub is_command: bool,
    /// Its node.
    pub node: NodeName,
    /// Why this node.
    pub decision: Decision,
    /// What its node is told.
    pub intent: Intent,
    /// Raised at each change of what its node is told.
    pub generation: Generation,
    /// Why no more requests go to it, from when that was decided.
    pub draining: Option<String>,
    /// When it was assigned.
    pub created_at: Timestamp,
    /// The instance on a drained node whose place it takes.
    #[serde(default)]
    pub replaces: Option<InstanceId>,
}

impl Record for InstanceRecord {
    const KIND: &'static str = "instance";
}

/// An allotment as it was received.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AllotmentRecord(pub Allotment);

impl Record for AllotmentRecord {
    const KIND: &'static str = "allotment";
}

/// What operators wish of the nodes, as it was received.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CordonsRecord(pub BTreeMap<NodeName, Cordon>);

impl Record for CordonsRecord {
    const KIND: &'static str = "cordons";
}

/// The generation of the set of allotments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GenerationRecord(pub Generation);

impl Record for GenerationRecord {
    const KIND: &'static str = "generation";
}

/// The key of an instance.
pub fn instance_key(instance: &InstanceId) -> String {
    format!("{INSTANCES}{instance}")
}

/// The key of an allotment.
pub fn allotment_key(allotment: &Allotment) -> String {
    format!("{ALLOTMENTS}{}/{}", allotment.project(), allotment.app())
}
