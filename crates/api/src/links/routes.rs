//! The link between a location and its ingresses.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use longshore_types::{
    AppName, AppProtocol, HostName, IngressRules, InstanceId, LocationEpoch, NodeName, ProjectName,
};
use serde::{Deserialize, Serialize};

/// All that an ingress has to know, whole.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RoutingTable {
    /// Of which life of the location it is; an ingress refuses an earlier one.
    #[serde(default)]
    pub location_epoch: LocationEpoch,
    /// Raised at each change; an ingress acknowledges it once no new request goes by an older one.
    pub revision: u64,
    /// One per app with a port.
    pub routes: Vec<Arc<Route>>,
    /// The nodes of other machines, which may keep connections open to an ingress to be reached over, each with the
    /// SHA-256 of its key in hexadecimal digits.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub nodes: BTreeMap<NodeName, String>,
}

/// How the requests for one app are answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The owner of the app.
    pub project: ProjectName,
    /// The app.
    pub app: AppName,
    /// The host names that lead to it.
    pub hosts: Vec<HostName>,
    /// How they are spread. `protocol` is that of the newest release; what an endpoint speaks it
    /// says itself.
    #[serde(default)]
    pub rules: IngressRules,
    /// The healthy instances, none of them draining.
    pub endpoints: Vec<Endpoint>,
}

/// A healthy instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The instance.
    pub instance: InstanceId,
    /// Its node, through whose gate it is reached.
    pub node: NodeName,
    /// Its address on its node.
    pub address: SocketAddr,
    /// What it speaks there.
    #[serde(default)]
    pub protocol: AppProtocol,
    /// How it is reached.
    #[serde(default)]
    pub reach: Reach,
}

/// How an ingress reaches the instances of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reach {
    /// By their addresses: it is on the same machine.
    #[default]
    Here,
    /// Through the gate of the node, which is an endpoint of `longshore-link`.
    Gate(String),
    /// Over connections that the node keeps open to the ingress, or to the location, and then through that: its gate
    /// cannot be dialled.
    Location,
}

/// An ingress tells its location which table it routes by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteAck {
    /// A name that the ingress chose for itself when it started.
    pub ingress: String,
    /// The revision.
    pub revision: u64,
    /// Instances that are not in the table and have requests or connections under way, told again
    /// when one has no more.
    #[serde(default)]
    pub busy: Vec<InstanceId>,
}
