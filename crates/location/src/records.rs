//! What a location stores.

use std::collections::BTreeMap;
use std::sync::Arc;

use longshore_api::links::{Allotment, AppRef, Intent};
use longshore_store::Record;
use longshore_types::{
    Cordon, Decision, Epoch, Generation, GpuShares, InstanceId, NodeName, Release, Timestamp,
};
use serde::{Deserialize, Serialize};

/// Below this, one record per instance.
pub const INSTANCES: &str = "/instances/";
/// Below this, for each instance that its node took over the newest generation of which it did.
pub const CONFIRMED: &str = "/confirmed/";
/// Below this, one record per app that was allotted.
pub const ALLOTMENTS: &str = "/allotments/";
/// What operators wish of the nodes.
pub const CORDONS: &str = "/cordons";
/// Below this, one record per app that is kept although the global plane does not know it.
pub const STRAYS: &str = "/strays/";
/// The generation of the set of allotments.
pub const ALLOTMENTS_GENERATION: &str = "/allotments-generation";

/// An instance that was assigned to a node and is not gone yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRecord {
    /// Its id.
    pub instance: InstanceId,
    /// What it runs.
    pub release: Arc<Release>,
    /// True when it runs the command of the release; then `release` has that command's manifest.
    #[serde(default)]
    pub is_command: bool,
    /// Its node.
    pub node: NodeName,
    /// What it holds of which GPUs there.
    #[serde(default, skip_serializing_if = "GpuShares::is_empty")]
    pub gpus: GpuShares,
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
    /// Shows to a later life of this location that it was given to its node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal: Option<String>,
    /// The newest generation that its node said it has: from then on it is known here that the order arrived,
    /// also after a restart.
    #[serde(default)]
    pub confirmed: Option<Generation>,
}

impl Record for InstanceRecord {
    const KIND: &'static str = "instance";
}

/// The newest generation of an instance that its node said it has, since the instance was written: to write that anew
/// with all that it runs would cost most of what a placement does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ConfirmedRecord(pub Generation);

impl Record for ConfirmedRecord {
    const KIND: &'static str = "confirmation";
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

/// Which set of allotments is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GenerationRecord {
    /// Of which life of the global store.
    pub epoch: Epoch,
    /// Which of that.
    pub generation: Generation,
}

impl Record for GenerationRecord {
    const KIND: &'static str = "generation";
    const VERSION: u32 = 2;

    fn from_older(_: u32, data: serde_json::Value) -> Result<Self, serde_json::Error> {
        // Before there were lives there was one, and a plain number.
        Ok(Self { epoch: Epoch(0), generation: serde_json::from_value(data)? })
    }
}

/// That an allotment is kept although the global plane does not know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StrayRecord(pub AppRef);

impl Record for StrayRecord {
    const KIND: &'static str = "stray";
}

/// The key of a stray.
pub fn stray_key(stray: &AppRef) -> String {
    format!("{STRAYS}{}/{}", stray.project, stray.app)
}

/// The key of an instance.
pub fn instance_key(instance: &InstanceId) -> String {
    format!("{INSTANCES}{instance}")
}

/// The key of what the node of an instance said it has.
pub fn confirmed_key(instance: &InstanceId) -> String {
    format!("{CONFIRMED}{instance}")
}

/// The key of an allotment.
pub fn allotment_key(allotment: &Allotment) -> String {
    format!("{ALLOTMENTS}{}/{}", allotment.project(), allotment.app())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_location_stored_before_there_were_epochs_is_read() {
        let read =
            longshore_store::record::decode::<GenerationRecord>("/k", br#"{"v":1,"data":7}"#);
        let expected = GenerationRecord { epoch: Epoch(0), generation: Generation(7) };
        assert_eq!(read.unwrap(), expected);
    }
}
