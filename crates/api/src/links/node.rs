//! The link between a location and its nodes.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use longshore_types::{
    ByteCount, Capacity, Digest, ExitReason, Generation, Gpu, GpuShares, IdRange, ImageMount,
    InstanceId, InstancePhase, LocationEpoch, NodeName, ReachAddress, Reached, Release,
    RuntimeOffer, Timestamp, Traits,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a location gives a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The instance.
    pub instance: InstanceId,
    /// What it runs.
    pub release: Arc<Release>,
    /// Whether it should run or end.
    pub intent: Intent,
    /// Raised at each change of this assignment.
    pub generation: Generation,
    /// What it holds of which GPUs of the node.
    #[serde(default, skip_serializing_if = "GpuShares::is_empty")]
    pub gpus: GpuShares,
    /// What the location would have to know again if it lost its store.
    #[serde(default)]
    pub origin: Origin,
}

/// What a node keeps of an assignment for its location alone.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Origin {
    /// True when it runs the command of the release.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_command: bool,
    /// When it was assigned.
    #[serde(default)]
    pub created_at: Timestamp,
    /// The instance on a drained node whose place it takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<InstanceId>,
    /// Shows that the location gave it; absent where it could not make one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal: Option<String>,
}

/// What should become of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Intent {
    /// It should run, and be started again by its restart policy.
    Run,
    /// It should end, with its grace, and stay ended.
    Stop,
}

/// All assignments of a node. An instance that is missing here is to be ended and removed with all
/// that it used.
///
/// A node that asks for `changes` is told the whole once on each connection, and then what differs from the set before:
/// with many instances the whole at each change would cost the square of their number. Each change says what it builds
/// on ([`Self::since`]), so one that was missed is noticed, and the connection made anew.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AssignmentSet {
    /// Of which life of the location it is; a node refuses an earlier one.
    #[serde(default)]
    pub location_epoch: LocationEpoch,
    /// Raised at each change of the set; a node refuses an older one of the same life.
    pub generation: Generation,
    /// The generation of the set of the same life that this is a change of; absent when it is whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Generation>,
    /// One per instance; in a change those that are new or others than before.
    pub assignments: Vec<Arc<Assignment>>,
    /// In a change, the instances that the node should not have any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<InstanceId>,
    /// The `host:port` of each ingress of its location to which a node of another machine keeps connections open,
    /// over which requests for its instances come where its gate cannot be dialled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ingresses: Vec<String>,
    /// What it is to try to reach.
    #[serde(default)]
    pub reach: BTreeSet<ReachAddress>,
    /// True when this says nothing of what the node should have, and asks for what it has: the location lost its
    /// store. Then the generation is 0, which no node goes back to.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hand_over: bool,
}

/// What a node has, told to a location that lost its store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandedOver {
    /// The life of the location that asked.
    pub to: LocationEpoch,
    /// All that it carries out.
    pub assignments: Vec<Arc<Assignment>>,
}

/// What a node reports to its location.
///
/// A location that answers by [`super::ReportTaken`] is told the whole once, and then of the instances only those that
/// differ from the report before. Each change says what it builds on ([`Self::since`]); where that is not known, the
/// whole is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// The node.
    pub node: NodeName,
    /// Which report it is, of all that its node makes; 0 from one that reports the whole each time.
    #[serde(default)]
    pub number: u64,
    /// The number of the report that this is a change of; absent when it is whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// Where its HTTP interface is reached, as an endpoint of `longshore-link`: on this machine for all that it
    /// is asked, from another for requests to instances, where it can be dialled. For the rest a node of
    /// another machine opens connections over which it is called.
    pub gate: String,
    /// The version of Longshore it runs.
    pub version: String,
    /// What it offers to instances in all.
    pub capacity: Capacity,
    /// Its GPUs, by which each has its index.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<Gpu>,
    /// The generation of the assignments it carries out; absent until it has heard from its
    /// location since it started.
    pub acknowledged: Option<Generation>,
    /// The images that are complete on it, by the digest a release pins.
    pub images: Vec<Digest>,
    /// Those that are on their way to it, for whatever; nothing from a node of the release before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pulling: Vec<Digest>,
    /// Every instance it has; in a change those that are new or others than before.
    pub instances: Vec<Arc<ObservedInstance>>,
    /// In a change, the instances that are gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<InstanceId>,
    /// Where the node runs on the same kernel as the ingress that asks, instance addresses can be
    /// dialled directly. This names that kernel (boot id and network namespace).
    pub network: String,
    /// The capability table: a row for each runtime. Empty from a node that is older than it.
    #[serde(default, deserialize_with = "longshore_types::lenient::known_items")]
    pub runtimes: Vec<RuntimeOffer>,
    /// How images get to its kernel. Absent from one that is older than this.
    #[serde(
        default,
        deserialize_with = "longshore_types::lenient::known",
        skip_serializing_if = "Option::is_none"
    )]
    pub image_mount: Option<ImageMount>,
    /// What its operator says of it.
    #[serde(default)]
    pub traits: Traits,
    /// The life of the location whose assignments it carries out.
    #[serde(default)]
    pub location_epoch: LocationEpoch,
    /// All of those, while a later life of the location asks for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handed_over: Option<HandedOver>,
    /// What its last tries to reach addresses came to.
    #[serde(default)]
    pub reached: Vec<Reached>,
}

/// An instance as its node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ObservedInstance {
    /// The instance.
    pub instance: InstanceId,
    /// The generation of the assignment that this speaks of.
    pub generation: Generation,
    /// Where it is in its life.
    pub phase: InstancePhase,
    /// A phrase on the phase when there is more to say, such as the cause of a failed start.
    pub note: Option<String>,
    /// Its address, which means something only on its node.
    pub address: Option<Ipv4Addr>,
    /// What its users are on the machine; absent before its first start, and when they are the
    /// machine's own (`user_namespace = false`).
    #[serde(default)]
    pub ids: Option<IdRange>,
    /// How often it was started again.
    pub restarts: u32,
    /// Why it last ended.
    pub last_exit: Option<ExitReason>,
    /// When its process last began.
    pub started_at: Option<Timestamp>,
    /// When its health check last passed for the first time since then.
    pub ready_at: Option<Timestamp>,
    /// How its image came, for the last start.
    pub path: Option<StartPath>,
    /// How long each stage of the last start took, in order.
    pub stages: Vec<Stage>,
}

impl ObservedInstance {
    /// An instance that the node has not begun with.
    pub fn pending(instance: InstanceId, generation: Generation) -> Self {
        Self {
            instance,
            generation,
            phase: InstancePhase::Pending,
            note: None,
            address: None,
            ids: None,
            restarts: 0,
            last_exit: None,
            started_at: None,
            ready_at: None,
            path: None,
            stages: Vec::new(),
        }
    }
}

/// Which way a start took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StartPath {
    /// The image was complete on the node.
    Cached,
    /// The image was pulled from the registry, or the part of it that was missing.
    Pulled,
}

/// One stage of a start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Stage {
    /// Its name: `pull`, `unpack`, `network`, `create`, `ready`...
    pub name: String,
    /// How long it took, in microseconds.
    pub micros: u64,
    /// What else there is to say of it: that layers came as the registry converted them, or why not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Which stream of a process a text came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One line of an instance's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LogLine {
    /// When it was read from the process.
    pub at: Timestamp,
    /// Where from.
    pub stream: LogStream,
    /// The text without its line end; bytes that are not UTF-8 are replaced.
    pub text: String,
}

/// Asks a node what some of its instances use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRequest {
    /// The instances; those that have no container now are left out of the answer.
    pub instances: Vec<InstanceId>,
}

/// What an instance uses, as its node counted it when it was asked. Counters begin at each start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InstanceUsage {
    /// The instance.
    pub instance: InstanceId,
    /// When it was counted, in microseconds of a clock of the node that only goes forward: rates
    /// come from two of these.
    pub at_micros: u64,
    /// Processor time used, in microseconds.
    pub cpu_micros: u64,
    /// Periods of 100 ms in which it wanted processor time.
    pub cpu_periods: u64,
    /// Those of them in which it wanted more than its limit.
    pub cpu_throttled: u64,
    /// Memory in use, without page cache that the kernel can drop at once.
    pub memory: ByteCount,
    /// The most memory that was ever in use, page cache included, where the kernel keeps that.
    pub memory_peak: Option<ByteCount>,
    /// Processes and threads.
    pub pids: u64,
    /// What its files take, those of its image not counted.
    pub disk: Option<ByteCount>,
    /// Bytes that came to it by the network.
    pub received: Option<u64>,
    /// Bytes that it sent.
    pub sent: Option<u64>,
}
