//! The internal links. Each is a pair of plain HTTP exchanges that the lower role opens:
//!
//! - a **watch** down: `GET`, answered by a stream of JSON lines. Each line is the whole present
//!   state (level-triggered: a line that was missed does not matter), sent again when it changed. Where the whole is
//!   large, who asks for changes is told the whole first, and then what differs; each change names what it builds on.
//! - a **report** up: `POST` of the whole observed state, sent when it changed and at least every
//!   few seconds as a heartbeat, acknowledging the last generation that was taken over. To who answers which report is
//!   known now, the next says what differs from that.
//!
//! Rejected: one bidirectional gRPC stream per link. It would need a second schema language and
//! conversions for the same types, cannot be read with curl, and its only gain, one connection
//! instead of two, HTTP/2 gives as well.

mod archive;
mod assignments;
mod demand;
mod elsewhere;
mod exec;
mod images;
mod node;
mod report;
mod routes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use longshore_types::{
    AppName, Capacity, Coordinates, Cordon, Decision, Digest, Epoch, Generation, GpuShares,
    HostName, ImageMount, InstanceId, LocationEpoch, LocationName, NodeGpu, NodeName, ProjectName,
    ReachAddress, Reached, Release, ReleaseNumber, Repository, RoomMaking, RuntimeOffer,
    SecretName, SecretValue, SecretVersion, Timestamp, Traits, Yielding, token::Rights,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use archive::{ArchiveRequest, TAR};
pub use assignments::{Assigned, AssignmentsQuery};
pub use demand::{AppDemand, AppRequests, Counted};
pub use elsewhere::{Elsewhere, ElsewhereChange, MeasuredWays, Peering, Places, ServedElsewhere};
pub use exec::{
    AttachRequest, Channel, EXEC_PROTOCOL, ExecQueryProblem, ExecRequest, FromCommand,
    INPUT_WINDOW, MAX_EXEC_MESSAGE, TerminalSize, ToCommand,
};
pub use images::{
    HoldsRequest, ImageHolds, ImageNeighbour, ImageNeighbours, PrewarmOrder, PrewarmOrders,
    PrewarmSet, PrewarmWish, Vouched,
};
pub use node::{
    Assignment, AssignmentSet, HandedOver, Intent, LogLine, NodeReport, ObservedInstance, Origin,
    Stage, StartPath,
};
pub use node::{InstanceUsage, LogStream, UsageRequest};
pub use report::{ReportChanges, ReportTaken, Said, Told};
pub use routes::{Endpoint, Reach, Route, RouteAck, RoutingTable};

/// What the global scheduler gives a location for one app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allotment {
    /// The release that should run; instances of other releases are replaced by it step by step.
    pub release: Arc<Release>,
    /// How many instances should run.
    pub count: u32,
    /// What is tried beside it.
    #[serde(default)]
    pub canary: Option<Canary>,
    /// What is run once beside it: the release with the manifest of its command.
    #[serde(default)]
    pub command: Option<Arc<Release>>,
    /// The most that may ever run there, replacements and rollouts included.
    pub budget: u32,
    /// For how many of those that should run others of lower priority may be made to leave, because no location
    /// has room for them.
    #[serde(default)]
    pub make_room: u32,
    /// The release that would take the place of this one again, with its image, which nodes that have it keep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<RollbackImage>,
    /// The host names that lead to the app.
    pub hosts: Vec<HostName>,
    /// Raised at each change of this allotment.
    pub generation: Generation,
    /// Why this location.
    pub decision: Decision,
}

/// The image of an earlier release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollbackImage {
    /// The release.
    pub release: ReleaseNumber,
    /// Its image.
    pub image: Digest,
}

impl Allotment {
    /// All releases of which something may run.
    pub fn releases(&self) -> impl Iterator<Item = &Arc<Release>> {
        let canary = self.canary.as_ref().map(|canary| &canary.release);
        [Some(&self.release), canary, self.command.as_ref()].into_iter().flatten()
    }

    /// The owner of the app.
    pub fn project(&self) -> &ProjectName {
        &self.release.manifest.project
    }

    /// The app.
    pub fn app(&self) -> &AppName {
        &self.release.manifest.app
    }
}

/// Instances of another release that run beside those that should.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Canary {
    /// The release that is tried.
    pub release: Arc<Release>,
    /// How many instances.
    pub count: u32,
}

/// All allotments of a location. An app that is missing here must not run there any more, unless it is a
/// stray: one that was missing first in another life of the global store, which may have forgotten it.
///
/// A location that asks for `changes` is told the whole once on each connection, and then what differs from the set
/// before: with thousands of apps the whole at each change would cost the square of their number. Each change says
/// what it builds on ([`Self::since`]), so one that was missed is noticed, and the whole asked for again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AllotmentSet {
    /// Of which life of the global store it is; a location refuses an earlier one.
    #[serde(default)]
    pub epoch: Epoch,
    /// Raised at each change of the set; a location refuses an older one of the same life.
    pub generation: Generation,
    /// The generation of the set of the same life that this is a change of; absent when it is whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Generation>,
    /// One per app; in a change those that are new or others than before.
    pub allotments: Vec<Allotment>,
    /// In a change, the apps that must not run there any more. Some may never have been there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<AppRef>,
    /// What operators wish of its nodes.
    #[serde(default)]
    pub cordons: BTreeMap<NodeName, Cordon>,
    /// What its nodes are to try to reach, for all apps that may come.
    #[serde(default)]
    pub reach: BTreeSet<ReachAddress>,
    /// The strays that must not run there any more.
    #[serde(default)]
    pub let_go: Vec<AppRef>,
}

impl AllotmentSet {
    /// This set with a change of it, or both as they were when it is one of another.
    pub fn changed(mut self, change: Self) -> Result<Self, Box<(Self, Self)>> {
        if change.since != Some(self.generation) || change.epoch != self.epoch {
            return Err(Box::new((self, change)));
        }
        let Self { epoch: _, generation, since: _, allotments, gone, cordons, reach, let_go } =
            change;
        let app = |allotment: &Allotment| AppRef {
            project: allotment.project().clone(),
            app: allotment.app().clone(),
        };
        let past: BTreeSet<_> = allotments.iter().map(app).chain(gone.iter().cloned()).collect();
        self.allotments.retain(|one| !past.contains(&app(one)));
        self.allotments.extend(allotments);
        // What is gone again is added again.
        self.gone.retain(|one| !past.contains(one));
        if self.since.is_some() {
            self.gone.extend(gone);
        }
        Ok(Self { generation, cordons, reach, let_go, ..self })
    }
}

/// How a location asks for its allotments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AllotmentsQuery {
    /// Whether it understands changes.
    #[serde(default)]
    pub changes: bool,
}

/// An app and its owner.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AppRef {
    /// The owner.
    pub project: ProjectName,
    /// The app.
    pub app: AppName,
}

/// What a location reports to the global plane.
///
/// A global plane that answers by [`ReportTaken`] is told the whole once, and then of the instances only those that
/// differ from the report before: with thousands of instances all of them at each change would cost the square of
/// their number. Each change says what it builds on ([`Self::since`]); where that is not known, the whole is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocationReport {
    /// The location.
    pub location: LocationName,
    /// Which report it is, of all that its location makes; 0 from one that reports the whole each time.
    #[serde(default)]
    pub number: u64,
    /// The number of the report that this is a change of; absent when it is whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// Where on Earth it is, when its operator said so.
    #[serde(default)]
    pub coordinates: Option<Coordinates>,
    /// What its operator says of it.
    #[serde(default)]
    pub traits: Traits,
    /// `host:port` where nodes of other machines join, if they may.
    #[serde(default)]
    pub joining: Option<String>,
    /// How its ingresses are reached by those of other locations, once they can show who they are.
    #[serde(default)]
    pub peering: Option<Peering>,
    /// The smoothed round trips from its ingresses to those of other locations, as far as they are measured,
    /// in microseconds.
    #[serde(default)]
    pub round_trip_micros: BTreeMap<LocationName, u64>,
    /// How many requests of users come in there, of the apps that have most.
    #[serde(default)]
    pub demand: Vec<AppDemand>,
    /// Where its HTTP interface for logs and exec is reached on this machine, as an endpoint of
    /// `longshore-link`. One of another machine opens connections over which it is called.
    #[serde(default)]
    pub gate: Option<String>,
    /// Of which life of the global store the allotments are that it carries out.
    #[serde(default)]
    pub epoch: Epoch,
    /// The generation of those.
    pub acknowledged: Generation,
    /// When the report was made, by the location's clock.
    pub at: Timestamp,
    /// Its nodes.
    pub nodes: Vec<NodeSummary>,
    /// Its instances; in a change those that are new or others than before.
    pub instances: Vec<Arc<InstanceStatus>>,
    /// In a change, the instances that are gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<InstanceId>,
    /// What it cannot carry out.
    pub shortfalls: Vec<Shortfall>,
    /// What has not left nodes that are drained.
    #[serde(default)]
    pub staying: Vec<Staying>,
    /// What it goes on with until it is told to let it go.
    #[serde(default)]
    pub strays: Vec<AppRef>,
    /// Which of its lives it is in; the global plane refuses an earlier one than it knows of.
    #[serde(default)]
    pub location_epoch: LocationEpoch,
    /// The keys of the nodes that joined it, in hexadecimal digits: what it would have to know again if it lost
    /// its store. Absent from one that is older than this.
    #[serde(default)]
    pub node_keys: Option<BTreeMap<NodeName, String>>,
}

/// A node as its location sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeSummary {
    /// The node.
    pub node: NodeName,
    /// False when it has not reported for a while.
    pub reachable: bool,
    /// When it last reported, by the location's clock.
    pub reported_at: Timestamp,
    /// What it has in all.
    pub capacity: Capacity,
    /// What its instances have been promised.
    pub promised: Capacity,
    /// What of that those have that leave.
    #[serde(default)]
    pub leaving: Capacity,
    /// What of the rest may be made to leave for what has a higher priority, the lowest first.
    #[serde(default)]
    pub yielding: Vec<Yielding>,
    /// Its GPUs, and what of each is promised.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<NodeGpu>,
    /// What its last tries to reach addresses came to.
    #[serde(default)]
    pub reached: Vec<Reached>,
    /// The version of Longshore it runs.
    pub version: String,
    /// The capability table: a row for each runtime.
    #[serde(default, deserialize_with = "longshore_types::lenient::known_items")]
    pub runtimes: Vec<RuntimeOffer>,
    /// How images get to its kernel. Absent from one that is older than this.
    #[serde(
        default,
        deserialize_with = "longshore_types::lenient::known",
        skip_serializing_if = "Option::is_none"
    )]
    pub image_mount: Option<ImageMount>,
    /// What is said of it, and of its location.
    #[serde(default)]
    pub traits: Traits,
    /// True when it was silent for so long that others take the place of what it had.
    #[serde(default)]
    pub lost: bool,
    /// How many instances were given to it.
    #[serde(default)]
    pub instances: u32,
    /// What an operator wishes of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cordon: Option<Cordon>,
    /// True when it is drained and nothing is left there.
    #[serde(default)]
    pub drained: bool,
}

/// An instance that is still on a node that is drained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Staying {
    /// The node.
    pub node: NodeName,
    /// The instance.
    pub instance: InstanceId,
    /// The owner of its app.
    pub project: ProjectName,
    /// Its app.
    pub app: AppName,
    /// What it waits for, or what stands in its way.
    pub why: String,
    /// True when that comes by itself.
    pub under_way: bool,
}

/// What draining a node would do to one of its instances.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Move {
    /// The instance.
    pub instance: InstanceId,
    /// The owner of its app.
    pub project: ProjectName,
    /// Its app.
    pub app: AppName,
    /// The node on which another would take its place; absent when it stays, or ends anyway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<NodeName>,
    /// Why there, or why it stays.
    pub why: String,
}

/// An instance as its location sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceStatus {
    /// The owner of the app.
    pub project: ProjectName,
    /// The app.
    pub app: AppName,
    /// The release.
    pub release: ReleaseNumber,
    /// The node it is assigned to.
    pub node: NodeName,
    /// What it holds of which GPUs there.
    #[serde(default, skip_serializing_if = "GpuShares::is_empty")]
    pub gpus: GpuShares,
    /// What the node says of it.
    pub observed: ObservedInstance,
    /// True from when requests no longer go to it until it is gone.
    pub draining: bool,
    /// True when it runs the command of the release.
    #[serde(default)]
    pub is_command: bool,
    /// True while an ingress may not have heard yet that it is healthy: a request could still be
    /// told that nobody is there.
    #[serde(default)]
    pub awaits_ingress: bool,
    /// When it was assigned.
    pub created_at: Timestamp,
    /// Why this node.
    pub decision: Decision,
}

/// A part of an allotment that a location cannot carry out now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Shortfall {
    /// The owner of the app.
    pub project: ProjectName,
    /// The app.
    pub app: AppName,
    /// How many instances found no place.
    pub missing: u32,
    /// Why, with every node that was considered.
    pub decision: Decision,
    /// Whether others leave for them.
    #[serde(default)]
    pub room: RoomMaking,
}

/// Asks the one above for values of secrets, of one project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretsRequest {
    /// The project.
    pub project: ProjectName,
    /// Which version of each.
    pub secrets: BTreeMap<SecretName, SecretVersion>,
}

/// Asks a location for the secrets of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceSecretsRequest {
    /// The instance.
    pub instance: InstanceId,
}

/// Values of secrets, every one that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretValues {
    /// By name.
    pub values: BTreeMap<SecretName, SecretValue>,
}

/// An order to a location to stop one instance; its place is filled again as the allotment says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopInstance {
    /// The instance.
    pub instance: InstanceId,
}

/// What the registry has to know of the rest of the platform.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RegistryTable {
    /// Of which life of the global store it is; a registry refuses an earlier one.
    #[serde(default)]
    pub epoch: Epoch,
    /// Rights by the hexadecimal SHA-256 of the text of each token.
    pub tokens: BTreeMap<String, Rights>,
    /// The images of all releases that are kept.
    #[serde(default)]
    pub pins: Vec<Pin>,
}

/// An image that must not be deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// Where it lies.
    pub repository: Repository,
    /// The digest of its manifest or index.
    pub digest: Digest,
    /// The newest release that needs it, as a message names it: `web r3`.
    pub release: String,
}

#[cfg(test)]
mod tests {
    use longshore_types::{Manifest, Timestamp};

    use super::*;

    fn allotment(app: &str, count: u32) -> Allotment {
        let document = serde_json::json!({"app": app, "image": "web:1"});
        let release = Release {
            number: ReleaseNumber(1),
            manifest: Manifest::from_document(&document).unwrap(),
            image_digest: Digest::from_sha256([7; 32]),
            secrets: BTreeMap::new(),
            created_at: Timestamp(1),
        };
        let decision =
            Decision { at: Timestamp(1), chosen: None, why: String::new(), candidates: vec![] };
        let (canary, command, hosts, generation) = Default::default();
        let (budget, make_room, rollback) = (9, 0, None);
        Allotment {
            release: Arc::new(release),
            count,
            canary,
            command,
            budget,
            make_room,
            rollback,
            hosts,
            generation,
            decision,
        }
    }

    fn set(
        since: Option<u64>,
        generation: u64,
        apps: &[(&str, u32)],
        gone: &[&str],
    ) -> AllotmentSet {
        AllotmentSet {
            since: since.map(Generation),
            generation: Generation(generation),
            allotments: apps.iter().map(|(app, count)| allotment(app, *count)).collect(),
            gone: gone
                .iter()
                .map(|app| AppRef { project: Default::default(), app: app.parse().unwrap() })
                .collect(),
            ..AllotmentSet::default()
        }
    }

    fn counts(set: &AllotmentSet) -> BTreeMap<String, u32> {
        set.allotments.iter().map(|one| (one.app().to_string(), one.count)).collect()
    }

    #[test]
    fn changes_one_after_the_other_are_one_change() {
        let whole = set(None, 1, &[("a", 1), ("b", 1)], &[]);
        let first = set(Some(1), 2, &[("b", 2), ("c", 2)], &["a"]);
        let second = set(Some(2), 3, &[("a", 3)], &["c", "never"]);
        let both = first.clone().changed(second.clone()).unwrap();
        assert_eq!((both.since, both.generation), (Some(Generation(1)), Generation(3)));
        let at_once = whole.clone().changed(both).unwrap();
        let in_turn = whole.clone().changed(first).unwrap().changed(second.clone()).unwrap();
        assert_eq!(counts(&at_once), counts(&in_turn));
        assert_eq!(counts(&at_once), [("a".to_owned(), 3), ("b".to_owned(), 2)].into());
        assert!(at_once.gone.is_empty() && at_once.since.is_none());
        let (kept, refused) = *whole.clone().changed(second.clone()).unwrap_err();
        assert_eq!((kept, refused), (whole, second), "one in between is missing");
    }
}
