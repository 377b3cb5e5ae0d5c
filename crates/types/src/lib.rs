//! The words of Longshore as types: names, ids, units, digests, the manifest of an app.
//!
//! Everything that comes from outside is parsed into one of these once, at the rim; a value of one
//! of these types is valid. The crate does no I/O, knows no clock and no other crate of ours.
//! Test: `cargo nextest run -p longshore-types`.

#![deny(missing_docs)]

mod chain;
pub mod coordinates;
pub mod cordon;
pub mod decision;
pub mod digest;
pub mod egress;
pub mod garbage;
pub mod gpu;
pub mod id_range;
pub mod ids;
mod image_mount;
pub mod image_reference;
pub mod ingress;
pub mod instance;
pub mod jurisdiction;
mod latency;
pub mod lenient;
pub mod manifest;
mod mirror_size;
mod nearest;
mod node_image;
pub mod placement;
mod priority;
mod reach;
mod replace_lost;
pub mod retention;
pub mod rollout;
pub mod runtime;
pub mod secret;
pub mod shared_map;
pub mod time;
pub mod token;
pub mod units;

pub use chain::chain;
pub use coordinates::Coordinates;
pub use cordon::Cordon;
pub use decision::{Candidate, Decision, Lack};
pub use digest::Digest;
pub use egress::{EgressRule, IpNet, Protocol};
pub use gpu::{DeclaredGpus, Gpu, GpuModel, GpuNeed, GpuShare, GpuShares, NodeGpu};
pub use id_range::IdRange;
pub use ids::{
    AppName, Epoch, Generation, HostName, InstanceId, LocationEpoch, LocationName, NodeName,
    ProjectName, ReleaseNumber, Repository, SecretName,
};
pub use image_mount::ImageMount;
pub use image_reference::{ImageReference, Tag};
pub use ingress::{AppProtocol, IngressRules};
pub use instance::{ExitReason, InstancePhase};
pub use jurisdiction::{Country, CountryGroup, Jurisdiction};
pub use latency::{LatencyGoal, Percent};
pub use manifest::{
    Attached, Health, HealthKind, Manifest, ManifestProblem, ProcessOverrides, Release,
    ReleaseCommand, Resources, RestartPolicy,
};
pub use mirror_size::MirrorSize;
pub use nearest::nearest;
pub use node_image::{
    DIFF_ID_ANNOTATION, DiskMarks, HoldReason, ImageHold, ImageState, NodeImage, PullRate,
};
pub use placement::{Label, Near, PlaceMatch, Placement, Spread, Traits};
pub use priority::{Priority, RoomMaking, Yielding};
pub use reach::{ReachAddress, Reached, unreached};
pub use replace_lost::ReplaceLost;
pub use retention::Retention;
pub use rollout::{Portion, Rollout};
pub use runtime::{Ability, RuntimeName, RuntimeOffer};
pub use secret::{SecretPlace, SecretValue, SecretVersion};
pub use shared_map::SharedMap;
pub use time::{Duration, Timestamp};
pub use units::{ByteCount, Capacity, MilliCpu, Port};

/// A text that could not be parsed into one of our types: what was given and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a valid {what}: {allowed}")]
pub struct ParseError {
    /// The kind of thing that was expected, for instance `app name`.
    pub what: &'static str,
    /// The text as given.
    pub value: String,
    /// What would have been accepted, as a phrase.
    pub allowed: &'static str,
}

impl ParseError {
    pub(crate) fn new(what: &'static str, value: impl Into<String>, allowed: &'static str) -> Self {
        Self { what, value: value.into(), allowed }
    }
}

/// Reads a value from text without a copy of that.
struct TextVisitor<T>(std::marker::PhantomData<T>);

impl<T: std::str::FromStr<Err = ParseError>> serde::de::Visitor<'_> for TextVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

/// Gives a type that parses from text the serde, `TryFrom<String>` and `Into<String>` impls, so that
/// a value read from a wire or a store has passed the same check as one typed by a user. What of that
/// check a JSON schema can say follows the name.
macro_rules! text_type {
    ($name:ident) => {
        $crate::text_type!($name, {});
    };
    ($name:ident, $schema:tt) => {
        $crate::text_type!(but serialize $name, $schema);
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
    // What is there as text need not be made one.
    (as_str $name:ident, $schema:tt) => {
        $crate::text_type!(but serialize $name, $schema);
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
    };
    (but serialize $name:ident, { $($keyword:literal: $value:expr),* }) => {
        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string" $(, $keyword: $value)* })
            }
        }
        impl TryFrom<String> for $name {
            type Error = $crate::ParseError;
            fn try_from(value: String) -> Result<Self, Self::Error> {
                value.parse()
            }
        }
        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.to_string()
            }
        }
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str($crate::TextVisitor(std::marker::PhantomData))
            }
        }
    };
}
pub(crate) use text_type;
