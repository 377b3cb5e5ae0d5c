//! The public API under `/v1`, called with `Authorization: Bearer <token>`. What a token may do follows
//! from its role in the project of the path: `GET` and `plan` need `read`, the rest `deploy`; tokens and the
//! key of the secrets need an administrator (`longshore_global::accesses` has the list).
//!
//! | method and path | body | answer |
//! | --- | --- | --- |
//! | `GET /v1/health` (no token) | | [`HealthView`] |
//! | `GET /v1/errors/{code}` (no token) | | the page of a problem's code, in Markdown |
//! | `GET /v1/projects/{project}/apps` | | list of [`AppView`] |
//! | `PUT /v1/projects/{project}/apps/{app}` | [`DeployRequest`] | [`DeployResponse`] |
//! | `GET /v1/projects/{project}/apps/{app}` | | [`AppView`] |
//! | `DELETE /v1/projects/{project}/apps/{app}` | | `204` |
//! | `POST /v1/projects/{project}/apps/{app}/plan` | [`DeployRequest`] | [`PlanView`] |
//! | `POST /v1/projects/{project}/apps/{app}/scale` | [`ScaleRequest`] | [`AppView`] |
//! | `GET /v1/projects/{project}/apps/{app}/releases` | | list of [`ReleaseView`] |
//! | `POST /v1/projects/{project}/apps/{app}/rollback` | [`RollbackRequest`] | [`DeployResponse`] |
//! | `POST /v1/projects/{project}/apps/{app}/promote` | | [`DeployResponse`] |
//! | `GET /v1/projects/{project}/apps/{app}/locations` | | list of [`AppLocationView`] |
//! | `GET /v1/projects/{project}/apps/{app}/explain` | | [`AppExplanation`] |
//! | `GET /v1/projects/{project}/instances?app=&location=&limit=&after=` | | list of [`InstanceView`] |
//! | `GET /v1/projects/{project}/instances/{instance}` | | [`InstanceView`] |
//! | `GET /v1/projects/{project}/instances/{instance}/explain` | | [`Explanation`] |
//! | `POST /v1/projects/{project}/instances/{instance}/stop` | | `202` |
//! | `GET /v1/projects/{project}/instances/{instance}/logs?tail=&since=&follow=` | | JSON lines of [`crate::links::LogLine`] |
//! | `GET /v1/projects/{project}/instances/{instance}/exec?command=&..` | the query of [`crate::links::ExecRequest`] | a WebSocket, see [`crate::links::Channel`] |
//! | `GET /v1/projects/{project}/instances/{instance}/port-forward?port=` | | a connection, over `Upgrade: tcp` |
//! | `GET /v1/projects/{project}/instances/{instance}/archive?path=` | | a tar archive, broken off when it cannot be whole |
//! | `PUT /v1/projects/{project}/instances/{instance}/archive?path=&cp=&owners=` | a tar archive of any size | `204` |
//! | `GET /v1/projects/{project}/usage?app=&instance=` | | list of [`UsageView`] |
//! | `GET /v1/projects/{project}/secrets` | | list of [`SecretView`] |
//! | `PUT /v1/projects/{project}/secrets/{secret}` | [`SecretRequest`] | [`SecretView`] |
//! | `DELETE /v1/projects/{project}/secrets/{secret}` | | `204` |
//! | `POST /v1/secrets/rotate-key` | | [`SecretKeyView`] |
//! | `GET /v1/projects/{project}/watch?app=&instances=` | | JSON lines of [`ProjectView`], one at each change; or server-sent events, see below |
//! | `GET /v1/events?project=&limit=` | | list of [`EventView`], the newest last; or server-sent events |
//! | `GET /v1/locations?nodes=` | | list of [`LocationView`], with `nodes=false` without their nodes |
//! | `GET /v1/locations/{location}` | | [`LocationView`] |
//! | `GET /v1/locations/{location}/drain`, `GET /v1/locations/{location}/removal` | | list of [`AppMoveView`] |
//! | `PUT`, `DELETE /v1/locations/{location}/cordon` | [`CordonRequest`] | [`Cordon`], `204` |
//! | `GET /v1/locations/{location}/nodes/{node}/drain`, `.../removal` | | list of [`Move`] |
//! | `GET /v1/locations/{location}/nodes/{node}/images` | | list of [`longshore_types::NodeImage`] |
//! | `GET`, `POST /v1/projects/{project}/prewarms` | [`PrewarmRequest`] | list of [`PrewarmView`], [`PrewarmView`] |
//! | `GET`, `DELETE /v1/projects/{project}/prewarms/{digest}` | | [`PrewarmStatus`], `204` |
//! | `PUT`, `DELETE /v1/locations/{location}/nodes/{node}/cordon` | [`CordonRequest`] | [`Cordon`], `204` |
//! | `DELETE /v1/locations/{location}/nodes/{node}` | | `204` |
//! | `GET /v1/registry`, `DELETE /v1/registry` | | [`RegistryView`], `204` |
//! | `GET /v1/whoami` | | [`CallerView`] |
//! | `GET /v1/tokens`, `POST /v1/tokens`, `DELETE /v1/tokens/{token}` | [`TokenRequest`] | [`TokenView`], [`TokenCreated`] |
//!
//! Who accepts `text/event-stream` gets server-sent events from two of these. `watch` sends `state`, a
//! [`ProjectView`], and from then on `change`, a [`ProjectChange`]; `events` sends `event`, an
//! [`EventView`], and `missed` where older ones were forgotten. `Last-Event-ID` resumes both.
//!
//! Blank lines in streams of JSON lines are heartbeats, as comments are in events. Errors are [`crate::Problem`] documents.

mod away;
mod joining;
mod prewarm;

use std::collections::BTreeMap;

use longshore_types::{
    AppName, Capacity, Coordinates, Cordon, Country, Decision, Digest, Duration, Generation,
    GpuShares, HostName, InstanceId, InstancePhase, LocationName, Manifest, NodeName, Percent,
    Priority, ProjectName, ReleaseNumber, Resources, SecretName, SecretValue, SecretVersion,
    Timestamp, Traits, token::Rights,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use crate::links::{Move, Staying};
pub use away::AwayView;
pub use joining::{JoinTokenCreated, JoinTokenRequest, JoinTokenRole, RegistryView};
pub use prewarm::{PrewarmRequest, PrewarmStatus, PrewarmView, PrewarmedNode};

use crate::links::{InstanceUsage, NodeSummary, ObservedInstance, Shortfall};

/// Whether the platform answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HealthView {
    /// The version of the server.
    pub version: String,
    /// The host and port of the registry for clients, when there is one.
    pub registry: Option<String>,
    /// Whether the registry is spoken to by TLS.
    #[serde(default)]
    pub registry_secure: bool,
    /// The host and port of the ingress for clients on this machine, when there is one.
    pub ingress: Option<String>,
}

/// A deploy of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeployRequest {
    /// `longshore.toml` as JSON, unchecked: the server checks it and names every problem.
    #[schemars(schema_with = "longshore_types::manifest::document::schema")]
    pub manifest: serde_json::Value,
}

/// The outcome of a deploy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeployResponse {
    /// The release that should now run.
    pub release: ReleaseView,
    /// False when the same manifest and digest were deployed already, so nothing happens.
    pub changed: bool,
    /// Of the app since then: one that is older does not know of it yet.
    #[serde(default)]
    pub generation: Generation,
}

/// What a deploy would do, which did nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PlanView {
    /// The release that should run now; absent for an app that is not there.
    pub current: Option<ReleaseNumber>,
    /// The release that the deploy would make; the present one when nothing would change.
    pub release: ReleaseNumber,
    /// What would differ from the present release and count, or from the defaults where there is no
    /// app. Empty also where only what `scale` made of the count would become a release.
    pub changes: Vec<Change>,
    /// Where the instances would be, by what is known of the locations now.
    pub placement: Vec<Placement>,
    /// What would find no place now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<WaitingView>,
    /// How near it would be to its users, when it says how near it should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<LatencyView>,
}

/// Instances that no location takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WaitingView {
    /// How many.
    pub missing: u32,
    /// Why, with every location.
    pub decision: Decision,
}

/// A value of a release that would change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Change {
    /// The dotted path of the key, such as `resources.memory`, or `image_digest`.
    pub field: String,
    /// What it is; absent when it is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<serde_json::Value>,
    /// What it would be; absent when it would not be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<serde_json::Value>,
}

/// How many instances a location would have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Placement {
    /// The location.
    pub location: LocationName,
    /// How many it should have now.
    pub before: u32,
    /// How many it would have.
    pub after: u32,
    /// Why this location; absent when nothing more would go there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
}

/// A new count of instances.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ScaleRequest {
    /// How many instances should run; 0 stops them all and keeps the app.
    pub count: u32,
}

/// A release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReleaseView {
    /// Its number within the app.
    pub number: ReleaseNumber,
    /// What was asked for.
    pub manifest: Manifest,
    /// What the image was then.
    pub image_digest: Digest,
    /// The versions that its secrets had then.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<SecretName, SecretVersion>,
    /// When it was made.
    pub created_at: Timestamp,
    /// True for the one that should run.
    #[serde(default)]
    pub current: bool,
}

/// A way back to an earlier release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RollbackRequest {
    /// The release; the one before the present one when it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseNumber>,
}

/// An app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AppView {
    /// The owner.
    pub project: ProjectName,
    /// The name.
    pub app: AppName,
    /// The release that should run.
    pub release: ReleaseNumber,
    /// The image of that release.
    pub image: String,
    /// How many instances should run.
    pub count: u32,
    /// How much it matters beside others.
    #[serde(default)]
    pub priority: Priority,
    /// How many instances of that release are healthy and not draining, at locations that are heard of.
    pub ready: u32,
    /// How many instances of other releases are left there, and of this one beyond `count`.
    pub outdated: u32,
    /// The locations with a part of the app that are not heard of: what runs there is not counted, and holds up
    /// nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub away: Vec<AwayView>,
    /// The host names that lead to the app.
    pub hosts: Vec<HostName>,
    /// The same as addresses for a browser, with the port of the ingress; empty for an app without
    /// a port, which answers no requests.
    #[serde(default)]
    pub urls: Vec<String>,
    /// In one word: `running`, `releasing` (its command runs), `canary`, `rolling`, `waiting`, `failed`,
    /// `stopped` or `removing`.
    pub state: String,
    /// While the release is only tried: beside which one, and how far that is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<CanaryView>,
    /// The release that was given up last, because it was not complete in time. The present one
    /// when there is none to go back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<ReleaseNumber>,
    /// How near it is to its users, when it says how near it should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<LatencyView>,
    /// Why it is not running yet, when something is known.
    pub note: Option<String>,
    /// Raised at each change of what should run.
    pub generation: Generation,
}

impl AppView {
    /// True when all that should run is ready and nothing else is left, at locations that are heard of.
    pub fn is_complete(&self) -> bool {
        let away: u32 = self.away.iter().map(|away| away.count).sum();
        let heard = self.count.saturating_sub(away);
        // With nobody heard of nothing is known.
        self.outdated == 0 && self.ready >= heard && (heard > 0 || self.count == 0)
    }
}

/// How near an app is to its users, beside how near it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LatencyView {
    /// The longest round trip that is near enough.
    pub within: Duration,
    /// How many users should have no longer one.
    pub users: Percent,
    /// Of a hundred users, how many have; absent while nobody knows where the users are.
    pub reached: Option<u32>,
}

impl LatencyView {
    /// The same in words: `62 % of its users are within 50ms, and 95% should be`.
    pub fn text(&self) -> String {
        let Self { within, users, reached } = self;
        match reached {
            Some(reached) => {
                format!("{reached} % of its users are within {within}, and {users} should be")
            }
            None => format!(
                "{users} of its users should be within {within}, and nobody knows yet where they are"
            ),
        }
    }

    /// True when it is known to be farther from them than it should be.
    pub fn is_missed(&self) -> bool {
        self.reached.is_some_and(|reached| reached * 10 < self.users.permille())
    }
}

/// A release that is tried before it takes over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CanaryView {
    /// The release of which all of `count` run meanwhile.
    pub beside: ReleaseNumber,
    /// How many instances of the new one should run.
    pub count: u32,
    /// How many of them are healthy and not draining.
    pub ready: u32,
    /// How long they have to be healthy before it takes over by itself; absent when somebody has to
    /// promote it.
    pub wait: Option<Duration>,
}

impl CanaryView {
    /// True when all of them are healthy.
    pub fn is_ready(&self) -> bool {
        self.ready >= self.count
    }

    /// How far it is, and what comes next.
    pub fn note(&self) -> String {
        let Self { beside, count, ready, wait } = self;
        let next = match wait {
            _ if !self.is_ready() => String::new(),
            Some(wait) => format!("; takes over once they were for {wait}"),
            None => "; waits to be promoted".to_owned(),
        };
        format!("canaries beside {beside}: {ready} of {count} healthy{next}")
    }
}

/// An instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InstanceView {
    /// The owner of the app.
    pub project: ProjectName,
    /// The app.
    pub app: AppName,
    /// The release.
    pub release: ReleaseNumber,
    /// Where it is.
    pub location: LocationName,
    /// On which machine.
    pub node: NodeName,
    /// What it holds of which GPUs of that.
    #[serde(default, skip_serializing_if = "GpuShares::is_empty")]
    pub gpus: GpuShares,
    /// What the node says of it.
    pub observed: ObservedInstance,
    /// True from when requests no longer go to it until it is gone.
    pub draining: bool,
    /// True when it runs the command of the release.
    #[serde(default)]
    pub is_command: bool,
    /// When it was assigned.
    pub created_at: Timestamp,
}

impl InstanceView {
    /// The id.
    pub fn id(&self) -> &InstanceId {
        &self.observed.instance
    }
}

/// What an instance uses of what it may.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UsageView {
    /// The instance.
    pub instance: InstanceId,
    /// Its app.
    pub app: AppName,
    /// Where it is.
    pub location: LocationName,
    /// On which machine.
    pub node: NodeName,
    /// Where it is in its life.
    pub phase: InstancePhase,
    /// How often it was started again.
    pub restarts: u32,
    /// What it may use.
    pub limits: Resources,
    /// What it uses; absent when it has no container now, or its node did not answer.
    pub usage: Option<InstanceUsage>,
}

/// Why an instance is where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Explanation {
    /// The instance.
    pub instance: InstanceView,
    /// Why this location: the decision of the global scheduler.
    pub location: Decision,
    /// Why this node: the decision of the location scheduler.
    pub node: Decision,
}

/// How much of an app runs, and why the rest does not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AppExplanation {
    /// The app.
    pub app: AppName,
    /// How many instances should run.
    pub count: u32,
    /// How many of the release that should run do.
    pub ready: u32,
    /// All of it in a line: `5 of 8 run; 3 wait: no location in eu has 2 GiB of memory free`.
    pub summary: String,
    /// What no location takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<WaitingView>,
    /// What locations were given and found no node for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shortfalls: Vec<LocationShortfall>,
    /// Why something of it is still where it may not be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staying: Option<String>,
    /// How near it is to its users, when it says how near it should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<LatencyView>,
    /// How much it matters beside others.
    #[serde(default)]
    pub priority: Priority,
}

/// What a location cannot carry out of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LocationShortfall {
    /// The location.
    pub location: LocationName,
    /// What it lacks.
    #[serde(flatten)]
    pub shortfall: Shortfall,
}

/// Everything of a project that `watch` shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProjectView {
    /// Its apps.
    pub apps: Vec<AppView>,
    /// Its instances.
    pub instances: Vec<InstanceView>,
}

/// What differs from the state before, as `watch` tells it in server-sent events.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProjectChange {
    /// The apps that are new or differ.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub apps: Vec<AppView>,
    /// The instances that are new or differ.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub instances: Vec<InstanceView>,
    /// The apps that are no longer there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub apps_gone: Vec<AppName>,
    /// The instances that are no longer there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub instances_gone: Vec<InstanceId>,
}

/// A location.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LocationView {
    /// The name.
    pub location: LocationName,
    /// Where on Earth it is, when its operator said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coordinates: Option<Coordinates>,
    /// The smoothed round trips from its ingresses to those of other locations, as far as they are measured,
    /// in microseconds.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub round_trip_micros: BTreeMap<LocationName, u64>,
    /// What its operator says of it.
    #[serde(default)]
    pub traits: Traits,
    /// The country for which it joined; where it says that it is in another one, `traits` names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joined_for: Option<Country>,
    /// False when it has not reported for a while.
    pub reachable: bool,
    /// Its nodes; left out on request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<NodeSummary>,
    /// How many nodes it has.
    #[serde(default)]
    pub n_nodes: u32,
    /// How many of them report to it.
    #[serde(default)]
    pub n_reachable: u32,
    /// What its nodes have together.
    #[serde(default)]
    pub capacity: Capacity,
    /// What of that its instances have been promised.
    #[serde(default)]
    pub promised: Capacity,
    /// How many instances it has, of all projects.
    pub instances: u32,
    /// How many of them are healthy and not draining.
    #[serde(default)]
    pub ready: u32,
    /// What it cannot carry out, of the projects that the caller may look at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shortfalls: Vec<Shortfall>,
    /// What an operator wishes of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cordon: Option<Cordon>,
    /// True when it is drained and nothing is left there.
    #[serde(default)]
    pub drained: bool,
    /// What has not left nodes that are drained, of the projects that the caller may look at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub staying: Vec<Staying>,
    /// The apps that have not left the location when it is drained, of those projects.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub staying_apps: Vec<StayingApp>,
}

/// An app that is still at a location that is drained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StayingApp {
    /// The owner.
    pub project: ProjectName,
    /// The app.
    pub app: AppName,
    /// How many instances should run there.
    pub count: u32,
    /// What they wait for, or what stands in their way.
    pub why: String,
    /// True when that comes by itself.
    pub under_way: bool,
}

/// What is wished of a node or a location.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CordonRequest {
    /// Whether what is there should be somewhere else. Without, it stays, and nothing new comes.
    #[serde(default)]
    pub drains: bool,
}

/// What draining a location would do to an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AppMoveView {
    /// The owner.
    pub project: ProjectName,
    /// The app.
    pub app: AppName,
    /// How many instances should run there now.
    pub count: u32,
    /// How many more would run where.
    pub to: BTreeMap<LocationName, u32>,
    /// How many would stay; of a location that is removed, how many would find no place now.
    pub staying: u32,
    /// Why they would.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// What a location has of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AppLocationView {
    /// The location.
    pub location: LocationName,
    /// How many instances should run there, canaries included.
    pub wanted: u32,
    /// How many it has, of all releases.
    pub instances: u32,
    /// How many of these are healthy and not draining.
    pub ready: u32,
}

/// Whose token a request came with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CallerView {
    /// The name of the token.
    pub token: AppName,
    /// What its bearer may do.
    pub rights: Rights,
    /// The projects that its bearer may look at: `default`, those that have
    /// apps, and those that the rights name.
    pub projects: Vec<ProjectName>,
}

/// A value of a secret, which is never given back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretRequest {
    /// The value, in base 64.
    pub value: SecretValue,
}

/// A secret without its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretView {
    /// Its name.
    pub name: SecretName,
    /// The version that the next deploy takes.
    pub version: SecretVersion,
    /// When that was set.
    pub created_at: Timestamp,
    /// The apps whose releases use it.
    pub used_by: Vec<AppName>,
}

/// What changing the key came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretKeyView {
    /// How many values were sealed anew.
    pub resealed: u32,
}

/// Something that was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EventView {
    /// When.
    pub at: Timestamp,
    /// By the bearer of which token; by the platform itself when absent.
    pub token: Option<AppName>,
    /// From which address and port.
    pub from: Option<String>,
    /// In which project; of the whole platform when absent.
    pub project: Option<ProjectName>,
    /// What was done, as the CLI's verb for it.
    pub what: String,
    /// What it was done to.
    pub subject: String,
}

/// A token to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TokenRequest {
    /// A name that tells the token from others: the grammar of app names.
    pub name: AppName,
    /// What its bearer may do.
    pub rights: Rights,
}

/// A token that was just made. Its text is shown this once; only its hash is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TokenCreated {
    /// The name.
    pub name: AppName,
    /// The text to be kept secret.
    pub token: String,
}

/// A token as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TokenView {
    /// The name.
    pub name: AppName,
    /// What its bearer may do.
    pub rights: Rights,
    /// When it was made.
    pub created_at: Timestamp,
}
