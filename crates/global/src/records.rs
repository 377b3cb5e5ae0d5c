//! What is stored, and under which keys. Every key below `/projects` names its project.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use longshore_api::v1::EventView;
use longshore_secrets::Sealed;
use longshore_store::world::WORLD;
use longshore_store::{KeyValue, Record, RecordError};
use longshore_trust::{Fingerprint, JoinAs, RegistryPlace};
use longshore_types::{
    AppName, Cordon, Country, Decision, Digest, Generation, Label, LocationEpoch, LocationName,
    Manifest, NodeName, PlaceMatch, ProjectName, Release, ReleaseNumber, Repository, SecretName,
    SecretVersion, Timestamp, token::Rights,
};
use serde::{Deserialize, Serialize};

/// What is wanted of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppRecord {
    /// The release that should run.
    pub release: ReleaseNumber,
    /// How far it has come.
    #[serde(default)]
    pub stage: RolloutStage,
    /// What should run in its place until it is whole; nothing for the first release.
    #[serde(default)]
    pub beside: Option<ReleaseNumber>,
    /// How many instances should run: the manifest's count until `scale` changes it.
    pub count: u32,
    /// Raised at each change.
    pub generation: Generation,
    /// True from when the user removed the app until nothing of it is left.
    pub removing: bool,
    /// The last release of which every instance was healthy and no other left.
    #[serde(default)]
    pub good: Option<ReleaseNumber>,
    /// The release that was given up since the user's last word: the present one, or one whose place
    /// `release` took again.
    #[serde(default)]
    pub failed: Option<ReleaseNumber>,
    /// Why it was.
    #[serde(default)]
    pub why: Option<String>,
}

/// How far the rollout of a release may go for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutStage {
    /// Its command runs, and nothing else of it.
    Command,
    /// Some instances of it are tried beside all of the last complete one.
    Canary,
    /// It takes the place of every other.
    #[default]
    Whole,
}

impl AppRecord {
    /// The release that most instances should be of.
    pub fn main(&self) -> ReleaseNumber {
        self.beside.unwrap_or(self.release)
    }

    /// The same, unless nothing should run yet.
    pub fn running(&self) -> Option<ReleaseNumber> {
        let held_back = self.stage == RolloutStage::Command && self.beside.is_none();
        (!held_back).then(|| self.main())
    }

    /// The same app with its release at another stage, beside what that stage leaves running.
    pub fn at(&self, stage: RolloutStage) -> Self {
        let beside = match stage {
            RolloutStage::Command => self.beside,
            RolloutStage::Canary => self.good,
            RolloutStage::Whole => None,
        };
        Self { stage, beside, generation: self.generation.next(), ..self.clone() }
    }

    /// The stage after its command.
    pub fn after_command(&self, manifest: &Manifest) -> RolloutStage {
        match self.good {
            Some(good) if good != self.release && !manifest.rollout.canary.is_none() => {
                RolloutStage::Canary
            }
            _ => RolloutStage::Whole,
        }
    }
}

/// What a location was given of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllotmentRecord {
    /// The release that should run.
    pub release: ReleaseNumber,
    /// How many instances should run.
    pub count: u32,
    /// What is tried beside those.
    #[serde(default)]
    pub canary: Option<CanaryRecord>,
    /// The release whose command is run there.
    #[serde(default)]
    pub command: Option<ReleaseNumber>,
    /// True when nothing of the release may run yet.
    #[serde(default)]
    pub held_back: bool,
    /// For how many that have no room yet others may be made to leave.
    #[serde(default)]
    pub make_room: u32,
    /// The most that may run.
    pub budget: u32,
    /// The largest budget that the location may still go by.
    pub budget_in_force: u32,
    /// Raised at each change.
    pub generation: Generation,
    /// What ran there when it was last heard of, where something was changed since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_with: Option<LeftWith>,
    /// Why this location.
    pub decision: Decision,
}

/// What a location that is not heard of was left with. Kept in the store, since the next control plane that leads has
/// never heard of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftWith {
    /// The newest release that ran there, or that it was told of where that is all that is known.
    pub release: ReleaseNumber,
    /// Since when it is silent, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
}

/// Instances of another release that run beside those that should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanaryRecord {
    /// The release that is tried.
    pub release: ReleaseNumber,
    /// How many instances.
    pub count: u32,
}

/// A token, known by its hash alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// The hexadecimal SHA-256 of its text.
    pub hash: String,
    /// What its bearer may do.
    pub rights: Rights,
    /// When it was made.
    pub created_at: Timestamp,
    /// True for the tokens that `longshore up` makes and every start renews.
    pub built_in: bool,
}

/// A version of a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretRecord {
    /// Its value, for the context of its key in the store.
    pub sealed: Sealed,
    /// When it was set.
    pub created_at: Timestamp,
}

/// Something that was changed, stored as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EventRecord(pub EventView);

/// That a request with an idempotency key was carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerRecord {
    /// The hexadecimal SHA-256 of what was asked for.
    pub request_hash: String,
    /// When.
    pub at: Timestamp,
    /// What was answered; absent from the change until a moment later.
    pub answer: Option<GivenAnswer>,
}

/// An answer that was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenAnswer {
    /// The HTTP status.
    pub status: u16,
    /// The type of the body.
    pub content_type: Option<String>,
    /// The body, for the context of its key in the store.
    pub body: Sealed,
}

/// A location that has joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocationRecord {
    /// When it first reported, or was let in.
    pub joined_at: Timestamp,
    /// The key of its authority, when it joined from another machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<Fingerprint>,
    /// Those of the machines that were the location before another recovered it.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub authorities_before: BTreeSet<Fingerprint>,
    /// Which of its lives it is in, once it has begun one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<LocationEpoch>,
    /// The keys of the nodes that joined it, for when it loses its store.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_keys: BTreeMap<NodeName, Fingerprint>,
    /// The only country in which it counts as being, when its token named one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub country: Option<Country>,
}

impl LocationRecord {
    /// That of one that joins now; with the key of its authority from another machine.
    pub fn joined(joined_at: Timestamp, authority: Option<Fingerprint>) -> Self {
        Self {
            joined_at,
            authority,
            authorities_before: BTreeSet::new(),
            epoch: None,
            node_keys: BTreeMap::new(),
            country: None,
        }
    }

    /// The same bound to the country that a token names; to what it was bound before where it names none.
    #[must_use]
    pub fn bound_to(self, country: Option<Country>) -> Self {
        Self { country: country.or(self.country), ..self }
    }

    /// The same location on another machine, which begins its next life there: what was it before is refused from
    /// now on.
    #[must_use]
    pub fn recovered_by(mut self, authority: Fingerprint, joined_at: Timestamp) -> Self {
        self.authorities_before.extend(self.authority.replace(authority));
        // One that is older than lives has had its first all the same.
        self.epoch.get_or_insert_default();
        Self { joined_at, ..self }
    }
}

/// The registry, when it joined from another machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryRecord {
    /// When it was let in.
    pub joined_at: Timestamp,
    /// Its key.
    pub key: Fingerprint,
    /// Where it is, once it has said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<RegistryPlace>,
}

impl Record for RegistryRecord {
    const KIND: &'static str = "registry";
}

/// What lets a machine join, known by the hash of its secret alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinTokenRecord {
    /// As what its bearer joins, and where.
    #[serde(flatten)]
    pub joins: JoinAs,
    /// From when on it is of no use.
    pub expires_at: Timestamp,
    /// True when its bearer takes the place of the location that there is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recovers: bool,
    /// In which country its bearer is to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub country: Option<Country>,
}

/// Below this, the tokens by which machines join.
pub const JOIN_TOKENS: &str = "/join-tokens/";

/// What an operator wishes of a location or a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CordonRecord(pub Cordon);

/// An image that should be on nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrewarmRecord {
    /// As who wished it named it.
    pub named: String,
    /// Where it lies.
    pub repository: Repository,
    /// On which nodes; on all where none is named.
    #[serde(default)]
    pub places: Vec<PlaceMatch>,
    /// Since when.
    pub created_at: Timestamp,
    /// By the bearer of which token.
    pub by: AppName,
    /// Whether it gives way to nothing else.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pinned: bool,
    /// Why it ended by itself, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
}

impl PrewarmRecord {
    /// Whether it is for a node at that location with these labels.
    pub fn is_for(&self, location: &LocationName, labels: &BTreeSet<Label>) -> bool {
        PlaceMatch::any_has(&self.places, location, labels)
    }
}

impl Record for PrewarmRecord {
    const KIND: &'static str = "prewarm";
}

/// What a key names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// `/projects/{project}/apps/{app}`
    App(ProjectName, AppName),
    /// `/projects/{project}/releases/{app}/{number}`
    Release(ProjectName, AppName, ReleaseNumber),
    /// `/allotments/{location}/{project}/{app}`
    Allotment(LocationName, ProjectName, AppName),
    /// `/projects/{project}/secrets/{name}/{version}`
    Secret(ProjectName, SecretName, SecretVersion),
    /// `/events/{at}/{id}`
    Event(Timestamp, String),
    /// `/answers/{token}/{hash of the idempotency key}`
    Answer(AppName, String),
    /// `/tokens/{name}`
    Token(AppName),
    /// `/locations/{location}`
    Location(LocationName),
    /// `/join-tokens/{hash of the secret}`
    JoinToken(Fingerprint),
    /// `/cordons/{location}`, `/cordons/{location}/{node}`
    Cordon(LocationName, Option<NodeName>),
    /// `/let-go/{location}/{project}/{app}`
    LetGo(LocationName, ProjectName, AppName),
    /// `/projects/{project}/prewarms/{hexadecimal digits of the digest}`
    Prewarm(ProjectName, Digest),
    /// `/registry`
    Registry,
    /// `/leader`
    Leader,
    /// `/world`
    World,
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::App(project, app) => write!(f, "/projects/{project}/apps/{app}"),
            // Zero-padded, so that a listing comes in the order of the numbers.
            Self::Release(project, app, number) => {
                write!(f, "/projects/{project}/releases/{app}/{:020}", number.0)
            }
            Self::Allotment(location, project, app) => {
                write!(f, "/allotments/{location}/{project}/{app}")
            }
            Self::Secret(project, name, version) => {
                write!(f, "/projects/{project}/secrets/{name}/{:020}", version.0)
            }
            Self::Event(at, id) => write!(f, "/events/{:015}/{id}", at.0),
            Self::Answer(token, hash) => write!(f, "/answers/{token}/{hash}"),
            Self::Token(name) => write!(f, "/tokens/{name}"),
            Self::Location(name) => write!(f, "/locations/{name}"),
            Self::JoinToken(hash) => write!(f, "{JOIN_TOKENS}{hash}"),
            Self::Cordon(location, None) => write!(f, "/cordons/{location}"),
            Self::Cordon(location, Some(node)) => write!(f, "/cordons/{location}/{node}"),
            Self::LetGo(location, project, app) => write!(f, "/let-go/{location}/{project}/{app}"),
            Self::Prewarm(project, image) => {
                write!(f, "/projects/{project}/prewarms/{}", image.hex())
            }
            Self::Registry => f.write_str("/registry"),
            Self::Leader => f.write_str("/leader"),
            Self::World => f.write_str(WORLD),
        }
    }
}

impl Key {
    /// The key that a text names; `None` for what this version does not know.
    pub fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split('/').skip(1).collect();
        Some(match parts.as_slice() {
            ["projects", project, "apps", app] => {
                Self::App(project.parse().ok()?, app.parse().ok()?)
            }
            ["projects", project, "releases", app, number] => {
                let number = ReleaseNumber(number.parse().ok()?);
                Self::Release(project.parse().ok()?, app.parse().ok()?, number)
            }
            ["allotments", location, project, app] => {
                Self::Allotment(location.parse().ok()?, project.parse().ok()?, app.parse().ok()?)
            }
            ["projects", project, "secrets", name, version] => {
                let version = SecretVersion(version.parse().ok()?);
                Self::Secret(project.parse().ok()?, name.parse().ok()?, version)
            }
            ["events", at, id] => Self::Event(Timestamp(at.parse().ok()?), (*id).to_owned()),
            ["answers", token, hash] => Self::Answer(token.parse().ok()?, (*hash).to_owned()),
            ["tokens", name] => Self::Token(name.parse().ok()?),
            ["locations", name] => Self::Location(name.parse().ok()?),
            ["join-tokens", hash] => Self::JoinToken(hash.parse().ok()?),
            ["cordons", location] => Self::Cordon(location.parse().ok()?, None),
            ["cordons", location, node] => {
                Self::Cordon(location.parse().ok()?, Some(node.parse().ok()?))
            }
            ["let-go", location, project, app] => {
                Self::LetGo(location.parse().ok()?, project.parse().ok()?, app.parse().ok()?)
            }
            ["projects", project, "prewarms", image] => {
                Self::Prewarm(project.parse().ok()?, Digest::from_hex(image).ok()?)
            }
            ["registry"] => Self::Registry,
            ["leader"] => Self::Leader,
            _ if text == WORLD => Self::World,
            _ => return None,
        })
    }
}

/// A release as it is stored: the domain type itself, which is plain data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReleaseRecord(pub Release);

impl Record for AppRecord {
    const KIND: &'static str = "app";
}

impl Record for ReleaseRecord {
    const KIND: &'static str = "release";
}

impl Record for AllotmentRecord {
    const KIND: &'static str = "allotment";
}

impl Record for SecretRecord {
    const KIND: &'static str = "secret";
}

impl Record for EventRecord {
    const KIND: &'static str = "event";
}

impl Record for AnswerRecord {
    const KIND: &'static str = "answer";
}

impl Record for TokenRecord {
    const KIND: &'static str = "token";
}

impl Record for CordonRecord {
    const KIND: &'static str = "cordon";
}

/// That a location is to let a stray go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LetGoRecord {
    /// When that was decided.
    pub at: Timestamp,
}

impl Record for LetGoRecord {
    const KIND: &'static str = "let-go";
}

impl Record for LocationRecord {
    const KIND: &'static str = "location";
}

impl Record for JoinTokenRecord {
    const KIND: &'static str = "join-token";
}

/// A value as it is stored, with its version.
pub fn encode<T: Record>(record: &T) -> Bytes {
    longshore_store::record::encode(record)
        .expect("our records have string keys and no failing serializers")
}

/// The value of a stored record.
pub fn decode<T: Record>(stored: &KeyValue) -> Result<T, RecordError> {
    stored.decode()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_round_trip() {
        for text in [
            "/projects/default/apps/web",
            "/projects/default/releases/web/00000000000000000012",
            "/projects/default/secrets/database-url/00000000000000000003",
            "/projects/default/prewarms/e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "/events/001795720627652/0a1b",
            "/allotments/ams/default/web",
            "/answers/ci/0a1b",
            "/tokens/ci",
            "/locations/ams",
            "/join-tokens/e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "/cordons/ams",
            "/cordons/ams/n1",
            "/let-go/ams/default/web",
            "/registry",
            "/leader",
            "/world",
        ] {
            assert_eq!(Key::parse(text).unwrap().to_string(), text);
        }
        for unknown in ["", "/", "/projects/default", "/projects/A/apps/web", "/else/x"] {
            assert_eq!(Key::parse(unknown), None, "{unknown}");
        }
    }
}
