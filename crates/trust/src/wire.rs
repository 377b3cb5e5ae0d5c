//! What is said about joining and renewing.

use std::collections::BTreeMap;

use longshore_types::{LocationEpoch, LocationName, NodeName};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{Fingerprint, JoinRole, PublicKey};

/// A machine asks to be let in.
#[derive(Clone, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The secret of its token.
    pub secret: Zeroizing<String>,
    /// What it wants to be called.
    pub node: NodeName,
    /// Its key.
    pub key: PublicKey,
}

/// A location asks to be let in.
#[derive(Clone, Serialize, Deserialize)]
pub struct LocationJoinRequest {
    /// The secret of its token.
    pub secret: Zeroizing<String>,
    /// Its name, as the token says.
    pub location: LocationName,
    /// The key of its authority.
    pub key: PublicKey,
}

/// A registry asks to be let in.
#[derive(Clone, Serialize, Deserialize)]
pub struct RegistryJoinRequest {
    /// The secret of its token.
    pub secret: Zeroizing<String>,
    /// Its key.
    pub key: PublicKey,
}

/// Where a registry that joined is, as it says itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryPlace {
    /// `host:port` by which the control plane and locations call it, with certificates on both sides.
    pub address: String,
    /// `host:port` by which users call it, as it stands in names of images.
    pub public: String,
    /// Whether users speak to it by TLS.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub public_secure: bool,
}

/// A location says with which store it begins.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BeginRequest {
    /// The life that its store is of; absent when the store is empty and is to be of a new one.
    pub epoch: Option<LocationEpoch>,
}

/// What a location goes on with.
#[derive(Clone, Serialize, Deserialize)]
pub struct Begun {
    /// The life that it is in from now on.
    pub epoch: LocationEpoch,
    /// With what it seals what it gives its nodes, the same in all of its lives.
    pub seal: Zeroizing<String>,
    /// The keys of the nodes that joined it.
    #[serde(default)]
    pub node_keys: BTreeMap<NodeName, Fingerprint>,
}

/// From where a location has images from now on.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryTold {
    /// Absent while there is no registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<RegistryAccess>,
}

/// From where a location has images, and by which token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryAccess {
    /// `host:port` of the registry.
    pub address: String,
    /// Pulls what the location was allotted.
    pub token: Zeroizing<String>,
    /// Whether it runs where the control plane does. Only then is it believed what it says of layers that it
    /// converted: what was pushed can be checked by its digests, that cannot.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_own: bool,
}

/// Who holds a certificate asks for the next; a location for that of its authority.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CertificateRequest {
    /// The key.
    pub key: PublicKey,
}

/// A location uses up a token that was shown to it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RedeemRequest {
    /// The hash of its secret.
    pub secret: Fingerprint,
    /// As what its bearer joins.
    pub role: JoinRole,
    /// What the bearer will be called, for the log of events.
    pub name: NodeName,
}
